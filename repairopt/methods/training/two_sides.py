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
    answers_only,
    goal_value,
    labels_of,
    measured,
    restricted,
    soft_value,
)

LEAST_STEPS = 60  # of a run: of few rows the batches are taken more often
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
    return labels_of(item) is not None and answers_only(item) and not hasattr(item, "signed_hard")


def _same(first: Pair, second: Pair) -> bool:
    return first[0].shape == second[0].shape and (first[0] is second[0] or torch.equal(first[0], second[0]))


def train(task: Task, sides: Sides, settings: Any, *, closeness: bool) -> Array:
    """Weight change ``(n,)`` of one run of Adam from the original weights.

    Args:
        task: The repair; its engine says which weights may change.
        sides: Rows.
        settings: Has ``epochs``, ``batch``, ``rate`` and ``keep``.
        closeness: Whether rows to keep are held to the original's probabilities in place of their labels.
    """
    network, parameters, masks = _trainable(task)
    optimizer = torch.optim.Adam(parameters.values(), lr=settings.rate)
    draw = torch.Generator().manual_seed(task.seed + closeness)
    aims = [_aims(task, x, y, closeness) for x, y in sides.kept]
    steps = _steps(sides, settings)
    limits = [_Multiplier(item, limit, goal_value(item, task.engine.predict())) for item, limit in sides.soft]
    for step, (failing, kept) in enumerate(_batches(sides, settings.batch, steps, draw)):
        task.judge.check_time()
        for group in optimizer.param_groups:
            group["lr"] = settings.rate * (1 - step / steps)
        loss = _mean_loss(network, [(x[own], y[own]) for (x, y), own in zip(sides.failing, failing, strict=True)])
        kept_loss = _mean_loss(
            network, [(x[own], a[own]) for (x, _), a, own in zip(sides.kept, aims, kept, strict=True)]
        )
        loss = loss + settings.keep * kept_loss
        for limit in limits:
            loss = loss + limit.penalty(network, update=step % max(1, steps // settings.epochs) == 0)
        if not isinstance(loss, Tensor) or not loss.requires_grad:
            break
        optimizer.zero_grad()
        loss.backward()
        for name, mask in masks.items():
            gradient = parameters[name].grad
            if gradient is not None:
                gradient *= mask
        optimizer.step()
    pieces = [
        (
            parameters[name].detach().flatten()[positions]
            - task.engine.model.get_parameter(name).detach().flatten()[positions]
        )
        for name, positions in task.engine.indices.items()
    ]
    found: Array = torch.cat([piece.double() for piece in pieces]).cpu().numpy()
    return np.clip(found, *task.box(np.zeros(task.engine.n), np.inf))


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


def _mean_loss(network: nn.Module, parts: list[Pair]) -> Any:
    """Mean cross-entropy of some rows, to labels or to probabilities; 0 without any."""
    if not parts:
        return 0.0
    total = sum(len(x) for x, _ in parts)
    losses = [F.cross_entropy(network(x), y.to(x.device), reduction="sum") for x, y in parts]
    return torch.stack(losses).sum() / total


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
