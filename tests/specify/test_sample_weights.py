"""Weights of rows: the same values as scikit-learn and fairlearn, as repeated rows, and as rows that are left out."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
import torch
from biased_task import task
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from repairopt import Bound, ErrorRate, GroupGap, KeepLabels, Settings, solve_repair
from repairopt.errors import SpecificationError
from repairopt.network import Engine
from repairopt.specify import (
    AccuracyDrop,
    AdversarialError,
    CalibrationError,
    ConfusionRate,
    ExpectedCost,
    FlipRate,
    Folds,
    GroupMetrics,
    MissRate,
    OddsGap,
    WorstGroup,
    labelled_pairs,
    make_specification,
    restricted,
    weighted,
)

RANDOM = np.random.default_rng(7)
N = 240
X = torch.tensor(RANDOM.normal(size=(N, 3)), dtype=torch.float32)
Y = torch.tensor(RANDOM.integers(0, 2, N))
GROUP = RANDOM.choice(["a", "b", "c"], N)
TIMES = torch.tensor(RANDOM.integers(1, 5, N))  # weights that are numbers of rows
torch.manual_seed(3)
NET, OLD = (nn.Linear(3, 2).requires_grad_(False) for _ in range(2))

BY_GROUP = {
    "gap": lambda x, y, g, w: GroupGap.observed(x, sensitive_features=g, sample_weight=w),
    "mean gap": lambda x, y, g, w: GroupGap.observed(x, sensitive_features=g, score="difference", sample_weight=w),
    "ratio": lambda x, y, g, w: GroupGap.observed(x, sensitive_features=g, score="ratio", sample_weight=w),
    "divergence": lambda x, y, g, w: GroupGap.observed(
        x, sensitive_features=g, score="jensen_shannon", smoothing=1e-12, sample_weight=w
    ),
    "odds": lambda x, y, g, w: OddsGap.observed(x, y, sensitive_features=g, sample_weight=w),
    "worst error": lambda x, y, g, w: WorstGroup.observed(x, y, sensitive_features=g, sample_weight=w),
    "worst miss": lambda x, y, g, w: WorstGroup.observed(x, y, sensitive_features=g, harm="miss", sample_weight=w),
    "worst loss": lambda x, y, g, w: WorstGroup.observed(x, y, sensitive_features=g, harm="loss", sample_weight=w),
    "calibration": lambda x, y, g, w: CalibrationError.observed(x, y, sensitive_features=g, sample_weight=w),
}
BY_LABEL = {
    "error": lambda x, y, g, w: ErrorRate(x, y, target=0.1, sample_weight=w),
    "miss": lambda x, y, g, w: MissRate(x, y, target=0.1, sample_weight=w),
    "confusion": lambda x, y, g, w: ConfusionRate(x, y, target=0.1, sample_weight=w),
    "drop": lambda x, y, g, w: AccuracyDrop(x, y, sample_weight=w).anchor(OLD),
    "flips": lambda x, y, g, w: FlipRate(x, y, sample_weight=w).anchor(OLD),
    "cost": lambda x, y, g, w: ExpectedCost(x, y, [[0, 1], [5, 0]], sample_weight=w),
}
KINDS = {**BY_GROUP, **BY_LABEL}


@pytest.mark.parametrize("kind", KINDS)
def test_a_whole_weight_is_as_many_rows(kind):
    repeats = TIMES.numpy()
    x, y, g = X.repeat_interleave(TIMES, 0), Y.repeat_interleave(TIMES), np.repeat(GROUP, repeats)
    mine, many = KINDS[kind](X, Y, GROUP, TIMES), KINDS[kind](x, y, g, None)
    assert torch.allclose(mine.value(NET).double(), many.value(NET).double(), atol=1e-6)
    soft = {"temperature": 1.0} if hasattr(mine, "temperature") else {}  # the usual one is by the number of rows
    for prop in (mine, many):
        vars(prop).update(soft)
    assert torch.allclose(mine.soft_value(NET).double(), many.soft_value(NET).double(), atol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_a_row_of_weight_0_is_not_there(kind):
    heavy = np.arange(N) % 3 > 0
    weights = np.where(heavy, 0.5, 0.0)
    mine, part = KINDS[kind](X, Y, GROUP, weights), KINDS[kind](X[heavy], Y[heavy], GROUP[heavy], None)
    assert float(mine.value(NET)) == pytest.approx(float(part.value(NET)), abs=1e-6)
    both = [prop.interval(NET, 0.9) for prop in (mine, part)]
    assert (both[0].low, both[0].high) == pytest.approx((both[1].low, both[1].high), abs=1e-6)
    assert both[0].count == both[1].count


@pytest.mark.parametrize("kind", KINDS)
def test_equal_weights_change_nothing(kind):
    mine, plain = (KINDS[kind](X, Y, GROUP, w) for w in (np.full(N, 2.5), None))
    assert float(mine.value(NET)) == pytest.approx(float(plain.value(NET)), abs=1e-7)
    both = [prop.interval(NET, 0.9) for prop in (mine, plain)]
    assert (both[0].low, both[0].high) == pytest.approx((both[1].low, both[1].high), abs=1e-6)
    one, other = (prop.details(NET) if hasattr(prop, "details") else {} for prop in (mine, plain))
    assert one == pytest.approx(other, abs=1e-6)


@pytest.mark.parametrize("kind", KINDS)
def test_folds_take_the_weights_with_the_rows(kind):
    keep = Folds(3).of(X) != 1
    whole = KINDS[kind](X, Y, GROUP, TIMES.double() / 3)
    part = restricted(whole, lambda rows: Folds(3).of(rows) != 1)
    own = KINDS[kind](X[keep], Y[keep], GROUP[keep.numpy()], TIMES[keep].double() / 3)
    assert float(part.value(NET)) == pytest.approx(float(own.value(NET)), abs=1e-9)
    assert torch.equal(part.sample_weight, own.sample_weight)
    assert part.on(X, Y).sample_weight is None if kind not in BY_GROUP else True


def test_values_are_those_of_scikit_learn_and_fairlearn():
    metrics, fair = pytest.importorskip("sklearn.metrics"), pytest.importorskip("fairlearn.metrics")
    for seed in range(25):
        random = np.random.default_rng(seed)
        n = int(random.integers(30, 200))
        x = torch.tensor(random.normal(size=(n, 3)), dtype=torch.float32)
        y, g, w = random.integers(0, 2, n), random.choice(["a", "b"], n), random.lognormal(size=n)
        said = NET(x).argmax(1).numpy()
        given = {"sensitive_features": g, "sample_weight": w}
        assert float(ErrorRate(x, y, sample_weight=w).value(NET)) == pytest.approx(
            1 - metrics.accuracy_score(y, said, sample_weight=w), abs=1e-12
        )
        assert 1 - float(MissRate(x, y, sample_weight=w).value(NET)) == pytest.approx(
            metrics.recall_score(y, said, sample_weight=w), abs=1e-12
        )
        gap, odds = GroupGap.observed(x, **given), OddsGap.observed(x, y, **given)
        worst = WorstGroup.observed(x, y, harm="loss", **given)
        assert float(gap.value(NET)) == pytest.approx(fair.demographic_parity_difference(y, said, **given), abs=1e-12)
        assert float(odds.value(NET)) == pytest.approx(fair.equalized_odds_difference(y, said, **given), abs=1e-12)
        chance = NET(x).double().softmax(1).numpy()
        losses = [metrics.log_loss(y[g == k], chance[g == k], sample_weight=w[g == k]) for k in "ab"]
        assert float(worst.value(NET)) == pytest.approx(max(losses), abs=1e-5)
        mine = GroupMetrics(y, said, g, sample_weight=w)
        assert mine.equalized_odds_difference() == pytest.approx(float(odds.value(NET)), abs=1e-12)
        frame = mine.frame()
        assert mine.by_group["accuracy_score"] == pytest.approx(frame.by_group["accuracy_score"].to_dict(), abs=1e-12)


@pytest.mark.parametrize("kind", ["error", "cost", "gap", "worst error", "worst loss", "drop"])
def test_intervals_of_weighted_rows_cover(kind):
    """Rows drawn with weights that go with their answers: the true value lies within as often as is said."""
    random, missed, runs = np.random.default_rng(5), 0, 150
    big = 200_000
    x = torch.tensor(random.normal(size=(big, 3)), dtype=torch.float32)
    y = (x[:, 0] + torch.tensor(random.normal(size=big)) > 0).long()
    g = np.where(x[:, 1] > 0.3, "a", "b")
    w = np.exp(0.8 * x[:, 2].numpy())
    truth = float(KINDS[kind](x, y, g, w).value(NET))
    for _ in range(runs):
        rows = random.integers(0, big, 300)
        found = KINDS[kind](x[rows], y[rows], g[rows], w[rows]).interval(NET, 0.9)
        missed += not found.low - 1e-9 <= truth <= found.high + 1e-9
    assert missed <= runs * 0.1 + 2 * np.sqrt(runs * 0.1 * 0.9)


def test_weights_of_one_set_are_those_of_the_loss_and_of_its_folds():
    w = TIMES.double()
    (pair,) = labelled_pairs((X, Y, w))
    assert torch.equal(pair.weight, w)
    assert torch.equal(pair.where(Y == 1).weight, w[Y == 1])
    assert [one.weight for one in labelled_pairs([(X, Y), (X, Y, None)])] == [None, None]
    assert [one.weight for one in labelled_pairs((TensorDataset(X, Y),) * 3)] == [None] * 3
    assert torch.equal(labelled_pairs(labelled_pairs((X, Y, w)))[0].weight, w), "checked twice, weights stay"


def test_a_repair_meets_the_weighted_bound_and_says_the_weighted_value():
    toy = task(count=400, dtype=torch.float32)
    x, y, g = toy.inputs, toy.labels, toy.inputs[:, 1].numpy()
    w = torch.where(y == 1, 3.0, 1.0) * torch.linspace(0.5, 1.5, len(y))
    gap = GroupGap.observed(x, column=1, target=0.1, sample_weight=w)
    drop = Bound(ErrorRate(x, y, sample_weight=w), slack=0.05)
    found = solve_repair(
        toy.model, gap, [drop], data=(x, y, w), held_out=(x, y, w), weights="last", settings=Settings(seed=1)
    )
    predict = Engine(found.model).predict()
    rates = [np.average(predict(x)[g == k].argmax(1) == 1, weights=w[g == k]) for k in (0, 1)]
    measure = found.report.measure()
    assert measure.after == pytest.approx(abs(rates[0] - rates[1]), abs=1e-9)
    assert measure.after <= 0.1
    assert measure.before > 0.1
    wrong = [np.average(model(x).argmax(1) != y, weights=w) for model in (toy.model, found.model)]
    assert wrong[1] <= wrong[0] + 0.05 + 1e-9
    unseen = [one for one in found.report.verification.measures if one.held_out and one.name == gap.name]
    assert unseen
    assert unseen[0].after == pytest.approx(measure.after)


@pytest.mark.parametrize(
    ("weights", "said"),
    [
        (np.ones(N - 1), r"shape \(239,\); expected \(240,\)"),
        (np.r_[-1.0, np.ones(N - 1)], "sample_weight is -1 in row 0"),
        (np.r_[1.0, np.inf, np.ones(N - 2)], "sample_weight is inf in row 1"),
        (np.zeros(N), "is a weight of zero in every row"),
        ([None, *[1.0] * (N - 1)], "the weight of 1 of 240 rows is missing"),
        (np.r_[np.nan, np.ones(N - 1)], "the weight of 1 of 240 rows is missing"),
        (["heavy"] * N, "not an array of numbers"),
        (pd.Series(np.ones(N), index=np.arange(N)[::-1]), "different indexes"),
    ],
)
@pytest.mark.parametrize("kind", ["error", "odds", "gap"])
def test_odd_weights_are_refused(kind, weights, said):
    rows = pd.DataFrame(X.numpy(), columns=list("abc")) if isinstance(weights, pd.Series) else X
    with pytest.raises(SpecificationError, match=said):
        KINDS[kind](rows, Y.numpy(), GROUP, weights)


def test_weights_without_their_rows_are_refused():
    w = torch.ones(N)
    with pytest.raises(SpecificationError, match="sample_weight beside a DataLoader that shuffles"):
        ErrorRate(DataLoader(TensorDataset(X, Y), shuffle=True), sample_weight=w)
    with pytest.raises(SpecificationError, match="its inputs are drawn"):
        weighted(GroupGap.sampled((X > 0).float(), 0, count=10), w)
    with pytest.raises(SpecificationError, match="AdversarialError takes no sample weights"):
        weighted(AdversarialError(X, Y, radius=0.1), w)
    goal = ErrorRate(X, Y, sample_weight=w)
    with pytest.raises(SpecificationError, match="held-out rows have none"):
        make_specification(goal, (), (X, Y))
    with pytest.raises(SpecificationError, match="those of goal and bounds have none"):
        make_specification(ErrorRate(X, Y), (), (X, Y, w))
    with pytest.raises(SpecificationError, match="choose a method that does: .*sqp"):
        solve_repair(NET, ErrorRate(X, Y), data=(X, Y, w), method="swarm")
    with pytest.raises(SpecificationError, match="every row of group 'a' has weight 0"):
        GroupMetrics(Y, Y, GROUP, sample_weight=(GROUP != "a").astype(float))
    assert weighted(KeepLabels(X, Y), w).tolerance is not None, "rows that are kept are counted one by one"
