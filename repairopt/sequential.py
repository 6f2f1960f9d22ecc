"""Repair as a sequence of programs, each around the last accepted point (AutoRIC, section 4, completed).

The paper repeats a repair from where the last one ended and gives no safeguard; here a trust region or a damping term
provides one, and steps are accepted on the true network.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from .cross_entropy import cross_entropy_model
from .differentiate import jacobian
from .errors import SpecificationError
from .judge import Judgement, Stop, labelled_data
from .linearize import Array, Linearization, Picks, Rows, linearize
from .select_rows import MostViolated, Strictest, select_rows
from .solve import Solution, Status
from .specify import Source
from .surrogate import Surrogate
from .task import NO_INFLUENCE, Outcome, Task

OBJECTIVES = ("auto", "property", "cross_entropy")
GOAL_PRICE = 20.0  # of each unit by which a step misses the target; far above what accuracy can gain


@dataclass(frozen=True)
class Sequential:
    """A sequence of programs, judged on the true network.

    With ``objective="cross_entropy"`` a step minimizes the cross-entropy of the labelled samples (Gauss-Newton model, the
    samples of the label constraints), and the property is a row: its hard value and its soft gradient must reach the
    target. A damping term grows where a step is rejected. With ``objective="property"`` a step minimizes the surrogate
    within a trust region that shrinks where a step is rejected; this is section 8 of the specification of AutoRIC.

    Attributes:
        objective: One of the two, or ``"auto"``: cross-entropy where there are labels and a soft goal.
        max_steps: Accepted and rejected steps together.
        buffer: Taken off the target in the rows, to allow for data that the repair does not see.
        penalty: Price of a missed target in the merit, relative to the error rate.
        damping: First damping, relative to the mean curvature.
        selection: Rows to start each step from, with ``objective="property"``.
        batch: Rows to add where a step breaks more samples than allowed.
        smallest_step: Stop when the scaled step is smaller, in infinity norm.
    """

    objective: str = "auto"
    max_steps: int = 60
    buffer: float = 0.0
    penalty: float = 10.0
    damping: float = 1e-2
    selection: Strictest = Strictest()
    batch: int = 100
    smallest_step: float = 1e-3

    def __post_init__(self) -> None:
        if self.objective not in OBJECTIVES:
            raise SpecificationError(f"method Sequential: objective={self.objective!r}; choose from {OBJECTIVES}.")
        if self.buffer < 0 or self.penalty <= 0 or self.damping <= 0 or self.max_steps < 1:
            raise SpecificationError(
                "method Sequential: buffer must not be negative; penalty, damping, max_steps above 0."
            )

    def run(self, task: Task) -> Outcome:
        """Step until nothing improves."""
        data = labelled_data([*task.constraints, task.goal])
        soft = hasattr(task.goal, "soft_value")
        if self.objective == "cross_entropy" and not (data and soft):
            raise SpecificationError(
                f"method Sequential: objective='cross_entropy' needs labelled samples (KeepLabels) and a goal with "
                f"soft_value; '{task.goal.name}' has {'one' if soft else 'none'}, and {len(data)} labelled sets are given."
            )
        if self.objective == "property" or not (data and soft):
            return self._by_property(task)
        return self._by_loss(task, data)

    # ------------------------------------------------------------ the property as a row

    def _by_loss(self, task: Task, data: list[Any]) -> Outcome:
        judged, damping, target = task.judge.original, self.damping, float(task.goal.target) - self.buffer
        outcome = Outcome(judged.delta, Status.NO_POINT)
        rejected, model, lin = 0, None, None
        aim, promised = target, 0.0
        for index in range(self.max_steps):
            if model is None:
                with task.timed("surrogate"):
                    model, goal_rows = self._models(task, data, judged)
                with task.timed("linearize"):
                    lin = linearize(task.engine, task.constraints, judged.delta, required=task.required)
            assert lin is not None
            extra = _aimed(goal_rows, aim)
            solution, trial = self._try(task, model, lin, extra, damping, judged)
            if trial is None:
                outcome = replace(outcome, status=solution.status)
                break
            assert solution.delta is not None
            accepted = self._merit(task, trial) < self._merit(task, judged) - 1e-7
            task.record(f"step {index + 1}", trial, accepted=accepted, note=f"damping {damping:.2g}, aim {aim:.4g}")
            if accepted:
                line = _goal_surrogate(goal_rows, judged, model)
                promised += line.predicted(np.zeros(line.n)) - line.predicted(solution.delta)
                outcome = Outcome(trial.delta, solution.status, line, lin, solution.delta, predicted=promised)
                judged, model, rejected, aim = trial, None, 0, target
                damping = max(damping / 3, 1e-9)
            else:
                rejected += 1
                damping *= 4
                aim = (aim + max(target, judged.goal)) / 2
            small = np.abs(solution.delta / task.engine.scale.cpu().numpy()).max() < self.smallest_step
            if rejected >= 8 or (small and rejected >= 2):
                break
        return outcome

    def _models(self, task: Task, data: list[Any], judged: Judgement) -> tuple[Surrogate, list[tuple[Array, float]]]:
        """Cross-entropy, and the goal as ``value + gradient . step`` (two-sided for two groups)."""
        task.judge.check_time()
        goal: Any = task.goal
        model = cross_entropy_model(task.engine, data, judged.delta, task.seed)
        gradient = jacobian(task.engine, goal.soft_value, judged.delta)[1][0].cpu().numpy()
        rows = [(gradient, judged.goal)]
        if hasattr(goal, "residuals") and hasattr(goal, "signed_hard"):
            signed = goal.signed_hard(task.engine.predict(judged.delta)).double().cpu().numpy()
            if len(signed) == 1:
                slope = jacobian(task.engine, goal.residuals, judged.delta)[1][0].cpu().numpy()
                rows = [(slope, float(signed[0])), (-slope, -float(signed[0]))]
        if not any(np.any(slope) for slope, _ in rows):
            raise Stop(NO_INFLUENCE)
        return model, rows

    def _try(
        self, task: Task, model: Surrogate, lin: Linearization, extra: Rows, damping: float, judged: Judgement
    ) -> tuple[Solution, Judgement | None]:
        """Solve; where the step breaks more samples than allowed, add the rows it violates most and solve again."""
        assert isinstance(model.hessian, np.ndarray)
        mean = float(np.mean(np.diag(model.hessian) * model.scale**2))
        picks = _strict_rows(lin)
        box = task.box(judged.delta, task.trust_radius * 3)
        trial: Judgement | None = None
        for _ in range(8):
            with task.timed("linearize"):
                rows = lin.rows(picks)
            solution, _ = task.solve_step(
                model, rows, box, judged.delta, extra=extra, proximal=damping * max(mean, 1e-12)
            )
            if solution.delta is None:
                return solution, None
            trial = task.judge(judged.delta + solution.delta)
            if trial.surplus <= judged.surplus:
                break
            with task.timed("select"):
                new = select_rows(lin, MostViolated(self.batch), step=solution.delta, chosen=picks)
            if sum(map(len, new.values())) == 0:
                break
            picks = task.merge(picks, new)
        return solution, trial

    def _merit(self, task: Task, judged: Judgement) -> float:
        """Labelled loss plus the price of what is missed; infinite for a constant network.

        The loss is half error rate, half cross-entropy: the error rate alone follows the noise of single samples, and
        held-out accuracy suffers (measured on the census network).
        """
        if judged.constant or not judged.change_holds:
            return float("inf")
        missed = max(0.0, judged.goal - float(task.goal.target) + self.buffer)
        broken = judged.surplus / max(1, judged.count)
        return (judged.error + judged.loss) / 2 + self.penalty * (missed + judged.lack + broken)

    # ------------------------------------------------------------ the property as objective

    def _by_property(self, task: Task) -> Outcome:
        judged, radius = task.judge.original, task.trust_radius / 3
        outcome = Outcome(judged.delta, Status.NO_POINT)
        surrogate: Surrogate | None = None
        promised = 0.0
        for index in range(self.max_steps):
            if surrogate is None:
                surrogate = task.fit(judged.delta)
                if not np.any(surrogate.gradient) and surrogate.hessian is None:
                    raise Stop(NO_INFLUENCE)
                with task.timed("linearize"):
                    lin = linearize(task.engine, task.constraints, judged.delta, required=task.required)
                    rows = lin.rows(select_rows(lin, self.selection))
            solution, gave_way = task.solve_step(surrogate, rows, task.box(judged.delta, radius), judged.delta)
            if solution.delta is None:
                return replace(outcome, status=solution.status)
            trial = task.judge(judged.delta + solution.delta)
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
                radius = min(task.trust_radius * 3, radius * 2) if ratio > 0.75 and moved > 0.99 * radius else radius
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


def _strict_rows(lin: Linearization) -> Picks:
    """Rows that every step carries: single-row constraints such as bounds on properties."""
    return {c: np.arange(len(m), dtype=np.int64) for c, m in enumerate(lin.margins) if len(m) == 1}


def _aimed(goal_rows: list[tuple[Array, float]], aim: float) -> Rows:
    """``value + slope . step <= aim``, soft at a high price, so that a target out of reach still gives a step."""
    matrix = np.stack([-slope for slope, _ in goal_rows])
    lower = np.array([value - aim for _, value in goal_rows])
    count = len(lower)
    return Rows(matrix, lower, np.full(count, np.inf), np.full(count, GOAL_PRICE), (Source("goal"),) * count)


def _goal_surrogate(goal_rows: list[tuple[Array, float]], judged: Judgement, model: Surrogate) -> Surrogate:
    """The linear model of the goal that the step relied on, for the report's predicted improvement."""
    slope, value = max(goal_rows, key=lambda row: row[1])
    return Surrogate(slope, None, value, model.scale, kind="linear")
