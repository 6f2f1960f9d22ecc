"""Linearized constraints as a source of rows for a working set."""

from __future__ import annotations

import numpy as np

from repairopt.program import Array, Index
from repairopt.specify import price_of

from .linearization import Linearization, Picks


class LinearizedRows:
    """Rows of the hard constraints of a linearization: ``required - margin <= a . step``.

    Margins are looked at by forward mode in the model's own precision, rows are built by reverse mode for the chosen
    ones alone. A float32 model's margins are off by some 1e-6 of their size: choose ``feasibility_tol`` above that.
    ``constraints`` are positions of those to take; None for all without a ``weight``.
    """

    def __init__(self, linearization: Linearization, constraints: tuple[int, ...] | None = None) -> None:
        self.linearization = linearization
        if constraints is None:
            hard = [price_of(one) is None for one in linearization.constraints]
            constraints = tuple(int(c) for c in np.flatnonzero(hard))
        self.constraints = constraints
        self._start = np.cumsum([0] + [len(linearization.margins[c]) for c in constraints])
        self.m = int(self._start[-1])

    def violations(self, delta: Array) -> Array:
        """All linearized margins, short of what is required."""
        margins = self.linearization.at(delta)
        return np.concatenate([np.zeros(0)] + [self.linearization.required[c] - margins[c] for c in self.constraints])

    def rows(self, index: Index) -> tuple[Array, Array, Array]:
        """Gradients of the chosen margins."""
        order = np.argsort(index, kind="stable")
        found = self.linearization.rows(self.picks(index[order]), named=False)
        back = np.argsort(order, kind="stable")
        return found.matrix[back], found.lower[back], found.upper[back]

    def picks(self, index: Index) -> Picks:
        """The chosen rows as margins of each constraint, by its position."""
        owner = np.searchsorted(self._start, index, side="right") - 1
        return {c: index[owner == k] - self._start[k] for k, c in enumerate(self.constraints)}
