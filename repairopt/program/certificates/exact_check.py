"""Rational verification of a point and a lower bound: the data are floats, and every float is a fraction."""

from __future__ import annotations

from fractions import Fraction
from typing import Any

import numpy as np

from repairopt.program.hessian import LowRankHessian
from repairopt.program.program import Array, Program
from repairopt.program.rechecking import row_norms

from .duality import REPAIRS, DualBound, gamma, near_zero, rows_of, unbounded_side
from .rational import LARGEST, LARGEST_SOLVE, as_fractions, check_size, exact_product, exact_solve, is_semidefinite

NEGLIGIBLE = 1e-12  # share of the largest multiplier, times its row's norm, up to which multipliers are dropped


def exact_violation(program: Program, delta: Array) -> Fraction:
    """The exact largest violation of rows, bounds and integrality at a finite point; 0 where everything holds exactly.

    Rows are first evaluated in float64; only those whose violation could be the largest, given the rounding error, are
    evaluated in rational arithmetic. A ProgramError where those are too large for it.
    """
    low, high = program.bounds()
    worst = Fraction(0)
    beyond = np.flatnonzero((delta < low) | (delta > high))
    for j in beyond:
        value = Fraction(float(delta[j]))
        worst = max(worst, Fraction(float(low[j])) - value if delta[j] < low[j] else value - Fraction(float(high[j])))
    if program.integer is not None:
        for value in as_fractions(delta[program.integer]):
            worst = max(worst, abs(value - round(value)))
    return max(worst, _worst_row(program, delta))


def _worst_row(program: Program, delta: Array) -> Fraction:
    values = np.asarray(program.matrix @ delta)
    excess = np.maximum(program.lower - values, values - program.upper)
    finite = [np.where(np.isfinite(side), np.abs(side), 0.0) for side in (program.lower, program.upper)]
    size = row_norms(program) * float(np.linalg.norm(delta)) + np.maximum(*finite)
    error = gamma(program.n + 4) * size
    least = max(0.0, float(np.max(excess - error, initial=0.0)))
    doubtful = np.flatnonzero(excess + error > least)
    check_size(f"{len(doubtful):,} rows in doubt of {program.n:,} variables", len(doubtful) * program.n)
    worst = Fraction(0)
    for i, value in zip(doubtful, exact_product(rows_of(program, doubtful), as_fractions(delta)), strict=True):
        for side, sign in ((float(program.upper[i]), 1), (float(program.lower[i]), -1)):
            if np.isfinite(side):
                worst = max(worst, sign * (value - Fraction(side)))
    return worst


def exact_objective(program: Program, delta: Array) -> Fraction:
    """The exact objective at ``delta``, constant included."""
    point = as_fractions(delta)
    linear = exact_product(program.gradient[None, :], point)[0] + Fraction(program.constant)
    return linear + _dot(exact_curvature(program, point), point) / 2


def exact_curvature(program: Program, point: list[Fraction]) -> list[Fraction]:
    """``H @ point`` without rounding; a matrix that is not symmetric counts as its symmetric part."""
    hessian = program.hessian
    if hessian is None:
        return [Fraction(0)] * program.n
    if isinstance(hessian, LowRankHessian):
        check_size(f"a factor of {hessian.factor.shape}", hessian.factor.size)
        inner = exact_product(hessian.factor, exact_product(hessian.factor.T, point))
        diagonal = as_fractions(hessian.diagonal)
        return [d * x + y for d, x, y in zip(diagonal, point, inner, strict=True)]
    check_size(f"a Hessian of {hessian.shape}", hessian.size)
    right, left = exact_product(hessian, point), exact_product(hessian.T, point)
    return [(a + b) / 2 for a, b in zip(right, left, strict=True)]


def exact_bound(program: Program, known: DualBound) -> Fraction | None:
    """A lower bound on the optimum in rational arithmetic, or None where these multipliers give none.

    Anchor and multipliers of the float64 bound are moved where a variable without a bound needs a reduced gradient of
    exactly 0. Integrality is ignored. A ProgramError where what takes part is too large.
    """
    system = balanced_system(program, known.anchor, known.row_duals)
    return None if system is None else system.bound(known.deficit)


def balanced_system(program: Program, anchor: Array, duals: Array) -> ExactSystem | None:
    """Anchor and multipliers, moved until the reduced gradient is 0 where it must be; None where that fails."""
    system = ExactSystem(program, anchor, duals)
    for _ in range(REPAIRS):
        needs = system.needs()
        if not needs.any():
            return system
        if not system.balance(needs):
            return None
    return None


