"""Runner: neurons whose importance differs between groups are stabilized by a term of the loss."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from repairopt.localize import by_unit
from repairopt.methods.outcome import Outcome
from repairopt.methods.settings import Expected
from repairopt.methods.task import Task

from .fit import Training, by_error, fit_weights
from .protected import check_protected, protected_groups
from .trainee import ROWS, Place, Trainee


@dataclass(frozen=True, kw_only=True)
class Runner(Training):
    """RUNNER: the importance of unfair neurons is made the same for all groups.

    The importance of a hidden neuron for a group is the mean of ``|h * d output / d h|`` over its rows, where the
    output is the largest one. The neurons whose importance differs most between groups are unfair. The network is
    tuned on the cross-entropy plus ``strength`` times the sum of these differences; unfair neurons are found anew
    before each epoch. The best epoch on the validation rows is taken.

    Attributes:
        protected: Columns of the protected attribute: one, or all of a one-hot code.
        strength: Weight of the differences.
        share: Share of all hidden neurons that count as unfair; at least one does.

    References:
        Li, Jin, Wang, Chen, Zhang and others, RUNNER: responsible unfair neuron repair for enhancing deep neural
        network fairness, ICSE 2024. Formulas and constants are ours; the study gives none.

    Example:
        >>> Runner(protected=(5,)).share
        0.1
    """

    systems: ClassVar[Mapping[str, Mapping[str, Any]]] = {"RUNNER": {}}

    protected: tuple[int, ...] = ()
    strength: float = 1.0
    share: float = 0.1

    def __post_init__(self) -> None:
        super().__post_init__()
        check_protected(type(self).__name__, self.protected)

    def expected(self) -> dict[str, Expected]:
        """What the settings may be."""
        return {"strength": Expected(), "share": Expected(high=1, above=True)}

    def run(self, task: Task) -> Outcome:
        """Diagnose and tune."""
        rows = self.material(task, failing=False)
        inputs, labels = rows.training
        groups = protected_groups(self, inputs)
        net = Trainee(task, inputs)
        nodes = [(layer.node, layer.axis) for layer in net.hidden()]
        unfair: list[Tensor] = []

        def begin(_: int) -> None:
            apart = importance_gaps(net, nodes, inputs, groups.of, groups.count)
            unfair[:] = [apart.topk(max(1, round(self.share * len(apart)))).indices]

        def loss(chosen: Tensor) -> Tensor:
            outputs, each = _importance(net, nodes, inputs[chosen], follow=True)
            gaps = _gaps(each, groups.of[chosen], groups.count)
            return F.cross_entropy(outputs, labels[chosen]) + self.strength * gaps[unfair[0]].sum()

        with net.twice():
            fit_weights(net, loss, len(inputs), self, begin=begin, score=by_error(rows.validation))
        return net.outcome()


def importance_gaps(net: Trainee, nodes: list[tuple[Place, int]], inputs: Tensor, of: Tensor, count: int) -> Tensor:
    """Largest difference of the importance of each hidden neuron between two groups, ``(units,)``."""
    each = torch.cat([_importance(net, nodes, part)[1].detach() for part in inputs.split(ROWS)])
    return _gaps(each, of, count)


def _importance(
    net: Trainee, nodes: list[tuple[Place, int]], inputs: Tensor, follow: bool = False
) -> tuple[Tensor, Tensor]:
    """Outputs, and the importance of each neuron for each row, ``(N, units)``."""
    outputs, values = net.run(inputs, [node for node, _ in nodes])
    slopes = torch.autograd.grad(outputs.amax(1).sum(), values, create_graph=follow, allow_unused=True)
    parts = [
        torch.zeros_like(value) if slope is None else (value * slope).abs()
        for value, slope in zip(values, slopes, strict=True)
    ]
    return outputs, torch.cat([by_unit(part, axis) for part, (_, axis) in zip(parts, nodes, strict=True)], dim=1)


def _gaps(each: Tensor, of: Tensor, count: int) -> Tensor:
    means = [each[of == group].mean(0) for group in range(count) if bool((of == group).any())]
    stacked = torch.stack(means)
    return stacked.amax(0) - stacked.amin(0)
