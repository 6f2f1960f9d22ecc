"""Solve a program: find a back end, check that it can, run it, recheck the answer.

The core believes no back end: residuals are recomputed here from the program's data alone, and an answer that claims to
be optimal but violates a row is reported as FAILED.
"""

from __future__ import annotations

import time
from collections.abc import Iterable
from dataclasses import dataclass, is_dataclass, replace
from enum import StrEnum
from functools import cache
from importlib.metadata import EntryPoint, entry_points
from importlib.util import find_spec
from typing import Any, ClassVar, Protocol, runtime_checkable

import numpy as np

from .errors import ProgramError, SolverError, SolverNotFoundError, UnsupportedError
from .program import Array, Kind, Program
from .surrogate import LowRankHessian

GROUP = "repairopt.solvers"
LARGEST_CHECKED = 5000  # variables up to which a Hessian is factorized to see that it is convex


class Status(StrEnum):
    """How a solve ended. ``.meaning`` says what happened, likely causes and what to try."""

    OPTIMAL = "optimal"
    FEASIBLE = "feasible"
    INFEASIBLE = "infeasible"
    UNBOUNDED = "unbounded"
    NO_POINT = "no point"
    FAILED = "failed"

    @property
    def meaning(self) -> str:
        """One or two sentences: what happened, why, what to try."""
        return _MEANING[self]


_MEANING = {
    Status.OPTIMAL: "Solved: no better point exists within the tolerances, rechecked by repairopt.",
    Status.FEASIBLE: "A limit was hit with a feasible point in hand. Raise time_limit, or accept the point.",
    Status.INFEASIBLE: (
        "No weight change satisfies all rows. Likely: constraints in conflict, too small a box, too few weights. "
        "Give constraints a weight (soft rows), widen the trust radius, or choose more weights."
    ),
    Status.UNBOUNDED: "The objective falls without limit. A linear program needs bounds: set a trust radius.",
    Status.NO_POINT: "A limit was hit before any feasible point was found. Raise time_limit or simplify the program.",
    Status.FAILED: (
        "The back end failed, or its answer did not pass the recheck; see the message. Likely numerical trouble: "
        "try another solver."
    ),
}


@dataclass(frozen=True, eq=False)
class Solution:
    """Answer of a back end, with what the core found on recheck.

    Attributes:
        status: How the solve ended.
        delta: The point, ``(n,)``, or None where there is none.
        objective: Objective there, constant included; NaN where there is no point.
        bound: Proven lower bound on the objective, or NaN.
        seconds: Wall time of the back end; set by the core.
        message: Native status text, kept as it came.
        row_duals: Multipliers of the rows, ``(m,)``, in the sign convention of :mod:`repairopt.program`, or None.
        bound_duals: Multipliers of the bounds, ``(n,)``, or None.
        ray: Farkas multipliers of the rows, ``(m,)``, that prove infeasibility, or None.
        iterations: Iterations of the back end, or 0.
        violation: Largest violation of row, bound or integrality; set by the core.
        stationarity: Largest entry of ``H d + g + A'y + z``; set by the core where duals came, else NaN.
        solver: Name of the back end; set by the core.
    """

    status: Status
    delta: Array | None = None
    objective: float = float("nan")
    bound: float = float("nan")
    seconds: float = 0.0
    message: str = ""
    row_duals: Array | None = None
    bound_duals: Array | None = None
    ray: Array | None = None
    iterations: int = 0
    violation: float = float("nan")
    stationarity: float = float("nan")
    solver: str = ""

    @property
    def found(self) -> bool:
        """Whether there is a point that satisfies the program."""
        return self.delta is not None and self.status in (Status.OPTIMAL, Status.FEASIBLE)


@runtime_checkable
class Solver(Protocol):
    """A back end. Its fields are its options; see ``solvers/README.md`` for how to write one.

    Attributes:
        name: Name by which users choose it.
        kinds: The kinds of program that it takes.
        requires: Import names of the libraries that it needs.
    """

    name: ClassVar[str]
    kinds: ClassVar[frozenset[Kind]]
    requires: ClassVar[tuple[str, ...]]

    def solve(self, program: Program) -> Solution:
        """Translate, run, map the native status. Must not modify ``program``."""
        ...


