"""Which methods differ: paired t-tests with the Benjamini-Hochberg correction, shown as groups of letters."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import combinations
from string import ascii_lowercase
from typing import Any

import numpy as np

SAME = 1e-9  # relative difference up to which values count as the same
LEAST_PAIRS = 3  # common cells, for a paired test
Cells = Mapping[Any, float]  # values by cell: subject and repetition


def letter_groups(values: Mapping[str, Cells], *, better: int, level: float = 0.05) -> dict[str, str]:
    """Letters of each method: those that share one do not differ significantly; an earlier letter is better.

    Two methods are compared by a paired t-test on the cells that both have, at least three, else by Welch's test; the
    p-values of all pairs are corrected together. The letters are found by insert and absorb.

    Args:
        values: For each method its values by cell; NaN counts as missing.
        better: 1 where larger values are better, -1 where smaller ones are.
        level: False discovery rate.

    Returns:
        The letters by method; methods without any value are left out.

    References:
        Benjamini and Hochberg, Controlling the False Discovery Rate, 1995. Piepho, An Algorithm for a Letter-Based
        Representation of All-Pairwise Comparisons, 2004.
    """
    from scipy import stats

    known = {name: {cell: v for cell, v in own.items() if np.isfinite(v)} for name, own in values.items()}
    known = {name: own for name, own in known.items() if own}
    order = sorted(known, key=lambda name: -better * float(np.mean(list(known[name].values()))))
    pairs = list(combinations(order, 2))
    p = [_p_value(known[a], known[b]) for a, b in pairs]
    q = stats.false_discovery_control(p) if p else []
    groups = [set(order)]
    for (a, b), one in zip(pairs, q, strict=True):
        if one < level:
            split = [part for g in groups for part in ((g - {a}, g - {b}) if {a, b} <= g else (g,))]
            unique = [g for k, g in enumerate(split) if g and g not in split[:k]]
            groups = [g for g in unique if not any(g < other for other in unique)]
    rank = {name: k for k, name in enumerate(order)}
    groups.sort(key=lambda g: sorted(rank[name] for name in g))
    return {name: "".join(_letter(k) for k, g in enumerate(groups) if name in g) for name in order}


def _p_value(a: Cells, b: Cells) -> float:
    """Of the hypothesis of equal means; 1 where all differences are 0, 0 where all are the same other number."""
    from scipy import stats

    common = sorted(a.keys() & b.keys(), key=repr)
    if len(common) >= LEAST_PAIRS:
        differences = np.array([a[cell] - b[cell] for cell in common])
        if np.ptp(differences) <= SAME * max(1.0, float(np.abs(differences).max())):  # else the test loses all digits
            return 1.0 if np.abs(differences).max() <= SAME else 0.0
        return float(stats.ttest_1samp(differences, 0.0).pvalue)
    if min(len(a), len(b)) < 2:
        return 1.0
    told = [(float(np.mean(v)), float(np.std(v, ddof=1)), len(v)) for v in (list(a.values()), list(b.values()))]
    (first, wide, _), (second, narrow, _) = told
    if max(wide, narrow) <= SAME * max(1.0, abs(first), abs(second)):
        return 1.0 if abs(first - second) <= SAME else 0.0
    return float(stats.ttest_ind_from_stats(*told[0], *told[1], equal_var=False).pvalue)


def _letter(k: int) -> str:
    """Letter of a position: a to z, then aa, ab and so on."""
    return ascii_lowercase[k] if k < 26 else _letter(k // 26 - 1) + ascii_lowercase[k % 26]
