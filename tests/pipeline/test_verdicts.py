"""Verdict, text and weights agree; what has no rows, no limit or no such weights ends in an answer or a clear error."""

import numpy as np
import pytest
import torch
from torch import nn

from repairopt import (
    AccuracyDrop,
    Bound,
    CallableProperty,
    ErrorRate,
    FlipRate,
    GroupGap,
    Inputs,
    KeepLabels,
    KeepOutputs,
    ModelError,
    RepairError,
    Settings,
    SpecificationError,
    Status,
    Verdict,
    solve_repair,
)
from repairopt.methods import Outcome
from repairopt.specify import Interval
from repairopt.specify.robustness import CertifiedRadius

X = torch.randn(60, 3, generator=torch.Generator().manual_seed(2))
Y = (X[:, 0] > 0).long()
QUICK = Settings(time_limit=1)


def net():
    torch.manual_seed(4)
    return nn.Sequential(nn.Linear(3, 5), nn.ReLU(), nn.Linear(5, 2))


class Proposes:
    """Any change, whether it helps or not."""

    def __init__(self, size):
        self.size = size

    def run(self, task):
        draw = np.random.default_rng(1).normal(size=task.engine.n)
        task.judge.keep(self.size * draw)
        return Outcome(self.size * draw, Status.OPTIMAL)


GOALS = [
    CallableProperty(lambda predict: predict(X).square().mean(), 0.0, "size"),
    CallableProperty(lambda predict: -predict(X).square().mean(), -1e9, "growth"),
    ErrorRate(X, Y),
    ErrorRate(X, 1 - Y, target=0.1),
]
CONSTRAINTS = [
    [],
    [KeepLabels(X, Y, tolerance=0.3)],
    [Bound(ErrorRate(X, Y, name="bounded"), limit=0.35)],
    [KeepOutputs(X[:20], 0.2)],
]


@pytest.mark.parametrize("size", [1e-9, 0.01, 0.3, 3.0, -0.3, -3.0])
@pytest.mark.parametrize("goal", GOALS, ids=lambda goal: goal.name)
@pytest.mark.parametrize("constraints", CONSTRAINTS, ids=len)
def test_what_the_verdict_says_of_the_weights_is_so(size, goal, constraints):
    model = net()
    found = solve_repair(model, goal, constraints, weights="last", method=Proposes(size))
    report, old = found.report, model.state_dict()
    changed = any(not torch.equal(tensor, old[name]) for name, tensor in found.model.state_dict().items())
    before, after = report.measure().before, report.measure().after
    assert changed == (report.changed > 0) == any(bool(part.any()) for part in found.delta.values())
    if report.verdict is Verdict.UNSOLVED:
        assert not changed
        assert after == before
    if report.verdict is Verdict.IMPROVED:
        mended = any(check.failed_before > check.allowed for check in report.verification.checks)
        regained = report.verification.constant_before and not report.verification.constant
        assert changed
        assert after < before or mended or (regained and after <= before)
        assert all(check.holds for check in report.verification.checks)
    if report.verdict is Verdict.REPAIRED:
        assert after <= report.measure().target


def constant(low, high):
    """A network that gives all rows class 0, as most rows have; some of class 1 are near."""
    model = net()
    with torch.no_grad():
        model[2].bias.copy_(torch.tensor([low, high]))
    return model


@pytest.mark.parametrize("shift", [0.2, 0.5, 1.0, 2.0, 8.0])
def test_a_network_that_was_constant_is_not_improved_by_wrong_answers(shift):
    model = constant(50.0, 0.0)
    scores = (model(X)[:, 1] - model(X)[:, 0]).detach()
    labels = torch.zeros(len(X), dtype=torch.int64)
    labels[scores.argsort()[:3]] = 1  # the last to get class 1

    class Turns:
        def run(self, task):
            change = np.zeros(task.engine.n)
            change[-1] = float(-scores.max()) + 1e-3 * shift  # a few others get it
            return Outcome(change, Status.OPTIMAL)

    found = solve_repair(model, ErrorRate(X, labels), weights="last", method=Turns()).report
    before, after = found.measure().before, found.measure().after
    assert (found.verdict is Verdict.UNSOLVED and after == before) or after <= before


LIMITS = [
    lambda: [Bound(AccuracyDrop(X, Y), limit=-0.02)],
    lambda: [Bound(AccuracyDrop(X, Y, name="drop"), limit=-0.5)],
    lambda: [Bound(FlipRate(X, Y), limit=0.0)],
    lambda: [Bound(CallableProperty(lambda predict: predict(X).mean(), name="mean"), limit=-3.0)],
    lambda: [Bound(AccuracyDrop(X, Y), limit=-1e-9), Bound(FlipRate(X, Y), limit=0.01)],
]


