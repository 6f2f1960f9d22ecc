"""One try at a program: check, run one back end, recheck its answer. No second try, no proof of infeasibility."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from repairopt.errors import ProgramError, SolverError, UnsupportedError

from .backends import available_solvers, find_solver, with_options
from .captured_output import native_output
from .certificates.claims import settle
from .hessian import LowRankHessian
from .isolate import solve_isolated
from .program import Program
from .rechecking import LARGEST_FACTORIZED, recheck
from .scaling import equilibrate
from .solution import Attempt, Solution, Solver, Status

FEASIBILITY_TOL = 1e-6
INDEFINITE = 1e-12  # of the largest entry: negative eigenvalues up to this are rounding errors


def run_solver(
    program: Program,
    solver: str | Solver | None = None,
    *,
    feasibility_tol: float = FEASIBILITY_TOL,
    optimality_tol: float | None = None,
    time_limit: float | None = None,
    isolate: bool = False,
    scaled: bool = False,
    checked: bool = False,
) -> Solution:
    """Run one back end once and recheck its answer; options and errors as for :func:`repairopt.program.solve`.

    ``scaled`` scales rows and variables first; ``checked`` says that the Hessian is known to be convex.
    """
    backend = with_options(find_solver(program, solver), time_limit=time_limit)
    convex = checked or check_convex(program, backend)
    started = time.perf_counter()
    if scaled:
        scale, start = equilibrate(program), getattr(backend, "start", None)
        backend = with_options(backend, start=None if start is None else scale.start(start))
        answer = scale.restore(_native(backend, scale.program, time_limit, isolate))
    else:
        answer = _native(backend, program, time_limit, isolate)
    seconds = time.perf_counter() - started
    _check_shapes(program, answer, backend.name)
    answer = replace(answer, solver=backend.name, seconds=seconds)
    tolerances: Any = {"feasibility_tol": feasibility_tol, "optimality_tol": optimality_tol}
    found = recheck(program, answer, gap_tol=getattr(backend, "gap_tol", 0.0), **tolerances)
    if found.status is Status.UNBOUNDED or found.status is Status.OPTIMAL and (found.row_duals is None or not convex):
        left = None if time_limit is None else max(1e-3, time_limit - seconds)
        found = settle(program, found, backend, convex=convex, time_limit=left, **tolerances)
    return replace(found, attempts=(Attempt(backend.name, found.status, scaled, found.message, seconds),))


def check_convex(program: Program, backend: Any) -> bool:
    """Whether the Hessian is convex; a ProgramError where it is not and the back end needs that, or not symmetric.

    Several solvers report success on such Hessians (measured).
    """
    trouble = _not_convex(program)
    if trouble and not getattr(backend, "nonconvex", False):
        raise ProgramError(trouble)
    return not trouble


def _not_convex(program: Program) -> str:
    """Why the Hessian is not positive semidefinite to rounding; empty where it is, or is too large to tell."""
    hessian = program.hessian
    if isinstance(hessian, LowRankHessian) and float(hessian.diagonal.min(initial=0.0)) < 0:
        return (
            f"program: the Hessian's diagonal part has an entry of {float(hessian.diagonal.min()):.3g}; "
            f"expected none below 0. Convexify the surrogate (convexify='project')."
        )
    if not isinstance(hessian, np.ndarray):
        return ""
    scale = max(1e-300, float(np.abs(hessian).max(initial=0.0)))
    if float(np.abs(hessian - hessian.T).max(initial=0.0)) > 1e-9 * scale:
        raise ProgramError("program: the Hessian is not symmetric. Pass (H + H.T) / 2.")
    if program.n > LARGEST_FACTORIZED:
        return ""
    shifted = hessian.copy()
    shifted[np.diag_indices(program.n)] += INDEFINITE * scale
    try:
        np.linalg.cholesky(shifted)
    except np.linalg.LinAlgError:
        smallest = float(np.linalg.eigvalsh(hessian)[0])
        return (
            f"program: the Hessian is not positive semidefinite (smallest eigenvalue {smallest:.3g}, largest entry "
            f"{scale:.3g}). Convexify the surrogate (convexify='project'), or use a solver for nonconvex programs."
        )
    return ""


def _native(backend: Any, program: Program, time_limit: float | None, isolate: bool) -> Solution:
    try:
        if isolate:
            solution = solve_isolated(backend, program, time_limit)
            if getattr(solution, "log", ""):
                print(solution.log, end="", flush=True)
            return solution
        with native_output(wanted=bool(getattr(backend, "verbose", False))) as printed:
            solution = backend.solve(program)
        return replace(solution, log=printed.text) if printed.text and isinstance(solution, Solution) else solution
    except (ProgramError, UnsupportedError, SolverError):
        raise
    except MemoryError as error:
        raise SolverError(f"'{backend.name}' ran out of memory on {program.n} variables, {program.m} rows.") from error
    except Exception as error:
        raise SolverError(
            f"'{backend.name}' crashed on a {program.kind} with {program.n} variables and {program.m} rows: "
            f"{type(error).__name__}: {error}. Try another solver: {', '.join(available_solvers(program.kind))}."
        ) from error


def _check_shapes(program: Program, solution: Any, name: str) -> None:
    """A back end is somebody's code: what it returns is checked before it is used."""
    if not isinstance(solution, Solution) or not isinstance(solution.status, Status):
        raise SolverError(f"'{name}' returned {type(solution).__name__}; expected a Solution with a Status.")
    sizes: Mapping[str, int] = {"delta": program.n, "row_duals": program.m, "bound_duals": program.n, "ray": program.m}
    for what, size in sizes.items():
        value = getattr(solution, what)
        if value is not None and np.shape(value) != (size,):
            raise SolverError(f"'{name}' returned {what} of shape {np.shape(value)}; expected ({size},) or None.")
