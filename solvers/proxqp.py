"""ProxQP: proximal augmented Lagrangian for quadratic programs, dense or sparse.

License BSD-2-Clause, https://github.com/Simple-Robotics/proxsuite. Kind QP. Its own defaults call programs infeasible
that have a solution; the thresholds here are tighter. No wheel for Windows.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from repairopt.program import Array, Kind, Program, Solution, Status

from .back_end import BackEnd, Session, set_options, statuses
from .matrices import by_owner, dense_bytes, dense_rows, one_sided
from .same_rows import KnownRows, carried

# Every proxqp.QPSolverOutput.
STATUS = statuses(
    OPTIMAL="PROXQP_SOLVED",
    INFEASIBLE="PROXQP_PRIMAL_INFEASIBLE",
    UNBOUNDED="PROXQP_DUAL_INFEASIBLE",
    NO_POINT="PROXQP_MAX_ITER_REACHED",
    FAILED="PROXQP_SOLVED_CLOSEST_PRIMAL_FEASIBLE PROXQP_NOT_RUN",  # the first violates rows; not asked for here
)


@dataclass(frozen=True)
class ProxQP(BackEnd):
    """QP by the dense variant of ProxQP.

    ProxQP knows no time limit; ``native={"max_iter": 50}`` bounds the work instead.

    Attributes:
        feasibility_tol: Largest residual of the rows and of the optimality conditions, absolute and relative.
        gap_tol: Largest duality gap, absolute and relative.
        native: ProxQP settings by their own names, for example ``{"max_iter": 500}``.
    """

    gap_tol: float = 1e-9

    name = "proxqp"
    kinds = frozenset({Kind.QP})
    requires = ("proxsuite",)

    @staticmethod
    def memory(program: Program) -> float:
        """The Hessian, the rows and those of the bounds four times."""
        return 4.0 * (dense_bytes(program) + 8.0 * program.n**2)

    def session(self) -> _Session:
        """A twin that starts from its last point and multipliers."""
        return _Session(self)

    def solve(self, program: Program) -> Solution:
        """Translate, run, map the native status."""
        return self._solve(program, None)

    def _solve(self, program: Program, start: tuple[Array, Array] | None) -> Solution:
        """From a point and multipliers of rows and bounds, where there are such."""
        from proxsuite import proxqp

        low, high = program.bounds()
        matrix = np.vstack([dense_rows(program), np.eye(program.n)])
        lower, upper = np.concatenate([program.lower, low]), np.concatenate([program.upper, high])
        owners, signs, sides, equal = one_sided(lower, upper)  # ProxQP sees no infeasibility through a lower side
        lines = signs[:, None] * matrix[owners]
        backend = proxqp.dense.QP(program.n, equal, len(owners) - equal)
        set_options(
            backend.settings,
            self.native,
            verbose=self.verbose,
            eps_abs=self.feasibility_tol,
            eps_rel=self.feasibility_tol,
            check_duality_gap=True,
            eps_duality_gap_abs=self.gap_tol,
            eps_duality_gap_rel=self.gap_tol,
            eps_primal_inf=1e-12,  # the native default, 1e-4, calls feasible programs infeasible
            eps_dual_inf=1e-12,
        )
        inequalities = (lines[equal:], np.full(len(owners) - equal, -np.inf), sides[equal:])
        backend.init(program.dense_hessian(), program.gradient, lines[:equal], sides[:equal], *inequalities)
        if start is None:
            backend.solve()
        else:
            point, held = start
            held = signs * held[owners]
            backend.settings.initial_guess = proxqp.InitialGuess.WARM_START
            backend.solve(point, held[:equal], np.maximum(held[equal:], 0.0))
        result, info = backend.results, backend.results.info
        native = info.status.name
        status = STATUS.get(native, Status.FAILED)
        if status is Status.NO_POINT and _falls_without_limit(program, (matrix, lower, upper), np.array(result.x)):
            status = Status.UNBOUNDED
        if status is not Status.OPTIMAL:
            return Solution(status, message=native, iterations=int(info.iter))
        duals = by_owner(signs * np.concatenate([result.y, result.z]), owners, len(lower))
        found: Any = {"row_duals": duals[: program.m], "bound_duals": duals[program.m :], "iterations": int(info.iter)}
        return Solution(status, delta=np.array(result.x), message=native, **found)


class _Session(Session):
    """Remembers the last program and its answer."""

    def solve(self, program: Program) -> Solution:
        """From the last point, with the multipliers of the rows that are still there."""
        known, matches = KnownRows.recognized(program, self.memory.get("known"))
        start = None
        if matches is not None:
            point: Solution = self.memory["solution"]
            assert point.delta is not None
            assert point.bound_duals is not None
            start = point.delta, np.concatenate([carried(point.row_duals, matches), point.bound_duals])
        found = self.options._solve(program, start)
        self.memory.update(known=known, solution=found)
        if known is None or found.status is not Status.OPTIMAL:
            self.memory.clear()
        return found


def _falls_without_limit(program: Program, lines: tuple[Array, Array, Array], point: Array) -> bool:
    """Whether the way to a point far out has no curvature and no row or bound in it, and leads down.

    ProxQP's own test for unbounded programs takes rows with one side for rows with two.
    """
    size = float(np.abs(point).max())
    if not 1e8 < size < np.inf:
        return False
    way, hessian, (matrix, lower, upper) = point / size, program.dense_hessian(), lines
    values, small = matrix @ way, 1e-6 * np.abs(matrix).sum(axis=1)
    stopped = (np.isfinite(upper) & (values > small)) | (np.isfinite(lower) & (values < -small))
    flat = np.abs(hessian @ way).max() <= 1e-6 * np.abs(hessian).max()
    return bool(flat and program.gradient @ way < 0 and not np.any(stopped))
