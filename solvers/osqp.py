"""OSQP: operator splitting (ADMM) for quadratic programs, with a polishing step.

Licence Apache-2.0, https://osqp.org. Kind QP. First-order: slow to high accuracy, accurate once polishing succeeds.
Linear programs are left out on purpose: it needs too many steps on them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

import numpy as np

from repairopt.program import Kind, Program
from repairopt.solve import Solution, Status

from .matrices import sparse_hessian, sparse_rows

# Every osqp.SolverStatus. "Inaccurate" means ten times looser tolerances: no proof, so never OPTIMAL or INFEASIBLE.
STATUS = {
    "OSQP_SOLVED": Status.OPTIMAL,
    "OSQP_SOLVED_INACCURATE": Status.FEASIBLE,
    "OSQP_PRIMAL_INFEASIBLE": Status.INFEASIBLE,
    "OSQP_PRIMAL_INFEASIBLE_INACCURATE": Status.FAILED,
    "OSQP_DUAL_INFEASIBLE": Status.UNBOUNDED,
    "OSQP_DUAL_INFEASIBLE_INACCURATE": Status.FAILED,
    "OSQP_MAX_ITER_REACHED": Status.NO_POINT,
    "OSQP_TIME_LIMIT_REACHED": Status.NO_POINT,
    "OSQP_NON_CVX": Status.FAILED,
    "OSQP_SIGINT": Status.NO_POINT,
    "OSQP_UNSOLVED": Status.FAILED,
}


@dataclass(frozen=True)
class OSQP:
    """QP by a first-order method.

    Attributes:
        time_limit: Seconds, or None.
        feasibility_tol: Largest residual of the rows and of the optimality conditions, absolute and relative.
        verbose: Print the native log.
        native: OSQP settings by their own names, for example ``{"max_iter": 10**6}``.
    """

    time_limit: float | None = None
    feasibility_tol: float = 1e-9
    verbose: bool = False
    native: Mapping[str, Any] = field(default_factory=dict)

    name: ClassVar[str] = "osqp"
    kinds: ClassVar[frozenset[Kind]] = frozenset({Kind.QP})
    requires: ClassVar[tuple[str, ...]] = ("osqp",)

    @staticmethod
    def preference(program: Program) -> float:
        """Last of the built-in ones."""
        return 40.0

    def solve(self, program: Program) -> Solution:
        """Translate, run, map the native status."""
        import osqp
        from scipy import sparse

        low, high = program.bounds()
        bounded = np.flatnonzero(np.isfinite(low) | np.isfinite(high))
        identity = sparse.identity(program.n, format="csr")[bounded]
        matrix = sparse.vstack([sparse_rows(program), identity], format="csc")
        lower, upper = np.concatenate([program.lower, low[bounded]]), np.concatenate([program.upper, high[bounded]])
        backend = osqp.OSQP(algebra="builtin")
        backend.setup(sparse_hessian(program), program.gradient, matrix, lower, upper, **self._settings())
        result, native = _run(osqp, backend, polish="polishing" not in self.native)
        status = STATUS.get(native, Status.FAILED)
        if status not in (Status.OPTIMAL, Status.FEASIBLE):
            return Solution(status, message=native, iterations=result.info.iter)
        bound_duals = np.zeros(program.n)
        bound_duals[bounded] = result.y[program.m :]
        return Solution(
            status,
            delta=np.array(result.x),
            message=native,
            row_duals=np.array(result.y[: program.m]),
            bound_duals=bound_duals,
            iterations=result.info.iter,
        )

    def _settings(self) -> dict[str, Any]:
        settings: dict[str, Any] = {
            "verbose": self.verbose,
            "eps_abs": self.feasibility_tol,
            "eps_rel": self.feasibility_tol,
            "eps_prim_inf": 1e-8,  # the native defaults, 1e-4, call badly scaled programs infeasible
            "eps_dual_inf": 1e-8,
            "max_iter": 200_000,
        }
        if self.time_limit is not None:
            settings["time_limit"] = float(self.time_limit)
        return settings | dict(self.native)


def _run(osqp: Any, backend: Any, *, polish: bool) -> tuple[Any, str]:
    """Solve, then once more with polishing on, from the point found.

    Not at once, because OSQP writes to standard output, verbose or not, where no row is active and nothing is there
    to polish.
    """
    names = {int(status): status.name for status in osqp.SolverStatus}
    result = backend.solve(raise_error=False)
    native = names.get(result.info.status_val, f"status {result.info.status_val}")
    if not polish or native != "OSQP_SOLVED" or not np.any(result.y):
        return result, native
    backend.update_settings(polishing=True)
    polished = backend.solve(raise_error=False)
    polished.info.iter += result.info.iter
    return (polished if names.get(polished.info.status_val) == native else result), native
