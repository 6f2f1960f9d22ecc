"""A Markov chain from protected values to labels, learned from uniform traces until it is accurate enough."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from repairopt.errors import SpecificationError
from repairopt.network import Predict
from repairopt.specify import Grouped, measured

TRACES = 50  # drawn at a time
BLOCK = 20  # such draws in one run of the network


@dataclass(frozen=True, eq=False)
class Traces:
    """How inputs are drawn.

    Attributes:
        low: Least value of each feature, ``(d,)``.
        high: Greatest value.
        whole: Whether a feature is a whole number.
        columns: Protected columns.
        values: The values that they have in each group, ``(q, columns)``.
        favorable: The favorable label.
        seed: For the draws.
    """

    low: Tensor
    high: Tensor
    whole: Tensor
    columns: tuple[int, ...]
    values: Tensor
    favorable: int
    seed: int

    def drawn(self, count: int, draw: torch.Generator) -> tuple[Tensor, Tensor]:
        """Inputs ``(count, d)`` and the group of each ``(count,)``."""
        part = torch.rand(count, len(self.low), generator=draw, dtype=torch.float64).to(self.low)
        inputs = self.low + part * (self.high - self.low)
        inputs = torch.where(self.whole, inputs.round(), inputs)
        member = torch.randint(len(self.values), (count,), generator=draw)
        inputs[:, list(self.columns)] = self.values[member.to(self.values.device)]
        return inputs, member.to(inputs.device)


@dataclass(frozen=True, eq=False)
class Chain:
    """A learned chain: start, protected value, label.

    Attributes:
        inputs: The traces' inputs, ``(N, d)``.
        member: Group of each.
        labels: Label of each.
        groups: Number of protected values.
        favorable: The favorable label.
        settled: Whether the stop rule was met.
    """

    inputs: Tensor
    member: Tensor
    labels: Tensor
    groups: int
    favorable: int
    settled: bool

    @property
    def favorable_labels(self) -> Tensor:
        """Which traces end at the favorable label."""
        return self.labels == self.favorable

    @property
    def probabilities(self) -> Tensor:
        """Probability of the favorable label after each protected value, ``(q,)``."""
        return _by_group(self.favorable_labels.double(), self.member, self.groups)

    @property
    def difference(self) -> float:
        """The greatest of these probabilities minus the least."""
        return float(self.probabilities.amax() - self.probabilities.amin())

    def first(self, count: int) -> Chain:
        """The chain of the first traces."""
        return replace(self, inputs=self.inputs[:count], member=self.member[:count], labels=self.labels[:count])

    def difference_of(self, predict: Predict) -> Tensor:
        """The same of another network, on these traces."""
        favorable = (predict(self.inputs).argmax(1) == self.favorable).double()
        found = _by_group(favorable, self.member, self.groups)
        return found.amax() - found.amin()


def traces_of(goal: Any, columns: Sequence[int], seed: int, owner: str) -> Traces:
    """How inputs of a gap between groups are drawn.

    Args:
        goal: What must become true.
        columns: Protected columns; empty for those that have one value in each group, and not the same in all.
        seed: For the draws.
        owner: Who asks, for the message.

    Raises:
        SpecificationError: The goal has no groups of rows ``(N, d)``, or no protected column is found.
    """
    own: Any = measured(goal)
    samples = own.samples if isinstance(own, Grouped) else None
    if samples is None or samples.inputs.ndim != 2:
        raise SpecificationError(
            f"{owner}: verifies a gap between groups of rows (N, d), but the goal '{goal.name}' is none. State it as "
            f"GroupGap.sampled(...), GroupGap.observed(...) or GroupGap.given(...)."
        )
    inputs, member = samples.inputs, samples.member.to(samples.inputs.device)
    if not columns:
        parts = [inputs[member == a] for a in range(samples.q)]
        still = torch.stack([part.amin(0) == part.amax(0) for part in parts]).all(0)
        first = torch.stack([part[0] for part in parts])
        columns = (still & (first != first[:1]).any(0)).nonzero().flatten().tolist()
    if not columns:
        raise SpecificationError(
            f"{owner}: no column has one value in each group of '{goal.name}', so none is known to be protected. Pass "
            f"protected=(column, ...)."
        )
    values = inputs[:, list(columns)].unique(dim=0)
    whole = (inputs == inputs.round()).all(0)
    return Traces(inputs.amin(0), inputs.amax(0), whole, tuple(columns), values, int(own.favorable), seed)


def learn_chain(
    predict: Predict, traces: Traces, rule: tuple[float, float, int], check: Callable[[], None] = lambda: None
) -> Chain:
    """Draw traces, 50 at a time, until every transition probability is accurate.

    Args:
        predict: The network.
        traces: How inputs are drawn.
        rule: Error of a probability, risk that one is worse, and most traces.
        check: Called before each run of the network.
    """
    draw = torch.Generator().manual_seed(traces.seed)
    inputs: list[Tensor] = []
    members: list[Tensor] = []
    labels: list[Tensor] = []
    classes, counts, settled = 0, torch.zeros(0), False
    while not settled and sum(len(one) for one in members) < rule[2]:
        check()
        x, member = traces.drawn(TRACES * BLOCK, draw)
        found = predict(x)
        classes = found.shape[1]
        for one in range(0, len(x), TRACES):
            span = slice(one, one + TRACES)
            inputs.append(x[span])
            members.append(member[span])
            labels.append(found[span].argmax(1))
            places = members[-1] * classes + labels[-1]
            new = torch.bincount(places, minlength=len(traces.values) * classes).view(-1, classes).double()
            counts = counts + new if counts.numel() else new
            settled = accurate(counts, rule[0], rule[1])
            if settled:
                break
    every = [torch.cat(parts) for parts in (inputs, members, labels)]
    return Chain(every[0], every[1], every[2], len(traces.values), traces.favorable, settled)


def accurate(counts: Tensor, error: float, risk: float) -> bool:
    """Whether counts of transitions ``(states, next)`` suffice, the start included.

    For each state with ``n`` visits: ``n >= 2 / e^2 ln(2 m / d) (1/4 - (p - 2 e / 3)^2)``, with ``p`` the largest
    distance of a probability from 1/2, ``m`` the states and ``d = 1 - sqrt(1 - risk)``.
    """
    states = [*counts, counts.sum(1)]
    least = 1 - math.sqrt(1 - risk)
    for row in states:
        n = float(row.sum())
        if not n:
            return False
        far = float((0.5 - row / n).abs().max())
        need = 2 / error**2 * math.log(2 * len(states) / least) * (0.25 - (far - 2 * error / 3) ** 2)
        if n < need:
            return False
    return True


def _by_group(values: Tensor, member: Tensor, groups: int) -> Tensor:
    chosen = torch.nn.functional.one_hot(member, groups).to(values).T
    return (chosen @ values) / chosen.sum(1).clamp(min=1)
