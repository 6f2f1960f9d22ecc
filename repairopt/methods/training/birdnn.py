"""BirdnnRT: samples that violate learn the outputs of the nearest sample that behaves well (BIRDNN, retraining)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from repairopt.methods.outcome import Outcome
from repairopt.methods.settings import Expected
from repairopt.methods.task import Task
from repairopt.specify import Region, UnprovedRegions

from .fit import Pair, Training, fit_weights
from .trainee import Trainee

PART = 500  # of violating samples whose distances are computed at once


@dataclass(frozen=True, kw_only=True)
class BirdnnRT(Training):
    """BIRDNN by retraining: violating samples imitate the outputs of the nearest sample that behaves well.

    Where the goal is input regions, samples are drawn from each; those that break its rows are negative, the others
    positive. Where it is labelled rows, those that fail are negative, and positive are right rows of the wanted class.
    The target of a negative sample is the output of its nearest positive one (Euclidean). The network is tuned on the
    squared distance from the targets, positives keeping their own outputs, and on the cross-entropy of the labelled
    training rows. Regions are sampled anew in each round, until no sample violates.

    Attributes:
        epochs: Passes in each round.
        samples: Samples of each region.
        rounds: Rounds, at most.

    References:
        Wang, Yang, Yuan, Wang, Liang and Xue, BIRDNN: behavior-imitation based repair for deep neural networks,
        ICSE 2023 companion. Numbers and the loss are ours. Fine-tuning by a swarm is the other half of that paper.

    Example:
        >>> BirdnnRT().samples
        1000
    """

    systems: ClassVar[Mapping[str, Mapping[str, Any]]] = {"BIRDNN-RT": {}}
    uses: ClassVar[frozenset[str]] = Training.uses | {"regions"}

    samples: int = 1000
    rounds: int = 5

    def expected(self) -> dict[str, Expected]:
        """What the settings may be."""
        return dict.fromkeys(("samples", "rounds"), Expected(low=1, whole=True))

    def run(self, task: Task) -> Outcome:
        """Sample, imitate, again."""
        goal = task.goal
        regions = list(goal.regions) if isinstance(goal, UnprovedRegions) else []
        rows = None if regions and not task.data else self.material(task, failing=not regions)
        first = rows.training[0] if rows is not None else _points(task, regions[0], 3, torch.Generator())
        net = Trainee(task, first)
        draw = torch.Generator().manual_seed(task.seed)
        for turn in range(self.rounds):
            if regions:
                pairs, wrong = self._of_regions(net, regions, draw)
            else:
                assert rows is not None
                pairs, wrong = _of_rows(net, rows.failing, rows.passing)
            if not wrong:
                break
            task.log.note(f"BIRDNN, round {turn + 1}: {wrong} samples violate.")
            self._imitate(net, pairs, None if rows is None else rows.training, turn)
            if not regions:
                break
        return net.outcome()

    def _imitate(self, net: Trainee, pairs: Pair, labelled: Pair | None, turn: int) -> None:
        device = pairs[0].device
        draw = torch.Generator().manual_seed(net.task.seed + turn)

        def loss(chosen: Tensor) -> Tensor:
            found = (net(pairs[0][chosen]) - pairs[1][chosen]).square().mean()
            if labelled is None:
                return found
            some = torch.randint(len(labelled[0]), (len(chosen),), generator=draw).to(device)
            return found + F.cross_entropy(net(labelled[0][some]), labelled[1][some])

        fit_weights(net, loss, len(pairs[0]), self, step=f"round {turn + 1}, epoch", seed=net.task.seed + turn)

    def _of_regions(self, net: Trainee, regions: Sequence[Region], draw: torch.Generator) -> tuple[Pair, int]:
        inputs, targets, wrong = [], [], 0
        for region in regions:
            points = _points(net.task, region, self.samples, draw)
            outputs = net.predict(points)
            holds = held(region, outputs)
            wrong += int((~holds).sum())
            if not bool(holds.any()):
                raise self.wrong(f"no sample of region '{region.name}' behaves well, so there is nothing to imitate.")
            inputs.append(points)
            targets.append(_imitated(points, outputs, holds))
        return (torch.cat(inputs), torch.cat(targets)), wrong


def held(region: Region, outputs: Tensor) -> Tensor:
    """Whether the rows of a region hold at outputs ``(N, k)``."""
    values = outputs.double() @ region.matrix.to(outputs.device).T - region.offset.to(outputs.device)
    group = region.group.to(outputs.device)
    every = [values[:, group == number].amax(1) > 0 for number in range(int(group.max()) + 1)]
    return torch.stack(every).all(0)


def _points(task: Task, region: Region, count: int, draw: torch.Generator) -> Tensor:
    points = region.draw(count, draw)
    shape = (region.lower.numel(),) if region.shape is None else region.shape
    return points.view(count, *shape).to(task.engine.device, task.engine.dtype)


def _imitated(inputs: Tensor, outputs: Tensor, good: Tensor) -> Tensor:
    """Outputs, where those of bad rows are those of the nearest good row."""
    found, flat = outputs.clone(), inputs.flatten(1).to(outputs.dtype)
    bad = (~good).nonzero().flatten()
    for part in bad.split(PART):
        nearest = torch.cdist(flat[part], flat[good]).argmin(1)
        found[part] = outputs[good][nearest]
    return found


def _of_rows(net: Trainee, failing: Pair, passing: Pair) -> tuple[Pair, int]:
    """Rows that fail imitate the nearest right row of their class; right rows keep their outputs."""
    inputs, labels = torch.cat([failing[0], passing[0]]), torch.cat([failing[1], passing[1]])
    outputs = net.predict(inputs)
    good = outputs.argmax(1) == labels
    targets, kept = outputs.clone(), good.clone()
    for label in labels.unique():
        own = labels == label
        if bool((good & own).any()):
            targets[own] = _imitated(inputs[own], outputs[own], good[own])
            kept |= own
    return (inputs[kept], targets[kept]), int((~good & kept).sum())
