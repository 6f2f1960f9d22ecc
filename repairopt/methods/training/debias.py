"""Debias: the network learns against an adversary that reads the group from its answers (ADV)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from repairopt.methods.outcome import Outcome
from repairopt.methods.settings import Expected
from repairopt.methods.task import Task

from .fit import shuffled
from .protected import TrainedByGroup, protected_groups
from .trainee import Trainee

DECAY, DECAY_STEPS = 0.96, 1000  # of the learning rate


class Adversary(nn.Module):
    """Reads the group from the answer and the label: one linear layer on ``[s, s y, s (1 - y)]``."""

    def __init__(self) -> None:
        super().__init__()
        self.c = nn.Parameter(torch.ones(()))
        self.read = nn.Linear(3, 1)

    def forward(self, logit: Tensor, labels: Tensor) -> Tensor:
        """Logit of the second group, ``(N,)``."""
        s, y = torch.sigmoid((1 + self.c.abs()) * logit), labels.to(logit)
        return self.read(torch.stack([s, s * y, s * (1 - y)], dim=1))[:, 0]


@dataclass(frozen=True, kw_only=True)
class Debias(TrainedByGroup):
    """Adversarial debiasing (ADV): training against an adversary that reads the group from answer and label.

    The network is trained from new random weights by the gradient ``g - (its projection on h) - strength * h``, for
    each parameter, where g is the gradient of the cross-entropy and h that of the adversary's loss; so nothing that it
    learns helps the adversary. The adversary is trained beside it. The weights after the last epoch are taken.

    Two classes and two groups. Running statistics of batch normalization stay those of the original.

    Attributes:
        protected: Columns of the protected attribute: one, or all of a one-hot code.
        strength: Weight of the adversary's gradient.
        anew: Whether training begins from random weights; otherwise from those of the original.

    References:
        Zhang, Lemoine and Mitchell, Mitigating unwanted biases with adversarial learning, AIES 2018; constants of the
        implementation in AIF360: strength 0.1, Adam at 0.001 times 0.96 each 1,000 steps, 50 epochs of 128 rows. It
        stands for FAD and Ethical Adversaries, of which the studies that name them give no detail.

    Example:
        >>> Debias(protected=(5,)).strength
        0.1
    """

    systems: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "ADV adversarial debiasing": {},
        "FAD (one-network adversarial fairness)": {},
        "Ethical Adversaries": {},
    }

    strength: float = 0.1

    def expected(self) -> dict[str, Expected]:
        """What the settings may be."""
        return {"strength": Expected()}

    def run(self, task: Task) -> Outcome:
        """Train network and adversary in turn."""
        rows = self.material(task, failing=False)
        inputs, labels = rows.training
        groups = protected_groups(self, inputs)
        net = Trainee(task, inputs)
        if groups.count != 2 or net.classes != 2:
            raise self.wrong(f"needs two groups and two classes; got {groups.count} and {net.classes}.")
        if self.anew:
            net.draw(task.seed)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(task.seed)
            adversary = Adversary().to(inputs.device, task.engine.dtype)
        made = [torch.optim.Adam(p, lr=self.rate) for p in (list(net.own.values()), list(adversary.parameters()))]
        slower = [torch.optim.lr_scheduler.StepLR(one, DECAY_STEPS, DECAY) for one in made]
        draw = torch.Generator().manual_seed(task.seed)
        for epoch in range(self.epochs):
            for chosen in shuffled(len(inputs), self.batch, draw):
                task.judge.check_time()
                here = chosen.to(inputs.device)
                outputs = net(inputs[here])
                guess = adversary(outputs[:, 1] - outputs[:, 0], labels[here])
                against = F.binary_cross_entropy_with_logits(guess, groups.of[here].to(guess))
                self._step(net, made, F.cross_entropy(outputs, labels[here]), against, adversary)
                for one in slower:
                    one.step()
            net.record(f"epoch {epoch + 1}")
        return net.outcome()

    def _step(self, net: Trainee, made: list[Any], loss: Tensor, against: Tensor, adversary: Adversary) -> None:
        parameters = list(net.own.values())
        own = torch.autograd.grad(loss, parameters, retain_graph=True)
        theirs = torch.autograd.grad(against, [*parameters, *adversary.parameters()])
        grads: dict[str, Tensor | None] = {}
        for name, g, h in zip(net.own, own, theirs, strict=False):
            unit = h / h.norm().clamp(min=torch.finfo(h.dtype).tiny)
            grads[name] = g - (g * unit).sum() * unit - self.strength * h
        net.move(made[0], grads)
        for parameter, g in zip(adversary.parameters(), theirs[len(parameters) :], strict=True):
            parameter.grad = g
        made[1].step()
