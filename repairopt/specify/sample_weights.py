"""Weights of rows: how much each counts in rates, gaps, costs and losses. They stay beside the rows they belong to.

A property of rows keeps them as ``sample_weight``, restricts them together with its rows (``where``), and gives a twin
with other ones (``weighted``). A row of weight 0 counts as little as one that is not there. Rates of weighted rows are
weighted means; intervals use the number of unweighted rows that would be as certain (:func:`effective_count`).

References:
    Kish, Survey Sampling, 1965: effective sample size.
    Korn and Graubard, Confidence intervals for proportions with small expected number of positive counts estimated
    from survey data, 1998: exact intervals with an effective sample size.
"""

from __future__ import annotations

from dataclasses import dataclass, field, is_dataclass, replace
from typing import Any, Protocol, cast, runtime_checkable

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from repairopt.errors import SpecificationError
from repairopt.network import as_tensor, check_beside, refuse_missing

Array = npt.NDArray[np.float64]


@runtime_checkable
class Weightable(Protocol):
    """Rows that count unequally. A class may also have ``sample_weight (N,)``, None where all count the same."""

    def weighted(self, sample_weight: Any) -> Any:
        """The same with a weight for each of the rows that it was made from ``(N,)``."""


@dataclass(frozen=True, eq=False)
class WeightedRows:
    """What properties of labelled rows share: the weight of each row, after all other attributes."""

    sample_weight: Any = field(default=None, repr=False, kw_only=True)


class WeightedGroups:
    """What properties of groups share: their ``samples`` hold the weights."""

    samples: Any
    name: str

    @property
    def sample_weight(self) -> Tensor | None:
        """How much each of the rows counts, ``(M,)``; None for all the same."""
        weights: Tensor | None = self.samples.weights
        return weights

    def weighted(self, sample_weight: Any) -> Any:
        """The same with a weight for each of the rows that were passed, ``(N,)``."""
        return replace(cast(Any, self), samples=self.samples.weighted(self.name, sample_weight))


class LabelledPair(tuple[Tensor, Tensor]):
    """Inputs ``(N, ...)`` and labels ``(N,)`` as a pair, with the weight of each row ``(N,)`` or None."""

    weight: Tensor | None

    def __new__(cls, inputs: Tensor, labels: Tensor, weight: Tensor | None = None) -> LabelledPair:
        """The pair."""
        pair = super().__new__(cls, (inputs, labels))
        pair.weight = weight
        return pair

    def where(self, mask: Tensor) -> LabelledPair:
        """The rows of a mask ``(N,)``."""
        inputs, labels = self
        return LabelledPair(inputs[mask], labels[mask.cpu()], None if self.weight is None else self.weight[mask.cpu()])


def weight_of(pair: tuple[Tensor, Tensor]) -> Tensor | None:
    """The weight of each row of labelled data ``(N,)``; None where all count the same."""
    return getattr(pair, "weight", None)


def scaled_weights(pair: tuple[Tensor, Tensor], like: Tensor) -> Tensor | None:
    """The weight of each row of labelled data with a mean of 1, on the device of ``like`` and in its precision."""
    weight = weight_of(pair)
    return None if weight is None else (weight / weight.mean()).to(like)


def sum_by_weight(hits: Tensor, pair: tuple[Tensor, Tensor]) -> float:
    """Number of hits ``(N,)`` among the rows of labelled data, each counted by its scaled weight."""
    weights = scaled_weights(pair, torch.zeros((), dtype=torch.float64, device=hits.device))
    return int(hits.sum()) if weights is None else float((hits * weights).sum())


def loss_by_weight(outputs: Tensor, labels: Tensor, pair: tuple[Tensor, Tensor]) -> float:
    """Sum of the cross-entropies of logits ``(N, k)`` of labelled data, each times its scaled weight."""
    weights = scaled_weights(pair, outputs)
    if weights is None:
        return float(torch.nn.functional.cross_entropy(outputs, labels, reduction="sum"))
    return float((torch.nn.functional.cross_entropy(outputs, labels, reduction="none") * weights).sum())


