"""Two processes share the rows of a repair and end with what one process ends with."""

from __future__ import annotations

import os
import socket
from pathlib import Path

import pytest
import torch
from forked import Fork
from sharded_repair import repair

from repairopt import ErrorRate, Settings, SpecificationError, TrainThenCorrect, solve_repair
from repairopt.network import Shards

SCRIPT = Path(__file__).resolve().parents[1] / "support" / "sharded_repair.py"


@pytest.mark.parametrize(("rows", "count"), [(101, 2), (3, 4), (8, 3), (0, 2)])
def test_every_row_has_one_process_and_none_is_added(rows, count):
    parts = [list(range(rows))[Shards(rank, count).own(rows)] for rank in range(count)]
    assert [row for part in parts for row in part] == list(range(rows))
    assert max(map(len, parts)) - min(map(len, parts)) <= 1


@pytest.mark.slow
@pytest.mark.skipif(os.name != "posix", reason="forks")
def test_two_processes_end_with_what_one_ends_with(tmp_path):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    known = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": "2"}
    with Fork(SCRIPT.read_text(encoding="utf-8"), tmp_path, **known) as started:
        with torch.random.fork_rng(devices=[]):
            alone = repair(sharded=False)
        assert started.wait(timeout=120) == 0, started.stderr.read()
    (first, told), (second, also) = (torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in range(2))
    assert told == also
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert told["verdict"] == str(alone.report.verdict) != "unsolved"
    assert told["goal"] == alone.report.verification.goal_after
    assert told["steps"] == [entry.step for entry in alone.report.rounds]
    for name, value in alone.model.state_dict().items():
        torch.testing.assert_close(first[name], value, rtol=1e-3, atol=1e-3)


def test_what_sharing_needs_is_said():
    model, x = torch.nn.Linear(3, 2), torch.randn(6, 3)
    goal = ErrorRate(x, model(x).argmax(1).flip(0), target=0.0)
    given = {"weights": "all", "method": TrainThenCorrect(sharded=True)}
    with pytest.raises(SpecificationError, match="no process group. Start the script by torchrun"):
        solve_repair(model, goal, **given)
    with pytest.raises(SpecificationError, match="sharded=True does not go with a time limit"):
        solve_repair(model, goal, settings=Settings(time_limit=9), **given)
