"""What must become true and what must stay true: properties, constraints, the specification.

A property or a constraint sees ``predict``, a function from inputs ``(N, ...)`` to logits ``(N, k)``, and never a
parameter. So the same object serves the original model, the repaired model, a thousand trial models at once inside
``torch.vmap``, and differentiation: one definition, no second evaluation path that could disagree.
"""

from __future__ import annotations

import reprlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from repairopt.errors import SpecificationError
from repairopt.network import Predict


@runtime_checkable
class Property(Protocol):
    """A measurable property of a network; smaller is better and 0 is ideal.

    Only ``name``, ``target`` and ``value`` are needed. A class may also have, and the library then uses:

    * ``soft_value(predict) -> Tensor``: a differentiable stand-in for ``value``, which is often a count;
    * ``residuals(predict) -> Tensor (q,)``: signed, differentiable parts that are all 0 in the ideal case
      (Gauss-Newton surrogates are built from them);
    * ``signed_hard(predict) -> Tensor (q,)`` and ``combine``, ``"mean"`` or ``"max"``: the same parts by count, of
      whose sizes the value is the mean or the largest (each then gets rows of its own, for both signs);
    * ``details(predict) -> dict[str, float]``: figures for the report, for example the rate of each group;
    * ``on(inputs, labels) -> Property``: the same property measured on other data (held-out columns of the report).

    Attributes:
        name: What the report calls it.
        target: The network counts as repaired when ``value <= target``.
    """

    name: str
    target: float

    def value(self, predict: Predict) -> Tensor:
        """The property, a scalar. Must give the same number for the same network each time."""
        ...


@runtime_checkable
class Constraint(Protocol):
    """Something that must stay true, as margins that are non-negative where it holds.

    Only ``name`` and ``margins`` are needed. See :class:`SampleConstraint` for the form that scales.

    Attributes:
        name: What the report and the rows call it.
    """

    name: str

    def margins(self, predict: Predict) -> Tensor:
        """Margins ``(m,)``; held where ``margin >= 0``."""
        ...


@runtime_checkable
class SampleConstraint(Constraint, Protocol):
    """A constraint whose margins belong to samples: ``p`` margins for each, a function of that sample's output alone.

    The library evaluates these in batches, linearizes them without a matrix and builds rows for single samples. Row
    ``r`` of the flattened margins is margin ``r % p`` of sample ``r // p``.

    Attributes:
        inputs: The samples, ``(N, ...)``.
    """

    inputs: Tensor

    def margins_of(self, outputs: Tensor, samples: Tensor) -> Tensor:
        """Margins ``(B, p)`` of the samples with indices ``samples (B,)``, given their outputs ``(B, k)``."""
        ...


@runtime_checkable
class ChangeConstraint(Protocol):
    """A constraint on the weight change itself, linear in it; needs no network.

    Attributes:
        name: What the report and the rows call it.
    """

    name: str

    def rows(self, initial: npt.NDArray[np.float64]) -> tuple[Any, npt.NDArray[np.float64], npt.NDArray[np.float64]]:
        """``(A, lower, upper)`` with ``lower <= A delta <= upper``; ``initial (n,)`` are the weights before."""
        ...


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
        goal: Any = self.goal
        if callable(goal) and not hasattr(goal, "value"):
            goal = CallableProperty(goal)
            object.__setattr__(self, "goal", goal)
        if not isinstance(goal, Property):
            raise SpecificationError(
                f"goal {reprlib.repr(goal)}: expected an object with name, target and value(predict), or a plain "
                f"function of predict; got {type(goal).__name__}. repairopt.specify has ready-made ones."
            )
        if not np.isfinite(float(goal.target)):
            raise SpecificationError(f"goal '{goal.name}': target is {goal.target}; expected a finite number.")
        object.__setattr__(self, "constraints", _as_tuple("constraints", self.constraints))
        object.__setattr__(self, "held_out", _as_tuple("held_out", self.held_out))
        object.__setattr__(self, "watch", _as_tuple("watch", self.watch))
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
        names = [item.name for item in self.constraints]
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            raise SpecificationError(
                f"constraints: the name '{twice[0]}' is used {names.count(twice[0])} times; reports and rows are told "
                f"apart by name. Pass name=... to tell them apart."
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
