"""A limit without labels in a training: its price, by an augmented Lagrangian."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from repairopt.specify import goal_value, inputs_of, soft_value

from .property_parts import parts_of

LEAST_EXCESS = 0.02
PART = 16  # batches in a part of a property, where it has more rows than that
LEAST_PART = 64  # rows of a property in a step, whatever the memory


class Multiplier:
    """The augmented Lagrangian of one limit: a price that grows while the count exceeds it."""

    def __init__(self, name: str, item: Any, limit: float, before: float, run: Any) -> None:
        self.name, self.item, self.limit, self.run = name, item, limit, run
        inputs, size = inputs_of(item), PART * run.settings.batch
        if inputs is not None:
            size = min(size, max(LEAST_PART, run.rows_that_fit(inputs)))
        self.parts = parts_of(item, size, run.task.seed)
        self.slope = 1.0 / max(before - limit, LEAST_EXCESS)
        self.price, self.shift, self.paid = 0.0, 0.0, list[float]()

    def penalty(self, *, update: bool) -> Tensor:
        """Price of the excess of the soft value, moved by what it differs from the count."""
        part = self.parts[len(self.paid) % len(self.parts)]
        soft = torch.as_tensor(soft_value(part)(self.run.forward))
        if update:
            whole = soft
            with torch.no_grad():
                count = goal_value(self.item, self.run.predict)
                if len(self.parts) > 1:
                    whole = torch.as_tensor(soft_value(self.item)(self.run.predict))
            self.shift = count - float(whole.detach())
            self.price = max(0.0, self.price + self.slope * (count - self.limit))
        excess = soft + self.shift - self.limit
        self.paid.append(self.price + self.slope * max(0.0, float(excess.detach())))
        return self.price * excess + 0.5 * self.slope * excess.clamp(min=0) ** 2

    def shadow_price(self) -> float:
        """Mean price of a unit of excess in the last half of the steps."""
        late = self.paid[len(self.paid) // 2 :]
        return sum(late) / max(1, len(late))

    def missed(self) -> float:
        """By how much the count exceeds the limit, of what it was at first."""
        with torch.no_grad():
            return max(0.0, self.slope * (goal_value(self.item, self.run.predict) - self.limit))
