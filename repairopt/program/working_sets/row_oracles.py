"""Rows that a working set can look at all at once: stored, or of a linearization.

Example:
    >>> rows = DenseRows(np.array([[1.0, 2.0]]), lower=np.array([0.5]))
    >>> rows.violations(np.array([1.0, 0.0]))
    array([-0.5])
"""

from __future__ import annotations

from typing import Protocol, runtime_checkable

import numpy as np
import numpy.typing as npt

from repairopt.errors import ProgramError
from repairopt.program.program import Array, Matrix

Index = npt.NDArray[np.int64]


@runtime_checkable
class RowOracle(Protocol):
    """Many rows ``lower <= A d <= upper`` that need not exist as a matrix.

    An oracle may also have ``screen(delta)``: like ``violations``, cheaper, and right about the sign of each entry.
    A working set then calls ``violations`` only to confirm its last point.

    Attributes:
        m: Number of rows.
    """

    m: int

    def violations(self, delta: Array) -> Array:
        """``max(lower - A d, A d - upper)`` of every row, ``(m,)``; negative where a row has slack."""
        ...

    def rows(self, index: Index) -> tuple[Matrix, Array, Array]:
        """Matrix ``(k, n)``, lower and upper sides of some rows, in the order of ``index``."""
        ...


class DenseRows:
    """Rows that are stored, ``lower <= matrix (m, n) @ d <= upper``; not copied; a side may be missing."""

    def __init__(self, matrix: Array, lower: Array | None = None, upper: Array | None = None) -> None:
        self.matrix = matrix
        self.m = int(matrix.shape[0])
        self.lower, self.upper = checked_side(lower, self.m, -np.inf), checked_side(upper, self.m, np.inf)
        if np.any(self.lower > self.upper):
            raise ProgramError("rows: a lower side is above its upper side.")

    def violations(self, delta: Array) -> Array:
        """One float64 pass over the matrix."""
        return excess(self.matrix @ delta, self.lower, self.upper)

    def rows(self, index: Index) -> tuple[Array, Array, Array]:
        """Copies of some rows."""
        return self.matrix[index], self.lower[index], self.upper[index]


def checked_side(values: Array | None, m: int, missing: float) -> Array:
    """Sides of all rows as float64 ``(m,)``, infinite where there are none; a ProgramError where they are malformed."""
    side = np.full(m, missing) if values is None else np.asarray(values, dtype=np.float64)
    if side.shape != (m,) or np.isnan(side).any():
        raise ProgramError(f"rows: sides of shape {side.shape} for {m} rows; expected ({m},) without NaN.")
    return side


def excess(values: Array, lower: Array, upper: Array) -> Array:
    """``max(lower - values, values - upper)``; negative where there is room."""
    below = lower - values
    return np.maximum(below, values - upper, out=below)
