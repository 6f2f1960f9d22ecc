"""Confidence intervals of rates, differences of rates and gaps between groups, from counts alone.

An interval of confidence ``c`` has both ends; its upper end alone is a bound of confidence ``(1 + c) / 2``.

References:
    Clopper and Pearson, The use of confidence or fiducial limits illustrated in the case of the binomial, 1934: exact.
    Newcombe, Interval estimation for the difference between independent proportions, 1998, method 10.
    Agresti and Min, Simple improved confidence intervals for comparing matched proportions, 2005.
    Berger, Multiparameter hypothesis testing and acceptance sampling, 1982: a limit on the largest of several gaps is
    met with the confidence with which each of them meets it; its lower end takes Bonferroni's share of the error.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import combinations

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float64]
DRAWS = 4000  # of a bootstrap


@dataclass(frozen=True)
class Interval:
    """Where the value on new data lies, from a sample of ``count``, of several groups the smallest."""

    value: float
    low: float
    high: float
    confidence: float
    count: int
    method: str

    @property
    def error(self) -> float:
        """Half the width over that of one standard deviation: a standard error, whatever the method."""
        return (self.high - self.low) / (2.0 * normal_quantile((1.0 + self.confidence) / 2.0))


def rate_interval(hits: int, count: int, confidence: float) -> Interval:
    """Exact two-sided interval of a rate: ``hits`` of ``count``, above 0 (Clopper and Pearson)."""
    from scipy.special import betaincinv

    tail = (1.0 - confidence) / 2.0
    low = 0.0 if hits == 0 else float(betaincinv(hits, count - hits + 1, tail))
    high = 1.0 if hits == count else float(betaincinv(hits + 1, count - hits, 1.0 - tail))
    return Interval(hits / count, low, high, confidence, count, "exact (Clopper-Pearson)")


def gap_interval(
    hits: Array, counts: Array, confidence: float, *, combine: str, labels: Array | None = None
) -> Interval:
    """Interval of the ``"max"`` or ``"mean"`` size of the pairwise differences of rates between groups, not below 0.

    ``hits`` and ``counts`` (above 0) are ``(q,)``; ``labels (q,)`` has the class that each group is compared within,
    None compares all groups.
    """
    within = np.zeros(len(hits)) if labels is None else labels
    pairs = [(a, b) for a, b in combinations(range(len(hits)), 2) if within[a] == within[b]]
    rates = hits / counts
    sizes = np.array([abs(rates[a] - rates[b]) for a, b in pairs])
    smallest = int(counts.min())
    if combine == "max" or len(pairs) == 1:
        ends = [_difference(hits[[a, b]], counts[[a, b]], confidence) for a, b in pairs]
        high = max(max(abs(low), abs(high)) for low, high in ends)
        each = 1.0 - (1.0 - confidence) / len(pairs)  # or one of many pairs would lie above 0 by chance
        ends = [_difference(hits[[a, b]], counts[[a, b]], each) for a, b in pairs]
        low = max(max(0.0, low, -high) for low, high in ends)
        return Interval(float(sizes.max()), low, high, confidence, smallest, "score (Newcombe)")

    first, second = np.array(pairs).T
    return bootstrap_rates(hits, counts, confidence, lambda r: np.abs(r[:, first] - r[:, second]).mean(axis=1))


def bootstrap_rates(hits: Array, counts: Array, confidence: float, statistic: Callable[[Array], Array]) -> Interval:
    """Percentile bootstrap of a statistic of rates; rows of each group are drawn anew, which is a binomial draw.

    ``hits`` are ``(q,)`` or, of each group and label, ``(q, k)``, ``counts (q,)``; the statistic leads from rates
    ``(draws, q)`` or ``(draws, q, k)`` to values ``(draws,)``. The same counts give the same interval.
    """
    random = np.random.default_rng(0)
    rates = hits / (counts[:, None] if hits.ndim == 2 else counts)
    if hits.ndim == 2:
        parts = zip(counts, rates, strict=True)
        drawn = np.stack([random.multinomial(int(c), r / r.sum(), DRAWS) / c for c, r in parts], 1)
    else:
        drawn = random.binomial(counts.astype(np.int64), rates, size=(DRAWS, len(rates))) / counts
    values = statistic(drawn)
    tail = (1.0 - confidence) / 2.0
    low, high = np.quantile(values, [tail, 1.0 - tail])
    value = float(statistic(rates[None])[0])
    return Interval(value, float(low), float(high), confidence, int(counts.min()), f"bootstrap, {DRAWS} draws")


def matched_interval(worse: int, better: int, count: int, confidence: float) -> Interval:
    """Interval of ``(worse - better) / count`` on the same samples before and after (Agresti and Min)."""
    total, up, down = count + 2.0, worse + 0.5, better + 0.5
    middle = (up - down) / total
    error = np.sqrt(max(0.0, (up + down) / total - middle**2) / total)
    width = normal_quantile((1.0 + confidence) / 2.0) * error
    value = (worse - better) / count
    ends = (max(-1.0, middle - width), min(1.0, middle + width))
    return Interval(value, float(min(ends[0], value)), float(max(ends[1], value)), confidence, count, "Agresti-Min")


def normal_quantile(share: float) -> float:
    """Quantile of the standard normal distribution."""
    from scipy.special import ndtri

    return float(ndtri(share))


def _difference(hits: Array, counts: Array, confidence: float) -> tuple[float, float]:
    z = normal_quantile((1.0 + confidence) / 2.0)
    rates, ends = hits / counts, []
    for rate, count in zip(rates, counts, strict=True):
        middle, width = rate + z**2 / (2 * count), z * np.sqrt(rate * (1 - rate) / count + z**2 / (4 * count**2))
        ends.append(((middle - width) / (1 + z**2 / count), (middle + width) / (1 + z**2 / count)))
    difference = float(rates[0] - rates[1])
    below = np.hypot(rates[0] - ends[0][0], ends[1][1] - rates[1])
    above = np.hypot(ends[0][1] - rates[0], rates[1] - ends[1][0])
    return difference - float(below), difference + float(above)
