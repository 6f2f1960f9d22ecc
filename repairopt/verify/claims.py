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
from repairopt.specify import Divided, GroupRates, Interval, Restrictable, Statistical, inputs_of, normal_quantile

GROUPS = 40  # of samples; each is left out once
UNLIKE = (
    3.0  # standard errors between a group's rate and that of the folds' networks, beyond which they are other networks
)


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
        withheld: Why it is not claimed whatever the interval says, a sentence; else empty.
        least_rows: Samples (of the smallest group) that would show the bound, were the value 0; infinite for a limit of
            0 or less.
    """

    name: str
    limit: float
    interval: Interval
    confidence: float
    rows: float | None
    never: bool
    source: str
    relative: bool = False
    withheld: str = ""
    least_rows: float = 0.0

    @property
    def met(self) -> bool:
        """Whether the bound is met with the confidence asked for."""
        return not self.withheld and self.interval.high <= self.limit

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
            return text + "not met" + (f"; {self._even_at_zero}" if self.never else "")
        text += f"not shown with {share} confidence"
        if self.withheld:
            return f"{text}: {self.withheld}"
        few = (
            f"; about {self.rows:,.0f} rows of the smallest group would show it" if self.rows not in (None, inf) else ""
        )
        return text + (f" ({self._even_at_zero})" if self.never else "") + few

    @property
    def _even_at_zero(self) -> str:
        rows = f": that takes about {self.least_rows:,.0f} of the smallest group" if self.least_rows < inf else ""
        return f"too few rows to show it even were it 0{rows}"


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
    enough = float(ceil(interval.count * (least / limit) ** 2)) if limit > 0 else inf
    never = limit > 0 and least >= limit
    return Claim(name, limit, interval, confidence, rows, never, source, relative, least_rows=enough)


def for_delivered(claim: Claim, prop: Any, predict: Predict, others: Predict, optimism: float) -> Claim:
    """A claim that rests on networks repaired without some rows each, as a claim about the network that is delivered.

    The network delivered has seen all rows; its value on them is too good by about what those of the folds are better
    on their own rows than on others (Efron's optimism). The claim's interval is that one of both whose upper end is
    higher, so that neither the folds' networks nor the delivered one's own rows contradict it. Where the rates of a
    group differ by more than chance explains, the folds speak of other networks, and the claim is withheld.

    Args:
        claim: From the networks of the folds.
        prop: What it speaks of.
        predict: The network delivered.
        others: The networks of the folds, each on the rows that it has not seen.
        optimism: By how much the value of the folds' networks is better on their own rows, on average.

    Returns:
        The claim.

    References:
        Efron, How biased is the apparent error rate of a prediction rule?, 1986.
    """
    own = prop.interval(predict, 2.0 * claim.confidence - 1.0)
    reach = claim.interval.high - claim.interval.value
    if not claim.relative:
        reach = max(reach, own.high - own.value)
    value = own.value + max(0.0, optimism)
    found = claim
    if value + reach > claim.interval.high:
        interval = replace(claim.interval, value=value, low=max(min(0.0, own.low), value - reach), high=value + reach)
        rows: float | None = None
        if interval.high > claim.limit:
            rows = inf if value >= claim.limit else ceil(interval.count * (reach / (claim.limit - value)) ** 2)
        found = replace(claim, interval=interval, rows=rows)
    return replace(found, withheld=_unlike(prop, predict, others))


def _unlike(prop: Any, predict: Predict, others: Predict) -> str:
    """A sentence where some group's rate differs from that of the folds' networks by more than chance explains."""
    if not isinstance(prop, GroupRates):
        return ""
    (own, counts), (other, _) = ([part.double().cpu().numpy() for part in prop.compared(p)] for p in (predict, others))
    shrunk = [(rates * counts + 0.5) / (counts + 1) for rates in (own, other)]  # chance is not 0 at rates of 0 and 1
    errors = np.sqrt(sum(rates * (1 - rates) for rates in shrunk) / counts)
    excess = np.abs(own - other) - UNLIKE * errors
    worst = np.unravel_index(int(excess.argmax()), excess.shape)
    if excess[worst] <= 0:
        return ""
    return (
        f"the repairs without a part of the rows end elsewhere: a group's rate is {own[worst]:.3f}, and "
        f"{other[worst]:.3f} in theirs"
    )


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
