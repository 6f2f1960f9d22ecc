"""Contracts: what a property or a constraint may offer, each as a small protocol.

A property or a constraint sees ``predict``, a function from inputs ``(N, ...)`` to logits ``(N, k)``, and never a
parameter. So the same object serves the original model, the repaired model, a thousand trial models at once inside
``torch.vmap``, and differentiation: one definition, no second evaluation path that could disagree.

Only :class:`Property`, :class:`Constraint` or :class:`ChangeConstraint` is needed; every other protocol is an offer.
Nothing in the library asks for a class: a class of the user with the members of a built-in one gets the same treatment.
``repairopt.interfaces.testing.check_property`` tries every member that a class has and names those that it lacks.
"""

from __future__ import annotations

import functools
from abc import ABCMeta
from collections.abc import Callable
from dataclasses import is_dataclass, replace
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from repairopt.errors import SpecificationError
from repairopt.network import Predict

from .intervals import Interval

Array = npt.NDArray[np.float64]
Keep = Callable[[Tensor], Tensor]  # from inputs (N, ...) to a mask (N,)


if TYPE_CHECKING:
    _OfProtocols = ABCMeta
else:
    _OfProtocols = type(Protocol)


class _Contract(_OfProtocols):
    """What a contract asks for is listed once; Python 3.11 lists it at each ``isinstance``."""

    def __instancecheck__(cls, item: Any) -> bool:
        if not cls.__dict__.get("_is_protocol"):
            return super().__instancecheck__(item)  # a class of the user that derives from a contract
        return all(
            getattr(item, name, None) is not None if method else hasattr(item, name) for name, method in _members(cls)
        )


@functools.cache
def _members(contract: type) -> tuple[tuple[str, bool], ...]:
    """Names that a contract asks for, each with whether it is a method, which must not be None."""
    bases = [base for base in contract.__mro__ if base.__dict__.get("_is_protocol") and base is not Protocol]
    names = {name for base in bases for name in (*vars(base), *base.__dict__.get("__annotations__", {}))}
    return tuple((name, callable(getattr(contract, name, None))) for name in sorted(names) if name[0] != "_")


@runtime_checkable
class Property(Protocol, metaclass=_Contract):
    """A measurable property of a network; smaller is better and 0 is ideal.

    The report calls it ``name``; the network counts as repaired when ``value <= target``.
    """

    name: str
    target: float

    def value(self, predict: Predict) -> Tensor:
        """The property, a scalar. Must give the same number for the same network each time."""


def refuse_void(what: str, prop: Any, number: float) -> None:
    """A SpecificationError where a share is to be at most a number above 1, which it is always; ``what`` has it."""
    if getattr(prop, "is_share", False) and number > 1:
        meant = f", {number / 100:g} for {number:g} %" if number <= 100 else ""
        raise SpecificationError(
            f"{what} is {number:g}, which holds of every network; expected a share, 0 to 1{meant}."
        )


def answers_only(item: Any) -> bool:
    """Whether what is stated depends on the answers alone, not on the size of outputs, so that these may be rescaled.

    A class says so with an attribute ``answers_only = True``; its slopes and leads are taken from logits.
    """
    return bool(getattr(measured(item), "answers_only", False))


@runtime_checkable
class Differentiable(Protocol, metaclass=_Contract):
    """Slopes from derivatives in place of samples; the largest gain in speed and quality."""

    def soft_value(self, predict: Predict) -> Tensor:
        """A differentiable stand-in for ``value``, which is often a count; a scalar."""


@runtime_checkable
class Residuals(Protocol, metaclass=_Contract):
    """Gauss-Newton surrogates."""

    def residuals(self, predict: Predict) -> Tensor:
        """Signed, differentiable parts ``(q,)`` that are all 0 in the ideal case."""


@runtime_checkable
class SignedParts(Residuals, Protocol):
    """A row for each part and sign, so that no step overshoots 0.

    An attribute ``combine``, ``"max"`` or ``"mean"``, says that the value is the largest or the mean size of the parts.
    """

    def signed_hard(self, predict: Predict) -> Tensor:
        """The residuals by count, ``(q,)``, in the same order."""


@runtime_checkable
class SampleShare(Property, Protocol):
    """Rows for single samples where the target is 0, buffers as leads in logits, and the sampling error of a rate.

    The value grows with the number of counted samples that have a negative margin, and is 0 where none has one. Samples
    are ``inputs (N, ...)``; ``counted`` has the indices of those that can count ``(C,)``, None for all, whose answers
    the repair may then change.
    """

    inputs: Tensor
    counted: Tensor | None

    def margins_of(self, outputs: Tensor, samples: Tensor) -> Tensor:
        """Margins ``(B, p)`` of the samples with indices ``samples (B,)``, given their outputs ``(B, k)``."""


