"""Regions by all layers: gradient steps on the bounds themselves, and on the change of outputs at keep points.

Bounds are differentiable in the weights. Of the points at which all bounds exceed a part of the margin the one that
changes the outputs least is taken. No lower bound of the change comes out; a proof does, because the bounds are the
proof's.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from repairopt.methods.adam import Adam
from repairopt.network import Frame, NetworkSteps, RowGroups, relax

ENOUGH = 0.4  # of the margin, at which bounds count as proved: what is above 0 alone may not survive rounding
CHECKED = 2000  # keep points on which the change of a candidate is measured
BATCH = 512
AFTER = 40  # steps after the best point, without a better one


@dataclass(frozen=True)
class Descent:
    """How the weights of all layers are moved.

    Attributes:
        steps: At most.
        rate: Step size of Adam.
        keep: Price of the mean squared change of the outputs, in deviations, on keep points.
        margin: What bounds are pushed to, in deviations of the outputs.
    """

    steps: int = 400
    rate: float = 1e-3
    keep: float = 10.0
    margin: float = 0.2


@dataclass(frozen=True, eq=False)
class Trained:
    """Weights after descent, by name, and whether all bounds exceed a part of the margin with them."""

    weights: dict[str, Tensor]
    proved: bool
    steps: int


def descend(
    network: NetworkSteps,
    weights: Mapping[str, Tensor],
    regions: tuple[Tensor, Tensor, RowGroups, Frame | None],
    keep: Tensor,
    spread: float,
    settings: Descent,
    late: Callable[[], bool],
    seed: int,
) -> Trained:
    """Move weights until the bounds of all regions are positive, and the outputs on keep points change little.

    Args:
        network: The network; refreshed with the weights that are returned.
        weights: Those that may change, by name, as they are.
        regions: Lower and upper sides ``(Q, d)``, rows on the outputs, and what the boxes stand for where they are not
            the inputs.
        keep: Inputs ``(N, d)``.
        spread: Mean deviation of the outputs.
        settings: Of the steps.
        late: Whether the time is over.
        seed: Chooses batches.
    """
    with torch.no_grad():
        outputs = network.forward(keep)
    own = {name: value.detach().double().clone().requires_grad_() for name, value in weights.items()}
    optimizer = Adam(own.values(), settings.rate)
    draw = torch.Generator().manual_seed(seed)
    best, cost, found_at, step = dict(weights), float("inf"), 0, 0
    for step in range(settings.steps):
        if late() or (cost < float("inf") and step > found_at + AFTER):
            break
        with torch.enable_grad():
            network.refresh(own)
            low = bounds(network, regions)
            some = torch.randint(len(keep), (BATCH,), generator=draw)
            moved = ((network.forward(keep[some]) - outputs[some]) / spread).square().mean()
            lack = (settings.margin - low / spread).clamp_min(0).sum() / len(low)
            loss = lack + settings.keep * moved
            slopes = torch.autograd.grad(loss, list(own.values()))
        with torch.no_grad():
            if float(low.min()) > ENOUGH * settings.margin * spread:
                now = float((network.forward(keep[:CHECKED]) - outputs[:CHECKED]).square().mean())
                if now < cost:
                    best, cost, found_at = {name: value.detach().clone() for name, value in own.items()}, now, step
        for value, slope in zip(own.values(), slopes, strict=True):
            value.grad = slope
        optimizer.step()
    if cost == float("inf"):
        best = {name: value.detach().clone() for name, value in own.items()}
    return Trained(best, cost < float("inf"), step)


def bounds(network: NetworkSteps, regions: tuple[Tensor, Tensor, RowGroups, Frame | None]) -> Tensor:
    """Lower bound of each group of each region, ``(Q, G)``; large where a region has fewer groups."""
    lower, upper, rows, frame = regions
    boxes = relax(network, lower, upper, alternatives=1, frame=frame)
    low = boxes.below(rows.matrix, network.output)[0] - rows.offset
    found = rows.best(low, torch.arange(len(lower)))[0]
    return found.clamp_max(1e6)
