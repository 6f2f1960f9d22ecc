"""EditableTraining: the network learns to be edited in a few gradient steps, and is then edited on what fails."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.func import functional_call

from repairopt.methods.adam import Adam
from repairopt.methods.outcome import Outcome
from repairopt.methods.settings import Expected
from repairopt.methods.task import Task

from .fit import Pair, Training, by_error, shuffled
from .trainee import Trainee

Weights = dict[str, Tensor]
FORGET, TINY = 0.5, 1e-8  # of the mean squares of RMSProp in the editor


@dataclass(frozen=True, kw_only=True)
class EditableTraining(Training):
    """Editable training: tuning so that a few gradient steps correct a row and change little else, then editing.

    The editor takes at most ``steps`` steps of RMSProp on ``max_j log p(j|x) - log p(y|x)`` until it is 0. In each step
    of training it edits some rows, failing ones with their labels or, without any, training rows with random labels.
    The loss is the cross-entropy of a batch, plus ``edit`` times that of the edited rows after the edit, plus ``local``
    times the divergence KL(before || after the edit) on the batch; it is differentiated through the editor. The best
    epoch on the validation rows is taken, and then edited on all failing rows at once.

    Attributes:
        edit: Weight of the edited rows.
        local: Weight of the divergence.
        steps: Steps of the editor, at most.
        size: Its learning rate.
        rows: Rows that are edited in each step of training.

    References:
        Sinitsin, Plokhotnyuk, Pyrkin, Popov and Babenko, Editable neural networks, ICLR 2020; coefficients are searched
        on a grid of 0.01 to 100 there, 1 is its middle. At most 10 steps. Learning rates and the number of edited rows
        are ours, and so is the edit of all failing rows at once; the paper edits one.

    Example:
        >>> EditableTraining().steps
        10
    """

    systems: ClassVar[Mapping[str, Mapping[str, Any]]] = {"Editable Training (ET)": {}}

    edit: float = 1.0
    local: float = 1.0
    steps: int = 10
    size: float = 1e-3
    rows: int = 1

    def expected(self) -> dict[str, Expected]:
        """What the settings may be."""
        counts = dict.fromkeys(("steps", "rows"), Expected(low=1, whole=True))
        return {**counts, "edit": Expected(), "local": Expected(), "size": Expected(above=True)}

    def run(self, task: Task) -> Outcome:
        """Train, then edit."""
        rows = self.material(task, failing=False)
        net = Trainee(task, rows.training[0])
        made = Adam(list(net.own.values()), lr=self.rate)
        draw = torch.Generator().manual_seed(task.seed)
        score = by_error(rows.validation)
        best: Any = None
        for epoch in range(self.epochs):
            for chosen in shuffled(len(rows.training[0]), self.batch, draw):
                task.judge.check_time()
                here = chosen.to(task.engine.device)
                batch = (rows.training[0][here], rows.training[1][here])
                with net.twice():
                    net.step(made, self._loss(net, batch, self._wanted(net, rows.failing, rows.training, draw)))
            net.record(f"epoch {epoch + 1}")
            now = score(net)
            if best is None or now < best[0]:
                best = now, net.state()
        if best is not None:
            net.load(best[1])
        if len(rows.failing[0]):
            net.load(self.edited(net, rows.failing, follow=False))
        return net.outcome("edit")

    def edited(self, net: Trainee, rows: Pair, *, follow: bool = True) -> Weights:
        """Weights after an edit that makes rows have their labels; differentiable in the present ones if ``follow``."""
        weights: Weights = {name: p if follow else p.detach().requires_grad_() for name, p in net.own.items()}
        squares: Weights = {name: torch.zeros_like(p) for name, p in net.own.items()}
        for _ in range(self.steps):
            net.task.judge.check_time()
            chances = torch.log_softmax(_run(net, weights, rows[0]), dim=1)
            short = chances.amax(1) - chances.gather(1, rows[1][:, None])[:, 0]
            if not bool((short > 0).any()):
                break
            values = list(weights.values())
            grads = torch.autograd.grad(short.mean(), values, create_graph=follow, allow_unused=True)
            for (name, value), grad in zip(list(weights.items()), grads, strict=True):
                if grad is not None:
                    own = torch.where(net.free[name], grad, 0.0)
                    squares[name] = FORGET * squares[name] + (1 - FORGET) * own.square()
                    weights[name] = value - self.size * own / (squares[name] + TINY).sqrt()
        return {name: value if follow else value.detach() for name, value in weights.items()}

    def _wanted(self, net: Trainee, failing: Pair, training: Pair, draw: torch.Generator) -> Pair:
        """Rows to edit, with the labels that they shall have."""
        rows = failing if len(failing[0]) else training
        chosen = torch.randint(len(rows[0]), (self.rows,), generator=draw).to(rows[1].device)
        if len(failing[0]):
            return rows[0][chosen], rows[1][chosen]
        return rows[0][chosen], torch.randint(net.classes, (self.rows,), generator=draw).to(rows[1])

    def _loss(self, net: Trainee, batch: Pair, wanted: Pair) -> Tensor:
        outputs = net(batch[0])
        after = self.edited(net, wanted)
        changed = _run(net, after, batch[0])
        logs = torch.log_softmax(changed, dim=1), torch.log_softmax(outputs, dim=1)
        apart = F.kl_div(*logs, reduction="batchmean", log_target=True)
        edited = F.cross_entropy(_run(net, after, wanted[0]), wanted[1])
        return F.cross_entropy(outputs, batch[1]) + self.edit * edited + self.local * apart


def _run(net: Trainee, weights: Weights, inputs: Tensor) -> Tensor:
    named = {f"model.{name}": value for name, value in weights.items()}
    found: Tensor = functional_call(net.network, named, (net.convert(inputs),))
    return found
