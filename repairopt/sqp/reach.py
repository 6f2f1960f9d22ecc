"""Reach: how far the upper end of a gap's interval lies above the gap, as a property that a repair can bound.

A gap of 0 on the samples at hand is no proof that it is small on others: chance moves the difference of two rates by
their standard errors, which are largest for rates of one half. Where that alone is more than the bound leaves, smaller
buffers or larger ones change nothing; rates nearer to 0 or 1 do.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor

from repairopt.specify import Predict

from .limits import Limit


@dataclass(frozen=True, eq=False)
class Reach:
    """A multiple of the spread of a gap.

    Attributes:
        property: A gap with ``spread(predict, soft)``.
        factor: The multiple.
        target: Largest value.
        name: What rows and prices call it.
    """

    property: Any
    factor: float
    target: float
    name: str

    def value(self, predict: Predict) -> Tensor:
        """By count."""
        found: Tensor = self.property.spread(predict)
        return self.factor * found

    def soft_value(self, predict: Predict) -> Tensor:
        """By probabilities; differentiable."""
        found: Tensor = self.property.spread(predict, soft=True)
        return self.factor * found


@dataclass(frozen=True)
class Reached:
    """What is asked of the reach of a limit.

    Attributes:
        factor: From the spread to the reach.
        limit: Largest reach.
    """

    factor: float
    limit: float


def bound_reaches(limits: list[Limit], reaches: Mapping[str, Reached]) -> list[Limit]:
    """The limits, and for each that has one a limit on its reach."""
    found = list(limits)
    for limit in limits:
        asked = reaches.get(limit.name)
        if asked is not None:
            name = f"interval of '{limit.name}'"
            reach = Reach(limit.property, asked.factor, asked.limit, name)
            found.append(replace(limit, name=name, property=reach, limit=asked.limit, buffer=0.0, margin=0.0))
    return found
