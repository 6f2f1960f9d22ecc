"""Judgements: what counts is the true network, and the best point is remembered."""

import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from repairopt.errors import SpecificationError
from repairopt.network import Engine
from repairopt.specify import (
    Bound,
    CallableProperty,
    ChangeLimit,
    ErrorRate,
    FixLabels,
    KeepLabels,
    KeepOutputs,
    LinearRows,
    MissRate,
    Specification,
    goal_value,
    holds_change,
    labelled_data,
)
from repairopt.verify import Judge, Stop

# One weight: class 1 wins for an input x where w x > 0, so labels are the sign of x for w = 1.
X = torch.tensor([[-2.0], [-1.0], [-0.5], [0.5], [1.0], [2.0]], dtype=torch.float64)
RIGHT = torch.tensor([0, 0, 0, 1, 1, 1])


def engine_of(weight=1.0, bias=0.0):
    model = nn.Sequential(nn.Linear(1, 2)).double()
    with torch.no_grad():
        model[0].weight.copy_(torch.tensor([[0.0], [weight]]))
        model[0].bias.copy_(torch.tensor([0.0, bias]))
    return Engine(model, {"0.weight": torch.tensor([1]), "0.bias": torch.tensor([1])})


def judge_of(labels=RIGHT, constraints=(), change=(), target=0.0, **engine):
    built = engine_of(**engine)
    goal = ErrorRate(X.clone(), labels, target=target)
    return Judge(built, Specification(goal, [*constraints, *change]).anchored(built.predict()))


def move(weight=0.0, bias=0.0):
    return np.array([weight, bias])


def test_goal_and_broken_samples_come_from_the_true_network():
    judge = judge_of(constraints=[KeepLabels(X, RIGHT, tolerance=0.2)])
    assert judge.original.goal == 0.0
    assert judge.original.met
    assert judge.original.feasible
    shifted = judge(move(bias=0.7))  # the input -0.5 gets class 1
    assert shifted.goal == pytest.approx(1 / 6)
    assert shifted.broken == (1,)
    assert shifted.allowed == (1,)  # 0.2 of 6
    assert shifted.feasible
    assert not shifted.met
    assert shifted.excess == pytest.approx(1 / 6)
    assert judge(move(bias=1.5)).surplus == 1
    assert not judge(move(bias=1.5)).feasible


def test_fix_labels_is_a_wish_unless_it_is_hard():
    wrong = 1 - RIGHT
    assert judge_of(wrong, [FixLabels(X, wrong)]).original.feasible
    hard = judge_of(wrong, [FixLabels(X, wrong, weight=None, tolerance=0.5)])
    assert hard.original.surplus == 3
    assert hard(move(weight=-2.0)).feasible


def test_a_network_that_became_constant_is_never_feasible():
    judge = judge_of()
    flat = judge(move(bias=100.0))
    assert flat.constant
    assert not flat.feasible
    assert judge.best is judge.original


def test_bounds_on_properties_and_on_the_change_count():
    bound = Bound(MissRate(X.clone(), RIGHT, label=0), 0.4)
    judge = judge_of(constraints=[bound], change=[ChangeLimit(1.0), LinearRows([[1.0, -1.0]], -0.5, 1.0)])
    assert judge(move(bias=0.7)).broken == (0,)
    worse = judge(move(bias=1.5))
    assert worse.broken == (1,)
    assert worse.shortfall == pytest.approx(2 / 3 - 0.4)
    assert not worse.change_holds
    assert judge(move(weight=1.0)).feasible
    assert not judge(move(weight=1.2)).change_holds
    assert not judge(move(bias=0.8)).change_holds  # 0 - 0.8 < -0.5


def test_sides_of_the_change_are_checked_with_a_relative_tolerance():
    rows = (np.eye(2), np.array([-np.inf, 1e6]), np.array([1.0, np.inf]))
    assert holds_change(rows, np.array([1.0 + 1e-6, 1e6 - 0.5]))
    assert not holds_change(rows, np.array([1.0 + 1e-5, 1e6]))
    assert not holds_change(rows, np.array([1.0, 1e6 - 3]))


