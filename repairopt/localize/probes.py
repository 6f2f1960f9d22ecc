"""Probes: which neurons carry the difference between the wrong class and the right one (INNER)."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from repairopt.errors import SpecificationError
from repairopt.specify import Expected

from .question import Neuron, Pair, Question, best_neurons

DECAY = 1e-3  # of a probe's weights: classes that are told apart have no finite best probe
MOST_STEPS = 100  # of the quasi-Newton method that trains a probe


@dataclass(frozen=True)
class Probes:
    """The neurons whose values on failing rows speak for the wrong class in a linear probe of their layer (INNER).

    For each hidden layer a linear probe learns the true labels of the rows that are right. A neuron contributes the
    product of its probe weight, wrong class minus true class, and the difference of its mean value on rows that fail
    from that on right rows of the true class. The best share of the layer with the largest total is taken.

    Attributes:
        share: Share of the neurons of the layer, at least one.
        layer: The hidden layer; None for that with the largest total.
        weights: ``"incoming"`` or ``"outgoing"``.

    References:
        INNER as described in A Comprehensive Study of Deep Learning Model Fixing Approaches, which gives no formulas;
        these are a completion. Values are divided by the deviation of their neuron, so that layers can be compared.
    """

    share: float = 0.05
    layer: str | None = None
    weights: str = "incoming"

    def __post_init__(self) -> None:
        if not Expected(high=1, above=True).fits(self.share):
            raise SpecificationError(f"Probes: share={self.share!r}; expected a number above 0, at most 1.")

    def neurons(self, question: Question) -> list[Neuron]:
        """The neurons that contribute most, best first."""
        if not len(question.passing[0]):
            raise SpecificationError("Probes: learns from rows that are right, and there are none. Add some.")
        layers = question.layers(self.layer)
        right, wrong = (question.activations(rows[0], layers) for rows in (question.passing, question.failing))
        predicted = question.graph.engine.predict()(question.failing[0]).argmax(1)
        scores = {name: contributions(right[name], wrong[name], question, predicted) for name in layers}
        chosen = max(scores, key=lambda name: float(scores[name].sum()))
        count = max(1, math.ceil(self.share * len(scores[chosen])))
        return best_neurons({chosen: scores[chosen]}, count)


def contributions(right: Tensor, wrong: Tensor, question: Question, predicted: Tensor) -> Tensor:
    """``|probe weight * difference of means|`` of each unit of a layer, summed over the pairs of classes by rows."""
    right, wrong = right.double().cpu(), wrong.double().cpu()
    spread = right.std(0, correction=0).clamp(min=1e-9)
    right, wrong = right / spread, wrong / spread
    labels, true, taken = question.passing[1].cpu(), question.failing[1].cpu(), predicted.cpu()
    classes = int(torch.cat([labels, true, taken]).max()) + 1
    probe = train_probe((right, labels), classes)[0]
    total = torch.zeros(right.shape[1], dtype=torch.float64)
    for true_class, wrong_class in torch.stack([true, taken], 1).unique(dim=0).tolist():
        own = (true == true_class) & (taken == wrong_class)
        known = labels == true_class
        if bool(known.any()):
            difference = wrong[own].mean(0) - right[known].mean(0)
            total += ((probe[wrong_class] - probe[true_class]) * difference).abs() * float(own.double().mean())
    return total


def train_probe(rows: Pair, classes: int) -> tuple[Tensor, Tensor]:
    """Weights ``(classes, units)`` and biases of a linear classifier of values ``(N, units)``, in float64.

    The cross-entropy with weight decay is minimized.
    """
    values, labels = rows
    weight = torch.zeros(classes, values.shape[1], dtype=torch.float64, requires_grad=True)
    bias = torch.zeros(classes, dtype=torch.float64, requires_grad=True)
    made = torch.optim.LBFGS([weight, bias], max_iter=MOST_STEPS, line_search_fn="strong_wolfe")

    def loss() -> Tensor:
        made.zero_grad()
        found = torch.nn.functional.cross_entropy(values @ weight.T + bias, labels) + DECAY * weight.square().sum()
        found.backward()
        return found

    with torch.enable_grad():
        made.step(loss)
    return weight.detach(), bias.detach()
