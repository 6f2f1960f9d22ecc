"""Anyone's own goal or constraint: a class with one method, or a plain function."""

import numpy as np
import pytest
import torch
from biased_task import repair as repair_with, task

from repairopt import SpecificationError, Status, Verdict, solve_repair

TOY = task(count=200)
GROUP = TOY.inputs[:, 1] == 1


def favorable_gap(predict):
    """Reads numbers out of tensors, so it can be neither differentiated nor batched."""
    favored = predict(TOY.inputs).argmax(-1) == 1
    return abs(float(favored[GROUP].float().mean()) - float(favored[~GROUP].float().mean()))


class MeanGap:
    """The least that a goal needs."""

    name, target = "mean gap", 0.05

    def value(self, predict):
        favored = (predict(TOY.inputs).argmax(-1) == 1).double()
        return (favored[..., GROUP].mean() - favored[..., ~GROUP].mean()).abs()


class SmoothGap(MeanGap):
    """With a derivative as well."""

    name = "smooth gap"

    def soft_value(self, predict):
        chance = torch.softmax(4 * predict(TOY.inputs), -1)[..., 1]
        return (chance[GROUP].mean() - chance[~GROUP].mean()).abs()


class Calm:
    """No logit above a limit: margins of all samples together, the least that a constraint needs."""

    name = "calm"

    def __init__(self, limit):
        self.limit = limit

    def margins(self, predict):
        return self.limit - predict(TOY.inputs[:20]).abs().amax(1)


class CalmSamples(Calm):
    """The same by sample, with a soft row for each."""

    name, weight, tolerance, inputs = "calm samples", 5.0, 0.02, TOY.inputs

    def margins_of(self, outputs, samples):
        return torch.cat([self.limit - outputs, self.limit + outputs], dim=1)


def repair(goal, constraints=(), **options):
    return repair_with(
        TOY.model, goal, [TOY.keep(), *constraints], **{"weights": "last", "trust_radius": 1.0, **options}
    )


@pytest.mark.parametrize("method", ["one_shot", "incremental", "bisection", "sequential", "auto"])
@pytest.mark.parametrize("goal", [favorable_gap, MeanGap(), SmoothGap()], ids=["function", "class", "soft class"])
def test_own_goals(goal, method):
    target = {"target": 0.05} if goal is favorable_gap else {}
    found = repair(goal, method=method, **target)
    measure = found.report.measure()
    assert measure.name == getattr(goal, "name", "favorable_gap")
    assert measure.after <= 0.75 * measure.before
    assert measure.after == pytest.approx(favorable_gap(found.model), abs=1e-6)
    assert found.report.verification.checks[0].holds


@pytest.mark.parametrize("method", ["one_shot", "incremental", "bisection", "sequential"])
@pytest.mark.parametrize("kind", [Calm, CalmSamples])
def test_own_constraints(kind, method):
    with torch.no_grad():
        limit = float(TOY.model(TOY.inputs).abs().max()) + 0.01
    found = repair(TOY.gap(), [kind(limit)], method=method)
    check = next(c for c in found.report.verification.checks if c.constraint == kind.name)
    assert check.holds
    assert check.failed <= check.allowed == (4 if kind is CalmSamples else 0)
    assert found.report.measure().after < found.report.measure().before


def test_the_target_of_a_class_that_is_no_dataclass_cannot_be_overridden():
    with (
        pytest.warns(DeprecationWarning, match="target= is deprecated.*set it on the goal"),
        pytest.raises(SpecificationError, match=r"target= can override the target of a dataclass only"),
    ):
        solve_repair(TOY.model, MeanGap(), [TOY.keep()], target=0.1)


def test_own_goals_of_the_wrong_shape_are_named():
    with pytest.raises(SpecificationError, match=r"goal 'margins' returned shape \(20,\); expected one number"):
        repair(Calm(1.0).margins, method="incremental")


def test_an_exception_in_an_own_goal_arrives_as_it_is():
    calls = []

    def fragile(predict):
        calls.append(predict(TOY.inputs))
        if len(calls) > 3:
            raise ZeroDivisionError("mine")
        return 1.0 + float(calls[-1].mean())

    with pytest.raises(ZeroDivisionError, match="mine"):
        repair(fragile, method="incremental")


def test_predict_can_be_asked_about_any_inputs():
    def shifted(predict):
        return (predict(TOY.inputs + 0.1) - predict(TOY.inputs)).abs().mean()

    found = repair(shifted, target=0.0, method="one_shot")
    assert found.report.measure().after < found.report.measure().before
    assert found.report.status in (Status.OPTIMAL, Status.FEASIBLE)
    assert found.report.verdict is Verdict.IMPROVED
    assert np.isfinite(found.report.largest_change)
