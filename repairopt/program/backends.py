"""Find a back end: by name, by instance, or the first that suits a program. No native library is imported here."""

from __future__ import annotations

from dataclasses import fields, is_dataclass, replace
from functools import cache
from importlib.metadata import EntryPoint, entry_points
from importlib.util import find_spec
from typing import Any

import numpy as np

from repairopt.errors import SolverNotFoundError, SpecificationError, UnsupportedError, public, shown

from .program import Kind, Program
from .solution import Solver

GROUP = "repairopt.solvers"


def find_solver(program: Program, solver: str | Solver | None = None) -> Solver:
    """An instance of the back end that ``solve`` would run: by name, as it is, or by kind and size of the program.

    A SolverNotFoundError where there is none, an UnsupportedError where it cannot take the kind.
    """
    if solver is None:
        names = preferred_solvers(program)
        if not names:
            raise SolverNotFoundError(f"No installed solver takes a {program.kind}. Try: pip install repairopt[all].")
        return load_solver(names[0])()
    backend: Any = load_solver(solver)() if isinstance(solver, str) else solver
    kind: Any = type(backend)
    if isinstance(backend, type) or not (_is_solver(kind) or isinstance(backend, Solver)):
        raise SolverNotFoundError(
            f"solver {solver!r}: expected a name, an instance with name, kinds, requires and solve(program), or None. "
            f"Installed: {', '.join(available_solvers())}."
        )
    absent = missing_libraries(backend)
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


@public
def available_solvers(kind: Kind | str | None = None) -> list[str]:
    """Sorted names of the back ends whose libraries are installed, of those that take a kind of program.

    None of the libraries is imported and no licence is taken.
    """
    try:
        return list(_available(None if kind is None else Kind(kind)))
    except ValueError:
        known = ", ".join(one.value for one in Kind)
        raise SpecificationError(f"available_solvers: kind={shown(kind)}; choose one of {known}.") from None


@cache
def _available(wanted: Kind | None) -> tuple[str, ...]:
    found = []
    for name in sorted(_registered()):
        try:
            backend = load_solver(name)
        except SolverNotFoundError:
            continue
        if not missing_libraries(backend) and (wanted is None or wanted in backend.kinds):
            found.append(name)
    return tuple(found)


def preferred_solvers(program: Program) -> list[str]:
    """Names of the installed back ends that may be chosen for a program without being asked for, best first.

    A back end whose ``preference`` is infinite (licensed ones, modelling layers) is left out; one that states none
    comes after those that do.
    """
    rules = {name: getattr(load_solver(name), "preference", None) for name in _available(program.kind)}
    rated = [(1000.0 if rule is None else float(rule(program)), name) for name, rule in rules.items()]
    return [name for rate, name in sorted(rated) if np.isfinite(rate)]


@cache
def _is_solver(kind: type) -> bool:
    """Whether a class itself has every member; instances may have more, and asking each of them takes its time."""
    return all(hasattr(kind, name) for name in ("name", "kinds", "requires", "solve"))


@cache
def load_solver(name: str) -> type[Solver]:
    """The class registered under a name; a SolverNotFoundError where there is none that can be imported."""
    point = _registered().get(name)
    if point is None:
        known = ", ".join(sorted(_registered())) or "none; is repairopt itself installed (pip install -e .)?"
        raise SolverNotFoundError(f"No solver is called {name!r}. Registered: {known}.")
    try:
        return point.load()
    except ImportError as error:
        raise SolverNotFoundError(f"Solver {name!r} ({point.value}) cannot be imported: {error}.") from error


def missing_libraries(backend: Any) -> list[str]:
    """Import names of the libraries that a back end needs and that are not installed."""
    return [module for module in needed_libraries(backend) if not _installed(module)]


def needed_libraries(backend: Any) -> tuple[str, ...]:
    """Import names of the libraries that a back end needs."""
    return (backend.requires,) if isinstance(backend.requires, str) else tuple(backend.requires)


def with_options(backend: Any, **options: Any) -> Any:
    """A copy of the back end with these options, of which it takes those that are fields of it.

    A ``time_limit`` of its own stays where it is stricter.
    """
    if isinstance(backend, type) or not is_dataclass(backend):
        return backend
    names = {option.name for option in fields(backend)}
    changes = {name: value for name, value in options.items() if name in names and value is not None}
    own = getattr(backend, "time_limit", None)
    if own is not None and own <= changes.get("time_limit", np.inf):
        changes.pop("time_limit", None)
    return replace(backend, **changes) if changes else backend  # type: ignore[type-var]


def registered_solvers() -> list[str]:
    """Names of all back ends, installed or not, sorted."""
    return sorted(_registered())


@cache
def _registered() -> dict[str, EntryPoint]:
    return {point.name: point for point in entry_points(group=GROUP)}


@cache
def _installed(module: str) -> bool:
    return find_spec(module) is not None
