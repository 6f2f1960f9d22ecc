"""Exact arithmetic on float64 data: every finite float is a fraction whose denominator is a power of two."""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction
from math import inf, lcm, nextafter
from typing import Any

import numpy as np

from repairopt.errors import ProgramError
from repairopt.program.program import Array

LARGEST = 2_000_000  # entries of H and of the rows that take part, up to which exact checks are offered
LARGEST_SOLVE = 60  # equations of an exact linear solve, and variables of an exact test of convexity
NEARLY_DEPENDENT = Fraction(1, 10**9)
BLOCK = 100_000  # entries that are turned into Python integers at a time


def check_size(what: str, entries: int, limit: int = LARGEST) -> None:
    """Refuse exact work that would take minutes by a ProgramError; ``what`` takes part, for the message."""
    if entries > limit:
        raise ProgramError(
            f"exact check: {what} make {entries:,}, above the limit of {limit:,} for rational arithmetic. "
            f"Pass exact=False: the check in float64 counts its own rounding errors."
        )


def as_fractions(values: Any) -> list[Fraction]:
    """The exact values of finite floats."""
    return [Fraction(value) for value in np.asarray(values, dtype=np.float64).tolist()]


def exact_product(matrix: Array, vector: Sequence[Fraction]) -> list[Fraction]:
    """``matrix @ vector`` without rounding; integers over a common denominator, a tenth of the time of fractions."""
    if matrix.size == 0:
        return [Fraction(0)] * matrix.shape[0]
    below = lcm(*(value.denominator for value in vector))
    column = np.array([value.numerator * (below // value.denominator) for value in vector], dtype=object)
    step = max(1, BLOCK // matrix.shape[1])
    products: list[Fraction] = []
    for start in range(0, matrix.shape[0], step):
        integers, shift = _integers(matrix[start : start + step])
        products += [Fraction(int(entry), below << shift) for entry in integers.dot(column)]
    return products


def _integers(values: Array) -> tuple[Any, int]:
    """Integers and the power of two to divide them by."""
    mantissa, exponent = np.frexp(values)
    whole = np.ldexp(mantissa, 53).astype(np.int64)
    used = exponent[whole != 0] - 53
    lowest = min(0, int(used.min(initial=0)))
    shifts = np.where(whole != 0, exponent - 53 - lowest, 0)
    return whole.astype(object) << shifts.astype(object), -lowest


def exact_solve(matrix: Sequence[Sequence[Fraction]], sides: Sequence[Fraction]) -> list[Fraction] | None:
    """One solution of ``matrix @ x = sides``, zero where columns are not needed (later ones first), or None."""
    rows = [[*row, side] for row, side in zip(matrix, sides, strict=True)]
    width = len(rows[0]) - 1 if rows else 0
    sizes = [max((abs(row[column]) for row in rows), default=Fraction(0)) for column in range(width)]
    pivots: list[int] = []
    for share in (NEARLY_DEPENDENT, Fraction(0)):  # first only columns that are clearly independent
        for column in range(width):
            if len(pivots) < len(rows) and column not in pivots:
                _eliminate(rows, pivots, column, share * sizes[column])
    if any(row[-1] for row in rows[len(pivots) :]):
        return None
    solution = [Fraction(0)] * width
    for row, column in zip(rows, pivots, strict=False):
        solution[column] = row[-1]
    return solution


def _eliminate(rows: list[list[Fraction]], pivots: list[int], column: int, least: Fraction) -> None:
    """Use a column for the next pivot, if an entry above ``least`` is left in it."""
    first = len(pivots)
    at = max(range(first, len(rows)), key=lambda i: abs(rows[i][column]))
    if abs(rows[at][column]) <= least:
        return
    rows[first], rows[at] = rows[at], rows[first]
    scale = rows[first][column]
    rows[first] = [entry / scale if entry else entry for entry in rows[first]]
    for i, row in enumerate(rows):
        if i != first and row[column]:
            factor = row[column]
            rows[i] = [a - factor * b if b else a for a, b in zip(row, rows[first], strict=True)]
    pivots.append(column)


def is_semidefinite(matrix: Array) -> bool:
    """Whether a symmetric matrix is positive semidefinite, decided exactly by elimination."""
    rest = [as_fractions(row) for row in matrix]
    while rest:
        pivot, others = rest[0][0], rest[0][1:]
        if pivot < 0 or (pivot == 0 and any(others)):
            return False
        rest = [
            [entry - row[0] * other / pivot if row[0] else entry for entry, other in zip(row[1:], others, strict=True)]
            for row in rest[1:]
        ]
    return True


def round_up(value: Fraction) -> float:
    """The smallest float that is not below ``value``."""
    near = float(value)
    return near if Fraction(near) >= value else nextafter(near, inf)


def round_down(value: Fraction) -> float:
    """The largest float that is not above ``value``."""
    return -round_up(-value)