def row_weights(owner: str, weights: Any, inputs: Any, count: int) -> Tensor | None:
    """Weights that a user passed as float64 ``(N,)`` on the CPU, or None.

    Args:
        owner: Who asks, for messages.
        weights: One number, 0 or more, for each row; None where all count the same.
        inputs: The rows as the user passed them, whose order and index the weights must have.
        count: Number of rows.

    Raises:
        SpecificationError: A weight is missing, negative or infinite, all are 0, or sizes or indexes differ.
    """
    if weights is None:
        return None
    if not hasattr(weights, "__len__"):
        raise SpecificationError(
            f"{owner}: sample_weight is {weights!r}; expected one number for each of {count} rows."
        )
    check_beside(owner, inputs, sample_weight=weights)
    refuse_missing(owner, "weight", weights)
    found = as_tensor(f"{owner}, sample_weight", weights).detach().cpu().double()
    if found.shape == (count, 1):
        found = found[:, 0]
    if found.shape != (count,):
        raise SpecificationError(
            f"{owner}: sample_weight has shape {tuple(found.shape)}; expected ({count},), one number for each row."
        )
    bad = ~torch.isfinite(found) | (found < 0)
    if bool(bad.any()) or not bool((found > 0).any()):
        row = int(bad.nonzero()[0]) if bool(bad.any()) else -1
        came = f"is {float(found[row]):g} in row {row}" if row >= 0 else "is a weight of zero in every row"
        raise SpecificationError(f"{owner}: sample_weight {came}; expected finite numbers, 0 or more, not all 0.")
    largest = float(found.max())
    return found if 1e-100 < largest < 1e100 else found / largest  # their squares must be numbers too


def weighted_mean(values: Tensor, weights: Tensor | None) -> Tensor:
    """Mean of ``values (N,)``; in float64 where they are counts."""
    if weights is None:
        return values.mean()
    own = weights.to(values)
    return (values * own).sum() / own.sum()


def kish_counts(weights: Tensor, cells: Tensor) -> Tensor:
    """Effective number of rows, whole and at least 1, of each cell, from weights ``(N,)`` and masks ``(..., N)``."""
    own = cells.double() * weights
    sizes = own.sum(-1) ** 2 / (own**2).sum(-1).clamp(min=1e-300)
    return (sizes + 1e-9).floor().clamp(min=1.0)


def effective_count(values: Array, weights: Array) -> int:
    """Unweighted rows whose mean would be as certain as the weighted mean of ``values (N,)``, at least 1.

    The smaller of Kish's number, which the spread of the weights gives, and that of the linearized variance, which is
    smaller where rows of large weight differ more from the mean than others.
    """
    total = float(weights.sum())
    kish = total**2 / float(weights @ weights)
    away = (values - values @ weights / total) ** 2
    spread, error = float(weights @ away) / total, float(weights**2 @ away) / total**2
    return max(1, int(min(kish, spread / error if error > 0 else kish) + 1e-9))


def is_weighted(item: Any) -> bool:
    """Whether the rows of a property, or of the property of a bound, count unequally."""
    return getattr(getattr(item, "property", item), "sample_weight", None) is not None


def said_of_weights(items: Any) -> str:
    """A sentence for the report where rows of some properties or bounds count unequally; else empty."""
    having = [item for item in items if is_weighted(item)]
    if not having:
        return ""
    names = ", ".join(f"'{item.name}'" for item in having)
    weights = getattr(having[0], "property", having[0]).sample_weight
    count = int(kish_counts(weights, torch.ones(len(weights), dtype=torch.bool)))
    return (
        f"Rows count by their weight in {names}: {len(weights):,} rows are as certain as {count:,} equal ones. "
        f"Constraints on single rows, and what is said of labels, count every row once."
    )


def weighted(item: Any, sample_weight: Any) -> Any:
    """A property or bound with weights of its rows; a constraint that counts single rows is as it was.

    Raises:
        SpecificationError: The property takes no weights.
    """
    if sample_weight is None:
        return item
    if is_dataclass(item) and hasattr(item, "property"):
        return replace(cast(Any, item), property=weighted(item.property, sample_weight))
    if isinstance(item, Weightable):
        return item.weighted(sample_weight)
    if not hasattr(item, "value"):
        return item
    raise SpecificationError(
        f"'{item.name}': a {type(item).__name__} takes no sample weights. State it without them, or give its class "
        f"weighted(sample_weight)."
    )
