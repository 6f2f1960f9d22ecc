"""Which methods differ: t-tests with the Benjamini-Hochberg correction, shown as groups of letters."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from itertools import combinations, combinations_with_replacement
from string import ascii_lowercase

import numpy as np

from repairopt.errors import SpecificationError, public

from .blocks import SAME, Cells, adjust_means

LEAST_PAIRS = 3  # common cells, for a paired test
TESTS = ("paired", "blocked")


@public
def letter_groups(
    values: Mapping[str, Cells], *, better: int, level: float = 0.05, test: str = "paired"
) -> dict[str, str]:
    """Letters of each method: those that share one do not differ significantly; an earlier letter is better.

    By ``"paired"`` two methods are compared by a paired t-test on the cells that both have, at least three, else by
    Welch's test. Each pair then has an error variance of its own, from few differences, so that a method may differ
    from its neighbors and not from those far away, and many letters are needed to say so. By ``"blocked"`` the same
    differences are tested in one model of methods and cells, with one error variance (:func:`adjust_means`): methods
    are on an equal footing, and letters are few and mostly in a row. The p-values of all pairs are corrected together.
    The letters are found by insert and absorb, and those that say nothing new are left out.

    Args:
        values: For each method its values by cell; NaN counts as missing.
        better: 1 where larger values are better, -1 where smaller ones are.
        level: False discovery rate.
        test: ``"paired"`` or ``"blocked"``.

    Returns:
        The letters by method, the best mean first; methods without any value are left out.

    References:
        Benjamini and Hochberg, Controlling the False Discovery Rate, 1995. Piepho, An Algorithm for a Letter-Based
        Representation of All-Pairwise Comparisons, 2004.
    """
    from scipy import stats

    if test not in TESTS:
        raise SpecificationError(f"test={test!r}; choose {' or '.join(TESTS)}.")
    known = known_values(values)
    blocked = adjust_means(known) if test == "blocked" else None
    means = {name: float(np.mean(list(own.values()))) for name, own in known.items()} if not blocked else blocked.means
    order = sorted(known, key=lambda name: -better * means[name])
    pairs = list(combinations(order, 2))
    p = [blocked.p_value(a, b) if blocked else _p_value(known[a], known[b]) for a, b in pairs]
    q = stats.false_discovery_control(p) if p else []
    groups = [set(order)] if order else []
    for (a, b), one in zip(pairs, q, strict=True):
        if one < level:
            split = [part for g in groups for part in ((g - {a}, g - {b}) if {a, b} <= g else (g,))]
            unique = [g for k, g in enumerate(split) if g and g not in split[:k]]
            groups = [g for g in unique if not any(g < other for other in unique)]
    rank = {name: k for k, name in enumerate(order)}
    groups = sorted(_needed(groups), key=lambda g: sorted(rank[name] for name in g))
    return {name: "".join(_letter(k) for k, g in enumerate(groups) if name in g) for name in order}


def _needed(groups: list[set[str]]) -> list[set[str]]:
    """Without groups all of whose pairs are in others too; the smallest are left out first."""
    count = Counter(pair for g in groups for pair in _pairs(g))
    kept = []
    for g in sorted(groups, key=len):
        if min(count[pair] for pair in _pairs(g)) > 1:
            count.subtract(_pairs(g))
        else:
            kept.append(g)
    return kept


def _pairs(group: set[str]) -> list[tuple[str, str]]:
    """Pairs of members, each member with itself too."""
    return list(combinations_with_replacement(sorted(group), 2))


def known_values(values: Mapping[str, Cells]) -> dict[str, dict[object, float]]:
    """Without cells that are missing, and without methods that have no others."""
    known = {name: {cell: v for cell, v in own.items() if np.isfinite(v)} for name, own in values.items()}
    return {name: own for name, own in known.items() if own}


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
