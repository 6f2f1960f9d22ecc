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
AT_ONCE = 4000  # points of all regions that are attacked at once
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
    attacked = _Attacked(network, lower, upper, rows, last, frame)
    points, regions = [], []
    worst = torch.full((len(lower),), torch.inf, dtype=torch.float64)
    at_once = 1 if frame is not None else max(1, AT_ONCE // starts)
    for group in torch.arange(len(lower)).split(at_once):
        x = torch.cat([attacked.draw(int(q), starts, draw) for q in group])
        where, found = group.repeat_interleave(len(x) // len(group)), []
        for step in range(search.steps + 2):
            value, slope = attacked.value(x, where)
            broken = value <= 0
            found.append((attacked.inputs(x[broken], where[broken]), where[broken]))
            worst.scatter_reduce_(0, where, value, "amin")
            if step == 0:
                best = value.reshape(len(group), -1).argsort(1)[:, : max(1, starts // 10)]
                best = (best + torch.arange(0, len(x), len(x) // len(group))[:, None]).flatten()
                x, slope, where = x[best], slope[best], where[best]
            x = attacked.moved(x, where, slope, SHRINK**step)
        order = torch.cat([region for _, region in found]).argsort(stable=True)
        points.append(torch.cat([point for point, _ in found])[order])
        regions.append(torch.cat([region for _, region in found])[order])
    return torch.cat(points), torch.cat(regions), worst


@dataclass(frozen=True, eq=False)
class _Attacked:
    """What must hold on regions, as a function of their inputs, or of their parameters."""

    network: NetworkSteps
    lower: Tensor
    upper: Tensor
    rows: RowGroups
    last: LastLayer | None
    frame: Frame | None

    def draw(self, region: int, starts: int, draw: torch.Generator) -> Tensor:
        """Random points of a region; of a hull its vertices, too."""
        low, high, frame = self.lower[region], self.upper[region], self.frame
        if frame is None:
            return low + (high - low) * torch.rand(starts, len(low), generator=draw, dtype=torch.float64)
        x = frame.draw(region, low, high, starts, draw)
        return torch.cat([torch.eye(len(low), dtype=torch.float64)[high > low], x]) if frame.hull[region] else x

    def inputs(self, x: Tensor, where: Tensor) -> Tensor:
        """Inputs ``(N, d)`` of points, which are of one region where there is a frame."""
        if self.frame is None:
            return x
        return x @ self.frame.vertices[int(where[0]) if len(where) else 0]

    def moved(self, x: Tensor, where: Tensor, slope: Tensor, share: float) -> Tensor:
        """Points a step further down."""
        low, high = self.lower[where], self.upper[where]
        if self.frame is not None and self.frame.hull[int(where[0])]:
            vertex = slope.masked_fill(high <= low, torch.inf).argmin(1)
            return (1 - LEAP * share) * x + LEAP * share * torch.eye(x.shape[1], dtype=torch.float64)[vertex]
        return torch.clamp(x - (high - low) * STEP * share * slope.sign(), low, high)

    def value(self, x: Tensor, where: Tensor) -> tuple[Tensor, Tensor]:
        """Value of the worst group at each point, and its gradient."""
        with torch.enable_grad():
            x = x.detach().requires_grad_()
            inputs, features = self.inputs(x, where), self.network.features_at
            outputs = (
                self.network.forward(inputs) if self.last is None else self.last(self.network.forward(inputs, features))
            )
            value = self.rows.least(self.rows.values(outputs, where), where)
            (slope,) = torch.autograd.grad(value.sum(), x)
        return value.detach(), slope
