"""Linear read-outs of hidden layers: what a layer knows of the label."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from repairopt.localize import by_unit
from repairopt.network import check_time

from .trainee import Hidden, Trainee

DECAY = 1e-3  # price of squared weights of a read-out, in units of its standardized features
STEPS = 60  # of L-BFGS


@dataclass(frozen=True, eq=False)
class Probe:
    """A linear classifier on standardized activations of a layer's units.

    Attributes:
        weight: In units of the activations themselves, ``(classes, units)``.
        bias: ``(classes,)``.
    """

    weight: Tensor
    bias: Tensor

    def __call__(self, features: Tensor) -> Tensor:
        """Logits ``(N, classes)`` of activations ``(N, units)``."""
        return features @ self.weight.T + self.bias


def fit_probe(features: Tensor, labels: Tensor, classes: int) -> Probe:
    """Multinomial logistic regression of labels ``(N,)`` on activations ``(N, units)``."""
    mean, spread = features.mean(0), features.std(0, unbiased=False)
    spread = torch.where(spread > 0, spread, torch.ones_like(spread))
    x = (features - mean) / spread
    weight = x.new_zeros(classes, x.shape[1]).requires_grad_()
    bias = x.new_zeros(classes).requires_grad_()
    made = torch.optim.LBFGS([weight, bias], max_iter=STEPS, line_search_fn="strong_wolfe")

    def closure() -> Tensor:
        check_time()
        made.zero_grad()
        loss = F.cross_entropy(x @ weight.T + bias, labels) + DECAY * weight.square().sum()
        weight.grad, bias.grad = torch.autograd.grad(loss, [weight, bias])
        return loss.detach()

    made.step(closure)
    plain = (weight / spread).detach()
    return Probe(plain, (bias - plain @ mean).detach())


def unit_activations(net: Trainee, inputs: Tensor) -> list[tuple[Hidden, Tensor]]:
    """The hidden layers, each with the mean activations ``(N, units)`` of its units."""
    layers = net.hidden()
    values = net.activations(inputs, [layer.node for layer in layers])[1]
    return [(layer, by_unit(value, layer.axis)) for layer, value in zip(layers, values, strict=True)]
