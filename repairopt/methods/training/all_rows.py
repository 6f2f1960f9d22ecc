"""Steps of training that take all rows, because they are few: what is read, and the losses of all of them at once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from .sides import Pair


@dataclass(frozen=True, eq=False)
class AllRows:
    """Rows of two sides that every step takes.

    Attributes:
        read: What the network reads of them, or the first of its layers that change: tensors ``(N, ...)``.
        failing: Labels of those that fail, which come first.
        labels: Labels of all, ``(N,)``.
        weights: Of their losses, ``(N, 1)``.
    """

    read: tuple[Tensor, ...]
    failing: Tensor
    labels: Tensor
    weights: Tensor

    @classmethod
    def of(
        cls, read: Sequence[tuple[Tensor, ...]], failing: Sequence[Pair], kept: Sequence[Pair], keep: float
    ) -> AllRows:
        """The same from what is read of each set; the mean loss of rows to keep counts ``keep`` times."""
        joined = tuple(torch.cat(parts) for parts in zip(*read, strict=True))
        device = joined[0].device
        labels = [[y.to(device) for _, y in pairs] for pairs in (failing, kept)]
        counts = [sum(map(len, own)) for own in labels]
        each = [weight / max(1, count) for weight, count in zip((1.0, keep), counts, strict=True)]
        weights = torch.tensor(each, device=device).repeat_interleave(torch.tensor(counts, device=device))
        none = torch.zeros(0, dtype=torch.int64, device=device)
        both = torch.cat([none, *labels[0], *labels[1]])
        return cls(joined, both[: counts[0]], both, weights[:, None])

    def wanted(self, outputs: Tensor, smoothing: float) -> Tensor:
        """Minus the derivative of the loss in each log-probability, ``(N, k)``, with smoothed labels."""
        classes = outputs.shape[1]
        aims = torch.full_like(outputs, smoothing / classes)
        aims.scatter_(1, self.labels[:, None], 1 - smoothing + smoothing / classes)
        return aims * self.weights.to(outputs.dtype)

    def wrong(self, outputs: Tensor) -> int:
        """How many of the failing rows are wrong."""
        return int((outputs[: len(self.failing)].detach().argmax(1) != self.failing).sum())
