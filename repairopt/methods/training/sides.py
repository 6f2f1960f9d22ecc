"""What a repair of many weights learns from: labelled rows of two sides, and limits without labels."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from repairopt.methods.task import Task
from repairopt.specify import (
    Differentiable,
    PropertyBound,
    SignedParts,
    answers_only,
    labels_of,
    measured,
    restricted,
)

Pair = tuple[Tensor, Tensor]


@dataclass(frozen=True, eq=False)
class Sides:
    """What a repair of many weights learns from.

    Attributes:
        failing: Labelled rows of the goal.
        kept: Labelled rows of the constraints, and of the data whose loss is kept small.
        soft: Goal and bounds that have no labels of their own, each with its name and its limit.
    """

    failing: tuple[Pair, ...]
    kept: tuple[Pair, ...]
    soft: tuple[tuple[str, Any, float], ...]

    @classmethod
    def of(cls, task: Task) -> Sides:
        """The sides of a repair."""
        bounds = [c for c in task.constraints if isinstance(c, PropertyBound) and c.limit is not None]
        items = [(task.goal.name, task.goal, float(task.goal.target))]
        items += [(c.name, c.property, float(c.limit or 0.0)) for c in bounds]
        soft = tuple(item for item in items if not _by_label(item[1]) and isinstance(item[1], Differentiable))
        own = labels_of(task.goal) if _by_label(task.goal) else None
        failing = () if own is None else (own,)
        known = [labels_of(measured(c)) for c in task.constraints]
        kept: list[Pair] = []
        for pair in [*(pair for pair in known if pair is not None), *task.data]:
            if not any(_same(pair, other) for other in (*failing, *kept)):
                kept.append(pair)
        return cls(failing, tuple(kept), soft)

    @property
    def count(self) -> int:
        """Number of labelled rows of both sides."""
        return sum(len(y) for _, y in (*self.failing, *self.kept))

    def where(self, keep: Callable[[Tensor], Tensor]) -> Sides:
        """The same on the rows that ``keep`` chooses."""

        def part(pairs: tuple[Pair, ...]) -> tuple[Pair, ...]:
            masks = [keep(x) for x, _ in pairs]
            return tuple(
                (x[m.to(x.device)], y[m.to(y.device)]) for (x, y), m in zip(pairs, masks, strict=True) if m.any()
            )

        soft = tuple((name, restricted(item, keep), limit) for name, item, limit in self.soft)
        return replace(self, failing=part(self.failing), kept=part(self.kept), soft=soft)


def _by_label(item: Any) -> bool:
    """Whether an item is about right answers to labelled rows, which cross-entropy speaks of."""
    return labels_of(item) is not None and answers_only(item) and not isinstance(item, SignedParts)


def _same(first: Pair, second: Pair) -> bool:
    return first[0].shape == second[0].shape and (first[0] is second[0] or torch.equal(first[0], second[0]))
