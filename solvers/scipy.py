"""SciPy: ``linprog`` and ``milp``, which run the HiGHS that SciPy brings along.

License BSD-3-Clause, https://docs.scipy.org/doc/scipy/reference/optimize.html. Kinds LP and MILP. Always there, since
repairopt needs SciPy anyway: the fallback where ``highspy`` cannot be imported. No rays, and no tolerances for MILPs.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

import numpy as np

from repairopt.program import Array, Kind, Program, Solution, Status

from .back_end import Ranked, native_options, seconds
from .matrices import one_sided, sparse_bytes, sparse_rows

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
class SciPy(Ranked):
    """LP and MILP without any further library.

    Attributes:
        time_limit: Seconds, or None.
        feasibility_tol: Largest residual of rows and optimality conditions of an LP, 1e-10 at least; ``milp`` has none.
        gap_tol: Relative gap at which a mixed-integer program counts as solved.
        verbose: Print the native log.
        native: Options of ``linprog(method="highs")`` or ``milp`` by their own names, for example
            ``{"node_limit": 100}``.
    """

    time_limit: float | None = None
    feasibility_tol: float = 1e-9
    gap_tol: float = 1e-6
    verbose: bool = False
    native: Mapping[str, Any] = field(default_factory=dict)

    name: ClassVar[str] = "scipy"
    kinds: ClassVar[frozenset[Kind]] = frozenset({Kind.LP, Kind.MILP})
    requires: ClassVar[tuple[str, ...]] = ("scipy",)

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
        outcomes = {Status.OPTIMAL: Status.UNBOUNDED, Status.INFEASIBLE: Status.INFEASIBLE}
        return Solution(outcomes.get(without.status, Status.FAILED), message=str(result.message))

    def _linprog(self, program: Program, gradient: Array) -> tuple[Any, Solution]:
        from scipy import sparse
        from scipy.optimize import linprog

        owners, signs, sides, equal = one_sided(program.lower, program.upper)
        lines = sparse.csr_matrix(sparse.diags(signs) @ sparse_rows(program)[owners])
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
        duals = np.zeros(program.m)  # marginals are slopes of the optimum in the sides: the other sign than ours
        np.subtract.at(duals, owners, signs * np.concatenate([result.eqlin.marginals, result.ineqlin.marginals]))
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
