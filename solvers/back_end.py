"""What back ends have in common: their rank, options that are left out, sessions."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar

from repairopt.program import Kind, Program

from .choice import rank


class Ranked:
    """A back end that is chosen without being asked for by its rank in the table of :mod:`repairopt.solvers.choice`."""

    name: ClassVar[str]

    @classmethod
    def preference(cls, program: Program) -> float:
        """Its rank; infinite, so never chosen, where it is not in the table."""
        return rank(cls.name, program)


def native_options(native: Mapping[str, Any], **options: Any) -> dict[str, Any]:
    """Options of a library by their own names, without those that are None; ``native`` ones win."""
    return {name: value for name, value in options.items() if value is not None} | dict(native)


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

    @property
    def name(self) -> str:
        """Of the back end."""
        return str(self.options.name)

    @property
    def kinds(self) -> frozenset[Kind]:
        """Of the back end."""
        return self.options.kinds

    @property
    def requires(self) -> tuple[str, ...]:
        """Of the back end."""
        return self.options.requires

    def limited(self) -> Any:
        """The back end, with the session's time limit."""
        return self.options if self.time_limit is None else replace(self.options, time_limit=self.time_limit)
