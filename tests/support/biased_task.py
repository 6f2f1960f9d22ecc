"""A small task with a known fault: two features, the second a protected group, and one weight that favors group 1."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from typing import Any

import torch
from torch import Tensor, nn

from repairopt import (
    CallableProperty,
    Classifier,
    GroupGap,
    KeepLabels,
    Settings,
    Specification,
    solve_repair,
)
from repairopt.methods import find_method


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

    def keep(self, share: float = 0.03, **options) -> KeepLabels:
        """Right answers stay right, but for so many as a share of all samples."""
        return KeepLabels(self.inputs, self.labels, allowed=int(share * len(self.labels) + 1e-9), **options)

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


def repair(model: Any, goal: Any, constraints: Any = (), method: Any = "auto", **options: Any) -> Any:
    """``solve_repair`` with settings, and fields of the method, as plain keywords; for tests that vary one of them."""
    names = {field.name for field in fields(Settings)}
    settings = Settings(**{name: options.pop(name) for name in list(options) if name in names})
    found: Any = find_method(method)
    own = {field.name for field in fields(found)} if hasattr(found, "__dataclass_fields__") else set()
    for name in {"trust_radius", "shrink"} - own:
        options.pop(name, None)  # a default of many tests, which this method has no use for
    found = replace(found, **chosen) if (chosen := {n: options.pop(n) for n in list(options) if n in own}) else found
    if "target" in options:
        target = options.pop("target")
        goal = CallableProperty(goal, target) if not hasattr(goal, "value") else replace(goal, target=target)
    if "watch" in options:
        goal, constraints = Specification(goal, tuple(constraints), (), options.pop("watch")), ()
    if "forward_fn" in options:
        model = Classifier(model, options.pop("forward_fn"))
    return solve_repair(model, goal, constraints, method=found, settings=settings, **options)
