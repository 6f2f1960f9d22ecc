"""Tasks with known properties, for comparisons and examples."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.optim.adam import adam


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
    """The network after 200 steps of Adam on all samples.

    Adam is called as a function: the first optimizer of a process imports torch's compiler, which takes a second.
    """
    weights: list[torch.Tensor] = list(model.parameters())
    means, squares = ([torch.zeros_like(weight) for weight in weights] for _ in range(2))
    steps = [torch.zeros(()) for _ in weights]
    rates: Any = {"lr": 0.01, "beta1": 0.9, "beta2": 0.999, "eps": 1e-8, "weight_decay": 0.0}
    for _ in range(200):
        slopes = list(torch.autograd.grad(nn.functional.cross_entropy(model(x), y), weights))
        with torch.no_grad():
            adam(weights, slopes, means, squares, [], steps, amsgrad=False, maximize=False, **rates)
    return model.eval()
