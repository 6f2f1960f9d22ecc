"""OffsetsByGroup: numbers added to the outputs of each group, found by another method; no weight changes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch

from repairopt.localize import Location, Wrapped
from repairopt.methods.method import Method, uses
from repairopt.methods.outcome import Outcome
from repairopt.methods.registry import find_method
from repairopt.methods.subtask import run_with
from repairopt.methods.task import Task
from repairopt.network import Array, Engine
from repairopt.verify import Judge

from .group_columns import with_offsets
from .group_offsets import GroupOffsets


@dataclass(frozen=True, kw_only=True)
class OffsetsByGroup:
    """Offsets for each group and output, found by a method that changes weights; the network itself stays as it is.

    Under the same goal and bounds this is the method ``of`` on :class:`GroupOffsets` with ``weights="offsets"``; the
    candidate is a network that is wrapped. The network must read the group.

    Attributes:
        of: A method that changes weights, by name or as an instance.
        column: Input column that tells the group, by position, or several one-hot ones; None to find those of the
            groups that the goal, or a bound, compares.
        values: As for :class:`GroupOffsets`.
        cuts: As there.

    References:
        Hardt, Price and Srebro, Equality of Opportunity in Supervised Learning, NeurIPS 2016.
    """

    of: str | Method = "sqp"
    column: int | Sequence[int] | None = None
    values: Sequence[Any] | None = None
    cuts: Sequence[float] | None = None

    @property
    def uses(self) -> frozenset[str]:
        """What the method ``of`` uses, without weights and a start."""
        return uses(find_method(self.of)) - {"weights", "start"}

    def run(self, task: Task) -> Outcome:
        """Solve for the offsets; whatever ends it, the best ones so far are known to the repair."""
        module, read = with_offsets(task, self)
        everything = {"offsets": torch.arange(module.offsets.numel())}
        engine = Engine(module, everything, memory_limit=task.engine.memory_limit)
        spec = replace(task.spec, constraints=task.constraints)
        judge = Judge(engine, spec, task.judge.deadline)
        method = find_method(self.of)
        options: Any = {"start": None, "checkpoint": None, "location": Location(everything)}
        inner = replace(task, engine=engine, spec=spec, judge=judge, **options)
        try:
            outcome = run_with(inner, method)
        finally:
            if judge.best is not judge.original:
                best = _wrapped(module, read, engine, judge.best.delta)
                task.judge.remember(replace(judge.best, candidate=best))
        candidate = _wrapped(module, read, engine, outcome.delta)
        return replace(outcome, candidate=candidate, surrogate=None, linearization=None, step=None)


def _wrapped(module: GroupOffsets, read: dict[str, Any], engine: Engine, delta: Array) -> Wrapped:
    settings, tensors = module.parts()
    offsets = engine.weights(engine.as_delta(np.asarray(delta)))["offsets"]
    return Wrapped("group_offsets", {**settings, **read}, {**tensors, "offsets": offsets.detach()})
