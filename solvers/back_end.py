"""What back ends have in common: options, status tables, their rank, sessions."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar

from repairopt.program import Kind, Program, Status

from .choice import rank


@dataclass(frozen=True, kw_only=True)
class BackEnd:
    """Options of every back end; one that is not asked for is chosen by :mod:`repairopt.solvers.choice`.

    Attributes:
        feasibility_tol: Largest violation of rows, and of the optimality conditions, that the library accepts.
        verbose: Print the native log, where the library has one.
        native: Options of the library by their own names; they win.
    """

    feasibility_tol: float = 1e-9
    verbose: bool = False
    native: Mapping[str, Any] = field(default_factory=dict)

    name: ClassVar[str]
    kinds: ClassVar[frozenset[Kind]]
    requires: ClassVar[tuple[str, ...]]

    @classmethod
    def preference(cls, program: Program) -> float:
        """Its rank; infinite, so never chosen, where it is not in the table."""
        return rank(cls.name, program)


@dataclass(frozen=True, kw_only=True)
class TimedBackEnd(BackEnd):
    """A back end that obeys a time limit, in seconds."""

    time_limit: float | None = None


def statuses(**native: str) -> dict[str, Status]:
    """A table of native statuses: for each of ours, by its name, the native ones that mean it, set apart by blanks."""
    return {name: Status[ours] for ours, names in native.items() for name in names.split()}


def told_apart(status: Status) -> Status:
    """Infeasible or unbounded, by the status of the same program without its objective."""
    if status is Status.OPTIMAL:
        return Status.UNBOUNDED
    return status if status in (Status.INFEASIBLE, Status.NO_POINT) else Status.FAILED


def with_gap(native: str, percent: float, status: Status) -> str:
    """A native status with the gap that is left, in percent, where there is one."""
    if status is Status.OPTIMAL:
        return native
    return f"{native}, gap {percent:.3g} %" if percent < 1e6 else f"{native}, gap unknown"


def native_options(native: Mapping[str, Any], **options: Any) -> dict[str, Any]:
    """Options of a library by their own names, without those that are None; ``native`` ones win."""
    return {name: value for name, value in options.items() if value is not None} | dict(native)


def set_options(settings: Any, native: Mapping[str, Any], **options: Any) -> Any:
    """Set such options on an object that a library keeps its settings in, and return it."""
    for name, value in native_options(native, **options).items():
        setattr(settings, name, value)
    return settings


def seconds(limit: float | None) -> float | None:
    """A time limit as the float that libraries insist on."""
    return None if limit is None else float(limit)


@dataclass
class Session:
    """A twin of a back end that remembers its last program; copies with another time limit share the memory."""

    options: Any
    time_limit: float | None = None
    verbose: bool = False
    memory: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.name, self.kinds, self.requires = self.options.name, self.options.kinds, self.options.requires

    def limited(self) -> Any:
        """The back end, with the session's time limit."""
        return self.options if self.time_limit is None else replace(self.options, time_limit=self.time_limit)
