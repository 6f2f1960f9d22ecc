"""Bounds out of reach: which of them conflict, whether that is proved, and what is said where it is not."""

import pytest
import torch
from biased_task import task
from torch import nn

from repairopt import (
    SQP,
    Bound,
    CallableProperty,
    ErrorRate,
    FixLabels,
    KeepLabels,
    KeepOutputs,
    SpecificationError,
    Verdict,
    explain_unmet,
)


def line_network():
    """Two classes on a line, divided at 0; the last layer is all there is to change."""
    model = nn.Sequential(nn.Linear(1, 2), nn.Identity(), nn.Linear(2, 2)).double().eval()
    with torch.no_grad():
        model[0].weight.copy_(torch.tensor([[1.0], [2.0]]))
        model[0].bias.zero_()
        model[2].weight.copy_(torch.tensor([[-1.0, 0.0], [1.0, 0.0]]))
        model[2].bias.zero_()
    return model


def points(*numbers):
    return torch.tensor(numbers, dtype=torch.float64)[:, None]


def labels(*numbers):
    return torch.tensor(numbers)


def test_one_point_with_two_labels_is_proved_to_be_out_of_reach():
    goal = ErrorRate(points(1.0, 1.0), labels(0, 1), name="reports")
    found = explain_unmet(line_network(), goal, weights="last")
    assert found.conflict == ("reports",)
    assert found.proved
    assert found.proof.irreducible
    assert found.proof.certificate is not None
    assert len(found.proof.members) == 2
    assert (found.closest, found.target) == (0.5, 0.0)
    assert str(found).startswith(
        "'reports' cannot be met by itself with these weights; closest value of the goal: 0.5, target 0. Proved: "
    )


def test_constraints_that_conflict_only_together_are_named_together_and_others_are_not():
    """A point between two kept ones of one class cannot be of the other, whichever way the line is divided."""
    low = KeepLabels(points(1.0), labels(1), tolerance=0.0, name="low")
    high = KeepLabels(points(3.0), labels(1), tolerance=0.0, name="high")
    idle = KeepLabels(points(-2.0), labels(0), tolerance=0.0, name="idle")
    goal = ErrorRate(points(2.0), labels(0), name="middle")
    options = {"weights": ["2.weight", "2.bias"], "method": SQP(confidence=None, trust_radius=20.0)}
    found = explain_unmet(line_network(), goal, [low, idle, high], **options)
    assert set(found.conflict) == {"middle", "low", "high"}
    assert found.proved
    assert "'middle' and 'low' and 'high' cannot be met together" in str(found)
    for alone in (low, high):
        assert not explain_unmet(line_network(), goal, [alone], **options).conflict


def test_the_smallest_set_in_conflict_is_named():
    """Dropped first, the point itself leaves two others behind that conflict as well, with one name more."""
    same = KeepLabels(points(2.0), labels(1), tolerance=0.0, name="same")
    low = KeepLabels(points(1.0), labels(1), tolerance=0.0, name="low")
    high = KeepLabels(points(3.0), labels(1), tolerance=0.0, name="high")
    goal = ErrorRate(points(2.0), labels(0), name="middle")
    options = {"weights": ["2.weight", "2.bias"], "method": SQP(confidence=None, trust_radius=20.0)}
    found = explain_unmet(line_network(), goal, [same, low, high], **options)
    assert set(found.conflict) == {"middle", "same"}
    assert (found.proved, found.smallest) == (True, True)
    hasty = explain_unmet(line_network(), goal, [same, low, high], most_tries=0, **options)
    assert set(hasty.conflict) == {"middle", "low", "high"}
    assert not hasty.smallest
    assert "There may be a smaller set" in str(hasty)
    assert "There may be" not in str(found)
    with pytest.raises(SpecificationError, match="most_tries=-1: expected a whole number"):
        explain_unmet(line_network(), goal, most_tries=-1)


def test_constraints_in_conflict_among_themselves_are_named_without_the_goal():
    """One point is to have two labels; the goal, which is out of reach too, has no part in that."""
    one = FixLabels(points(1.0), labels(0), weight=None, tolerance=0.0, name="is 0")
    other = KeepLabels(points(1.0), labels(1), tolerance=0.0, name="is 1")
    goal = ErrorRate(points(2.0, 3.0), labels(0, 1), name="middle")
    options = {"weights": ["2.weight", "2.bias"], "method": SQP(confidence=None, trust_radius=20.0)}
    found = explain_unmet(line_network(), goal, [one, other], **options)
    assert found.conflict == ("is 0", "is 1")
    assert found.proved
    counted = explain_unmet(line_network(), goal, [_no_error(0), _no_error(1)], **options)
    assert set(counted.conflict) == {"errors 0", "errors 1"}
    assert not counted.proved


def _no_error(label):
    return Bound(ErrorRate(points(1.0), labels(label)), limit=0.0, name=f"errors {label}")


def test_a_function_as_the_goal_is_taken_as_it_is():
    def middle(predict):
        return predict(points(2.0, -2.0)).softmax(-1)[0, 1]

    keep = KeepLabels(points(1.0, 3.0), labels(1, 1), tolerance=0.0, name="keep")
    options = {"weights": ["2.weight", "2.bias"], "method": SQP(confidence=None, trust_radius=20.0)}
    found = explain_unmet(line_network(), CallableProperty(middle, 0.4), keep, **options)
    assert found.target == 0.4
    assert set(found.conflict) == {"middle", "keep"}

    class Own:
        name, target = "own", 0.4
        value = staticmethod(middle)

    assert set(explain_unmet(line_network(), Own(), keep, **options).conflict) == {"own", "keep"}


def test_what_can_be_met_is_no_conflict():
    goal = ErrorRate(points(0.5), labels(0))
    keep = KeepLabels(points(3.0), labels(1), tolerance=0.0)
    found = explain_unmet(
        line_network(), goal, keep, weights=["2.weight", "2.bias"], method=SQP(confidence=None, trust_radius=20.0)
    )
    assert found.conflict == ()
    assert not found.proved
    assert found.repair.report.verdict is Verdict.REPAIRED
    assert str(found) == "All bounds are met: 0 against 0."


def test_counts_are_not_proved_and_the_text_says_so():
    toy = task()
    same = KeepOutputs(toy.inputs, distance=0.01, name="same outputs")
    found = explain_unmet(toy.model, toy.gap(0.02), [same, toy.keep()], weights="last")
    assert found.conflict == ("group gap", "same outputs")
    assert not found.proved
    assert found.target == 0.02 < found.closest
    text = str(found)
    assert text.startswith("'group gap' and 'same outputs' were not met together with these weights")
    assert text.endswith("This is not proved: another method, start or other weights may do better.")


def test_two_constraints_of_one_name_are_refused():
    keep = KeepLabels(points(3.0), labels(1))
    with pytest.raises(SpecificationError, match=r"constraints: two are called 'keep labels'; give each a name= of"):
        explain_unmet(line_network(), ErrorRate(points(0.5), labels(0)), [keep, keep])
