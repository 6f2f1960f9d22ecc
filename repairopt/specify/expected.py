"""Checks of numbers that users state: what was expected, what came."""

from __future__ import annotations

import math
from dataclasses import dataclass
from numbers import Integral, Real
from typing import Any

from torch import Tensor


@dataclass(frozen=True)
class Expected:
    """What a number that a user states may be; never infinite.

    Attributes:
        low: Smallest value.
        high: Largest value.
        above: Whether ``low`` itself is too little.
        below: Whether ``high`` itself is too much.
        whole: Whether it counts something.
        none: Whether None stands for a choice of the method's own.
    """

    low: float = 0.0
    high: float = math.inf
    above: bool = False
    below: bool = False
    whole: bool = False
    none: bool = False

    def fits(self, value: Any) -> bool:
        """Whether a value is such a number."""
        if value is None:
            return self.none
        if isinstance(value, Tensor) and value.ndim == 0:
            value = value.item()
        if isinstance(value, bool) or not isinstance(value, Integral if self.whole else Real):
            return False
        try:
            number = float(value)
        except OverflowError:
            return False
        if math.isinf(number):
            return False
        low = number > self.low if self.above else number >= self.low
        return low and (number < self.high if self.below else number <= self.high)

    def __str__(self) -> str:
        text = "a whole number" if self.whole else "a number"
        if math.isinf(self.low):
            return text + (", or None" if self.none else "")
        text += f" above {self.low:g}" if self.above else f", {self.low:g} or more"
        if math.isfinite(self.high):
            text += f", below {self.high:g}" if self.below else f", at most {self.high:g}"
        return text + (", or None" if self.none else "")