def solve(
    program: Program,
    solver: str | Solver | None = None,
    *,
    feasibility_tol: float = 1e-6,
    time_limit: float | None = None,
) -> Solution:
    """Solve a program and recheck the answer.

    Args:
        program: What to solve; not modified.
        solver: Name, instance, or None for the first installed open-source back end that suits the program.
        feasibility_tol: Largest violation of a row that counts as feasible, relative to ``1 + |row side|``.
        time_limit: Seconds; overrides the back end's own ``time_limit`` where it is larger or not set.

    Returns:
        The solution with ``violation``, ``stationarity``, ``seconds`` and ``solver`` set by the core. OPTIMAL or
        FEASIBLE with a larger violation than ``feasibility_tol`` is turned into FAILED, whatever the back end said.

    Raises:
        SolverNotFoundError: No back end of that name, or its library is not installed.
        UnsupportedError: The back end cannot take this kind of program.
        ProgramError: The Hessian is not positive semidefinite, and the back end needs that.
        SolverError: The back end crashed.
    """
    backend = _with_time_limit(find_solver(program, solver), time_limit)
    if not getattr(backend, "nonconvex", False):
        _check_convex(program)
    started = time.perf_counter()
    try:
        solution = backend.solve(program)
    except (ProgramError, UnsupportedError):
        raise
    except MemoryError as error:
        raise SolverError(f"'{backend.name}' ran out of memory on {program.n} variables, {program.m} rows.") from error
    except Exception as error:
        raise SolverError(
            f"'{backend.name}' crashed on a {program.kind} with {program.n} variables and {program.m} rows: "
            f"{type(error).__name__}: {error}. Try another solver: {', '.join(available_solvers(program.kind))}."
        ) from error
    _check_shapes(program, solution, backend.name)
    return _recheck(program, solution, backend.name, time.perf_counter() - started, feasibility_tol)


def find_solver(program: Program, solver: str | Solver | None = None) -> Solver:
    """The back end that ``solve`` would run.

    Args:
        program: Decides the kind and, for ``solver=None``, the choice by size.
        solver: Name, instance or None.

    Returns:
        An instance that can take the program.

    Raises:
        SolverNotFoundError: No such name, library not installed, or nothing installed can take the kind.
        UnsupportedError: The named back end cannot take the kind.
    """
    if solver is None:
        names = preferred_solvers(program)
        if not names:
            raise SolverNotFoundError(f"No installed solver takes a {program.kind}. Try: pip install repairopt[all].")
        return _load(names[0])()
    backend: Any = _load(solver)() if isinstance(solver, str) else solver
    if not isinstance(backend, Solver) or isinstance(backend, type):
        raise SolverNotFoundError(
            f"solver {solver!r}: expected a name, an instance with name, kinds, requires and solve(program), or None. "
            f"Installed: {', '.join(available_solvers())}."
        )
    absent = _missing(backend.requires)
    if absent:
        raise SolverNotFoundError(
            f"'{backend.name}' needs {' and '.join(absent)}, which is not installed. "
            f"Try: pip install {' '.join(absent)}."
        )
    if program.kind not in backend.kinds:
        able = [name for name in available_solvers(program.kind) if name != backend.name]
        takes = ", ".join(sorted(kind.value for kind in backend.kinds))
        raise UnsupportedError(
            f"'{backend.name}' cannot solve a {program.kind} (it handles {takes}). "
            f"Installed solvers that can: {', '.join(able) or 'none'}."
        )
    return backend


def available_solvers(kind: Kind | str | None = None) -> list[str]:
    """Names of the back ends whose libraries are installed; imports none of the libraries and takes no licence.

    Args:
        kind: Only those that take this kind of program.

    Returns:
        Names, sorted.
    """
    wanted = None if kind is None else Kind(kind)
    found = []
    for name in sorted(_registered()):
        try:
            backend = _load(name)
        except SolverNotFoundError:
            continue
        if not _missing(backend.requires) and (wanted is None or wanted in backend.kinds):
            found.append(name)
    return found


def preferred_solvers(program: Program) -> list[str]:
    """Names of the installed back ends that may be chosen for a program without being asked for, best first.

    Args:
        program: Its kind and size decide.

    Returns:
        Names; a back end whose ``preference`` is infinite (licensed ones, modelling layers) is left out.
    """
    rated = [(_preference(_load(name), program), name) for name in available_solvers(program.kind)]
    return [name for rate, name in sorted(rated) if np.isfinite(rate)]


@cache
def _registered() -> dict[str, EntryPoint]:
    return {point.name: point for point in entry_points(group=GROUP)}


@cache
def _load(name: str) -> type[Solver]:
    point = _registered().get(name)
    if point is None:
        known = ", ".join(sorted(_registered())) or "none; is repairopt itself installed (pip install -e .)?"
        raise SolverNotFoundError(f"No solver is called {name!r}. Registered: {known}.")
    try:
        return point.load()
    except ImportError as error:
        raise SolverNotFoundError(f"Solver {name!r} ({point.value}) cannot be imported: {error}.") from error


def _missing(requires: Iterable[str]) -> list[str]:
    return [module for module in requires if find_spec(module) is None]


def _preference(backend: Any, program: Program) -> float:
    """Smaller is preferred. A back end states its own rule; one that states none comes after those that do."""
    rule = getattr(backend, "preference", None)
    return float(rule(program)) if rule is not None else 1000.0


