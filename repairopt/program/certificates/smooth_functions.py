"""Smooth activation functions in NumPy, and lines about them that hold between grid points too.

Between two points of a grid of spacing ``h`` a function whose second derivative is at most ``M`` exceeds the larger of
its two values by ``M h^2 / 8`` at most. So a few values of a function less a line give a rigorous band about it,
whatever its shape. Functions are taken to be computed within ``ULPS`` units of rounding of ``1 + |x|``, here and where
the network runs.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from repairopt.program.program import Array

GRID = 48  # points of one band
ULPS = 16.0
_ERF = np.frompyfunc(math.erf, 1, 1)


@dataclass(frozen=True)
class SmoothFunction:
    """A function of one number.

    Attributes:
        value: The function, of arrays.
        slope: Its derivative; need not be exact, for it only chooses lines.
        curvature: Bound of its second derivative, where it has one: the derivative's Lipschitz constant.
        apart: How far a run may be off beyond rounding: torch's softplus is the identity above 20.
    """

    value: Callable[[Array], Array]
    slope: Callable[[Array], Array]
    curvature: float
    apart: float = 0.0


def _sigmoid(x: Array) -> Array:
    return 0.5 * (1 + np.tanh(0.5 * x))


def _below(x: Array) -> Array:
    """The normal distribution function."""
    return 0.5 * (1 + np.asarray(_ERF(x / math.sqrt(2)), dtype=np.float64))


def _elu(x: Array) -> Array:
    return np.where(x > 0, x, np.expm1(np.minimum(x, 0)))


def _normal(x: Array) -> Array:
    return np.exp(-0.5 * x * x) / math.sqrt(2 * math.pi)


FUNCTIONS = {
    "tanh": SmoothFunction(np.tanh, lambda x: 1 - np.tanh(x) ** 2, 0.7699),  # 4 / (3 sqrt 3), at atanh(1 / sqrt 3)
    "sigmoid": SmoothFunction(_sigmoid, lambda x: _sigmoid(x) * _sigmoid(-x), 0.0963),  # 1 / (6 sqrt 3)
    "softplus": SmoothFunction(lambda x: np.logaddexp(0.0, x), _sigmoid, 0.25, apart=2.1e-9),
    "silu": SmoothFunction(lambda x: x * _sigmoid(x), lambda x: _sigmoid(x) * (1 + x * _sigmoid(-x)), 0.5),
    "gelu": SmoothFunction(lambda x: x * _below(x), lambda x: _below(x) + x * _normal(x), 0.7979),  # 2 / sqrt(2 pi)
    "elu": SmoothFunction(_elu, lambda x: np.exp(np.minimum(x, 0)), 1.0),
}


def band(function: SmoothFunction, lower: Array, upper: Array, slope: Array, unit: float) -> tuple[Array, Array]:
    """Least and largest ``f(x) - slope x`` for ``x`` between bounds, with rounding here and in a run of a unit.

    All arrays have one shape; so do both results.
    """
    at = np.linspace(0, 1, GRID).reshape(-1, *[1] * lower.ndim)
    points = np.clip(lower + at * (upper - lower), lower, upper)
    values = function.value(points) - slope * points
    spacing = (upper - lower) / (GRID - 1) * (1 + 1e-9) + 1e-12 * np.maximum(np.abs(lower), np.abs(upper))
    between = function.curvature * (1 + 1e-6) * spacing * spacing / 8
    size = 1 + (1 + np.abs(slope)) * np.maximum(np.abs(lower), np.abs(upper))
    error = between + ULPS * (unit + 2.0**-53) * size + function.apart
    return values.min(0) - error, values.max(0) + error


def slopes_of(function: SmoothFunction, lower: Array, upper: Array) -> dict[str, Array]:
    """Slopes of lines to choose from: of the chord, of the middle, and the smaller one of both ends."""
    width = upper - lower
    flat = width < 1e-9 * (1 + np.abs(lower))
    chord = (function.value(upper) - function.value(lower)) / np.where(flat, 1.0, width)
    middle = function.slope(lower / 2 + upper / 2)
    ends = np.minimum(function.slope(lower), function.slope(upper))
    return {"adaptive": np.where(flat, middle, chord), "parallel": middle, "zero": ends}
