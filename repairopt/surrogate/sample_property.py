"""The goal as a function of the scaled weight change: designs of samples, values, derivatives."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from repairopt.errors import SpecificationError
from repairopt.network import Engine, Predict, hessian, jacobian
from repairopt.program import Array
from repairopt.specify import Differentiable, Property, Residuals, SignedParts


def sobol_design(n: int, count: int, seed: int) -> Array:
    """``count`` scrambled Sobol points in ``[-1, 1]^n``; plain random ones above the 21,201 dimensions of the table."""
    if n > torch.quasirandom.SobolEngine.MAXDIM:
        return random_design(n, count, seed)
    points = torch.quasirandom.SobolEngine(n, scramble=True, seed=seed).draw(count, dtype=torch.float64)
    return 2.0 * points.numpy() - 1.0


def random_design(n: int, count: int, seed: int) -> Array:
    """``count`` independent points in ``[-1, 1]^n``, unrelated to the Sobol points of the same seed."""
    return np.random.default_rng([seed, 1]).uniform(-1.0, 1.0, size=(count, n))


class PropertySampler:
    """The goal in the coordinates ``u = (delta - delta0) / scale``; ``soft`` samples its soft value.

    ``start`` is the value of the goal itself at the center, never of its soft version; ``center`` what :meth:`values`
    gives there; ``differentiable`` says whether the soft value is to be differentiated: set it to False where its
    gradient says nothing; ``evaluations`` counts weight vectors.

    Raises:
        SpecificationError: ``delta0`` has another size, ``soft_value`` is missing, or the value is NaN at the center.
    """

    def __init__(self, engine: Engine, goal: Property, delta0: Any = None, soft: bool = False) -> None:
        self.engine, self.evaluations = engine, 0
        self.scale: Array = engine.scale.cpu().numpy().astype(np.float64)
        self.at = self.scale * 0.0 if delta0 is None else torch.as_tensor(delta0).detach().cpu().double().numpy()
        if self.at.shape != (engine.n,) or not engine.n:
            raise SpecificationError(
                f"fit_surrogate: delta0 has shape {self.at.shape} for {engine.n} weights; expected one number for "
                f"each of at least one weight. Pass the change at which to fit, and a Location that is not empty."
            )
        around = getattr(goal, "around", None)  # what a goal that is dear offers for weights nearby
        self.goal = goal = around(engine.predict(self.at)) if callable(around) else goal
        self.differentiable = isinstance(goal, Differentiable | Residuals)
        self._function = self.offers("soft_value", "value='soft'") if soft else goal.value
        self.start = float(self._evaluate(goal.value, np.zeros((1, engine.n)))[0])
        self.center = float(self.values(np.zeros((1, engine.n)))[0]) if soft else self.start

    @property
    def n(self) -> int:
        """Number of weights."""
        return self.engine.n

    def offers(self, method: str, why: str) -> Callable[[Predict], Tensor]:
        """An optional method of the goal; where it is missing, a SpecificationError says why it is needed."""
        found = getattr(self.goal, method, None)
        if not callable(found):
            raise SpecificationError(
                f"goal '{self.goal.name}': {why} needs {method}(predict), which {type(self.goal).__name__} does not "
                f"have. Add it, or pass kind='auto'."
            )
        return found

    def values(self, offsets: Array) -> Array:
        """Values ``(K,)`` at offsets ``u (K, n)``."""
        return self._evaluate(self._function, offsets)

    @property
    def has_gradient(self) -> bool:
        """Whether :meth:`gradient` is there to be used."""
        return self.differentiable and isinstance(self.goal, Differentiable)

    def gradient(self, offset: Array | None = None) -> Array:
        """Gradient of ``soft_value`` in ``u`` at one offset, ``(n,)``."""
        slope: Array = self.jacobian("soft_value", offset)[1][0]
        return slope

    def jacobian(self, method: str, offset: Array | None = None) -> tuple[Array, Array]:
        """Value ``(q,)`` and derivative in ``u``, ``(q, n)``, of an optional method of the goal at one offset."""
        function = self.offers(method, "a surrogate from derivatives")
        where = self.at if offset is None else self.at + self.scale * offset
        value, slope = jacobian(self.engine, function, where)
        self.evaluations += 1
        self._check_finite(slope, f"derivative of {method}")
        return value.cpu().numpy(), slope.cpu().numpy() * self.scale

    def hessian(self) -> Array:
        """Second derivative of ``soft_value`` in ``u`` at the center, ``(n, n)``."""
        matrix = hessian(self.engine, self.offers("soft_value", "kind='hessian'"), self.at)
        self.evaluations += 1
        self._check_finite(matrix, "second derivative of soft_value")
        return matrix.cpu().numpy() * np.outer(self.scale, self.scale)

    def signed_hard(self, residuals: Array) -> Array:
        """Residuals ``(q,)`` from ``goal.signed_hard`` where it exists, else the given soft ones."""
        goal: Any = self.goal
        if not isinstance(goal, SignedParts):
            return residuals
        hard = torch.as_tensor(goal.signed_hard(self.engine.predict(self.at)))
        found = hard.detach().cpu().double().numpy().reshape(-1)
        if found.shape != residuals.shape:
            raise SpecificationError(
                f"goal '{self.goal.name}': signed_hard returned {found.size} numbers and residuals {residuals.size}; "
                f"expected as many. Return the hard version of each residual, in the same order."
            )
        return found

    def _evaluate(self, function: Callable[[Predict], Any], offsets: Array) -> Array:
        deltas = torch.as_tensor(self.at + self.scale * offsets)
        found = self.engine.values(function, deltas)
        self.evaluations += len(deltas)
        self._check_finite(found, "value")
        return found.cpu().numpy().astype(np.float64)

    def _check_finite(self, found: Tensor, what: str) -> None:
        bad = int((~torch.isfinite(found)).sum())
        if bad:
            raise SpecificationError(
                f"goal '{self.goal.name}': {what} is NaN or infinite in {bad} of {found.numel()} entries around the "
                f"current weights; expected finite numbers. Use a smaller radius, or guard divisions and logarithms."
            )
