"""The tasks of the AutoRIC paper: network, data halves, goal, located weights, and what is measured on a half."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import torch
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "examples"))

from real_networks import FeedForward, halves, load  # noqa: E402

from repairopt import Bound, GroupGap, KeepLabels, MissRate, Neurons, Strictest

FAVORABLE = 0  # in both data sets; also the rare class
DRAWN = 5_000  # inputs for each group, as many as half a published sample set
AGES = (3.2, 5.3, 7.0, 8.8)  # middles of the paper's bands 18-45, 46-60, 61-80, 81-95, divided by 10
AGE_BANDS = (4.5, 5.5)  # real rows: below 50, 50 to 59, 60 and above; the 27 rows above 80 are too few for a band
AGE, RACE, SEX = 0, 8, 9


@dataclass(frozen=True, eq=False)
class Half:
    """One half of the data of a task.

    Attributes:
        rows: Real rows ``(N, d)``.
        labels: Their classes ``(N,)``.
        goal: The gap that the task is about.
        observed: The gap on real rows.
        paired: Real rows with the protected column set to each value in turn, ``(q, N, d)``; for CARE's search.
    """

    rows: Tensor
    labels: Tensor
    goal: GroupGap
    observed: GroupGap
    paired: Tensor

    def keep(self, tolerance: float) -> KeepLabels:
        """Right answers stay right, but for so many as a share of all rows."""
        return KeepLabels(self.rows, self.labels, allowed=int(tolerance * len(self.rows) + 1e-9))

    def recall(self, buffer: float) -> Bound:
        """The recall of the rare class does not fall."""
        return Bound(MissRate(self.rows, self.labels, FAVORABLE, name="missed"), buffer=buffer)


@dataclass(frozen=True, eq=False)
class Task:
    """One row of the paper's tables.

    Attributes:
        name: For example ``"M1 gender"``.
        paper: Name of the paper's row.
        network: The published network.
        rows: Labelled rows, all of them.
        labels: Their classes.
        drawn: Published sample sets, one for each group; empty where the goal is made from the rows.
        make_goal: From rows and a target to the gap; None where the sample sets are published.
        observed_groups: From rows to the group of each, for the gap on real rows.
        column: The protected column.
        values: Its values for paired inputs.
        weights: The weights that the paper located.
        selection: The shares of Table 3.
        left: The target, as a share of the gap before.
        guard: Whether the recall of the rare class must not fall.
    """

    name: str
    paper: str
    network: nn.Module
    rows: Tensor
    labels: Tensor
    drawn: tuple[Tensor, ...]
    make_goal: Callable[[Tensor, float], GroupGap] | None
    observed_groups: Callable[[Tensor], list[int]]
    column: int
    values: tuple[float, ...]
    weights: Neurons
    selection: Strictest
    left: float
    guard: bool = False

    @cached_property
    def target(self) -> float:
        """The gap to reach: the share ``left`` of the gap on all data."""
        everything = torch.arange(len(self.rows)), torch.arange(len(self.drawn[0]) if self.drawn else 0)
        return self.left * gap_of(self.network, self._goal(*everything, 1.0))

    def thinned(self, every: int) -> Task:
        """The same of each ``every``-th row and published input."""
        drawn = tuple(group[::every] for group in self.drawn)
        return replace(self, rows=self.rows[::every], labels=self.labels[::every], drawn=drawn)

    def part(self, rows: Tensor, drawn: Tensor) -> Half:
        """The data of some rows and some drawn inputs."""
        x, y = self.rows[rows], self.labels[rows]
        goal = self._goal(rows, drawn, self.target)
        observed = GroupGap.observed(
            x,
            sensitive_features=self.observed_groups(x),
            favorable=FAVORABLE,
            score="difference",
            name="observed",
        )
        paired = torch.stack([x] * len(self.values))
        paired[:, :, self.column] = torch.tensor(self.values)[:, None]
        return Half(x, y, goal, observed, paired)

    def indices(self, split: int) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
        """Rows and drawn inputs of the repair half and of the held-out half."""
        here, there = halves(split, len(self.rows))
        drawn = halves(split, len(self.drawn[0])) if self.drawn else (torch.arange(0), torch.arange(0))
        return (here, drawn[0]), (there, drawn[1])

    def _goal(self, rows: Tensor, drawn: Tensor, target: float) -> GroupGap:
        if self.make_goal is not None:
            return self.make_goal(self.rows[rows], target)
        groups = [group[drawn] for group in self.drawn]
        return GroupGap.given(groups, favorable=FAVORABLE, target=target, score="difference", name="gap")


def gap_of(network: nn.Module, gap: GroupGap) -> float:
    """A gap by count."""
    with torch.no_grad():
        return float(gap.value(network))


def measure(network: nn.Module, half: Half) -> dict[str, float]:
    """What counts, on one half."""
    with torch.no_grad():
        predicted = network(half.rows).argmax(1)
        rates = half.goal.rates(network)[:, FAVORABLE]
        right = predicted == half.labels
        recalls = [float(right[half.labels == c].double().mean()) for c in (0, 1)]
        return {
            "gap": float(half.goal.value(network)),
            "observed gap": float(half.observed.value(network)),
            "accuracy": float(right.double().mean()),
            "balanced accuracy": sum(recalls) / 2,
            "recall of the rare class": recalls[FAVORABLE],
            "favorable rate": float((predicted == FAVORABLE).double().mean()),
            "constant": float(len(predicted.unique()) == 1),
            **{f"rate {group + 1}": float(rate) for group, rate in enumerate(rates)},
        }


def age_bands(rows: Tensor) -> list[int]:
    """Index of the age band of each row."""
    return torch.bucketize(rows[:, AGE].contiguous(), torch.tensor(AGE_BANDS)).tolist()


def races(rows: Tensor) -> list[int]:
    """White, Asian-Pac-Islander, Black, and the two small groups together."""
    return torch.tensor([0, 1, 3, 3, 2])[rows[:, RACE].long()].tolist()


def tasks() -> dict[str, Task]:
    """All tasks, by name."""
    census, bank = load("census.npz"), load("bank.npz")
    m1, m2 = FeedForward(load("census_m1.npz")), FeedForward(load("bank_m2.npz"))
    rows, labels = torch.tensor(census["test_x"]).float(), torch.tensor(census["test_y"]).long()

    def drawn(column: int, values: tuple[float, ...]) -> Callable[[Tensor, float], GroupGap]:
        options = {"favorable": FAVORABLE, "score": "difference", "name": "gap", "count": DRAWN}
        return lambda x, target: GroupGap.sampled(x, column, values, target=target, **options)

    def seen(groups: Callable[[Tensor], list[int]]) -> Callable[[Tensor, float], GroupGap]:
        return lambda x, target: GroupGap.observed(
            x,
            sensitive_features=groups(x),
            favorable=FAVORABLE,
            target=target,
            score="difference",
            name="gap",
        )

    by_sex = (lambda x: x[:, SEX].long().tolist(), SEX, (0.0, 1.0), Neurons("fc3", [6, 10, 11]), shares(0.20, 0.20))
    by_age = (age_bands, AGE, AGES, Neurons("fc3", [1, 6, 9]), shares(0.40, 0.10))
    by_race = (races, RACE, tuple(map(float, range(5))), Neurons("fc3", [2, 6, 9]), shares(0.60, 0.20))
    bank_age = (age_bands, AGE, AGES, Neurons("fc3", [6, 10, 11]), shares(0.04, 0.40))
    sets = tuple(torch.tensor(census[f"sample_{sex}_x"]) for sex in ("male", "female"))
    age_sets = tuple(torch.tensor(bank[f"sample_age{i}_x"]) for i in (1, 2, 3, 4))
    bank_rows, bank_labels = torch.tensor(bank["test_x"]).float(), torch.tensor(bank["test_y"]).long()
    found = [
        Task("M1 gender", "M1 gender", m1, rows, labels, sets, None, *by_sex, left=0.07 / 0.1352),
        Task("M1 age, sampled", "M1 age", m1, rows, labels, (), drawn(AGE, AGES), *by_age, left=0.0441 / 0.076),
        Task("M1 age, observed", "M1 age", m1, rows, labels, (), seen(age_bands), *by_age, left=0.0441 / 0.076),
        Task(
            "M1 race, sampled", "M1 race", m1, rows, labels, (), drawn(RACE, by_race[2]), *by_race, left=0.0299 / 0.076
        ),
        Task("M1 race, observed", "M1 race", m1, rows, labels, (), seen(races), *by_race, left=0.0299 / 0.076),
        Task("M2 age", "M2 age", m2, bank_rows, bank_labels, age_sets, None, *bank_age, left=0.4, guard=True),
    ]
    return {task.name: task for task in found}


def shares(positive: float, negative: float) -> Strictest:
    """Table 3, in percent. Margins are ranked as they are, as the published script does."""
    return Strictest(positive=positive / 100, negative=negative / 100, normalize=False)
