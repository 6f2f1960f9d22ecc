"""OSQP: operator splitting (ADMM) for quadratic programs, with a polishing step.

Licence Apache-2.0, https://osqp.org. Kind QP. First-order: slow to high accuracy, accurate once polishing succeeds.
Linear programs are left out on purpose: it needs too many steps on them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from repairopt.program import Array, Kind, Program, Solution, Status, without_noise

from .back_end import Session, TimedBackEnd, native_options, seconds, statuses
from .matrices import sparse_bytes, sparse_hessian, sparse_rows
from .same_rows import KnownRows, carried, same_hessian

# Every osqp.SolverStatus. "Inaccurate" means ten times looser tolerances: no proof, so never OPTIMAL or INFEASIBLE.
STATUS = statuses(
    OPTIMAL="OSQP_SOLVED",
    FEASIBLE="OSQP_SOLVED_INACCURATE",
    INFEASIBLE="OSQP_PRIMAL_INFEASIBLE",
    UNBOUNDED="OSQP_DUAL_INFEASIBLE",
    NO_POINT="OSQP_MAX_ITER_REACHED OSQP_TIME_LIMIT_REACHED OSQP_SIGINT",
    FAILED="OSQP_PRIMAL_INFEASIBLE_INACCURATE OSQP_DUAL_INFEASIBLE_INACCURATE OSQP_NON_CVX OSQP_UNSOLVED",
)


@dataclass(frozen=True)
class OSQP(TimedBackEnd):
    """QP by a first-order method.

    Attributes:
        feasibility_tol: Largest residual of the rows and of the optimality conditions, absolute and relative.
        native: OSQP settings by their own names, for example ``{"max_iter": 10**6}``.
    """

    name = "osqp"
    kinds = frozenset({Kind.QP})
    requires = ("osqp",)

    @staticmethod
    def memory(program: Program) -> float:
        """The rows and the Hessian four times in sparse storage, one for the factors."""
        return 4.0 * sparse_bytes(program)

    def session(self) -> _Session:
        """A twin that updates gradient and sides where nothing else changed, and starts from its last point else."""
        return _Session(self)

    def solve(self, program: Program) -> Solution:
        """Translate, run, map the native status."""
        return self._finish(program, self._setup(program))

    def _setup(self, program: Program) -> Any:
        import osqp
        from scipy import sparse

        bounded = _bounded(program)
        identity = sparse.identity(program.n, format="csr")[bounded]
        matrix = sparse.vstack([sparse_rows(program), identity], format="csc")
        backend = osqp.OSQP(algebra="builtin")
        options = native_options(
            self.native,
            verbose=self.verbose,
            eps_abs=self.feasibility_tol,
            eps_rel=self.feasibility_tol,
            eps_prim_inf=1e-8,  # the native defaults, 1e-4, call badly scaled programs infeasible
            eps_dual_inf=1e-8,
            max_iter=200_000,
            time_limit=seconds(self.time_limit),
        )
        backend.setup(sparse_hessian(program), program.gradient, matrix, *_sides(program), **options)
        return backend

    def _finish(self, program: Program, backend: Any) -> Solution:
        import osqp

        bounded = _bounded(program)
        result, native = _run(osqp, backend, polish="polishing" not in self.native)
        status = STATUS.get(native, Status.FAILED)
        if status not in (Status.OPTIMAL, Status.FEASIBLE):
            stopped = native == "OSQP_SIGINT"
            return Solution(status, message=native, iterations=result.info.iter, interrupted=stopped)
        bound_duals = np.zeros(program.n)
        bound_duals[bounded] = result.y[program.m :]
        found: Any = {"row_duals": np.array(result.y[: program.m]), "bound_duals": bound_duals}
        return Solution(status, delta=np.array(result.x), message=native, iterations=result.info.iter, **found)


class _Session(Session):
    """Keeps the factors of the last program, and its point."""

    def solve(self, program: Program) -> Solution:
        """Update the model, or build it and start from the last point."""
        options, last = self.limited(), self.memory.get("known")
        known, matches = KnownRows.recognized(program, last)
        if last is None or matches is None:
            backend = options._setup(program)
        elif _same_model(last.program, program, matches):
            backend = self.memory["backend"]
            lower, upper = _sides(program)
            backend.update(q=program.gradient, l=lower, u=upper)
        else:
            backend = options._setup(program)
            point: Solution = self.memory["solution"]
            if point.delta is not None and point.bound_duals is not None:
                duals = [carried(point.row_duals, matches), point.bound_duals[_bounded(program)]]
                backend.warm_start(x=point.delta, y=np.concatenate(duals))
        found = options._finish(program, backend)
        self.memory.update(known=known, backend=backend, solution=found)
        if known is None or found.status is not Status.OPTIMAL:
            self.memory.clear()
        return found


def _same_model(last: Program, program: Program, matches: Any) -> bool:
    """Whether two programs differ in gradient and sides alone."""
    same_rows = last.m == program.m and np.array_equal(matches, np.arange(program.m))
    return same_rows and same_hessian(last, program) and np.array_equal(_bounded(last), _bounded(program))


def _bounded(program: Program) -> Any:
    low, high = program.bounds()
    return np.flatnonzero(np.isfinite(low) | np.isfinite(high))


def _sides(program: Program) -> tuple[Array, Array]:
    """Sides of the rows, then of the variables that have bounds."""
    (low, high), bounded = program.bounds(), _bounded(program)
    return np.concatenate([program.lower, low[bounded]]), np.concatenate([program.upper, high[bounded]])


def _run(osqp: Any, backend: Any, *, polish: bool) -> tuple[Any, str]:
    """Solve, then once more with polishing on, from the point found.

    Not at once, because nothing is there to polish where no row is active.
    """
    names = {int(status): status.name for status in osqp.SolverStatus}
    result = backend.solve(raise_error=False)
    native = names.get(result.info.status_val, f"status {result.info.status_val}")
    if not polish or native != "OSQP_SOLVED" or not np.any(result.y):
        return result, native
    backend.update_settings(polishing=True)
    with without_noise(1, "Polishing not needed"):
        polished = backend.solve(raise_error=False)
    polished.info.iter += result.info.iter
    return (polished if names.get(polished.info.status_val) == native else result), native
