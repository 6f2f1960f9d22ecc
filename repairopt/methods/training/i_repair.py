"""IRepair: weights that matter to failures and not to answers in general are tuned (focal tuning)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from repairopt.methods.outcome import Outcome
from repairopt.methods.settings import Expected
from repairopt.methods.task import Task

from .fit import Pair, Training
from .trainee import Masks, Trainee

TINY = 1e-8


@dataclass(frozen=True, kw_only=True)
class IRepair(Training):
    """I-REPAIR: in each step only weights whose influence on failures is much larger than that on answers move.

    The general influence of a weight is the size of the derivative of the mean sum of absolute logits on a small set
    of rows that are right; the specific one that of the derivative of the cross-entropy on failing rows. A weight moves
    where ``(specific + 1e-8) / (ratio * general + 1e-8)`` is at least 1; that is found anew in each step. Steps are
    those of RMSProp on the cross-entropy of both sets, until all failing rows are right.

    Attributes:
        epochs: Steps, at most.
        batch: Rows that are right in the small set, at most.
        ratio: How much larger the specific influence must be.

    References:
        I-REPAIR as described in A Comprehensive Study of Deep Learning Model Fixing Approaches, with the constants of
        its code: ratio 10, RMSProp at 1e-4, 500 steps. The size of the small set is ours.

    Example:
        >>> IRepair().ratio
        10.0
    """

    systems: ClassVar[Mapping[str, Mapping[str, Any]]] = {"I-REPAIR (IR)": {}}

    epochs: int = 500
    rate: float = 1e-4
    ratio: float = 10.0

    def expected(self) -> dict[str, Expected]:
        """What the settings may be."""
        return {"ratio": Expected(above=True)}

    def run(self, task: Task) -> Outcome:
        """Step until all failing rows are right."""
        rows = self.material(task)
        draw = torch.Generator().manual_seed(task.seed)
        some = torch.randperm(len(rows.passing[0]), generator=draw)[: self.batch].to(task.engine.device)
        passing = (rows.passing[0][some], rows.passing[1][some])
        net = Trainee(task, rows.failing[0])
        made = torch.optim.RMSprop(list(net.own.values()), lr=self.rate)
        for step in range(self.epochs):
            task.judge.check_time()
            grads, masks, wrong = self._influences(net, rows.failing, passing)
            if not wrong:
                break
            net.move(made, grads, masks)
            if not step % 10:
                net.record(f"step {step + 1}: {wrong} rows fail")
        return net.outcome()

    def _influences(self, net: Trainee, failing: Pair, passing: Pair) -> tuple[Mapping[str, Tensor | None], Masks, int]:
        """Gradient of the loss of both sets, which weights move, and how many failing rows are wrong."""
        parameters = list(net.own.values())
        outputs = net(failing[0])
        specific = _slopes(net, F.cross_entropy(outputs, failing[1]))
        wrong = int((outputs.argmax(1) != failing[1]).sum())
        if not len(passing[0]):
            return dict(specific), {name: torch.ones_like(free) for name, free in net.free.items()}, wrong
        answers = net(passing[0])
        general = torch.autograd.grad(answers.abs().sum(1).mean(), parameters, retain_graph=True, allow_unused=True)
        learned = _slopes(net, F.cross_entropy(answers, passing[1]))
        masks, grads = {}, {}
        for name, other in zip(net.own, general, strict=True):
            size = torch.zeros_like(net.own[name]) if other is None else other.abs()
            masks[name] = (specific[name].abs() + TINY) / (self.ratio * size + TINY) >= 1
            grads[name] = specific[name] + learned[name]
        return grads, masks, wrong


def _slopes(net: Trainee, loss: Tensor) -> dict[str, Tensor]:
    grads = torch.autograd.grad(loss, list(net.own.values()), retain_graph=True, allow_unused=True)
    pairs = zip(net.own.items(), grads, strict=True)
    return {name: torch.zeros_like(p) if grad is None else grad for (name, p), grad in pairs}