def _with_time_limit(backend: Any, limit: float | None) -> Any:
    """The back end with this limit, where it has one and it is not stricter already."""
    own = getattr(backend, "time_limit", None)
    if limit is None or isinstance(backend, type) or not is_dataclass(backend) or not hasattr(backend, "time_limit"):
        return backend
    if own is not None and own <= limit:
        return backend
    limited: Any = replace(backend, time_limit=limit)  # type: ignore[type-var]
    return limited


def _check_convex(program: Program) -> None:
    """Several solvers report success on indefinite programs (measured), so definiteness is checked first."""
    if isinstance(program.hessian, LowRankHessian) and float(program.hessian.diagonal.min(initial=0.0)) < 0:
        raise ProgramError(
            f"program: the Hessian's diagonal part has an entry of {float(program.hessian.diagonal.min()):.3g}; "
            f"expected none below 0. Convexify the surrogate (convexify='project')."
        )
    if not isinstance(program.hessian, np.ndarray) or program.n > LARGEST_CHECKED:
        return
    scale = max(1e-300, float(np.abs(program.hessian).max()))
    if not np.allclose(program.hessian, program.hessian.T, rtol=0, atol=1e-9 * scale):
        raise ProgramError("program: the Hessian is not symmetric. Pass (H + H.T) / 2.")
    try:
        np.linalg.cholesky(program.hessian + 1e-9 * scale * np.eye(program.n))
    except np.linalg.LinAlgError:
        smallest = float(np.linalg.eigvalsh(program.hessian)[0])
        raise ProgramError(
            f"program: the Hessian is not positive semidefinite (smallest eigenvalue {smallest:.3g}, largest entry "
            f"{scale:.3g}). Convexify the surrogate (convexify='project'), or use a solver for nonconvex programs."
        ) from None


def _check_shapes(program: Program, solution: Any, name: str) -> None:
    """A back end is somebody's code: what it returns is checked before it is used."""
    if not isinstance(solution, Solution) or not isinstance(solution.status, Status):
        raise SolverError(f"'{name}' returned {type(solution).__name__}; expected a Solution with a Status.")
    sizes = {"delta": program.n, "row_duals": program.m, "bound_duals": program.n, "ray": program.m}
    for what, size in sizes.items():
        value = getattr(solution, what)
        if value is not None and np.shape(value) != (size,):
            raise SolverError(f"'{name}' returned {what} of shape {np.shape(value)}; expected ({size},) or None.")


def _recheck(program: Program, solution: Solution, name: str, seconds: float, tol: float) -> Solution:
    solution = replace(solution, solver=name, seconds=seconds)
    if solution.delta is None or not np.all(np.isfinite(solution.delta)):
        if solution.status in (Status.OPTIMAL, Status.FEASIBLE):
            text = f"claimed {solution.status} without a finite point; {solution.message}"
            return replace(solution, status=Status.FAILED, delta=None, message=text)
        return replace(solution, delta=None)
    delta = np.asarray(solution.delta, dtype=np.float64)
    violation = program.violation(delta)
    status, message = solution.status, solution.message
    if solution.found and _relative_violation(program, delta) > tol:
        status = Status.FAILED
        message = f"claimed {solution.status} with a violation of {violation:.3g}; {message}"
    return replace(
        solution,
        status=status,
        message=message,
        delta=delta,
        objective=program.objective(delta),
        violation=violation,
        stationarity=_stationarity(program, solution, delta),
    )


def _relative_violation(program: Program, delta: Array) -> float:
    """Violation of each row over ``1 + |side|``, so that large sides do not fail for rounding alone."""
    low, high = program.bounds()
    rows = program.matrix @ delta if program.m else np.zeros(0)
    sides = [(program.lower, rows, program.upper), (low, delta, high)]
    worst = 0.0
    for lower, value, upper in sides:
        for excess, side in ((lower - value, lower), (value - upper, upper)):
            scale = 1.0 + np.where(np.isfinite(side), np.abs(side), 0.0)
            worst = max(worst, float(np.max(excess / scale, initial=0.0)))
    if program.integer is not None:
        chosen = delta[program.integer]
        worst = max(worst, float(np.max(np.abs(chosen - np.round(chosen)), initial=0.0)))
    return worst


def _stationarity(program: Program, solution: Solution, delta: Array) -> float:
    if solution.row_duals is None or program.integer is not None:
        return float("nan")
    residual = program.gradient + (0.0 if program.hessian is None else program.hessian @ delta)
    if program.m:
        residual = residual + program.matrix.T @ solution.row_duals
    if solution.bound_duals is not None:
        residual = residual + solution.bound_duals
    return float(np.abs(residual).max(initial=0.0))
