"""MDNN: the smallest change of one layer that makes points right, proved: a linear or a mixed-integer program."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import numpy as np

from repairopt.errors import SpecificationError
from repairopt.methods.outcome import Outcome
from repairopt.methods.task import Task
from repairopt.program import Solution, Status
from repairopt.surrogate import LinearizedRows, linearize

from .integer_encoding import Encoding
from .least_norm import LeastNorm, leads_of, norm_program, one_layer, points_of, solve_least

GROWTH, FIRST = 4.0, 0.125  # of the largest change that an integer program allows, as a share of the limit


@dataclass(frozen=True, kw_only=True)
class MDNN(LeastNorm):
    """Minimal modification of one layer, for few points.

    For the last layer outputs are affine in the change, and the least one is a linear program. For an earlier layer
    every ReLU after it, at each point, is a binary variable with exact big-M rows; the optimum is proved by branch and
    bound, whatever patterns change. Its time grows fast with points and neurons. Programs are solved for small changes
    first: what is least among these is least of all, where the norm is the largest change.

    References:
        Goldberger, Katz, Adi, Keshet, Minimal Modifications of Deep Neural Networks using Verification, LPAR 2020.
        There the least largest change is found by bisection with a verifier; here by mixed-integer programs with the
        same optimum.

    Example:
        >>> MDNN().norm
        'linf'
    """

    uses: ClassVar[frozenset[str]] = frozenset({"weights", "solver", "tolerance"})
    default_weights: ClassVar[str] = "last"
    systems: ClassVar[Mapping[str, Mapping[str, Any]]] = {"MDNN (MVDNN)": {}}

    norm: str = "linf"
    buffer: float = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.norm == "l2":
            raise SpecificationError("method MDNN: norm='l2'; choose one of l1+linf, l1, linf.")

    def run(self, task: Task) -> Outcome:
        """Solve for the least change, judge it."""
        points = points_of(task, self)
        name = one_layer(task.engine, self)
        if task.engine.exact:
            linearization = linearize(task.engine, points.constraints, required=leads_of(points, self.buffer))
            rows = LinearizedRows(linearization, tuple(range(len(points.constraints))))
            solution = solve_least(task, rows, self)
        else:
            solution = self._solve_integer(task, points, name)
        if solution.delta is None:
            task.record("least change", accepted=False, note=str(solution.status))
            return Outcome(np.zeros(task.engine.n), solution.status)
        judged = task.judge.keep(solution.delta)
        task.record("least change", judged)
        if solution.status is Status.OPTIMAL:
            task.log.note(f"No change of '{name}' with a smaller {self.norm} norm makes all points right; proved.")
        return Outcome(solution.delta, solution.status, indivisible=True)

    def _solve_integer(self, task: Task, points: Task, name: str) -> Solution:
        encoding = Encoding(task.engine, points, self, name)
        size = self.limit * (FIRST if self.norm == "linf" else 1.0)
        while True:
            settings = replace(self, limit=size)
            program = encoding.program(norm_program(task, settings), size)
            solution = task.solve_program(program)
            if solution.status is not Status.INFEASIBLE or size >= self.limit:
                found = solution.delta
                return solution if found is None else replace(solution, delta=found[: task.engine.n])
            size = min(self.limit, GROWTH * size)
