"""Convexity and positivity of a quadratic model around its center. NumPy only.

Everything here takes centered and scaled coordinates: a shift or a projection in raw weights would change the slope of
the model at the center, and "nearest" would have no meaning between weights of different sizes.
"""

from __future__ import annotations

import numpy as np

from repairopt.errors import SpecificationError
from repairopt.program import Array
from repairopt.specify import is_one_of

WAYS = ("project", "shift", "abs", "none")
MARGIN = 1e-8  # smallest eigenvalue afterwards, relative to the largest magnitude (at least 1)


def convex_matrix(matrix: Array, how: str) -> tuple[Array, float]:
    """A symmetric matrix made positive definite, and the most that an eigenvalue was raised.

    ``"project"`` raises the eigenvalues below a margin to it (nearest in Frobenius norm); ``"shift"`` adds
    ``max(0, -smallest) + margin`` to all of them; ``"abs"`` takes magnitudes (at least the margin); ``"none"`` changes
    nothing.
    """
    check_way(how)
    if how == "none":
        return matrix, 0.0
    values, vectors = np.linalg.eigh((matrix + matrix.T) / 2)
    new, raised = _convex_values(values, float(np.abs(values).max(initial=0.0)), how)
    if how == "shift":
        return (matrix + matrix.T) / 2 + raised * np.eye(len(matrix)), raised
    convex = (vectors * new) @ vectors.T
    return (convex + convex.T) / 2, raised


def convex_diagonal(diagonal: Array, factor: Array, how: str) -> tuple[Array, float]:
    """Make ``diag(diagonal) + factor factor'`` positive definite through its diagonal alone; also how much it rose.

    The other part has no negative eigenvalue, so a positive diagonal suffices. It is not necessary: the result is the
    nearest with a positive diagonal, not the nearest of all. The ways are those of :func:`convex_matrix`.
    """
    check_way(how)
    if how == "none":
        return diagonal, 0.0
    size = float(np.abs(diagonal).max(initial=0.0) + np.linalg.norm(factor) ** 2)
    return _convex_values(diagonal, size, how)


def check_way(how: str) -> None:
    """Refuse a name that is not a way to make a model convex."""
    if not is_one_of(how, WAYS):
        raise SpecificationError(f"convexified: how={how!r}; expected one of {', '.join(WAYS)}. Pass how='project'.")


def _convex_values(values: Array, size: float, how: str) -> tuple[Array, float]:
    margin = MARGIN * max(1.0, size)
    if how == "shift":
        raised = max(0.0, -float(values.min(initial=0.0))) + margin
        return values + raised, raised
    new = np.maximum(np.abs(values) if how == "abs" else values, margin)
    return new, float(np.max(new - values, initial=0.0))


def sufficient_radius(constant: float, slope: float, curvature: float) -> float:
    """Largest ``R`` with ``constant - R slope - R^2 curvature / 2 >= 0``; 0 where the constant is not positive.

    ``slope`` bounds ``-g'u`` and ``curvature`` ``-u'Hu`` over the unit box; infinite where nothing pulls down.
    """
    if constant <= 0.0:
        return np.inf if constant == slope == curvature == 0.0 else 0.0
    down = slope + np.sqrt(slope**2 + 2.0 * constant * curvature)
    return float(2.0 * constant / down) if down > 0 else float(np.inf)
