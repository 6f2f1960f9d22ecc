"""HiGHS: simplex for linear programs, branch and cut for mixed-integer linear ones.

Licence MIT, https://highs.dev. Its QP solver is left out on purpose: it returned "Optimal" with a row violated by
0.038 on a program of 222 variables and 5,000 rows.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

import numpy as np

from repairopt.program import Array, Kind, Program
from repairopt.solve import Solution, Status

from .matrices import sparse_rows

# Every HighsModelStatus. A limit with a feasible point in hand becomes FEASIBLE in solve().
STATUS = {
    "kOptimal": Status.OPTIMAL,
    "kModelEmpty": Status.OPTIMAL,
    "kInfeasible": Status.INFEASIBLE,
    "kUnbounded": Status.UNBOUNDED,
    "kTimeLimit": Status.NO_POINT,
    "kIterationLimit": Status.NO_POINT,
    "kSolutionLimit": Status.NO_POINT,
    "kMemoryLimit": Status.NO_POINT,
    "kObjectiveBound": Status.NO_POINT,
    "kObjectiveTarget": Status.NO_POINT,
    "kInterrupt": Status.NO_POINT,
    "kHighsInterrupt": Status.NO_POINT,
    "kUnboundedOrInfeasible": Status.FAILED,  # told apart by a second run without objective
    "kNotset": Status.FAILED,
    "kLoadError": Status.FAILED,
    "kModelError": Status.FAILED,
    "kPresolveError": Status.FAILED,
    "kSolveError": Status.FAILED,
    "kPostsolveError": Status.FAILED,
    "kUnknown": Status.FAILED,
}


@dataclass(frozen=True)
class HiGHS:
    """LP and MILP; the source of Farkas rays for programs without a solution.

    Attributes:
        time_limit: Seconds, or None.
        feasibility_tol: Largest violation of rows, bounds and integrality that HiGHS accepts, 1e-10 at least.
        gap_tol: Relative gap at which a mixed-integer program counts as solved.
        threads: Threads, or None for HiGHS's own choice; a number holds for the whole process.
        verbose: Print the native log.
        native: HiGHS options by their own names, for example ``{"mip_heuristic_effort": 0.2}``.
    """

    time_limit: float | None = None
    feasibility_tol: float = 1e-9
    gap_tol: float = 1e-6
    threads: int | None = None
    verbose: bool = False
    native: Mapping[str, Any] = field(default_factory=dict)

    name: ClassVar[str] = "highs"
    kinds: ClassVar[frozenset[Kind]] = frozenset({Kind.LP, Kind.MILP})
    requires: ClassVar[tuple[str, ...]] = ("highspy",)

    @staticmethod
    def preference(program: Program) -> float:
        """The default for mixed-integer programs, and for linear ones too large for a dense matrix ``(n, n)``."""
        return 0.0 if program.kind is Kind.MILP else 15.0

    def solve(self, program: Program) -> Solution:
        """Translate, run, map the native status."""
        import highspy

        if self.threads is not None:
            highspy.Highs.resetGlobalScheduler(True)  # else HiGHS refuses another number of threads than last time
        highs = highspy.Highs()
        for option, value in self._options().items():
            highs.setOptionValue(option, value)
        highs.passModel(_model(highspy, program))
        highs.run()
        native = highs.getModelStatus().name
        if native == "kUnboundedOrInfeasible":
            status = _without_objective(highs, program.n)
        else:
            status = STATUS.get(native, Status.FAILED)
        info = highs.getInfo()
        if status is Status.NO_POINT and info.primal_solution_status == highspy.SolutionStatus.kSolutionStatusFeasible:
            status = Status.FEASIBLE
        ray = _ray(highs) if status is Status.INFEASIBLE and program.kind is Kind.LP else None
        if status not in (Status.OPTIMAL, Status.FEASIBLE):
            return Solution(status, message=native, ray=ray)
        return _point(program, highs.getSolution(), info, status, native)

    def _options(self) -> dict[str, Any]:
        options: dict[str, Any] = {
            "output_flag": self.verbose,
            "primal_feasibility_tolerance": self.feasibility_tol,
            "dual_feasibility_tolerance": self.feasibility_tol,
            "mip_feasibility_tolerance": self.feasibility_tol,
            "mip_rel_gap": self.gap_tol,
        }
        if self.time_limit is not None:
            options["time_limit"] = float(self.time_limit)
        if self.threads is not None:
            options["threads"] = self.threads
        return options | dict(self.native)


def _model(highspy: Any, program: Program) -> Any:
    model, rows = highspy.HighsLp(), sparse_rows(program)
    model.num_col_, model.num_row_ = program.n, program.m
    model.col_cost_, model.offset_ = program.gradient, program.constant
    model.col_lower_, model.col_upper_ = program.bounds()
    model.row_lower_, model.row_upper_ = program.lower, program.upper
    model.a_matrix_.format_ = highspy.MatrixFormat.kRowwise
    model.a_matrix_.start_, model.a_matrix_.index_, model.a_matrix_.value_ = rows.indptr, rows.indices, rows.data
    if program.integer is not None:
        kinds = highspy.HighsVarType
        model.integrality_ = [kinds.kInteger if flag else kinds.kContinuous for flag in program.integer]
    return model


def _without_objective(highs: Any, n: int) -> Status:
    """A program is unbounded, rather than infeasible, if it has a point once the objective is dropped."""
    highs.changeColsCost(n, np.arange(n, dtype=np.int32), np.zeros(n))
    highs.run()
    status = STATUS.get(highs.getModelStatus().name, Status.FAILED)
    return Status.UNBOUNDED if status is Status.OPTIMAL else status


def _ray(highs: Any) -> Array | None:
    _, exists, ray = highs.getDualRay()  # positive where the lower side holds: the other sign than ours
    return -np.asarray(ray) if exists else None


def _point(program: Program, solution: Any, info: Any, status: Status, native: str) -> Solution:
    mixed = program.integer is not None
    duals = solution.dual_valid and not mixed and status is Status.OPTIMAL
    return Solution(
        status,
        delta=np.array(solution.col_value),
        bound=float(info.mip_dual_bound) if mixed else float("nan"),
        message=native,
        row_duals=-np.array(solution.row_dual) if duals else None,
        bound_duals=-np.array(solution.col_dual) if duals else None,
        iterations=max(0, int(info.simplex_iteration_count), int(info.ipm_iteration_count)),
    )
