"""Convexity and positivity of a quadratic model around its center. NumPy only.

Everything here takes centered and scaled coordinates: a shift or a projection in raw weights would change the slope of
the model at the center, and "nearest" would have no meaning between weights of different sizes.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt

from repairopt.errors import SpecificationError

Array = npt.NDArray[np.float64]
WAYS = ("project", "shift", "abs", "none")
MARGIN = 1e-8  # smallest eigenvalue afterwards, relative to the largest magnitude (at least 1)
RADIUS_LIMIT = 1e9  # a model that stays positive on a box of this radius counts as positive everywhere


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
    if how not in WAYS:
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


def box_radius(product: Callable[[Array], Array], gradient: Array, constant: float, start: float, norm: float) -> float:
    """Largest radius of a box on which a convex quadratic is non-negative, by bisection to one part in a thousand.

    Each trial is a convex quadratic program over the box. Its answer is not taken on trust: a radius is accepted only
    with a lower bound of the minimum that is non-negative, from the linearization at the point reached. ``product`` is
    ``H @ u``, ``start`` a radius known to be safe, ``norm`` a bound of the largest eigenvalue of ``H``.
    """
    if start <= 0.0 or np.isinf(start):
        return start
    low, high, point = start, 2.0 * start, np.zeros_like(gradient)
    while high <= RADIUS_LIMIT:
        safe, point = _stays_positive(product, gradient, constant, high, norm=norm, point=point)
        if not safe:
            break
        low, high = high, 2.0 * high
    else:
        return float(np.inf)
    while high - low > 1e-3 * low:
        middle = (low + high) / 2
        point = np.clip(point, -middle, middle)
        safe, point = _stays_positive(product, gradient, constant, middle, norm=norm, point=point)
        low, high = (middle, high) if safe else (low, middle)
    return low


def _stays_positive(
    product: Callable[[Array], Array], gradient: Array, constant: float, radius: float, *, norm: float, point: Array
) -> tuple[bool, Array]:
    """Accelerated projected gradient until the sign of the minimum is proved; unproved counts as negative."""
    ahead, momentum = point, 1.0
    for step in range(5_000):
        new = np.clip(ahead - (product(ahead) + gradient) / norm, -radius, radius)
        if (ahead - new) @ (new - point) > 0.0:  # the momentum points uphill: start it again
            momentum = 1.0
        following = (1.0 + np.sqrt(1.0 + 4.0 * momentum**2)) / 2
        ahead, point, momentum = new + (momentum - 1.0) / following * (new - point), new, following
        if step % 10 == 0:
            curved = product(point)
            value = 0.5 * float(point @ curved) + float(gradient @ point) + constant
            slope = curved + gradient
            if value < 0.0:
                return False, point
            if value - float(slope @ point) - radius * float(np.abs(slope).sum()) >= 0.0:
                return True, point
    return False, point
