"""Repair as a sequence of programs, each around the last accepted point (AutoRIC, section 4, completed).

The paper repeats a repair from where the last one ended and gives no safeguard; here a trust region or a damping term
provides one, and steps are accepted on the true network.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import numpy as np

from repairopt.errors import SpecificationError
from repairopt.methods.outcome import Outcome
from repairopt.methods.settings import Expected, SurrogateModel, check_settings, is_one_of
from repairopt.methods.task import NO_INFLUENCE, Task
from repairopt.program import Status
from repairopt.specify import Differentiable, labelled_data
from repairopt.surrogate import Strictest, Surrogate, linearize, select_rows
from repairopt.verify import Judgement, Stop

from .loss_steps import loss_sequence

OBJECTIVES = ("auto", "property", "cross_entropy")
NUMBERS = {
    "max_steps": Expected(1, whole=True),
    "buffer": Expected(),
    "penalty": Expected(above=True),
    "damping": Expected(above=True),
    "restarts": Expected(whole=True),
    "batch": Expected(1, whole=True),
    "smallest_step": Expected(),
}


@dataclass(frozen=True)
class Sequential(SurrogateModel):
    """A sequence of programs, judged on the true network.

    With ``objective="cross_entropy"`` a step minimizes the cross-entropy of the labelled samples (Gauss-Newton model;
    the samples of the label constraints), and the property is a row: its hard value and its soft gradient must reach
    the target. A damping term grows where a step is rejected. With ``objective="property"`` a step minimizes the
    surrogate within a trust region that shrinks where a step is rejected.

    Attributes:
        objective: One of the two, or ``"auto"``: cross-entropy where there are labels and a soft goal.
        max_steps: Accepted and rejected steps together.
        buffer: Taken off the target in the rows, to allow for data that the repair does not see.
        penalty: Price of a missed target in the merit, relative to the error rate.
        damping: First damping, relative to the mean curvature.
        restarts: Where the target is missed, starts anew from the original weights so often, each time with a damping
            100 times larger; the best end is kept.
        selection: Rows to start each step from, with ``objective="property"``.
        batch: Rows to add where a step breaks more samples than allowed.
        smallest_step: Stop when the scaled step is smaller, in infinity norm.
    """

    systems: ClassVar[Mapping[str, Mapping[str, Any]]] = {"AutoRIC compositional use": {}}

    objective: str = "auto"
    max_steps: int = 60
    buffer: float = 0.0
    penalty: float = 10.0
    damping: float = 1e-2
    restarts: int = 2
    selection: Strictest = Strictest()
    batch: int = 100
    smallest_step: float = 1e-3

    def __post_init__(self) -> None:
        if not is_one_of(self.objective, OBJECTIVES):
            raise SpecificationError(f"method Sequential: objective={self.objective!r}; choose from {OBJECTIVES}.")
        check_settings(self, NUMBERS)

    def run(self, task: Task) -> Outcome:
        """Step until nothing improves."""
        data = labelled_data([*task.constraints, task.goal])
        soft = isinstance(task.goal, Differentiable)
        if self.objective == "cross_entropy" and not (data and soft):
            raise SpecificationError(
                f"method Sequential: objective='cross_entropy' needs labelled samples (KeepLabels), got {len(data)} "
                f"sets, and a goal with soft_value; '{task.goal.name}' has {'one' if soft else 'none'}."
            )
        if self.objective == "property" or not (data and soft):
            return self._by_property(task)
        try:
            return loss_sequence(task, data, self)
        except Stop as stop:
            if self.objective != "auto" or str(stop) != NO_INFLUENCE:
                raise
        return self._by_property(task)  # no slope, for example behind a step activation: sample

    def _by_property(self, task: Task) -> Outcome:
        judged, radius = task.judge.original, task.trust_radius / 3
        outcome = Outcome(judged.delta, Status.NO_POINT)
        surrogate: Surrogate | None = None
        promised = 0.0
        for index in range(self.max_steps):
            if surrogate is None:
                surrogate = task.fit(judged.delta)
                with task.timed("linearize"):
                    lin = linearize(task.engine, task.constraints, judged.delta, required=task.required)
                    rows = lin.rows(select_rows(lin, self.selection))
            solution, gave_way = task.solve_step(surrogate, rows, task.box(judged.delta, radius), judged.delta)
            if solution.delta is None:
                return replace(outcome, status=solution.status)
            trial = task.judge.keep(judged.delta + solution.delta)
            predicted = surrogate.predicted(np.zeros(task.engine.n)) - surrogate.predicted(solution.delta)
            actual = self._phi(judged) - self._phi(trial)
            ratio = actual / predicted if predicted > 1e-12 else 0.0
            accepted = ratio > 0.1 and not trial.constant
            task.record(f"step {index + 1}", trial, accepted=accepted, note=f"radius {radius:.3g}, ratio {ratio:.2f}")
            moved = np.abs(solution.delta / task.engine.scale.cpu().numpy()).max()
            if accepted:
                promised += predicted
                outcome = Outcome(trial.delta, solution.status, surrogate, lin, solution.delta, gave_way, promised)
                judged, surrogate = trial, None
                radius = min(task.trust_radius, radius * 2) if ratio > 0.75 and moved > 0.99 * radius else radius
                if judged.met and judged.feasible:
                    break
            else:
                radius /= 2
            if moved < self.smallest_step or radius < self.smallest_step:
                break
        return outcome

    def _phi(self, judged: Judgement) -> float:
        """Merit of section 8: the property plus the share of samples broken beyond what is allowed."""
        return judged.goal + self.penalty * judged.surplus / max(1, judged.count)
