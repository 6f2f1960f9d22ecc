"""DropColumn: the network is trained anew without the protected column (SUPP)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch

from repairopt.localize import input_columns
from repairopt.methods.outcome import Outcome
from repairopt.methods.task import Task

from .fit import by_error, cross_entropy, fit_weights
from .protected import TrainedByGroup, protected_groups
from .trainee import Trainee


@dataclass(frozen=True, kw_only=True)
class DropColumn(TrainedByGroup):
    """Dropping the protected feature (SUPP): training without its columns, which the network then does not read.

    The weights of the first layer that read the columns are zero, before, during and after training; all others are
    trained from new random weights on the cross-entropy of the data, and the best epoch on the validation rows is
    taken. So the network keeps its architecture, and no change of the columns changes an output.

    Running statistics of batch normalization stay those of the original.

    Attributes:
        protected: Columns of the protected attribute: one, or all of a one-hot code.
        anew: Whether training begins from random weights; otherwise from those of the original.

    References:
        The baseline SUPP of A Post-Training Framework for Improving the Performance of Deep Learning Models via Model
        Transformation, TOSEM 2024, which gives no recipe of training: epochs, batch and rate are those of its
        adversarial baseline.

    Example:
        >>> DropColumn(protected=(5,)).batch
        128
    """

    systems: ClassVar[Mapping[str, Mapping[str, Any]]] = {"SUPP (drop protected feature)": {}}

    def run(self, task: Task) -> Outcome:
        """Set the weights of the columns to zero, train the others."""
        rows = self.material(task, failing=False)
        inputs = rows.training[0]
        groups = protected_groups(self, inputs)
        net = Trainee(task, inputs)
        name, reading = input_columns(net.graph, groups.columns, None)
        for parameter, positions in reading.items():
            if parameter not in net.own or not bool(net.free[parameter].view(-1)[positions].all()):
                raise self.wrong(f"the weights of layer '{name}' that read the columns must be among weights=.")
        if self.anew:
            net.draw(task.seed)
        with torch.no_grad():
            for parameter, positions in reading.items():
                net.own[parameter].view(-1)[positions] = 0.0
                net.free[parameter].view(-1)[positions] = False
        if not _blind(net, inputs, groups.columns):
            raise self.wrong(f"more than layer '{name}' reads the columns {groups.columns} of the inputs.")
        fit_weights(net, cross_entropy(net, rows.training), len(inputs), self, score=by_error(rows.validation))
        return net.outcome()


def _blind(net: Trainee, inputs: torch.Tensor, columns: tuple[int, ...]) -> bool:
    """Whether outputs stay as they are when the columns change."""
    few = inputs[:100]
    moved = few.clone()
    moved[:, list(columns)] = moved[:, list(columns)] + 1.0
    return bool(torch.allclose(net.predict(few), net.predict(moved), rtol=1e-5, atol=1e-6))
