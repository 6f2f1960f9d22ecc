"""Scale a program so that rows and columns of its optimality system have entries of about 1, and scale answers back.

The first remedy for numerical trouble: back ends work to absolute tolerances, so a row a million times smaller than the
others is hardly seen, and one a million times larger is never satisfied.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from .hessian import LowRankHessian
from .program import Array, Hessian, Program
from .solution import Solution

ROUNDS = 15
SMALLEST, LARGEST = 1e-8, 1e8  # of a scale
EVEN = 0.1  # largest distance of a round's factors from 1 at which the rounds end


@dataclass(frozen=True, eq=False)
class Scaled:
    """A scaled program and the scales, ``columns`` ``D`` and ``rows`` ``E``; integer variables keep the scale 1.

    With ``d = D u``: the scaled program minimizes ``cost (1/2 u'DHDu + (Dg)'u + c)`` subject to
    ``E lower <= E A D u <= E upper`` and ``delta_lower <= D u <= delta_upper``.
    """

    program: Program
    columns: Array
    rows: Array
    cost: float

    def restore(self, solution: Solution) -> Solution:
        """An answer to the scaled program as an answer to the original one; the core's figures are left out."""
        times = lambda values, factor: None if values is None else values * factor  # noqa: E731
        return replace(
            solution,
            delta=times(solution.delta, self.columns),
            bound=solution.bound / self.cost,
            row_duals=times(solution.row_duals, self.rows / self.cost),
            bound_duals=times(solution.bound_duals, 1.0 / (self.columns * self.cost)),
            ray=times(solution.ray, self.rows),
        )

    def start(self, delta: Array) -> Array:
        """A point of the original program as one of the scaled program."""
        return delta / self.columns


def equilibrate(program: Program) -> Scaled:
    """Scale a program by powers of 2 (the cost by one of 4), so that scaling itself rounds nothing.

    References:
        Ruiz, A scaling algorithm to equilibrate both rows and columns norms in matrices, 2001; as used for quadratic
        programs by Stellato et al., OSQP: An operator splitting solver for quadratic programs, 2020.
    """
    columns, rows = np.ones(program.n), np.ones(program.m)
    free = np.ones(program.n, bool) if program.integer is None else ~program.integer
    matrix = abs(program.matrix).tocsr() if hasattr(program.matrix, "tocsr") else np.abs(program.matrix)
    for _ in range(ROUNDS):
        by_row, by_column = _largest(matrix, columns, rows)
        by_column = np.maximum(by_column, _largest_curvature(program.hessian, columns))
        more_rows, more_columns = _inverse_root(by_row), np.where(free, _inverse_root(by_column), 1.0)
        rows, columns = np.clip(rows * more_rows, SMALLEST, LARGEST), np.clip(columns * more_columns, SMALLEST, LARGEST)
        factors = np.concatenate([more_rows, more_columns])
        if np.all(np.abs(factors - 1.0) <= EVEN):
            break
    columns, rows = _power_of_two(columns), _power_of_two(rows)
    slope = float(np.abs(program.gradient * columns).max(initial=0.0))
    curve = float(np.mean(_largest_curvature(program.hessian, columns))) if program.hessian is not None else 0.0
    cost = float(4.0 ** np.round(-np.log2(np.clip(max(slope, curve), SMALLEST, LARGEST)) / 2.0))
    low, high = program.bounds()
    scaled = replace(
        program,
        gradient=program.gradient * columns * cost,
        hessian=scaled_hessian(program.hessian, columns, cost),
        constant=program.constant * cost,
        matrix=_times(program.matrix, rows, columns),
        lower=program.lower * rows,
        upper=program.upper * rows,
        delta_lower=low / columns,
        delta_upper=high / columns,
    )
    return Scaled(scaled, columns, rows, cost)


def _largest(matrix: Any, columns: Array, rows: Array) -> tuple[Array, Array]:
    """Largest scaled entry of each row and of each column of ``|A|``."""
    if not len(rows):
        return np.zeros(0), np.zeros(len(columns))
    scaled = _times(matrix, rows, columns)
    if hasattr(scaled, "tocsr"):
        return scaled.max(axis=1).toarray().ravel(), scaled.max(axis=0).toarray().ravel()
    return scaled.max(axis=1), scaled.max(axis=0)


def _largest_curvature(hessian: Hessian | None, columns: Array) -> Array:
    """Largest scaled entry of each column of ``|H|``; for a low-rank one its diagonal, which bounds it for convex H."""
    if hessian is None:
        return np.zeros(len(columns))
    if isinstance(hessian, LowRankHessian):
        return np.asarray((np.abs(hessian.diagonal) + (hessian.factor**2).sum(axis=1)) * columns**2)
    return np.asarray((np.abs(hessian) * columns[:, None] * columns).max(axis=0))


def scaled_hessian(hessian: Hessian | None, columns: Array, cost: float = 1.0) -> Hessian | None:
    """``cost D H D`` for the diagonal ``D`` of ``columns``."""
    if hessian is None:
        return None
    if isinstance(hessian, LowRankHessian):
        return LowRankHessian(hessian.diagonal * columns**2 * cost, hessian.factor * columns[:, None] * np.sqrt(cost))
    return np.asarray(hessian * columns[:, None] * columns * cost)


def _times(matrix: Any, rows: Array, columns: Array) -> Any:
    if hasattr(matrix, "tocsr"):
        return matrix.multiply(rows[:, None]).multiply(columns).tocsr()
    return matrix * rows[:, None] * columns


def _inverse_root(size: Array) -> Array:
    return np.where(size > 0, 1.0 / np.sqrt(np.where(size > 0, size, 1.0)), 1.0)


def _power_of_two(values: Array) -> Array:
    return np.exp2(np.round(np.log2(values)))
