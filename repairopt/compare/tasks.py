"""Tasks with known properties, for comparisons and examples."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn


def loan_decisions(count: int = 4000, seed: int = 0) -> tuple[Any, Any, Any]:
    """A network that learned from decisions on loans that favored one group: the first thing to repair.

    The decision rests on the first two features; the sixth is the group, which the history favored where it is 1.

    Returns:
        The trained network (torch, 6-16-8-2), features ``(count, 6)`` and past decisions ``(count,)``.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        x = torch.randn(count, 6)
        x[:, 5] = (x[:, 5] > 0).float()
        y = (x[:, 0] + 0.5 * x[:, 1] + 0.4 * x[:, 5] + 0.5 * torch.randn(count) > 0).long()
        model = nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, 8), nn.ReLU(), nn.Linear(8, 2))
    return train_network(model, x, y), x, y


def train_network(model: nn.Module, x: torch.Tensor, y: torch.Tensor) -> nn.Module:
    """The network after 200 steps of Adam on all samples."""
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    for _ in range(200):
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(x), y).backward()
        optimizer.step()
    return model.eval()
