"""Fine-tuning with a price on the gap, by Adam and by L-BFGS: the sweep, its choice, and every run of it."""

from __future__ import annotations

import copy
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any

import torch
from frontier_cases import CONFIDENCE, Case, Part
from protocol import FAVORABLE
from torch import Tensor, nn

from repairopt.localize import localize
from repairopt.specify import normal_quantile

TEMPERATURE = 0.5  # of the softmax in the penalty
BATCH = 512  # rows, and inputs of each group, in a step of Adam
PENALTIES = {"sampled": (1.0, 3.0, 10.0, 30.0, 100.0), "parity": (0.1, 0.3, 1.0, 3.0, 10.0, 30.0)}


@dataclass(frozen=True)
class Sweep:
    """Runs to choose from: one for each penalty, looked at after each of the stops.

    Attributes:
        optimizer: ``"adam"`` or ``"lbfgs"``.
        whole: All weights of the network; else those that the case names.
        rate: Learning rate of Adam.
        stops: Steps of Adam, or iterations of L-BFGS.
        both: A price of the same size on the squared odds differences.
        penalties: Prices of the squared soft gap (mean over pairs of groups); by kind of gap unless given.
    """

    optimizer: str = "adam"
    whole: bool = True
    rate: float = 3e-4
    stops: tuple[int, ...] = (150, 300)
    both: bool = False
    penalties: tuple[float, ...] = ()

    def prices(self, case: Case) -> tuple[float, ...]:
        """The penalties for a case; those of parity lie lower, because it costs accuracy."""
        return self.penalties or PENALTIES[case.kind]


@dataclass(frozen=True, eq=False)
class Tried:
    """A network of a sweep.

    Attributes:
        penalty: The price.
        stop: After how many steps.
        network: The tuned copy.
        seconds: CPU seconds up to there.
    """

    penalty: float
    stop: int
    network: nn.Module
    seconds: float

    @property
    def setting(self) -> tuple[float, int]:
        """What was swept over."""
        return self.penalty, self.stop


def tune(case: Case, fit: Part, penalty: float, sweep: Sweep) -> list[Tried]:
    """One run."""
    return list((_adam if sweep.optimizer == "adam" else _lbfgs)(case, fit, penalty, sweep))


def choose(tries: Sequence[Tried], part: Part, typed: float, *, confident: bool) -> Tried:
    """Of the runs that meet all bounds on the validation part the most accurate; else the one that misses them least.

    Where the bound is to hold with a confidence, its upper end for that many rows must meet it.
    """
    before, target = part.before, part.target(typed)

    def rank(tried: Tried) -> tuple[float, float]:
        found = part.measured(tried.network)
        gap = found["gap"]
        if confident:
            with torch.no_grad():
                error = part.gap.interval(tried.network, 2 * CONFIDENCE - 1).error
            gap += normal_quantile(CONFIDENCE) * error
        missed = max(0.0, gap - target)
        if part.case.odds:
            missed += max(0.0, found["odds"] - before["odds"])
        if part.case.task.guard:
            missed += max(0.0, before["recall"] - found["recall"])
        return missed, -found["accuracy"]

    return min(tries, key=rank)


def _adam(case: Case, fit: Part, penalty: float, sweep: Sweep) -> Iterator[Tried]:
    started = time.process_time()
    network, masks = _copy(case, sweep.whole)
    optimizer = torch.optim.Adam([p for p in network.parameters() if p.requires_grad], lr=sweep.rate)
    draw = torch.Generator().manual_seed(0)
    sets = _sets(fit)
    for step in range(1, max(sweep.stops) + 1):
        picks = [torch.randint(len(x), (BATCH,), generator=draw) for x, _, _ in sets]
        batch = [(x[pick], y[pick], a[pick]) for (x, y, a), pick in zip(sets, picks, strict=True)]
        optimizer.zero_grad()
        _loss(network, batch, penalty, sweep.both).backward()
        _mask(network, masks)
        optimizer.step()
        if step in sweep.stops:
            yield Tried(penalty, step, copy.deepcopy(network), time.process_time() - started)


def _lbfgs(case: Case, fit: Part, penalty: float, sweep: Sweep) -> Iterator[Tried]:
    started = time.process_time()
    network, masks = _copy(case, sweep.whole)
    chosen = [p for p in network.parameters() if p.requires_grad]
    sets, done = _sets(fit), 0
    for stop in sorted(sweep.stops):
        optimizer = torch.optim.LBFGS(chosen, max_iter=stop - done, history_size=20, line_search_fn="strong_wolfe")

        def loss(optimizer: Any = optimizer) -> Tensor:
            optimizer.zero_grad()
            value = _loss(network, sets, penalty, sweep.both)
            value.backward()
            _mask(network, masks)
            return value

        optimizer.step(loss)
        done = stop
        yield Tried(penalty, stop, copy.deepcopy(network), time.process_time() - started)


def _copy(case: Case, whole: bool) -> tuple[nn.Module, dict[str, Tensor]]:
    """A copy whose other parameters are frozen, and masks of those that may change in part."""
    network = copy.deepcopy(case.task.network)
    masks: dict[str, Tensor] = {}
    if whole:
        return network, masks
    positions = localize(network, case.weights, inputs=case.task.rows[:2]).indices
    for name, parameter in network.named_parameters():
        parameter.requires_grad_(name in positions)
        if name in positions and len(positions[name]) < parameter.numel():
            mask = torch.zeros(parameter.numel())
            mask[positions[name]] = 1.0
            masks[name] = mask.view_as(parameter)
    return network, masks


def _mask(network: nn.Module, masks: dict[str, Tensor]) -> None:
    for name, mask in masks.items():
        gradient = network.get_parameter(name).grad
        assert gradient is not None
        gradient *= mask


def _sets(fit: Part) -> list[tuple[Tensor, Tensor, Tensor]]:
    """Inputs, labels and groups: the real rows, then, where the gap is on sampled inputs, those of each group."""
    sets = [(fit.rows, fit.labels, fit.groups)]
    if fit.case.kind == "sampled":
        samples = fit.gap.samples
        for group in range(samples.q):
            own = samples.inputs[samples.member == group]
            sets.append((own, torch.full((len(own),), -1), torch.full((len(own),), group)))
    return sets


def _loss(network: nn.Module, sets: Sequence[tuple[Tensor, Tensor, Tensor]], penalty: float, both: bool) -> Tensor:
    """Cross-entropy of the labelled rows, and the priced squares of soft differences."""
    outputs = network(torch.cat([x for x, _, _ in sets])).split([len(x) for x, _, _ in sets])
    loss = nn.functional.cross_entropy(outputs[0], sets[0][1])
    if not penalty:
        return loss
    chance = [torch.softmax(output / TEMPERATURE, dim=1)[:, FAVORABLE] for output in outputs]
    if len(sets) > 1:
        loss = loss + penalty * _squares([one.mean() for one in chance[1:]])
    else:
        loss = loss + penalty * _squares(_rates(chance[0], sets[0][2]))
    if both:
        for label in (0, 1):
            own = sets[0][1] == label
            loss = loss + penalty * _squares(_rates(chance[0][own], sets[0][2][own]))
    return loss


def _rates(chance: Tensor, groups: Tensor) -> list[Tensor]:
    return [chance[groups == a].mean() for a in groups.unique()]


def _squares(rates: Sequence[Tensor]) -> Tensor:
    pairs = list(combinations(rates, 2))
    return torch.stack([(a - b) ** 2 for a, b in pairs]).mean()
