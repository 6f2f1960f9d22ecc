"""Buffers that make typed bounds hold on new data, set by cross-validation.

The repair is run on all rows with buffers of the size of the sampling error, and on all but each fold in turn. The
answers of the network that has not seen a row give every bound a value and an interval as on new data, with all rows
counted. Where the upper end lies above the typed bound, the buffer grows by as much and the runs go on from where they
were; that of the goal only where no bound is missed.

With many weights a count of wrong points can be driven down point by point, each right by a hair, which says nothing of
new points (measured: 2 flips among the kept images, 1 % among others). There the buffer is a lead in logits that points
need to count as right, and it is the lead that grows.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from repairopt.evaluate import Engine
from repairopt.intervals import normal_quantile
from repairopt.judge import Stop
from repairopt.linearize import Array
from repairopt.methods.subtask import task_on
from repairopt.methods.task import Outcome, Task
from repairopt.validity.claims import Claim, make_claim
from repairopt.validity.rows import Folds

from .limits import Limit
from .points import Surroundings

ROUNDS = 4  # of enlarging buffers
MOST = 0.9  # share of a bound that its buffer may take
EXCESS = 1.1  # of what is lacking, by which a buffer grows
MORE_LEAD, MOST_LEAD = 2.0, 4.0  # factor by which a lead grows, and its largest size over the first
FLOOR = 1e-3  # of a bound, that what it lacks is compared with
TINY = 1e-6
SIZED = 0.9  # confidence of the interval whose width tells a sampling error

Sizes = dict[str, float]  # by name of a limit
MakeSurroundings = Callable[[Task, Sizes, Sizes], Surroundings]
Minimize = Callable[[Task, Surroundings, Array | None], Outcome]


@dataclass(frozen=True, eq=False)
class Validated:
    """The outcome of a repair with buffers from cross-validation.

    Attributes:
        outcome: Of the run on all rows.
        buffers: By name of the goal and the bounds.
        margins: Leads in logits, by name of those that ask for one.
        claims: About new data, from rows that the network that answers them has not seen.
    """

    outcome: Outcome
    buffers: Sizes
    margins: Sizes
    claims: tuple[Claim, ...]

    def lacks(self, task: Task, limits: Sequence[Limit]) -> tuple[float, float]:
        """By which share bounds are missed on new data, all together, and the goal."""
        shares = [
            max(0.0, _lacking(task, limit, claim)) / max(FLOOR, abs(limit.limit))
            for limit, claim in zip(limits, self.claims, strict=True)
        ]
        goal = [limit.name == task.goal.name for limit in limits]
        return (
            sum(share for share, own in zip(shares, goal, strict=True) if not own),
            sum(share for share, own in zip(shares, goal, strict=True) if own),
        )


class Stitched:
    """Answers each row by the network that was repaired without its fold.

    Args:
        engine: The network.
        folds: The division.
        deltas: Weight change of each fold's network.
    """

    def __init__(self, engine: Engine, folds: Folds, deltas: Sequence[Array]) -> None:
        self.engine, self.folds = engine, folds
        self.deltas = [engine.as_delta(delta) for delta in deltas]

    def __call__(self, inputs: Tensor) -> Tensor:
        """Outputs ``(N, k)``."""
        fold = self.folds.of(inputs).to(self.engine.device)
        found = self.engine.known_outputs(inputs, self.deltas[0]).clone()
        for k, delta in enumerate(self.deltas[1:], start=1):
            own = fold == k
            found[own] = self.engine.known_outputs(inputs, delta)[own]
        return found


def run_confidently(
    task: Task, make: MakeSurroundings, minimize: Minimize, *, confidence: float, folds: int, leads: Sizes
) -> Validated | None:
    """Repair so that each bound is met on new data with a confidence.

    Args:
        task: The repair.
        make: From a task, buffers and margins to limits and objective.
        minimize: From a task, its surroundings and a start to an outcome.
        confidence: One-sided.
        folds: Number of folds.
        leads: First leads in logits, of those that get one.

    Returns:
        The outcome of the round that misses least on new data, bounds first; None where no bound tells its sampling
        error, or a fold would lack rows.
    """
    around = make(task, {}, {})
    open_limits = [limit for limit in around.limits if _is_statistical(limit.property)]
    division = Folds(folds, task.seed)
    parts = [task_on(task, lambda x, k=k: division.outside(k, x)) for k in range(folds)]  # type: ignore[misc]
    if not open_limits or any(part is None for part in parts):
        return None
    buffers = {limit.name: _first_buffer(task, limit, confidence) for limit in open_limits}
    names = {limit.name for limit in open_limits}
    margins = {name: lead for name, lead in leads.items() if lead and name in names}
    most_leads = {name: MOST_LEAD * lead for name, lead in margins.items()}
    tasks: list[Task] = [task, *(part for part in parts if part is not None)]
    starts: list[Array | None] = [None] * len(tasks)
    best: Validated | None = None
    for _ in range(ROUNDS):
        outcomes = []
        for k, part in enumerate(tasks):
            try:
                outcomes.append(minimize(part, make(part, buffers, margins), starts[k]))
            except Stop:
                if best is not None:
                    return best
                raise
        stitched = Stitched(task.engine, division, [outcome.delta for outcome in outcomes[1:]])
        claims = _claims(open_limits, stitched, confidence)
        found = Validated(outcomes[0], dict(buffers), dict(margins), claims)
        if best is None or found.lacks(task, open_limits) <= best.lacks(task, open_limits):
            best = found
        if not _enlarge(task, buffers, margins, most_leads, open_limits, claims):
            break
        starts = [outcome.delta for outcome in outcomes]
    return best


def _claims(limits: Sequence[Limit], predict: Any, confidence: float) -> tuple[Claim, ...]:
    found = []
    for limit in limits:
        options: Any = {"confidence": confidence, "source": "cross-validation"}
        claim = make_claim(limit.name, limit.property, limit.limit, predict, **options)
        assert claim is not None
        found.append(claim)
    return tuple(found)


def _enlarge(
    task: Task, buffers: Sizes, margins: Sizes, most_leads: Sizes, limits: Sequence[Limit], claims: Sequence[Claim]
) -> bool:
    """Add to the buffers, or the leads, what is lacking; whether anything was added."""
    lacking = {limit.name: _lacking(task, limit, claim) for limit, claim in zip(limits, claims, strict=True)}
    bounds_lack = any(lack > TINY for name, lack in lacking.items() if name != task.goal.name)
    grown = False
    for limit in limits:
        name = limit.name
        if lacking[name] <= TINY or (bounds_lack and name == task.goal.name):
            continue
        if name in margins:
            larger = min(most_leads[name], MORE_LEAD * margins[name])
            grown, margins[name] = grown or larger > margins[name], larger
            continue
        most = MOST * limit.limit if limit.limit > 0 else np.inf
        larger = min(most, buffers[name] + EXCESS * lacking[name])
        if larger > buffers[name] + TINY:
            buffers[name], grown = larger, True
    return grown


def _lacking(task: Task, limit: Limit, claim: Claim) -> float:
    """By how much the upper end of an interval lies above the typed bound, as wide as it will be when measured."""
    reach = claim.interval.high - claim.interval.value
    return claim.interval.value + reach * _widening(task, limit) - limit.limit


def _first_buffer(task: Task, limit: Limit, confidence: float) -> float:
    """As many sampling errors as the confidence asks for; of a rate those at the bound, not at the original's value."""
    prop: Any = limit.property
    with torch.no_grad():
        interval = prop.interval(task.engine.predict(), SIZED)
    error = interval.error
    if limit.takes_margin and 0 < limit.limit < 1:
        error = float(np.sqrt(limit.limit * (1 - limit.limit) / interval.count))
    size = normal_quantile(confidence) * error * _widening(task, limit)
    return float(min(size, MOST * limit.limit) if limit.limit > 0 else size)


def _widening(task: Task, limit: Limit) -> float:
    """How much wider an interval is for a sample of the size on which the bound will be measured."""
    count = task.new_counts.get(limit.name)
    if not count:
        return 1.0
    prop: Any = limit.property
    own = prop.interval(task.engine.predict(), SIZED).count
    return float(np.sqrt(1.0 + own / count))


def _is_statistical(prop: Any) -> bool:
    return hasattr(prop, "interval") and hasattr(prop, "where") and bool(getattr(prop, "statistical", True))
