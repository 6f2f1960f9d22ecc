"""Axes of the pictures that pages draw themselves: their ends and their ticks."""

from __future__ import annotations

import math
from collections.abc import Sequence


def span(values: Sequence[float]) -> tuple[float, float]:
    """Ends of an axis, with some room around the values."""
    low, high = min(values), max(values)
    room = 0.08 * (high - low) or 0.05 * abs(high) or 0.05
    return low - room, high + room


def ticks(low: float, high: float) -> list[float]:
    """Three to seven round numbers between the ends of an axis."""
    size = 10.0 ** math.floor(math.log10((high - low) / 4))
    step = next(size * k for k in (1, 2, 5, 10) if size * k >= (high - low) / 6)
    return [round(k * step, 10) for k in range(math.ceil(low / step), math.floor(high / step) + 1)]


def decades(low: float, high: float) -> list[float]:
    """Logarithms of 1, 2 and 5 times powers of ten between the ends of an axis."""
    found = [k + math.log10(m) for k in range(math.floor(low), math.ceil(high) + 1) for m in (1, 2, 5)]
    return [one for one in found if low <= one <= high] or [(low + high) / 2]
