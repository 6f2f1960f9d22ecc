"""Small repairs of a network, of more and more rows, that say what one of all rows will cost."""

from __future__ import annotations

import math
import threading
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from repairopt.methods import SQP
from repairopt.pipeline import DEFAULTS, Settings, solve_repair, unless_interrupted
from repairopt.report import Repair
from repairopt.specify import ErrorRate, KeepLabels

POINTS = 3  # rows of a trial that are to get another label
FIRST, TIMES = 50, 4  # rows of the first trial, and by how much each has more than the one before
SHARE = 0.5  # of the time limit that a trial may be expected to take; the second one, without which little is known, 1
POWERS = (0.5, 1.5)  # of the number of rows, with which time grows beyond the last trial: these at least, and at most
LOOK = 0.005  # seconds between two looks at the memory
LIMIT = "time limit"


@dataclass(frozen=True)
class Trial:
    """Small repairs of the network, run to see what one costs; the figures are those of the last, which had most rows.

    Attributes:
        weights: Which weights could change, as given to ``solve_repair``.
        count: How many weights that are.
        rows: Rows of the trial.
        verdict: How it ended.
        seconds: Processor time of the trial.
        expected_seconds: The same for all rows, by the power of their number with which it grew between the last two
            trials. What a repair takes depends on the goal as well.
        expected_bytes: Memory of the process at its peak, for all rows.
        at_least: Whether the trial ended at its time limit: ``expected_seconds`` is what it took, and a repair takes
            more.
    """

    weights: str
    count: int
    rows: int
    verdict: str
    seconds: float
    expected_seconds: float
    expected_bytes: int
    at_least: bool = False


def warm_up(model: Any, few: Tensor, outputs: Tensor) -> None:
    """A repair that nobody times: the first one of a process loads libraries."""
    _repair(model, "last", few[:FIRST], outputs[:FIRST], 1.0)


def try_repairs(model: Any, choice: str, inputs: Tensor, outputs: Tensor, total: int, time_limit: float) -> Trial:
    """Repairs of more and more rows, up to all there are, while the next one is expected in time.

    Args:
        model: As for ``solve_repair``.
        choice: Which weights may change.
        inputs: Rows ``(N, ...)``.
        outputs: What the network gives for them, ``(N, k)``.
        total: Rows of the repair that the figures are for.
        time_limit: Seconds for each.
    """
    costs: list[tuple[int, float, int]] = []  # rows, seconds, bytes
    while True:
        count = min(len(inputs), total, FIRST * TIMES ** len(costs))
        with _peak() as peak:
            repair, seconds = _repair(model, choice, inputs[:count], outputs[:count], time_limit)
        costs.append((count, seconds, peak[0]))
        stopped, share = repair.report.stopped, SHARE if len(costs) > 1 else 1.0
        if stopped or count == min(len(inputs), total) or TIMES * seconds > share * time_limit:
            break
    report = repair.report
    return Trial(
        weights=choice,
        count=report.location.size,
        rows=count,
        verdict=str(report.verdict) + (f" ({stopped})" if stopped else ""),
        seconds=seconds,
        expected_seconds=seconds if stopped == LIMIT else _expected(costs, total),
        expected_bytes=_expected_bytes(costs, total, report.location.size),
        at_least=stopped == LIMIT,
    )


def _expected(costs: list[tuple[int, float, int]], total: int) -> float:
    """Seconds of a repair of ``total`` rows, on the power of their number that leads through the last two trials."""
    rows, seconds, _ = costs[-1]
    if total <= rows:
        return seconds
    power = 1.0
    if len(costs) > 1 and rows > costs[-2][0]:
        power = math.log(max(seconds, 1e-3) / max(costs[-2][1], 1e-3)) / math.log(rows / costs[-2][0])
    low, high = POWERS
    return float(seconds * (total / rows) ** min(high, max(low, power)))


def _expected_bytes(costs: list[tuple[int, float, int]], total: int, weights: int) -> int:
    """Memory at the peak, on the line through the last two trials, or that of all derivatives, which are in batches."""
    rows, _, peak = costs[-1]
    each = 8.0 * weights
    if len(costs) > 1 and rows > costs[-2][0]:
        each = (peak - costs[-2][2]) / (rows - costs[-2][0])
    return peak + round(min(DEFAULTS.memory_limit, max(0.0, each) * max(0, total - rows)))


def _repair(model: Any, choice: str, few: Tensor, outputs: Tensor, time_limit: float) -> tuple[Repair, float]:
    """Some rows are to get their second best class, the others to keep theirs, as in most repairs; processor time."""
    best, order = outputs.sort(1, descending=True)
    order, wrong = order.cpu(), (best[:, 0] - best[:, 1]).argsort()[:POINTS].cpu()
    kept = torch.ones(len(few), dtype=torch.bool)
    kept[wrong] = False
    goal: Any = ErrorRate(few[wrong], order[wrong, 1])
    keep = KeepLabels(few[kept], order[kept, 0], tolerance=0.05) if bool(kept.any()) else ()
    started = time.process_time()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        settings = Settings(time_limit=time_limit)
        repair = unless_interrupted(solve_repair(model, goal, keep, weights=choice, method=SQP(), settings=settings))
    return repair, time.process_time() - started


def _memory() -> int:
    """Bytes of memory that the process holds."""
    import psutil

    return int(psutil.Process().memory_info().rss)


@contextmanager
def _peak() -> Iterator[list[int]]:
    """The most memory that the process holds meanwhile, in a list of one."""
    found, ended = [_memory()], threading.Event()

    def watch() -> None:
        while not ended.wait(LOOK):
            found[0] = max(found[0], _memory())

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    try:
        yield found
    finally:
        ended.set()
        watcher.join()
        found[0] = max(found[0], _memory())
