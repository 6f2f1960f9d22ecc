"""Networks too large for a choice among all their weights are repaired by default, without being told how."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from repairopt import ErrorRate, KeepLabels, Settings, Verdict, solve_repair


@pytest.mark.slow
def test_the_default_call_takes_the_last_layer_of_a_residual_network_where_time_is_short(fingerprint):
    class Block(nn.Module):
        def __init__(self, width: int) -> None:
            super().__init__()
            self.body = nn.Sequential(
                nn.Conv2d(width, width, 3, padding=1, bias=False),
                nn.BatchNorm2d(width),
                nn.ReLU(),
                nn.Conv2d(width, width, 3, padding=1, bias=False),
                nn.BatchNorm2d(width),
            )

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.relu(x + self.body(x))

    torch.manual_seed(0)
    width = 96
    blocks = [nn.Conv2d(1, width, 3, padding=1), nn.ReLU(), nn.AvgPool2d(4), Block(width), Block(width)]
    model = nn.Sequential(*blocks, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width, 4)).eval()
    x = torch.randn(80, 1, 16, 16)
    y = model(x).argmax(1)
    reported, labels = x[:6], (y[:6] + 1) % 4
    before = fingerprint(model)
    goal, keep = ErrorRate(reported, labels, target=0.0), KeepLabels(x[6:], y[6:], tolerance=0.1)
    repair = solve_repair(model, goal, [keep], settings=Settings(time_limit=100.0))
    assert sum(parameter.numel() for parameter in model.parameters()) > 250_000
    assert fingerprint(model) == before
    assert set(repair.report.location.indices) == {"7.weight", "7.bias"}
    assert "first choice for a network of" in repair.report.location.method
    assert repair.report.verdict is Verdict.REPAIRED
    assert (repair.model(reported).argmax(1) == labels).all()
