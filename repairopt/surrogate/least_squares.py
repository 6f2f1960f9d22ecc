"""Quadratic models fitted to samples by least squares. NumPy only.

Never by normal equations, which square the condition number: the unpenalized columns are projected out, the rest goes
through one singular value decomposition. It reveals the rank, gives the solution for every ridge, and gives the
leave-one-out error of every ridge in closed form, so that cross-validation costs no further decomposition.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from repairopt.errors import SpecificationError
from repairopt.program import Array

RIDGES = np.concatenate([[0.0], np.logspace(-9.0, 2.0, 23)])  # candidates, relative to the mean squared singular value


class QuadraticFit(NamedTuple):
    """Coefficients of ``1/2 u'Hu + g'u + c``.

    ``hessian`` is None for a linear model. ``ridge`` is the strength of the ridge on ``H`` (on ``g`` for a linear
    model), relative to the mean square of the singular values.
    """

    hessian: Array | None
    gradient: Array
    constant: float
    ridge: float


def unknowns(n: int) -> int:
    """Number of coefficients of a quadratic in ``n`` variables."""
    return (n + 1) * (n + 2) // 2


def fit_samples(
    points: Array, values: Array, *, ridge: float | None, center_weight: float, gradient: Array | None = None
) -> QuadraticFit:
    """Fit a full quadratic to values ``(m,)`` of samples ``(m, n)`` within the unit box, in any position.

    ``ridge`` penalizes the squared Frobenius norm of ``H``, relative to the mean squared singular value of its
    features; None chooses it by leave-one-out cross-validation. Samples at the origin weigh ``center_weight``, others
    1; ``inf`` makes the model exact there: a SpecificationError without any. ``gradient`` is ``g`` where it is known.
    """
    count, n = points.shape
    center = ~np.any(points, axis=1)
    if np.isinf(center_weight) and not center.any():
        raise SpecificationError("surrogate: center_weight is inf, but no sample is at the origin. Add one.")
    fixed = float(values[center].mean()) if np.isinf(center_weight) else None
    rows = ~center if fixed is not None else np.ones(count, dtype=bool)
    weight = np.where(center, 1.0 if fixed is not None else np.sqrt(center_weight), 1.0)[rows, None]
    targets = values[rows] - (fixed or 0.0)
    free = np.zeros((int(rows.sum()), 0))
    if gradient is None:
        free = points[rows]
    else:
        targets = targets - points[rows] @ gradient
    if fixed is None:
        free = np.column_stack([free, np.ones(len(free))])
    features = curvature_features(points[rows])
    curvature, rest, used = solve_ridge(weight * features, weight * free, weight[:, 0] * targets, ridge)
    slope = rest[:n] if gradient is None else gradient
    return QuadraticFit(as_matrix(curvature, n), slope, float(rest[-1]) if fixed is None else fixed, used)


class Pairs(NamedTuple):
    """Antithetic samples: values ``(p,)`` at ``+u`` and ``-u`` of points ``(p, n)`` in the unit box, and at the origin.

    A quadratic splits into its even part ``u'Hu/2 + c``, seen by the sums alone, and its odd part ``g'u``, seen by the
    differences alone: two small least-squares problems that do not disturb each other.
    """

    points: Array
    plus: Array
    minus: Array
    center: float

    def slope(self, ridge: float | None) -> tuple[Array, float]:
        """``(g, ridge)`` from the differences."""
        slope, _, used = solve_ridge(self.points, np.zeros((len(self.points), 0)), (self.plus - self.minus) / 2, ridge)
        return slope, used

    def curvature(
        self, ridge: float | None, center_weight: float, diagonal: bool = False
    ) -> tuple[Array, float, float]:
        """``(H or its diagonal, c, ridge)`` from the sums."""
        features = self.points**2 / 2 if diagonal else curvature_features(self.points)
        level, n = (self.plus + self.minus) / 2, self.points.shape[1]
        if np.isinf(center_weight):
            free, constant = np.zeros((len(level), 0)), self.center
            found, _, used = solve_ridge(features, free, level - self.center, ridge)
        else:  # a pair weighs as its two samples, the origin as center_weight of them
            weight = np.sqrt(np.append(np.full(len(level), 2.0), center_weight))
            stacked = np.vstack([np.sqrt(2.0) * features, np.zeros((1, features.shape[1]))])
            found, rest, used = solve_ridge(stacked, weight[:, None], weight * np.append(level, self.center), ridge)
            constant = float(rest[0])
        return (found if diagonal else as_matrix(found, n)), constant, used


def curvature_features(points: Array) -> Array:
    """Features of ``u'Hu/2``, one for each entry of the upper triangle.

    Off-diagonal features are ``u_j u_k / sqrt 2``, so that the norm of the coefficients is the Frobenius norm of ``H``
    and a ridge does not depend on the choice of axes.
    """
    row, column = np.triu_indices(points.shape[1])
    return points[:, row] * (points[:, column] * np.where(row == column, 0.5, np.sqrt(0.5)))


def as_matrix(coefficients: Array, n: int) -> Array:
    """The symmetric ``(n, n)`` matrix whose coefficients for :func:`curvature_features` these are."""
    row, column = np.triu_indices(n)
    matrix = np.zeros((n, n))
    matrix[row, column] = coefficients * np.where(row == column, 1.0, np.sqrt(0.5))
    matrix[column, row] = matrix[row, column]
    return matrix


def solve_ridge(features: Array, free: Array, targets: Array, ridge: float | None) -> tuple[Array, Array, float]:
    """``(a, b, ridge)`` that minimize ``|features a + free b - targets|^2 + ridge * level * |a|^2``, of least norm.

    ``level`` is the mean squared singular value of what ``free (m, f)`` cannot explain of ``features (m, q)``; a ridge
    of None is chosen by the leave-one-out error.
    """
    basis = _range(free)
    rest, left = features - basis @ (basis.T @ features), targets - basis @ (basis.T @ targets)
    u, s, vt = np.linalg.svd(rest, full_matrices=False)
    rank = int(np.sum(s > max(features.shape) * np.finfo(float).eps * s[0])) if len(s) and s[0] > 0 else 0
    u, s, vt = u[:, :rank], s[:rank], vt[:rank]
    inside = u.T @ left
    level = float(np.mean(s**2)) if rank else 1.0
    if ridge is None:
        ridge = _best_ridge(u, s**2 / level, inside, left, np.sum(basis**2, axis=1)) if rank else 0.0
    found = vt.T @ (s / (s**2 + ridge * level) * inside)
    others = np.linalg.lstsq(free, targets - features @ found, rcond=None)[0] if free.shape[1] else free[0, :0]
    return found, np.asarray(others, dtype=np.float64), ridge


def _range(columns: Array) -> Array:
    """An orthonormal basis of the space that the columns span."""
    if not columns.shape[1]:
        return columns
    u, s, _ = np.linalg.svd(columns, full_matrices=False)
    basis: Array = u[:, s > max(columns.shape) * np.finfo(float).eps * s[0]]
    return basis


def _best_ridge(u: Array, squares: Array, inside: Array, left: Array, leverage: Array) -> float:
    """The candidate with the smallest leave-one-out error; those that leave a sample no freedom are out."""
    shrink = squares[:, None] / (squares[:, None] + RIDGES)
    residual = left[:, None] - u @ (shrink * inside[:, None])
    freedom = 1.0 - leverage[:, None] - u**2 @ shrink
    usable = np.all(freedom > 1e-9, axis=0)
    errors = np.where(usable, np.sum((residual / np.where(freedom > 1e-9, freedom, 1.0)) ** 2, axis=0), np.inf)
    return float(RIDGES[int(np.argmin(errors))]) if usable.any() else 0.0


def fit_diagonal_low_rank(probes: Array, products: Array, rank: int) -> tuple[Array, Array]:
    """Fit ``H = diag(d) + F F'`` to products ``H @ probes (n, s)``, without ever forming ``H``.

    Alternates: ``F``, of at most ``rank`` columns, from the leading range of what ``d`` leaves over, with its core by
    least squares and clipped to be positive semidefinite; ``d`` from what ``F`` leaves over, row by row; ``s`` of at
    least ``2 rank + 2`` tells the two apart. Curvature that is negative and of low rank can show in ``d`` only. Last,
    ``d`` is drawn towards its mean as far as its own scatter is noise.
    """
    n, count = probes.shape
    rank = min(rank, n, (count - 1) // 2)
    power = np.sum(probes**2, axis=1)
    diagonal, factor = np.zeros(n), np.zeros((n, 0))
    for _ in range(200 if rank else 1):
        if rank:
            factor = _positive_factor(probes, products - diagonal[:, None] * probes, rank)
        left = products - factor @ (factor.T @ probes)
        before, diagonal = diagonal, np.sum(probes * left, axis=1) / power
        if np.max(np.abs(diagonal - before)) <= 1e-9 * np.max(np.abs(diagonal)):
            break
    noise = np.mean(np.sum((left - diagonal[:, None] * probes) ** 2, axis=1) / max(1, count - 1) / power)
    spread = max(0.0, float(np.var(diagonal)) - float(noise))
    trust = spread / (spread + float(noise)) if spread + noise > 0 else 1.0
    return diagonal.mean() + trust * (diagonal - diagonal.mean()), factor


def _positive_factor(probes: Array, products: Array, rank: int) -> Array:
    basis = np.linalg.svd(products, full_matrices=False)[0][:, :rank]
    core = np.linalg.lstsq((basis.T @ probes).T, (basis.T @ products).T, rcond=None)[0]
    values, vectors = np.linalg.eigh((core + core.T) / 2)
    keep = values > 1e-12 * max(1e-300, float(np.abs(values).max(initial=0.0)))
    factor: Array = basis @ (vectors[:, keep] * np.sqrt(values[keep]))
    return factor


def rank_correlation(first: Array, second: Array) -> float:
    """Spearman's rank correlation, ties sharing their mean rank; 0 where either is constant."""
    a, b = (rank - rank.mean() for rank in (_ranks(first), _ranks(second)))
    size = float(np.sqrt((a @ a) * (b @ b)))
    return float(a @ b) / size if size > 0 else 0.0


def _ranks(values: Array) -> Array:
    _, place, counts = np.unique(values, return_inverse=True, return_counts=True)
    ranks: Array = (np.cumsum(counts) - (counts - 1) / 2)[place]
    return ranks
