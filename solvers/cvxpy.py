"""CVXPY: a modeling layer that reaches every solver it has, and takes further constraints as expressions.

License Apache-2.0, https://www.cvxpy.org. All kinds, as far as the solver behind it takes them. The layer costs some
10 ms on small programs, and on large ones more time and memory than the solve: use it for solvers that repairopt has no
back end for, or for constraints that are no rows, by ``extra`` or :func:`as_cvxpy`.
"""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from repairopt.errors import UnsupportedError
from repairopt.program import Kind, Program, Solution, Status, without_noise

from .back_end import Session, TimedBackEnd, statuses, told_apart
from .highs_model import quiet_highs
from .matrices import integer_mask, sparse_rows
from .same_rows import same_hessian
from .scip import NOISE, runs_away

# Every status of cvxpy. "Inaccurate" means looser tolerances: no proof, so never OPTIMAL, INFEASIBLE or UNBOUNDED.
STATUS = statuses(
    OPTIMAL="optimal",
    FEASIBLE="optimal_inaccurate",
    INFEASIBLE="infeasible",
    UNBOUNDED="unbounded",
    NO_POINT="user_limit",
    FAILED="infeasible_inaccurate unbounded_inaccurate infeasible_or_unbounded solver_error",
)
DEFAULT = {Kind.LP: "CLARABEL", Kind.QP: "CLARABEL", Kind.MILP: "HIGHS", Kind.MIQP: "SCIP"}
INSTALL = {"SCIP": "pyscipopt", "HIGHS": "highspy", "CLARABEL": "clarabel"}
# How the solvers behind CVXPY call the time limit and the tolerances; "a.b" is option b within option a.
TIME_LIMIT = {
    "CLARABEL": "time_limit",
    "OSQP": "time_limit",
    "HIGHS": "time_limit",
    "SCS": "time_limit_secs",
    "SCIP": "scip_params.limits/time",
    "GUROBI": "TimeLimit",
}
TOLERANCES = {
    "CLARABEL": ("tol_feas", "tol_gap_abs", "tol_gap_rel"),
    "OSQP": ("eps_abs", "eps_rel"),
    "HIGHS": ("primal_feasibility_tolerance", "dual_feasibility_tolerance", "mip_feasibility_tolerance"),
    "SCS": ("eps_abs", "eps_rel"),
    "SCIP": ("scip_params.numerics/feastol",),
    "GUROBI": ("FeasibilityTol", "OptimalityTol"),
}
GAPS = {
    "HIGHS": "mip_rel_gap",
    "SCIP": "scip_params.limits/gap",
    "SCIPY": "scipy_options.mip_rel_gap",
    "GUROBI": "MIPGap",
}


