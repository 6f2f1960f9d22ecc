"""Clarabel: interior point for conic programs, used here for linear and quadratic ones.

Licence Apache-2.0, https://clarabel.org. Kinds LP and QP; an independent cross-check, and Farkas rays for programs
without a solution.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

import numpy as np

from repairopt.program import Array, Kind, Program, Solution, Status

from .back_end import Ranked, native_options, seconds
from .matrices import one_sided, sparse_bytes, sparse_hessian, sparse_rows

# Every clarabel.SolverStatus. "Almost" means a thousand times looser tolerances: no proof, so never OPTIMAL.
STATUS = {
    "Solved": Status.OPTIMAL,
    "PrimalInfeasible": Status.INFEASIBLE,
    "DualInfeasible": Status.UNBOUNDED,
    "AlmostSolved": Status.FEASIBLE,
    "AlmostPrimalInfeasible": Status.FAILED,
    "AlmostDualInfeasible": Status.FAILED,
    "MaxIterations": Status.NO_POINT,
    "MaxTime": Status.NO_POINT,
    "CallbackTerminated": Status.NO_POINT,
    "NumericalError": Status.FAILED,
    "InsufficientProgress": Status.FAILED,
    "Unsolved": Status.FAILED,
}


@dataclass(frozen=True)
class Clarabel(Ranked):
    """LP and QP; slower than PIQP, written by other people, so good to check it against.

    Attributes:
        time_limit: Seconds, or None.
        feasibility_tol: Largest residual of the rows and of the optimality conditions, relative.
        gap_tol: Largest duality gap, absolute and relative.
        threads: Threads, or None for Clarabel's own choice.
        verbose: Print the native log.
        native: Clarabel settings by their own names, for example ``{"max_iter": 500}``.
    """

    time_limit: float | None = None
    feasibility_tol: float = 1e-9
    gap_tol: float = 1e-9
    threads: int | None = None
    verbose: bool = False
    native: Mapping[str, Any] = field(default_factory=dict)

    name: ClassVar[str] = "clarabel"
    kinds: ClassVar[frozenset[Kind]] = frozenset({Kind.LP, Kind.QP})
    requires: ClassVar[tuple[str, ...]] = ("clarabel",)

    @staticmethod
    def memory(program: Program) -> float:
        """The rows and the Hessian three times in sparse storage, and the factors of a quasi-definite system."""
        return 3.0 * sparse_bytes(program) + 8.0 * program.n**2

    def solve(self, program: Program) -> Solution:
        """Translate, run, map the native status."""
        import clarabel

        settings = clarabel.DefaultSettings()
        for option, value in self._settings().items():
            setattr(settings, option, value)
        matrix, sides, signs, owners, equalities = _cone_form(program)
        cones = [clarabel.ZeroConeT(equalities), clarabel.NonnegativeConeT(len(sides) - equalities)]
        hessian = sparse_hessian(program)
        backend = clarabel.DefaultSolver(hessian, program.gradient, matrix, sides, cones, settings)
        result = backend.solve()
        native = str(result.status)
        status = STATUS.get(native, Status.FAILED)
        duals = np.zeros(program.m + program.n)
        np.add.at(duals, owners, signs * np.asarray(result.z))
        rows, bounds = duals[: program.m], duals[program.m :]
        if status is Status.INFEASIBLE:
            return Solution(status, message=native, ray=rows, iterations=result.iterations)
        if status not in (Status.OPTIMAL, Status.FEASIBLE):
            return Solution(status, message=native, iterations=result.iterations)
        found: Any = {"row_duals": rows, "bound_duals": bounds, "iterations": result.iterations}
        return Solution(status, delta=np.array(result.x), message=native, **found)

    def _settings(self) -> dict[str, Any]:
        return native_options(
            self.native,
            verbose=self.verbose,
            tol_feas=self.feasibility_tol,
            tol_gap_abs=self.gap_tol,
            tol_gap_rel=self.gap_tol,
            time_limit=seconds(self.time_limit),
            max_threads=self.threads,
        )


def _cone_form(program: Program) -> tuple[Any, Array, Array, Any, int]:
    """Rows and bounds as ``M x + s = b`` with s = 0 (equalities, first) or s >= 0.

    M as CSC, b, the sign of each line (-1 where it is a lower side), the row or ``m +`` variable that each line comes
    from, and the number of equalities.
    """
    from scipy import sparse

    low, high = program.bounds()
    lower, upper = np.concatenate([program.lower, low]), np.concatenate([program.upper, high])
    owners, signs, sides, equal = one_sided(lower, upper)
    lines = sparse.vstack([sparse_rows(program), sparse.identity(program.n, format="csr")], format="csr")[owners]
    return (sparse.diags(signs) @ lines).tocsc(), sides, signs, owners, equal
