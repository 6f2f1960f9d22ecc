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

import math

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
    nothing = np.zeros((len(before), 0)), np.zeros((0, before.shape[1]))
    with np.errstate(all="ignore"):
        difference = after - before
        usable = np.isfinite(difference)
        difference = np.where(usable, difference, 0.0)
        largest = float(np.abs(difference).max(initial=0.0))
        if largest == 0:
            return nothing
        scale = math.ldexp(1.0, math.frexp(largest)[1] - 1)
        difference, rounding = difference / scale, np.where(usable, spacing(after, dtype), 0.0) / scale
        basis = _row_basis(difference, rounding, most)
        if basis is None:
            return None
        if not len(basis):
            return nothing
        factors = [factor * math.sqrt(scale) for factor in _refine(difference, rounding / 2, basis)]
        if dtype != torch.float64:
            factors = [factor.astype(np.float32).astype(np.float64) for factor in factors]
    return (factors[0], factors[1]) if all(np.isfinite(factor).all() for factor in factors) else nothing


def _row_basis(difference: Values, rounding: Values, most: int | None) -> Values | None:
    """Orthonormal rows ``(r, n)`` that span what is more than rounding; None where there are more than ``most``."""
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
    for _ in range(_STEPS):
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
