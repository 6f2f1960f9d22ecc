"""Surrogates: a linear or quadratic model of the property in the weight change."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from math import ceil
from typing import Any

import numpy as np

from repairopt.errors import SpecificationError, UnsupportedError
from repairopt.network import Engine
from repairopt.program import Array, LowRankHessian
from repairopt.specify import Property

from .convexify import check_way, convex_diagonal, convex_matrix, sufficient_radius
from .least_squares import rank_correlation
from .sample_property import PropertySampler, random_design
from .surrogate_kinds import FITS, Coefficients, SurrogateSettings, choose_kind

RADIUS_STEP = 3.0  # between the radii at which an untrusted fit is tried again
MIN_FRESH = 64  # fresh samples at least: a rank correlation of 64 has a standard error of about 0.1


@dataclass(frozen=True)
class FitError:
    """How well a surrogate predicts the property at fresh samples, which the fit has not seen.

    They lie between random points of the box and its corner down the surrogate's own gradient, at random shares. Random
    points alone mislead: a count changes there by little but noise, whereas the step of a solver goes to the corner.

    ``r2`` is the share of the variance that is explained, negative where worse than none; ``samples`` are the weight
    vectors of the fit, ``evaluations`` all at which the goal was evaluated or differentiated, earlier tries included;
    ``radius`` is the half-width of the sampled box in scaled coordinates: the surrogate is not known to hold beyond.
    """

    r2: float
    rank_correlation: float
    samples: int
    fresh: int
    evaluations: int
    ridge: float
    radius: float


@dataclass(frozen=True, eq=False)
class Surrogate:
    """``1/2 d'Hd + g'd + c``, a model of ``property ** power`` at ``delta0 + d``, in unscaled weights.

    Attributes:
        gradient: ``g (n,)``.
        hessian: ``H``, ``(n, n)`` or :class:`LowRankHessian`; None for a linear model.
        constant: ``c``. The value of the goal itself at ``delta0``, to the given power, also where ``g`` and ``H``
            come from its soft version, since targets are compared with the goal itself. (A Gauss-Newton model starts at
            the soft residuals unless the goal has ``signed_hard``; a sampled one with a finite ``center_weight`` at the
            fitted constant.)
        scale: Natural size of a change of each weight, ``(n,)``; ``u = d / scale``. Ones where not given.
        kind: Which model of the ladder this is, see ``KINDS``.
        power: 2 for a Gauss-Newton model of the square of the property, else 1.
        fit_error: On fresh samples; None where validation was switched off.
        trusted: Whether the rank correlation on fresh samples reached the minimum. A surrogate that is not trusted is
            the best of three tries at different radii: do not optimize it, take another kind or fail.
        shift: The most by which :meth:`convexified` raised an eigenvalue of ``H`` in scaled coordinates.
        convexification: How it was made convex; ``"none"`` as fitted.
    """

    gradient: Array
    hessian: Array | LowRankHessian | None = None
    constant: float = 0.0
    scale: Array = field(default_factory=lambda: np.zeros(0))
    kind: str = "full"
    power: int = 1
    fit_error: FitError | None = None
    trusted: bool = True
    shift: float = 0.0
    convexification: str = "none"

    def __post_init__(self) -> None:
        scale = np.asarray(self.scale if len(self.scale) else np.ones(self.n), dtype=np.float64)
        object.__setattr__(self, "scale", scale)
        shape = (self.n, self.n) if self.hessian is None else self.hessian.shape
        if scale.shape != (self.n,) or shape != (self.n, self.n) or not np.all(scale > 0):
            raise SpecificationError(
                f"surrogate: hessian {shape} and scale {scale.shape} for a gradient of {self.n} weights; expected "
                f"({self.n}, {self.n}) and ({self.n},), the scale positive."
            )

    @property
    def n(self) -> int:
        """Number of weights."""
        return len(self.gradient)

    def value(self, step: Array) -> float:
        """The model at a step ``d (n,)`` from ``delta0``."""
        curved = 0.0 if self.hessian is None else 0.5 * float(step @ (self.hessian @ step))
        return curved + float(self.gradient @ step) + self.constant

    def values(self, steps: Array) -> Array:
        """The model at steps ``(K, n)``."""
        curved: Any = 0.0
        if isinstance(self.hessian, LowRankHessian):
            curved = steps**2 @ self.hessian.diagonal + np.sum((steps @ self.hessian.factor) ** 2, axis=1)
        elif self.hessian is not None:
            curved = np.sum((steps @ self.hessian) * steps, axis=1)
        result: Array = 0.5 * curved + steps @ self.gradient + self.constant
        return result

    def predicted(self, step: Array) -> float:
        """The property that the model predicts at a step: at least 0, the power undone."""
        return float(max(0.0, self.value(step)) ** (1.0 / self.power))

    def convexified(self, how: str = "project") -> Surrogate:
        """The nearest convex surrogate of a form; value and gradient at 0 stay as they are.

        ``"project"`` is nearest in scaled coordinates (concave directions become flat, so bound the step), ``"shift"``
        a proximal term around ``delta0``, ``"abs"`` between the two. A :class:`LowRankHessian` changes its diagonal
        alone.
        """
        check_way(how)
        hessian, shift = self.hessian, 0.0
        if isinstance(hessian, LowRankHessian):
            factor = hessian.factor * self.scale[:, None]
            diagonal, shift = convex_diagonal(hessian.diagonal * self.scale**2, factor, how)
            hessian = hessian if how == "none" else replace(hessian, diagonal=diagonal / self.scale**2)
        elif hessian is not None and how != "none":
            sizes = np.outer(self.scale, self.scale)
            matrix, shift = convex_matrix(hessian * sizes, how)
            hessian = matrix / sizes
        return replace(self, hessian=hessian, shift=shift, convexification=how)

    def positive_radius(self) -> float:
        """A radius ``R`` such that the model is non-negative wherever ``|d_j| <= R scale_j`` for all ``j``.

        A property cannot be negative, so a minimum of the model outside of such a box may be an artifact. The radius is
        sufficient, in closed form; infinite for a Gauss-Newton model, which is never negative. The statement is about
        this model: a convexified one lies above the fitted one, and being positive says less.
        """
        if self.kind == "gauss_newton":
            return float(np.inf)
        if self.hessian is None:
            down = 0.0
        elif isinstance(self.hessian, LowRankHessian):
            down = float(np.maximum(0.0, -self.hessian.diagonal * self.scale**2).sum())
        else:  # a positive diagonal cannot pull down
            matrix = self.hessian * np.outer(self.scale, self.scale)
            down = float(np.abs(matrix).sum() - np.maximum(np.diag(matrix), 0.0).sum())
        return sufficient_radius(self.constant, float(np.abs(self.gradient * self.scale).sum()), down)


def fit_surrogate(
    engine: Engine, goal: Property, settings: SurrogateSettings | None = None, delta0: Any = None
) -> Surrogate:
    """Fit a model of the goal in steps from ``delta0 (n,)``, not yet convex, and validate it on fresh samples.

    With ``kind="auto"``: ``gauss_newton`` for a goal with ``residuals``; ``hessian`` (up to 300 weights),
    ``gradient_hessian`` or ``diagonal_low_rank`` for one with ``soft_value``; else, or where those derivatives are all
    zero (step activations), ``full``, ``diagonal_low_rank`` or ``linear``, the richest that the samples can identify.

    Where the rank correlation on fresh samples is too low, the fit is tried again twice: at three and nine times the
    radius where most samples left the property as it was (counts are flat nearby), else at a third of the radius (less
    curved) and three times it (less noise of counting). If none will do, the best comes back with ``trusted=False``.
    """
    settings = settings or SurrogateSettings()
    sampler = PropertySampler(engine, goal, delta0, soft=settings.value == "soft")
    kind = choose_kind(goal, sampler.n, settings) if settings.kind == "auto" else settings.kind
    try:
        found = FITS[kind](sampler, settings, settings.radius)
    except UnsupportedError:  # no exact Hessian
        if settings.kind != "auto":
            raise
        kind = choose_kind(goal, sampler.n, settings, exact=False)
        found = FITS[kind](sampler, settings, settings.radius)
    if settings.kind == "auto" and sampler.differentiable and not found.moves:
        sampler.differentiable = False
        kind = choose_kind(goal, sampler.n, settings, sampled=True)
        found = FITS[kind](sampler, settings, settings.radius)
    if not settings.validation:
        return _assemble(kind, found, sampler)
    tries: list[Surrogate] = []
    factors = [1.0]
    while factors:
        factor = factors.pop(0)
        radius = settings.radius * factor
        if factor != 1.0 and kind not in ("hessian", "gauss_newton"):  # those two do not depend on the radius
            found = FITS[kind](sampler, settings, radius)
        surrogate, flat = _validated(_assemble(kind, found, sampler), found, sampler, settings, radius)
        tries.append(surrogate)
        if surrogate.trusted:
            break
        if factor == 1.0:
            factors = [RADIUS_STEP, RADIUS_STEP**2] if flat else [1.0 / RADIUS_STEP, RADIUS_STEP]
    best = max(tries, key=lambda one: one.fit_error.rank_correlation if one.fit_error else 0.0)
    assert best.fit_error is not None
    return replace(best, fit_error=replace(best.fit_error, evaluations=sampler.evaluations))


def _assemble(kind: str, found: Coefficients, sampler: PropertySampler) -> Surrogate:
    """From scaled to plain coordinates."""
    hessian: Array | LowRankHessian | None
    if isinstance(found.hessian, tuple):
        diagonal, factor = found.hessian
        hessian = LowRankHessian(diagonal / sampler.scale**2, factor / sampler.scale[:, None])
    else:
        hessian = None if found.hessian is None else found.hessian / np.outer(sampler.scale, sampler.scale)
    gradient = found.gradient / sampler.scale
    return Surrogate(gradient, hessian, found.constant, sampler.scale, kind=kind, power=found.power)


def _validated(
    surrogate: Surrogate, found: Coefficients, sampler: PropertySampler, settings: SurrogateSettings, radius: float
) -> tuple[Surrogate, bool]:
    """The surrogate with its error on fresh samples, and whether the property is flat there."""
    fresh = max(MIN_FRESH, ceil(settings.validation * found.samples))
    random = random_design(sampler.n + 1, fresh, settings.seed)
    along, corner = np.abs(random[:, :1]), -np.sign(found.gradient)
    offsets = radius * (along * corner + (1.0 - along) * random[:, 1:])
    values = sampler.values(offsets)
    actual = values**surrogate.power - sampler.center**surrogate.power
    predicted = surrogate.values(offsets * surrogate.scale) - surrogate.constant
    spread = float(np.sum((actual - actual.mean()) ** 2))
    r2 = 1.0 - float(np.sum((actual - predicted) ** 2)) / spread if spread > 0 else 0.0
    order = rank_correlation(actual, predicted)
    error = FitError(r2, order, found.samples, fresh, sampler.evaluations, found.ridge, radius)
    trusted = order >= settings.min_rank_correlation
    return replace(surrogate, fit_error=error, trusted=trusted), bool(np.mean(actual == 0) > 0.5)
