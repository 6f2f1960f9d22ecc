"""The cases of ``frontier.py``: bounds on a network, its data, and what is measured on the other half."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache
from typing import Any

import torch
from protocol import AGE, FAVORABLE, RACE, SEX, Half, Task, measure, tasks
from torch import Tensor, nn

from repairopt import Bound, GroupGap, GroupOffsets, Inputs, OddsGap

Predictor = Callable[[Tensor], Tensor]  # rows (N, d) -> outputs (N, 2)
CONFIDENCE = 0.95
PARITY = "parity"
FAR = 2.0  # deviations of the real rows, by which the mean of drawn inputs is off in a column


@dataclass(frozen=True, eq=False)
class Case:
    """What is bounded on which network.

    Attributes:
        name: For example ``"gender, parity"``.
        task: Network and data; its ``guard`` says that the recall of the rare class must not fall.
        kind: ``"sampled"``: the gap on the published sample sets is bounded; ``"parity"``: the gap on real rows.
        targets: Bounds on it; where ``relative``, shares of the gap that the repair half has before.
        relative: See there.
        odds: Whether the equalized odds difference must not rise.
        confident: Whether the bound is to hold on new data with ``CONFIDENCE``.
        splits: Divisions of a full run.
        timed: Whether its bars ask for seconds.
    """

    name: str
    task: Task
    kind: str
    targets: tuple[float, ...]
    relative: bool = False
    odds: bool = False
    confident: bool = False
    splits: int = 10
    timed: bool = False

    @property
    def weights(self) -> list[Any]:
        """What a person would let change: the column of the protected input and the last two layers."""
        return [Inputs([self.task.column]), "fc5.*", "fc6.*"]

    def part(self, rows: Tensor, drawn: Tensor) -> Part:
        """The data of some rows and some drawn inputs."""
        half = self.task.part(rows, drawn)
        return Part(self, half, torch.tensor(self.task.observed_groups(half.rows)))

    def halves(self, split: int) -> tuple[Part, Part]:
        """Repair half and held-out half."""
        here, there = self.task.indices(split)
        return self.part(*here), self.part(*there)

    @cached_property
    def everything(self) -> Part:
        """Both halves together."""
        drawn = len(self.task.drawn[0]) if self.task.drawn else 0
        return self.part(torch.arange(len(self.task.rows)), torch.arange(drawn))

    def divided(self, split: int, seed: int) -> tuple[Part, Part]:
        """Three quarters of the repair half to fit on, and the last quarter to choose on."""
        draw = torch.Generator().manual_seed(seed)
        mixed = [part[torch.randperm(len(part), generator=draw)] for part in self.task.indices(split)[0]]
        cut = [3 * len(part) // 4 for part in mixed]
        fit = self.part(*(part[:end] for part, end in zip(mixed, cut, strict=True)))
        return fit, self.part(*(part[end:] for part, end in zip(mixed, cut, strict=True)))


@dataclass(frozen=True, eq=False)
class FavorableRate:
    """Mean over the groups of a gap of their favorable rates: a property of a user's own."""

    gap: GroupGap
    target: float
    name: str = "favorable rate"

    def value(self, predict: Predictor) -> Tensor:
        """By count."""
        return self.gap.rates(predict)[:, FAVORABLE].mean()

    def soft_value(self, predict: Predictor) -> Tensor:
        """By probabilities."""
        return self.gap.rates(predict, soft=True)[:, FAVORABLE].mean()


