"""Factors of a difference that is of low rank but for rounding.

``after = round(before + L)`` leaves of a matrix ``L`` of low rank one that has full rank, if only just. How many
outer products there are is told by a singular value decomposition: values that rounding alone explains are dropped
(the norm of a matrix of independent entries is about that of its largest row plus that of its largest column: Bandeira
and van Handel, Annals of Probability 2016). For large matrices it is found by random projection (Halko, Martinsson and
Tropp, SIAM Review 2011, algorithm 4.1), with more columns until the rest is no more than rounding.

Many matrices round to the same result. Projections, in turns onto the box of those and onto the matrices of the rank,
lead towards one that is both, so that few entries are left to correct.
"""

from __future__ import annotations

import numpy as np
import torch

from .tensor_bits import Values, spacing

_FIRST_COLUMNS, _MORE_COLUMNS = 16, 4  # of the random projection, and the factor by which they grow
_STEPS, _OVER = 30, 1.9  # projections, and how far beyond the box they go; measured: a few per cent of entries left


def find_factors(
    before: Values, after: Values, dtype: torch.dtype, most: int | None = None
) -> tuple[Values, Values] | None:
    """Factors of the difference of two matrices.

    Args:
        before: ``(m, n)``.
        after: ``(m, n)``.
        dtype: Their type; the factors are numbers of float64 where it is float64, else of float32.
        most: Largest rank; None for any.

    Returns:
        Factors ``(m, r)`` and ``(r, n)``, finite; or None where the rank is larger than that. Where an entry is not
        finite, the difference is taken as 0.
    """
    with np.errstate(all="ignore"):
        difference = after - before
        rounding = spacing(after, dtype)
    usable = np.isfinite(difference)
    difference, rounding = np.where(usable, difference, 0.0), np.where(usable, rounding, 0.0)
    largest = float(np.abs(difference).max(initial=0.0))
    if largest == 0:
        return np.zeros((len(difference), 0)), np.zeros((0, difference.shape[1]))
    scale = float(2.0 ** np.floor(np.log2(largest)))
    difference, rounding = difference / scale, rounding / scale
    basis = _row_basis(difference, rounding, most)
    if basis is None:
        return None
    left, right = _refine(difference, rounding / 2, basis)
    factors = (left * np.sqrt(scale), right * np.sqrt(scale))
    if dtype != torch.float64:
        factors = (factors[0].astype(np.float32).astype(np.float64), factors[1].astype(np.float32).astype(np.float64))
    return factors


def _row_basis(difference: Values, rounding: Values, most: int | None) -> Values | None:
    """Orthonormal rows ``(r, n)`` that span what is more than rounding; None where there are more than ``most``."""
    with np.errstate(under="ignore"):
        variance = np.square(rounding) / 12
    noise = float(np.sqrt(variance.sum(0).max()) + np.sqrt(variance.sum(1).max()))
    small, columns = min(difference.shape), _FIRST_COLUMNS
    draw = np.random.default_rng(0)
    while columns < small // 2:
        image = difference @ draw.standard_normal((difference.shape[1], columns))
        _, sizes, rows = np.linalg.svd(np.linalg.qr(image)[0].T @ difference, full_matrices=False)
        if sizes[-1] <= noise:
            break
        if most is not None and columns > most:
            return None
        columns *= _MORE_COLUMNS
    else:
        _, sizes, rows = np.linalg.svd(difference, full_matrices=False)
    rank = int((sizes > noise).sum())
    return None if most is not None and rank > most else rows[:rank]


def _refine(difference: Values, reach: Values, rows: Values) -> tuple[Values, Values]:
    """Factors whose product is within ``reach`` of the difference in as many entries as the steps achieve."""
    best, fewest = (np.zeros((len(difference), 0)), rows[:0]), difference.size + 1
    wanted = difference
    for _ in range(_STEPS if len(rows) else 1):
        columns = np.linalg.qr(wanted @ rows.T)[0]
        inner, sizes, rows = np.linalg.svd(columns.T @ wanted, full_matrices=False)
        left, right = (columns @ inner) * np.sqrt(sizes), np.sqrt(sizes)[:, None] * rows
        product = left @ right
        beyond = product - np.clip(product, difference - reach, difference + reach)
        count = int(np.count_nonzero(beyond))
        if count < fewest:
            best, fewest = (left, right), count
        if count == 0:
            break
        wanted = product - _OVER * beyond
    return best
