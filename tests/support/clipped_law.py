"""A small controller that learned a clipped law, and leaves its bounds near the edge of the inputs."""

from __future__ import annotations

import copy
from functools import cache

import torch
from torch import nn


def controller(steps: int = 200) -> nn.Sequential:
    """Two measurements in, one command out; trained on inputs from -1 to 1, for so many steps."""
    model, state = _trained(steps)
    torch.set_rng_state(state)  # as if it were trained anew
    return copy.deepcopy(model)


@cache
def _trained(steps: int) -> tuple[nn.Sequential, torch.Tensor]:
    """The network, and the state of the random numbers after its training."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(2, 16), nn.ReLU(), nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 1))
    optimizer = torch.optim.Adam(model.parameters(), 3e-3)
    for _ in range(steps):
        x = 2 * torch.rand(256, 2) - 1
        loss = (model(x) - (x @ torch.tensor([[1.0], [0.7]])).clamp(-1, 1)).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return model.eval(), torch.get_rng_state()
