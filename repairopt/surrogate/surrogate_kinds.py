"""The ladder of surrogates: for each kind which coefficients it takes, and from what."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from math import ceil, inf
from typing import NamedTuple

import numpy as np

from repairopt.errors import SpecificationError
from repairopt.program import Array
from repairopt.specify import Differentiable, Expected, Property, Residuals, is_one_of

from .least_squares import Pairs, QuadraticFit, fit_diagonal_low_rank, fit_samples, unknowns
from .sample_property import PropertySampler, sobol_design

KINDS = ("full", "gradient_hessian", "hessian", "gauss_newton", "diagonal_low_rank", "linear")
BUDGET = 4000  # samples that a fit may take unless settings.samples says otherwise
DENSE = 500  # weights up to which a Gauss-Newton Hessian is formed
HESSIAN_WEIGHTS = 300  # weights up to which "auto" asks for all second derivatives


def _is_weight(value: object) -> bool:
    return (isinstance(value, float) and value == inf) or Expected(above=True).fits(value)


@dataclass(frozen=True)
class SurrogateSettings:
    """How to fit the surrogate.

    Attributes:
        kind: One of ``KINDS``, or ``"auto"`` for the richest that the goal offers and the samples can identify.
        samples: Weight vectors at which the goal is evaluated for the fit (gradients for a ``diagonal_low_rank`` of a
            goal with ``soft_value``); None for as many as the kind needs, at most 4,000.
        radius: Half-width of the box that is sampled, relative to the size of each weight.
        seed: Random seed of the design; the same seed gives the same surrogate.
        value: ``"hard"`` fits and validates on ``goal.value``, ``"soft"`` on ``goal.soft_value``. Derivatives are those
            of the soft value either way.
        ridge: On the Hessian (on the gradient too where samples are fewer than weights), relative to the mean squared
            singular value of its features; None for leave-one-out cross-validation.
        validation: Fresh samples for validation, as a share of ``samples`` and at least 64; 0 trusts every fit.
        min_rank_correlation: Spearman correlation on fresh samples below which a surrogate is not trusted.
        center_weight: Weight of the sample at the center, others weigh 1; ``inf`` makes the surrogate exact there.
        rank: Rank of the low-rank part of ``diagonal_low_rank``.

    Raises:
        SpecificationError: A field is out of range.
    """

    kind: str = "auto"
    samples: int | None = None
    radius: float = 0.1
    seed: int = 0
    value: str = "hard"
    ridge: float | None = None
    validation: float = 0.2
    min_rank_correlation: float = 0.5
    center_weight: float = float("inf")
    rank: int = 8

    def __post_init__(self) -> None:
        whole = lambda x, low: isinstance(x, int) and not isinstance(x, bool) and x >= low  # noqa: E731
        checks: dict[str, tuple[bool, str]] = {
            "kind": (is_one_of(self.kind, ("auto", *KINDS)), f"one of auto, {', '.join(KINDS)}"),
            "samples": (self.samples is None or whole(self.samples, 3), "None or a whole number of at least 3"),
            "radius": (Expected(above=True).fits(self.radius), "a positive number, for example 0.1"),
            "seed": (whole(self.seed, 0), "a whole number of at least 0"),
            "value": (is_one_of(self.value, ("hard", "soft")), "'hard' or 'soft'"),
            "ridge": (Expected(none=True).fits(self.ridge), "None or a number >= 0"),
            "validation": (Expected(high=1).fits(self.validation), "a share between 0 and 1"),
            "min_rank_correlation": (Expected(-1, 1).fits(self.min_rank_correlation), "a number between -1 and 1"),
            "center_weight": (_is_weight(self.center_weight), "a positive number or inf"),
            "rank": (whole(self.rank, 0), "a whole number of at least 0"),
        }
        for name, (good, expected) in checks.items():
            if not good:
                raise SpecificationError(
                    f"surrogate settings: {name}={getattr(self, name)!r}; expected {expected}. "
                    f"Leave it out for the default."
                )

    @property
    def budget(self) -> int:
        """The most samples that a fit may take."""
        return BUDGET if self.samples is None else self.samples


class Coefficients(NamedTuple):
    """A surrogate in scaled coordinates, ``1/2 u'Hu + g'u + c``, of ``property ** power``.

    ``hessian`` is ``H (n, n)``; or ``(d, F)`` for ``diag(d) + F F'``; or None. ``samples`` are the weight vectors that
    the fit used, derivatives counted as one each; ``ridge`` is 0 where nothing was penalized.
    """

    hessian: Array | tuple[Array, Array] | None
    gradient: Array
    constant: float
    samples: int
    ridge: float = 0.0
    power: int = 1

    @property
    def moves(self) -> bool:
        """Whether the model changes at all."""
        curved = self.hessian if isinstance(self.hessian, tuple) else (self.hessian,)
        return bool(np.any(self.gradient)) or any(part is not None and bool(np.any(part)) for part in curved)


def choose_kind(goal: Property, n: int, settings: SurrogateSettings, sampled: bool = False, exact: bool = True) -> str:
    """The kind that ``"auto"`` stands for.

    ``sampled`` passes over those that need derivatives, ``exact=False`` over the exact Hessian.
    """
    full = 1.5 * unknowns(n) <= settings.budget
    if not sampled and isinstance(goal, Residuals):
        return "gauss_newton"
    if not sampled and isinstance(goal, Differentiable):
        return "hessian" if n <= HESSIAN_WEIGHTS and exact else "gradient_hessian" if full else "diagonal_low_rank"
    return "full" if full else "diagonal_low_rank" if 2.5 * n + 1 <= settings.budget else "linear"


def fit_gauss_newton(sampler: PropertySampler, settings: SurrogateSettings, radius: float) -> Coefficients:
    """``|r0 + J u|^2``, never negative: a model of the square of the property, or of the property if that is ``r'r``.

    ``r0`` is ``goal.signed_hard`` where the goal has it. The model is then multiplied so that it starts at the value of
    the goal, which need not be the norm of its residuals (a mean over pairs of groups, a divergence). That moves no
    minimizer.
    """
    soft, slope = sampler.jacobian("residuals")
    start = sampler.signed_hard(soft)
    power, square = _power(sampler, soft, slope), float(start @ start)
    hard = start is not soft and square > 0 and sampler.start > 0
    factor = sampler.start**power / square if hard else 1.0
    matrix: Array | tuple[Array, Array]
    if sampler.n <= DENSE:
        matrix = 2.0 * factor * slope.T @ slope
    else:
        short = slope if len(slope) <= sampler.n else np.linalg.qr(slope)[1]
        matrix = (np.zeros(sampler.n), np.sqrt(2.0 * factor) * short.T)
    return Coefficients(matrix, 2.0 * factor * slope.T @ start, factor * square, 1, 0.0, power)


def _power(sampler: PropertySampler, residuals: Array, slope: Array) -> int:
    """1 where the goal grows like ``r'r``, 2 where it grows like its root, so that its square is modeled.

    For ``value = a (r'r)^(d/2)`` the gradient is ``d value J'r / r'r``, which gives ``d``.
    """
    square, along = float(residuals @ residuals), residuals @ slope
    if not sampler.has_gradient:
        return 1 if abs(sampler.start - square) <= 1e-5 * abs(sampler.start) else 2
    value, gradient = sampler.jacobian("soft_value")
    size = float(value[0]) * float(along @ along)
    return 1 if size > 0 and float(gradient[0] @ along) * square / size > 1.5 else 2


def fit_low_rank(sampler: PropertySampler, settings: SurrogateSettings, radius: float) -> Coefficients:
    """A diagonal and a low-rank part, without ever forming the matrix.

    With a soft value: products of its Hessian with random corners of the box, as differences of gradients at opposite
    corners (so curvature is averaged over the box, which is what counts for piecewise linear networks). Without: only
    the diagonal, from antithetic samples, since samples that are fewer than the unknowns tell nothing of the rest.
    """
    if not sampler.has_gradient:
        pairs = _pairs(sampler, settings, radius)
        slope, _ = pairs.slope(settings.ridge)
        diagonal, constant, ridge = pairs.curvature(settings.ridge, settings.center_weight, diagonal=True)
        part = (diagonal / radius**2, np.zeros((sampler.n, 0)))
        return Coefficients(part, slope / radius, constant, 2 * len(pairs.points) + 1, ridge)
    rank = min(settings.rank, sampler.n)
    count = 2 * rank + 4 if settings.samples is None else max(1, settings.samples // 2)
    probes = np.random.default_rng(settings.seed).choice([-radius, radius], size=(sampler.n, count))
    products = [(sampler.gradient(probe) - sampler.gradient(-probe)) / 2 for probe in probes.T]
    diagonal, factor = fit_diagonal_low_rank(probes, np.stack(products, axis=1), rank)
    return Coefficients((diagonal, factor), sampler.gradient(), sampler.start, 2 * count + 1)


def fit_linear(sampler: PropertySampler, settings: SurrogateSettings, radius: float) -> Coefficients:
    """Gradient of the soft value, or least squares on antithetic samples."""
    if sampler.has_gradient:
        return Coefficients(None, sampler.gradient(), sampler.start, 1)
    pairs = _pairs(sampler, settings, radius)
    slope, ridge = pairs.slope(settings.ridge)
    return Coefficients(None, slope / radius, sampler.start, 2 * len(pairs.points) + 1, ridge)


# The constant of "hessian" is the hard value, which targets are compared with.
FITS: dict[str, Callable[[PropertySampler, SurrogateSettings, float], Coefficients]] = {
    "full": lambda sampler, settings, radius: _fit_dense(sampler, settings, radius, None),
    "gradient_hessian": lambda sampler, settings, radius: _fit_dense(sampler, settings, radius, sampler.gradient()),
    "hessian": lambda sampler, _, __: Coefficients(sampler.hessian(), sampler.gradient(), sampler.start, 2),
    "gauss_newton": fit_gauss_newton,
    "diagonal_low_rank": fit_low_rank,
    "linear": fit_linear,
}


def _fit_dense(
    sampler: PropertySampler, settings: SurrogateSettings, radius: float, gradient: Array | None
) -> Coefficients:
    """The full Hessian from samples: antithetic where the pairs alone can identify it, else in general position."""
    n, entries = sampler.n, sampler.n * (sampler.n + 1) // 2
    need = unknowns(n) - (0 if gradient is None else n)
    count = min(BUDGET, max(2 * need, ceil(2.2 * entries)) + 1) if settings.samples is None else settings.samples
    if count < need:
        raise SpecificationError(
            f"surrogate '{'full' if gradient is None else 'gradient_hessian'}': {count} samples for {need} unknowns "
            f"of a quadratic in {n} weights. Pass samples={ceil(1.5 * need)}, a smaller Location, or kind='auto'."
        )
    within = None if gradient is None else gradient * radius
    if (count - 1) // 2 > entries:
        pairs = _pairs(sampler, settings, radius, count)
        matrix, constant, ridge = pairs.curvature(settings.ridge, settings.center_weight)
        slope = pairs.slope(0.0)[0] if within is None else within
        fit, used = QuadraticFit(matrix, slope, constant, ridge), 2 * len(pairs.points) + 1
    else:
        points = sobol_design(n, count - 1, settings.seed)
        values = np.append(sampler.values(radius * points), sampler.center)
        points = np.vstack([points, np.zeros(n)])
        fit = fit_samples(points, values, ridge=settings.ridge, center_weight=settings.center_weight, gradient=within)
        used = count
    assert fit.hessian is not None
    constant = fit.constant - sampler.center + sampler.start  # both the same unless values are soft
    return Coefficients(fit.hessian / radius**2, fit.gradient / radius, constant, used, fit.ridge)


def _pairs(sampler: PropertySampler, settings: SurrogateSettings, radius: float, count: int | None = None) -> Pairs:
    """Antithetic samples of a box; by default a quarter more pairs than weights, and at least 20."""
    if count is None:
        count = settings.samples or min(BUDGET, 2 * max(20, ceil(1.25 * sampler.n)) + 1)
    points = sobol_design(sampler.n, (count - 1) // 2, settings.seed)
    values = sampler.values(radius * np.concatenate([points, -points]))
    return Pairs(points, values[: len(points)], values[len(points) :], sampler.center)
