"""GradientRepair: the neuron, layer or block with the largest gradients on failures is tuned, or the whole network."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from repairopt.errors import ModelError
from repairopt.methods.outcome import Outcome
from repairopt.methods.settings import Expected
from repairopt.methods.task import Task

from .fit import Pair, Training, by_error, cross_entropy, fit_weights, joined
from .trainee import Masks, Trainee

LEVELS = ("neuron", "layer", "block", "network")
MOMENTUM, DECAY = 0.9, 5e-4


@dataclass(frozen=True, kw_only=True)
class GradientRepair(Training):
    """Gradient repair: the part of the network with the largest mean gradient on failing rows is tuned, no other.

    Parts are the neurons of all layers (the weights and the bias that make one), the layers (modules that hold weights
    themselves), the blocks (the children of the innermost module that holds all parameters) or the whole
    network. The gradient of a part is the mean absolute derivative of the cross-entropy in its weights, over at most
    ``failures`` failing rows. It is tuned by SGD on the training rows and the failing ones, with early stopping on the
    validation rows.

    Attributes:
        level: ``"neuron"``, ``"layer"``, ``"block"`` or ``"network"``.
        failures: Failing rows that choose the part.
        patience: Epochs without a better validation score after which training stops.

    References:
        The pre-study of ArchRepair: Block-Level Architecture-Oriented Repairing for Deep Neural Networks, TOSEM 2023
        (table 1): 100 failing rows, 100 epochs; SGD, 128 rows, weight decay 5e-4. Its learning rate of 0.1 is too large
        for networks that are trained already, so the default is 0.01. The momentum of 0.9 is ours.

    Example:
        >>> GradientRepair(level="neuron").failures
        100
    """

    systems: ClassVar[Mapping[str, Mapping[str, Any]]] = {"Gradient repair at neuron/layer/block/network level": {}}

    level: str = "layer"
    epochs: int = 100
    rate: float = 0.01
    failures: int = 100
    patience: int = 10

    def __post_init__(self) -> None:
        super().__post_init__()
        self.chosen("level", LEVELS)

    def expected(self) -> dict[str, Expected]:
        """What the settings may be."""
        return dict.fromkeys(("failures", "patience"), Expected(low=1, whole=True))

    def run(self, task: Task) -> Outcome:
        """Choose the part, tune it."""
        rows = self.material(task)
        net = Trainee(task, rows.failing[0])
        name, masks = self._part(net, rows.failing)
        task.log.note(f"Gradient repair tunes {name}.")
        both = joined(rows.training, rows.failing)
        made = torch.optim.SGD(list(net.own.values()), lr=self.rate, momentum=MOMENTUM, weight_decay=DECAY)
        ends: Any = {"score": by_error(rows.validation), "patience": self.patience}
        fit_weights(net, cross_entropy(net, both), len(both[0]), self, optimizer=made, masks=lambda _: masks, **ends)
        return net.outcome()

    def _part(self, net: Trainee, failing: Pair) -> tuple[str, Masks]:
        """The name of the part with the largest mean gradient, and its entries."""
        inputs, labels = failing[0][: self.failures], failing[1][: self.failures]
        grads = torch.autograd.grad(F.cross_entropy(net(inputs), labels), list(net.own.values()), allow_unused=True)
        own = {
            n: torch.zeros_like(p) if g is None else g.abs() for (n, p), g in zip(net.own.items(), grads, strict=True)
        }
        if self.level == "neuron":
            return _neuron(net, own)
        groups = {"layer": _layers, "block": _blocks, "network": lambda _: {"the whole network": list(net.own)}}
        parts = groups[self.level](net)
        scores = {name: _mean([own[p][net.free[p]] for p in names]) for name, names in parts.items()}
        best = max(scores, key=lambda name: scores[name])
        return best, {name: torch.full_like(net.free[name], name in parts[best]) for name in net.own}


def _mean(parts: list[Tensor]) -> float:
    return float(torch.cat(parts).mean()) if sum(map(len, parts)) else 0.0


def _layers(net: Trainee) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for name in net.own:
        found.setdefault(f"layer '{name.rpartition('.')[0]}'", []).append(name)
    return found


def _blocks(net: Trainee) -> dict[str, list[str]]:
    """The children of the innermost module that holds every parameter."""
    model, prefix = net.graph.model, ""
    while True:  # step into a module that wraps all others
        children = [(n, m) for n, m in model.named_children() if any(True for _ in m.parameters())]
        if len(children) != 1 or not any(True for _ in children[0][1].children()):
            break
        prefix, model = f"{prefix}{children[0][0]}.", children[0][1]
    found: dict[str, list[str]] = {}
    for name in net.own:
        head = name.removeprefix(prefix).partition(".")[0] if name.startswith(prefix) else name
        found.setdefault(f"block '{prefix}{head}'", []).append(name)
    return found


def _neuron(net: Trainee, own: Mapping[str, Tensor]) -> tuple[str, Masks]:
    """Of all units of affine layers the one whose weights and bias have the largest mean gradient."""
    best = -1.0
    chosen: tuple[str, tuple[str, ...], int] = ("", (), 0)
    for layer in net.graph.affine:
        names = tuple(name for name in layer.parameters if name in own)
        if not names:
            continue
        flat = torch.cat([own[name].flatten(1) if own[name].ndim > 1 else own[name][:, None] for name in names], dim=1)
        free = [net.free[name].flatten(1) if own[name].ndim > 1 else net.free[name][:, None] for name in names]
        means = (flat * torch.cat(free, 1)).sum(1) / torch.cat(free, 1).sum(1).clamp(min=1)
        unit = int(means.argmax())
        if float(means[unit]) > best:
            best, chosen = float(means[unit]), (layer.name, names, unit)
    if best < 0:
        raise ModelError(f"{net.graph.what}: no chosen weight makes a unit of a linear or convolutional layer.")
    name, names, unit = chosen
    masks = {one: torch.zeros_like(free) for one, free in net.free.items()}
    for one in names:
        masks[one][unit] = True
    return f"neuron {unit} of layer '{name}'", masks
