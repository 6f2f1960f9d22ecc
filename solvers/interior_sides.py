"""Slacks and multipliers of two-sided constraints, for ``interior_point.py``."""

from __future__ import annotations

import torch
from torch import Tensor

Steps = tuple[list[Tensor], list[Tensor]]  # changes of slacks and of multipliers, lower side first


class Sides:
    """Slacks and multipliers of the finite sides of ``lower <= value <= upper``, lower side first.

    An infinite side keeps slack 1 and multiplier 0. Slacks may be larger than the room, see :meth:`residuals`.
    """

    def __init__(self, lower: Tensor, upper: Tensor, value: Tensor) -> None:
        self.has = [torch.isfinite(lower), torch.isfinite(upper)]
        self.side = [torch.where(self.has[0], lower, 0.0), torch.where(self.has[1], upper, 0.0)]
        both = self.has[0] & self.has[1]
        least = torch.where(both, 0.1 * (upper - lower), 1.0).clamp(max=1.0)
        room = self._room(value)
        self.slack = [torch.where(h, torch.maximum(r, least), 1.0) for h, r in zip(self.has, room, strict=True)]
        self.dual = [torch.zeros_like(value), torch.zeros_like(value)]
        self.count = int(self.has[0].sum() + self.has[1].sum())

    def center(self, mean: float) -> None:
        """Make all products of slack and multiplier equal."""
        self.dual = [torch.where(h, mean / s, 0.0) for h, s in zip(self.has, self.slack, strict=True)]

    def total_slack(self) -> float:
        """Sum of the slacks of finite sides."""
        return sum(float(s[h].sum()) for h, s in zip(self.has, self.slack, strict=True))

    def size(self) -> Tensor:
        """The larger of both sides in size."""
        return torch.maximum(self.side[0].abs(), self.side[1].abs())

    def residuals(self, value: Tensor) -> list[Tensor]:
        """Room minus slack."""
        rooms = zip(self.has, self._room(value), self.slack, strict=True)
        return [torch.where(h, room - slack, 0.0) for h, room, slack in rooms]

    def weight(self) -> Tensor:
        """What a change of the value by one adds to :meth:`net`."""
        return self.dual[0] / self.slack[0] + self.dual[1] / self.slack[1]

    def net(self) -> Tensor:
        """Multiplier of the upper side minus that of the lower one."""
        return self.dual[1] - self.dual[0]

    def product(self) -> float:
        """Sum of the products of slack and multiplier."""
        return float((self.slack[0] @ self.dual[0]) + (self.slack[1] @ self.dual[1]))

    def product_after(self, steps: Steps, length: float) -> float:
        """The same after a step."""
        values = zip(self.slack, self.dual, *steps, strict=True)
        return sum(float((s + length * ds) @ (z + length * dz)) for s, z, ds, dz in values)

    def shift(self, residuals: list[Tensor], target: list[Tensor]) -> Tensor:
        """Change of :meth:`net` at a fixed value, for products that should become ``target``."""
        values = zip(self.has, target, self.dual, residuals, self.slack, strict=True)
        parts = [torch.where(h, (t - z * r) / s - z, 0.0) for h, t, z, r, s in values]
        return parts[1] - parts[0]

    def steps(self, moved: Tensor, residuals: list[Tensor], target: list[Tensor], net: Tensor | None = None) -> Steps:
        """Changes of slacks and multipliers when the value changes by ``moved``, and :meth:`net`, if given, by ``net``.

        Where a slack is tiny, rounding errors of ``moved`` would be multiplied: there the multiplier follows ``net``.
        """
        slack = [torch.where(h, m + r, 0.0) for h, m, r in zip(self.has, (moved, -moved), residuals, strict=True)]
        values = zip(self.has, target, self.dual, slack, self.slack, strict=True)
        low, high = (torch.where(h, (t - z * ds) / s - z, 0.0) for h, t, z, ds, s in values)
        if net is not None:
            below = self.dual[0] / self.slack[0] >= self.dual[1] / self.slack[1]
            low, high = torch.where(below & self.has[0], high - net, low), torch.where(~below, low + net, high)
            high = torch.where(self.has[1], high, 0.0)
        return slack, [low, high]

    def longest(self, steps: Steps) -> float:
        """Longest step that keeps slacks and multipliers positive; may be infinite."""
        length = float("inf")
        for at, change in zip([*self.slack, *self.dual], [*steps[0], *steps[1]], strict=True):
            ratio = torch.where(change < 0, -at / change, torch.inf)
            length = min(length, float(ratio.min())) if len(ratio) else length
        return length

    def move(self, steps: Steps, length: float) -> None:
        """Take a step."""
        self.slack = [s + length * ds for s, ds in zip(self.slack, steps[0], strict=True)]
        self.dual = [z + length * dz for z, dz in zip(self.dual, steps[1], strict=True)]

    def _room(self, value: Tensor) -> tuple[Tensor, Tensor]:
        return value - self.side[0], self.side[1] - value
