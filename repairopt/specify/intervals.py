"""Confidence intervals of rates, differences of rates and gaps between groups, from counts alone.

An interval of confidence ``c`` has both ends; its upper end alone is a bound of confidence ``(1 + c) / 2``.

References:
    Clopper and Pearson, The use of confidence or fiducial limits illustrated in the case of the binomial, 1934: exact.
    Newcombe, Interval estimation for the difference between independent proportions, 1998, method 10.
    Agresti and Min, Simple improved confidence intervals for comparing matched proportions, 2005.
    Donner and Zou, Closed-form confidence intervals for functions of the normal mean, 2012: ratios of two rates.
    Gaffke, Three test statistics for a nonparametric one-sided hypothesis on the mean, 2005: a bounded mean.
    Berger, Multiparameter hypothesis testing and acceptance sampling, 1982: a limit on the largest of several gaps is
    met with the confidence with which each of them meets it; its lower end takes Bonferroni's share of the error.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np
import numpy.typing as npt

from .sample_weights import effective_count

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


def rate_interval(hits: float, count: int, confidence: float) -> Interval:
    """Exact two-sided interval of a rate: ``hits`` of ``count``, above 0 (Clopper and Pearson).

    Of weighted rows both are effective numbers, and the hits need not be whole (Korn and Graubard, 1998).
    """
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


def largest_rate_interval(hits: Array, counts: Array, confidence: float) -> Interval:
    """Interval of the largest of several rates ``hits / counts``, ``(q,)`` each; exact (Clopper-Pearson, Berger)."""
    pairs = list(zip(hits.astype(int).tolist(), counts.astype(int).tolist(), strict=True))
    high = max(rate_interval(hit, count, confidence).high for hit, count in pairs)
    each = 1.0 - (1.0 - confidence) / len(pairs)
    low = max(rate_interval(hit, count, each).low for hit, count in pairs)
    return Interval(float((hits / counts).max()), low, high, confidence, int(counts.min()), "exact (Clopper-Pearson)")


def ratio_interval(hits: Array, counts: Array, confidence: float) -> Interval:
    """Interval of one minus the smallest rate over the largest, of rates ``hits / counts``, ``(q,)`` each.

    Every ordered pair has its interval of a ratio of two rates, from Wilson's limits of each (Donner and Zou).
    """
    pairs = [(a, b) for a in range(len(hits)) for b in range(len(hits)) if a != b]
    high = max(1.0 - _ratio(hits[[a, b]], counts[[a, b]], confidence)[0] for a, b in pairs)
    each = 1.0 - (1.0 - confidence) / len(pairs)
    low = max(1.0 - _ratio(hits[[a, b]], counts[[a, b]], each)[1] for a, b in pairs)
    rates = hits / counts
    value = 1.0 - float(rates.min() / rates.max()) if rates.max() > 0 else 0.0
    ends = min(value, max(0.0, low)), max(value, min(1.0, high))
    return Interval(value, *ends, confidence, int(counts.min()), "score (Donner-Zou)")


def largest_mean_interval(
    parts: Sequence[Array], confidence: float, *, difference: bool = False, weights: Sequence[Array] | None = None
) -> Interval:
    """Interval of the largest mean of several samples, or the largest difference of two, from Student's t (Welch).

    ``weights`` are those of the samples' entries, above 0: means are weighted, and effective sizes stand for sizes.
    """
    from scipy.special import stdtrit

    if weights is None:
        means = np.array([part.mean() for part in parts])
        errors = np.array([part.var(ddof=1) / len(part) if len(part) > 1 else np.inf for part in parts])
        sizes = np.array([len(part) for part in parts], dtype=np.float64)
    else:
        means = np.array([np.average(part, weights=own) for part, own in zip(parts, weights, strict=True)])
        sizes = np.array([effective_count(part, own) for part, own in zip(parts, weights, strict=True)], dtype=float)
        spreads = [np.average((p - m) ** 2, weights=own) for p, m, own in zip(parts, means, weights, strict=True)]
        errors = np.where(sizes > 1, np.array(spreads) / np.maximum(sizes - 1, 1), np.inf)

    def ends(sure: float) -> list[tuple[float, float]]:
        pairs: list[tuple[float, float, float]] = []  # estimate, variance, degrees of freedom
        if not difference:
            pairs = [(m, e, n - 1.0) for m, e, n in zip(means, errors, sizes, strict=True)]
        else:
            for a, b in combinations(range(len(parts)), 2):
                both = errors[a] + errors[b]
                parts_of = errors[a] ** 2 / (sizes[a] - 1) + errors[b] ** 2 / (sizes[b] - 1) if both < np.inf else 1.0
                freedom = both**2 / parts_of if 0 < both < np.inf else 1.0
                pairs.append((abs(means[a] - means[b]), both, freedom))
        wide = [float(stdtrit(max(f, 1.0), (1.0 + sure) / 2.0)) * float(np.sqrt(e)) for _, e, f in pairs]
        return [(m - w, m + w) for (m, _, _), w in zip(pairs, wide, strict=True)]

    count = len(parts) if not difference else len(parts) * (len(parts) - 1) // 2
    high = max(high for _, high in ends(confidence))
    low = max(0.0, *(low for low, _ in ends(1.0 - (1.0 - confidence) / count)))
    value = float(np.ptp(means) if difference else means.max())
    return Interval(value, min(low, value), high, confidence, int(sizes.min()), "Student's t")


def bounded_mean_interval(values: Array, counts: Array, low: float, high: float, confidence: float) -> Interval:
    """Interval of the mean of a quantity between two ends, of which ``counts (v,)`` rows had ``values (v,)``.

    Gaffke's bound: the sample with one more observation at an end, weighted by a flat Dirichlet distribution. For a
    quantity of two values it is the interval of Clopper and Pearson; the draws are the same for the same counts.
    """
    random = np.random.default_rng(0)
    total, tail = float(counts.sum()), (1.0 - confidence) / 2.0
    weights = random.gamma(np.append(counts, 1.0), size=(5 * DRAWS, len(counts) + 1))
    weights /= weights.sum(axis=1, keepdims=True)
    ends = [np.quantile(weights @ np.append(values, end), q) for end, q in ((low, tail), (high, 1.0 - tail))]
    value = float(values @ counts / total)
    return Interval(
        value, min(value, float(ends[0])), max(value, float(ends[1])), confidence, int(total), "Gaffke's bound"
    )


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


def matched_interval(worse: float, better: float, count: int, confidence: float) -> Interval:
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
    rates, ends = hits / counts, _wilson(hits, counts, confidence)
    difference = float(rates[0] - rates[1])
    below = np.hypot(rates[0] - ends[0][0], ends[1][1] - rates[1])
    above = np.hypot(ends[0][1] - rates[0], rates[1] - ends[1][0])
    return difference - float(below), difference + float(above)


def _ratio(hits: Array, counts: Array, confidence: float) -> tuple[float, float]:
    """Interval of the first rate over the second; 0 to infinite where neither says anything."""
    first, second = hits / counts
    (low_1, high_1), (low_2, high_2) = _wilson(hits, counts, confidence)
    product = first * second
    below = max(0.0, product**2 - low_1 * high_2 * (2 * first - low_1) * (2 * second - high_2))
    above = max(0.0, product**2 - high_1 * low_2 * (2 * first - high_1) * (2 * second - low_2))
    least, most = high_2 * (2 * second - high_2), low_2 * (2 * second - low_2)
    if abs(least) < 1e-12:  # the limit of the quotient
        low = low_1 * (2 * first - low_1) / (2 * product) if product > 0 else 0.0
    else:
        low = (product - np.sqrt(below)) / least
    return max(0.0, float(low)), float((product + np.sqrt(above)) / most) if most > 1e-12 else np.inf


def _wilson(hits: Array, counts: Array, confidence: float) -> list[tuple[float, float]]:
    z, ends = normal_quantile((1.0 + confidence) / 2.0), []
    for rate, count in zip(hits / counts, counts, strict=True):
        middle, width = rate + z**2 / (2 * count), z * np.sqrt(rate * (1 - rate) / count + z**2 / (4 * count**2))
        ends.append(((middle - width) / (1 + z**2 / count), (middle + width) / (1 + z**2 / count)))
    return ends
