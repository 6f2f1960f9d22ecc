"""The specification: one goal, what must stay true, what is verified only; and plain functions as goals."""

from __future__ import annotations

import reprlib
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from repairopt.errors import SpecificationError
from repairopt.network import Predict

from .contracts import ChangeConstraint, Constraint, Property


@dataclass(frozen=True)
class CallableProperty:
    """A plain function ``predict -> number`` as a property.

    Attributes:
        function: Called with ``predict``; returns a float or a scalar tensor, smaller is better.
        target: The network counts as repaired when the function returns at most this.
        name: What the report calls it; the function's own name unless given.
    """

    function: Callable[[Predict], Any]
    target: float = 0.0
    name: str = ""

    def __post_init__(self) -> None:
        if not self.name:
            object.__setattr__(self, "name", getattr(self.function, "__name__", type(self.function).__name__))

    def value(self, predict: Predict) -> Tensor:
        """Whatever the function returns, as a scalar tensor."""
        found = self.function(predict)
        return found if isinstance(found, Tensor) else torch.tensor(found, dtype=torch.float64)


def as_property(goal: Any, target: float | None = None) -> Any:
    """A plain function as a property with a target, 0 unless given; others as they are, or with the target given."""
    if callable(goal) and not hasattr(goal, "value"):
        return CallableProperty(goal, 0.0 if target is None else float(target))
    if target is None:
        return goal
    try:
        return replace(goal, target=float(target))
    except TypeError:
        raise SpecificationError(
            f"goal {goal!r}: target= can override the target of a dataclass only; set it on the object."
        ) from None


@dataclass(frozen=True)
class Specification:
    """One goal, the constraints, and what is verified but never optimized on.

    Attributes:
        goal: The property to bring to its target.
        constraints: What must stay true.
        held_out: Properties and constraints on data that the repair never sees. One with the name of the goal or of a
            constraint stands beside it in the report.
        watch: Further properties to report on repair data; neither goal nor constraint.
    """

    goal: Property
    constraints: tuple[Constraint | ChangeConstraint, ...] = ()
    held_out: tuple[Property | Constraint, ...] = ()
    watch: tuple[Property, ...] = ()

    def __post_init__(self) -> None:
        goal = as_property(self.goal)
        object.__setattr__(self, "goal", goal)
        if not isinstance(goal, Property):
            raise SpecificationError(
                f"goal {reprlib.repr(goal)}: expected an object with name, target and value(predict), or a plain "
                f"function of predict; got {type(goal).__name__}. repairopt.specify has ready-made ones."
            )
        if not np.isfinite(float(goal.target)):
            raise SpecificationError(f"goal '{goal.name}': target is {goal.target}; expected a finite number.")
        for part in ("constraints", "held_out", "watch"):
            object.__setattr__(self, part, _as_tuple(part, getattr(self, part)))
        for item in self.constraints:
            if not isinstance(item, Constraint | ChangeConstraint):
                raise SpecificationError(
                    f"constraint {reprlib.repr(item)}: expected an object with name and margins(predict), or with name "
                    f"and rows(initial); got {type(item).__name__}. repairopt.specify has ready-made ones."
                )
        for other in (*self.held_out, *self.watch):
            if not isinstance(other, Property | Constraint):
                raise SpecificationError(
                    f"held_out, watch: expected properties and constraints, or for held_out one pair (inputs, labels); "
                    f"got {type(other).__name__}."
                )
        name, count = Counter(item.name for item in self.constraints).most_common(1)[0] if self.constraints else ("", 1)
        if count > 1:
            raise SpecificationError(
                f"constraints: the name '{name}' is used {count} times; reports and rows are told apart by name. Pass "
                f"name=... to tell them apart."
            )

    @property
    def on_outputs(self) -> tuple[Constraint, ...]:
        """The constraints that look at the network's outputs."""
        return tuple(c for c in self.constraints if isinstance(c, Constraint))

    @property
    def on_change(self) -> tuple[ChangeConstraint, ...]:
        """The constraints that look at the weight change alone."""
        return tuple(c for c in self.constraints if not isinstance(c, Constraint))


def _as_tuple(what: str, value: Any) -> tuple[Any, ...]:
    if isinstance(value, Mapping | str) or not isinstance(value, Sequence):
        if hasattr(value, "name"):
            return (value,)
        raise SpecificationError(f"{what}: expected a list or tuple, got {type(value).__name__}.")
    return tuple(value)
