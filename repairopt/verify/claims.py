"""Claims about new data: each bound with its value, interval, and whether it is met with the confidence asked for."""

from __future__ import annotations

from dataclasses import dataclass, is_dataclass, replace
from math import ceil, inf, sqrt
from typing import Any

import numpy as np
import torch
from torch import Tensor

from repairopt.errors import SpecificationError
from repairopt.network import Predict
from repairopt.specify import Divided, Interval, Restrictable, Statistical, inputs_of, normal_quantile

GROUPS = 40  # of samples; each is left out once


def paired_error(prop: Any, predict: Predict, original: Predict, *, groups: int = GROUPS) -> float | None:
    """Standard error of ``prop.value(predict) - prop.value(original)``; None where it cannot be told."""
    given = _by_position(prop)
    if given is None or len(given[1]) < 2 * groups:
        return None
    own, inputs = given
    with torch.no_grad():
        both = predict(inputs), original(inputs)
        group = torch.randperm(len(inputs), generator=torch.Generator().manual_seed(0)) % groups
        parts = []
        for left_out in range(groups):
            keep = group != left_out
            try:
                part: Any = own.where(lambda _, keep=keep: keep)
                parts.append([float(part.value(lambda rows, known=known: known[rows[:, 0]])) for known in both])
            except SpecificationError:  # a part without rows of some group or class
                return None
    now, before = np.asarray(parts).T
    if not np.ptp(before):  # a bound that does not move, such as that there are no flips
        return None
    changes = now - before
    return float(np.sqrt((groups - 1) / groups * np.sum((changes - changes.mean()) ** 2)))


def _by_position(prop: Any) -> tuple[Any, Tensor] | None:
    """The property with positions in place of its inputs, which may be large, and the inputs."""
    holder: Any = prop.samples if isinstance(prop, Divided) else prop
    found = inputs_of(prop)
    if not isinstance(prop, Restrictable) or not is_dataclass(prop) or not is_dataclass(holder) or found is None:
        return None
    moved = replace(holder, inputs=torch.arange(len(found))[:, None])
    return (moved if holder is prop else replace(prop, samples=moved)), found


@dataclass(frozen=True)
class Claim:
    """What is known of a bound on new data.

    Attributes:
        limit: The typed bound.
        interval: Interval of the value, two-sided with confidence ``2 confidence - 1``, so that its upper end alone is
            a bound of the confidence asked for.
        confidence: Confidence that the value on the population lies below ``interval.high``.
        rows: Samples (of the smallest group) that would show the bound, were the value what it is here; None where it
            is shown already, infinite where the value itself is above the limit.
        never: Whether the samples are too few to ever show the bound, even if the value were 0.
        source: Data that it rests on: ``"cross-validation"``, ``"held-out data"``.
        relative: Whether the limit is the original network's value on these samples; the interval is then as wide as
            that of the difference of the two values, where that can be measured (see :func:`paired_error`).
    """

    name: str
    limit: float
    interval: Interval
    confidence: float
    rows: float | None
    never: bool
    source: str
    relative: bool = False

    @property
    def met(self) -> bool:
        """Whether the bound is met with the confidence asked for."""
        return self.interval.high <= self.limit

    def __str__(self) -> str:
        ends = f"{self.interval.low:.4f} to {self.interval.high:.4f}"
        share = f"{100 * self.confidence:.4g} %"
        limit = f"limit {self.limit:.4f}" + (" of the original" if self.relative else "")
        if self.confidence <= 0.5:
            result = "met" if self.met else "not met"
            return f"{self.name}: {self.interval.value:.4f} on {self.source}, {limit}: {result}"
        text = f"{self.name}: {self.interval.value:.4f} on {self.source} ({ends}), {limit}: "
        if self.met:
            return text + f"met with {share} confidence"
        if self.interval.value > self.limit:
            return text + "not met"
        few = (
            f"; about {self.rows:,.0f} rows of the smallest group would show it" if self.rows not in (None, inf) else ""
        )
        never = " (too few rows to show it even were it 0)" if self.never else ""
        return text + f"not shown with {share} confidence{never}{few}"


def make_claim(
    name: str,
    prop: Any,
    limit: float,
    predict: Predict,
    *,
    confidence: float,
    source: str,
    original: Predict | None = None,
) -> Claim | None:
    """A claim, with one-sided confidence, that a property is at most a limit; None where it has no interval."""
    if not isinstance(prop, Statistical):
        return None
    interval = prop.interval(predict, 2.0 * confidence - 1.0)
    relative = original is not None
    if original is not None:
        error = paired_error(prop, predict, original)
        interval = interval if error is None else _of_difference(interval, error, confidence)
    reach = interval.high - interval.value  # half the width would be too little where the lower end is cut off at 0
    rows: float | None = None
    if interval.high > limit:
        rows = inf if interval.value >= limit else ceil(interval.count * (reach / (limit - interval.value)) ** 2)
    least = reach * sqrt(_least_share(interval))
    return Claim(name, limit, interval, confidence, rows, limit > 0 and least >= limit, source, relative)


def _of_difference(interval: Interval, error: float, confidence: float) -> Interval:
    """As wide as a standard error of the difference says; that is no less than one sample's worth."""
    reach = normal_quantile(confidence) * max(error, 1.0 / interval.count)
    low = max(min(0.0, interval.low), interval.value - reach)
    return replace(interval, low=low, high=interval.value + reach, method="jackknife of the difference")


def _least_share(interval: Interval) -> float:
    """Variance at the best value there could be, relative to that at this one; a rate keeps that of one hit."""
    if "Clopper" in interval.method and interval.value > 0:
        return min(1.0, 1.0 / max(1.0, interval.value * interval.count))
    return 1.0
