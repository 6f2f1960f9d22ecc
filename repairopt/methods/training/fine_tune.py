"""FineTune: mini-batch training of the chosen weights, with penalties on the goal and on typed bounds."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from repairopt.errors import SpecificationError
from repairopt.localize import NewWeights
from repairopt.methods.adam import Adam
from repairopt.methods.outcome import Outcome
from repairopt.methods.settings import Expected, check_settings, is_one_of
from repairopt.methods.task import Task
from repairopt.network import jacobian
from repairopt.program import Status
from repairopt.specify import (
    Differentiable,
    PropertyBound,
    SampleConstraint,
    goal_value,
    labelled_data,
    samples_in,
    soft_value,
)

from .property_parts import parts_of

OPTIMIZERS = ("adam", "sgd")
MOMENTUM = 0.9
RATES_NEED = 4  # batches behind each rate of a group in one step: rates of fewer rows are mostly noise
LEAST_STEPS = 10  # of an epoch: of few samples the batches are smaller
LEAST_EXCESS = 0.02  # by which prices are scaled: of bounds that the original meets


@dataclass(frozen=True, kw_only=True)
class FineTune:
    """Fine-tuning on cross-entropy plus penalties; only the chosen weights are trained.

    The loss of a step is the cross-entropy of a batch of the labelled data, plus the augmented Lagrangian of the soft
    values of goal and bounds, plus ``keep`` times the mean violation of the rows of a batch of each constraint by
    sample. Once in an epoch each multiplier is updated by the excess of the true network, and each limit is moved by
    the difference between count and soft value. The learning rate falls to 0. The network runs in evaluation mode:
    batch normalization is frozen and dropout is off. The best epoch on the true network is returned; of those that meet
    goal and constraints the one with the least loss on the data.

    Attributes:
        epochs: Passes over the labelled data.
        batch: Samples in a step, at most.
        rate: Learning rate, in units of ``max(|weight|, rms of its parameter)``.
        optimizer: ``"adam"``, or ``"sgd"`` with momentum 0.9.
        price: Price of goal and bounds, in nats for each unit, while their excess is that of the original network.
        keep: Price of constraints by sample, in nats for each logit of mean violation.
        closeness: Weight (0 to 1) of the original network's probabilities in what is learned; 1 needs no labels.

    References:
        Nocedal and Wright, Numerical Optimization, section 17.4 (augmented Lagrangian). Kingma and Ba, Adam, ICLR 2015.

    Example:
        >>> FineTune(epochs=5, optimizer="sgd").batch
        256
    """

    uses: ClassVar[frozenset[str]] = frozenset({"weights", "start"})

    epochs: int = 30
    batch: int = 256
    rate: float = 0.01
    optimizer: str = "adam"
    price: float = 1.0
    keep: float = 1.0
    closeness: float = 0.1

    def __post_init__(self) -> None:
        counts = dict.fromkeys(("epochs", "batch"), Expected(low=1, whole=True))
        numbers = {"rate": Expected(above=True), "price": Expected(), "keep": Expected(), "closeness": Expected(high=1)}
        check_settings(self, {**counts, **numbers})
        if not is_one_of(self.optimizer, OPTIMIZERS):
            raise SpecificationError(
                f"method FineTune: optimizer={self.optimizer!r}; choose {' or '.join(OPTIMIZERS)}."
            )

    def run(self, task: Task) -> Outcome:
        """Train; the judge keeps the best epoch."""
        loss = _Loss(task, self)
        scale, zero = task.engine.scale.cpu().numpy(), np.zeros(task.engine.n)
        box = tuple(torch.as_tensor(side / scale) for side in task.box(zero, np.inf))
        begin = zero if task.start is None else task.start / scale
        steps = torch.as_tensor(begin).clone().requires_grad_()  # of each weight, in units of its natural size
        made: Any = Adam([steps], lr=self.rate)
        if self.optimizer == "sgd":
            made = torch.optim.SGD([steps], lr=self.rate, momentum=MOMENTUM)
        draw = torch.Generator().manual_seed(task.seed)
        best, least = task.judge.original, np.inf
        for epoch in range(self.epochs + 1):
            delta = steps.detach().numpy() * scale
            judged = task.judge(delta)
            done, now = judged.met and judged.feasible, loss.on_data(delta)
            better = now < least if done and best.met and best.feasible else judged.better_than(best)
            if better:
                weights = {name: value.detach() for name, value in task.engine.weights(_tensor(task, delta)).items()}
                best, least = task.judge.keep(NewWeights(weights, task.engine.n)), now
            task.log.last = (0, task.engine.n, None)
            task.record(f"epoch {epoch}", judged, accepted=better)
            if epoch == self.epochs:
                break
            loss.aim(delta)
            for group in made.param_groups:
                group["lr"] = self.rate * (1 - epoch / self.epochs)
            for batch in loss.batches(draw):
                task.judge.check_time()
                made.zero_grad()
                steps.grad = torch.as_tensor(scale) * loss.gradient(steps.detach().numpy() * scale, *batch)
                made.step()
                with torch.no_grad():
                    steps.clamp_(*box)
        return Outcome(best.candidate, Status.FEASIBLE)


@dataclass(eq=False)
class _Limit:
    """A soft value that must not exceed a limit.

    Attributes:
        whole: The property, or what stands in for one.
        parts: The same on parts of its inputs, one for a step.
        limit: Limit of the value by count.
        slope: Price of a unit of excess, for each unit of excess.
        shift: Count minus soft value, where the epoch began.
        multiplier: Price of a unit of excess, at the limit.
    """

    whole: Any
    parts: list[Any]
    limit: float
    slope: float
    shift: float = 0.0
    multiplier: float = 0.0

    def price(self, value: float) -> float:
        """Price of a unit of excess at a value by count."""
        return max(0.0, self.multiplier + self.slope * (value - self.limit))


class _Loss:
    """Loss of a step and its gradient in the weight change."""

    def __init__(self, task: Task, settings: FineTune) -> None:
        self.task, self.settings = task, settings
        engine = task.engine
        pairs = list(task.data) or labelled_data([*task.constraints, task.goal])
        self.data = [(x, self._targets(engine.predict()(x), y)) for x, y in pairs]
        bounds: Any = [c for c in task.constraints if isinstance(c, PropertyBound) and c.limit is not None]
        items = [(task.goal, float(task.goal.target)), *((c.property, float(c.limit)) for c in bounds)]
        jacobian(engine, soft_value(task.goal))  # the error says what a goal without a derivative lacks
        items = [items[0], *(item for item in items[1:] if isinstance(item[0], Differentiable))]
        self.limits = []
        for item, limit in items:
            excess = max(goal_value(item, engine.predict()) - limit, LEAST_EXCESS)
            parts = parts_of(item, RATES_NEED * settings.batch, task.seed)
            self.limits.append(_Limit(item, parts, limit, settings.price / excess))
        self.rows = [
            (c, samples_in(c), torch.as_tensor(required).reshape(len(samples_in(c)), -1))
            for c, required in zip(task.constraints, task.required, strict=True)
            if isinstance(c, SampleConstraint) and len(samples_in(c)) and settings.keep
        ]
        self.step = 0

    def _targets(self, outputs: Tensor, labels: Tensor) -> Tensor:
        """Probabilities to learn, ``(N, k)``: the label's, mixed with those of the original network."""
        own = torch.nn.functional.one_hot(labels.to(outputs.device), outputs.shape[1]).to(outputs.dtype)
        return (1 - self.settings.closeness) * own + self.settings.closeness * torch.softmax(outputs, 1)

    def on_data(self, delta: Any) -> float:
        """Mean cross-entropy of the data; 0 without any."""
        predict, total = self.task.engine.predict(delta), sum(len(x) for x, _ in self.data)
        sums = [torch.nn.functional.cross_entropy(predict(x), aim, reduction="sum") for x, aim in self.data]
        return float(sum(sums)) / total if total else 0.0

    def aim(self, delta: Any) -> None:
        """Move each limit by what its soft value differs from the count, and update its multiplier."""
        now = self.task.engine.predict(delta)
        for one in self.limits:
            with torch.no_grad():
                soft = float(soft_value(one.whole)(now))
            count = goal_value(one.whole, now)
            one.shift = count - soft
            one.multiplier = one.price(count) if self.step else 0.0

    def batches(self, draw: torch.Generator) -> list[tuple[list[Tensor], list[Tensor]]]:
        """For each step of an epoch the samples of every data set and of every constraint by sample."""
        sizes = [len(x) for x, _ in self.data]
        longest = max([*sizes, *(len(samples) for _, samples, _ in self.rows)], default=0)
        count = max(LEAST_STEPS, -(-longest // self.settings.batch), *(len(one.parts) for one in self.limits))
        mixed = [torch.randperm(n, generator=draw).tensor_split(count) for n in sizes]
        rows = [torch.randperm(len(samples), generator=draw).tensor_split(count) for _, samples, _ in self.rows]
        return [([one[k] for one in mixed], [one[k] for one in rows]) for k in range(count)]

    def gradient(self, delta: Any, samples: list[Tensor], rows: list[Tensor]) -> Tensor:
        """Gradient ``(n,)`` of the loss of one step."""
        found = torch.zeros(self.task.engine.n, dtype=torch.float64)
        for one in self.limits:
            part = one.parts[self.step % len(one.parts)]
            value, slope = jacobian(self.task.engine, soft_value(part), delta)
            found += one.price(float(value[0]) + one.shift) * slope[0].cpu()
        self.step += 1
        change = _tensor(self.task, delta).requires_grad_()
        loss = self._of_samples(change, samples, rows)
        if loss is not None:
            found += torch.autograd.grad(loss, change)[0].double().cpu()
        return found

    def _of_samples(self, change: Tensor, samples: list[Tensor], rows: list[Tensor]) -> Tensor | None:
        engine, total, parts = self.task.engine, sum(map(len, samples)), []
        for (inputs, targets), own in zip(self.data, samples, strict=True):
            if len(own):
                outputs = engine.outputs(inputs, change, own)
                aim = targets[own.to(targets.device)]
                parts.append(torch.nn.functional.cross_entropy(outputs, aim, reduction="sum") / total)
        for (constraint, known, required), own in zip(self.rows, rows, strict=True):
            if len(own):
                outputs = engine.outputs(constraint.inputs, change, known[own])
                short = required[own].to(outputs) - constraint.margins_of(outputs, known[own])
                parts.append(self.settings.keep * short.clamp(min=0).sum(1).mean())
        return torch.stack(parts).sum() if parts else None


def _tensor(task: Task, delta: Any) -> Tensor:
    return task.engine.as_delta(delta).clone()
