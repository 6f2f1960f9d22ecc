"""What a repair keeps small while its bounds are met: loss, distance from the old outputs, or the change itself.

Each objective gives its value at a weight change, and a convex quadratic or linear model around one.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from repairopt.methods.cross_entropy import softmax_curvature
from repairopt.network import Engine, Predict, pull_back
from repairopt.program import Array
from repairopt.specify import scaled_weights, sum_by_weight

LOSS_WEIGHT = 10.0  # of losses that stand for limits, beside an objective; that of violations in the merit function

Data = tuple[Tensor, Tensor]


@dataclass(frozen=True, eq=False)
class ObjectiveModel:
    """A model ``1/2 d'Hd + g'd + c`` in the step, or a norm of the whole change.

    Attributes:
        gradient: ``(n,)``.
        hessian: ``(n, n)`` positive semidefinite, or None.
        constant: Value at the point.
        norm: ``"l1"`` or ``"linf"``: the objective is that norm of the whole change in scaled coordinates, which the
            step program states with auxiliary variables; gradient and Hessian are zero then. Else empty.
    """

    gradient: Array
    hessian: Array | None
    constant: float
    norm: str = ""

    def at(self, step: Array) -> float:
        """The model's value at a step."""
        curved = 0.0 if self.hessian is None else 0.5 * float(step @ self.hessian @ step)
        return curved + float(self.gradient @ step) + self.constant


class Objective(Protocol):
    """What is minimized.

    Attributes:
        on_outputs: Whether it is a function of the network's outputs; else of the weight change alone.
        typical: What it commonly is, in its own unit: falls are compared with it where the original's value is less.
    """

    on_outputs: bool
    typical: float

    def value(self, delta: Array) -> float:
        """At a weight change; counts where the user counts."""
        ...

    def model(self, delta: Array) -> ObjectiveModel:
        """Around a weight change."""
        ...

    def soft(self, predict: Predict) -> Tensor:
        """Differentiable in the outputs; zero where it is no function of them."""
        ...

    def change(self, delta: Array) -> tuple[float, Array]:
        """The part that is a function of the weight change alone, and its gradient."""
        ...


