"""Search regions for inputs that break their rows: random starts, then steps along the signs of the gradient."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from .leaves import LastLayer
from .network_steps import NetworkSteps
from .row_groups import RowGroups

LEAST = 200  # random points of a region at least, where there are many regions
STEP, SHRINK = 0.1, 0.85  # first step, in widths of the region, and what is left of it after each


@dataclass(frozen=True)
class RegionSearch:
    """How hard to look: random points of each box, steps from the worst tenth of them, seed."""

    starts: int = 2000
    steps: int = 30
    seed: int = 0


def attack_regions(
    network: NetworkSteps,
    lower: Tensor,
    upper: Tensor,
    rows: RowGroups,
    search: RegionSearch,
    last: LastLayer | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Points at which some group has no row above its offset, and the least values that were found.

    Args:
        network: The network.
        lower: Boxes, ``(Q, d)``.
        upper: ``(Q, d)``.
        rows: What must hold of the outputs, a region for each box; of the results of ``last`` where that is given.
        search: How hard to look.
        last: Another last layer.

    Returns:
        Points ``(P, d)``, their regions ``(P,)``, and the least value of each region, ``(Q,)``.
    """
    draw = torch.Generator().manual_seed(search.seed)
    starts = max(LEAST, min(search.starts, 2 * search.starts // len(lower)))
    points, regions, worst = [], [], []
    for q, (low, high) in enumerate(zip(lower, upper, strict=True)):
        x = low + (high - low) * torch.rand(starts, len(low), generator=draw, dtype=torch.float64)
        found, smallest = [], torch.inf
        for step in range(search.steps + 2):
            value, slope = _value(network, x, rows, q, last)
            found.append(x[value <= 0])
            smallest = min(smallest, float(value.min()))
            if step == 0:
                best = value.argsort()[: max(1, starts // 10)]
                x, slope = x[best], slope[best]
            x = torch.clamp(x - (high - low) * STEP * SHRINK**step * slope.sign(), low, high)
        points.append(torch.cat(found))
        regions.append(torch.full((len(points[-1]),), q))
        worst.append(smallest)
    return torch.cat(points), torch.cat(regions), torch.tensor(worst, dtype=torch.float64)


def _value(
    network: NetworkSteps, x: Tensor, rows: RowGroups, region: int, last: LastLayer | None
) -> tuple[Tensor, Tensor]:
    """Value of the worst group at each point, and its gradient."""
    with torch.enable_grad():
        x = x.detach().requires_grad_()
        where = torch.full((len(x),), region)
        outputs = network.forward(x) if last is None else last(network.forward(x, network.features_at))
        value = rows.least(rows.values(outputs, where), where)
        (slope,) = torch.autograd.grad(value.sum(), x)
    return value.detach(), slope