class ExactSystem:
    """Anchor and multipliers as fractions, with the reduced gradient that follows from them."""

    def __init__(self, program: Program, anchor: Array, duals: Array) -> None:
        self.program, size = program, np.abs(duals) * row_norms(program)
        self.rows = np.flatnonzero(size > NEGLIGIBLE * float(size.max(initial=0.0)))
        what = f"{len(self.rows):,} rows with a multiplier of {program.n:,} variables"
        check_size(what, len(self.rows) * program.n)
        self.matrix = rows_of(program, self.rows)
        self.duals, self.anchor = as_fractions(duals[self.rows]), as_fractions(anchor)
        self.balanced = np.zeros(program.n, dtype=bool)
        self._refresh()

    def _refresh(self) -> None:
        self.curvature = exact_curvature(self.program, self.anchor)
        prices = exact_product(self.matrix.T, self.duals)
        gradient = as_fractions(self.program.gradient)
        self.reduced = [h + g + p for h, g, p in zip(self.curvature, gradient, prices, strict=True)]

    def needs(self) -> Any:
        """Variables without a bound on the side that the reduced gradient pushes them to."""
        return unbounded_side(self.program, np.array([(value > 0) - (value < 0) for value in self.reduced], dtype=int))

    def balance(self, needs: Any) -> bool:
        """Make the reduced gradient exactly 0 there; False where no multipliers do."""
        low, high = self.program.bounds()
        near = near_zero(self.program, np.array([float(value) for value in self.reduced]))
        self.balanced |= needs | ((np.isinf(low) & np.isinf(high)) if not self.balanced.any() else near)
        where = np.flatnonzero(self.balanced)
        order = np.argsort(-np.abs([float(value) for value in self.duals]), kind="stable")
        curved = self._hessian_rows(where)
        chosen = self.matrix[np.ix_(order, where)].T
        table = [tuple([*left, *as_fractions(right)]) for left, right in zip(curved, chosen, strict=True)]
        places = {row: int(j) for row, j in zip(table, where, strict=True)}  # equal equations have equal sides
        check_size(f"equations for {len(places):,} variables without bounds", len(places), LARGEST_SOLVE)
        unknowns = len(table[0])
        check_size(f"{len(places):,} equations in {unknowns:,} unknowns", len(places) ** 2 * unknowns, LARGEST)
        sides = [-self.reduced[j] for j in places.values()]
        found = exact_solve(list(places), sides)
        if found is None:
            return False
        width = len(curved[0])
        if width:
            self.anchor = [value + step for value, step in zip(self.anchor, found[:width], strict=True)]
        for place, step in zip(order, found[width:], strict=True):
            self.duals[int(place)] += step
        self._refresh()
        return True

    def _hessian_rows(self, where: Any) -> list[list[Fraction]]:
        hessian = self.program.hessian
        if hessian is None:
            return [[] for _ in where]
        if not isinstance(hessian, LowRankHessian):
            return [as_fractions(row) for row in hessian[where]]
        check_size(f"a factor of {hessian.factor.shape}", len(where) * hessian.factor.size)
        rows = [exact_product(hessian.factor, as_fractions(hessian.factor[j])) for j in where]
        for row, j in zip(rows, where, strict=True):
            row[j] += Fraction(float(hessian.diagonal[j]))
        return rows

    def bound(self, deficit: float) -> Fraction | None:
        """The lower bound; None where a multiplier has come to stand for an infinite side, or H is not convex."""
        low, high = self.program.bounds()
        total = Fraction(self.program.constant) - _dot(self.curvature, self.anchor) / 2
        for row, dual in zip(self.rows, self.duals, strict=True):
            side = float(self.program.upper[row] if dual > 0 else self.program.lower[row])
            if dual and not np.isfinite(side):
                return None
            total -= dual * Fraction(side) if dual else 0
        for slope, below, above in zip(self.reduced, low, high, strict=True):
            if slope:
                total += slope * Fraction(float(below if slope > 0 else above))
        lack = self._lack(deficit)
        return None if lack is None else total - lack

    def _lack(self, deficit: float) -> Fraction | None:
        """What a Hessian that is not quite convex can take away within the box."""
        if deficit == 0:
            return Fraction(0)
        hessian, (low, high) = self.program.hessian, self.program.bounds()
        curved = hessian.any(axis=0) if isinstance(hessian, np.ndarray) else np.ones(self.program.n, dtype=bool)
        if isinstance(hessian, np.ndarray) and curved.sum() <= LARGEST_SOLVE:
            part = hessian[np.ix_(curved, curved)]
            if np.array_equal(part, part.T) and is_semidefinite(part):
                return Fraction(0)
        if not np.isfinite(deficit) or np.isinf(low[curved]).any() or np.isinf(high[curved]).any():
            return None
        total = Fraction(0)
        for j in np.flatnonzero(curved):
            point = self.anchor[int(j)]
            total += max(abs(point - Fraction(float(low[j]))), abs(Fraction(float(high[j])) - point)) ** 2
        return total * Fraction(deficit) / 2


def _dot(first: list[Fraction], second: list[Fraction]) -> Fraction:
    return sum((a * b for a, b in zip(first, second, strict=True)), Fraction(0))
