"""Checks of numbers that users state: what was expected, what came."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from numbers import Integral, Real
from typing import Any

import numpy as np
import numpy.typing as npt
from torch import Tensor

from repairopt.errors import SpecificationError, shown


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
        if isinstance(value, Tensor | np.ndarray) and value.ndim == 0:
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


def is_sequence(value: Any) -> bool:
    """Whether a value holds several: no text, and no array of one number, which has no items to go through."""
    return hasattr(value, "__iter__") and not isinstance(value, str) and getattr(value, "ndim", 1) != 0


def are_numbers(value: Any, expected: Expected) -> bool:
    """Whether a value holds numbers, at least one, that are all as expected."""
    if not is_sequence(value) or isinstance(value, Mapping):
        return False
    items = list(value)
    return bool(items) and all(map(expected.fits, items))


def as_numbers(owner: str, what: str, value: Any) -> npt.NDArray[np.float64]:
    """A value as an array of float64; a SpecificationError for texts, dates, complex numbers and what is ragged."""
    try:
        found = np.asarray(value.detach().cpu() if isinstance(value, Tensor) else value)
        if found.dtype.kind == "O":
            found = found.astype(np.float64)
        if found.dtype.kind not in "biuf":
            raise TypeError(f"they are of type {found.dtype}")
    except (TypeError, ValueError, OverflowError, RuntimeError) as error:
        raise SpecificationError(
            f"{owner}: {what}={shown(value)} cannot be read as numbers ({error}). Pass real numbers."
        ) from error
    return found.astype(np.float64)


def is_one_of(value: Any, names: Collection[str]) -> bool:
    """Whether a value is one of some names; an array is none of them."""
    return isinstance(value, str) and value in names


def keep_plain(owner: object, *names: str) -> None:
    """Turn attributes that are numbers of other libraries, as checked, into Python's: tensors refuse a Fraction."""
    for name in names:
        value = getattr(owner, name)
        if value is not None and not isinstance(value, int | float):
            object.__setattr__(owner, name, int(value) if isinstance(value, Integral) else float(value))
