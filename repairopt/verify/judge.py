"""Judge weight changes on the true network while a repair runs, and remember the best.

What counts is always the true network on the repair data, never the surrogate or the linearized rows.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from repairopt.network import Engine, Remembering, identity
from repairopt.specify import (
    ChangeConstraint,
    Constraint,
    Property,
    SampleConstraint,
    allowed_samples,
    broken_samples,
    goal_value,
    holds_change,
    labelled_data,
    margins_at,
)

Array = npt.NDArray[np.float64]


class Stop(Exception):
    """Ends a repair early, for example at its time limit; the best point so far is kept."""


@dataclass(frozen=True, eq=False)
class Judgement:
    """One weight change on the true network and the repair data.

    Attributes:
        delta: The change ``(n,)``.
        goal: Value of the goal.
        excess: How far the goal is above its target; 0 where it is met.
        broken: For each constraint how many samples (or margins) fail.
        allowed: For each constraint how many may.
        constant: Whether all inputs get one and the same label, though not all labels are that one.
        change_holds: Whether the constraints on the change itself hold.
        lack: By how much constraints without samples (bounds on properties) fail, all together.
        error: Share of the labelled samples that are wrong, all sets together; 0 without labels.
        loss: Mean cross-entropy of the labelled samples; 0 without labels.
        count: Samples or margins that the constraints speak of, all together.
    """

    delta: Array
    goal: float
    excess: float
    broken: tuple[int, ...]
    allowed: tuple[int, ...]
    constant: bool = False
    change_holds: bool = True
    lack: float = 0.0
    error: float = 0.0
    loss: float = 0.0
    count: int = 0

    @property
    def met(self) -> bool:
        """Whether the goal is at its target."""
        return self.excess <= 0

    @property
    def feasible(self) -> bool:
        """Whether every constraint holds and the network is not degenerate."""
        return self.change_holds and not self.constant and self.surplus == 0

    @property
    def surplus(self) -> int:
        """Failing samples beyond what is allowed, all constraints together."""
        return sum(max(0, b - a) for b, a in zip(self.broken, self.allowed, strict=True))

    def better_than(self, other: Judgement) -> bool:
        """Feasible first, then closer to the target, then fewer failing samples."""
        return self._rank() < other._rank()

    def _rank(self) -> tuple[Any, ...]:
        return (not self.feasible, self.surplus, self.constant, self.excess, sum(self.broken))


class Judge:
    """Judges changes and remembers the best.

    Args:
        engine: The network and the ``n`` weights.
        goal: The property.
        constraints: Constraints on outputs, anchored.
        change: Constraints on the change.
        deadline: ``time.perf_counter()`` value at which to stop, or None.
    """

    def __init__(
        self,
        engine: Engine,
        goal: Property,
        constraints: Sequence[Constraint],
        change: Sequence[ChangeConstraint] = (),
        deadline: float | None = None,
    ) -> None:
        self.engine, self.goal, self.constraints = engine, goal, tuple(constraints)
        self.deadline: float | None = None  # the original is judged whatever the time
        self.change = [c.rows(engine.initial.double().cpu().numpy()) for c in change]
        self._labelled = labelled_data([*constraints, goal])
        self.count = 0
        self.original = self(np.zeros(engine.n))
        self.best = self.original
        self.deadline = deadline

    def __call__(self, delta: Array) -> Judgement:
        """Judge one change, and remember it where it is the best so far.

        Raises:
            Stop: The deadline has passed.
        """
        self.check_time()
        self.count += 1
        predict = Remembering(self.engine, delta)
        goal = goal_value(self.goal, predict)
        margins = margins_at(predict, self.constraints)
        counted = [broken_samples(c, m) for c, m in zip(self.constraints, margins, strict=True)]
        error, loss = self._label_losses(predict.outputs)
        found = Judgement(
            delta=np.asarray(delta, dtype=np.float64).copy(),
            goal=goal,
            excess=max(0.0, goal - float(self.goal.target)),
            broken=tuple(counted),
            allowed=tuple(allowed_samples(c, m) for c, m in zip(self.constraints, margins, strict=True)),
            constant=is_constant(predict, self._labelled),
            change_holds=all(holds_change(rows, delta) for rows in self.change),
            lack=_lack(self.constraints, margins),
            error=error,
            loss=loss,
            count=sum(len(m) for m in margins),
        )
        if self.count == 1 or found.better_than(self.best):
            self.best = found
        return found

    def _label_losses(self, outputs: dict[tuple[object, ...], Tensor]) -> tuple[float, float]:
        """Error rate and mean cross-entropy over all labelled samples."""
        wrong, loss, total = 0, 0.0, 0
        for inputs, labels in self._labelled:
            found = outputs.get(identity(inputs))
            if found is not None:
                own = labels.to(found.device)
                wrong += int((found.argmax(-1) != own).sum())
                loss += float(torch.nn.functional.cross_entropy(found, own, reduction="sum"))
                total += len(labels)
        return (wrong / total, loss / total) if total else (0.0, 0.0)

    def check_time(self) -> None:
        """Raise ``Stop`` once the deadline has passed."""
        if self.deadline is not None and time.perf_counter() > self.deadline:
            raise Stop("time limit")

    def time_left(self) -> float | None:
        """Seconds until the deadline, or None."""
        return None if self.deadline is None else max(0.0, self.deadline - time.perf_counter())

    def halve(self, start: Array, end: Array, keep: Any, halvings: int) -> Judgement | None:
        """Bisect the segment from ``start`` towards ``end``; ``keep(judgement)`` holds at ``start``.

        Returns:
            The judgement of the last point at which ``keep`` held, or None if there was none beyond ``start``.
        """
        low, high, found = 0.0, 1.0, None
        for _ in range(halvings):
            middle = (low + high) / 2
            judged = self(start + middle * (end - start))
            if keep(judged):
                low, found = middle, judged
            else:
                high = middle
        return found


def _lack(constraints: Sequence[Any], margins: Sequence[Array]) -> float:
    """Sum of the negative margins of constraints that are not by sample."""
    pairs = zip(constraints, margins, strict=True)
    return float(sum(np.maximum(0.0, -m).sum() for c, m in pairs if not isinstance(c, SampleConstraint)))


def is_constant(predict: Remembering, labelled: Sequence[tuple[Tensor, Tensor]]) -> bool:
    """Whether every input that was run got one and the same label, and that is not simply the right answer to all."""
    only = None
    for labels in (output.argmax(-1) for output in predict.outputs.values() if len(output)):
        only = int(labels[0]) if only is None else only
        if bool((labels != only).any()):
            return False
    wanted = {int(label) for _, labels in labelled for label in torch.unique(labels)}
    return only is not None and wanted != {only}