def test_the_best_is_feasible_first_then_nearer_to_the_target_then_fewer_broken():
    labels = torch.tensor([0, 0, 1, 1, 1, 1])  # one wrong at first
    judge = judge_of(labels, [KeepLabels(X, labels, tolerance=0.2)])
    assert judge.best is judge.original
    far = judge.keep(move(bias=3.0))
    assert not far.feasible
    assert judge.best is judge.original
    assert judge(move(bias=0.7)).met
    assert judge.best is judge.original, "exploring is not keeping"
    exact = judge.keep(move(bias=0.7))
    assert judge.best is exact
    judge.keep(move(bias=0.8))
    assert judge.best is exact  # a tie does not replace it
    feasible, broken = judge.original, replace(judge.original, change_holds=False, excess=0.0)
    assert feasible.better_than(broken)
    assert not broken.better_than(feasible)


def test_error_and_loss_are_over_all_labelled_sets_once():
    labels = torch.tensor([0, 0, 1, 1, 1, 1])
    data = X.clone()
    engine = engine_of()
    constraints = [KeepLabels(data, labels), FixLabels(data, labels), KeepOutputs(X, 9.0)]
    judge = Judge(engine, Specification(ErrorRate(data, labels), constraints).anchored(engine.predict()))
    assert len(labelled_data([*constraints, judge.goal])) == 1
    assert judge.original.error == pytest.approx(1 / 6)
    outputs = engine.predict()(data)
    assert judge.original.loss == pytest.approx(float(nn.functional.cross_entropy(outputs, labels)))
    assert judge_of().original.error == 0.0


def test_time_runs_out():
    judge = judge_of()
    assert judge.time_left() is None
    judge.deadline = time.perf_counter() + 100
    assert 99 < judge.time_left() <= 100
    judge(move())
    judge.deadline = time.perf_counter() - 1
    assert judge.time_left() == 0.0
    with pytest.raises(Stop, match="time limit"):
        judge(move())


def test_halving_ends_next_to_the_boundary_and_never_beyond():
    judge = judge_of(constraints=[KeepLabels(X, RIGHT, tolerance=0.0)])
    seen = []

    def keep(judged):
        seen.append((float(judged.delta[1]), judged.feasible))
        return judged.feasible

    found = judge.bisect(move(), move(bias=1.5), keep, 12)
    assert found.feasible
    assert 0.5 - 1.5 / 2**11 < found.delta[1] <= 0.5  # class 0 of -0.5 is lost beyond a bias of 0.5
    low, high = 0.0, 1.5  # the interval of trials shrinks on both sides, always around the boundary
    for bias, feasible in seen:
        assert bias == pytest.approx((low + high) / 2)
        low, high = (bias, high) if feasible else (low, bias)
    assert judge.bisect(move(), move(bias=1.5), lambda j: False, 5) is None


@pytest.mark.parametrize(
    ("value", "snippets"),
    [
        (lambda predict: predict(X).mean(0), ["goal 'mine' returned shape (2,); expected one number"]),
        (lambda predict: float("nan"), ["goal 'mine' is nan; expected a finite number"]),
        (lambda predict: torch.tensor(float("inf")), ["goal 'mine' is inf"]),
    ],
)
def test_goals_that_are_no_number_are_named(value, snippets):
    with pytest.raises(SpecificationError) as error:
        goal_value(CallableProperty(value, name="mine"), engine_of().predict())
    for snippet in snippets:
        assert snippet in str(error.value)


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="memory is read from /proc, which is not here")
def test_of_many_weights_no_copy_is_kept_but_that_of_the_best():
    def resident():
        return 4096 * int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])

    model = nn.Sequential(nn.Linear(1, 3000), nn.Linear(3000, 3000), nn.Linear(3000, 2)).double()
    engine = Engine(model, {name: torch.arange(p.numel()) for name, p in model.named_parameters()})
    spec = Specification(ErrorRate(X, RIGHT, target=0.0)).anchored(engine.predict())
    before = resident()
    judge = Judge(engine, spec)
    for step in (1e-3, 2e-3, 3e-3):  # outputs of the last three are remembered
        judge(np.full(engine.n, step))
    assert (resident() - before) / engine.n < 4  # bytes; zeros that are never written take none
