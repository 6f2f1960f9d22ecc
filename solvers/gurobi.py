"""Gurobi: simplex, interior point, branch and cut for all kinds, nonconvex Hessians included.

Proprietary, https://www.gurobi.com; free for academics. ``pip install gurobipy`` brings a license for programs of up to
2,000 variables and 2,000 rows, 200 variables where anything is quadratic; it expires with the version. Never chosen
unless asked for. A program above the limit, or a missing or expired license, ends as FAILED with the remedy in
``message``.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

import numpy as np

from repairopt.program import Array, Kind, Program, Solution, Status

from .back_end import Ranked, native_options, seconds
from .matrices import one_sided, sparse_hessian, sparse_rows

# Every gurobipy.GRB.Status. A limit with a feasible point in hand becomes FEASIBLE in solve().
STATUS = {
    "OPTIMAL": Status.OPTIMAL,
    "INFEASIBLE": Status.INFEASIBLE,
    "UNBOUNDED": Status.UNBOUNDED,
    "INF_OR_UNBD": Status.FAILED,  # told apart by a second run, see _solve()
    "TIME_LIMIT": Status.NO_POINT,
    "ITERATION_LIMIT": Status.NO_POINT,
    "NODE_LIMIT": Status.NO_POINT,
    "SOLUTION_LIMIT": Status.NO_POINT,
    "WORK_LIMIT": Status.NO_POINT,
    "MEM_LIMIT": Status.NO_POINT,
    "USER_OBJ_LIMIT": Status.NO_POINT,
    "CUTOFF": Status.NO_POINT,
    "INTERRUPTED": Status.NO_POINT,
    "SUBOPTIMAL": Status.FEASIBLE,
    "LOCALLY_OPTIMAL": Status.FEASIBLE,  # no proof
    "LOCALLY_INFEASIBLE": Status.FAILED,  # no proof
    "NUMERIC": Status.FAILED,  # after a second run, see _solve()
    "LOADED": Status.FAILED,
    "INPROGRESS": Status.FAILED,
}
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
class Gurobi(Ranked):
    """All kinds, with duals, Farkas rays (LP) and bounds (mixed-integer and nonconvex).

    Attributes:
        time_limit: Seconds, or None.
        node_limit: Nodes of the search tree, or None.
        feasibility_tol: Largest violation of rows and of the optimality conditions that Gurobi accepts, 1e-9 at least.
        gap_tol: Relative gap at which a mixed-integer or nonconvex program counts as solved.
        start: A point to start a mixed-integer program from, ``(n,)``, or None.
        threads: Threads, or None for Gurobi's own choice.
        verbose: Print the native log.
        native: Gurobi parameters by their own names, for example ``{"MIPFocus": 1}``, license parameters included.
    """

    time_limit: float | None = None
    node_limit: int | None = None
    feasibility_tol: float = 1e-9
    gap_tol: float = 1e-6
    start: Array | None = None
    threads: int | None = None
    verbose: bool = False
    native: Mapping[str, Any] = field(default_factory=dict)

    name: ClassVar[str] = "gurobi"
    kinds: ClassVar[frozenset[Kind]] = frozenset(Kind)
    requires: ClassVar[tuple[str, ...]] = ("gurobipy",)
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

    def by_row(values: Any) -> Any:
        total = np.zeros(program.m)
        np.add.at(total, owners, signs * values)
        return total

    if status is Status.INFEASIBLE and program.kind is Kind.LP:
        ray = by_row(np.asarray(rows.FarkasDual)) if program.m else None
        return Solution(status, message=native, ray=ray, iterations=work)
    if status not in (Status.OPTIMAL, Status.FEASIBLE):
        return Solution(status, message=native, iterations=work, interrupted=interrupted)
    answer: dict[str, Any]
    if not model.IsMIP:
        answer = {"row_duals": by_row(-np.asarray(rows.Pi)), "bound_duals": -np.asarray(delta.RC)}
    else:
        bound, percent = float(model.ObjBound), 100 * float(model.MIPGap)
        answer = {"bound": bound if abs(bound) < gurobipy.GRB.INFINITY else float("nan")}
        if status is not Status.OPTIMAL:
            native += f", gap {percent:.3g} %" if percent < 1e6 else ", gap unknown"
    answer["interrupted"] = interrupted
    return Solution(status, delta=np.asarray(delta.X), message=native, iterations=work, **answer)


def _translate(gurobipy: Any, model: Any, program: Program) -> tuple[Any, Any, Any, Any]:
    """Fill an empty model; returns variables, native rows, the row that each of these comes from, and its sign.

    Each finite side of a row becomes a row of its own, as ``sign * row <= side``; an equality stays one row.
    """
    from scipy import sparse

    low, high = program.bounds()
    mask = np.zeros(program.n, dtype=bool) if program.integer is None else program.integer
    delta = model.addMVar(program.n, lb=low, ub=high, vtype=np.where(mask, "I", "C"))
    owners, signs, sides, equal = one_sided(program.lower, program.upper)
    senses = np.repeat(["=", "<"], [equal, len(owners) - equal])
    lines = sparse.csr_matrix(sparse.diags(signs) @ sparse_rows(program)[owners])
    rows = model.addMConstr(lines, delta, senses, sides)
    upper = sparse_hessian(program)
    quadratic = None if program.hessian is None else upper - 0.5 * sparse.diags(upper.diagonal())
    model.setMObjective(quadratic, program.gradient, program.constant, delta, delta, delta, gurobipy.GRB.MINIMIZE)
    return delta, rows, owners, signs


def _names(constants: Any) -> dict[int, str]:
    return {value: name for name in dir(constants) if isinstance(value := getattr(constants, name), int)}