class SoftmaxLoss:
    """Loss of labelled samples, mixed with the distance from the original network's probabilities.

    ``(1 - share) (cross-entropy + error rate) / 2 + share KL(original, now)``, means over the samples. The error rate
    alone follows the noise of single samples; the distance keeps what the original network learned from data that the
    repair does not have (measured on the census network: a share of 0.15 gains a tenth of a point of held-out accuracy
    at mild bounds). Exact gradient, Gauss-Newton curvature; the error rate counts in the value and is taken to fall
    with the cross-entropy.

    Args:
        engine: The network and the ``n`` weights.
        data: Pairs of inputs and labels; labels may be None where ``share`` is 1.
        share: Weight of the distance.
        ridge: Weight of half the mean squared change, each weight over its natural size.
        seed: Chooses the samples for the curvature where all would be too many.

    References:
        Hinton, Vinyals and Dean, Distilling the Knowledge in a Neural Network, 2015.
    """

    on_outputs, typical = True, 0.5  # nats a sample; the distance is 0 at the original network

    def __init__(
        self, engine: Engine, data: Sequence[tuple[Tensor, Any]], share: float = 0.0, ridge: float = 0.0, seed: int = 0
    ) -> None:
        self.engine, self.data, self.share, self.ridge, self.seed = engine, list(data), share, ridge, seed
        self.scale = engine.scale.cpu().numpy()
        self.count = sum(len(inputs) for inputs, _ in data)
        self._last = (b"", 0.0)
        original = engine.predict()
        self.original = [torch.softmax(original(x), -1) if share else None for x, _ in data]

    def value(self, delta: Array) -> float:
        """Mean over all samples; that at the last change is remembered."""
        key = delta.tobytes()
        if key != self._last[0]:
            self._last = (key, self._value(delta))
        return self._last[1]

    def _value(self, delta: Array) -> float:
        predict, total = self.engine.predict(delta), 0.0
        for pair, wanted in zip(self.data, self.original, strict=True):
            inputs, labels = pair
            outputs = predict(inputs)
            logs, weights = torch.log_softmax(outputs, -1), scaled_weights(pair, outputs)
            if wanted is not None:
                total += self.share * float(_summed(_divergences(logs, wanted, weights), weights))
            if self.share < 1:
                own = labels.to(outputs.device)
                loss = -float(_summed(logs.gather(1, own[:, None])[:, 0], weights))
                total += (1.0 - self.share) * (loss + sum_by_weight(outputs.argmax(-1) != own, pair)) / 2
        return total / self.count + self.change(delta)[0]

    def soft(self, predict: Predict) -> Tensor:
        """Without the error rate, which has no slope."""
        total: Any = 0.0
        for pair, wanted in zip(self.data, self.original, strict=True):
            inputs, labels = pair
            logs = torch.log_softmax(predict(inputs), -1)
            weights = scaled_weights(pair, logs)
            if wanted is not None:
                total = total + self.share * _summed(_divergences(logs, wanted, weights), weights)
            if self.share < 1:
                losses = torch.nn.functional.nll_loss(logs, labels.to(logs.device), reduction=_reduction(weights))
                total = total + (1.0 - self.share) / 2 * _summed(losses, weights)
        return torch.as_tensor(total / self.count)

    def change(self, delta: Array) -> tuple[float, Array]:
        """The ridge."""
        scaled = delta / self.scale
        weight = self.ridge / max(1, len(delta))
        return 0.5 * weight * float(scaled @ scaled), weight * scaled / self.scale

    def model(self, delta: Array) -> ObjectiveModel:
        """Quadratic model around a weight change."""
        engine, predict = self.engine, self.engine.predict(delta)
        gradient = np.zeros(engine.n)
        hessian = torch.zeros(engine.n, engine.n, dtype=torch.float64, device=engine.device)
        own_share = (1.0 - self.share) / 2
        for pair, wanted in zip(self.data, self.original, strict=True):
            inputs, labels = pair
            if engine.layers(inputs) is not None and not engine.exact:
                engine.tapes(inputs, engine.as_delta(delta))  # one pass for outputs, gradient and curvature
            chance = torch.softmax(predict(inputs), -1)
            error = torch.zeros_like(chance)
            if wanted is not None:
                error += self.share * (chance - wanted)
            if self.share < 1:
                error += own_share * chance
                error[torch.arange(len(chance), device=chance.device), labels.to(chance.device)] -= own_share
            weights = scaled_weights(pair, error)
            error = error if weights is None else error * weights[:, None]
            gradient += pull_back(engine, inputs, error / self.count, delta).cpu().numpy()
            hessian += softmax_curvature(engine, inputs, chance, delta, self.seed, weights) / self.count
        curvature = (self.share + own_share) * hessian.cpu().numpy()
        curvature[np.diag_indices(engine.n)] += self.ridge / max(1, engine.n) / self.scale**2
        return ObjectiveModel(gradient + self.change(delta)[1], curvature, self.value(delta))


class SmoothObjective:
    """An objective without what counts in it, and losses that are to fall first.

    Args:
        engine: The network and the ``n`` weights.
        objective: Its differentiable part counts; nothing where it is a norm of the change, which would hold losses up.
        losses: Weigh ten times as much, each.
    """

    def __init__(self, engine: Engine, objective: Objective, losses: Sequence[SoftmaxLoss]) -> None:
        self.engine, self.losses = engine, losses
        self.objective = objective if objective.on_outputs or not losses else NoObjective(engine.n)
        self.on_outputs, self.typical = True, objective.typical + LOSS_WEIGHT * len(losses) * SoftmaxLoss.typical

    def value(self, delta: Array) -> float:
        """At a weight change."""
        own = self.change(delta)[0] if self.objective.on_outputs else self.objective.value(delta)
        with torch.no_grad():
            return own + float(self.soft(self.engine.predict(delta)))

    def soft(self, predict: Predict) -> Tensor:
        """Without what is a function of the weight change alone."""
        total = self.objective.soft(predict)
        for loss in self.losses:
            total = total + LOSS_WEIGHT * loss.soft(predict)
        return total

    def change(self, delta: Array) -> tuple[float, Array]:
        """That of the objective."""
        return self.objective.change(delta)

    def model(self, delta: Array) -> ObjectiveModel:
        """Quadratic model around a weight change; a norm of the whole change stays one."""
        own = self.objective.model(delta)
        gradient, hessian = own.gradient, own.hessian
        for loss in self.losses:
            part = loss.model(delta)
            assert part.hessian is not None
            gradient = gradient + LOSS_WEIGHT * part.gradient
            hessian = LOSS_WEIGHT * part.hessian + (0.0 if hessian is None else hessian)
        return replace(own, gradient=gradient, hessian=hessian, constant=self.value(delta))


