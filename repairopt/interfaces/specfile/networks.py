"""Factories of common networks, for spec files: ``factory: repairopt.interfaces.specfile.networks:mlp``."""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn


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
