"""Which rows of a program stood in the last one too: what a session that updates its model has to know."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from repairopt.program import Array, Program

Index = npt.NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class KnownRows:
    """The rows of a program, and the position of each by its source."""

    program: Program
    place: dict[Any, int]

    @classmethod
    def of(cls, program: Program) -> KnownRows | None:
        """The rows of a program; None where no sources tell them apart."""
        place = {source: i for i, source in enumerate(program.sources)}
        return cls(program, place) if len(place) == program.m else None

    @classmethod
    def recognized(cls, program: Program, last: KnownRows | None) -> tuple[KnownRows | None, Index | None]:
        """The rows of a program, and where they stood in the last one; None where either cannot be told."""
        known = cls.of(program)
        return known, None if known is None or last is None else last.matches(program)

    def matches(self, program: Program) -> Index | None:
        """For each row of another program its position in this one, -1 where it is new or its coefficients changed.

        None where the programs do not have the same variables or no sources tell rows apart.
        """
        if program.n != self.program.n or program.kind is not self.program.kind or len(program.sources) != program.m:
            return None
        found = np.array([self.place.get(source, -1) for source in program.sources], dtype=np.int64)
        known = np.flatnonzero(found >= 0)
        found[known[_differ(program.matrix, known, self.program.matrix, found[known])]] = -1
        return found if len(np.unique(found[found >= 0])) == int((found >= 0).sum()) else None


def same_hessian(first: Program, second: Program) -> bool:
    """Whether two programs have the same Hessian; that of a low-rank one by identity."""
    if first.hessian is second.hessian:
        return True
    both = isinstance(first.hessian, np.ndarray) and isinstance(second.hessian, np.ndarray)
    return both and np.array_equal(first.hessian, second.hessian)  # type: ignore[arg-type]


def carried(values: Array | None, matches: Index) -> Array:
    """Values of the old rows at their places among the new ones, 0 elsewhere."""
    moved = np.zeros(len(matches))
    if values is not None:
        moved[matches >= 0] = values[matches[matches >= 0]]
    return moved


def _differ(first: Any, rows: Index, second: Any, others: Index) -> npt.NDArray[np.bool_]:
    if hasattr(first, "tocsr") or hasattr(second, "tocsr"):
        from scipy import sparse

        change = abs(sparse.csr_matrix(first)[rows] - sparse.csr_matrix(second)[others])
        return np.asarray(change.sum(axis=1)).ravel() != 0
    return np.any(first[rows] != second[others], axis=1)
