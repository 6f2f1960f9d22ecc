"""SCIP: branch, cut and price for mixed-integer and nonconvex programs, to proven optimality.

License Apache-2.0 (SCIP and its Python interface are so since version 8), https://scipopt.org. All kinds, nonconvex
Hessians included; the only open-source one that measured right on MIQPs. Continuous convex programs are for
cross-checks: DAQP and PIQP are far faster there, and SCIP returns no duals.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar

import numpy as np

from repairopt.program import Array, Kind, Program, Solution, Status

from .back_end import Ranked, native_options, seconds
from .matrices import sparse_bytes, sparse_hessian, sparse_rows

# Every SCIP status. A limit with a feasible point in hand becomes FEASIBLE in solve().
STATUS = {
    "optimal": Status.OPTIMAL,
    "gaplimit": Status.OPTIMAL,  # the gap fell below gap_tol
    "infeasible": Status.INFEASIBLE,
    "unbounded": Status.UNBOUNDED,
    "inforunbd": Status.FAILED,  # told apart by a second run without objective
    "timelimit": Status.NO_POINT,
    "nodelimit": Status.NO_POINT,
    "totalnodelimit": Status.NO_POINT,
    "stallnodelimit": Status.NO_POINT,
    "memlimit": Status.NO_POINT,
    "primallimit": Status.NO_POINT,
    "duallimit": Status.NO_POINT,
    "sollimit": Status.NO_POINT,
    "bestsollimit": Status.NO_POINT,
    "restartlimit": Status.NO_POINT,
    "userinterrupt": Status.NO_POINT,
    "terminate": Status.NO_POINT,
    "unknown": Status.FAILED,
}


@dataclass(frozen=True)
class SCIP(Ranked):
    """MIQP, MILP and nonconvex QP with a proven bound; the default for MIQPs.

    Attributes:
        time_limit: Seconds, or None.
        node_limit: Nodes of the search tree, or None.
        feasibility_tol: Largest violation of rows, bounds and integrality that SCIP accepts.
        gap_tol: Relative gap at which a program counts as solved.
        start: A point to start from, ``(n,)``, or None; one that is not feasible is ignored.
        threads: Number of solver instances that race each other; None or 1 for one, which is reproducible.
        verbose: Print the native log.
        native: SCIP parameters by their own names, for example ``{"limits/memory": 4096}``.
    """

    time_limit: float | None = None
    node_limit: int | None = None
    feasibility_tol: float = 1e-8
    gap_tol: float = 1e-6
    start: Array | None = None
    threads: int | None = None
    verbose: bool = False
    native: Mapping[str, Any] = field(default_factory=dict)

    name: ClassVar[str] = "scip"
    kinds: ClassVar[frozenset[Kind]] = frozenset(Kind)
    requires: ClassVar[tuple[str, ...]] = ("pyscipopt",)
    nonconvex: ClassVar[bool] = True

    @staticmethod
    def memory(program: Program) -> float:
        """A hundred bytes for each entry: expressions on the way, constraints inside."""
        return 9.0 * sparse_bytes(program)

    def solve(self, program: Program) -> Solution:
        """Translate, run, map the native status."""
        if program.integer is not None and not np.all(np.isfinite(program.bounds())):
            # SCIP runs on and on where a mixed-integer program is unbounded. Then, and only then, for numbers that are
            # fractions, is the relaxation unbounded too, unless no point is feasible (Meyer 1974).
            relaxed, _ = self._run(replace(program, integer=None), start=False)
            if relaxed.getStatus() in ("unbounded", "inforunbd"):
                return Solution(self._without_objective(program), message=f"{relaxed.getStatus()} relaxation")
        model, variables = self._run(program)
        native, nodes = model.getStatus(), int(model.getNTotalNodes())
        status = self._without_objective(program) if native == "inforunbd" else STATUS.get(native, Status.FAILED)
        if status is Status.NO_POINT and model.getNSols() > 0:
            status = Status.FEASIBLE
        interrupted = native in ("userinterrupt", "terminate")
        if status not in (Status.OPTIMAL, Status.FEASIBLE):
            return Solution(status, message=native, iterations=nodes, interrupted=interrupted)
        best, bound = model.getBestSol(), float(model.getDualbound())
        bounded = abs(bound) < model.infinity()
        return Solution(
            status,
            delta=np.array([model.getSolVal(best, variable) for variable in variables]),
            bound=bound if bounded else float("nan"),
            message=_with_gap(native, 100 * model.getGap() if bounded else np.inf, status),
            iterations=nodes,
            interrupted=interrupted,
        )

    def _without_objective(self, program: Program) -> Status:
        """Tells unbounded, where there is a point, from infeasible."""
        model, _ = self._run(program, objective=False, start=False)
        return Status.UNBOUNDED if model.getNSols() > 0 else STATUS.get(model.getStatus(), Status.FAILED)

    def _run(self, program: Program, *, objective: bool = True, start: bool = True) -> tuple[Any, list[Any]]:
        from pyscipopt import Model

        model = Model()
        model.hideOutput(not self.verbose)
        model.setParams(self._parameters())
        variables = _variables(model, program)
        _add_rows(model, program, variables)
        height = _add_objective(model, program, variables) if objective else None
        if start and self.start is not None:
            _add_start(model, program, self.start, variables, height)
        if self.threads is not None and self.threads > 1:
            model.solveConcurrent()
        else:
            model.optimize()
        return model, variables

    def _parameters(self) -> dict[str, Any]:
        parameters = {
            "numerics/feastol": self.feasibility_tol,
            "numerics/dualfeastol": self.feasibility_tol,
            "limits/gap": self.gap_tol,
            "limits/time": seconds(self.time_limit),
            "limits/totalnodes": self.node_limit,
            "parallel/maxnthreads": self.threads,
        }
        return native_options(self.native, **parameters)


def _variables(model: Any, program: Program) -> list[Any]:
    mask = np.zeros(program.n, dtype=bool) if program.integer is None else program.integer
    sides = zip(*program.bounds(), mask, strict=True)
    return [model.addVar(lb=_side(low), ub=_side(high), vtype="I" if whole else "C") for low, high, whole in sides]


def _add_rows(model: Any, program: Program, variables: list[Any]) -> None:
    from pyscipopt.scip import Expr, ExprCons, Term

    rows, terms = sparse_rows(program), [Term(variable) for variable in variables]
    for i, (lower, upper) in enumerate(zip(program.lower, program.upper, strict=True)):
        part = slice(rows.indptr[i], rows.indptr[i + 1])
        coefficients = zip(rows.indices[part], rows.data[part].tolist(), strict=True)
        row = Expr({terms[j]: value for j, value in coefficients})
        if np.isfinite(lower) or np.isfinite(upper):
            model.addCons(ExprCons(row, lhs=_side(lower), rhs=_side(upper)))


def _add_start(model: Any, program: Program, point: Array, variables: list[Any], height: Any) -> None:
    """Hand SCIP a point; what stands for the quadratic part of the objective gets its value there, rounded up."""
    solution = model.createSol()
    whole = np.zeros(program.n, dtype=bool) if program.integer is None else program.integer
    for variable, value in zip(variables, np.where(whole, np.round(point), point).tolist(), strict=True):
        model.setSolVal(solution, variable, value)
    if height is not None:
        value = program.objective(point) - program.constant
        model.setSolVal(solution, height, value + 1e-9 * (1.0 + abs(value)))
    model.addSol(solution)


def _add_objective(model: Any, program: Program, variables: list[Any]) -> Any:
    """SCIP takes linear objectives only: the height of a point above the paraboloid stands for a quadratic one.

    Returns the variable of the height, or None.
    """
    from pyscipopt.scip import Expr, ExprCons, Term

    terms = {Term(variable): float(g) for variable, g in zip(variables, program.gradient, strict=True)}
    variable = None
    if program.hessian is not None:
        variable = model.addVar(lb=_floor(program), ub=None)
        height, upper = Term(variable), sparse_hessian(program).tocoo()
        values = np.where(upper.row == upper.col, 0.5, 1.0) * upper.data
        for i, j, value in zip(upper.row, upper.col, values.tolist(), strict=True):
            terms[Term(variables[i], variables[j])] = value
        model.addCons(ExprCons(Expr(terms | {height: -1.0}), lhs=None, rhs=0.0))
        terms = {height: 1.0}
    model.setObjective(Expr(terms), "minimize")
    model.addObjoffset(program.constant)
    return variable


def _floor(program: Program) -> float | None:
    """Smallest value of the objective without rows and bounds; SCIP branches on and on over free variables else."""
    if np.all(np.isfinite(program.bounds())):
        return None
    curvature, axes = np.linalg.eigh(program.dense_hessian())
    slope, tiny = axes.T @ program.gradient, 1e-9 * float(np.abs(curvature).max())
    curved = curvature > tiny
    if curvature[0] < -tiny or np.any(np.abs(slope[~curved]) > 1e-9 * np.abs(slope).max(initial=0.0)):
        return None
    least = -0.5 * float(np.sum(slope[curved] ** 2 / curvature[curved]))
    return least - 1e-6 * (1 + abs(least))


def _with_gap(native: str, percent: float, status: Status) -> str:
    if status is Status.OPTIMAL:
        return native
    return f"{native}, gap {percent:.3g} %" if percent < 1e6 else f"{native}, gap unknown"


def _side(value: float) -> float | None:
    return float(value) if np.isfinite(value) else None
