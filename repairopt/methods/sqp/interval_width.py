"""IntervalWidth: how far the upper end of a gap's interval lies above the gap, as a property that a repair can bound.

A gap of 0 on the samples at hand is no proof that it is small on others: chance moves the difference of two rates by
their standard errors, which are largest for rates of one half. Where that alone is more than the bound leaves, smaller
buffers or larger ones change nothing; rates nearer to 0 or 1 do.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor

from repairopt.network import Predict
from repairopt.program import Array
from repairopt.specify import spread_of

from .filter import MET
from .limits import Limit
from .nonlinear_program import NonlinearProgram

HALVINGS = 5  # of a way that goes too far


def spread(gap: Any, predict: Predict, *, soft: bool = False, below: Tensor | None = None) -> Tensor:
    """Standard error of the largest, or mean, difference that a gap speaks of, times the root of the number of rows.

    Args:
        gap: With ``compared`` and ``combine``.
        predict: The network.
        soft: Whether rates are those of probabilities in place of counts; differentiable.
        below: On which side of one half the rates are to lie, for each true label; see :func:`spread_of`.
    """
    rates, counts = gap.compared(predict, soft)
    return spread_of(rates, counts, gap.combine, below)


def below_half(gap: Any, predict: Predict) -> Tensor:
    """For each true label within which a gap compares groups, whether their mean rate lies below one half."""
    found: Tensor = gap.compared(predict)[0].mean(1) < 0.5
    return found


@dataclass(frozen=True, eq=False)
class IntervalWidth:
    """A multiple of the spread of a gap.

    Attributes:
        property: A gap with ``compared(predict, soft)``.
        factor: The multiple.
        target: Largest value.
        name: What rows and prices call it.
        below: On which side of one half rates are to lie, or None.
    """

    property: Any
    factor: float
    target: float
    name: str
    below: Tensor | None = None

    def value(self, predict: Predict) -> Tensor:
        """By count."""
        return self.factor * spread(self.property, predict, below=self.below)

    def soft_value(self, predict: Predict) -> Tensor:
        """By probabilities; differentiable."""
        return self.factor * spread(self.property, predict, soft=True, below=self.below)


@dataclass(frozen=True, eq=False)
class WidthLimit:
    """The largest width of a limit's interval.

    Attributes:
        factor: From the spread to the width.
        limit: Largest width.
        below: For each true label within which groups are compared, whether rates are to lie below one half; None
            where either side will do.
    """

    factor: float
    limit: float
    below: Tensor | None = None


def bound_widths(limits: list[Limit], widths: Mapping[str, WidthLimit]) -> list[Limit]:
    """The limits, and for each that has one a limit on its width."""
    found = list(limits)
    for limit in limits:
        asked = widths.get(limit.name)
        if asked is not None:
            name = f"interval of '{limit.name}'"
            width = IntervalWidth(limit.property, asked.factor, asked.limit, name, asked.below)
            found.append(replace(limit, name=name, property=width, limit=asked.limit, buffer=0.0, margin=0.0))
    return found


def shortest_way(problem: NonlinearProgram, start: Array, end: Array) -> Array:
    """About the first point on the way to an end at which the limits are met: a step may go far beyond them."""
    low, high = 0.0, 1.0
    for _ in range(HALVINGS if problem.point(end).violation <= MET else 0):
        middle = (low + high) / 2
        met = problem.point(start + middle * (end - start)).violation <= MET
        low, high = (low, middle) if met else (middle, high)
    return start + high * (end - start)


def on_one_side(widths: Mapping[str, WidthLimit], limits: Sequence[Limit], predict: Predict) -> dict[str, WidthLimit]:
    """The same, with the rates on the side of one half on which a network has them."""
    gaps = {limit.name: limit.property for limit in limits}
    return {name: replace(width, below=below_half(gaps[name], predict)) for name, width in widths.items()}
