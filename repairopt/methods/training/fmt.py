"""FMT: hidden neurons learn to do the same for inputs that differ in the protected attribute alone."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from repairopt.localize import Slice, Slicer, by_unit
from repairopt.methods.material import Material
from repairopt.methods.task import Task

from .protected import check_protected, protected_groups
from .reference_tuning import References, ReferenceTuning
from .trainee import Place, Trainee


@dataclass(frozen=True, kw_only=True)
class FMT(ReferenceTuning):
    """FMT: post-training for group fairness on references from paired inputs.

    As many inputs as there are training rows are drawn, each attribute from its own distribution, and each is paired
    with itself in another group. The outputs of the last hidden layer for the one of whose answer the network is more
    confident are the reference for the other one (``pairs="single"``, FMT_s), or for both (``"double"``, FMT_d). The
    layers up to that one are tuned to give them: mean squared difference over the key neurons of the group, and only
    key synapses of that group move (:class:`Slicer`, all outputs as targets). The layer behind keeps its weights.

    Columns next to each other that are 0 or 1 and sum to 1 in every row are one attribute. For each learning rate the
    best epoch is chosen by that loss on a fifth of the references, among those that lose at most ``tolerance`` of the
    accuracy on the validation rows; then the best rate.

    Attributes:
        epochs: Passes over the references.
        batch: Rows of a step, all of one group.
        protected: Columns of the protected attribute: one, or all of a one-hot code.
        pairs: ``"single"`` or ``"double"``.
        keep: Share of the synapses of each layer that are key.
        slicing: Whether only key synapses move and only key neurons count.
        loss: ``"reference"``, or ``"label"`` for the cross-entropy of the more confident answer.
        layer: ``"penultimate"``, or ``"last"`` for the probability of the answer in place of hidden outputs.
        draw: ``"data"``; ``"joint"`` draws whole rows; ``"random"`` draws each value of an attribute equally often.
        rates: Learning rates of Adam that are tried.
        tolerance: Share of the accuracy that may be lost.

    References:
        A Post-Training Framework for Improving the Performance of Deep Learning Models via Model Transformation, TOSEM
        2024: keep 80 %, rates of 1e-3 to 1e-5, batches of 16 to 128 rows, and the four ablations. It names no
        optimizer, no number of epochs and no rule of selection; 20 epochs and 1 % of the accuracy are ours. Slices
        rank by layer and over samples.

    Example:
        >>> FMT(protected=(5,)).systems["FMT_d"]
        {'pairs': 'double'}
    """

    systems: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "FMT_s": {},
        "FMT_d": {"pairs": "double"},
        "FMT variants (-s, -sl, last, rand)": {"slicing": False},
    }

    batch: int = 64
    protected: tuple[int, ...] = ()
    pairs: str = "single"
    keep: float = 0.8
    draw: str = "data"
    tolerance: float = 0.01

    def __post_init__(self) -> None:
        super().__post_init__()
        check_protected(type(self).__name__, self.protected)
        self.chosen("pairs", ("single", "double"))
        self.chosen("draw", ("data", "joint", "random"))

    def references(self, task: Task, net: Trainee, rows: Material, node: Place, axis: int) -> References:
        """Algorithm 2 of the paper."""
        inputs = rows.training[0]
        groups = protected_groups(self, inputs)
        draw = torch.Generator().manual_seed(task.seed)
        drawn = self._drawn(inputs, draw)
        columns = torch.tensor(groups.columns, device=inputs.device)
        first = torch.randint(groups.count, (len(drawn),), generator=draw).to(inputs.device)
        other = (first + torch.randint(1, groups.count, (len(drawn),), generator=draw).to(inputs.device)) % groups.count
        if groups.count == 2:
            first, other = torch.zeros_like(first), torch.ones_like(first)
        sides = []
        for group in (first, other):
            side = drawn.clone()
            side[:, columns] = groups.values[group]
            outputs, (value,) = net.activations(side, [node])
            chance, label = torch.softmax(outputs, dim=1).max(1)
            sides.append((side, label, by_unit(value, axis), chance, group))
        swap = sides[0][3] < sides[1][3]  # the first side is the more confident one
        a, b = (
            [torch.where(_like(swap, x), y, x) for x, y in zip(one, two, strict=True)]
            for one, two in ((sides[0], sides[1]), (sides[1], sides[0]))
        )
        single = References(b[0], a[1], a[2], a[3], b[4])
        if self.pairs == "single":
            return single
        both = zip(vars(single).values(), (a[0], a[1], a[2], a[3], a[4]), strict=True)
        return References(*(torch.cat(parts) for parts in both))

    def slices(self, slicer: Slicer, rows: Material) -> list[Slice]:
        """One for each group: its rows, all outputs."""
        inputs = rows.training[0]
        groups = protected_groups(self, inputs)
        return [slicer.slice(inputs[groups.of == group]) for group in range(groups.count)]

    def _drawn(self, inputs: Tensor, draw: torch.Generator) -> Tensor:
        count = len(inputs)
        if self.draw == "joint":
            return inputs[torch.randint(count, (count,), generator=draw).to(inputs.device)]
        found = inputs.clone()
        for columns in attributes_of(inputs):
            own = inputs[:, columns] if self.draw == "data" else torch.unique(inputs[:, columns], dim=0)
            found[:, columns] = own[torch.randint(len(own), (count,), generator=draw).to(inputs.device)]
        return found


def attributes_of(inputs: Tensor) -> list[list[int]]:
    """Columns of each attribute: runs of 0 or 1 that sum to 1 in every row are one, other columns one each."""
    binary = ((inputs == 0) | (inputs == 1)).all(0).tolist()
    found: list[list[int]] = []
    start = 0
    while start < len(binary):
        end, total = start, torch.zeros_like(inputs[:, 0])
        run = [start]
        while end < len(binary) and binary[end]:
            total = total + inputs[:, end]
            end += 1
            if bool((total > 1).any()):
                break
            if bool((total == 1).all()) and end - start > 1:
                run = list(range(start, end))
                break
        found.append(run)
        start = run[-1] + 1
    return found


def _like(rows: Tensor, value: Tensor) -> Tensor:
    return rows.view(-1, *[1] * (value.ndim - 1))