@runtime_checkable
class Statistical(Protocol, metaclass=_Contract):
    """Claims about new data and, with ``where``, buffers from cross-validation.

    A class whose samples stand for nothing but themselves says so with an attribute ``statistical = False``.
    """

    def interval(self, predict: Predict, confidence: float = 0.95) -> Interval:
        """Where the value on new data lies, two-sided."""


@runtime_checkable
class Restrictable(Protocol, metaclass=_Contract):
    """Cross-validation, and intervals of a difference against the original network."""

    def where(self, keep: Keep) -> Any:
        """The same on the samples that ``keep`` chooses, a mask ``(N,)`` from inputs ``(N, ...)``."""


@runtime_checkable
class Transferable(Protocol, metaclass=_Contract):
    """A held-out column in the report, from ``held_out=(inputs, labels)``."""

    def on(self, inputs: Any, labels: Any) -> Any:
        """The same on other data."""


@runtime_checkable
class Anchored(Protocol, metaclass=_Contract):
    """Comparisons with the original network."""

    def anchor(self, predict: Predict) -> Any:
        """The same with everything fixed that it takes from the original network ``predict``."""


@runtime_checkable
class Detailed(Protocol, metaclass=_Contract):
    """Further figures in the report, before and after."""

    def details(self, predict: Predict) -> dict[str, float]:
        """Figures by name, for example the rate of each group."""


@runtime_checkable
class Labelled(Protocol, metaclass=_Contract):
    """Accuracy, recalls and leads in the report; labelled data whose cross-entropy the repair keeps small.

    Samples are ``inputs (N, ...)``, their classes ``labels (N,)``.
    """

    inputs: Tensor
    labels: Tensor


@runtime_checkable
class GroupRates(Property, Statistical, Protocol):
    """Rates by group in the pictures, and bounds on the width of the interval of a gap.

    ``combine`` is ``"max"`` for the largest difference of rates, else their mean.
    """

    combine: str

    def compared(self, predict: Predict, soft: bool = False) -> tuple[Tensor, Tensor]:
        """Rates, by count or by probabilities, and the samples behind each, ``(c, q)`` each; compared within a row."""


@runtime_checkable
class Divided(Property, Protocol):
    """Rows that are in no group are counted, columns of held-out frames are compared, claims take part in differences.

    ``samples`` has the inputs and the group of each (:class:`repairopt.specify.groups.samples.GroupSamples`).
    """

    samples: Any


@runtime_checkable
class Grouped(Divided, Protocol):
    """Thresholds by group as a reference, and tables of fairlearn's metrics; ``favorable`` is the favorable label."""

    favorable: int


@runtime_checkable
class Subsampled(Protocol, metaclass=_Contract):
    """Quick looks, such as fault localization, at fewer samples."""

    def subsample(self, count: int, seed: int = 0) -> Any:
        """The same on at most ``count`` samples."""


@runtime_checkable
class Undesired(Protocol, metaclass=_Contract):
    """A measure of its own for blaming neurons (CARE)."""

    def undesired(self, predict: Predict) -> Tensor:
        """Undesired behavior, a scalar; larger is worse."""


@runtime_checkable
class Certified(Property, Protocol):
    """A picture of certified radii."""

    def radii(self, predict: Predict) -> Tensor:
        """Certified radius of each input ``(N,)``; 0 where none is certified."""


@runtime_checkable
class Attacked(Property, Protocol):
    """A picture of margins under attack."""

    def attacked(self, predict: Predict) -> tuple[Tensor, Tensor]:
        """The worst points found ``(N, ...)`` and their margins ``(N,)``."""


@runtime_checkable
class Constraint(Protocol, metaclass=_Contract):
    """Something that must stay true, as margins that are non-negative where it holds; reports call it ``name``.

    A class may also have ``soft_margins(predict)``, a differentiable stand-in for margins by count; ``required(margins)
    -> (m,)``, the smallest margins that rows ask for, given those of the original network; ``weight``, the price of a
    violation where rows are wishes (None where they are hard); ``tolerance``, the share of the samples that it speaks
    of, or of its margins, that may fail; and ``allowed``, their number in place of a share.
    """

    name: str

    def margins(self, predict: Predict) -> Tensor:
        """Margins ``(m,)``; held where ``margin >= 0``."""


@runtime_checkable
class SampleConstraint(Constraint, Protocol):
    """A constraint whose margins belong to samples: ``p`` margins for each, a function of that sample's output alone.

    Row ``r`` of the flattened margins is margin ``r % p`` of sample ``r // p`` of the ``inputs (N, ...)``. A class may
    also have ``samples``, the indices of those that it speaks of, ``describe(sample, index) -> str``, what a margin
    says, and ``sides(samples)``, sizes ``(B, p)`` of what outputs are compared with, for the rounding of margins.
    """

    inputs: Tensor

    def margins_of(self, outputs: Tensor, samples: Tensor) -> Tensor:
        """Margins ``(B, p)`` of the samples with indices ``samples (B,)``, given their outputs ``(B, k)``."""


