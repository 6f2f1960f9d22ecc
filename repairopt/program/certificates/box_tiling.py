"""Whether boxes tile a box, exactly: comparisons of floating-point numbers only, no sums of volumes."""

from __future__ import annotations

import numpy as np

from repairopt.program.program import Array


def boxes_tile(lower: Array, upper: Array, inner_lower: Array, inner_upper: Array) -> bool:
    """Whether boxes cover a box, without overlap of their interiors and without going beyond it.

    Only partitions that come from cuts through whole boxes, as branch and bound makes them, are recognized.

    Args:
        lower: Of the box that is to be covered, ``(d,)``.
        upper: ``(d,)``.
        inner_lower: Of the boxes that are to cover it, ``(L, d)``.
        inner_upper: ``(L, d)``.
    """
    waiting = [(lower, upper, np.arange(len(inner_lower)))]
    while waiting:
        low, up, inside = waiting.pop()
        own_low, own_up = inner_lower[inside], inner_upper[inside]
        if len(inside) == 1:
            if not (np.array_equal(own_low[0], low) and np.array_equal(own_up[0], up)):
                return False
            continue
        if not len(inside) or not ((own_low >= low).all() and (own_up <= up).all()):
            return False
        found = _cut(low, own_low, own_up)
        if found is None:
            return False
        dimension, place = found
        below = own_low[:, dimension] < place
        left_up, right_low = up.copy(), low.copy()
        left_up[dimension] = right_low[dimension] = place
        waiting += [(low, left_up, inside[below]), (right_low, up, inside[~below])]
    return True


def _cut(low: Array, own_low: Array, own_up: Array) -> tuple[int, float] | None:
    """A plane that runs through no box: its dimension and place, as near to the median box as may be."""
    for dimension in range(len(low)):
        starts = own_low[:, dimension]
        order = np.argsort(starts, kind="stable")
        ends = np.maximum.accumulate(own_up[order, dimension])
        places = np.unique(starts)
        places = places[places > low[dimension]]
        first = np.searchsorted(starts[order], places, side="left")
        good = np.flatnonzero(ends[first - 1] <= places)
        if len(good):
            middle = good[np.argmin(np.abs(first[good] - len(own_low) // 2))]
            return dimension, float(places[middle])
    return None
