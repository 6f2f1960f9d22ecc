"""Reweigh: rows are weighed so that group and label are independent, and the network is trained anew (REW)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from repairopt.methods.outcome import Outcome
from repairopt.methods.task import Task

from .fit import by_error, fit_weights
from .protected import TrainedByGroup, protected_groups
from .trainee import Trainee


@dataclass(frozen=True, kw_only=True)
class Reweigh(TrainedByGroup):
    """Reweighing (REW): training on rows that are weighed so that group and label are independent.

    A row of group a and label y counts ``P(a) P(y) / P(a, y)`` times. The network is trained from new random weights on
    the weighed cross-entropy; its best epoch on the validation rows is taken.

    Running statistics of batch normalization stay those of the original.

    Attributes:
        protected: Columns of the protected attribute: one, or all of a one-hot code.
        anew: Whether training begins from random weights; otherwise from those of the original.

    References:
        Kamiran and Calders, Data preprocessing techniques for classification without discrimination, Knowledge and
        Information Systems, 2012, as a baseline of A Post-Training Framework for Improving the Performance of Deep
        Learning Models via Model Transformation, TOSEM 2024, which gives no recipe of training: epochs, batch and rate
        are those of its adversarial baseline.

    Example:
        >>> Reweigh(protected=(5,)).epochs
        50
    """

    systems: ClassVar[Mapping[str, Mapping[str, Any]]] = {"REW reweighing": {}}

    def run(self, task: Task) -> Outcome:
        """Weigh the rows, train."""
        rows = self.material(task, failing=False)
        inputs, labels = rows.training
        weights = balancing_weights(protected_groups(self, inputs).of, labels).to(task.engine.dtype)
        net = Trainee(task, inputs)
        if self.anew:
            net.draw(task.seed)

        def loss(chosen: Tensor) -> Tensor:
            each = F.cross_entropy(net(inputs[chosen]), labels[chosen], reduction="none")
            return (weights[chosen] * each).mean()

        fit_weights(net, loss, len(inputs), self, score=by_error(rows.validation))
        return net.outcome()


def balancing_weights(groups: Tensor, labels: Tensor) -> Tensor:
    """``P(a) P(y) / P(a, y)`` of each row, ``(N,)`` in float64, from groups and labels ``(N,)``."""
    table = torch.zeros(int(groups.max()) + 1, int(labels.max()) + 1, dtype=torch.float64, device=labels.device)
    table.index_put_((groups, labels), torch.ones(len(labels), dtype=torch.float64, device=labels.device), True)
    expected = table.sum(1, keepdim=True) * table.sum(0, keepdim=True) / len(labels)
    return (expected / table.clamp(min=1))[groups, labels]
