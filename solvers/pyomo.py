"""Pyomo: a modeling layer that reaches every solver with a ``SolverFactory`` name.

License BSD-3-Clause, https://www.pyomo.org. All kinds, as far as the solver behind it takes them. Building a model
costs far more than most solves (19 s for 222 variables and 50,000 rows, measured): use it for solvers that repairopt
has no back end for, or to add to the model, by :func:`as_pyomo`. A missing executable ends as FAILED with the remedy.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator
from dataclasses import dataclass, field
from importlib.util import find_spec
from typing import Any

import numpy as np

from repairopt.program import Array, Kind, Program, Solution, Status, without_noise

from .back_end import TimedBackEnd, statuses, told_apart
from .highs_model import quiet_highs
from .matrices import finite_side, half_hessian, integer_mask, sparse_rows
from .scip import NOISE, axes_of, least_height, runs_away

# Every pyomo.opt.TerminationCondition. A limit with a feasible point in hand becomes FEASIBLE in solve().
STATUS = statuses(
    OPTIMAL="optimal globallyOptimal",
    FEASIBLE="feasible locallyOptimal",
    INFEASIBLE="infeasible",
    UNBOUNDED="unbounded",
    NO_POINT="maxTimeLimit maxIterations maxEvaluations minFunctionValue minStepLength noSolution userInterrupt "
    "resourceInterrupt intermediateNonInteger",
    FAILED="infeasibleOrUnbounded licensingProblems invalidProblem internalSolverError solverFailure error other "
    "unknown",
)
INTERRUPTS = ("userInterrupt", "resourceInterrupt")  # the second one is what it makes of Ctrl-C in SCIP
WITHOUT_DUALS = ("scip",)  # beginnings of names; Pyomo raises where it is asked for their duals
_HIGHS = ("primal_feasibility_tolerance", "dual_feasibility_tolerance", "mip_feasibility_tolerance")
TOLERANCES = {
    "appsi_highs": _HIGHS,
    "highs": _HIGHS,
    "scip_direct": ("numerics/feastol",),
    "gurobi_direct": ("FeasibilityTol", "OptimalityTol"),
}
QP_ITERATIONS = 100_000
GAPS = {
    "appsi_highs": "mip_rel_gap",
    "highs": "mip_rel_gap",
    "scip_direct": "limits/gap",
    "gurobi_direct": "MIPGap",
    "glpk": "mipgap",
    "cbc": "ratioGap",
}


@dataclass(frozen=True)
class Pyomo(TimedBackEnd):
    """Any solver that Pyomo reaches.

    Attributes:
        solver: Its ``SolverFactory`` name, for example ``"cbc"``; None for HiGHS (LP, MILP, and QP with free variables)
            or SCIP (QP, MIQP).
        time_limit: Seconds, or None; some solvers look at it rarely.
        feasibility_tol: Tolerance of HiGHS, SCIP and Gurobi; other solvers take theirs in ``native``.
        gap_tol: Relative gap at which a mixed-integer program counts as solved, for HiGHS, SCIP, Gurobi, GLPK and CBC.
        native: Options of the solver by its own names.
    """

    solver: str | None = None
    feasibility_tol: float = field(default=1e-8, kw_only=True)
    gap_tol: float = field(default=1e-6, kw_only=True)

    name = "pyomo"
    kinds = frozenset(Kind)
    requires = ("pyomo",)

    def solve(self, program: Program) -> Solution:
        """Translate, run, map the native status."""
        import pyomo.environ as pyo
        from pyomo.common.log import LoggingIntercept

        name = self.solver or _default(program)
        if "highs" in name and find_spec("highspy") is not None:
            quiet_highs()
        with LoggingIntercept(module="pyomo"):  # Pyomo logs a traceback where a solver is missing
            solver = pyo.SolverFactory(name)
            available = solver.available(exception_flag=False)
        if not available:
            text = f"Pyomo's solver {name} is not available here; install its executable or Python package, or choose"
            return Solution(Status.FAILED, message=f"{text} another: Pyomo(solver=...).", retry=False)
        model = as_pyomo(program)
        if program.integer is None and not name.startswith(WITHOUT_DUALS):
            model.dual = pyo.Suffix(direction=pyo.Suffix.IMPORT)
        if program.hessian is not None and name.startswith("scip"):
            _put_height(model, program)
        native, found, bound = "infeasibleOrUnbounded", False, float("nan")
        if not (name.startswith("scip") and runs_away(program, self.time_limit)):
            native, found, bound = self._run(solver, name, model, mixed=program.integer is not None)
        status = STATUS.get(native, Status.FAILED)
        if native == "infeasibleOrUnbounded":
            model.objective.set_value(0.0)
            status = told_apart(STATUS.get(self._run(solver, name, model, mixed=False)[0], Status.FAILED))
        if status is Status.NO_POINT and found and program.integer is not None:
            status = Status.FEASIBLE
        message, interrupted = f"{native} ({name})", native in INTERRUPTS
        if status not in (Status.OPTIMAL, Status.FEASIBLE):
            return Solution(status, message=message, interrupted=interrupted)
        delta = np.array([model.delta[j].value for j in range(program.n)], dtype=np.float64)
        rows, bounds = _duals(program, model, delta)
        told: dict[str, Any] = {"bound": bound, "message": message, "interrupted": interrupted}
        return Solution(status, delta=delta, row_duals=rows, bound_duals=bounds, **told)

    def _run(self, solver: Any, name: str, model: Any, *, mixed: bool) -> tuple[str, bool, float]:
        """The native status, whether there is a point, and the lower bound of a mixed-integer solve, or NaN."""
        options = dict.fromkeys(TOLERANCES.get(name, ()), self.feasibility_tol)
        options |= ({GAPS[name]: self.gap_tol} if mixed and name in GAPS else {}) | dict(self.native)
        if name == "highs":  # its QP solver may go round in circles
            options = {"qp_iteration_limit": QP_ITERATIONS} | options
        limit = {} if self.time_limit is None else {"timelimit": float(self.time_limit)}
        noise = without_noise(2, NOISE, wanted=name.startswith("scip") and not self.verbose)
        with noise, _without_closed_handlers():
            result = solver.solve(model, tee=self.verbose, load_solutions=False, options=options, **limit)
        found = len(result.solution) > 0 and str(result.solver.status) != "error"
        if found:
            result.solver.status = "ok"  # else Pyomo warns; what became of it is in the termination condition
            model.solutions.load_from(result)
        bound: Any = result.problem.lower_bound if mixed else None
        known = isinstance(bound, int | float) and np.isfinite(bound)
        return str(result.solver.termination_condition), found, float(bound) if known else float("nan")


@contextlib.contextmanager
def _without_closed_handlers() -> Iterator[None]:
    """Pyomo asks every handler of the logs for its file, which raises where somebody has closed that."""
    loggers = (logging.getLogger("pyomo"), logging.getLogger())
    closed = [(logger, one) for logger in loggers for one in logger.handlers if _is_closed(one)]
    for logger, one in closed:
        logger.removeHandler(one)
    try:
        yield
    finally:
        for logger, one in closed:
            logger.addHandler(one)


def _is_closed(handler: logging.Handler) -> bool:
    return bool(getattr(getattr(handler, "stream", None), "closed", False))


def as_pyomo(program: Program) -> Any:
    """The program as a Pyomo ``ConcreteModel``, to add to or to solve by other means.

    It has the variables ``delta[0]`` to ``delta[n - 1]``, the first ``program.n_delta`` of them the weight change, the
    constraints ``rows[i]`` (rows without sides left out), and ``objective``.
    """
    import pyomo.environ as pyo
    from pyomo.core.expr import LinearExpression

    mask = integer_mask(program)
    low, high = ([finite_side(side) for side in sides] for sides in program.bounds())
    model, rows = pyo.ConcreteModel(), sparse_rows(program)
    model.delta = pyo.Var(
        range(program.n),
        domain=lambda _, j: pyo.Integers if mask[j] else pyo.Reals,
        bounds=lambda _, j: (low[j], high[j]),
    )
    delta = list(model.delta.values())

    def row(_: Any, i: int) -> Any:
        part = slice(rows.indptr[i], rows.indptr[i + 1])
        coefficients, chosen = rows.data[part].tolist(), [delta[j] for j in rows.indices[part]]
        if not chosen:  # Pyomo refuses rows without variables
            coefficients, chosen = [0.0], delta[:1]
        left = LinearExpression(constant=0.0, linear_coefs=coefficients, linear_vars=chosen)
        lower, upper = program.lower[i], program.upper[i]
        return (left, float(upper)) if lower == upper else (finite_side(lower), left, finite_side(upper))

    kept = np.flatnonzero(np.isfinite(program.lower) | np.isfinite(program.upper))
    model.rows = pyo.Constraint(kept.tolist(), rule=row)
    objective = LinearExpression(constant=program.constant, linear_coefs=program.gradient.tolist(), linear_vars=delta)
    if program.hessian is not None:
        half = half_hessian(program).tocoo()
        entries = zip(half.row, half.col, half.data.tolist(), strict=True)
        objective = objective + pyo.quicksum(value * delta[i] * delta[j] for i, j, value in entries)
    model.objective = pyo.Objective(expr=objective, sense=pyo.minimize)
    return model


def _put_height(model: Any, program: Program) -> None:
    """Replace a quadratic objective by the height of a point above it, which is bounded below, as SCIP itself gets it.

    Left to its own height without a bound, SCIP branches over free variables and looks at no time limit (measured: 10
    s asked on four variables, and no answer after 45).
    """
    import pyomo.environ as pyo
    from pyomo.core.expr import LinearExpression

    def weighted(numbers: Array, variables: list[Any]) -> Any:
        return LinearExpression(constant=0.0, linear_coefs=numbers.tolist(), linear_vars=variables)

    found, floor, delta = axes_of(program), least_height(program), list(model.delta.values())
    scale, height = 1.0, model.objective.expr - program.constant
    if found is not None:
        curved, curvature, axes, scale = found
        model.places = pyo.Var(range(len(curvature)))
        moved = [delta[j] for j in curved]
        model.axes = pyo.Constraint(
            model.places.index_set(), rule=lambda model, k: weighted(axes[:, k], moved) == model.places[k]
        )
        squares = (value * model.places[k] ** 2 for k, value in enumerate((curvature / 2 / scale).tolist()))
        height = weighted(program.gradient / scale, delta) + pyo.quicksum(squares)
    model.height = pyo.Var(bounds=(None if floor is None else floor / scale, None))
    model.above = pyo.Constraint(expr=height <= model.height)
    model.objective.set_value(scale * model.height + program.constant)


def _default(program: Program) -> str:
    if program.hessian is None:
        return "appsi_highs"
    free = not np.all(np.isfinite(program.bounds()))
    return "highs" if free and program.integer is None else "scip_direct"  # SCIP may search on over free variables


def _duals(program: Program, model: Any, delta: Array) -> tuple[Array | None, Array | None]:
    """Pyomo's duals are slopes of the optimum in the sides: the other sign than ours.

    The multipliers of the bounds are what is left of the gradient; Pyomo loses those of newer solvers.
    """
    duals = getattr(model, "dual", {})
    if program.integer is not None or any(row not in duals for row in model.rows.values()):
        return None, None
    rows = np.zeros(program.m)
    for i, row in model.rows.items():
        rows[i] = -duals[row]
    slope = program.gradient + program.matrix.T @ rows
    return rows, -(slope if program.hessian is None else slope + program.hessian @ delta)
