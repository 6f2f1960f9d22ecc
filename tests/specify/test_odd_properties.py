"""Properties that users write: what they do to outputs harms nobody else, and what is none is said to be none."""

import pytest
import torch
from torch import nn

from repairopt import (
    Bound,
    ErrorRate,
    KeepLabels,
    Settings,
    SpecificationError,
    Subject,
    calibrate_margin,
    compare_repairs,
    explain_unmet,
    solve_repair,
    trace_frontier,
)

torch.manual_seed(0)
NET = nn.Sequential(nn.Linear(3, 5), nn.ReLU(), nn.Linear(5, 2))
X = torch.randn(40, 3)
Y = NET(X).argmax(1)
SHORT = Settings(time_limit=1.0)


class Own:
    """A property of the user; ``spoils`` says what it does to the outputs that it is given."""

    name, target = "own", -10.0

    def __init__(self, spoils):
        self.spoils = spoils

    def value(self, predict):
        outputs = predict(X)
        with torch.no_grad():
            self.spoils(outputs.detach())
        return outputs[:, 0].mean()


SPOILING = {
    "centers": lambda outputs: outputs.sub_(outputs.mean(0)),
    "scales": lambda outputs: outputs.mul_(0.0),
    "turns round": lambda outputs: outputs.copy_(outputs.flip(1)),
    "softmax in place": lambda outputs: outputs.copy_(outputs.softmax(1)),
    "fills": lambda outputs: outputs[:20].fill_(7.0),
    "adds nothing": lambda outputs: outputs.add_(0.0),
}


@pytest.mark.parametrize("how", SPOILING)
def test_a_property_that_writes_into_outputs_spoils_no_other_count(how):
    found = solve_repair(
        NET, Own(SPOILING[how]), [KeepLabels(X, Y, tolerance=0.1)], weights="last", settings=SHORT, data=(X, Y)
    )
    lost = int((found.model(X).argmax(1) != Y).sum())
    (check,) = found.report.verification.checks
    assert (check.failed, check.failed_before) == (lost, 0)
    assert lost <= check.allowed == 4


class Drawn(Own):
    def value(self, predict):
        return predict(X).mean() + torch.rand(())


class Counted(Own):
    calls = 0

    def value(self, predict):
        Counted.calls += 1
        return predict(X).mean() + Counted.calls


def plain(predict):
    return predict(X).mean() + torch.rand(())


POINTS = ErrorRate(X[:3], 1 - Y[:3])
UNSTEADY = {
    "a class as the goal": lambda: (Drawn(None), []),
    "a count as the goal": lambda: (Counted(None), []),
    "a function as the goal": lambda: (plain, []),
    "a class in a bound": lambda: (POINTS, [Bound(Drawn(None), limit=0.0)]),
    "a count in a bound": lambda: (POINTS, [Bound(Counted(None), limit=0.0)]),
}


@pytest.mark.parametrize("where", UNSTEADY)
def test_a_property_that_is_another_number_each_time_is_refused(where):
    goal, bounds = UNSTEADY[where]()
    with pytest.raises(SpecificationError, match="for the same network"):
        solve_repair(NET, goal, bounds, weights="last", settings=SHORT)


class Soft(Own):
    def __init__(self, soft):
        self.soft_value = soft

    def value(self, predict):
        return predict(X)[:, 0].mean()


@pytest.mark.parametrize(
    "soft", [lambda p: p(X), lambda p: p(X)[:, 0], lambda p: p(X)[:0], lambda p: p(X).mean(0), lambda p: p(X)[:2, :1]]
)
@pytest.mark.parametrize("method", ["sqp", "fine_tune"])
def test_a_soft_value_is_one_number(soft, method):
    with pytest.raises(SpecificationError, match="'own'.*returned shape.*expected one number"):
        solve_repair(NET, Soft(soft), weights="last", method=method, settings=SHORT)


@pytest.mark.parametrize("goal", [None, 3, "accuracy >= 0.9", ErrorRate, [ErrorRate(X, Y)]])
def test_what_is_no_goal_is_refused_at_every_door(goal):
    doors = [lambda: solve_repair(NET, goal), lambda: trace_frontier(NET, goal), lambda: explain_unmet(NET, goal, [])]
    for door in doors:
        with pytest.raises(SpecificationError, match="expected an object with name, target"):
            door()


@pytest.mark.parametrize("keep", [None, X, (X, Y), KeepLabels, ErrorRate(X, Y)])
def test_a_margin_is_calibrated_on_labels_that_are_kept(keep):
    with pytest.raises(SpecificationError, match="calibrate_margin: keep is a .*expected KeepLabels"):
        calibrate_margin(NET, ErrorRate(X, Y), keep)


@pytest.mark.parametrize("subjects", [None, 3, [], "subject", [NET], Subject])
def test_a_comparison_is_of_subjects(subjects):
    with pytest.raises(SpecificationError, match="subjects: expected one or several"):
        compare_repairs(subjects, ["sqp"])
