"""What lies between a program and a native library: the cost of repairopt's own layer, of CVXPY and of Pyomo.

The bare native call gets the same arrays and settings and returns the native point. Calls of each kind take turns, so
that a busy machine disturbs all alike; the least time counts, as noise only adds.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import environment  # noqa: F401  (one thread)
import numpy as np
from solver_instances import linear, quadratic

from repairopt.program import Program, solve
from repairopt.program.attempt import check_convex
from repairopt.program.rechecking import recheck
from repairopt.solvers import CVXPY, DAQP, PIQP, Clarabel, HiGHS, Pyomo, as_cvxpy, as_pyomo

Record = dict[str, Any]
SIZES = [(24, 200, 100), (222, 2_000, 7), (222, 50_000, 2)]  # weights, rows, rounds
QUICK = [(12, 100, 1)]
LAYERED = [(24, 200), (222, 2_000)]
WITHIN_MS, WITHIN_PERCENT = 1.0, 5.0  # bars of the layer's cost: up to 24 weights, and above


def native_daqp(program: Program) -> Any:
    """DAQP as its manual has it."""
    import daqp

    low, high = program.bounds()
    lower = np.maximum(np.concatenate([low, program.lower]), -1e30)
    upper = np.minimum(np.concatenate([high, program.upper]), 1e30)
    sense, settings = np.zeros(len(lower), dtype=np.int32), DAQP()._settings(program)
    hessian = np.array(program.dense_hessian())
    return daqp.solve(hessian, program.gradient.copy(), program.matrix, upper, lower, sense, **settings)[0]


def native_piqp(program: Program) -> Any:
    """PIQP, dense."""
    import piqp

    backend = piqp.DenseSolver()
    for option, value in PIQP()._settings().items():
        setattr(backend.settings, option, value)
    none, low, high = np.zeros((0, program.n)), *program.bounds()
    rows = (np.asfortranarray(program.matrix), program.lower, program.upper)
    backend.setup(program.dense_hessian(), program.gradient, none, np.zeros(0), *rows, low, high)
    backend.solve()
    return backend.result.x


def native_highs(program: Program) -> Any:
    """HiGHS, the dense rows as a sparse matrix since it knows no other."""
    import highspy
    from scipy import sparse

    highs, rows = highspy.Highs(), sparse.csr_matrix(program.matrix)
    for option, value in HiGHS()._options().items():
        highs.setOptionValue(option, value)
    model = highspy.HighsLp()
    model.num_col_, model.num_row_, model.col_cost_ = program.n, program.m, program.gradient
    model.col_lower_, model.col_upper_ = program.bounds()
    model.row_lower_, model.row_upper_ = program.lower, program.upper
    model.a_matrix_.format_ = highspy.MatrixFormat.kRowwise
    model.a_matrix_.start_, model.a_matrix_.index_, model.a_matrix_.value_ = rows.indptr, rows.indices, rows.data
    highs.passModel(model)
    highs.run()
    return np.array(highs.getSolution().col_value)


CASES: dict[str, tuple[Any, Callable[[Program], Any], Callable[[int, int], Any]]] = {
    "daqp": (DAQP, native_daqp, quadratic),
    "piqp": (PIQP, native_piqp, quadratic),
    "highs": (HiGHS, native_highs, linear),
}


def overhead(quick: bool = False) -> list[Record]:
    """CPU seconds of the native call, the back end, :func:`repairopt.program.solve`, and the core's checks alone."""
    found = []
    for n, m, rounds in QUICK if quick else SIZES:
        for name, (backend, native, make) in CASES.items():
            program = make(n, m).program
            answer = backend().solve(program)  # loads the library
            checks = least([lambda: (check_convex(program, backend()), _recheck(program, answer))], max(3, rounds))[0]  # noqa: B023
            calls = [lambda: native(program), lambda: backend().solve(program), lambda: solve(program, name)]  # noqa: B023
            rounds_here = 1 if name == "highs" and m > 10_000 else rounds
            bare, translated, all_told = least(calls, rounds_here)
            same = float(np.abs(native(program) - answer.delta).max()) if m <= 10_000 else float("nan")
            record = {"solver": name, "n": n, "m": m, "native": bare, "back end": translated, "solve": all_told}
            found.append(record | {"checks": checks, "difference": same})
    return found


def _recheck(program: Program, answer: Any) -> Any:
    return recheck(program, answer, feasibility_tol=1e-6, optimality_tol=None)


def least(calls: list[Callable[[], Any]], rounds: int) -> list[float]:
    """Least CPU seconds of each call, the calls taking turns; short ones many at a time, for the clock ticks slowly."""
    best = [np.inf] * len(calls)
    for _ in range(rounds):
        for i, call in enumerate(calls):
            best[i] = min(best[i], cpu(call))
    return best


def cpu(call: Callable[[], Any]) -> float:
    """CPU seconds of a call."""
    times, started, wall = 0, time.process_time(), time.perf_counter()
    while times == 0 or time.perf_counter() - wall < 0.06:
        call()
        times += 1
    return (time.process_time() - started) / times


def layers(quick: bool = False) -> list[Record]:
    """The same native solver with the same program: direct, through CVXPY, through Pyomo; building and all told."""
    cases = {
        "clarabel, QP": (quadratic, {"direct": Clarabel(), "cvxpy": CVXPY("CLARABEL")}),
        "highs, LP": (linear, {"direct": HiGHS(), "cvxpy": CVXPY("HIGHS"), "pyomo": Pyomo("appsi_highs")}),
    }
    return [
        layered(name, way, solver, make(n, m).program)
        for n, m in ([QUICK[0][:2]] if quick else LAYERED)
        for name, (make, ways) in list(cases.items())[: 1 if quick else None]
        for way, solver in ways.items()
    ]


def layered(name: str, way: str, solver: Any, program: Program) -> Record:
    """One line: what building the model costs, and everything."""
    answer = solve(program, solver)  # loads the libraries
    builders: dict[str, Callable[[], Any]] = {
        "direct": lambda: None,
        "cvxpy": lambda: as_cvxpy(program)[0].get_problem_data(solver.solver),
        "pyomo": lambda: as_pyomo(program),
    }
    built, total = least([builders[way], lambda: solve(program, solver)], 3)
    record = {"solver": name, "n": program.n, "m": program.m, "way": way, "build": built, "total": total}
    return record | {"status": str(answer.status), "violation": answer.violation}
