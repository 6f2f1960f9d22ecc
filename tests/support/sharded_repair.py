"""Processes that share a repair, as those of ``torchrun``, but forked; each writes what it ends with into a folder."""

from __future__ import annotations

import gc
import os
import sys
from pathlib import Path
from typing import Any

import torch
from torch import distributed as dist, nn

from repairopt import Bound, ErrorRate, FlipRate, KeepLabels, Settings, TrainThenCorrect, solve_repair


def small_task() -> tuple[nn.Module, torch.Tensor, torch.Tensor, torch.Tensor]:
    """A network, 101 clean rows, the same rows moved, and labels that it has learned on clean rows."""
    torch.manual_seed(0)
    x = torch.randn(101, 4)
    y = (x[:, 0] > 0).long() + (x[:, 1] > 0).long()
    model = nn.Sequential(nn.Linear(4, 16), nn.ReLU(), nn.Linear(16, 3))
    optimizer = torch.optim.Adam(model.parameters(), 0.02)
    for _ in range(100):
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(x), y).backward()
        optimizer.step()
    return model.eval(), x, x + torch.tensor([1.0, -0.5, 0.0, 0.0]), y


def repair(sharded: bool) -> Any:
    """Hard rows, a bound with cross-validated parts, and points."""
    model, x, moved, y = small_task()
    keep = KeepLabels(x, y, tolerance=0.0)
    flips = Bound(FlipRate(x, y), limit=0.2, name="flips")
    method = TrainThenCorrect(epochs=1, batch=33, folds=2, ways=(0.5, 1.0), confidence=0.5, sharded=sharded)
    given: Any = {"weights": "all", "method": method, "data": [(x, y), (moved, y)], "settings": Settings(seed=1)}
    return solve_repair(model, ErrorRate(moved, y, target=0.1), [keep, flips], held_out=(moved[:9], y[:9]), **given)


def take_part(rank: int, folder: Path) -> None:
    """What one process does; the address of the group and its size are in the environment."""
    dist.init_process_group("gloo", rank=rank)
    found = repair(sharded=True)
    report = found.report
    told = {"verdict": str(report.verdict), "goal": report.verification.goal_after, "rows": report.rows_used}
    told["steps"] = [entry.step for entry in report.rounds]
    torch.save((dict(found.model.state_dict()), told), folder / f"{rank}.pt")
    dist.destroy_process_group()


if __name__ == "__main__":
    torch.set_num_threads(1)
    small_task()  # loads what all need
    gc.freeze()
    for rank in range(int(os.environ["WORLD_SIZE"])):
        if not os.fork():
            take_part(rank, Path(sys.argv[1]))
            os._exit(0)
    os._exit(any(os.wait()[1] for _ in range(int(os.environ["WORLD_SIZE"]))))
