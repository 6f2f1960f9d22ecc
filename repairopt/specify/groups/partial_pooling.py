"""Partial pooling: how large a gap is likely to be where some groups are small.

The largest difference of measured rates is too large on average, the more so the more and the smaller the groups are:
noise has a largest difference too. Here the rates of groups are draws around a common mean, with a spread that is not
known, and the size of the gap is its mean over what spread and rates may be. That draws rates of small groups towards
the others, no further than the spread of all groups says. The result steers repairs; claims never rest on it.

References:
    Gelman et al., Bayesian Data Analysis, 2013, section 5.4: the normal model with a flat prior on the spread.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

LEAST_GROUPS = 3  # below, the spread of the groups is not known from them
SPREADS, DRAWS = 24, 256  # values of the spread, and draws at each
WIDEST = 3.0  # largest spread, over that of the measured rates or the largest standard error

Array = NDArray[np.float64]


def pooled_gap(rates: Tensor, counts: Tensor, combine: str) -> float:
    """Expected size of the differences between groups, given measured rates.

    Args:
        rates: Measured rates of the groups, ``(c, q)``; groups are compared within a row.
        counts: Rows behind each, ``(c, q)``.
        combine: ``"max"`` for the largest difference, else the mean of all.

    Returns:
        The expected size. Draws are always the same ones.
    """
    random = np.random.default_rng(0)
    measured, rows = rates.detach().double().cpu().numpy(), counts.double().cpu().numpy()
    sizes = [_drawn_sizes(own, count, combine, random) for own, count in zip(measured, rows, strict=True)]
    return float(np.mean(np.max(sizes, axis=0) if combine == "max" else np.mean(sizes, axis=0)))


def _drawn_sizes(rates: Array, counts: Array, combine: str, random: np.random.Generator) -> Array:
    """Sizes ``(DRAWS,)`` of the differences of one row of groups, drawn from what spread and rates may be."""
    mean = float(rates @ counts / counts.sum())
    errors = np.maximum(mean * (1 - mean), 1e-9) / counts
    widest = WIDEST * max(float(np.sqrt(errors.max())), float(rates.std()))
    spreads = np.linspace(0.0, widest, SPREADS)[:, None] ** 2
    precision = 1 / (spreads + errors)  # (SPREADS, q)
    of_mean = 1 / precision.sum(1, keepdims=True)
    center = of_mean * (precision * rates).sum(1, keepdims=True)
    misfit = (precision * (rates - center) ** 2).sum(1)
    evidence = 0.5 * (np.log(of_mean[:, 0]) + np.log(precision).sum(1) - misfit)
    chance = np.exp(evidence - evidence.max())
    drawn = random.choice(SPREADS, size=DRAWS, p=chance / chance.sum())
    share = spreads * precision  # of a rate that is its own, the rest is the mean of all
    noise = random.normal(size=(DRAWS, len(rates))) * np.sqrt(share * errors)[drawn]
    common = random.normal(size=(DRAWS, 1)) * np.sqrt(of_mean)[drawn]
    true = center[drawn] + share[drawn] * (rates - center[drawn]) + noise + (1 - share[drawn]) * common
    if combine == "max":
        found: Array = np.ptp(true, axis=1)
        return found
    first, second = np.triu_indices(len(rates), 1)
    sizes: Array = np.abs(true[:, first] - true[:, second]).mean(1)
    return sizes
