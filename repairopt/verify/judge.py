"""Judge candidates while a repair runs: by the true network on the repair data, never the surrogate."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from repairopt import specify
from repairopt.network import Candidate, Engine, Remembering, Stop, identity, limited, network_of

Array = npt.NDArray[np.float64]
LEAST_SECONDS = 1e-3  # of a solve that begins in time


@dataclass(frozen=True, eq=False)
class Round:
    """One solve and what became of it.

    Attributes:
        step: What was done, in words.
        status: Status of the solve.
        rows: Rows in the program.
        variables: Variables in the program, slacks included.
        solver: The back end.
        seconds: Wall time of the solve.
        message: What the back end said, in its own words, and what the recheck found.
        log: What the native library printed, where the back end is verbose.
        goal: The goal on the true network afterwards, or NaN.
        broken: Failing samples beyond what is allowed, on the true network, or -1.
        accepted: Whether the point was kept.
        note: Anything worth knowing.
        violation: Largest violation of a row or bound, recomputed; NaN without a solution.
    """

    step: str
    status: str
    rows: int = 0
    variables: int = 0
    solver: str = ""
    seconds: float = 0.0
    message: str = ""
    log: str = ""
    goal: float = float("nan")
    broken: int = -1
    accepted: bool = True
    note: str = ""
    violation: float = float("nan")


@dataclass(frozen=True, eq=False)
class Judgement:
    """One candidate on the true network and the repair data.

    Attributes:
        candidate: A weight change ``(n,)``, or a candidate of another kind.
        goal: Value of the goal.
        excess: How far the goal is above its target; 0 where it is met.
        broken: For each constraint how many samples (or margins) fail; ``allowed`` is how many may.
        constant: Whether all inputs get one and the same label, though not all labels are that one.
        change_holds: Whether the constraints on the change itself hold.
        shortfall: Sum of what constraints without samples (bounds on properties) are missed by.
        error: Share of the labelled samples that are wrong, all sets together; 0 without labels.
        loss: Mean cross-entropy of the labelled samples; 0 without labels.
        count: Samples or margins that the constraints speak of, all together.
    """

    candidate: Candidate | Array
    goal: float
    excess: float
    broken: tuple[int, ...]
    allowed: tuple[int, ...]
    constant: bool = False
    change_holds: bool = True
    shortfall: float = 0.0
    error: float = 0.0
    loss: float = 0.0
    count: int = 0

    @property
    def delta(self) -> Array:
        """The weight change ``(n,)``; only weight changes have one."""
        assert isinstance(self.candidate, np.ndarray), "the candidate is no weight change"
        return self.candidate

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

    @property
    def breaks_rows(self) -> bool:
        """Whether constraints on rows are broken, and no bound on a property is."""
        return self.surplus > 0 and self.shortfall == 0

    def better_than(self, other: Judgement) -> bool:
        """Feasible first, then closer to the target, then fewer failing samples."""
        return self._rank() < other._rank()

    def _rank(self) -> tuple[Any, ...]:
        return (not self.feasible, self.surplus, self.constant, self.excess, sum(self.broken))


class Judge:
    """Judges candidates; keeps the best of those that it is told to keep.

    Judging alone changes nothing, so a method may explore without an effect on what is applied. ``original`` is the
    judgement of no change, ``best`` the best that was kept; after ``deadline``, a ``time.perf_counter()`` value,
    judging raises :class:`Stop`. The specification is anchored; ``required`` holds the smallest margin that the rows
    of each of its constraints on outputs ask for. ``same`` judges the same specification where other weights of the
    network may change; what it knows of the original holds here too.
    """

    def __init__(
        self,
        engine: Engine,
        spec: specify.Specification,
        deadline: float | None = None,
        same: Judge | None = None,
    ) -> None:
        self.engine, self.goal, self.constraints = engine, spec.goal, spec.on_outputs
        self.deadline: float | None = None  # the original is judged whatever the time
        self.change = [c.rows(engine.initial.double().cpu().numpy()) for c in spec.on_change]
        self._labelled = specify.labelled_data([*self.constraints, self.goal])
        if same is None:
            with limited(None):
                judged, margins = self._judged(np.zeros(engine.n))
            self.original = replace(judged, candidate=np.zeros(engine.n))  # zeros that are not written take no memory
            pairs = zip(self.constraints, margins, strict=True)
            self.required = tuple(specify.required_margins(c, m) for c, m in pairs)
        else:
            self.original, self.required = replace(same.original, candidate=np.zeros(engine.n)), same.required
        self.best = self.original
        self.deadline = deadline
        self.count = 0  # of candidates judged

    def keep(self, candidate: Candidate | Array) -> Judgement:
        """Judge a candidate that the repair may end with: it is remembered where it is the best so far."""
        return self.remember(self(candidate))

    def remember(self, judged: Judgement) -> Judgement:
        """Keep a judgement of the same goal and constraints, wherever it was made, if it is the best so far."""
        if judged.better_than(self.best):
            self.best = judged
        return judged

    def __call__(self, candidate: Candidate | Array) -> Judgement:
        """Judge one candidate: a weight change ``(n,)``, or a candidate of another kind."""
        self.check_time()
        self.count += 1
        return self._judged(candidate)[0]

    def _judged(self, candidate: Candidate | Array) -> tuple[Judgement, tuple[Array, ...]]:
        """The judgement of a candidate, and the margins of each constraint that it comes from."""
        predict = network_of(self.engine, candidate)
        if isinstance(candidate, np.ndarray):
            moved = candidate = np.array(candidate, dtype=np.float64)
        else:
            moved = candidate.moved(self.engine)
        goal = specify.goal_value(self.goal, predict)
        margins = specify.margins_at(predict, self.constraints)
        pairs = list(zip(self.constraints, margins, strict=True))
        missed = [np.maximum(0.0, -m).sum() for c, m in pairs if not isinstance(c, specify.SampleConstraint)]
        error, loss = self._label_losses(predict.outputs)
        judged = Judgement(
            candidate=candidate,
            goal=goal,
            excess=specify.beyond(goal, float(self.goal.target)),
            broken=tuple(specify.broken_samples(c, m) for c, m in pairs),
            allowed=tuple(specify.allowed_samples(c, m) for c, m in pairs),
            constant=is_constant(predict, self._labelled),
            change_holds=all(specify.holds_change(rows, moved) for rows in self.change),
            shortfall=float(sum(missed)),
            error=error,
            loss=loss,
            count=sum(len(m) for m in margins),
        )
        return judged, margins

    def _label_losses(self, outputs: dict[tuple[object, ...], Tensor]) -> tuple[float, float]:
        """Error rate and mean cross-entropy over all labelled samples."""
        wrong, loss, total = 0.0, 0.0, 0
        for pair in self._labelled:
            inputs, labels = pair
            found = outputs.get(identity(inputs))
            if found is not None:
                own = labels.to(found.device)
                wrong += specify.sum_by_weight(found.argmax(-1) != own, pair)
                loss += specify.loss_by_weight(found, own, pair)
                total += len(labels)
        return (wrong / total, loss / total) if total else (0.0, 0.0)

    def check_time(self) -> None:
        """Raise ``Stop`` once the deadline has passed."""
        if self.deadline is not None and time.perf_counter() > self.deadline:
            raise Stop("time limit")

    def time_left(self) -> float | None:
        """Seconds until the deadline, or None."""
        return None if self.deadline is None else max(0.0, self.deadline - time.perf_counter())

    def time_to_solve(self) -> float | None:
        """Seconds that a solve may take, above 0, or None; raises ``Stop`` once the deadline has passed."""
        self.check_time()
        left = self.time_left()
        return None if left is None else max(LEAST_SECONDS, left)

    def bisect(self, start: Array, end: Array, holds: Callable[[Judgement], bool], halvings: int) -> Judgement | None:
        """Last of some halvings from ``start`` to ``end`` at which ``holds``, which it does at ``start``, or None."""
        low, high, found = 0.0, 1.0, None
        for _ in range(halvings):
            middle = (low + high) / 2
            judged = self(start + middle * (end - start))
            if holds(judged):
                low, found = middle, judged
            else:
                high = middle
        return found


def is_constant(predict: Remembering, labelled: Sequence[tuple[Tensor, Tensor]]) -> bool:
    """Whether every input that was run got one and the same label, and that is not simply the right answer to all.

    In regression whether all got the same numbers.
    """
    if predict.regression:
        every = torch.cat(list(predict.outputs.values())) if predict.outputs else torch.zeros(0, 1)
        return len(every) > 1 and bool((every - every[0]).abs().max() <= 1e-6 * (1 + every[0].abs().max()))
    only = None
    for labels in (output.argmax(-1) for output in predict.outputs.values() if len(output)):
        only = int(labels[0]) if only is None else only
        if bool((labels != only).any()):
            return False
    wanted = {int(label) for _, labels in labelled for label in torch.unique(labels)}
    return only is not None and wanted != {only}
