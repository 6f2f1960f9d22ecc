"""Tuning on reference outputs of hidden neurons, with slices as masks: what DARE and FMT have in common.

References:
    A Post-Training Framework for Improving the Performance of Deep Learning Models via Model Transformation, TOSEM
    2024.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from repairopt.localize import Slice, Slicer, by_unit
from repairopt.methods.material import Material
from repairopt.methods.outcome import Outcome
from repairopt.methods.settings import Expected, are_numbers
from repairopt.methods.task import Task

from .fit import Score, Training, accuracy, fit_weights
from .trainee import Masks, Place, Trainee

HELD = 0.2  # share of the references that choose among networks


@dataclass(frozen=True, eq=False)
class References:
    """Rows with what their neurons shall do.

    Attributes:
        inputs: Rows ``(T, ...)``.
        labels: Class that the reference gives, ``(T,)``.
        values: Reference activations of the units of the layer, ``(T, units)``.
        chances: Probability of that class in the reference, ``(T,)``.
        slices: Number of the slice of each row, ``(T,)``.
    """

    inputs: Tensor
    labels: Tensor
    values: Tensor
    chances: Tensor
    slices: Tensor

    def at(self, rows: Tensor) -> References:
        """Some of the rows."""
        return References(*(part[rows] for part in vars(self).values()))

    def __len__(self) -> int:
        return len(self.labels)


@dataclass(frozen=True, kw_only=True)
class ReferenceTuning(Training):
    """Base of DARE and FMT: see there."""

    uses: ClassVar[frozenset[str]] = frozenset({"weights"})

    keep: float = 0.95
    slicing: bool = True
    loss: str = "reference"
    layer: str = "penultimate"
    rates: tuple[float, ...] = (1e-3, 1e-4, 1e-5)
    tolerance: float = 0.1

    def __post_init__(self) -> None:
        super().__post_init__()
        self.chosen("loss", ("reference", "label"))
        self.chosen("layer", ("penultimate", "last"))
        if not are_numbers(self.rates, Expected(above=True)):
            raise self.wrong(f"rates={self.rates!r}; expected learning rates above 0, at least one.")

    def expected(self) -> dict[str, Expected]:
        """What the settings may be."""
        return {"keep": Expected(high=1, above=True), "tolerance": Expected(high=1)}

    def references(self, task: Task, net: Trainee, rows: Material, node: Place, axis: int) -> References:
        """Rows and reference outputs, from the network as it is."""
        raise NotImplementedError

    def slices(self, slicer: Slicer, rows: Material) -> list[Slice]:
        """The slices by number."""
        raise NotImplementedError

    def run(self, task: Task) -> Outcome:
        """Collect references, slice, tune at each rate, choose."""
        rows = self.material(task, failing=False)
        net = Trainee(task, rows.training[0])
        layer = net.hidden()[-1]
        node = layer.node
        with task.timed("references"):
            found = self.references(task, net, rows, node, layer.axis)
        slices: list[Slice] = []
        if self.slicing:
            with task.timed("slicing"):
                slices = self.slices(Slicer(net.graph, rows.training[0], keep=self.keep), rows)
        task.log.note(f"{type(self).__name__} tunes on {len(found)} references.")
        before = accuracy(net, rows.validation)
        order = torch.randperm(len(found), generator=torch.Generator().manual_seed(task.seed)).to(found.labels.device)
        held = found.at(order[: max(1, int(HELD * len(found)))])
        learned = found.at(order[int(HELD * len(found)) :])
        tuning = _Tuning(self, net, learned, slices, node, layer.axis, layer.name)
        test = _Tuning(self, net, held, slices, node, layer.axis, layer.name)

        def score(net: Trainee) -> Score:
            lost = max(0.0, before - accuracy(net, rows.validation) - self.tolerance * before)
            with torch.no_grad():
                return lost, float(test.loss(torch.arange(len(held), device=held.labels.device)))

        results: list[tuple[Score, dict[str, Tensor]]] = []
        for rate in self.rates:
            net.reset()
            masks = tuning.masks if self.slicing else None
            step = f"rate {rate:g}, epoch"
            own = replace(self, rate=rate)
            fit_weights(
                net, tuning.loss, len(learned), own, batches=tuning.batches, masks=masks, score=score, step=step
            )
            results.append((score(net), net.state()))
        net.load(min(results, key=lambda one: one[0])[1])
        return net.outcome()


class _Tuning:
    """Loss, batches and masks of the references."""

    def __init__(
        self,
        method: ReferenceTuning,
        net: Trainee,
        found: References,
        slices: Sequence[Slice],
        node: Place,
        axis: int,
        layer: str,
    ) -> None:
        self.method, self.net, self.found = method, net, found
        self.node, self.axis = node, axis
        self._masks: list[Masks] = []
        key = torch.ones(1, found.values.shape[1], dtype=torch.bool, device=found.labels.device)
        if slices:
            device = found.labels.device
            key = torch.stack([one.neurons[layer] for one in slices]).to(device)
            nothing = {name: torch.zeros_like(free) for name, free in net.free.items()}
            self._masks = [{name: one.masks.get(name, nothing[name]) for name in nothing} for one in slices]
        self._key = key.to(found.values)

    def loss(self, rows: Tensor) -> Tensor:
        """Formula 8 over the key neurons of each row's slice, or what an ablation has in its place."""
        one = self.found
        if self.method.loss == "label":
            return F.cross_entropy(self.net(one.inputs[rows]), one.labels[rows])
        if self.method.layer == "last":
            chances = torch.softmax(self.net(one.inputs[rows]), dim=1).gather(1, one.labels[rows, None])[:, 0]
            return (chances - one.chances[rows]).square().mean()
        value = by_unit(self.net.run(one.inputs[rows], [self.node])[1][0], self.axis)
        key = self._key[one.slices[rows]] if self._masks else self._key
        squares = (value - one.values[rows]).square() * key
        return (squares.sum(1) / key.sum(1).clamp(min=1)).mean()

    def batches(self, draw: torch.Generator) -> list[Tensor]:
        """Rows of one slice each, in random order."""
        slices = self.found.slices.cpu() if self._masks else torch.zeros(len(self.found), dtype=torch.long)
        parts: list[Any] = []
        for number in slices.unique().tolist():
            own = (slices == number).nonzero().flatten()
            parts += own[torch.randperm(len(own), generator=draw)].split(self.method.batch)
        return [parts[i] for i in torch.randperm(len(parts), generator=draw).tolist()]

    def masks(self, rows: Tensor) -> Masks:
        """Key entries of the slice that the rows belong to."""
        return self._masks[int(self.found.slices[rows[0].to(self.found.slices.device)])]
