"""Interior point in torch for many variables and dense rows: the linear algebra of ``matrix_free.py``.

    minimize    1/2 d'(diag(curvature) + F'F)d + gradient'd
    subject to  lower <= A d <= upper,   low <= d <= high

Mehrotra's predictor and corrector from an infeasible start. Bounds only add to the diagonal, so each step needs one
Cholesky factorization of the size of ``[A; F]`` (Woodbury), formed by one sweep over it, and no matrix of size
``(n, n)``; where rows are more than variables, the normal equations of size ``(n, n)`` take its place. A small proximal
term on the steps, not on the objective, keeps the diagonal positive.

References:
    Mehrotra, On the implementation of a primal-dual interior point method, SIAM J. Optimization 1992.
    Friedlander and Orban, A primal-dual regularized interior-point method for convex quadratic programs, 2012.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from .interior_sides import Sides, Steps
from .program_tensors import NARROW, Data

PROXIMAL = 1e-8  # of steps, in scaled variables
DUAL_PROXIMAL = 1e-10  # of steps, in scaled multipliers
REFINED = 4_000_000  # entries of [A; F] up to which each linear solve is refined
TO_BOUNDARY = 0.995
DIVERGED = 1e12
STALLED = 15  # iterations without progress


@dataclass(frozen=True, eq=False)
class Point:
    """Where the iterations ended: ``"solved"``, ``"stalled"``, ``"time"`` or ``"iterations"``."""

    ending: str
    delta: Tensor
    row_duals: Tensor
    bound_duals: Tensor
    iterations: int


@dataclass(frozen=True)
class Limits:
    """When to stop: residuals relative to ``1 +`` the size of the data, the gap relative to ``1 + |objective|``."""

    feasibility_tol: float
    gap_tol: float
    iterations: int
    deadline: float | None


@dataclass(frozen=True, eq=False)
class Units:
    """One of a scaled variable, row and objective, in the program's own units."""

    variable: Tensor
    row: Tensor
    price: float


def interior_point(data: Data, limits: Limits) -> Point:
    """Run the iterations; ``rows`` and ``factor`` of the data are scaled in place.

    Returns the point with the smallest residuals, in the program's own units.
    """
    data, units = _scaled(data)
    state = _State(data, units)
    ending, count, best, waited = "iterations", 0, float("inf"), 0
    kept = state.snapshot()
    for count in range(limits.iterations + 1):
        worst = max(state.errors(limits))
        waited += 1
        if worst < 0.9 * best:
            best, waited, kept = worst, 0, state.snapshot()
        if worst <= 1.0:
            ending = "solved"
        elif waited >= STALLED or not state.largest() < DIVERGED:
            ending = "stalled"
        elif limits.deadline is not None and time.perf_counter() > limits.deadline:
            ending = "time"
        elif count < limits.iterations:
            if state.advance():
                continue
            ending = "stalled"
        break
    delta, duals, bounds = kept
    price = units.price
    return Point(ending, delta * units.variable, duals * price / units.row, bounds * price / units.variable, count)


def _scaled(data: Data) -> tuple[Data, Units]:
    """Unit curvature where there is any, rows of length one, a gradient of size one."""
    k = len(data.lower)
    total = data.curvature + (data.factor**2).sum(0)
    sizes = data.rows.abs().amax(0) if k else torch.zeros_like(total)
    variable = torch.where(total > 1e-12 * _largest(total), total.rsqrt(), 1.0 / sizes)
    variable = torch.where(torch.isfinite(variable), variable, 1.0).clamp(1e-6, 1e6)
    data.rows.mul_(variable)
    data.factor.mul_(variable)
    row = torch.linalg.vector_norm(data.rows, dim=1)
    row = torch.where(row > 0, row, 1.0)
    data.rows.div_(row.unsqueeze(1))
    gradient = data.gradient * variable
    price = min(1e8, max(1e-8, _largest(gradient)))
    data.factor.div_(price**0.5)
    scaled = replace(
        data,
        curvature=data.curvature * variable**2 / price,
        gradient=gradient / price,
        lower=data.lower / row,
        upper=data.upper / row,
        low=data.low / variable,
        high=data.high / variable,
    )
    return scaled, Units(variable, row, price)


