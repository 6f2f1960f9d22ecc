"""Training on two sides, rows that fail and rows to keep, with multipliers for what has no labels."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from repairopt.methods.task import Array, Task
from repairopt.network import Predict
from repairopt.specify import (
    Differentiable,
    PropertyBound,
    SignedParts,
    answers_only,
    goal_value,
    labels_of,
    measured,
    restricted,
    soft_value,
)

LEAST_STEPS = 100  # of a run: of few rows the batches are taken more often
STAGES = 4  # of a run, each twice as long as the one before
LEARNED = 0.05  # share of wrong rows at which a run ends
STILL = 0.75  # of the wrong rows of the stage before, at which it still learns
LEAST_EXCESS = 0.02
Pair = tuple[Tensor, Tensor]


@dataclass(frozen=True, eq=False)
class Sides:
    """What a repair of many weights learns from.

    Attributes:
        failing: Labelled rows of the goal.
        kept: Labelled rows of the constraints, and of the data whose loss is kept small.
        soft: Goal and bounds that have no labels of their own, each with its limit.
    """

    failing: tuple[Pair, ...]
    kept: tuple[Pair, ...]
    soft: tuple[tuple[Any, float], ...]

    @classmethod
    def of(cls, task: Task) -> Sides:
        """The sides of a repair."""
        bounds = [c for c in task.constraints if isinstance(c, PropertyBound) and c.limit is not None]
        items = [(task.goal, float(task.goal.target)), *((c.property, float(c.limit or 0.0)) for c in bounds)]
        soft = tuple(item for item in items if not _by_label(item[0]) and isinstance(item[0], Differentiable))
        own = labels_of(task.goal) if _by_label(task.goal) else None
        failing = () if own is None else (own,)
        known = [labels_of(measured(c)) for c in task.constraints]
        kept: list[Pair] = []
        for pair in [*(pair for pair in known if pair is not None), *task.data]:
            if not any(_same(pair, other) for other in (*failing, *kept)):
                kept.append(pair)
        return cls(failing, tuple(kept), soft)

    def where(self, keep: Callable[[Tensor], Tensor]) -> Sides:
        """The same on the rows that ``keep`` chooses."""

        def part(pairs: tuple[Pair, ...]) -> tuple[Pair, ...]:
            masks = [keep(x) for x, _ in pairs]
            return tuple(
                (x[m.to(x.device)], y[m.to(y.device)]) for (x, y), m in zip(pairs, masks, strict=True) if m.any()
            )

        soft = tuple((restricted(item, keep), limit) for item, limit in self.soft)
        return replace(self, failing=part(self.failing), kept=part(self.kept), soft=soft)


def _by_label(item: Any) -> bool:
    """Whether an item is about right answers to labelled rows, which cross-entropy speaks of."""
    return labels_of(item) is not None and answers_only(item) and not isinstance(item, SignedParts)


def _same(first: Pair, second: Pair) -> bool:
    return first[0].shape == second[0].shape and (first[0] is second[0] or torch.equal(first[0], second[0]))


def train(task: Task, sides: Sides, settings: Any, *, closeness: bool) -> Array:
    """Weight change ``(n,)`` of one run of Adam from the original weights.

    The run is taken up again with twice the steps while many of the rows are wrong and it still learns: few rows need
    more passes than many.

    Args:
        task: The repair; its engine says which weights may change.
        sides: Rows.
        settings: Has ``epochs``, ``batch``, ``rate`` and ``keep``.
        closeness: Whether rows to keep are held to the original's probabilities in place of their labels.
    """
    run = _Run(task, sides, settings, closeness)
    steps, before = _steps(sides, settings), np.inf
    for _ in range(STAGES):
        wrong = run.take(steps)
        if wrong <= LEARNED or wrong > STILL * before:
            break
        steps, before = 2 * steps, wrong
    return run.change()


class _Run:
    """The network in training, with what each row is to learn."""

    def __init__(self, task: Task, sides: Sides, settings: Any, closeness: bool) -> None:
        self.task, self.sides, self.settings = task, sides, settings
        self.network, self.parameters, self.masks = _trainable(task)
        self.draw = torch.Generator().manual_seed(task.seed + closeness)
        self.aims = [_aims(task, x, y, closeness) for x, y in sides.kept]
        before = task.engine.predict()
        self.limits = [_Multiplier(item, limit, goal_value(item, before)) for item, limit in sides.soft]

    def take(self, steps: int) -> float:
        """Train; the share of wrong rows in the last quarter of the steps, or by which limits are missed."""
        rate, every = self.settings.rate, max(1, steps // self.settings.epochs)
        optimizer = torch.optim.Adam(self.parameters.values(), lr=rate)
        tally = [0, 0]
        for step, (failing, kept) in enumerate(_batches(self.sides, self.settings.batch, steps, self.draw)):
            self.task.judge.check_time()
            for group in optimizer.param_groups:
                group["lr"] = rate * (1 - step / steps)
            counted = tally if 4 * step >= 3 * steps else None
            loss = self._of_rows(failing, kept, counted)
            for limit in self.limits:
                loss = loss + limit.penalty(self.network, update=step % every == 0)
            if not isinstance(loss, Tensor) or not loss.requires_grad:
                return 0.0
            optimizer.zero_grad()
            loss.backward()
            for name, mask in self.masks.items():
                gradient = self.parameters[name].grad
                if gradient is not None:
                    gradient *= mask
            optimizer.step()
        missed = max((limit.missed(self.network) for limit in self.limits), default=0.0)
        return max(tally[0] / max(1, tally[1]), missed)

    def change(self) -> Array:
        """The weight change so far, ``(n,)``, within what the user allows."""
        pieces = []
        for name, positions in self.task.engine.indices.items():
            new, old = self.parameters[name].detach(), self.task.engine.model.get_parameter(name).detach()
            pieces.append((new - old).flatten()[positions].double())
        found: Array = torch.cat(pieces).cpu().numpy()
        return np.clip(found, *self.task.box(np.zeros(self.task.engine.n), np.inf))

    def _of_rows(self, failing: list[Tensor], kept: list[Tensor], tally: list[int] | None) -> Any:
        """Cross-entropy of a batch of each side; adds to wrong rows and rows of the failing side."""
        wrong = [(x[own], y[own]) for (x, y), own in zip(self.sides.failing, failing, strict=True)]
        known = zip(self.sides.kept, self.aims, kept, strict=True)
        right = [(x[own], aim[own]) for (x, _), aim, own in known]
        return _mean_loss(self.network, wrong, tally) + self.settings.keep * _mean_loss(self.network, right)


def _trainable(task: Task) -> tuple[nn.Module, dict[str, nn.Parameter], dict[str, Tensor]]:
    """A copy of the network whose chosen parameters are trained, and masks of those that change in part."""
    network: Any = copy.deepcopy(task.engine.caller).eval()
    for parameter in network.parameters():
        parameter.requires_grad_(False)
    parameters, masks = {}, {}
    for name, positions in task.engine.indices.items():
        parameter = network.model.get_parameter(name).requires_grad_()
        parameters[name] = parameter
        if len(positions) < parameter.numel():
            mask = torch.zeros(parameter.numel(), dtype=parameter.dtype, device=parameter.device)
            mask[positions.to(parameter.device)] = 1.0
            masks[name] = mask.view_as(parameter)
    return network, parameters, masks


def _aims(task: Task, inputs: Tensor, labels: Tensor, closeness: bool) -> Tensor:
    """What rows to keep learn: their labels, or the original network's probabilities ``(N, k)``."""
    if not closeness:
        return labels
    with torch.no_grad():
        return torch.softmax(task.engine.predict()(inputs), 1)