@dataclass(frozen=True, eq=False)
class Part:
    """Rows of a case.

    Attributes:
        case: The case.
        half: Rows, labels and gaps.
        groups: Group of each row, ``(N,)``.
    """

    case: Case
    half: Half
    groups: Tensor

    @cached_property
    def odds(self) -> OddsGap | None:
        """The equalized odds difference of two groups; of more, some have too few rows of the rare class."""
        if self.case.task.column != SEX:
            return None
        options: Any = {"sensitive_features": self.groups.tolist(), "favorable": FAVORABLE, "name": "odds gap"}
        return OddsGap.observed(self.rows, self.labels, **options)

    @property
    def distances(self) -> Tensor:
        """How far the drawn inputs lie from the real rows in each column, in standard deviations of the rows."""
        real, drawn = self.rows.float(), self.half.goal.samples.inputs.float()
        return ((drawn.mean(0) - real.mean(0)).abs() / real.std(0)).nan_to_num(0.0)

    @property
    def far_weights(self) -> list[Any]:
        """The chosen weights with the columns in which the drawn inputs lie far from the real rows."""
        columns = {self.case.task.column, *(self.distances > FAR).nonzero()[:, 0].tolist()}
        return [Inputs(sorted(columns)), *self.case.weights[1:]]

    @property
    def farthest_weights(self) -> list[Any]:
        """The weights of the one column in which the drawn inputs lie farthest from the real rows."""
        return [Inputs([int(self.distances.argmax())])]

    @property
    def with_offsets(self) -> GroupOffsets:
        """The network with offsets for each value of the protected input."""
        return GroupOffsets(self.case.task.network, self.rows, self.case.task.column)

    @property
    def rows(self) -> Tensor:
        """Real rows, ``(N, d)``."""
        return self.half.rows

    @property
    def labels(self) -> Tensor:
        """Their classes, ``(N,)``."""
        return self.half.labels

    @property
    def gap(self) -> GroupGap:
        """The gap that the case bounds."""
        return self.half.observed if self.case.kind == PARITY else self.half.goal

    def gap_of(self, network: Predictor) -> float:
        """The bounded gap by count."""
        with torch.no_grad():
            return float(self.gap.value(network))

    def target(self, typed: float) -> float:
        """The bound on the gap."""
        return typed * self.gap_of(self.case.task.network) if self.case.relative else typed

    def goal(self, typed: float) -> GroupGap:
        """The bounded gap with its target."""
        return replace(self.gap, target=self.target(typed), name="gap")

    def bounds(self, *, typed: bool = False) -> list[Bound]:
        """What must not get worse; ``typed``: than on all rows, a number, where it is else the value on this part."""
        found: list[Bound] = []
        if self.case.odds:
            assert self.odds is not None
            limit = self.case.everything.before["odds"] if typed else None
            found.append(Bound(self.odds, limit=limit, name="odds"))
        if self.case.task.guard:
            found.append(self.half.recall(buffer=0.0))
        return found

    def favorable(self, rate: float) -> Bound:
        """The favorable rate, mean over the groups of the gap, is at most so much."""
        return Bound(FavorableRate(self.gap, rate), limit=rate, name="favorable rate")

    def measured(self, network: Predictor | nn.Module) -> dict[str, float]:
        """What counts, by count."""
        found = measure(network, self.half)  # type: ignore[arg-type]
        recall = found["recall of the rare class"]
        kept = {"accuracy": found["accuracy"], "recall": recall, "favorable rate": found["favorable rate"]}
        sampled = {} if self.case.task.make_goal is not None else {"sampled": found["gap"]}
        gaps = {"gap": self.gap_of(network), "parity": found["observed gap"]}
        if self.odds is not None:
            with torch.no_grad():
                gaps["odds"] = float(self.odds.value(network))
        return gaps | sampled | kept

    @cached_property
    def before(self) -> dict[str, float]:
        """The same of the original network."""
        return self.measured(self.case.task.network)


@lru_cache(maxsize=2)
def cases(every: int = 1) -> dict[str, Case]:
    """All cases, by name; on each ``every``-th row and drawn input."""
    known = {name: task.thinned(every) for name, task in tasks().items()}
    gender, bank = known["M1 gender"], known["M2 age"]
    found = [
        Case("gender, sampled", gender, "sampled", (0.07, 0.02, 0.01), timed=True),
        Case("gender, parity", gender, PARITY, (0.10, 0.05, 0.03)),
        Case("gender, parity and odds", gender, PARITY, (0.05,), odds=True),
        Case("race, parity", known["M1 race, observed"], PARITY, (0.5,), relative=True),
        Case("age bands, parity", known["M1 age, observed"], PARITY, (0.5,), relative=True),
        Case("bank age, sampled", bank, "sampled", (0.012,)),
        Case("gender, sampled, 95 %", gender, "sampled", (0.02,), confident=True, splits=20),
        Case("gender, parity, 95 %", gender, PARITY, (0.05,), confident=True, splits=20),
    ]
    assert {SEX, RACE, AGE} == {case.task.column for case in found}
    return {case.name: case for case in found}
