"""Inner: probes of hidden layers find faulty neurons, whose features are aligned with those of right answers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from repairopt.errors import SpecificationError
from repairopt.localize import Probes, Question, by_unit
from repairopt.methods.adam import Adam
from repairopt.methods.material import Material
from repairopt.methods.outcome import Outcome
from repairopt.methods.settings import Expected
from repairopt.methods.task import Task

from .fit import Training
from .trainee import Hidden, Trainee


@dataclass(frozen=True, eq=False)
class Faulty:
    """Neurons that lead to wrong answers.

    Attributes:
        layer: Their layer.
        units: Their numbers.
        normal: Mean activations of all units of the layer on right rows of each class, ``(classes, units)``.
    """

    layer: Hidden
    units: Tensor
    normal: Tensor


@dataclass(frozen=True, kw_only=True)
class Inner(Training):
    """INNER: model probing finds faulty neurons; tuning aligns their features on failures with normal ones.

    The localizer :class:`repairopt.localize.Probes` finds the faulty neurons: those with the largest contributions to
    wrong answers by linear probes of the hidden layers. The weights and biases that make them are tuned on the
    cross-entropy of failing rows, plus ``align`` times the squared distance of the faulty neurons from their mean on
    right rows of the true class, plus ``keep`` times KL(original || now) on right rows.

    Attributes:
        epochs: Passes over the failing rows, at most; training stops once all are right.
        batch: Failing rows of a step, and as many right ones.
        share: Share of the neurons of the layer that count as faulty; at least one does.
        align: Weight of the distance.
        keep: Weight of the divergence.

    References:
        INNER as described in A Comprehensive Study of Deep Learning Model Fixing Approaches: probing, faulty neurons by
        influential features, alignment of abnormal with normal features. The formulas and the constants are ours.

    Example:
        >>> Inner().share
        0.05
    """

    systems: ClassVar[Mapping[str, Mapping[str, Any]]] = {"INNER (IN)": {}}

    epochs: int = 50
    rate: float = 1e-2
    share: float = 0.05
    align: float = 0.1
    keep: float = 1.0

    def expected(self) -> dict[str, Expected]:
        """What the settings may be."""
        return {"share": Expected(high=1, above=True), "align": Expected(), "keep": Expected()}

    def run(self, task: Task) -> Outcome:
        """Probe, then align."""
        rows = self.material(task)
        if not len(rows.passing[0]):
            raise self.wrong("needs rows that the network labels right; there are none.")
        net = Trainee(task, rows.failing[0])
        found = self.faulty(net, rows)
        task.log.note(f"INNER aligns {len(found.units)} neurons of layer '{found.layer.name}'.")
        masks = {name: torch.zeros_like(free) for name, free in net.free.items()}
        for name in found.layer.parameters:
            if name in masks:
                masks[name][found.units] = True
        node = found.layer.node
        original = torch.softmax(net.predict(rows.passing[0]), dim=1)
        made = Adam(list(net.own.values()), lr=self.rate)
        draw = torch.Generator().manual_seed(task.seed)
        (inputs, labels), passing = rows.failing, rows.passing[0]
        for epoch in range(self.epochs):
            for chosen in torch.randperm(len(labels), generator=draw).split(self.batch):
                task.judge.check_time()
                here = chosen.to(labels.device)
                other = torch.randint(len(passing), (len(here),), generator=draw).to(labels.device)
                outputs, (value,) = net.run(inputs[here], [node])
                apart = by_unit(value, found.layer.axis)[:, found.units] - found.normal[labels[here]][:, found.units]
                kept = F.kl_div(torch.log_softmax(net(passing[other]), 1), original[other], reduction="batchmean")
                loss = F.cross_entropy(outputs, labels[here]) + self.align * apart.square().sum(1).mean()
                net.step(made, loss + self.keep * kept, masks)
            net.record(f"epoch {epoch + 1}")
            if bool((net.predict(inputs).argmax(1) == labels).all()):
                break
        return net.outcome()

    def faulty(self, net: Trainee, rows: Material) -> Faulty:
        """The neurons with the largest contributions to wrong answers, by the localizer :class:`Probes`."""
        question = Question(net.graph, rows=(rows.failing, rows.passing), seed=net.task.seed)
        found = Probes(share=self.share).neurons(question)
        if not found:
            raise SpecificationError(
                "method Inner: no neuron tells the failing rows from right ones of their class. Give right rows of "
                "each class that fails, among the data or the rows to keep."
            )
        layer = next(one for one in net.hidden() if one.name == found[0][0])
        right = by_unit(net.activations(rows.passing[0], [layer.node])[1][0], layer.axis)
        own = [right[rows.passing[1] == label] for label in range(net.classes)]
        normal = torch.stack([one.mean(0) if len(one) else right.mean(0) for one in own])
        units = torch.tensor([unit for _, unit, _ in found], device=right.device)
        return Faulty(layer, units, normal)