@runtime_checkable
class PropertyBound(Constraint, Protocol):
    """A constraint that a ``property`` must not exceed a ``limit``, None until ``anchor`` took it.

    ``buffer`` is taken off the limit in the rows; ``relative`` says whether the limit is the original network's value.
    """

    property: Property
    limit: float | None
    buffer: float
    relative: bool


@runtime_checkable
class ChangeConstraint(Protocol, metaclass=_Contract):
    """A constraint on the weight change itself, linear in it; needs no network. The report calls it ``name``."""

    name: str

    def rows(self, initial: Array) -> tuple[Any, Array, Array]:
        """``(A, lower, upper)`` with ``lower <= A delta <= upper``; ``initial (n,)`` are the weights before."""


@runtime_checkable
class ChangeBox(Protocol, metaclass=_Contract):
    """A constraint on the weight change that is a bound for each weight, which solvers take without rows."""

    def box(self, initial: Array) -> tuple[Array, Array]:
        """``(lower, upper)``, ``(n,)`` each."""


def measured(item: Any) -> Any:
    """The property that a bound speaks of; any other property or constraint as it is."""
    return item.property if isinstance(item, PropertyBound) else item


def inputs_of(item: Any) -> Tensor | None:
    """The inputs of a property or constraint: its own, or those of its groups; None where it holds none."""
    found = (getattr(holder, "inputs", None) for holder in (item, getattr(item, "samples", None)))
    return next((inputs for inputs in found if isinstance(inputs, Tensor)), None)


def labels_of(item: Any) -> tuple[Tensor, Tensor] | None:
    """Inputs and labels of a property or constraint, or None."""
    if isinstance(item, Labelled) and isinstance(item.inputs, Tensor) and isinstance(item.labels, Tensor):
        return item.inputs, item.labels
    return None


def rows_left_out(item: Any) -> int:
    """How many rows that were passed to a property of groups are in none of those that are compared."""
    return int(getattr(item.samples, "left_out", 0)) if isinstance(item, Divided) else 0


def of_real_rows(item: Any) -> bool:
    """Whether a property compares groups of real rows, not of inputs that were made."""
    return isinstance(item, Divided) and getattr(item.samples, "rows", None) is not None


def stands_for_population(item: Any) -> bool:
    """Whether the samples of a property or constraint stand for others, on which it is to hold as well."""
    return bool(getattr(item, "statistical", True))


def has_signed_parts(prop: Any) -> bool:
    """Whether the value of a property is the mean or the largest size of its signed parts."""
    return isinstance(prop, SignedParts) and getattr(prop, "combine", "") in ("max", "mean")


def soft_value(prop: Any) -> Callable[[Predict], Any]:
    """The differentiable stand-in of a property; the value itself where there is none."""
    return prop.soft_value if isinstance(prop, Differentiable) else prop.value


def soft_margins(constraint: Any) -> Callable[[Predict], Any]:
    """The differentiable stand-in of the margins of a constraint; the margins where there is none."""
    return getattr(constraint, "soft_margins", constraint.margins)


def price_of(constraint: Any) -> float | None:
    """Price of a violation where the rows of a constraint are wishes; None where they are hard."""
    price = getattr(constraint, "weight", None)
    return None if price is None else float(price)


class Unstated(float):
    """A number that nobody stated: the default of a target or tolerance."""


def tolerance_of(constraint: Any) -> float:
    """Share of its samples, or margins, that may fail."""
    return float(getattr(constraint, "tolerance", 0.0))


def is_strict(constraint: Any) -> bool:
    """Whether every sample of a constraint has to hold."""
    none = tolerance_of(constraint) == 0.0 and not getattr(constraint, "allowed", None)
    return isinstance(constraint, SampleConstraint) and price_of(constraint) is None and none


def restricted(item: Any, keep: Keep) -> Any:
    """A property or constraint on the samples that ``keep`` chooses, which must leave some; else as it is.

    Of a number of samples that may fail as large a share may fail.
    """
    if isinstance(item, Restrictable):
        part = item.where(keep)
        left = inputs_of(part)
        if left is not None and not len(left):
            raise SpecificationError(f"'{getattr(item, 'name', item)}': no rows are left.")
        return part
    known = labels_of(item)
    if known is None or not isinstance(item, Transferable):
        return item
    inputs, labels = known
    mask = keep(inputs)
    if not bool(torch.any(mask)):
        raise SpecificationError(f"'{getattr(item, 'name', item)}': no rows are left.")
    chosen: Any = item.on(inputs[mask], labels[mask.cpu()])
    allowed = getattr(item, "allowed", None) if is_dataclass(chosen) else None
    return chosen if allowed is None else replace(chosen, allowed=int(allowed * float(mask.double().mean()) + 1e-9))
