"""SciPy: ``linprog`` and ``milp``, which run the HiGHS that SciPy brings along.

License BSD-3-Clause, https://docs.scipy.org/doc/scipy/reference/optimize.html. Kinds LP and MILP. Always there, since
repairopt needs SciPy anyway: the fallback where ``highspy`` cannot be imported. No rays, and no tolerances for MILPs.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from repairopt.program import Array, Kind, Program, Solution, Status

from .back_end import TimedBackEnd, native_options, seconds, told_apart
from .matrices import by_owner, one_sided_lines, sparse_bytes, sparse_rows

# Every status of scipy.optimize.linprog and milp. A limit with a feasible point in hand becomes FEASIBLE in solve().
STATUS = {
    0: Status.OPTIMAL,
    1: Status.NO_POINT,  # iteration, node or time limit
    2: Status.INFEASIBLE,
    3: Status.UNBOUNDED,
    4: Status.FAILED,  # numerical trouble, or infeasible or unbounded: told apart by a second run without objective
}
TROUBLE = 4


@dataclass(frozen=True)
class SciPy(TimedBackEnd):
    """LP and MILP without any further library.

    Attributes:
        feasibility_tol: Largest residual of rows and optimality conditions of an LP, 1e-10 at least; ``milp`` has none.
        gap_tol: Relative gap at which a mixed-integer program counts as solved.
        native: Options of ``linprog(method="highs")`` or ``milp`` by their own names, for example
            ``{"node_limit": 100}``.
    """

    gap_tol: float = 1e-6

    name = "scipy"
    kinds = frozenset({Kind.LP, Kind.MILP})
    requires = ("scipy",)

    @staticmethod
    def memory(program: Program) -> float:
        """The matrix four times."""
        return 4.0 * sparse_bytes(program)

    def solve(self, program: Program) -> Solution:
        """Translate, run, map the native status."""
        run = self._linprog if program.integer is None else self._milp
        result, solution = run(program, program.gradient)
        if result.status != TROUBLE:
            return solution
        _, without = run(program, np.zeros(program.n))
        return Solution(told_apart(without.status), message=str(result.message))

    def _linprog(self, program: Program, gradient: Array) -> tuple[Any, Solution]:
        from scipy.optimize import linprog

        lines, owners, signs, sides, equal = one_sided_lines(program)
        tolerances = dict.fromkeys(("primal_feasibility_tolerance", "dual_feasibility_tolerance"), self.feasibility_tol)
        result = linprog(
            gradient,
            A_ub=lines[equal:],
            b_ub=sides[equal:],
            A_eq=lines[:equal],
            b_eq=sides[:equal],
            bounds=np.column_stack(program.bounds()),
            method="highs",
            options=self._options(**tolerances),
        )
        if result.status != 0:
            return result, _answer(result)
        slopes = np.concatenate([result.eqlin.marginals, result.ineqlin.marginals])  # of the other sign than ours
        duals = by_owner(-signs * slopes, owners, program.m)
        bound_duals = -(np.asarray(result.lower.marginals) + np.asarray(result.upper.marginals))
        return result, _answer(result, row_duals=duals, bound_duals=bound_duals, iterations=int(result.nit))

    def _milp(self, program: Program, gradient: Array) -> tuple[Any, Solution]:
        from scipy.optimize import Bounds, LinearConstraint, milp

        assert program.integer is not None
        rows = LinearConstraint(sparse_rows(program), program.lower, program.upper)
        result = milp(
            gradient,
            integrality=program.integer.astype(np.int64),
            bounds=Bounds(*program.bounds()),
            constraints=rows if program.m else None,
            options=self._options(mip_rel_gap=self.gap_tol),
        )
        bound = result.get("mip_dual_bound")
        known = bound is not None and np.isfinite(bound)
        return result, _answer(result, bound=float(bound) + program.constant if known else float("nan"))

    def _options(self, **more: Any) -> dict[str, Any]:
        return native_options(self.native, disp=self.verbose, time_limit=seconds(self.time_limit), **more)


def _answer(result: Any, **more: Any) -> Solution:
    status = STATUS.get(result.status, Status.FAILED)
    if status is Status.NO_POINT and result.x is not None:
        status = Status.FEASIBLE
    if status not in (Status.OPTIMAL, Status.FEASIBLE):
        return Solution(status, message=str(result.message))
    return Solution(status, delta=np.array(result.x), message=str(result.message), **more)
