"""Weights on a grid, as those of a quantized layer are: the program, and a first point by rounding."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np

from repairopt.errors import ProgramError
from repairopt.program.program import Array, Program
from repairopt.program.scaling import scaled_hessian

from .integer_program import IntegerProgram, checked

ROUNDING = 1e-9  # relative to a step: a bound on a grid point is on it, whatever rounding says
ROOM = (0.0, 0.1, 0.25, 0.5, 1.0)  # share of the largest effect of rounding that rows leave room for
FEASIBLE = 1e-7  # largest violation of a rounded point


def grid(
    program: Program, step: float | Array, codes: Array | None = None, limits: tuple[int, int] = (-128, 127)
) -> IntegerProgram:
    """Weights change by whole steps, as those of a quantized layer do; other variables stay as they are.

    ``step``, for each weight or for all, is the scale of the quantized layer; ``codes (n,)`` are the integers that the
    weights are now, ``limits`` the smallest and largest that they may become, for int8 unless given. A ProgramError
    where a step is not above 0, the program is mixed-integer, or no grid point is within the bounds.
    """
    checked(program, 0, "weight", (), 0)
    n = int(program.n_delta or 0)
    unit = np.ones(program.n)
    unit[:n] = step
    if not np.all((unit > 0) & np.isfinite(unit)):
        raise ProgramError(f"program: step {step} of the grid; expected numbers above 0.")
    low, high = (side / unit for side in program.bounds())
    low[:n], high[:n] = np.ceil(low[:n] - ROUNDING), np.floor(high[:n] + ROUNDING)
    if codes is not None:
        low[:n], high[:n] = np.maximum(low[:n], limits[0] - codes), np.minimum(high[:n], limits[1] - codes)
    columns = program.matrix.multiply(unit).tocsr() if hasattr(program.matrix, "tocsr") else program.matrix * unit
    scaled = replace(
        program,
        gradient=program.gradient * unit,
        hessian=scaled_hessian(program.hessian, unit),
        matrix=columns,
        delta_lower=low,
        delta_upper=high,
        integer=np.arange(program.n) < n,
    )
    return IntegerProgram(scaled, program, "nothing", unit=unit)


class Rounding:
    """Search on a grid: round the continuous optimum one weight after the other, then move single weights.

    Where rounding violates rows, all is done again with rows that leave room for it: first a little, in the end so much
    that no rounding can violate them. ``solve`` gives the optimum of a continuous program, or None.
    """

    def __init__(self, integer: IntegerProgram, solve: Callable[[Program], Array | None]) -> None:
        assert integer.program.integer is not None
        self.program, self.solve, self.whole = integer.program, solve, integer.program.integer
        self.low, self.high = self.program.bounds()
        self.sides: tuple[Array, Array] = (self.program.lower, self.program.upper)
        self.best: tuple[float, Array] | None = None

    def run(self) -> None:
        """Dive with ever more room until a feasible point is found, once more with half the room, then move."""
        for share in ROOM:
            self._dive(share)
            if self.best is not None:
                self._dive(share / 2)
                break
        self._move()

    def _dive(self, share: float) -> None:
        """Fix the weight that is closest to the grid, solve again, and so on; each rounded point is tried."""
        low, high = self.program.bounds()
        self.low, self.high = low.copy(), high.copy()
        room = 0.5 * share * np.asarray(abs(self.program.matrix) @ self.whole.astype(np.float64))
        room = np.minimum(room, (self.program.upper - self.program.lower) / 2)
        self.sides = (self.program.lower + room, self.program.upper - room)
        point, rest = self._solved(), set(np.flatnonzero(self.whole).tolist())
        while point is not None:
            self._offer(point)
            if not rest:
                return
            off = np.abs(point - np.round(point))
            j = min(rest, key=lambda i: (off[i], i))
            rest.remove(j)
            point = self._fixed(j, float(point[j]))

    def _solved(self) -> Array | None:
        relaxed = replace(self.program, integer=None, delta_lower=self.low, delta_upper=self.high)
        return self.solve(replace(relaxed, lower=self.sides[0], upper=self.sides[1]))

    def _fixed(self, j: int, value: float) -> Array | None:
        """The continuous optimum with weight ``j`` on the grid point next to a value, or on the one behind it."""
        low, high = self.low[j], self.high[j]
        near = float(np.clip(np.round(value), low, high))
        for whole in (near, near + (1.0 if value > near else -1.0)):
            if low <= whole <= high:
                self.low[j] = self.high[j] = whole
                point = self._solved()
                if point is not None:
                    return point
        return None

    def _offer(self, point: Array) -> bool:
        """Keep a point, rounded, where it is feasible and the best."""
        low, high = self.program.bounds()
        trial = np.where(self.whole, np.clip(np.round(point), low, high), point)
        value = self.program.objective(trial)
        if (self.best is None or value < self.best[0]) and self.program.violation(trial) <= FEASIBLE:
            self.best = (value, trial)
            return True
        return False

    def _move(self) -> None:
        """Move single weights by a step while that improves."""
        improved = self.best is not None
        while improved and self.best is not None:
            point, improved = self.best[1], False
            for j in np.flatnonzero(self.whole):
                for step in (-1.0, 1.0):
                    trial = point.copy()
                    trial[j] += step
                    improved |= self._offer(trial)
