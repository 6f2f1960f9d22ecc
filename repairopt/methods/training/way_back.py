"""How far to go from the original towards a proposal: as far as bounds hold on rows that the proposal has not seen."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from repairopt.errors import SpecificationError
from repairopt.methods.task import Array, Task
from repairopt.network import Predict, identity
from repairopt.specify import (
    Folds,
    PropertyBound,
    goal_value,
    inputs_of,
    labels_of,
    restricted,
    stands_for_population,
    tied_sets,
)
from repairopt.verify import Claim, for_delivered, make_claim

from .sides import Sides

LEAST_ROWS = 40  # of a bound, below which nothing is divided
SPAN = 0.14  # of the way, at least, over which a shadow price is a mean: a shorter one may flip a single row


class Unseen:
    """For each row the outputs of the network that was trained without it, at one share of the way."""

    def __init__(self, task: Task, folds: Folds, changes: Sequence[Array], way: float) -> None:
        self.folds = folds
        self.networks = [task.engine.predict(way * change) for change in changes]
        self.known: dict[tuple[object, ...], tuple[Tensor, Tensor]] = {}

    def __call__(self, inputs: Tensor) -> Tensor:
        """Outputs ``(N, k)``."""
        key = identity(inputs)
        if key not in self.known:
            fold, outputs = self.folds.of(inputs).to(inputs.device), None
            for k, network in enumerate(self.networks):
                mask = fold == k
                if not bool(mask.any()):
                    continue
                found = network(inputs[mask])
                outputs = found.new_zeros(len(inputs), found.shape[1]) if outputs is None else outputs
                outputs[mask] = found
            assert outputs is not None
            self.known[key] = (inputs, outputs)
        return self.known[key][1]


@dataclass(frozen=True, eq=False)
class Way:
    """How far to go, and from what that is known.

    Attributes:
        share: Share of the way from the original to the proposal, 0 to 1.
        bounds: The bounds that decided; empty where none stands for new data.
        unseen: Outputs of the networks that were trained without a part of the rows each, at that share.
        changes: Their proposals, ``(n,)`` each.
        folds: Which rows each had not seen.
        prices: Shadow price of each bound: decrease of the loss per unit by which it is relaxed, around here on the
            way to the proposal, on unseen rows; 0 of bounds that allow to go on.
    """

    share: float
    bounds: tuple[Any, ...] = ()
    unseen: Unseen | None = None
    changes: tuple[Array, ...] = ()
    folds: Folds | None = None
    prices: dict[str, float] = field(default_factory=dict)

    def claims(self, task: Task, change: Array, confidence: float) -> tuple[Claim, ...]:
        """Claims about the network at a change ``(n,)``, the one that is delivered."""
        if self.unseen is None or self.folds is None:
            return ()
        found, delivered = [], task.engine.predict(change)
        for bound in self.bounds:
            claim = _claimed(task, bound, self.unseen, confidence)
            if claim is not None:
                networks = enumerate(self.unseen.networks)
                seen = [goal_value(_outside(self.folds, k, bound.property), network) for k, network in networks]
                optimism = claim.interval.value - float(np.mean(seen))
                found.append(for_delivered(claim, bound.property, delivered, self.unseen, optimism))
        return tuple(found)


def find_way(
    task: Task,
    sides: Sides,
    propose: Callable[[Sides], Array],
    *,
    ways: Sequence[float],
    folds: int,
    confidence: float | None,
    keep: float,
) -> Way:
    """The largest share of the way at which all bounds hold on rows that were not trained on.

    Shares are tested from the smallest on, up to the first at which a bound is not shown (fixed-sequence testing): the
    last that is shown is so with the confidence asked for, whatever the number of tests. Sets with the same labels in
    the same order are taken for versions of the same samples, which are left out together.

    Args:
        task: The repair.
        sides: What is trained on.
        propose: From such sides to a weight change ``(n,)``.
        ways: Shares to test.
        folds: Parts of the rows; each is left out once.
        confidence: Confidence that each bound holds on new rows; None or up to one half for its value alone.
        keep: Weight of the rows to keep in the loss, for prices.

    References:
        Angelopoulos, Bates, Candès, Jordan and Lei, Learn then Test, 2021 (fixed-sequence testing).
    """
    bounds: tuple[Any, ...] = tuple(c for c in task.constraints if _stands(c))
    if not bounds or any(_count(c.property) < LEAST_ROWS for c in bounds):
        return Way(max(ways))
    pairs = [pair for pair in (*sides.kept, *sides.failing, *map(labels_of, (c.property for c in bounds))) if pair]
    division = Folds(folds, task.seed, tied_sets(pairs))
    try:
        changes = tuple(propose(sides.where(partial(division.outside, k))) for k in range(folds))
    except SpecificationError:  # a part lacks a class or a group
        return Way(max(ways))
    found = Way(min(ways), bounds, Unseen(task, division, changes, min(ways)), changes, division)  # also if not shown
    for way in sorted(ways):
        task.judge.check_time()
        unseen = Unseen(task, division, changes, way)
        with torch.no_grad():
            refused = [bound for bound in bounds if not _holds(task, bound, unseen, confidence)]
            if refused:
                back = max((share for share in ways if share <= way - SPAN), default=0.0)
                here = Unseen(task, division, changes, back)
                return replace(found, prices=_prices(bounds, refused, sides, keep, here, unseen))
        found = Way(way, bounds, unseen, changes, division, dict.fromkeys((b.name for b in bounds), 0.0))
    return found


def _prices(
    bounds: Sequence[Any], refused: Sequence[Any], sides: Sides, keep: float, here: Predict, there: Predict
) -> dict[str, float]:
    """What the loss falls by per unit of each bound, from a share before the first one that is not shown to that."""
    prices = {bound.name: 0.0 for bound in bounds}
    gain = _loss(sides, keep, here) - _loss(sides, keep, there)
    for bound in refused:
        rise = goal_value(bound.property, there) - goal_value(bound.property, here)
        prices[bound.name] = max(0.0, gain / rise) if rise > 0 else 0.0
    return prices


def _loss(sides: Sides, keep: float, predict: Predict) -> float:
    """Mean cross-entropy of the rows that fail, plus ``keep`` times that of those to keep."""
    total = 0.0
    for pairs, weight in ((sides.failing, 1.0), (sides.kept, keep)):
        sums = [float(F.cross_entropy(predict(x), y.to(predict(x).device), reduction="sum")) for x, y in pairs]
        total += weight * sum(sums) / max(1, sum(len(y) for _, y in pairs))
    return total


def _count(prop: Any) -> int:
    inputs = inputs_of(prop)
    return 0 if inputs is None else len(inputs)


def _outside(folds: Folds, fold: int, prop: Any) -> Any:
    """A property on the rows that are not in a fold."""
    return restricted(prop, partial(folds.outside, fold))


def _stands(constraint: Any) -> bool:
    """Whether a bound is a statistic of rows that stand for others."""
    known = isinstance(constraint, PropertyBound) and constraint.limit is not None
    return known and stands_for_population(constraint.property) and inputs_of(constraint.property) is not None


def _claimed(task: Task, bound: Any, unseen: Predict, confidence: float) -> Claim | None:
    """What the networks of the folds say of a bound; None where it has no interval."""
    original = task.engine.predict() if bound.relative else None
    known: Any = {"confidence": confidence, "source": "cross-validation", "original": original}
    return make_claim(bound.name, bound.property, float(bound.limit), unseen, **known)


def _holds(task: Task, bound: Any, unseen: Predict, confidence: float | None) -> bool:
    shown = None if confidence is None or confidence <= 0.5 else _claimed(task, bound, unseen, confidence)
    return bool(goal_value(bound.property, unseen) <= bound.limit) if shown is None else shown.met
