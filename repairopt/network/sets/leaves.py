"""Branch and bound over boxes of inputs: the leaves that regions are divided into, their bounds, and how they split.

A leaf is split in the dimension whose two halves have the best bounds (strong branching), of those that the bound
depends on most; halves inherit the bounds that hold on the whole. Measured on an ACAS Xu network: 202 leaves against
1,048 with the dimension of the largest coefficient times width.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from .activation_lines import LowerLines
from .crown import Boxes, Intervals, relax_in_parts
from .frames import Frame
from .network_steps import NetworkSteps
from .row_groups import RowGroups

TRIED = 3  # dimensions that strong branching bounds
WORTH = 0.01  # gain, as a share of the bound, below which dimensions take turns
CHUNK = 256  # leaves whose bounds are computed at a time


@dataclass(frozen=True, eq=False)
class LastLayer:
    """Weights of the last linear layer: ``weight (k, h)``, ``bias (k,)``; ``h`` features make ``k`` numbers."""

    weight: Tensor
    bias: Tensor

    def __call__(self, features: Tensor) -> Tensor:
        """Outputs ``(B, k)`` of features ``(B, h)``."""
        return features @ self.weight.T + self.bias


@dataclass(frozen=True, eq=False)
class Cuts:
    """Where bounds are taken on some leaves.

    Attributes:
        value: Lower bound of each row, ``(B, R)``.
        features: Points of the relaxed features, ``(B, R, h)``: the bound of a row is its value there.
        corner: Inputs at which the linear bound is smallest, ``(B, R, d)``.
        slope: How the bound depends on the inputs, or parameters, ``(B, R, d)``.
    """

    value: Tensor
    features: Tensor
    corner: Tensor
    slope: Tensor


@dataclass(frozen=True, eq=False)
class Leaves:
    """Boxes that tile some regions.

    Attributes:
        boxes: The boxes, with bounds of what activations read.
        rows: What must hold, in terms of the last linear layer's results.
        region: The region of each leaf, ``(B,)``.
        depth: How often it was split, ``(B,)``.
    """

    boxes: Boxes
    rows: RowGroups
    region: Tensor
    depth: Tensor

    @classmethod
    def of(
        cls,
        network: NetworkSteps,
        lower: Tensor,
        upper: Tensor,
        rows: RowGroups,
        region: Tensor,
        frame: Frame | None = None,
        single: bool = False,
    ) -> Leaves:
        """One leaf for each box, ``(B, d)`` each; region ``(B,)``; frame where boxes are of parameters.

        Where ``single`` is set bounds may be found in single precision, see :func:`.crown.relax_in_parts`.
        """
        boxes = relax_in_parts(network, lower, upper, frame=frame, single=single)
        return cls(boxes, rows, region, torch.zeros(len(lower), dtype=torch.int64))

    def __len__(self) -> int:
        return len(self.boxes)

    def __getitem__(self, rows: Any) -> Leaves:
        return Leaves(self.boxes[rows], self.rows, self.region[rows], self.depth[rows])

    def join(self, other: Leaves) -> Leaves:
        """These leaves, then the others."""
        region, depth = (torch.cat([getattr(self, n), getattr(other, n)]) for n in ("region", "depth"))
        return Leaves(self.boxes.join(other.boxes), self.rows, region, depth)

    @property
    def features_at(self) -> int:
        """Index of the step whose result the last layer reads."""
        return self.boxes.network.features_at

    def bounds(self, last: LastLayer) -> Tensor:
        """Lower bounds of each row ``(B, R)`` with a last layer."""
        parts = [self._below(rows, last, False)[0] for rows in torch.arange(len(self)).split(CHUNK)]
        return torch.cat(parts) if parts else torch.zeros(0, self.rows.offset.shape[1], dtype=torch.float64)

    def cuts(self, last: LastLayer) -> Cuts:
        """Bounds and where they are taken."""
        parts = [self._below(rows, last, True) for rows in torch.arange(len(self)).split(CHUNK)]
        value, slope, features, corner = (torch.cat(part) for part in zip(*parts, strict=True))
        return Cuts(value, features, corner, slope)

    def _below(self, rows: Tensor, last: LastLayer, points: bool) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        matrix, offset = self.rows.matrix[self.region[rows]], self.rows.offset[self.region[rows]]
        low, slope, features, corner = self.boxes[rows].below(matrix @ last.weight, self.features_at, points=points)
        return low + matrix @ last.bias - offset, slope, features, corner

    def least(self, last: LastLayer) -> Tensor:
        """Lower bound of the worst group of each leaf, ``(B,)``: positive where the leaf is proved."""
        return self.rows.least(self.bounds(last), self.region)

    def sharpened(self, last: LastLayer, steps: int, rate: float = 0.2) -> Leaves:
        """The same leaves with lower lines of activations that make the bound of the worst group as large as may be.

        The lines are found by steps of Adam; the best ones on the way are kept for each leaf (alpha-CROWN: Xu et al.,
        Fast and Complete, ICLR 2021, with the bounds of what activations read as they are).
        """
        parts = [self[rows]._sharpened(last, steps, rate) for rows in torch.arange(len(self)).split(CHUNK)]
        shares = {index: torch.cat([part[index] for part in parts]) for index in parts[0]} if parts else None
        return replace(self, boxes=replace(self.boxes, shares=shares))

    def _sharpened(self, last: LastLayer, steps: int, rate: float) -> dict[int, Tensor]:
        best, highest = self.boxes.used_shares(), self.least(last)
        if self.boxes.shares is not None:
            usual = replace(self.boxes, shares=None)
            start = replace(self, boxes=usual).least(last)
            better, highest = start > highest, torch.maximum(start, highest)
            best = {i: torch.where(better[:, None], share, best[i]) for i, share in usual.used_shares().items()}
        own = dict(best)
        first, second = ({i: torch.zeros_like(share) for i, share in own.items()} for _ in range(2))
        matrix, offset = self.rows.matrix[self.region], self.rows.offset[self.region]
        directions, shift = matrix @ last.weight, matrix @ last.bias - offset
        between = {i: LowerLines.of(self.boxes.alternatives(i)) for i in self.boxes.intervals}
        for step in range(1, steps + 1):
            with torch.enable_grad():
                moving = {i: share.detach().requires_grad_() for i, share in own.items()}
                lines = {i: between[i].at(share) for i, share in moving.items()}
                low = self.boxes.below(directions, self.features_at, lines=lines)[0]
                least = self.rows.least(low + shift, self.region)
                slopes = torch.autograd.grad(least.sum(), list(moving.values()))
            better = least.detach() > highest
            highest = torch.where(better, least.detach(), highest)
            best = {i: torch.where(better[:, None], share, best[i]) for i, share in own.items()}
            for (i, share), slope in zip(own.items(), slopes, strict=True):  # Adam, Kingma and Ba, ICLR 2015
                first[i] = 0.9 * first[i] + 0.1 * slope
                second[i] = 0.999 * second[i] + 0.001 * slope**2
                size = (second[i] / (1 - 0.999**step)).sqrt() + 1e-12
                moved = (share + rate * first[i] / (1 - 0.9**step) / size).clamp(0, 1)
                own[i] = (moved * 255).round() / 255  # as a proof states them
        return best

    def halves(self, dimension: Tensor, alternatives: int = 3) -> Leaves:
        """Both halves of each leaf, the lower ones first, split in the middle of the given dimension ``(B,)``."""
        boxes, at = self.boxes, torch.arange(len(self))
        middle = boxes.middles()[at, dimension]
        below, above = boxes.upper.clone(), boxes.lower.clone()
        below[at, dimension], above[at, dimension] = middle, middle
        lower, upper = torch.cat([boxes.lower, above]), torch.cat([below, boxes.upper])
        twice: Intervals = {i: (torch.cat([a, a]), torch.cat([b, b])) for i, (a, b) in boxes.intervals.items()}
        order = sum((((a < 0) & (b > 0)).sum(1) for a, b in twice.values()), torch.zeros(len(lower))).argsort()
        own = {i: (a[order], b[order]) for i, (a, b) in twice.items()}
        frame = None if boxes.frame is None else boxes.frame.join([boxes.frame])[order]
        made = relax_in_parts(boxes.network, lower[order], upper[order], own, alternatives, frame, boxes.single)
        back = torch.empty_like(order)
        back[order] = torch.arange(len(order))
        region, depth = torch.cat([self.region, self.region]), torch.cat([self.depth, self.depth]) + 1
        found = made[back]
        if boxes.shares is not None:
            found = replace(found, shares={i: torch.cat([share, share]) for i, share in boxes.shares.items()})
        return Leaves(found, self.rows, region, depth)

    def halved(self, last: LastLayer) -> Leaves:
        """Both halves of each leaf, split in the dimension that is best for the bound of its worst group."""
        cuts = self.cuts(last)
        values, rows = self.rows.best(cuts.value, self.region)
        row = rows.gather(1, values.argmin(1, keepdim=True))[:, 0]
        return self.halves(self.best_split(last, cuts.slope[torch.arange(len(self)), row]))

    def best_split(self, last: LastLayer, slope: Tensor) -> Tensor:
        """The dimension ``(B,)`` in which to split each leaf: that whose halves have the best bounds, where they gain.

        Args:
            last: The last layer.
            slope: How the bound of the worst row depends on the inputs, ``(B, d)``.
        """
        width = self.boxes.widths()
        if self.boxes.frame is not None:  # the sum of weights is fixed, so that a common part of slopes does nothing
            common = slope.mean(1, keepdim=True)
            slope = torch.where(self.boxes.frame.hull[self.boxes.frame.region][:, None], slope - common, slope)
        score = slope.abs() * width + 1e-9 * width
        varies = torch.nonzero((width > 0).any(0))[:, 0]
        tried = score.topk(max(1, min(TRIED, len(varies))), dim=1).indices
        if tried.shape[1] == 1:
            return tried[:, 0]
        gains = []
        for place in range(tried.shape[1]):
            least = self.halves(tried[:, place], alternatives=1).least(last).clamp_max(0)
            gains.append(least[: len(self)] + least[len(self) :])
        gain, best = torch.stack(gains, 1).max(1)
        before = 2 * self.least(last).clamp_max(0)
        stuck = gain - before < WORTH * before.abs()
        return torch.where(stuck, varies[self.depth % len(varies)], tried[torch.arange(len(self)), best])

    def centers(self) -> Tensor:
        """Inputs in the middle of the boxes, ``(B, d)``."""
        return self.boxes.centers()

    def volume(self) -> Tensor:
        """Share of its region that each leaf takes, ``(B,)``: a half for each split; of hulls estimated by points."""
        halved, boxes = 0.5 ** self.depth.double(), self.boxes
        if boxes.frame is None:
            return halved
        return torch.where(boxes.frame.hull[self.region], boxes.frame.share(boxes.lower, boxes.upper), halved)

    def without(self, drop: Tensor) -> Leaves:
        """All leaves but those with the given numbers."""
        keep = torch.ones(len(self), dtype=torch.bool)
        keep[drop] = False
        return self[keep]


def own_last_layer(network: NetworkSteps) -> tuple[LastLayer, Tensor, Tensor]:
    """The last linear layer of a network, and the affine map ``(matrix, offset)`` from its results to the outputs.

    Where the network does not end in a linear layer, its outputs are taken for features.
    """
    step, output = network.last, network.output
    size = network.size(output)
    eye, none = torch.eye(size, dtype=torch.float64), torch.zeros(size, dtype=torch.float64)
    if step is None:
        return LastLayer(eye, none), eye, none
    weight = step.matrices[0]
    assert weight is not None
    if network.last_index == output:
        return LastLayer(weight, step.offset), eye, none
    inputs = torch.eye(step.size, dtype=torch.float64)
    zero = torch.zeros(1, step.size, dtype=torch.float64)
    offset = network.onward(network.last_index, zero)[0]
    return LastLayer(weight, step.offset), (network.onward(network.last_index, inputs) - offset).T, offset
