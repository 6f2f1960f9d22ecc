"""Factories of common networks, for spec files: ``factory: repairopt.interfaces.specfile.networks:mlp``."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn


def mlp(sizes: Sequence[int]) -> nn.Sequential:
    """Fully connected layers with ReLU between them, weights drawn at random; layers are ``0``, ``2``, ``4``, ...

    Args:
        sizes: Inputs, hidden layers, classes; at least two numbers.
    """
    if len(sizes) < 2:
        raise ValueError(f"sizes={list(sizes)}: expected inputs, hidden layers and classes, such as [12, 16, 2]")
    layers: list[nn.Module] = []
    for i, (before, after) in enumerate(zip(sizes[:-1], sizes[1:], strict=True)):
        layers += [nn.ReLU()] if i else []
        layers.append(nn.Linear(before, after))
    return nn.Sequential(*layers)


class Normalized(nn.Module):
    """Raw inputs ``(N, n)`` as ``(x - mean) / scale``; mean and scale are buffers, which no repair changes."""

    mean: Tensor
    scale: Tensor

    def __init__(self, inputs: int) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(inputs))
        self.register_buffer("scale", torch.ones(inputs))

    def forward(self, x: Tensor) -> Tensor:
        """The normalized inputs, ``(N, n)``."""
        return (x - self.mean) / self.scale


def nnet(sizes: Sequence[int]) -> nn.Sequential:
    """The network of a ``.nnet`` file on raw inputs: as :func:`mlp`, after ``(x - mean) / scale``."""
    return nn.Sequential(Normalized(sizes[0]), *mlp(sizes))