def _steps(sides: Sides, settings: Any) -> int:
    longest = max((sum(len(y) for _, y in pairs) for pairs in (sides.failing, sides.kept)), default=0)
    return max(LEAST_STEPS, settings.epochs * -(-longest // settings.batch))


def _batches(sides: Sides, size: int, steps: int, draw: torch.Generator) -> Iterator[tuple[list[Tensor], list[Tensor]]]:
    """For each step the rows of every set: about ``size`` of each side, every row as often as any other."""
    streams = [
        [_stream(len(y), max(1, round(size * len(y) / max(1, sum(len(o) for _, o in pairs)))), draw) for _, y in pairs]
        for pairs in (sides.failing, sides.kept)
    ]
    for _ in range(steps):
        yield [next(one) for one in streams[0]], [next(one) for one in streams[1]]


def _stream(count: int, size: int, draw: torch.Generator) -> Iterator[Tensor]:
    while True:
        yield from torch.randperm(count, generator=draw).split(min(size, count))


def _mean_loss(network: nn.Module, parts: list[Pair], tally: list[int] | None = None) -> Any:
    """Mean cross-entropy of some rows, to labels or to probabilities; 0 without any."""
    if not parts:
        return 0.0
    losses = []
    for x, aim in parts:
        outputs = network(x)
        losses.append(F.cross_entropy(outputs, aim.to(outputs.device), reduction="sum"))
        if tally is not None:
            tally[0] += int((outputs.detach().argmax(1) != aim.to(outputs.device)).sum())
            tally[1] += len(x)
    return torch.stack(losses).sum() / sum(len(x) for x, _ in parts)


class _Multiplier:
    """The augmented Lagrangian of one limit: a price that grows while the count exceeds it."""

    def __init__(self, item: Any, limit: float, before: float) -> None:
        self.item, self.limit = item, limit
        self.slope = 1.0 / max(before - limit, LEAST_EXCESS)
        self.price, self.shift = 0.0, 0.0

    def penalty(self, network: Predict, *, update: bool) -> Tensor:
        """Price of the excess of the soft value, moved by what it differs from the count."""
        soft = torch.as_tensor(soft_value(self.item)(network))
        if update:
            with torch.no_grad():
                count = goal_value(self.item, network)
            self.shift = count - float(soft.detach())
            self.price = max(0.0, self.price + self.slope * (count - self.limit))
        excess = soft + self.shift - self.limit
        return self.price * excess + 0.5 * self.slope * excess.clamp(min=0) ** 2

    def missed(self, network: Predict) -> float:
        """By how much the count exceeds the limit, of what it was at first."""
        with torch.no_grad():
            return max(0.0, self.slope * (goal_value(self.item, network) - self.limit))
