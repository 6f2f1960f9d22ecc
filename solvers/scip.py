"""SCIP: branch, cut and price for mixed-integer and nonconvex programs, to proven optimality.

License Apache-2.0 (SCIP and its Python interface are so since version 8), https://scipopt.org. All kinds, nonconvex
Hessians included; the only open-source one that measured right on MIQPs. Continuous convex programs are for
cross-checks: DAQP and PIQP are far faster there, and SCIP returns no duals.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any, ClassVar

import numpy as np

from repairopt.program import Array, Kind, Program, Solution, Status, recession_ray, without_noise

from .back_end import TimedBackEnd, native_options, seconds, statuses, with_gap
from .matrices import finite_side, half_hessian, integer_mask, sparse_bytes, sparse_rows

# Every SCIP status. A limit with a feasible point in hand becomes FEASIBLE in solve().
STATUS = statuses(
    OPTIMAL="optimal gaplimit",  # the gap fell below gap_tol
    INFEASIBLE="infeasible",
    UNBOUNDED="unbounded",
    NO_POINT="timelimit nodelimit totalnodelimit stallnodelimit memlimit primallimit duallimit sollimit bestsollimit "
    "restartlimit userinterrupt terminate",
    FAILED="inforunbd unknown",
)
DENSE, PRODUCTS = 0.3, 100  # share of entries, and their number, above which a convex Hessian is given by its axes
FLAT = 1e-13  # curvature over the largest one, up to which an axis has none
NEARLY_FLAT = 1e-9  # the same, below which SCIP may take products for nonconvex
SMALL = 500  # variables with curvature, up to which such axes are looked for
NOISE = tuple(
    f"Cannot set {kind} tolerance" for kind in ("feasibility", "optimality")
)  # its simplex method, up to a million times a solve


@dataclass(frozen=True)
class SCIP(TimedBackEnd):
    """MIQP, MILP and nonconvex QP with a proven bound; the default for MIQPs.

    Attributes:
        node_limit: Nodes of the search tree, or None.
        feasibility_tol: Largest violation of rows, bounds and integrality that SCIP accepts.
        gap_tol: Relative gap at which a program counts as solved.
        start: A point to start from, ``(n,)``, or None; one that is not feasible is ignored.
        threads: Number of solver instances that race each other; None or 1 for one, which is reproducible.
        native: SCIP parameters by their own names, for example ``{"limits/memory": 4096}``.
    """

    node_limit: int | None = None
    feasibility_tol: float = field(default=1e-8, kw_only=True)
    gap_tol: float = 1e-6
    start: Array | None = None
    threads: int | None = None

    name = "scip"
    kinds = frozenset(Kind)
    requires = ("pyscipopt",)
    nonconvex: ClassVar[bool] = True

    @staticmethod
    def memory(program: Program) -> float:
        """A hundred bytes for each entry: expressions on the way, constraints inside."""
        return 9.0 * sparse_bytes(program)

    def solve(self, program: Program) -> Solution:
        """Translate, run, map the native status."""
        if runs_away(program, self.time_limit):
            return Solution(self._without_objective(program), message="an unbounded relaxation")
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
            message=with_gap(native, 100 * model.getGap() if bounded else np.inf, status),
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
        added = _add_objective(model, program, variables) if objective else _Objective()
        if start and self.start is not None:
            _add_start(model, program, self.start, variables, added)
        with without_noise(2, NOISE, wanted=not self.verbose):
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


def runs_away(program: Program, time_limit: float | None) -> bool:
    """Whether the relaxation of an integer or quadratic program is unbounded, unless no point is feasible.

    SCIP would run on and on, or call a point optimal.
    """
    linear = program.hessian is None and program.integer is None
    return not linear and recession_ray(program, time_limit=time_limit) is not None


def _variables(model: Any, program: Program) -> list[Any]:
    sides = zip(*program.bounds(), integer_mask(program), strict=True)
    return [
        model.addVar(lb=finite_side(low), ub=finite_side(high), vtype="I" if whole else "C")
        for low, high, whole in sides
    ]


def _add_rows(model: Any, program: Program, variables: list[Any]) -> None:
    from pyscipopt.scip import Expr, ExprCons, Term

    rows, terms = sparse_rows(program), [Term(variable) for variable in variables]
    for i, (lower, upper) in enumerate(zip(program.lower, program.upper, strict=True)):
        part = slice(rows.indptr[i], rows.indptr[i + 1])
        coefficients = zip(rows.indices[part], rows.data[part].tolist(), strict=True)
        row = Expr({terms[j]: value for j, value in coefficients})
        if np.isfinite(lower) or np.isfinite(upper):
            model.addCons(ExprCons(row, lhs=finite_side(lower), rhs=finite_side(upper)))


@dataclass(frozen=True, eq=False)
class _Objective:
    """What stands for a quadratic objective: the height of a point above it, and where it lies on the axes, if given.

    Attributes:
        height: A variable, or None.
        places: A variable for each axis; none where the Hessian is given by products.
        axes: Columns ``(k, r)``, those with curvature.
        curved: Numbers ``(k,)`` of the variables that the axes speak of.
        scale: Of the objective over the height: SCIP's tolerances are absolute, and large curvatures would break them.
    """

    height: Any = None
    places: tuple[Any, ...] = ()
    axes: Array | None = None
    curved: Any = None
    scale: float = 1.0


def _add_start(model: Any, program: Program, point: Array, variables: list[Any], added: _Objective) -> None:
    """Hand SCIP a point; what stands for the quadratic part of the objective gets its value there, rounded up."""
    solution = model.createSol()
    point = np.where(integer_mask(program), np.round(point), point)
    for variable, value in zip(variables, point, strict=True):
        model.setSolVal(solution, variable, float(value))
    if added.axes is not None:
        for variable, value in zip(added.places, added.axes.T @ point[added.curved], strict=True):
            model.setSolVal(solution, variable, float(value))
    if added.height is not None:
        value = program.objective(point) - program.constant
        model.setSolVal(solution, added.height, (value + 1e-9 * (1.0 + abs(value))) / added.scale)
    model.addSol(solution)


def _add_objective(model: Any, program: Program, variables: list[Any]) -> _Objective:
    """SCIP takes linear objectives only: the height of a point above the paraboloid stands for a quadratic one.

    A dense convex Hessian is given by its axes, as a sum of squares of new variables, whose tangents SCIP takes one by
    one (measured: 12 to 140 weights, 6 to 10 of them integers, 0.3 to 1 CPU-s to the optimum where products took 1 or
    were left at a gap; and with 1,100 weights products are looked at for 14 CPU-s whatever the time limit). So is one
    without curvature along some axis, where not all variables are bounded: SCIP takes its products for nonconvex, by
    rounding, and branches without end.
    """
    from pyscipopt.scip import Expr, ExprCons, Term

    terms = {Term(variable): float(g) for variable, g in zip(variables, program.gradient, strict=True)}
    added = _Objective()
    if program.hessian is not None:
        half, found = half_hessian(program).tocoo(), axes_of(program)
        if found is not None:
            curved, curvature, axes, scale = found
            places = _add_axes(model, axes, [variables[j] for j in curved])
            added = _Objective(None, places, axes, curved, scale)
            terms = {term: value / scale for term, value in terms.items()}
            squares = zip(places, (curvature / 2 / scale).tolist(), strict=True)
            terms |= {Term(place, place): value for place, value in squares}
        floor = least_height(program)
        added = replace(added, height=model.addVar(lb=None if floor is None else floor / added.scale, ub=None))
        if added.axes is None:
            for i, j, value in zip(half.row, half.col, half.data.tolist(), strict=True):
                terms[Term(variables[i], variables[j])] = value
        model.addCons(ExprCons(Expr(terms | {Term(added.height): -1.0}), lhs=None, rhs=0.0))
        terms = {Term(added.height): added.scale}
    model.setObjective(Expr(terms), "minimize")
    model.addObjoffset(program.constant)
    return added


def axes_of(program: Program) -> tuple[Any, Array, Array, float] | None:
    """How a convex Hessian that SCIP should not see as products is given by its axes; None where products will do.

    Numbers ``(k,)`` of the variables with curvature, curvatures ``(r,)``, axes as columns ``(k, r)``, and what the
    objective is divided by.
    """
    half = half_hessian(program).tocoo()
    curved = np.unique(np.concatenate([half.row, half.col]))  # binary variables of a formulation are not
    dense = half.nnz > max(PRODUCTS, DENSE * len(curved) * (len(curved) + 1) / 2)
    endless = half.nnz > len(curved) and len(curved) <= SMALL and not np.all(np.isfinite(program.bounds()))
    if not dense and not endless:
        return None
    curvature, axes = np.linalg.eigh(program.dense_hessian()[np.ix_(curved, curved)])
    most = float(np.abs(curvature).max(initial=0.0))
    least = FLAT * most
    dense |= endless and curvature[0] < NEARLY_FLAT * most
    if not dense or curvature[0] < -least or curvature[-1] <= 0:
        return None
    wanted = curvature > least
    return curved, curvature[wanted], axes[:, wanted], max(1.0, 2.0 ** round(np.log2(curvature[-1])))


def _add_axes(model: Any, axes: Array, variables: list[Any]) -> tuple[Any, ...]:
    """Variables for where a point lies on some axes, columns ``(k, r)``, of ``k`` variables."""
    from pyscipopt.scip import Expr, ExprCons, Term

    terms, places = [Term(variable) for variable in variables], []
    for axis in axes.T:
        places.append(model.addVar(lb=None, ub=None))
        row = Expr(dict(zip(terms, axis.tolist(), strict=True)) | {Term(places[-1]): -1.0})
        model.addCons(ExprCons(row, lhs=0.0, rhs=0.0))
    return tuple(places)


def least_height(program: Program) -> float | None:
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