@dataclass(frozen=True)
class CVXPY(TimedBackEnd):
    """Any solver that CVXPY has.

    Attributes:
        solver: Its name in CVXPY, for example ``"SCS"``; None for Clarabel (LP, QP), HiGHS (MILP), SCIP (MIQP).
        extra: Function from the weight change, a CVXPY expression ``(n,)``, to further constraints on it.
        time_limit: Seconds, or None. Obeyed by CLARABEL, OSQP, HIGHS, SCS, SCIP and GUROBI; others take theirs in
            ``native``.
        feasibility_tol: Tolerance of the same solvers; None for 1e-9, or 1e-8 in SCIP.
        gap_tol: Relative gap at which a mixed-integer program counts as solved, for HIGHS, SCIP, SCIPY and GUROBI.
        native: Keyword arguments of ``cvxpy.Problem.solve``, the solver's own options among them.
    """

    solver: str | None = None
    extra: Callable[[Any], list[Any]] | None = None
    feasibility_tol: float | None = field(default=None, kw_only=True)  # type: ignore[assignment]
    gap_tol: float = field(default=1e-6, kw_only=True)

    name = "cvxpy"
    kinds = frozenset(Kind)
    requires = ("cvxpy",)

    def session(self) -> _Session:
        """A twin that keeps its problem: where gradient and sides alone change, CVXPY skips the translation."""
        return _Session(self)

    def solve(self, program: Program) -> Solution:
        """Translate, run, map the native status."""
        return self._finish(program, *self._translated(program))

    def _translated(self, program: Program) -> tuple[Any, Any]:
        import cvxpy

        solver, installed = self.solver or DEFAULT[program.kind], cvxpy.installed_solvers()
        if solver not in installed:
            raise UnsupportedError(
                f"CVXPY's solver {solver} for a {program.kind} is not installed. CVXPY has: {', '.join(installed)}. "
                f"Try: pip install {INSTALL.get(solver, solver.lower())}."
            )
        problem, delta = as_cvxpy(program)
        if self.extra is not None:
            change = delta if program.n_delta == program.n else delta[: program.n_delta]
            problem = cvxpy.Problem(problem.objective, problem.constraints + list(self.extra(change)))
        return problem, delta

    def _finish(self, program: Program, problem: Any, delta: Any) -> Solution:
        import cvxpy

        solver = self.solver or DEFAULT[program.kind]
        if solver == "HIGHS":
            quiet_highs()
        away = solver == "SCIP" and self.extra is None and runs_away(program, self.time_limit)
        native = "infeasible_or_unbounded" if away else self._run(cvxpy, problem, solver)
        status = STATUS.get(native.partition(":")[0], Status.FAILED)
        if native == "infeasible_or_unbounded":
            without = self._run(cvxpy, cvxpy.Problem(cvxpy.Minimize(0), problem.constraints), solver)
            status = told_apart(STATUS.get(without, Status.FAILED))
        if status is Status.NO_POINT and delta.value is not None and program.integer is not None:
            status = Status.FEASIBLE
        message, plain = f"{native} ({solver})", self.extra is None  # else the program is not the whole problem
        if status not in (Status.OPTIMAL, Status.FEASIBLE):
            return Solution(status, message=message, retry=plain)
        rows, bounds = _duals(program, problem) if plain else (None, None)
        point = np.array(delta.value)
        bound = float("nan") if program.integer is None else _bound(problem) + program.constant
        return Solution(status, point, bound=bound, message=message, row_duals=rows, bound_duals=bounds, retry=plain)

    def _run(self, cvxpy: Any, problem: Any, solver: str) -> str:
        started, options = time.monotonic(), self._options(solver, mixed=problem.is_mixed_integer())
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the status says the same
            try:
                with without_noise(2, NOISE, wanted=solver == "SCIP" and not self.verbose):
                    problem.solve(solver=solver, verbose=self.verbose, **options)
            except cvxpy.error.SolverError as error:
                _check_takes(cvxpy, problem, solver)
                late = self.time_limit is not None and time.monotonic() - started >= self.time_limit
                return "user_limit" if late else f"solver_error: {error}"
        stats = problem.solver_stats.extra_stats if problem.solver_stats is not None else None
        if isinstance(stats, dict) and stats.get("scip_status") == "gaplimit":
            return "optimal"  # inaccurate, in CVXPY's words; the gap fell below gap_tol
        return str(problem.status)

    def _options(self, solver: str, *, mixed: bool) -> dict[str, Any]:
        tolerance = self.feasibility_tol if self.feasibility_tol is not None else 1e-8 if solver == "SCIP" else 1e-9
        options: dict[str, Any] = dict.fromkeys(TOLERANCES.get(solver, ()), tolerance)
        if self.time_limit is not None and solver in TIME_LIMIT:
            options[TIME_LIMIT[solver]] = float(self.time_limit)
        if mixed and solver in GAPS:
            options[GAPS[solver]] = self.gap_tol
        flat = {name: value for name, value in options.items() if "." not in name}
        for name in options.keys() - flat.keys():
            outer, inner = name.split(".")
            flat.setdefault(outer, {})[inner] = options[name]
        return flat | dict(self.native)


class _Session(Session):
    """Keeps the problem of the last program."""

    def solve(self, program: Program) -> Solution:
        """New values for the parameters of the last problem, or a new problem."""
        options = self.limited()
        last = self.memory.get("program")
        if last is None or not _same_but_parameters(last, program):
            self.memory["problem"] = options._translated(program)
        problem, delta = self.memory["problem"]
        for name, (kept, sides) in _sides(program).items():
            if len(kept):
                problem.param_dict[name].value = sides
        problem.param_dict["gradient"].value = program.gradient
        self.memory["program"] = program
        return options._finish(program, problem, delta)


