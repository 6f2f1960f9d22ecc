"""What a pass costs is what torch counts, and recurrent layers cost more than their operations."""

from __future__ import annotations

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from repairopt.methods.training.pass_cost import RECURRENT_STEP, operations


def test_operations_are_those_that_torch_counts():
    network = nn.Sequential(nn.Conv2d(3, 8, 3, bias=False), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 36, 5, bias=False))
    x = torch.zeros(7, 3, 8, 8)
    with FlopCounterMode(display=False) as counter:
        network(x)
    assert operations(network, x) == counter.get_total_flops()
    assert not any(module._forward_hooks for module in network.modules())


def test_recurrent_layers_cost_a_step_for_each_position():
    class Last(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.lstm = nn.LSTM(4, 3, num_layers=2, batch_first=True)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.lstm(x)[0][:, -1]

    weights = sum(p.numel() for p in Last().parameters())
    assert operations(Last(), torch.zeros(5, 11, 4)) == 2 * 11 * RECURRENT_STEP + 2.0 * weights * 5 * 11
