"""A number that is given is used, or it is an error; what a tolerance and a gap mean is the same everywhere."""

from __future__ import annotations

from dataclasses import dataclass, replace

import pytest
import torch
from biased_task import task

from repairopt import GroupGap, KeepLabels, OddsGap, solve_repair
from repairopt.errors import LanguageError, SpecificationError
from repairopt.interfaces.specfile.language.bind import bind_statement
from repairopt.interfaces.specfile.language.row_sets import Data, RowSet
from repairopt.network import Engine
from repairopt.specify import (
    AccuracyDrop,
    AdversarialError,
    Bound,
    CallableProperty,
    CertifiedRadius,
    ErrorRate,
    FixLabels,
    FlipRate,
    MissRate,
    allowed_samples,
    anchor,
    is_strict,
    margins_at,
    restricted,
)

TOY = task(count=120)
X, Y = TOY.inputs, TOY.labels
DATA = Data({"repair": RowSet(X, Y, {"sex": X[:, 1].long().tolist()})}, ["no", "yes"], ["merit", "sex"])


@dataclass(frozen=True, eq=False)
class Mine:
    """A property of a user."""

    target: float = 0.2
    name: str = "mine"

    def value(self, predict):
        return predict(X).sigmoid().mean()


STATED = {
    "error rate": lambda **t: ErrorRate(X, Y, **t),
    "miss rate": lambda **t: MissRate(X, Y, **t),
    "accuracy drop": lambda **t: AccuracyDrop(X, Y, **t),
    "flip rate": lambda **t: FlipRate(X, Y, **t),
    "group gap": lambda **t: GroupGap.observed(X, 1, **t),
    "odds gap": lambda **t: OddsGap.observed(X, Y, 1, **t),
    "attack": lambda **t: AdversarialError(X, Y, radius=0.1, **t),
    "function": lambda **t: CallableProperty(lambda predict: 0.5, **t),
    "own": lambda **t: Mine(**t),
}


@pytest.mark.parametrize("name", STATED)
@pytest.mark.parametrize("target", [0.03, None])
def test_a_target_that_a_bound_would_ignore_is_refused(name, target):
    default = float(STATED[name]().target)
    stated = STATED[name](target=default if target is None and name != "own" else 0.03)
    with pytest.raises(SpecificationError, match=r"its target .* is not the limit, which is that of the original netw"):
        Bound(stated)
    with pytest.raises(
        SpecificationError, match=r"is not the limit, which is 0\.3\. Leave the target out, or pass limi"
    ):
        Bound(stated, limit=0.3)
    assert Bound(stated, limit=float(stated.target)).limit == stated.target
    assert Bound(STATED[name](), limit=0.3).limit == 0.3
    plain = Bound(STATED[name](), slack=0.1)
    assert anchor(plain, Engine(TOY.model).predict()).relative
    with pytest.raises(SpecificationError, match=r"slack=0.1 is added .* limit=0.3 is given"):
        Bound(STATED[name](), limit=0.3, slack=0.1)


def test_a_smoothing_that_a_score_would_ignore_is_refused():
    for score in ("max_difference", "difference", "ratio"):
        with pytest.raises(SpecificationError, match=f"smoothing=0.5 is for the scores kl and .*, not {score}"):
            GroupGap.observed(X, 1, score=score, smoothing=0.5)
    assert GroupGap.observed(X, 1, score="kl", smoothing=1.0).smoothing == 1.0