@pytest.mark.parametrize("make", LIMITS)
def test_limits_of_any_sign_are_understood(make):
    rows = X.clone()
    rows[:, 2] = (torch.arange(60) % 2).float()
    gap = GroupGap.observed(rows, column=2, favorable=1, target=0.02)
    assert solve_repair(net(), gap, make(), weights="last", settings=QUICK).report.verdict in Verdict


class Mine:
    """A user's property with every offer but the check for rows."""

    name, target = "mine", 0.1

    def __init__(self, inputs):
        self.inputs = inputs

    def value(self, predict):
        return (predict(self.inputs)[:, 0] - 1).abs().mean()

    def interval(self, predict, confidence=0.95):
        value = float(self.value(predict))
        return Interval(value, value - 0.1, value + 0.1, confidence, len(self.inputs), "mine")

    def where(self, keep):
        return type(self)(self.inputs[keep(self.inputs)])

    def on(self, inputs, labels):
        return type(self)(inputs)


class Hidden(Mine):
    """Its rows have a name of their own."""

    def __init__(self, rows):
        self.rows = rows

    @property
    def inputs(self):
        raise AttributeError("inputs")

    def value(self, predict):
        return (predict(self.rows)[:, 0] - 1).abs().mean()

    def interval(self, predict, confidence=0.95):
        value = float(self.value(predict))
        return Interval(value, value - 0.1, value + 0.1, confidence, len(self.rows), "mine")

    def where(self, keep):
        return Hidden(self.rows[keep(self.rows)])


@pytest.mark.parametrize("count", [1, 2, 3, 4])
@pytest.mark.parametrize("kind", [Mine, Hidden])
def test_a_property_on_a_few_rows_has_folds_without_any(kind, count):
    assert solve_repair(net(), kind(X[:count]), weights="last", settings=QUICK).report.verdict in Verdict


@pytest.mark.parametrize("goal", [Mine(X), ErrorRate(X, Y, target=0.1), GOALS[0]], ids=["own", "points", "function"])
def test_held_out_data_without_rows_are_refused(goal):
    with pytest.raises(SpecificationError, match="no rows|no inputs"):
        solve_repair(net(), goal, weights="last", held_out=(X[:0], Y[:0]))


class Tokens(nn.Module):
    def __init__(self, bag):
        super().__init__()
        self.embed = nn.EmbeddingBag(20, 6) if bag else nn.Embedding(20, 2)
        self.out = nn.Linear(6, 2)

    def forward(self, x):
        return self.out(self.embed(x).flatten(1))


@pytest.mark.parametrize("bag", [False, True])
def test_inputs_that_are_indices_have_no_columns(bag):
    tokens = torch.randint(0, 20, (40, 3))
    goal = ErrorRate(tokens, (tokens[:, 0] > 9).long(), target=0.1)
    with pytest.raises(ModelError, match="indices of an embedding"):
        solve_repair(Tokens(bag), goal, weights=Inputs([0]))
    assert solve_repair(Tokens(bag), goal, weights="last", settings=QUICK).report.verdict in Verdict


@pytest.mark.parametrize("weights", ["last", ["0.bias"]])
def test_a_property_that_reads_the_network_works_at_defaults(weights):
    radius = CertifiedRadius(X[:2], Y[:2], target=20.0, lower=-9.0, upper=9.0)
    found = solve_repair(net(), radius, weights=weights, method="one_shot", settings=QUICK)
    assert found.report.surrogate is None or found.report.surrogate.kind != "hessian"


@pytest.mark.parametrize("kind", [nn.LSTM, nn.GRU, nn.RNN])
def test_recurrent_layers_end_in_time_and_without_warnings(kind):
    class Recurrent(nn.Module):
        def __init__(self):
            super().__init__()
            self.recurrent, self.out = kind(4, 6, batch_first=True), nn.Linear(6, 2)

        def forward(self, x):
            return self.out(self.recurrent(x)[0][:, -1])

    x = torch.randn(60, 5, 4)
    goal = ErrorRate(x, (x[:, -1, 0] > 0).long(), target=0.2)
    assert solve_repair(Recurrent(), goal, settings=Settings(time_limit=3)).report.verdict in Verdict


@pytest.mark.parametrize("value", [float("nan"), "text", None, torch.randn(3), {}])
def test_what_an_own_goal_returns_ends_in_an_error_of_the_library(value):
    with pytest.raises(RepairError):
        solve_repair(net(), lambda predict: value, weights="last")
