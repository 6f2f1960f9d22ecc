"""A small task with a known fault: two features, the second a protected group, and one weight that favors group 1."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from repairopt import GroupGap, KeepLabels


class Steps(nn.Module):
    """Many hidden units with a step activation: no derivative with respect to what comes before it."""

    def __init__(self, units: int = 16) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(2, units), nn.Linear(units, 2, bias=False)
        with torch.no_grad():
            self.first.weight.copy_(torch.tensor([[1.0, 0.6]]).repeat(units, 1))
            self.first.bias.copy_(torch.linspace(-1.5, 1.5, units) - 0.3)
            self.last.weight.copy_(torch.tensor([[-1.0], [1.0]]).repeat(1, units) / units)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(torch.heaviside(self.first(x), torch.ones((), dtype=x.dtype)) - 0.5)


def ramps() -> nn.Module:
    """``class 1 - class 0 = 2 merit + 1.6 (group - 1/2)``, through ReLUs; the second weight is the fault."""
    model = nn.Sequential(nn.Linear(2, 4), nn.ReLU(), nn.Linear(4, 2))
    with torch.no_grad():
        model[0].weight.copy_(torch.tensor([[1.0, 0.0], [-1.0, 0.0], [0.0, 1.0], [0.0, -1.0]]))
        model[0].bias.copy_(torch.tensor([0.0, 0.0, 0.0, 1.0]))
        model[2].weight.copy_(torch.tensor([[-1.0, 1.0, -0.4, 0.4], [1.0, -1.0, 0.4, -0.4]]))
        model[2].bias.zero_()
    return model


@dataclass(frozen=True, eq=False)
class Task:
    """Model, repair data and held-out data."""

    model: nn.Module
    inputs: Tensor
    labels: Tensor
    other_inputs: Tensor
    other_labels: Tensor

    def gap(self, target: float = 0.05, **options) -> GroupGap:
        return GroupGap.sampled(self.inputs, 1, count=400, target=target, **options)

    def keep(self, tolerance: float = 0.03, **options) -> KeepLabels:
        return KeepLabels(self.inputs, self.labels, tolerance=tolerance, **options)

    @property
    def held_out(self) -> tuple[Tensor, Tensor]:
        return self.other_inputs, self.other_labels


def task(model: nn.Module | None = None, count: int = 400, dtype: torch.dtype = torch.float64) -> Task:
    """The label is the sign of the merit, some noise apart; the group says nothing about it."""
    draw = torch.Generator().manual_seed(0)
    merit = torch.randn(2 * count, generator=draw, dtype=dtype)
    group = torch.randint(2, (2 * count,), generator=draw).to(dtype)
    noise = 0.1 * torch.randn(2 * count, generator=draw, dtype=dtype)
    inputs, labels = torch.stack([merit, group], dim=1), (merit + noise > 0).long()
    model = (ramps() if model is None else model).to(dtype).eval()
    return Task(model, inputs[:count], labels[:count], inputs[count:], labels[count:])
