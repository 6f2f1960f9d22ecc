"""Swarm: particle swarm optimization on the chosen weights; needs values alone, no derivatives."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from repairopt.methods.outcome import Outcome
from repairopt.methods.settings import Expected, check_settings
from repairopt.methods.task import Task
from repairopt.network import Array, Predict, identity
from repairopt.program import Status
from repairopt.specify import SampleConstraint, allowed_samples, labelled_data, margins_at, sample_count

from .particles import Particles

SMALLEST_START = 1e-2  # of the box: sizes of the first particles are drawn between this share of it and all of it


@dataclass(frozen=True, kw_only=True)
class Swarm:
    """Global-best particle swarm optimization over the chosen weights.

    Particles are compared by feasibility first (Deb): what violates less is better; among those that violate nothing,
    what is closer to the target; among those at the target, what has the smaller loss on the labelled data, or without
    data the smaller change. Works for properties without derivatives, on some dozens of weights.

    Attributes:
        particles: Size of the swarm.
        iterations: At most so many moves of the swarm.
        patience: Stop after so many moves in a row that found nothing better.
        radius: Largest change of a weight, in units of ``max(|weight|, rms of its parameter)``.

    References:
        Kennedy and Eberhart, Particle Swarm Optimization, 1995. Clerc and Kennedy, The Particle Swarm: Explosion,
        Stability, and Convergence in a Multidimensional Complex Space, 2002. Deb, An Efficient Constraint Handling
        Method for Genetic Algorithms, 2000. Sun et al., Causality-Based Neural Network Repair, ICSE 2022, who repair
        with a swarm.

    Example:
        >>> Swarm(particles=20).iterations
        100
    """

    uses: ClassVar[frozenset[str]] = frozenset({"weights", "start"})

    particles: int = 40
    iterations: int = 100
    patience: int = 25
    radius: float = 1.0

    def __post_init__(self) -> None:
        counts = dict.fromkeys(("iterations", "patience"), Expected(low=1, whole=True))
        check_settings(self, {**counts, "particles": Expected(low=2, whole=True), "radius": Expected(above=True)})

    def run(self, task: Task) -> Outcome:
        """Move the swarm until nothing better is found; each best place so far is kept by the judge."""
        rate = _Rating(task)
        draw = np.random.default_rng(task.seed)
        lower, upper = task.box(np.zeros(task.engine.n), self.radius)
        places = self._begin(task, draw, lower, upper)

        def found(step: int, place: Array, score: float) -> None:
            task.log.last = (0, task.engine.n, None)
            task.record(f"swarm, move {step}", task.judge.keep(place))

        rules = Particles(iterations=self.iterations, patience=self.patience)
        first_better = partial(_first_better, task)
        check = task.judge.check_time
        best, _ = rules.move(rate, places, draw, (lower, upper), choose=first_better, found=found, check=check)
        return Outcome(best, Status.FEASIBLE, on_target=True)

    def _begin(self, task: Task, draw: np.random.Generator, lower: Array, upper: Array) -> Array:
        """First places: the start, or no change, and particles around it at distances of all orders of magnitude."""
        center = np.zeros(task.engine.n) if task.start is None else np.clip(task.start, lower, upper)
        sizes = SMALLEST_START ** draw.random((self.particles, 1))
        sizes[0] = 0.0
        places = center + sizes * draw.uniform(lower, upper, (self.particles, task.engine.n))
        return np.clip(places, lower, upper)


def _first_better(task: Task, own: Array, scores: Array, best: float) -> int | None:
    """The place with the best score below ``best``; those that make the network constant are given up."""
    while scores.min() < best:
        found = int(scores.argmin())
        if not task.judge(own[found]).constant or not np.any(own[found]):
            return found
        scores[found] = np.inf
    return None


class _Rating:
    """Scores of many places at once, smaller is better.

    Above 1 where something is violated, by how much; from 0 to 1 where only the target is missed; below 0 at the
    target.
    """

    def __init__(self, task: Task) -> None:
        self.task = task
        self.data = list(task.data) or labelled_data([*task.constraints, task.goal])
        margins = margins_at(task.engine.predict(), task.constraints)
        self.allowed = [allowed_samples(c, m) for c, m in zip(task.constraints, margins, strict=True)]

    def __call__(self, places: Array) -> Array:
        """Scores ``(K,)`` of weight changes ``(K, n)``."""
        scores = self.task.engine.values(self._score, torch.as_tensor(places)).cpu().numpy()
        scores = np.nan_to_num(scores, nan=np.inf)
        if not self.data:  # among places at the target the nearest is the best
            sizes = np.sqrt(((places / self.task.engine.scale.cpu().numpy()) ** 2).mean(1))
            scores = np.where(scores < 0, sizes / (1 + sizes) - 1, scores)
        missed = sum((_missed(rows, places) for rows in self.task.judge.change), np.zeros(len(places)))
        return np.where(missed > 0, 1 + missed + np.maximum(scores, 0), scores)

    def _score(self, predict: Predict) -> Tensor:
        run = _once(predict)
        missed = sum((self._violation(i, run) for i in range(len(self.allowed))), torch.zeros((), dtype=torch.float64))
        value: Any = self.task.goal.value(run)
        excess = (torch.as_tensor(value).double() - float(self.task.goal.target)).clamp(min=0)
        short = excess / (1 + excess)
        loss = self._loss(run)
        at_target = loss / (1 + loss) - 1
        missed = missed.to(excess.device)
        return torch.where(missed > 0, 1 + missed, torch.where(excess > 0, short, at_target.to(excess.device)))

    def _violation(self, index: int, predict: Predict) -> Tensor:
        """Share of the samples that fail beyond those that may; of a bound by how much it is missed."""
        constraint: Any = self.task.constraints[index]
        margins = constraint.margins(predict)
        fails = margins < 0
        if not isinstance(constraint, SampleConstraint):
            surplus = (fails.sum() - self.allowed[index]).clamp(min=0)
            return torch.where(surplus > 0, (-margins).clamp(min=0).sum(), surplus.to(margins)).double()
        count = sample_count(constraint)
        if not count:
            return torch.zeros((), dtype=torch.float64, device=margins.device)
        failed = fails.reshape(count, -1).any(1).sum()
        return (failed - self.allowed[index]).clamp(min=0).double() / count

    def _loss(self, predict: Predict) -> Tensor:
        total = sum(len(labels) for _, labels in self.data)
        found = torch.zeros((), dtype=torch.float64)
        for inputs, labels in self.data:
            outputs = predict(inputs)
            own = labels.to(outputs.device)
            loss = torch.nn.functional.cross_entropy(outputs, own, reduction="sum").double()
            found = found.to(loss.device) + loss / total
        return found


def _missed(rows: tuple[Any, Array, Array], places: Array) -> Array:
    """By how much places ``(K, n)`` violate rows on the change, all rows together, beyond rounding."""
    matrix, lower, upper = rows
    values = np.asarray((matrix @ places.T).T)
    room = 1e-6 * (1 + np.minimum(np.abs(lower), np.abs(upper)))
    found = np.maximum(0.0, np.maximum(lower - values, values - upper))
    return np.where(found > room, found, 0.0).sum(1)


def _once(predict: Predict) -> Callable[[Tensor], Tensor]:
    """The same function, which runs each set of inputs once; what else it carries goes along."""
    known: dict[tuple[object, ...], Tensor] = {}

    class Once:
        def __call__(self, inputs: Tensor) -> Tensor:
            key = identity(inputs)
            if key not in known:
                known[key] = predict(inputs)
            return known[key]

        def __getattr__(self, name: str) -> Any:
            return getattr(predict, name)

    return Once()
