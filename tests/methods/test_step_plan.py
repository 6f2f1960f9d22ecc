"""Steps of a training on two sides: small where the update of the weights is cheap beside the passes of few rows."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from repairopt import TrainThenCorrect
from repairopt.methods.training.pass_cost import operations
from repairopt.methods.training.step_plan import StepPlan, plan_steps

FEATURES = nn.Sequential(
    nn.Conv2d(1, 32, 4, stride=2, padding=1), nn.ReLU(), nn.Conv2d(32, 64, 4, stride=2, padding=1), nn.Flatten()
)
CONVOLUTIONS = nn.Sequential(*FEATURES, nn.Linear(64 * 49, 10))
LINEAR = nn.Sequential(nn.Flatten(), nn.Linear(784, 1000), nn.ReLU(), nn.Linear(1000, 1000), nn.Linear(1000, 10))


class Words(nn.Module):
    """An LSTM, whose steps come one after the other however few the rows."""

    def __init__(self) -> None:
        super().__init__()
        self.lstm, self.out = nn.LSTM(28, 4, batch_first=True), nn.Linear(4, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """``(N, 1, 28, 28)`` to ``(N, 10)``, over 28 x 40 words."""
        found: torch.Tensor = self.out(self.lstm(x.squeeze(1).repeat(1, 40, 1))[0][:, -1])
        return found


class Rows(nn.Module):
    """An LSTM that reads few rows of pixels."""

    def __init__(self) -> None:
        super().__init__()
        self.lstm, self.out = nn.LSTM(28, 64, batch_first=True), nn.Linear(64, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """``(N, 1, 28, 28)`` to ``(N, 10)``."""
        found: torch.Tensor = self.out(self.lstm(x.squeeze(1))[0][:, -1])
        return found


def planned(model: nn.Module, rows: list[int], *, divisible: bool = True, batch: int = 128) -> StepPlan:
    def cost(batch: int) -> float:
        count = sum(min(own, batch) for own in rows)
        return 3 * operations(model, torch.zeros(count, 1, 28, 28)) if count else 0.0

    sizes = [parameter.numel() for parameter in model.parameters()]
    return plan_steps(rows, TrainThenCorrect(batch=batch), cost, sizes=sizes, divisible=divisible)


@pytest.mark.parametrize("model", [CONVOLUTIONS, Rows()])
def test_weights_that_are_read_at_many_positions_learn_in_small_steps_in_no_more_time(model):
    small, whole = planned(model, [5_000, 5_000]), planned(model, [5_000, 5_000], divisible=False)
    assert whole.batch == 128
    assert whole.count == 8 * 40
    assert small.batch == 32
    assert 2.4 * whole.count < small.count < 4 * whole.count
    assert small.count * small.work < whole.count * whole.work


@pytest.mark.parametrize(
    ("model", "rows", "batch"),
    [
        (LINEAR, [5_000, 5_000], 128),  # an update is as dear as the passes of a few rows
        (Words(), [1_000, 1_000], 128),  # as is a pass of few rows
        (CONVOLUTIONS, [40, 5_000], 128),  # few reported rows
        (CONVOLUTIONS, [5_000, 5_000], 48),
        (CONVOLUTIONS, [0, 0], 128),
    ],
)
def test_what_gains_nothing_is_not_divided(model, rows, batch):
    assert planned(model, rows, batch=batch).batch == batch
