"""Methods that choose: which few weights change, which few samples break, which wrong samples are fixed.

Each solves mixed-integer programs over a linear model of the constraints, judges on the true network, adds the rows
that the step violates most, and solves again. The linear model is exact for the last linear layer.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from .errors import SpecificationError
from .evaluate import Engine
from .integer_program import IntegerProgram, allow_broken, limit_changes, maximize_fixed, rows_by_sample
from .judge import Judgement, Stop, allowed_samples
from .linearize import Array, Linearization, Picks, Rows, linearize
from .methods import Method
from .mixed_integer import IntegerSolution, solve_integer
from .program import Program, build_program
from .select_rows import MostViolated, Strictest, select_rows
from .solve import Solver, Status
from .specify import SampleConstraint
from .surrogate import Surrogate
from .task import NO_INFLUENCE, Outcome, Round, Task

UNITS = ("weights", "neurons", "layers")


@dataclass(frozen=True)
class _Choosing:
    """What the methods share.

    Attributes:
        selection: Rows to start from.
        batch: Rows to add in a round.
        max_rounds: Mixed-integer programs at most.
        gap_tol: Relative gap at which a program counts as solved.
        seconds: Time limit for each program; the best point then goes on, with its gap in the report.
        solver: Back end for the mixed-integer programs by name or instance; None chooses one. The ``solver`` of
            ``solve_repair`` is for continuous programs.
    """

    selection: Strictest = Strictest()
    batch: int = 100
    max_rounds: int = 10
    gap_tol: float = 0.01
    seconds: float = 60.0
    solver: str | Solver | None = None

    def __post_init__(self) -> None:
        if self.batch < 1 or self.max_rounds < 1 or self.seconds <= 0:
            raise SpecificationError(
                f"method {type(self).__name__}: batch={self.batch}, max_rounds={self.max_rounds}, "
                f"seconds={self.seconds}; expected batch and max_rounds of at least 1 and seconds above 0."
            )

    def run(self, task: Task) -> Outcome:
        """Choose, judge, add rows, again."""
        surrogate, zero, radius = task.fit(), np.zeros(task.engine.n), task.trust_radius
        if not np.any(surrogate.gradient) and surrogate.hessian is None:
            raise Stop(NO_INFLUENCE)
        with task.timed("linearize"):
            linearization = linearize(task.engine, task.constraints, required=task.required)
        with task.timed("select"):
            picks = self._first_picks(linearization)
        best: tuple[Judgement, Outcome] | None = None
        for index in range(self.max_rounds):
            with task.timed("linearize"):
                rows = linearization.rows(picks)
            found = self._solve(task, surrogate, rows, radius)
            if found.delta is None:
                _log(task, f"choice {index + 1}", found, None, rows)
                return Outcome(zero, found.status, surrogate, linearization) if best is None else best[1]
            delta = found.delta[: task.engine.n]
            judged = task.judge(delta)
            promised = surrogate.predicted(zero) - surrogate.predicted(delta)
            outcome = Outcome(delta, found.status, surrogate, linearization, delta, predicted=promised)
            _log(task, f"choice {index + 1}", found, judged, rows)
            if best is None or judged.better_than(best[0]):
                best = (judged, outcome)
            if judged.feasible:
                break
            with task.timed("select"):
                new = select_rows(linearization, MostViolated(self.batch), step=delta, chosen=picks)
            if not self._adds(new, found, linearization, delta):
                radius /= 2  # the linear model is satisfied, the true network is not: go less far
            picks = task.merge(picks, new)
        assert best is not None
        return self._continue(task, best)

    def _solve(self, task: Task, surrogate: Surrogate, rows: Rows, radius: float) -> IntegerSolution:
        zero = np.zeros(task.engine.n)
        box, change = task.box(zero, radius), task.change_rows(zero)
        task.rows_used = max(task.rows_used, len(rows) + len(change))
        program = build_program(surrogate, self._priced(rows), box=box, change=change, linear=task.linear)
        left = task.judge.time_left()
        limit = self.seconds if left is None else min(self.seconds, max(0.1, left))
        with task.timed("solve"):
            integer = self._formulate(task, program)
            return solve_integer(integer, self.solver, time_limit=limit, gap_tol=self.gap_tol, seed=task.seed)

    def _formulate(self, task: Task, program: Program) -> IntegerProgram:
        raise NotImplementedError

    def _first_picks(self, linearization: Linearization) -> Picks:
        return select_rows(linearization, self.selection)

    def _priced(self, rows: Rows) -> Rows:
        return rows

    def _continue(self, task: Task, best: tuple[Judgement, Outcome]) -> Outcome:
        return best[1]
