"""Digits of scikit-learn and small networks that learned from them; and one way to see what a method itself returns."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from repairopt.localize import WeightChange
from repairopt.methods import Outcome, Task
from repairopt.pipeline import Settings, prepare_repair
from repairopt.specify import Specification


@dataclass(frozen=True, eq=False)
class Digits:
    """A network, rows that it learned from, rows to repair on and rows that nothing is decided by."""

    model: nn.Module
    training: tuple[Tensor, Tensor]
    repair: tuple[Tensor, Tensor]
    test: tuple[Tensor, Tensor]
    history: tuple[dict[str, Tensor], ...]

    def wrong(self, model: nn.Module, rows: tuple[Tensor, Tensor]) -> Tensor:
        """Which rows a network gets wrong."""
        with torch.no_grad():
            return model(rows[0]).argmax(1) != rows[1]


def learned(model: nn.Module, shape: tuple[int, ...] = (64,), steps: int = 60) -> Digits:
    """The network after some steps of Adam on half of the digits."""
    data = pytest.importorskip("sklearn.datasets").load_digits()
    x = torch.tensor(data.data / 16, dtype=torch.float32).view(-1, *shape)
    y = torch.tensor(data.target)
    rows = [(x[span], y[span]) for span in (slice(900), slice(900, 1350), slice(1350, None))]
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    history = []
    for step in range(steps):
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(rows[0][0]), rows[0][1]).backward()
        optimizer.step()
        if step % 20 == 19:
            history.append(copy.deepcopy(model.state_dict()))
    return Digits(model.eval(), rows[0], rows[1], rows[2], tuple(history))


def proposal(
    method: Any, model: nn.Module, goal: Any, *, constraints: Any = (), seed: int = 0, **options: Any
) -> tuple[Task, Outcome, nn.Module]:
    """What a method proposes by itself, whatever the repair would make of it, and a copy of the model with it."""
    settings = {"weights": "auto", "settings": Settings(seed=seed), **options}
    task = prepare_repair(model, Specification(goal, constraints), method=method, **settings).task
    outcome = method.run(task)
    found = outcome.candidate
    change = WeightChange(task.location, found) if isinstance(found, np.ndarray) else found
    return task, outcome, change.apply(model)