class NoObjective:
    """Zero, for ``n`` weights."""

    on_outputs, typical = False, 0.0

    def __init__(self, n: int) -> None:
        self.n = n

    def value(self, delta: Array) -> float:
        """Zero."""
        return 0.0

    def soft(self, predict: Predict) -> Tensor:
        """Zero."""
        return torch.zeros(())

    def change(self, delta: Array) -> tuple[float, Array]:
        """Zero, and zeros ``(n,)``."""
        return 0.0, np.zeros(self.n)

    def model(self, delta: Array) -> ObjectiveModel:
        """Zero."""
        return ObjectiveModel(np.zeros(self.n), None, 0.0)


def _reduction(weights: Tensor | None) -> str:
    return "sum" if weights is None else "none"


def _divergences(logs: Tensor, wanted: Tensor, weights: Tensor | None) -> Tensor:
    """Divergence of the network's answers from those wanted, ``(N,)``; their sum where all rows count the same."""
    found = torch.nn.functional.kl_div(logs, wanted, reduction=_reduction(weights))
    return found if weights is None else found.sum(-1)


def _summed(values: Tensor, weights: Tensor | None) -> Tensor:
    return values.sum() if weights is None else (values * weights).sum()


class SmallestChange:
    """A norm of the whole change, each weight over its natural size.

    Args:
        engine: The network and the ``n`` weights.
        norm: ``"l2"`` (half the mean square), ``"l1"`` (mean) or ``"linf"`` (largest).
    """

    on_outputs, typical = False, 0.0  # the optimum is what is asked for

    def __init__(self, engine: Engine, norm: str = "l2") -> None:
        self.scale, self.norm = engine.scale.cpu().numpy(), norm

    def value(self, delta: Array) -> float:
        """The norm."""
        scaled = np.abs(delta / self.scale)
        if self.norm == "l2":
            return 0.5 * float(np.mean(scaled**2))
        return float(scaled.mean() if self.norm == "l1" else scaled.max(initial=0.0))

    def soft(self, predict: Predict) -> Tensor:
        """Nothing."""
        return torch.zeros(())

    def change(self, delta: Array) -> tuple[float, Array]:
        """The norm and a subgradient; of the largest entry for ``"linf"``."""
        scaled, value = delta / self.scale, self.value(delta)
        if self.norm == "l2":
            return value, scaled / (len(delta) * self.scale)
        if self.norm == "l1":
            return value, np.sign(scaled) / (len(delta) * self.scale)
        largest = int(np.abs(scaled).argmax())
        return value, np.where(np.arange(len(delta)) == largest, np.sign(scaled) / self.scale, 0.0)

    def model(self, delta: Array) -> ObjectiveModel:
        """Exact."""
        n = len(delta)
        if self.norm != "l2":
            return ObjectiveModel(np.zeros(n), None, self.value(delta), self.norm)
        weight = 1.0 / (n * self.scale**2)
        return ObjectiveModel(weight * delta, np.diag(weight), self.value(delta))


OBJECTIVES = ("cross_entropy", "closeness", "l2", "l1", "linf")


def make_objective(
    name: str, engine: Engine, data: Sequence[Data], inputs: Sequence[Tensor], *, share: float, ridge: float, seed: int
) -> Any:
    """The objective of a name; see :class:`repairopt.SQP`."""
    if name == "cross_entropy":
        return SoftmaxLoss(engine, data, share, ridge, seed)
    if name == "closeness":
        return SoftmaxLoss(engine, [(x, None) for x in inputs], 1.0, ridge, seed)
    return SmallestChange(engine, name)
