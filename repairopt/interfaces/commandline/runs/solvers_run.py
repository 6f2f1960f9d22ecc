"""Which back ends there are: installed, licensed, for which kinds of programs."""

from __future__ import annotations

from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, packages_distributions, version
from typing import Any

from repairopt.errors import SolverNotFoundError
from repairopt.interfaces.commandline.bars import Bars
from repairopt.program import Kind, load_solver, missing_libraries, needed_libraries, registered_solvers, solve

from .results import SolverLine, SolversResult


def list_solvers(*, test: bool = False, progress: Bars) -> SolversResult:
    """Every registered back end; only with ``test`` is a library imported, and a tiny program solved with it."""
    owners, names = packages_distributions(), list(registered_solvers())
    if not test:
        return SolversResult(exit_code=0, solvers=[_line(name, test, owners) for name in names])
    lines: list[SolverLine] = []
    with progress.stage("testing", len(names)) as step:
        for name in names:
            step(name, len(lines) / len(names))
            lines.append(_line(name, test, owners))
    return SolversResult(exit_code=0, solvers=lines)


def _line(name: str, test: bool, owners: Mapping[str, list[str]]) -> SolverLine:
    try:
        backend: Any = load_solver(name)
    except SolverNotFoundError:
        return SolverLine(name=name, installed=False, licensed=None, kinds=[], needs=[], version="")
    needs = list(needed_libraries(backend))
    installed = not missing_libraries(backend)
    return SolverLine(
        name=name,
        installed=installed,
        licensed=_licensed(backend) if test and installed else None,
        kinds=sorted(kind.value for kind in backend.kinds),
        needs=needs,
        version=_version(needs, owners) if installed else "",
    )


def _version(needs: list[str], owners: Mapping[str, list[str]]) -> str:
    found = [name for module in needs for name in owners.get(module.partition(".")[0], [])]
    try:
        return ", ".join(version(name) for name in dict.fromkeys(found))
    except PackageNotFoundError:
        return ""


def _licensed(backend: Any) -> bool:
    """Whether a tiny program is solved."""
    import numpy as np

    from repairopt.program import Program, Status

    kind = next(kind for kind in (Kind.LP, Kind.QP, *backend.kinds) if kind in backend.kinds)
    program = Program(
        gradient=np.ones(2),
        hessian=np.eye(2) if kind in (Kind.QP, Kind.MIQP) else None,
        matrix=np.ones((1, 2)),
        lower=np.array([1.0]),
        upper=np.array([np.inf]),
        delta_lower=np.zeros(2),
        delta_upper=np.ones(2),
    )
    try:
        return solve(program, backend()).status is Status.OPTIMAL
    except Exception:  # whatever a library without its licence raises
        return False