def test_a_radius_always_has_a_target():
    with pytest.raises(SpecificationError, match="expected a number above 0"):
        CertifiedRadius(X, Y)
    with pytest.raises(SpecificationError, match="is not the limit"):
        Bound(CertifiedRadius(X, Y, target=10.0))


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("gap(sex, kind=parity, count=500) <= 0.1", "kind=parity makes no use of count"),
        ("gap(sex, kind=odds, count=500) <= 0.1", "kind=odds makes no use of count"),
        ("gap(sex, rest=marginals) <= 0.1", "kind=parity makes no use of rest"),
        ("gap(sex, kind=opportunity, given=[yes]) <= 0.1", "kind=opportunity makes no use of given"),
        ("gap(sex, kind=sampled, given=[yes]) <= 0.1", "kind=sampled makes no use of given"),
        ("flips(price=0.5) <= 3", "no number of rows counts"),
        ("unfixed(price=0.5) <= 1", "no number of rows counts"),
    ],
)
def test_arguments_that_a_statement_would_ignore_are_refused(text, said):
    with pytest.raises(LanguageError, match=said):
        bind_statement(text, DATA)
    assert bind_statement("flips(price=0.5) == 0", DATA).wish


@pytest.mark.parametrize(
    ("make", "share"),
    [
        (lambda share: KeepLabels(X, Y, tolerance=share), 0.25),
        (lambda share: KeepLabels(X, 1 - Y, tolerance=share), 0.5),
        (lambda share: KeepLabels(X, Y, reference="original", tolerance=share), 0.1),
        (lambda share: FixLabels(X, Y, weight=None, tolerance=share), 0.5),
        (lambda share: FixLabels(X, 1 - Y, weight=None, tolerance=share), 0.3),
        (lambda share: KeepLabels(X, Y, tolerance=share, weight=2.0), 0.25),
    ],
)
def test_a_tolerance_is_a_share_of_the_samples_that_are_spoken_of(make, share):
    predict = Engine(TOY.model).predict()
    held = anchor(make(share), predict)
    assert allowed_samples(held, margins_at(predict, [held])[0]) == int(share * len(held.samples) + 1e-9)
    assert len(held.samples) > 0


def test_the_readme_says_what_is_done():
    labels = TOY.model(X).argmax(1)
    labels[:90] = 1 - labels[:90]  # 30 of 120 are right
    goal = GroupGap.observed(X, 1, target=0.0)
    found = solve_repair(
        TOY.model, goal, [KeepLabels(X, labels, tolerance=0.25)], weights="last", method="one_shot"
    ).report.verification.checks[0]
    assert (found.applied, found.allowed) == (30, 7)


def test_a_number_of_samples_in_place_of_a_share():
    keep = KeepLabels(X, Y, allowed=4)
    predict = Engine(TOY.model).predict()
    assert allowed_samples(anchor(keep, predict), margins_at(predict, [anchor(keep, predict)])[0]) == 4
    assert not is_strict(keep)
    assert is_strict(KeepLabels(X, Y, allowed=0))
    assert restricted(keep, lambda x: torch.arange(len(x)) % 2 == 0).allowed == 2
    assert replace(keep, name="other").allowed == 4
    for wrong in (
        {"allowed": -1},
        {"allowed": 1.5},
        {"allowed": 3, "tolerance": 0.1},
        {"allowed": 3, "tolerance": 0.0},
    ):
        with pytest.raises(SpecificationError, match="a whole number of samples from 0, or a share of them, not both"):
            KeepLabels(X, Y, **wrong)


def test_a_gap_is_the_largest_one_in_python_and_in_the_language():
    groups = ["a", "b", "c", "d"] * 30
    data = Data({"repair": RowSet(X, Y, {"g": groups})}, ["no", "yes"], ["merit", "sex"])
    predict = Engine(TOY.model).predict()
    largest = float(GroupGap.observed(X, sensitive_features=groups, score="max_difference").value(predict))
    for gap in (
        GroupGap.observed(X, sensitive_features=groups),
        GroupGap.given([X[k::4] for k in range(4)]),
        bind_statement("gap(g) <= 0.1", data).item,
        bind_statement("demographic_parity_difference(g) <= 0.1", data).item,
    ):
        assert gap.combine == "max"
        assert float(gap.value(predict)) == pytest.approx(largest)
    assert float(GroupGap.observed(X, sensitive_features=groups, score="difference").value(predict)) < largest
