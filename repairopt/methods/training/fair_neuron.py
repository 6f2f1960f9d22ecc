"""FairNeuron: rows with rare paths through the network are learned with dropout, the others without."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import product
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, fx

from repairopt.errors import SpecificationError
from repairopt.methods.outcome import Outcome
from repairopt.methods.settings import Expected, are_numbers
from repairopt.methods.task import Task

from .fit import Training, accuracy, fit_weights
from .trainee import Trainee


@dataclass(frozen=True, kw_only=True)
class FairNeuron(Training):
    """FairNeuron: rows that take rare paths are retrained with dropout, so that no few neurons decide on them.

    The path of a row begins at its answer and goes backwards: of each unit on it, the units of the layer before with
    the largest contributions, weight times activation, that together reach the share ``gamma`` of all of them. A path
    that at most ``max(theta times the count of the commonest one, 1)`` rows take is rare. The network is tuned with
    dropout of hidden units on rows with rare paths and without on the others. Of all pairs of theta and gamma the one
    with the least goal is taken, among those whose accuracy on the validation rows is at most ``floor`` below the
    original's; where there is none, the most accurate one.

    Attributes:
        thetas: Values of theta that are tried.
        gammas: Values of gamma that are tried.
        dropout: Chance with which a hidden unit is dropped.
        floor: Accuracy that may be lost on the validation rows.

    References:
        Gao, Zhai, Ma, Shen, Chen and Wang, FairNeuron: improving deep neural network fairness with adversary games on
        selective neurons, ICSE 2022: the two grids, Adam at 0.01, 50 epochs of 128 rows. Floor and dropout are ours.
        Networks of dense layers alone.

    Example:
        >>> len(FairNeuron().thetas) * len(FairNeuron().gammas)
        36
    """

    systems: ClassVar[Mapping[str, Mapping[str, Any]]] = {"FairNeuron": {}}

    epochs: int = 50
    rate: float = 1e-2
    thetas: tuple[float, ...] = (0.1, 0.01, 3e-3, 1e-3, 3e-4, 1e-4)
    gammas: tuple[float, ...] = (0.95, 0.9, 0.85, 0.8, 0.7, 0.6)
    dropout: float = 0.5
    floor: float = 0.02

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("thetas", "gammas"):
            values = getattr(self, name)
            if not are_numbers(values, Expected(high=1, above=True)):
                raise self.wrong(f"{name}={values!r}; expected numbers above 0, at most 1, at least one.")

    def expected(self) -> dict[str, Expected]:
        """What the settings may be."""
        return {"dropout": Expected(high=1, below=True), "floor": Expected(high=1)}

    def run(self, task: Task) -> Outcome:
        """Find rare paths, tune, for each pair of settings."""
        rows = self.material(task, failing=False)
        net = Trainee(task, rows.training[0])
        needed = accuracy(net, rows.validation) - self.floor
        found: list[tuple[tuple[float, float], dict[str, Tensor]]] = []
        tried: set[bytes] = set()
        for gamma, theta in product(self.gammas, self.thetas):
            net.reset()
            rare = rare_paths(paths(net, rows.training[0], gamma), theta)
            if (key := rare.cpu().numpy().tobytes()) in tried:
                continue  # the same rows are rare: the same training
            tried.add(key)
            self._tune(net, rows.training, rare)
            net.record(f"gamma {gamma:g}, theta {theta:g}: {int(rare.sum())} rare rows")
            right, goal = accuracy(net, rows.validation), task.judge(net.candidate()).goal
            found.append(((0.0, goal) if right >= needed else (1.0, -right), net.state()))
        net.load(min(found, key=lambda one: one[0])[1])
        return net.outcome()

    def _tune(self, net: Trainee, rows: tuple[Tensor, Tensor], rare: Tensor) -> None:
        nodes = [layer.node for layer in net.hidden()]
        draw = torch.Generator().manual_seed(net.task.seed)

        def loss(chosen: Tensor) -> Tensor:
            dropped = rare[chosen]

            def drop(_: fx.Node, value: Tensor) -> Tensor:
                kept = (torch.rand(value.shape, generator=draw) >= self.dropout).to(value)
                return torch.where(dropped[:, None], value * kept / (1 - self.dropout), value)

            return F.cross_entropy(net.run(rows[0][chosen], nodes, drop)[0], rows[1][chosen])

        fit_weights(net, loss, len(rows[0]), self, told=False)


def paths(net: Trainee, inputs: Tensor, gamma: float) -> Tensor:
    """Which hidden units are on the path of each row, ``(N, units of all hidden layers)``.

    Raises:
        SpecificationError: A layer is not dense, or does not read the one before it alone.
    """
    layers = net.graph.layers
    dense = len(layers) > 1 and all(layer.kind == "linear" and layer.node is not None for layer in layers)
    reads = [layer.node.all_input_nodes[0] for layer in layers[1:] if layer.node is not None] if dense else []
    made = [net.graph.activation(layer) for layer in layers[:-1]] if dense else []
    if not dense or reads != made or any(net.graph.values[node].ndim != 2 for node in made):
        raise SpecificationError("method FairNeuron: paths need a chain of dense layers, each read by the next alone.")
    outputs, values = net.activations(inputs, made)
    units = len(net.graph.parameters[layers[-1].weights[0]])
    on = torch.ones(len(outputs), units, dtype=torch.bool, device=outputs.device)
    if units == outputs.shape[1]:  # otherwise one number stands for both classes
        on = F.one_hot(outputs.argmax(1), units).bool()
    found: list[Tensor] = []
    for layer, value in zip(reversed(layers[1:]), reversed(values), strict=True):
        net.task.judge.check_time()
        weight = net.graph.parameters[layer.weights[0]].detach()
        before = torch.zeros_like(value, dtype=torch.bool)
        for unit in range(weight.shape[0]):
            rows = on[:, unit].nonzero().flatten()
            if len(rows):
                before[rows] |= _largest(value[rows] * weight[unit], gamma)
        found.append(before)
        on = before
    return torch.cat(found[::-1], dim=1)


def _largest(contributions: Tensor, gamma: float) -> Tensor:
    """The largest contributions of each row that reach the share ``gamma`` of their sum; at least one."""
    order = contributions.argsort(dim=1, descending=True, stable=True)
    ranked = contributions.gather(1, order)
    before = ranked.cumsum(1) - ranked
    chosen = before < gamma * contributions.sum(1, keepdim=True)
    chosen[:, 0] = True
    return torch.zeros_like(chosen).scatter(1, order, chosen)


def rare_paths(found: Tensor, theta: float) -> Tensor:
    """Which rows take a path that few take, ``(N,)``."""
    _, which, counts = torch.unique(found, dim=0, return_inverse=True, return_counts=True)
    return counts[which] <= max(theta * float(counts.max()), 1.0)
