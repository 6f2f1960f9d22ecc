"""Boxes of parameters and the inputs that they stand for, for the check of proofs.

A convex hull is given by its vertices: its inputs are ``weights @ vertices`` with weights of at least 0 whose sum is 1,
and boxes divide the weights. For every number ``s`` a linear function ``c`` of weights whose sum is 1 is
``s + (c - s) . weights``, so its least value on a box of weights is at least ``s + sum min((c - s) l, (c - s) u)``:
a bound that holds for any ``s``, and is exact for the best one.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from repairopt.program.program import Array

U = 2.0**-53
INFLATED = 1 + 1e-9  # covers rounding in the error terms themselves


def _gamma(terms: int) -> float:
    return terms * U / (1 - terms * U) * (1 + 8 * U)


@dataclass(frozen=True, eq=False)
class Hulls:
    """Sets of inputs ``parameters @ vertices`` for a batch of boxes of parameters.

    Attributes:
        lower: ``(B, p)``.
        upper: ``(B, p)``.
        vertices: ``(B, p, d)``.
        hull: Of which boxes only the parameters count whose sum is 1, ``(B,)``.
    """

    lower: Array
    upper: Array
    vertices: Array
    hull: Any

    @cached_property
    def largest(self) -> Array:
        """Sizes of parameters, ``(B, p)``."""
        return np.maximum(np.abs(self.lower), np.abs(self.upper))

    def lowest(self, slopes: Array) -> tuple[Array, Array, Array]:
        """Lower bounds of linear functions ``slopes (B, S, d)`` of the inputs.

        Returns:
            Least values ``(B, S)``, what rounding has added to them at most ``(B, S)``, and the coefficients of the
            parameters ``(B, S, p)``.
        """
        pulled = slopes @ self.vertices.transpose(0, 2, 1)
        shift = np.where(self.hull[:, None], self._critical(pulled), 0.0)
        own = pulled - shift[..., None]
        ends = np.minimum(own * self.lower[:, None], own * self.upper[:, None])
        value = shift + ends.sum(-1)
        terms = np.abs(shift) + np.matmul(np.abs(own), self.largest[..., None])[..., 0]
        sizes = np.matmul(np.abs(self.vertices).transpose(0, 2, 1), self.largest[..., None])  # (B, d, 1)
        lost = _gamma(slopes.shape[2]) * np.matmul(np.abs(slopes), sizes)[..., 0]
        return value, (_gamma(slopes.shape[2] + pulled.shape[2] + 4) * terms + lost) * INFLATED, pulled

    def corners(self, pulled: Array) -> Array:
        """Parameters ``(B, p)`` of each box at which linear functions ``(B, p)`` of them are least."""
        order, room, left = self._filled(pulled[:, None])
        filled = np.zeros_like(room)
        np.put_along_axis(filled, order, np.minimum(np.maximum(left, 0), room), -1)
        ends = np.where(pulled > 0, self.lower, self.upper)
        return np.where(self.hull[:, None], self.lower + filled[:, 0], ends)

    def middles(self) -> Array:
        """Parameters in the middle of each box, ``(B, p)``."""
        width = self.upper - self.lower
        share = (1 - self.lower.sum(1)) / np.maximum(width.sum(1), 1e-300)
        return self.lower + np.where(self.hull, share, 0.5)[:, None] * width

    def ranges(self) -> tuple[Array, Array]:
        """What each parameter takes in a box, ``(B, p)`` each; for the choice of splits alone."""
        least = 1 - (self.upper.sum(1, keepdims=True) - self.upper)
        most = 1 - (self.lower.sum(1, keepdims=True) - self.lower)
        hull = self.hull[:, None]
        low = np.where(hull, np.maximum(self.lower, least), self.lower)
        return low, np.where(hull, np.minimum(self.upper, most), self.upper)

    def are_empty(self) -> Any:
        """Which boxes have no weights whose sum is 1, ``(B,)``; exactly, since the sums are rounded correctly."""
        ends = zip(self.lower.tolist(), self.upper.tolist(), strict=True)
        found = [math.fsum([-1.0, *low]) > 0 or math.fsum([-1.0, *high]) < 0 for low, high in ends]
        return self.hull & np.array(found, dtype=bool)

    def box(self) -> tuple[Array, Array]:
        """Boxes ``(B, d)`` around the inputs."""
        eye = np.broadcast_to(np.eye(self.vertices.shape[2]), (len(self.lower), *2 * self.vertices.shape[2:]))
        (low, low_error, _), (high, high_error, _) = self.lowest(eye), self.lowest(-eye)
        low_error, high_error = (e + 4 * U * np.abs(v) for v, e in ((low, low_error), (high, high_error)))
        return low - low_error, -(high - high_error)

    def inputs(self, parameters: Array) -> Array:
        """Inputs ``(N, d)`` of parameters ``(N, p)`` of the first box, rounded once."""
        exact = np.asarray(parameters, dtype=np.longdouble)
        if self.hull[0]:
            exact = exact / exact.sum(1, keepdims=True)
        return (exact @ self.vertices[0].astype(np.longdouble)).astype(np.float64)

    def _filled(self, pulled: Array) -> tuple[Any, Array, Array]:
        """The order ``(B, S, p)`` of coefficients, the widths in it, and what is left of the sum before each."""
        order = np.argsort(pulled, axis=-1)
        room = np.take_along_axis(np.broadcast_to((self.upper - self.lower)[:, None], pulled.shape), order, -1)
        left = (1 - self.lower.sum(1))[:, None, None] - (np.cumsum(room, -1) - room)
        return order, room, left

    def _critical(self, pulled: Array) -> Array:
        """The coefficient at which the sum of the weights is reached, ``(B, S)``: the best shift."""
        order, room, left = self._filled(pulled)
        place = np.minimum((left > room).sum(-1, keepdims=True), pulled.shape[2] - 1)
        return np.take_along_axis(pulled, np.take_along_axis(order, place, -1), -1)[..., 0]
