"""Loads the networks and data of the AutoRIC paper from the folder that REPAIROPT_DATA names."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn


def load(name: str) -> dict[str, np.ndarray]:
    """Arrays of one bundle, for example ``census.npz``."""
    folder = Path(os.environ.get("REPAIROPT_DATA", Path(__file__).resolve().parents[1] / ".." / "shared" / "data"))
    path = folder / "autoric" / name
    if not path.is_file():
        sys.exit(
            f"{name} is not in {folder / 'autoric'}. Set REPAIROPT_DATA to the folder that holds autoric/{name}, or "
            f"run examples/digits_failures.py, which needs no data."
        )
    with np.load(path, allow_pickle=False) as bundle:
        return {key: bundle[key] for key in bundle.files}


class FeedForward(nn.Module):
    """The paper's M1 and M2: 64-32-16-8-4-2, ReLU between, logits out."""

    def __init__(self, weights: dict[str, np.ndarray]) -> None:
        super().__init__()
        for name in ("fc1", "fc2", "fc3", "fc4", "fc5", "fc6"):
            rows, columns = weights[f"{name}.weight"].shape
            setattr(self, name, nn.Linear(columns, rows))
        self.load_state_dict({key: torch.from_numpy(value) for key, value in weights.items()})
        self.eval()

    def forward(self, x: Tensor) -> Tensor:
        """Logits ``(N, 2)`` of rows ``(N, d)``."""
        for name in ("fc1", "fc2", "fc3", "fc4", "fc5"):
            x = torch.relu(getattr(self, name)(x))
        return self.fc6(x)


def halves(split: int, count: int) -> tuple[Tensor, Tensor]:
    """Rows to repair on and rows to report on: ``split`` 0 and 1 are the two directions of one division, and so on."""
    order = torch.randperm(count, generator=torch.Generator().manual_seed(split // 2))
    first, second = order[: count // 2], order[count // 2 :]
    return (first, second) if split % 2 == 0 else (second, first)
