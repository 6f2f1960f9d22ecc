"""HiGHS: simplex for linear programs, branch and cut for mixed-integer linear ones.

Licence MIT, https://highs.dev. Its QP solver is left out on purpose: it returned "Optimal" with a row violated by
0.038 on a program of 222 variables and 5,000 rows.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from repairopt.program import Array, Kind, Program, Solution, Status

from .back_end import Session, TimedBackEnd, native_options, seconds, statuses, told_apart
from .highs_model import add_rows, build_model, change_model, quiet_highs
from .matrices import sparse_bytes
from .same_rows import KnownRows

# Every HighsModelStatus. A limit with a feasible point in hand becomes FEASIBLE in solve().
STATUS = statuses(
    OPTIMAL="kOptimal kModelEmpty",
    INFEASIBLE="kInfeasible",
    UNBOUNDED="kUnbounded",
    NO_POINT="kTimeLimit kIterationLimit kSolutionLimit kMemoryLimit kObjectiveBound kObjectiveTarget kInterrupt "
    "kHighsInterrupt",
    FAILED="kUnboundedOrInfeasible kNotset kLoadError kModelError kPresolveError kSolveError kPostsolveError kUnknown",
)
LONG = 1_000_000  # entries of a linear program from which on Ctrl-C is listened to while it is solved


@dataclass(frozen=True)
class HiGHS(TimedBackEnd):
    """LP and MILP; the source of Farkas rays for programs without a solution.

    Attributes:
        feasibility_tol: Largest violation of rows, bounds and integrality that HiGHS accepts, 1e-10 at least.
        gap_tol: Relative gap at which a mixed-integer program counts as solved.
        start: A point to start a mixed-integer program from, ``(n,)``, or None.
        threads: Threads, or None for HiGHS's own choice; a number holds for the whole process.
        native: HiGHS options by their own names, for example ``{"mip_heuristic_effort": 0.2}``.
    """

    gap_tol: float = 1e-6
    start: Array | None = None
    threads: int | None = None

    name = "highs"
    kinds = frozenset({Kind.LP, Kind.MILP})
    requires = ("highspy",)

    @staticmethod
    def memory(program: Program) -> float:
        """The matrix three times: the model, the scaled copy of the simplex method, its row-wise form."""
        return 3.0 * sparse_bytes(program)

    def session(self) -> _Session:
        """A twin that keeps its model and basis: rows are added to and taken from it, and dual simplex goes on."""
        return _Session(self)

    def solve(self, program: Program) -> Solution:
        """Translate, run, map the native status."""
        highspy = quiet_highs()
        highs = self._fresh(highspy)
        highs.passModel(build_model(highspy, program))
        if self.start is not None and program.integer is not None:
            guess = highspy.HighsSolution()
            guess.col_value = list(self.start)
            highs.setSolution(guess)
        return _run(highspy, highs, program)

    def _fresh(self, highspy: Any) -> Any:
        if self.threads is not None:
            highspy.Highs.resetGlobalScheduler(True)  # else HiGHS refuses another number of threads than last time
        highs = highspy.Highs()
        for option, value in self._options().items():
            highs.setOptionValue(option, value)
        return highs

    def _options(self) -> dict[str, Any]:
        return native_options(
            self.native,
            output_flag=self.verbose,
            primal_feasibility_tolerance=self.feasibility_tol,
            dual_feasibility_tolerance=self.feasibility_tol,
            mip_feasibility_tolerance=self.feasibility_tol,
            mip_rel_gap=self.gap_tol,
            time_limit=seconds(self.time_limit),
            threads=self.threads,
        )


class _Session(Session):
    """Keeps the model of the last linear program; where rows come and go, the basis stays."""

    def solve(self, program: Program) -> Solution:
        """Update the model where the last program shares rows, else build it."""
        options, highspy, last = self.limited(), quiet_highs(), self.memory.get("known")
        known, matches = KnownRows.recognized(program, last)
        if known is None or program.kind is not Kind.LP:
            return options.solve(program)
        if last is None or matches is None:
            self.memory["highs"] = highs = options._fresh(highspy)
            highs.passModel(build_model(highspy, program))
            order = np.arange(program.m)
        else:
            highs = self.memory["highs"]
            if options.time_limit is not None:  # HiGHS counts the time of all runs of a model
                highs.setOptionValue("time_limit", highs.getRunTime() + float(options.time_limit))
            order = change_model(highs, last.program, self.memory["order"], program, matches)
            new = np.flatnonzero(matches < 0)
            add_rows(highs, program, new)
            order = np.concatenate([order, new])
        self.memory["known"], self.memory["order"] = known, order
        found = _run(highspy, highs, program, order)
        if found.status is not Status.OPTIMAL:
            self.memory.clear()
        return found


def _run(highspy: Any, highs: Any, program: Program, order: Any = None) -> Solution:
    """Run and map; ``order`` says which row of the program each row of the model is, where they differ."""
    long = program.integer is not None or program.m * program.n >= LONG
    interrupted = _listening(highs) if long else highs.run() is None
    native = highs.getModelStatus().name
    status = STATUS.get(native, Status.FAILED)
    if native == "kUnboundedOrInfeasible":  # it has a point once the objective is dropped, or none
        highs.changeColsCost(program.n, np.arange(program.n, dtype=np.int32), np.zeros(program.n))
        highs.run()
        status = told_apart(STATUS.get(highs.getModelStatus().name, Status.FAILED))
    info = highs.getInfo()
    if status is Status.NO_POINT and info.primal_solution_status == highspy.SolutionStatus.kSolutionStatusFeasible:
        status = Status.FEASIBLE
    if status not in (Status.OPTIMAL, Status.FEASIBLE):
        infeasible = status is Status.INFEASIBLE and program.kind is Kind.LP
        _, exists, ray = highs.getDualRay() if infeasible else (None, False, None)
        return Solution(status, message=native, ray=_ours(ray, order) if exists else None, interrupted=interrupted)
    solution, mixed = highs.getSolution(), program.integer is not None
    if len(solution.col_value) != program.n:
        return Solution(Status.NO_POINT, message=f"{native}, without a point")
    duals = solution.dual_valid and not mixed and status is Status.OPTIMAL
    return Solution(
        status,
        delta=np.array(solution.col_value),
        bound=float(info.mip_dual_bound) if mixed else float("nan"),
        message=native,
        row_duals=_ours(solution.row_dual, order) if duals else None,
        bound_duals=-np.array(solution.col_dual) if duals else None,
        iterations=max(0, int(info.simplex_iteration_count), int(info.ipm_iteration_count)),
        interrupted=interrupted,
    )


def _listening(highs: Any) -> bool:
    """Run in a thread, so that Ctrl-C arrives; it ends the run at once, with the best point so far."""
    highs.HandleUserInterrupt = True
    highs.startSolve()
    interrupted = False
    while True:
        try:
            done, _ = highs.wait(0.05)
            if done:
                return interrupted
        except KeyboardInterrupt:
            interrupted = True
            highs.cancelSolve()


def _ours(values: Any, order: Any) -> Array:
    """Multipliers of the model's rows as those of the program's, in our sign: positive where the upper side holds."""
    found = -np.array(values, dtype=np.float64)
    return found if order is None else found[np.argsort(order)]
