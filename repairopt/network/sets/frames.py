"""Sets of inputs other than boxes: convex hulls of vertices, as boxes of weights of these.

An input of a hull is ``weights @ vertices`` with weights of at least 0 whose sum is 1. Weights are divided by boxes, as
inputs of other regions are; the least value of a linear function on the weights of a box whose sum is 1 has a closed
form, as a continuous knapsack: what is left of the sum goes to the smallest coefficients first.

References:
    Dantzig, Discrete-Variable Extremum Problems, Operations Research 5, 1957 (the knapsack).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

POINTS = 4096  # by which the shares of boxes of weights are estimated


@dataclass(frozen=True, eq=False)
class Frame:
    """What boxes of ``p`` parameters stand for: the inputs ``parameters @ vertices``.

    Parameters of a hull are the weights of its vertices, and only those whose sum is 1 count; those of a box of inputs
    are the inputs themselves, with zeros behind them up to ``p``.

    Attributes:
        vertices: Of each region, ``(Q, p, d)``.
        hull: Which regions are hulls, ``(Q,)``.
        region: The region of each box, ``(B,)``.
    """

    vertices: Tensor
    hull: Tensor
    region: Tensor

    def __len__(self) -> int:
        return len(self.region)

    def __getitem__(self, rows: Any) -> Frame:
        """Of some of the boxes."""
        return replace(self, region=self.region[rows])

    def join(self, others: Sequence[Frame]) -> Frame:
        """Of these boxes, then of others of the same regions."""
        return replace(self, region=torch.cat([self.region, *(one.region for one in others)]))

    def inputs(self, parameters: Tensor) -> Tensor:
        """Inputs ``(B, m, d)`` of parameters ``(B, m, p)``."""
        return parameters @ self.vertices[self.region]

    def pull(self, slope: Tensor) -> Tensor:
        """Coefficients ``(B, m, d)`` of inputs as coefficients of parameters, ``(B, m, p)``."""
        return slope @ self.vertices[self.region].transpose(1, 2)

    def lowest(self, slope: Tensor, lower: Tensor, upper: Tensor) -> tuple[Tensor, Tensor]:
        """Least values ``(B, m)`` of linear functions of the parameters ``(B, m, p)``, and where, ``(B, m, p)``."""
        low, width = lower[:, None].expand_as(slope), (upper - lower)[:, None].expand_as(slope)
        order = slope.argsort(-1)
        room = width.gather(-1, order)
        left = (1 - lower.sum(-1))[:, None, None] - (room.cumsum(-1) - room)
        filled = torch.zeros_like(slope).scatter(-1, order, torch.minimum(left.clamp_min(0), room))
        corner = low + torch.where(self.hull[self.region][:, None, None], filled, width * (slope < 0))
        return (slope * corner).sum(-1), corner

    def tight(self, lower: Tensor, upper: Tensor) -> tuple[Tensor, Tensor]:
        """The smallest and largest value that each parameter takes in a box, ``(B, p)`` each."""
        hull = self.hull[self.region][:, None]
        least = 1 - (upper.sum(-1, keepdim=True) - upper)
        most = 1 - (lower.sum(-1, keepdim=True) - lower)
        return torch.where(hull, torch.maximum(lower, least), lower), torch.where(
            hull, torch.minimum(upper, most), upper
        )

    def centers(self, lower: Tensor, upper: Tensor) -> Tensor:
        """Inputs in the middle of boxes, ``(B, d)``."""
        width = upper - lower
        share = (1 - lower.sum(-1)) / width.sum(-1).clamp_min(torch.finfo(width.dtype).tiny)
        share = torch.where(self.hull[self.region], share, torch.full_like(share, 0.5))
        return self.inputs((lower + share[:, None] * width)[:, None])[:, 0]

    def draw(self, region: int, lower: Tensor, upper: Tensor, count: int, generator: torch.Generator) -> Tensor:
        """Parameters ``(count, p)`` of a region, given by its box ``(p,)``, spread evenly."""
        noise = torch.rand(count, len(lower), generator=generator, dtype=torch.float64)
        if not self.hull[region]:
            return lower + (upper - lower) * noise
        raw = -torch.log1p(-noise) * (upper > 0)  # weights behind the last vertex are 0
        return raw / raw.sum(1, keepdim=True)

    def share(self, lower: Tensor, upper: Tensor) -> Tensor:
        """Share of its hull that each box of weights takes, ``(B,)``, estimated by points; 0 for other regions."""
        found = torch.zeros(len(lower), dtype=torch.float64)
        for region in torch.nonzero(self.hull)[:, 0].tolist():
            own = torch.nonzero(self.region == region)[:, 0]
            if not len(own):
                continue
            whole = (lower[own].amin(0), upper[own].amax(0))
            points = self.draw(region, *whole, POINTS, torch.Generator().manual_seed(0))
            for part in own.split(256):
                inside = (points >= lower[part, None]) & (points <= upper[part, None])
                found[part] = inside.all(-1).double().mean(-1)
        return found
