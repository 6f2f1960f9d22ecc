"""Gurobi: simplex, interior point, branch and cut for all kinds, nonconvex Hessians included.

Proprietary, https://www.gurobi.com; free for academics. ``pip install gurobipy`` brings a license for programs of up to
2,000 variables and 2,000 rows, 200 variables where anything is quadratic; it expires with the version. Never chosen
unless asked for. A program above the limit, or a missing or expired license, ends as FAILED with the remedy in
``message``.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, ClassVar

import numpy as np

from repairopt.program import Array, Kind, Program, Solution, Status

from .back_end import TimedBackEnd, native_options, seconds, statuses, with_gap
from .matrices import by_owner, half_hessian, integer_mask, one_sided_lines

# Every gurobipy.GRB.Status. A limit with a feasible point in hand becomes FEASIBLE in solve().
STATUS = statuses(
    OPTIMAL="OPTIMAL",
    FEASIBLE="SUBOPTIMAL LOCALLY_OPTIMAL",
    INFEASIBLE="INFEASIBLE",
    UNBOUNDED="UNBOUNDED",
    NO_POINT="TIME_LIMIT ITERATION_LIMIT NODE_LIMIT SOLUTION_LIMIT WORK_LIMIT MEM_LIMIT USER_OBJ_LIMIT CUTOFF "
    "INTERRUPTED",
    FAILED="INF_OR_UNBD NUMERIC LOCALLY_INFEASIBLE LOADED INPROGRESS",  # the first two after a second run, see _solve()
)
_LICENSE = "get a license at gurobi.com (free for academics), or use an open-source solver: {open}"
# Errors that are no mistake of the program, by name in gurobipy.GRB.Error, with what to do.
REMEDY = {
    "SIZE_LIMIT_EXCEEDED": "the program is above the limit of the free license; " + _LICENSE,
    "NO_LICENSE": "no valid license was found, or it expired; upgrade gurobipy, " + _LICENSE,
    "JOB_REJECTED": "the license server refused the job; try again, or use an open-source solver: {open}",
    "NETWORK": "the license server does not answer; check the network, or use an open-source solver: {open}",
    "CLOUD": "the cloud license does not answer; check it, or use an open-source solver: {open}",
    "OUT_OF_MEMORY": "memory ran out; use fewer weights or rows",
}
OPEN = {Kind.LP: "highs", Kind.QP: "piqp", Kind.MILP: "highs", Kind.MIQP: "scip"}


@dataclass(frozen=True)
class Gurobi(TimedBackEnd):
    """All kinds, with duals, Farkas rays (LP) and bounds (mixed-integer and nonconvex).

    Attributes:
        node_limit: Nodes of the search tree, or None.
        feasibility_tol: Largest violation of rows and of the optimality conditions that Gurobi accepts, 1e-9 at least.
        gap_tol: Relative gap at which a mixed-integer or nonconvex program counts as solved.
        start: A point to start a mixed-integer program from, ``(n,)``, or None.
        threads: Threads, or None for Gurobi's own choice.
        native: Gurobi parameters by their own names, for example ``{"MIPFocus": 1}``, license parameters included.
    """

    node_limit: int | None = None
    gap_tol: float = 1e-6
    start: Array | None = None
    threads: int | None = None

    name = "gurobi"
    kinds = frozenset(Kind)
    requires = ("gurobipy",)
    nonconvex: ClassVar[bool] = True

    def solve(self, program: Program) -> Solution:
        """Translate, run, map the native status."""
        import gurobipy

        errors = _names(gurobipy.GRB.Error)
        try:
            with gurobipy.Env(params=self._parameters()) as env, gurobipy.Model(env=env) as model:
                return _solve(gurobipy, model, program, self.start)
        except gurobipy.GurobiError as error:
            remedy = REMEDY.get(errors.get(error.errno, ""))
            if remedy is None:
                raise
            text = f"{error}: {remedy.format(open=OPEN[program.kind])}."
            return Solution(Status.FAILED, message=text, retry=False)

    def _parameters(self) -> dict[str, Any]:
        return native_options(
            self.native,
            OutputFlag=int(self.verbose),
            FeasibilityTol=self.feasibility_tol,
            OptimalityTol=self.feasibility_tol,
            IntFeasTol=self.feasibility_tol,
            BarConvTol=min(1e-8, self.feasibility_tol),
            MIPGap=self.gap_tol,
            InfUnbdInfo=1,
            TimeLimit=seconds(self.time_limit),
            NodeLimit=self.node_limit,
            Threads=self.threads,
        )


def _solve(gurobipy: Any, model: Any, program: Program, start: Array | None) -> Solution:
    delta, rows, owners, signs = _translate(gurobipy, model, program)
    if start is not None and program.integer is not None:
        delta.Start = start
    model.optimize()
    if model.Status in (gurobipy.GRB.INF_OR_UNBD, gurobipy.GRB.NUMERIC):
        model.Params.DualReductions = 0
        model.Params.Method = 1  # dual simplex: interior point ends so on small QPs in conflict
        model.reset()
        model.optimize()
    native = _names(gurobipy.GRB.Status).get(model.Status, f"status {model.Status}")
    status = STATUS.get(native, Status.FAILED)
    if status is Status.NO_POINT and model.SolCount > 0 and model.IsMIP:
        status = Status.FEASIBLE
    work = max(int(model.IterCount), int(model.BarIterCount))
    interrupted = native == "INTERRUPTED"
    if status is Status.INFEASIBLE and program.kind is Kind.LP:
        ray = by_owner(signs * rows.FarkasDual, owners, program.m) if program.m else None
        return Solution(status, message=native, ray=ray, iterations=work)
    if status not in (Status.OPTIMAL, Status.FEASIBLE):
        return Solution(status, message=native, iterations=work, interrupted=interrupted)
    found = Solution(status, delta=np.asarray(delta.X), message=native, iterations=work, interrupted=interrupted)
    if not model.IsMIP:
        duals = by_owner(-signs * rows.Pi, owners, program.m)
        return replace(found, row_duals=duals, bound_duals=-np.asarray(delta.RC))
    bound = float(model.ObjBound) if abs(model.ObjBound) < gurobipy.GRB.INFINITY else float("nan")
    return replace(found, bound=bound, message=with_gap(native, 100 * float(model.MIPGap), status))


def _translate(gurobipy: Any, model: Any, program: Program) -> tuple[Any, Any, Any, Any]:
    """Fill an empty model; returns variables, native rows, the row that each of these comes from, and its sign."""
    low, high = program.bounds()
    delta = model.addMVar(program.n, lb=low, ub=high, vtype=np.where(integer_mask(program), "I", "C"))
    lines, owners, signs, sides, equal = one_sided_lines(program)
    senses = np.repeat(["=", "<"], [equal, len(owners) - equal])
    rows = model.addMConstr(lines, delta, senses, sides)
    quadratic = None if program.hessian is None else half_hessian(program)
    model.setMObjective(quadratic, program.gradient, program.constant, delta, delta, delta, gurobipy.GRB.MINIMIZE)
    return delta, rows, owners, signs


def _names(constants: Any) -> dict[int, str]:
    return {value: name for name in dir(constants) if isinstance(value := getattr(constants, name), int)}