@dataclass(frozen=True, eq=False)
class _Factorized:
    """``D x + [A; F]'y = first``, ``[A; F] x - C y = second`` with diagonal ``D`` and ``C``, ready to be solved.

    ``lower`` is the Cholesky factor of the system without ``x``, or without ``y`` where ``narrow``, with a unit
    diagonal; ``scale`` the square root of what that diagonal was divided by.
    """

    data: Data
    inverse: Tensor
    weight: Tensor
    corner: Tensor
    lower: Tensor
    scale: Tensor
    narrow: bool

    def solve(self, first: Tensor, second: Tensor) -> tuple[Tensor, Tensor]:
        """``x`` and ``y``."""
        data = self.data
        if self.narrow:
            x = self._solved(first + data.transposed(second / self.corner))
            return x, (data.times(x) - second) / self.corner
        y = self._solved(data.times(self.inverse * first) - second)
        return self.inverse * (first - data.transposed(y)), y

    def _solved(self, right: Tensor) -> Tensor:
        return torch.cholesky_solve((right * self.scale).unsqueeze(1), self.lower).squeeze(1) * self.scale


class _State:
    """The current point of a scaled program, and its residuals."""

    def __init__(self, data: Data, units: Units) -> None:
        self.data, self.units = data, units
        self.equal = data.lower == data.upper
        self.target = torch.where(self.equal, data.lower, 0.0)
        self.delta = _inside(data.low, data.high)
        self.value = data.rows @ self.delta
        lower = torch.where(self.equal, -torch.inf, data.lower)
        upper = torch.where(self.equal, torch.inf, data.upper)
        self.bounds, self.sides = Sides(data.low, data.high, self.delta), Sides(lower, upper, self.value)
        self.parts = (self.bounds, self.sides)
        self.count = self.bounds.count + self.sides.count
        mean = sum(part.total_slack() for part in self.parts) / max(1, self.count)
        for part in self.parts:
            part.center(mean)
        self.duals = self.sides.net()
        self.product = 0.0

    def snapshot(self) -> tuple[Tensor, Tensor, Tensor]:
        """Point, multipliers of rows, multipliers of bounds."""
        return self.delta, self.duals, self.bounds.net()

    def largest(self) -> float:
        """Largest coordinate or multiplier of a row."""
        return max(_largest(self.delta), _largest(self.duals))

    def errors(self, limits: Limits) -> tuple[float, float, float]:
        """Primal residual, dual residual and gap, in units of what is allowed, of the unscaled program."""
        data, units = self.data, self.units
        curved = data.curved(self.delta)
        self.residual = -(curved + data.gradient + data.rows.T @ self.duals + self.bounds.net())
        self.row_residuals = self.sides.residuals(self.value)
        self.bound_residuals = self.bounds.residuals(self.delta)
        self.equal_residual = torch.where(self.equal, self.target - self.value, 0.0)
        self.product = sum(part.product() for part in self.parts)
        allowed = 1.0 / units.row + self.sides.size() + self.target.abs()
        primal = max(_largest(r / allowed) for r in (*self.row_residuals, self.equal_residual))
        allowed = 1.0 / units.variable + self.bounds.size()
        primal = max([primal] + [_largest(r / allowed) for r in self.bound_residuals])
        size = 1.0 / units.price + _largest(data.gradient) + _largest(curved)
        dual = _largest(self.residual / units.variable) / max(1e-300, _largest(size / units.variable))
        value = float(self.delta @ (0.5 * curved + data.gradient))
        gap = self.product / (1.0 / units.price + abs(value))
        return primal / limits.feasibility_tol, dual / limits.feasibility_tol, gap / limits.gap_tol

    def advance(self) -> bool:
        """One predictor and corrector; False where the factorization fails or no step is possible."""
        factorized = self._factorized()
        if factorized is None:
            return False
        targets = [[torch.zeros_like(s) for s in part.slack] for part in self.parts]
        moves = self._direction(factorized, targets)
        if self.count:
            length = self._length(moves[1])
            after = sum(part.product_after(steps, length) for part, steps in zip(self.parts, moves[1], strict=True))
            center = self.product / self.count * min(1.0, max(0.0, after / self.product)) ** 3
            targets = [[center - a * b for a, b in zip(*steps, strict=True)] for steps in moves[1]]
            moves = self._direction(factorized, targets)
        length = min(1.0, TO_BOUNDARY * self._length(moves[1])) if self.count else 1.0
        if not length > 1e-10:
            return False
        (step, moved, duals), steps = moves
        self.delta, self.value = self.delta + length * step, self.value + length * moved
        self.duals = self.duals + length * duals
        for part, change in zip(self.parts, steps, strict=True):
            part.move(change, length)
        return True

    def _factorized(self) -> _Factorized | None:
        """The linear system of this point; None where its factorization fails."""
        data = self.data
        inverse = 1.0 / (data.curvature + self.bounds.weight() + PROXIMAL)
        weight = torch.where(self.equal, 1.0, self.sides.weight())
        corner = torch.ones(len(weight) + len(data.factor), dtype=weight.dtype, device=weight.device)
        corner[: len(weight)] = torch.where(self.equal, 0.0, 1.0 / weight) + DUAL_PROXIMAL
        narrow = len(corner) > NARROW * len(inverse)
        gram = data.normal(1.0 / corner) if narrow else data.gram(inverse)
        gram.diagonal().add_(1.0 / inverse if narrow else corner)
        scale = gram.diagonal().rsqrt()
        gram.mul_(scale.unsqueeze(1)).mul_(scale)
        lower, info = torch.linalg.cholesky_ex(gram)
        if int(info):
            gram.diagonal().add_(1e-12)
            lower, info = torch.linalg.cholesky_ex(gram)
        return None if int(info) else _Factorized(data, inverse, weight, corner, lower, scale, narrow)

    def _direction(
        self, factorized: _Factorized, targets: list[list[Tensor]]
    ) -> tuple[tuple[Tensor, Tensor, Tensor], list[Steps]]:
        """Changes of point, row values and row multipliers; then of slacks and multipliers of bounds and sides."""
        inverse, weight, corner = factorized.inverse, factorized.weight, factorized.corner
        data, k, solve = self.data, len(self.duals), factorized.solve
        first = self.residual - self.bounds.shift(self.bound_residuals, targets[0])
        second = torch.zeros_like(corner)
        shift = self.sides.shift(self.row_residuals, targets[1])
        second[:k] = torch.where(self.equal, self.equal_residual, -shift / weight)
        step, y = solve(first, second)
        moved = data.times(step)
        if data.rows.numel() + data.factor.numel() <= REFINED:
            dx, dy = solve(first - step / inverse - data.transposed(y), second - moved + corner * y)
            step, y = step + dx, y + dy
            moved = data.times(step)
        bounds = self.bounds.steps(step, self.bound_residuals, targets[0])
        sides = self.sides.steps(moved[:k], self.row_residuals, targets[1], y[:k])
        return (step, moved[:k], y[:k]), [bounds, sides]

    def _length(self, steps: list[Steps]) -> float:
        return min([1.0 / TO_BOUNDARY] + [part.longest(change) for part, change in zip(self.parts, steps, strict=True)])


def _inside(low: Tensor, high: Tensor) -> Tensor:
    """The point nearest to zero that keeps a tenth of the width, at most 1, from each bound."""
    room = torch.where(torch.isfinite(low) & torch.isfinite(high), 0.1 * (high - low), 1.0).clamp(max=1.0)
    zero = torch.zeros_like(low)
    return torch.minimum(torch.maximum(zero, low + room), high - room)


def _largest(values: Tensor) -> float:
    return float(values.abs().max()) if values.numel() else 0.0
