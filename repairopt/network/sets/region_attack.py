"""Search regions for inputs that break their rows: random starts, then steps along the signs of the gradient.

In a hull, steps go to the vertex that the gradient promises most of (Frank and Wolfe, An Algorithm for Quadratic
Programming, Naval Research Logistics 3, 1956).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from .frames import Frame
from .leaves import LastLayer
from .network_steps import NetworkSteps
from .row_groups import RowGroups

LEAST = 200  # random points of a region at least, where there are many regions
STEP, SHRINK = 0.1, 0.85  # first step, in widths of the region, and what is left of it after each
LEAP = 0.3  # first step to a vertex, of the way to it


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
    frame: Frame | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Points at which some group has no row above its offset, and the least values that were found.

    Args:
        network: The network.
        lower: Boxes, ``(Q, d)``.
        upper: ``(Q, d)``.
        rows: What must hold of the outputs, a region for each box; of the results of ``last`` where that is given.
        search: How hard to look.
        last: Another last layer.
        frame: What the boxes stand for, where they are not the inputs themselves, a box for each region.

    Returns:
        Points ``(P, d)``, their regions ``(P,)``, and the least value of each region, ``(Q,)``.
    """
    draw = torch.Generator().manual_seed(search.seed)
    starts = max(LEAST, min(search.starts, 2 * search.starts // len(lower)))
    points, regions, worst = [], [], []
    for q, (low, high) in enumerate(zip(lower, upper, strict=True)):
        own = _Region(network, rows, q, last, frame)
        if frame is None:
            x = low + (high - low) * torch.rand(starts, len(low), generator=draw, dtype=torch.float64)
        else:
            x = frame.draw(q, low, high, starts, draw)
            if frame.hull[q]:  # the vertices are starts, too
                x = torch.cat([torch.eye(len(low), dtype=torch.float64)[high > low], x])
        found, smallest = [], torch.inf
        for step in range(search.steps + 2):
            value, slope = own.value(x)
            found.append(own.inputs(x[value <= 0]))
            smallest = min(smallest, float(value.min()))
            if step == 0:
                best = value.argsort()[: max(1, starts // 10)]
                x, slope = x[best], slope[best]
            if frame is not None and frame.hull[q]:
                vertex = slope.masked_fill(high <= low, torch.inf).argmin(1)
                share = LEAP * SHRINK**step
                x = (1 - share) * x + share * torch.eye(len(low), dtype=torch.float64)[vertex]
            else:
                x = torch.clamp(x - (high - low) * STEP * SHRINK**step * slope.sign(), low, high)
        points.append(torch.cat(found))
        regions.append(torch.full((len(points[-1]),), q))
        worst.append(smallest)
    return torch.cat(points), torch.cat(regions), torch.tensor(worst, dtype=torch.float64)


@dataclass(frozen=True, eq=False)
class _Region:
    """What must hold on one region, as a function of its inputs, or of their parameters."""

    network: NetworkSteps
    rows: RowGroups
    number: int
    last: LastLayer | None
    frame: Frame | None

    def inputs(self, x: Tensor) -> Tensor:
        """Inputs ``(N, d)``."""
        return x if self.frame is None else x @ self.frame.vertices[self.number]

    def value(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Value of the worst group at each point, and its gradient."""
        with torch.enable_grad():
            x = x.detach().requires_grad_()
            where, inputs = torch.full((len(x),), self.number), self.inputs(x)
            features = self.network.features_at
            outputs = (
                self.network.forward(inputs) if self.last is None else self.last(self.network.forward(inputs, features))
            )
            value = self.rows.least(self.rows.values(outputs, where), where)
            (slope,) = torch.autograd.grad(value.sum(), x)
        return value.detach(), slope
