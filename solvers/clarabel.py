"""Clarabel: interior point for conic programs, used here for linear and quadratic ones.

Licence Apache-2.0, https://clarabel.org. Kinds LP and QP; an independent cross-check, and Farkas rays for programs
without a solution.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from repairopt.program import Kind, Program, Solution, Status

from .back_end import TimedBackEnd, seconds, set_options, statuses
from .matrices import by_owner, one_sided_lines, sparse_bytes, sparse_hessian

# Every clarabel.SolverStatus. "Almost" means a thousand times looser tolerances: no proof, so never OPTIMAL.
STATUS = statuses(
    OPTIMAL="Solved",
    FEASIBLE="AlmostSolved",
    INFEASIBLE="PrimalInfeasible",
    UNBOUNDED="DualInfeasible",
    NO_POINT="MaxIterations MaxTime CallbackTerminated",
    FAILED="AlmostPrimalInfeasible AlmostDualInfeasible NumericalError InsufficientProgress Unsolved",
)


@dataclass(frozen=True)
class Clarabel(TimedBackEnd):
    """LP and QP; slower than PIQP, written by other people, so good to check it against.

    Attributes:
        feasibility_tol: Largest residual of the rows and of the optimality conditions, relative.
        gap_tol: Largest duality gap, absolute and relative.
        threads: Threads, or None for Clarabel's own choice.
        native: Clarabel settings by their own names, for example ``{"max_iter": 500}``.
    """

    gap_tol: float = 1e-9
    threads: int | None = None

    name = "clarabel"
    kinds = frozenset({Kind.LP, Kind.QP})
    requires = ("clarabel",)

    @staticmethod
    def memory(program: Program) -> float:
        """The rows and the Hessian three times in sparse storage, and the factors of a quasi-definite system."""
        return 3.0 * sparse_bytes(program) + 8.0 * program.n**2

    def solve(self, program: Program) -> Solution:
        """Translate, run, map the native status."""
        import clarabel

        settings = set_options(
            clarabel.DefaultSettings(),
            self.native,
            verbose=self.verbose,
            tol_feas=self.feasibility_tol,
            tol_gap_abs=self.gap_tol,
            tol_gap_rel=self.gap_tol,
            time_limit=seconds(self.time_limit),
            max_threads=self.threads,
        )
        lines, owners, signs, sides, equal = one_sided_lines(program, bounds=True)
        cones = [clarabel.ZeroConeT(equal), clarabel.NonnegativeConeT(len(sides) - equal)]
        data = (sparse_hessian(program), program.gradient, lines.tocsc(), sides, cones)
        result = clarabel.DefaultSolver(*data, settings).solve()
        native = str(result.status)
        status = STATUS.get(native, Status.FAILED)
        duals = by_owner(signs * np.asarray(result.z), owners, program.m + program.n)
        rows, bounds = duals[: program.m], duals[program.m :]
        if status is Status.INFEASIBLE:
            return Solution(status, message=native, ray=rows, iterations=result.iterations)
        if status not in (Status.OPTIMAL, Status.FEASIBLE):
            return Solution(status, message=native, iterations=result.iterations)
        found: Any = {"row_duals": rows, "bound_duals": bounds, "iterations": result.iterations}
        return Solution(status, delta=np.array(result.x), message=native, **found)
