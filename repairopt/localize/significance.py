"""Repair significance: how much a linear bound of the margin gains where one neuron may move (VeRe)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from repairopt.errors import ModelError, SpecificationError
from repairopt.network import Engine, NetworkSteps, check_time, relax
from repairopt.specify import Expected

from .follow_units import hidden_layers, outgoing
from .question import Neuron, Question, best_neurons, check_count
from .trace_layers import Layer, LayerGraph

BOXES = 2_000  # in one pass of bounds
ROWS = 100  # that fail, on which significance is measured


@dataclass(frozen=True)
class Significance:
    """The neurons that a verifier finds worth repairing: a free value raises a bound of the margin most (VeRe).

    Each neuron may take any value between the least and the greatest that it has on rows that are right, while the
    other neurons of its layer stay; a linear relaxation bounds the margin of the true class from below as a function of
    that value. The significance is the mean over failing rows of the largest bound minus the margin now.

    Attributes:
        count: At most so many neurons.
        layer: The hidden layer to choose from; None for all fully connected ones.
        widen: By how much of its length the interval of each neuron is enlarged on both sides.
        samples: At most so many failing rows.
        weights: ``"incoming"`` or ``"outgoing"``.

    References:
        Ma et al., VeRe: Verification Guided Synthesis for Repairing Deep Neural Networks, ICSE 2024. The formula is a
        completion of its abstract.
    """

    count: int = 3
    layer: str | None = None
    widen: float = 0.0
    samples: int = ROWS
    weights: str = "incoming"

    def __post_init__(self) -> None:
        check_count(self, count=self.count, samples=self.samples)
        if not Expected().fits(self.widen):
            raise SpecificationError(f"Significance: widen={self.widen!r}; expected a number, 0 or more.")

    def neurons(self, question: Question) -> list[Neuron]:
        """The most significant neurons, best first."""
        return best_neurons({name: gain.mean(0) for name, (gain, _) in self.gains(question).items()}, self.count)

    def gains(self, question: Question) -> dict[str, tuple[Tensor, Tensor]]:
        """For each layer how much the bound gains, and the value at which: ``(rows, units)`` each.

        Raises:
            SpecificationError: No row is right.
            ModelError: No hidden layer is fully connected.
        """
        if not len(question.passing[0]):
            raise SpecificationError("Significance: takes intervals from rows that are right, and there are none.")
        layers = {name: layer for name, layer in question.layers(self.layer).items() if layer.kind == "linear"}
        if not layers:
            raise ModelError(f"{question.graph.what}: no hidden layer is fully connected, as VeRe needs.")
        right = question.activations(question.passing[0], layers)
        inputs, labels = (part[: self.samples] for part in question.failing)
        found = {}
        for name, layer in layers.items():
            low, high = right[name].amin(0).double().cpu(), right[name].amax(0).double().cpu()
            wider = self.widen * (high - low)
            found[name] = layer_gains(question, layer, inputs, labels, (low - wider, high + wider))
        return found


def layer_gains(
    question: Question, layer: Layer, inputs: Tensor, labels: Tensor, interval: tuple[Tensor, Tensor]
) -> tuple[Tensor, Tensor]:
    """For each row and unit of a layer the gain of the bound at the better end of its interval, and that end."""
    steps, values = suffix_of(question.graph, layer, inputs)
    labels, units = labels.cpu(), values.shape[1]
    outputs = steps.forward(values)
    classes = outputs.shape[1]
    others = torch.arange(classes).expand(len(labels), classes)
    others = others[others != labels[:, None]].view(len(labels), classes - 1)
    eye = torch.eye(classes, dtype=torch.float64)
    directions = eye[labels][:, None] - eye[others]  # (N, classes - 1, classes)
    now = (directions @ outputs[:, :, None])[..., 0].amin(1)
    rows = torch.arange(len(labels)).repeat_interleave(units)
    unit = torch.arange(units).repeat(len(labels))
    gain, end = torch.empty(len(rows), dtype=torch.float64), torch.empty(len(rows), dtype=torch.float64)
    for part in torch.arange(len(rows)).split(BOXES):
        check_time()
        row, one = rows[part], unit[part]
        lower, upper = values[row].clone(), values[row].clone()
        own = values[row, one]
        low, high = torch.minimum(own, interval[0][one]), torch.maximum(own, interval[1][one])
        k = torch.arange(len(part))
        lower[k, one], upper[k, one] = low, high
        bound, slope, _, _ = relax(steps, lower, upper, alternatives=1).below(directions[row], steps.output)
        along = slope[k, :, one]  # (B, classes - 1)
        constant = bound - torch.where(along > 0, along * low[:, None], along * high[:, None])
        ends = [(constant + along * value[:, None]).amin(1) for value in (interval[0][one], interval[1][one])]
        upward = ends[1] > ends[0]
        gain[part] = torch.where(upward, ends[1], ends[0]) - now[row]
        end[part] = torch.where(upward, interval[1][one], interval[0][one])
    return gain.view(len(labels), units), end.view(len(labels), units)


def suffix_of(graph: LayerGraph, layer: Layer, inputs: Tensor) -> tuple[NetworkSteps, Tensor]:
    """What follows the activation of a layer as steps, and the values ``(N, units)`` that it reads, in float64."""
    assert layer.name in hidden_layers(graph)
    reader = next(iter(outgoing(graph, layer.name, [0])))
    size = graph.parameters[reader].numel()
    engine = Engine(graph.model, {reader: torch.arange(size)}, forward_fn=graph.forward_fn)
    parts = engine.frontier(inputs)
    width = graph.parameters[layer.weights[0]].shape[0]
    if len(parts) != 1 or parts[0].ndim != 2 or parts[0].shape[1] != width:
        raise ModelError(
            f"layer '{layer.name}': the rest of the network reads more than its units; VeRe needs fully connected "
            f"layers one after the other."
        )
    return NetworkSteps(engine.suffix, (width,)), parts[0].double().cpu()