def _same_but_parameters(last: Program, program: Program) -> bool:
    """Whether gradient and the values of finite sides are all that differs."""
    if last.n != program.n or last.m != program.m or last.kind is not program.kind:
        return False
    same = last.constant == program.constant and same_hessian(last, program) and last.n_delta == program.n_delta
    pairs = zip(_sides(last).values(), _sides(program).values(), strict=True)
    same = same and all(np.array_equal(a, b) for (a, _), (b, _) in pairs)
    same = same and (program.integer is None or np.array_equal(last.integer, program.integer))  # type: ignore[arg-type]
    return same and bool(abs(sparse_rows(last) - sparse_rows(program)).sum() == 0)


def as_cvxpy(program: Program) -> tuple[Any, Any]:
    """The program as a CVXPY problem, to add to or to solve again and again, and its variable ``(n,)``.

    The gradient and all finite sides are parameters, by name in ``problem.param_dict``: ``gradient``, and where there
    are such, ``sides`` (equality rows), ``upper``, ``lower``, ``delta_upper`` and ``delta_lower``, each holding its
    finite entries in order. After a change of values, ``problem.solve()`` skips the translation. The first
    ``program.n_delta`` entries of the variable are the weight change.
    """
    import cvxpy

    mask = integer_mask(program)
    kinds = {} if program.integer is None else {"integer": True} if mask.all() else {"integer": (np.flatnonzero(mask),)}
    delta = cvxpy.Variable(program.n, name="delta", **kinds)
    gradient = cvxpy.Parameter(program.n, name="gradient", value=program.gradient)
    objective = gradient @ delta + program.constant
    if program.hessian is not None:
        objective = objective + 0.5 * cvxpy.quad_form(delta, cvxpy.psd_wrap(program.dense_hessian()))
    constraints, rows = [], sparse_rows(program)
    for name, (kept, sides) in _sides(program).items():
        if len(kept):
            side = cvxpy.Parameter(len(kept), name=name, value=sides)
            left = delta[kept] if name.startswith("delta") else rows[kept] @ delta
            relations = {"sides": left == side, "upper": left <= side, "lower": left >= side}
            constraints.append(relations[name.removeprefix("delta_")])
    return cvxpy.Problem(cvxpy.Minimize(objective), constraints), delta


def _sides(program: Program) -> dict[str, tuple[Any, Any]]:
    """For each block of constraints its lines and their sides."""
    low, high = program.bounds()
    equal = program.lower == program.upper
    masks = {
        "sides": (equal, program.upper),
        "upper": (~equal & np.isfinite(program.upper), program.upper),
        "lower": (~equal & np.isfinite(program.lower), program.lower),
        "delta_upper": (np.isfinite(high), high),
        "delta_lower": (np.isfinite(low), low),
    }
    return {name: (np.flatnonzero(mask), side[mask]) for name, (mask, side) in masks.items()}


def _duals(program: Program, problem: Any) -> tuple[Any, Any]:
    blocks = {name: kept for name, (kept, _) in _sides(program).items() if len(kept)}
    if program.integer is not None or any(each.dual_value is None for each in problem.constraints):
        return None, None
    rows, bounds = np.zeros(program.m), np.zeros(program.n)
    for (name, kept), constraint in zip(blocks.items(), problem.constraints, strict=True):
        target, sign = bounds if name.startswith("delta") else rows, -1.0 if name.endswith("lower") else 1.0
        target[kept] += sign * np.asarray(constraint.dual_value)
    return rows, bounds


def _bound(problem: Any) -> float:
    """The lower bound of a mixed-integer solve, without the objective's constant, where the solver tells it; or NaN."""
    stats = problem.solver_stats.extra_stats if problem.solver_stats is not None else None
    if isinstance(stats, dict):
        model = stats.get("model")  # of SCIP
        return float(stats.get("mip_dual_bound", np.nan) if model is None else model.getDualbound())
    return float(getattr(stats, "mip_dual_bound", getattr(stats, "ObjBound", np.nan)))  # of HiGHS, of Gurobi


def _check_takes(cvxpy: Any, problem: Any, solver: str) -> None:
    """Tells a solver that cannot take the problem, which fails before it runs, from one that failed."""
    try:
        problem.get_problem_data(solver)
    except cvxpy.error.SolverError as error:
        raise UnsupportedError(f"CVXPY's solver {solver} cannot take this program: {error}") from error
