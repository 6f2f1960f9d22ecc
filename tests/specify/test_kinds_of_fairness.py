"""The worst group, crossed and small groups, costs of errors and calibration: as goals, bounds and statements."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
import torch
from torch import nn

from repairopt import SQP, CalibrationError, ExpectedCost, GroupGap, OddsGap, Verdict, WorstGroup, solve_repair
from repairopt.errors import LanguageError, SpecificationError
from repairopt.interfaces.specfile.language.bind import bind_statement
from repairopt.interfaces.specfile.language.row_sets import Data, RowSet
from repairopt.interfaces.testing import check_property
from repairopt.specify.intervals import bounded_mean_interval, largest_rate_interval, rate_interval, ratio_interval

torch.manual_seed(5)
N = 1600
SEX, RACE = torch.randint(0, 2, (N,)), torch.randint(0, 3, (N,))
X = torch.cat([torch.randn(N, 2), SEX[:, None].float(), RACE[:, None].float()], 1)
Y = (X[:, 0] + 0.7 * X[:, 1] + 0.8 * (SEX - 0.5) + 0.5 * torch.randn(N) > 0.2).long()
A, B = slice(0, N // 2), slice(N // 2, None)
MODEL = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 2))
with torch.no_grad():
    MODEL[0].weight.copy_(torch.cat([torch.eye(4), torch.tensor([[-1.0, 0, 0, 0], [0, -1.0, 0, 0]])]))
    MODEL[0].bias.zero_()
    MODEL[2].weight[1].copy_(torch.tensor([1.0, 0.7, 0.9, -0.1, -1.0, -0.7]))
    MODEL[2].weight[0].copy_(-MODEL[2].weight[1])
    MODEL[2].bias.copy_(torch.tensor([0.5, -0.5]))
MODEL.requires_grad_(False)
ANSWERS, OWN, MEMBER = MODEL(X).argmax(1).numpy(), Y.numpy(), SEX.numpy()
FAST = SQP(max_steps=8, restarts=2)


@pytest.mark.parametrize(
    ("harm", "of"),
    [
        ("error", lambda own, said: np.mean(own != said)),
        ("miss", lambda own, said: np.mean(said[own == 1] != 1)),
        ("rejection", lambda own, said: np.mean(said != 1)),
    ],
)
@pytest.mark.parametrize("against", ["zero", "best"])
def test_the_worst_group_is_that_of_numpy(harm, of, against):
    worst = WorstGroup.observed(X, None if harm == "rejection" else Y, [2, 3], harm=harm, against=against)
    groups = [(s == MEMBER) & (r == RACE.numpy()) for s in (0, 1) for r in (0, 1, 2)]
    harms = [of(OWN[own], ANSWERS[own]) for own in groups]
    assert float(worst.value(MODEL)) == pytest.approx(np.ptp(harms) if against == "best" else max(harms), abs=1e-6)
    interval = worst.interval(MODEL, 0.9)
    assert interval.low <= interval.value <= interval.high
    assert interval.value == pytest.approx(float(worst.value(MODEL)))
    assert "soft_value: finite and differentiable" in check_property(worst, MODEL)


def test_the_measures_are_those_of_fairlearn():
    metrics = pytest.importorskip("fairlearn.metrics", reason="compares with fairlearn")
    from sklearn.metrics import accuracy_score, recall_score

    frames = {
        "error": metrics.MetricFrame(metrics=accuracy_score, y_true=OWN, y_pred=ANSWERS, sensitive_features=MEMBER),
        "miss": metrics.MetricFrame(metrics=recall_score, y_true=OWN, y_pred=ANSWERS, sensitive_features=MEMBER),
    }
    for harm, frame in frames.items():
        made = WorstGroup.observed(X, Y, 2, harm=harm)
        assert 1 - float(made.value(MODEL)) == pytest.approx(frame.group_min(), abs=1e-6)
        apart = WorstGroup.observed(X, Y, 2, harm=harm, against="best")
        assert float(apart.value(MODEL)) == pytest.approx(frame.difference(), abs=1e-6)


def test_the_loss_of_a_group_is_its_mean_cross_entropy():
    worst = WorstGroup.observed(X, Y, 2, harm="loss")
    losses = nn.functional.cross_entropy(MODEL(X), Y, reduction="none")
    assert float(worst.value(MODEL)) == pytest.approx(max(float(losses[s == SEX].mean()) for s in (0, 1)), rel=1e-5)
    assert worst.interval(MODEL, 0.9).high > float(worst.value(MODEL))
    assert not worst.answers_only


def test_costs_are_those_of_numpy():
    table = np.array([[0.0, 1.0], [5.0, 0.0]])
    cost = ExpectedCost(X, Y, table)
    assert float(cost.value(MODEL)) == pytest.approx(table[OWN, ANSWERS].mean(), abs=1e-6)
    assert cost.details(MODEL)["rows of class 1 given class 0"] == np.sum((OWN == 1) & (ANSWERS == 0))
    assert cost.interval(MODEL).low < float(cost.value(MODEL)) < cost.interval(MODEL).high
    assert "soft_value: finite and differentiable" in check_property(cost, MODEL)


def test_the_calibration_error_is_that_of_numpy():
    chance = torch.softmax(MODEL(X), 1)[:, 1].numpy()
    errors = []
    for group in (0, 1):
        own, own_chance = OWN[group == MEMBER], chance[group == MEMBER]
        bins = np.minimum((own_chance * 10).astype(int), 9)
        errors.append(sum(abs(np.sum((own_chance - own)[bins == b])) for b in range(10)) / len(own))
    made = CalibrationError.observed(X, Y, 2)
    assert float(made.value(MODEL)) == pytest.approx(max(errors), abs=1e-5)
    assert made.interval(MODEL).low <= max(errors) <= made.interval(MODEL).high
    assert "soft_value: finite and differentiable" in check_property(made, MODEL)


GOALS = {
    "accuracy of the worst group": WorstGroup.observed(X[A], Y[A], 2, target=0.125),
    "recall of the worst group": WorstGroup.observed(X[A], Y[A], 2, harm="miss", target=0.15),
    "levelling up": WorstGroup.observed(X[A], None, 2, harm="rejection", label=1, target=0.45),
    "bounded group loss": WorstGroup.observed(X[A], Y[A], 2, harm="loss", target=0.3),
    "accuracy apart": WorstGroup.observed(X[A], Y[A], 3, against="best", target=0.02),
    "cost": ExpectedCost(X[A], Y[A], [[0, 1], [3, 0]], target=0.22),
    "calibration": CalibrationError.observed(X[A], Y[A], 2, target=0.07),
    "four fifths": GroupGap.observed(X[A], 2, score="ratio", target=0.2),
    "crossed groups": GroupGap.observed(X[A], [2, 3], target=0.1),
}


@pytest.mark.parametrize("name", GOALS)
def test_each_is_reached_as_a_goal(name):
    goal = GOALS[name]
    assert float(goal.value(MODEL)) > goal.target, "nothing to repair"
    repair = solve_repair(MODEL, goal, data=(X[A], Y[A]), held_out=(X[B], Y[B]), weights="last", method=FAST)
    assert repair.report.verdict is Verdict.REPAIRED
    assert float(goal.value(repair.model)) <= goal.target
    assert any("held-out" in claim.source for claim in repair.report.claims)


def test_levelling_up_takes_nothing_from_those_who_are_served_well():
    goal = GOALS["levelling up"]
    repair = solve_repair(MODEL, goal, weights="last", method=FAST)
    before, after = goal.harms(MODEL), goal.harms(repair.model)
    assert after.max() < before.max() - 0.02
    assert after[before.argmin()] <= before.min() + 0.02


@pytest.mark.parametrize(
    "features",
    [
        [MEMBER, RACE.numpy()],
        np.stack([MEMBER, RACE.numpy()], 1),
        pd.DataFrame({"sex": MEMBER, "race": RACE.numpy()}),
        {"sex": MEMBER.tolist(), "race": RACE.tolist()},
        [MEMBER.tolist(), RACE],
    ],
)
def test_several_features_are_crossed(features):
    gap = GroupGap.observed(X, sensitive_features=features)
    by_columns = GroupGap.observed(X, [2, 3])
    assert gap.samples.names[0] == "0, 0"
    assert by_columns.samples.names[0] == "column 2 = 0, column 3 = 0"
    assert gap.samples.q == 6
    assert torch.equal(gap.samples.member, by_columns.samples.member)
    assert float(gap.value(MODEL)) == float(by_columns.value(MODEL))


def test_crossed_columns_of_a_frame_are_found_on_other_rows():
    frame = pd.DataFrame(X.numpy(), columns=["a", "b", "sex", "race"])
    gap = OddsGap.observed(frame.iloc[: N // 2], Y[A], ["sex", "race"])
    there = gap.on(X[B], Y[B])
    assert there.samples.names == gap.samples.names
    assert gap.samples.names[5] == "sex = 1, race = 2"
    assert float(there.value(MODEL)) == pytest.approx(float(OddsGap.observed(X[B], Y[B], [2, 3]).value(MODEL)))


def test_small_groups_are_left_out_by_name():
    rare = [*(["a", "b"] * (N // 2 - 5)), *(["c"] * 7), *(["d"] * 3)]
    gap = GroupGap.observed(X, sensitive_features=rare, min_rows=5)
    assert gap.samples.names == ("a", "b", "c")
    assert gap.details(MODEL)["rows left out, small group d"] == 3
    assert "rows left out, in no group compared" not in gap.details(MODEL)
    assert "rows left out, small group c" in GroupGap.observed(X, sensitive_features=rare, min_rows=8).details(MODEL)


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: GroupGap.observed(X, 2, min_rows=0), "min_rows=0"),
        (lambda: GroupGap.observed(X, 2, min_rows=10_000), "leaves 0 of the groups"),
        (lambda: GroupGap.observed(X, sensitive_features=[MEMBER, RACE.tolist()[:5]]), "number 2 has 5"),
        (lambda: GroupGap.observed(X, sensitive_features=[MEMBER.tolist(), [None] * N]), "group"),
        (lambda: WorstGroup.observed(X, Y, 2, harm="mistake"), "choose from error, miss, rejection, loss"),
        (lambda: WorstGroup.observed(X, Y, 2, against="mean"), "choose zero or best"),
        (lambda: WorstGroup.observed(X, None, 2), "labels"),
        (lambda: WorstGroup.observed(X, Y, 2, harm="miss", label=1).value(lambda x: MODEL(x)[:, :1]), "out of range"),
        (lambda: ExpectedCost(X, Y, [[0, 1]]), "one row for each true class"),
        (lambda: ExpectedCost(X, Y, [[0, -1], [1, 0]]), "0 or more"),
        (lambda: ExpectedCost(X, Y, "dear"), "one row for each true class"),
        (lambda: ExpectedCost(X, Y, np.ones((3, 3))).value(MODEL), "2 outputs"),
        (lambda: CalibrationError.observed(X, Y, 2, bins=0), "bins=0"),
    ],
)
def test_mistakes_are_named(make, said):
    with pytest.raises(SpecificationError, match=said):
        make()


def statements() -> Data:
    columns = {"sex": np.where(MEMBER == 1, "m", "f"), "race": np.array(["r", "s", "t"])[RACE.numpy()]}
    return Data({"repair": RowSet(X.numpy(), OWN, columns)}, classes=("no", "yes"))


@pytest.mark.parametrize(
    ("text", "item"),
    [
        ("accuracy_group_min([sex, race]) >= 0.8", WorstGroup.observed(X, Y, [2, 3])),
        ('recall_group_min(race, "yes") >= 0.8', WorstGroup.observed(X, Y, 3, harm="miss")),
        ("selection_rate_group_min(sex) >= 0.3", WorstGroup.observed(X, None, 2, harm="rejection")),
        ("loss_group_max(sex) <= 0.3", WorstGroup.observed(X, Y, 2, harm="loss")),
        ("accuracy_difference(race) <= 0.02", WorstGroup.observed(X, Y, 3, against="best")),
        ("cost([[0, 1], [5, 0]]) <= 0.3", ExpectedCost(X, Y, [[0, 1], [5, 0]])),
        ("calibration_error(sex, bins=5) <= 0.05", CalibrationError.observed(X, Y, 2, bins=5)),
        ("ratio(race, min_rows=20) >= 0.8", GroupGap.observed(X, 3, score="ratio")),
        ("gap([race, sex], kind=odds) <= 0.1", OddsGap.observed(X, Y, [3, 2])),
    ],
)
def test_statements_become_the_same(text, item):
    bound = bind_statement(text, statements())
    assert float(bound.item.value(MODEL)) == pytest.approx(float(item.value(MODEL)), abs=1e-6)
    assert bound.as_goal() is bound.item


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("gap([sex], kind=parity) <= 0.1", "two different columns"),
        ("gap([sex, rase]) <= 0.1", "did you mean 'race'"),
        ("gap([sex, race], kind=sampled) <= 0.1", "sets one column"),
        ("gap(sex, min_rows=900) <= 0.1", "min_rows=900 leaves"),
        ("cost([[0, 1]]) <= 0.1", "one row for each true class"),
        ("cost(sex) <= 0.1", "list"),
        ("selection_rate_group_min(sex) <= 0.2", "from below"),
    ],
)
def test_wrong_statements_point_at_the_place(text, said):
    with pytest.raises(LanguageError, match=said):
        bind_statement(text, statements())


def test_intervals_cover_what_they_should():
    random, missed = np.random.default_rng(2), np.zeros(3)
    rates, counts, draws = np.array([0.3, 0.22, 0.26]), np.full(3, 150.0), 400
    values, shares = np.array([0.0, 1.0, 5.0]), np.array([0.8, 0.15, 0.05])
    for _ in range(draws):
        hits = random.binomial(150, rates).astype(float)
        missed[0] += ratio_interval(hits, counts, 0.9).high < 1 - 0.22 / 0.3
        missed[1] += largest_rate_interval(hits, counts, 0.9).high < 0.3
        drawn = random.multinomial(150, shares).astype(float)
        missed[2] += bounded_mean_interval(values, drawn, 0.0, 5.0, 0.9).high < values @ shares
    assert (missed / draws <= 0.05 + 2 * np.sqrt(0.05 * 0.95 / draws)).all(), missed


def test_a_bounded_mean_of_two_values_is_the_exact_interval_of_a_rate():
    exact = rate_interval(9, 60, 0.9)
    made = bounded_mean_interval(np.array([0.0, 1.0]), np.array([51.0, 9.0]), 0.0, 1.0, 0.9)
    assert (made.low, made.high) == pytest.approx((exact.low, exact.high), abs=0.005)
