"""The nonlinear program of a repair: points judged on the true network, and the models around them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from repairopt.methods.task import FLAT, NO_INFLUENCE, Task
from repairopt.network import Predict, Remembering
from repairopt.program import Array
from repairopt.specify import (
    SampleConstraint,
    SampleShare,
    ShareRows,
    fails_by_sample,
    is_strict,
    labelled_data,
    margins_at,
    sample_count,
    samples_in,
)
from repairopt.surrogate import Linearization, linearize
from repairopt.verify import Judgement, Stop

from .filter import Pair
from .limits import Limit, Lines
from .objectives import Objective, ObjectiveModel, SmoothObjective, SoftmaxLoss


@dataclass(frozen=True, eq=False)
class Point:
    """A weight change, judged.

    Attributes:
        judged: On the repair data.
        values: Values of the limits, by count, ``(L,)``.
        objective: Its value.
        violation: Sum of what the limits are missed by, plus the share of samples beyond what constraints allow and
            the logits that these need; infinite where the network became constant or a
            change is not allowed; 1 more while it is constant as the original was.
    """

    judged: Judgement
    values: Array
    objective: float
    violation: float

    @property
    def delta(self) -> Array:
        """The weight change, ``(n,)``."""
        return self.judged.delta

    @property
    def pair(self) -> Pair:
        """Violation and objective, as the filter compares them."""
        return Pair(self.violation, self.objective)


@dataclass(frozen=True, eq=False)
class Models:
    """Everything known around a point.

    Attributes:
        objective: Model of the objective.
        lines: Linearization of each limit.
        linearization: The constraints by sample.
        strict: Positions of the hard ones that allow no failure; their rows are always kept.
    """

    objective: ObjectiveModel
    lines: list[Lines]
    linearization: Linearization
    strict: tuple[int, ...]


class NonlinearProgram:
    """Judges points and makes models of one repair.

    Args:
        task: The repair in progress.
        limits: The goal first.
        objective: What is minimized.
        inputs: All sets of inputs at hand.
    """

    def __init__(
        self, task: Task, limits: Sequence[Limit], objective: Objective, inputs: Sequence[Tensor] = ()
    ) -> None:
        self.task, self.limits, self.objective, self.inputs = task, list(limits), objective, list(inputs)
        self.strict = tuple(c for c, one in enumerate(task.constraints) if is_strict(one))
        self.by_rows = any(_stands_for(task.constraints[c], task) for c in self.strict)
        self.by_sample = tuple(c for c, one in enumerate(task.constraints) if isinstance(one, SampleConstraint))
        self.samples = max(1, sum(sample_count(task.constraints[c]) for c in self.by_sample))
        self.aims = np.array([limit.aim for limit in limits])
        self.accepted = np.array([limit.accepted for limit in limits])

    def part_of_the_way(self, point: Point, share: float) -> NonlinearProgram:
        """The same with each limit that a point misses moved, so far that a share of the way there is left out."""
        moved = [
            replace(limit, limit=limit.limit + (1.0 - share) * max(0.0, float(value) - limit.aim))
            for limit, value in zip(self.limits, point.values, strict=True)
        ]
        return NonlinearProgram(self.task, moved, self.objective, self.inputs)

    def smoothed(self) -> NonlinearProgram:
        """The same with differentiable stand-ins in place of counts.

        Limits on shares of wrong samples become a part of the objective, as the loss of these samples.
        """
        counted = [limit for limit in self.limits if limit.takes_margin]
        losses = [SoftmaxLoss(self.task.engine, labelled_data([limit.property])) for limit in counted]
        smooth = SmoothObjective(self.task.engine, self.objective, losses)
        others = [replace(limit, smooth=True) for limit in self.limits if not limit.takes_margin]
        return NonlinearProgram(self.task, others, smooth, self.inputs)

    def point(self, delta: Array) -> Point:
        """Judge a weight change."""
        self._pass(delta)
        judged = self.task.judge.keep(delta)
        predict = self.task.engine.predict(delta)
        values = np.array([self._value(limit, judged, predict) for limit in self.limits])
        return Point(judged, values, self.objective.value(delta), self._violation(judged, values))

    def _value(self, limit: Limit, judged: Judgement, predict: Predict) -> float:
        known = limit.property is self.task.goal and not limit.margin and not limit.smooth
        return judged.goal if known else limit.value(predict)

    def _pass(self, delta: Array) -> None:
        """Run each set of inputs so that the models need no second run if the point is accepted."""
        engine = self.task.engine
        for inputs in self.inputs:
            if engine.layers(inputs) is not None and not engine.exact:
                engine.tapes(inputs, engine.as_delta(delta))

    def models(self, point: Point) -> Models:
        """Models around a point.

        Raises:
            Stop: No weight influences any limit that is missed.
        """
        task = self.task
        task.judge.check_time()
        with task.timed("surrogate"):
            objective = self.objective.model(point.delta)
            lines = [limit.lines(task.engine, point.delta, task.surrogate) for limit in self.limits]
        scale = task.engine.scale.cpu().numpy()
        missed = [line for line, value, aim in zip(lines, point.values, self.aims, strict=True) if value > aim]
        if (
            missed
            and not self.surplus(point.judged)
            and all(np.abs(line.slopes * scale).max(initial=0.0) < FLAT for line in missed)
        ):
            raise Stop(NO_INFLUENCE)
        with task.timed("linearize"):
            lin = linearize(task.engine, task.constraints, point.delta, required=task.required)
        return Models(objective, lines, lin, self.strict)

    def predicted(self, models: Models, step: Array, delta: Array) -> Pair:
        """What the limits miss and the objective where the models are right at a step from ``delta``."""
        values = np.array([line.at(step) for line in models.lines])
        norm = models.objective.norm
        objective = self.objective.value(delta + step) if norm else models.objective.at(step)
        return Pair(float(np.maximum(0.0, values - self.accepted).sum()), objective)

    def surplus(self, judged: Judgement) -> int:
        """Samples that fail beyond what the constraints by sample allow."""
        return sum(max(0, judged.broken[c] - judged.allowed[c]) for c in self.by_sample)

    def _violation(self, judged: Judgement, values: Array) -> float:
        was_constant = self.task.judge.original.constant
        if (judged.constant and not was_constant) or not judged.change_holds:
            return float("inf")
        violation = float(np.maximum(0.0, values - self.accepted).sum())
        violation += 1.0 if judged.constant else 0.0  # the way out of a constant network leads along constant ones
        surplus = self.surplus(judged)
        if surplus:
            violation += surplus / self.samples
            predict = self.task.engine.predict(judged.delta)
            chosen = [self.task.constraints[c] for c in self.strict]
            violation += sum(float(np.maximum(0.0, -m).sum()) for m in margins_at(predict, chosen)) / self.samples
        return violation


def _stands_for(constraint: Any, task: Task) -> bool:
    """Whether the rows of a constraint are those of a goal that no given sample is wrong: the same samples fail."""
    goal = task.goal
    if not isinstance(goal, SampleShare) or goal.counted is not None or goal.target > 0:
        return False
    if constraint.inputs is not goal.inputs:
        return False
    predict, failing = Remembering(task.engine), []
    rows: Any = ShareRows(goal)
    for one in (constraint, rows):
        fails = fails_by_sample(one, margins_at(predict, [one])[0] < 0)
        failing.append(samples_in(one)[torch.as_tensor(fails)])
    return torch.equal(*failing)
