"""Rows of each step of a training on several sides, drawn without replacement."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor


def draw_batches(
    sides: Sequence[Sequence[int]], size: int, steps: int, draw: torch.Generator
) -> Iterator[list[list[Tensor]]]:
    """For each step the rows of every set of each side: about ``size`` of a side, every row as often as any other.

    Args:
        sides: Numbers of rows of the sets of each side.
        size: Rows of a side in a step.
        steps: How many.
        draw: Random state.
    """
    streams = [[_stream(count, max(1, round(size * count / max(1, sum(own)))), draw) for count in own] for own in sides]
    for _ in range(steps):
        yield [[next(one) for one in own] for own in streams]


def _stream(count: int, size: int, draw: torch.Generator) -> Iterator[Tensor]:
    while True:
        yield from torch.randperm(count, generator=draw).split(min(size, count))
