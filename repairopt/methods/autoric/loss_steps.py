"""A sequence of steps that minimize cross-entropy with the property as a row; used by :class:`repairopt.Sequential`.

Sequential quadratic programming with an exact penalty: at the current weights the cross-entropy of the samples is
modelled by its gradient and Gauss-Newton curvature, the property by its hard value and its soft gradient. A step is
accepted when the true merit falls by a fair share of what the models promised; damping follows that share, as in
Levenberg-Marquardt methods (Nocedal and Wright, Numerical Optimization, 2006, chapters 10 and 18).
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from torch import Tensor

from repairopt.methods.cross_entropy import cross_entropy_model
from repairopt.methods.outcome import Outcome
from repairopt.methods.task import FLAT, NO_INFLUENCE, Task
from repairopt.network import jacobian
from repairopt.program import Array, Rows, Solution, Source, Status
from repairopt.specify import SignedParts
from repairopt.surrogate import Linearization, MostViolated, Picks, Surrogate, linearize, select_rows
from repairopt.verify import Judgement, Stop

GOAL_PRICE = 20.0  # of each unit by which a step misses the target; above what the loss can gain
ENOUGH = 0.6  # share of the way to the target after which a run is not started anew
LEAST_SHARE = 0.1  # of the promised fall of the merit, for a step to be accepted
LEAST_FALL = 1e-3  # promised fall of the merit, relative to it, below which rejected steps end a run


@dataclass(frozen=True, eq=False)
class _Models:
    """Everything known about one point.

    Attributes:
        loss: Quadratic model of the cross-entropy.
        goal: Pairs ``(slope (n,), value)``: the goal is the largest of ``value + slope . step``.
        linearization: The constraints.
    """

    loss: Surrogate
    goal: list[tuple[Array, float]]
    linearization: Linearization

    def promised(self, step: Array) -> float:
        """The goal that the models promise at a step."""
        return max(value + float(slope @ step) for slope, value in self.goal)


def loss_sequence(task: Task, data: list[tuple[Tensor, Tensor]], settings: Any) -> Outcome:
    """Run the sequence from the original weights, again with more damping where it ends short of the target.

    Args:
        task: The repair in progress.
        data: Labelled samples whose cross-entropy is minimized.
        settings: The method, whose fields are read.

    Returns:
        The best end.
    """
    best: tuple[float, Outcome] | None = None
    first = _models(task, data, task.judge.original)
    for start in range(settings.restarts + 1):
        sequence = _Sequence(task, data, settings, first, settings.damping * 100.0**start)
        outcome = sequence.run()
        reached = sequence.merit(sequence.at)
        if best is None or reached < best[0]:
            best = (reached, outcome)
        wanted = task.judge.original.goal - sequence.target
        gained = task.judge.original.goal - sequence.at.goal
        if sequence.at.feasible and gained > ENOUGH * wanted:
            break
    assert best is not None
    return best[1]


class _Sequence:
    """One run of steps."""

    def __init__(self, task: Task, data: list[Any], settings: Any, first: _Models, damping: float) -> None:
        self.task, self.data, self.settings = task, data, settings
        self.at, self.models, self.damping = task.judge.original, first, damping
        self.target = float(task.goal.target) - settings.buffer
        assert isinstance(first.loss.hessian, np.ndarray)
        self.curvature = max(1e-12, float(np.mean(np.diag(first.loss.hessian) * first.loss.scale**2)))

    def run(self) -> Outcome:
        """Step until nothing improves."""
        outcome = Outcome(self.at.delta, Status.NO_POINT)
        aim, rejected, promised = self.target, 0, 0.0
        for index in range(self.settings.max_steps):
            solution, trial = self._try(aim)
            if trial is None or solution.delta is None:
                return replace(outcome, status=solution.status)
            share, fall = self._share(trial, solution.delta)
            accepted = share > LEAST_SHARE
            note = f"damping {self.damping:.2g}, aim {aim:.4g}, {share:.2f} of the promised fall"
            self.task.record(f"step {index + 1}", trial, accepted=accepted, note=note)
            if accepted:
                line = _line(self.models)
                promised += max(0.0, self.at.goal - max(0.0, self.models.promised(solution.delta)))
                linearization = self.models.linearization
                outcome = Outcome(trial.delta, solution.status, line, linearization, solution.delta, (), promised, True)
                self.at, aim, rejected = trial, self.target, 0
                self.models = _models(self.task, self.data, trial)
                self.damping = max(self.damping / 3, 1e-9) if share > 0.5 else self.damping
            else:
                rejected += 1
                self.damping *= 4
                aim = (aim + max(self.target, self.at.goal)) / 2
            moved = np.abs(solution.delta / self.models.loss.scale).max()
            idle = moved < self.settings.smallest_step or fall < LEAST_FALL * self.merit(self.at)
            if rejected >= 8 or (rejected >= 2 and idle):
                break
        return outcome

    def merit(self, judged: Judgement) -> float:
        """Labelled loss plus the price of what is missed; infinite for a constant network.

        The loss is half error rate, half cross-entropy: the error rate alone follows the noise of single samples, and
        held-out accuracy suffers (measured on the census network).
        """
        if judged.constant or not judged.change_holds:
            return float("inf")
        missed = max(0.0, judged.goal - self.target)
        broken = judged.surplus / max(1, judged.count)
        return (judged.error + judged.loss) / 2 + self.settings.penalty * (missed + judged.shortfall + broken)

    def _share(self, trial: Judgement, step: Array) -> tuple[float, float]:
        """Actual over promised fall of the merit, and the promised fall."""
        missed = max(0.0, self.at.goal - self.target) - max(0.0, self.models.promised(step) - self.target)
        loss = self.models.loss.constant - self.models.loss.value(step)
        promised = loss / 2 + self.settings.penalty * (missed + self.at.shortfall)
        actual = self.merit(self.at) - self.merit(trial)
        return (actual / max(promised, 1e-9) if actual > 1e-7 else min(0.0, actual)), promised

    def _try(self, aim: float) -> tuple[Solution, Judgement | None]:
        """Solve; where the step breaks more samples than allowed, add the rows it violates most and solve again."""
        task, lin = self.task, self.models.linearization
        picks = _single_rows(lin)
        box = task.box(self.at.delta, task.trust_radius)
        trial: Judgement | None = None
        for _ in range(8):
            with task.timed("linearize"):
                rows = lin.rows(picks)
            extra, proximal = _aimed(self.models.goal, aim), self.damping * self.curvature
            solution, _ = task.solve_step(self.models.loss, rows, box, self.at.delta, extra=extra, proximal=proximal)
            if solution.delta is None:
                return solution, None
            trial = task.judge.keep(self.at.delta + solution.delta)
            if trial.surplus <= self.at.surplus:
                break
            with task.timed("select"):
                new = select_rows(lin, MostViolated(self.settings.batch), step=solution.delta, chosen=picks)
            if sum(map(len, new.values())) == 0:
                break
            picks = task.merge(picks, new)
        return solution, trial


def _models(task: Task, data: list[tuple[Tensor, Tensor]], judged: Judgement) -> _Models:
    task.judge.check_time()
    goal: Any = task.goal
    with task.timed("surrogate"):
        loss = cross_entropy_model(task.engine, data, judged.delta, task.seed)
        slopes = jacobian(task.engine, goal.soft_value, judged.delta)[1].cpu().numpy()
        lines = [(slopes[0], judged.goal)]
        if isinstance(goal, SignedParts):
            signed = goal.signed_hard(task.engine.predict(judged.delta)).double().cpu().numpy()
            if len(signed) == 1:  # two groups: a row for each sign, so that no step overshoots
                slope = jacobian(task.engine, goal.residuals, judged.delta)[1][0].cpu().numpy()
                lines = [(slope, float(signed[0])), (-slope, -float(signed[0]))]
    if all(np.abs(slope * loss.scale).max(initial=0.0) < FLAT for slope, _ in lines):
        raise Stop(NO_INFLUENCE)
    with task.timed("linearize"):
        lin = linearize(task.engine, task.constraints, judged.delta, required=task.required)
    return _Models(loss, lines, lin)


def _single_rows(lin: Linearization) -> Picks:
    """Rows that every step carries: constraints with one margin, such as bounds on properties."""
    return {c: np.arange(len(m), dtype=np.int64) for c, m in enumerate(lin.margins) if len(m) == 1}


def _aimed(lines: list[tuple[Array, float]], aim: float) -> Rows:
    """``value + slope . step <= aim``, soft at a high price, so that a target out of reach still gives a step."""
    matrix = np.stack([-slope for slope, _ in lines])
    lower = np.array([value - aim for _, value in lines])
    count = len(lower)
    return Rows(matrix, lower, np.full(count, np.inf), np.full(count, GOAL_PRICE), (Source("goal"),) * count)


def _line(models: _Models) -> Surrogate:
    """The linear model of the goal that the step relied on."""
    slope, value = max(models.goal, key=lambda line: line[1])
    return Surrogate(slope, None, value, models.loss.scale, kind="linear")
