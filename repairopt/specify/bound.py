"""Bound: a property as a constraint."""

from __future__ import annotations

import reprlib
from dataclasses import dataclass, is_dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from repairopt.errors import SpecificationError
from repairopt.network import Predict

from .contracts import Keep, Property, Unstated, refuse_void, restricted, soft_value
from .expected import Expected, keep_plain
from .margins import SHARE_ROUNDING, anchor


def _aimed(prop: Any, limit: float | None) -> Any:
    """The property with the limit as its target, where nobody stated one.

    An error rate with a target of 0 speaks of given points alone; one that may be more stands for a population.
    """
    unstated = isinstance(getattr(prop, "target", None), Unstated) and is_dataclass(prop)
    return replace(prop, target=limit) if unstated and not isinstance(prop, type) else prop


@dataclass(frozen=True, eq=False)
class Bound:
    """A property must not exceed a limit: one row with the property's value and the gradient of its soft value.

    Attributes:
        property: What is bounded; a target of its own must be the limit.
        limit: Its limit; None for the value that the original network has ("not worse than before"), and ``slack``.
        slack: Added to the original network's value where that is the limit.
        buffer: Taken off the limit in the linearized row.
        weight: None for a hard row, or the price of a violation.
        name: What rows and report call it; the property's name unless given.
        relative: Whether the limit was taken from the original network; set where that happens.
    """

    property: Property
    limit: float | None = None
    slack: float = 0.0
    buffer: float = 0.0
    weight: float | None = None
    name: str = ""
    relative: bool = False

    def __post_init__(self) -> None:
        if isinstance(self.property, type) or not isinstance(self.property, Property):
            raise SpecificationError(
                f"bound: property is {reprlib.repr(self.property)}; expected an object with name, target and "
                f"value(predict), such as ErrorRate(x, y)."
            )
        free, price = Expected(-np.inf), Expected(above=True, none=True)
        numbers = {"slack": free, "buffer": free, "weight": price}
        if self.limit is None or not isinstance(self.limit, float) or not np.isinf(self.limit):
            numbers["limit"] = replace(free, none=True)
        for what, expected in numbers.items():
            if not expected.fits(getattr(self, what)):
                raise SpecificationError(
                    f"bound on '{self.property.name}': {what} is {getattr(self, what)!r}; expected {expected}."
                )
        keep_plain(self, *numbers)
        if not isinstance(self.name, str) or not isinstance(self.relative, bool | np.bool_):
            raise SpecificationError(
                f"bound on '{self.property.name}': name={self.name!r}, relative={self.relative!r}; expected a text, "
                f"and True or False."
            )
        if not self.relative:
            self._check_numbers()
        if not self.name:
            object.__setattr__(self, "name", f"{self.property.name} bounded")

    def _check_numbers(self) -> None:
        """No number that was given is ignored: a target of the property, a slack beside a limit, or what is void."""
        if self.limit is not None:
            what = f"bound on '{self.property.name}': limit"
            refuse_void(what, self.property, float(self.limit))
            if np.isneginf(self.limit):
                raise SpecificationError(f"{what} is {self.limit}, which no network meets; expected a number.")
        target, default = getattr(self.property, "target", None), getattr(type(self.property), "target", None)
        stated = isinstance(default, Unstated) or (isinstance(default, int | float) and target != default)
        if stated and not isinstance(target, Unstated) and target != self.limit:
            raise SpecificationError(
                f"bound on '{self.property.name}': its target {target:g} is not the limit, which is "
                f"{'that of the original network' if self.limit is None else f'{self.limit:g}'}. Leave the target out, "
                f"or pass limit={target:g}."
            )
        if self.slack and self.limit is not None:
            raise SpecificationError(
                f"bound on '{self.property.name}': slack={self.slack:g} is added to the original network's value, but "
                f"limit={self.limit:g} is given. Leave one of them out."
            )

    def anchor(self, predict: Predict) -> Bound:
        """Take the limit from the original network ``predict`` where none was given."""
        own = replace(self, property=anchor(self.property, predict))
        if self.limit is None:
            own = replace(own, limit=float(own.property.value(predict)) + self.slack, relative=True)
        return replace(own, property=_aimed(own.property, own.limit))

    def margins(self, predict: Predict) -> Tensor:
        """``limit - value``, shape ``(1,)``; 0 where it is negative by rounding alone."""
        assert self.limit is not None, "anchor() first"
        margin = (self.limit - self.property.value(predict)).reshape(1)
        small = SHARE_ROUNDING * max(1.0, abs(self.limit))
        return torch.where((margin < 0) & (margin >= -small), torch.zeros_like(margin), margin)

    def soft_margins(self, predict: Predict) -> Tensor:
        """The same from the soft value, for derivatives."""
        assert self.limit is not None, "anchor() first"
        return torch.as_tensor(self.limit - soft_value(self.property)(predict)).reshape(1)

    def required(self, margins: Tensor) -> Tensor:
        """Smallest margin that the row asks for."""
        return torch.full_like(margins, self.buffer)

    def on(self, inputs: Any, labels: Any) -> Bound:
        """The same bound on other data; a limit taken from the original network is taken anew."""
        return replace(self, property=self.property.on(inputs, labels))  # type: ignore[attr-defined]

    def where(self, keep: Keep) -> Bound:
        """The same bound on the samples that ``keep`` chooses, where its property can be restricted to them."""
        return replace(self, property=restricted(self.property, keep))
