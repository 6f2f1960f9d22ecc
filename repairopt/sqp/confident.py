"""Buffers that make typed bounds hold on new data, set by cross-validation.

The repair is run on all rows with buffers of the size of the sampling error, and on all but each fold in turn. The
answers of the network that has not seen a row give every bound a value and an interval as on new data, with all rows
counted. Where the upper end lies above the typed bound, the buffer grows by as much and the runs go on from where they
were.
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

MakeSurroundings = Callable[[Task, dict[str, float]], Surroundings]
Minimize = Callable[[Task, Surroundings, Array | None], Outcome]


@dataclass(frozen=True, eq=False)
class Validated:
    """The outcome of a repair with buffers from cross-validation.

    Attributes:
        outcome: Of the run on all rows.
        buffers: By name of the goal and the bounds.
        claims: About new data, from rows that the network that answers them has not seen.
    """

    outcome: Outcome
    buffers: dict[str, float]
    claims: tuple[Claim, ...]


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
    task: Task, make: MakeSurroundings, minimize: Minimize, *, confidence: float, folds: int
) -> Validated | None:
    """Repair so that each bound is met on new data with a confidence.

    Args:
        task: The repair.
        make: From a task and buffers to limits and objective.
        minimize: From a task, its surroundings and a start to an outcome.
        confidence: One-sided.
        folds: Number of folds.

    Returns:
        The outcome; None where no bound tells its sampling error, or a fold would lack rows.
    """
    around = make(task, {})
    open_limits = [limit for limit in around.limits if _is_statistical(limit.property)]
    division = Folds(folds, task.seed)
    parts = [task_on(task, lambda x, k=k: division.outside(k, x)) for k in range(folds)]  # type: ignore[misc]
    if not open_limits or any(part is None for part in parts):
        return None
    buffers = {limit.name: _first_buffer(task, limit, confidence) for limit in open_limits}
    tasks: list[Task] = [task, *(part for part in parts if part is not None)]
    starts: list[Array | None] = [None] * len(tasks)
    found: Validated | None = None
    for _ in range(ROUNDS):
        outcomes = []
        for k, part in enumerate(tasks):
            try:
                outcomes.append(minimize(part, make(part, buffers), starts[k]))
            except Stop:
                if found is not None:
                    return found
                raise
        stitched = Stitched(task.engine, division, [outcome.delta for outcome in outcomes[1:]])
        claims = _claims(open_limits, stitched, confidence)
        found = Validated(outcomes[0], dict(buffers), claims)
        if not _enlarge(task, buffers, open_limits, claims, confidence):
            return found
        starts = [outcome.delta for outcome in outcomes]
    return found


def _claims(limits: Sequence[Limit], predict: Any, confidence: float) -> tuple[Claim, ...]:
    found = []
    for limit in limits:
        options: Any = {"confidence": confidence, "source": "cross-validation"}
        claim = make_claim(limit.name, limit.property, limit.limit, predict, **options)
        assert claim is not None
        found.append(claim)
    return tuple(found)


def _enlarge(
    task: Task, buffers: dict[str, float], limits: Sequence[Limit], claims: Sequence[Claim], confidence: float
) -> bool:
    """Add to the buffers what is lacking; whether anything was added."""
    grown = False
    for limit, claim in zip(limits, claims, strict=True):
        reach = claim.interval.high - claim.interval.value
        lacking = claim.interval.value + reach * _widening(task, limit) - limit.limit
        most = MOST * limit.limit if limit.limit > 0 else np.inf
        larger = min(most, buffers[limit.name] + EXCESS * lacking)
        if lacking > 1e-6 and larger > buffers[limit.name] + 1e-6:
            buffers[limit.name], grown = larger, True
    return grown


def _first_buffer(task: Task, limit: Limit, confidence: float) -> float:
    """As many sampling errors as the confidence asks for."""
    prop: Any = limit.property
    with torch.no_grad():
        error = prop.interval(task.engine.predict(), 2.0 * confidence - 1.0).error
    size = normal_quantile(confidence) * error * _widening(task, limit)
    return float(min(size, MOST * limit.limit) if limit.limit > 0 else size)


def _widening(task: Task, limit: Limit) -> float:
    """How much wider an interval is for a sample of the size on which the bound will be measured."""
    count = task.new_counts.get(limit.name)
    if not count:
        return 1.0
    prop: Any = limit.property
    own = prop.interval(task.engine.predict(), 0.9).count
    return float(np.sqrt(1.0 + own / count))


def _is_statistical(prop: Any) -> bool:
    return hasattr(prop, "interval") and hasattr(prop, "where") and bool(getattr(prop, "statistical", True))
