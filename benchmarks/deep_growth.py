"""Processor time and memory of a repair of all layers as weights and samples grow.

    python benchmarks/deep_growth.py [--weights N ...] [--samples N ...] [--out FOLDER]

Networks of three linear layers on 64 normal features and ten classes; rows that are shifted by noise of a fixed shape
are to become right, what was right is to stay so, by constraint. Each repair runs in a process of its own, on one
thread. The time of the training's passes alone, as many steps of the same batches without an optimizer, stands beside.
Writes ``deep_growth.md``.
"""

from __future__ import annotations

import argparse
import json
import math
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any
from unittest.mock import patch

import environment  # noqa: F401 (before numpy and torch)
import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from repairopt import ErrorRate, KeepLabels, TrainThenCorrect, solve_repair
from repairopt.methods.adam import Adam

FEATURES, CLASSES, BATCH = 64, 10, 128
WEIGHTS, SAMPLES = (10_000, 100_000, 1_000_000, 10_000_000), (1_000, 10_000, 30_000)
FIXED_WEIGHTS, FIXED_SAMPLES = 100_000, 512


def resident() -> int:
    """Bytes in memory now."""
    return int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1]) * 4096


class Peak:
    """Largest memory while a block runs, looked at every few milliseconds."""

    def __enter__(self) -> Peak:
        self.before = self.most = resident()
        self.running = True
        self.thread = threading.Thread(target=self._watch, daemon=True)
        self.thread.start()
        return self

    def _watch(self) -> None:
        while self.running:
            self.most = max(self.most, resident())
            time.sleep(0.004)

    def __exit__(self, *_: Any) -> None:
        self.running = False
        self.thread.join()


def one_repair(weights: int, samples: int) -> dict[str, float]:
    """Train, repair, measure."""
    torch.manual_seed(0)
    width = round((math.sqrt((FEATURES + CLASSES + 2) ** 2 + 4 * weights) - FEATURES - CLASSES - 2) / 2)
    model = nn.Sequential(
        nn.Linear(FEATURES, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU(), nn.Linear(width, CLASSES)
    )
    half = samples // 2
    x, true, turn = torch.randn(half, FEATURES), torch.randn(CLASSES, FEATURES), torch.randn(FEATURES, FEATURES) / 8
    y, shifted = (x @ true.T).argmax(1), x + torch.randn(half, FEATURES) @ turn
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    for step in range(40):
        rows = torch.arange(step * BATCH, (step + 2) * BATCH) % half
        optimizer.zero_grad()
        F.cross_entropy(model(x[rows]), y[rows]).backward()
        optimizer.step()
    optimizer.zero_grad()
    del optimizer
    model.requires_grad_(False)
    steps, take = [0], Adam.step

    def counted(optimizer: Adam) -> None:
        steps[0] += 1
        take(optimizer)

    with Peak() as peak, patch.object(Adam, "step", counted):
        started = time.process_time()
        goal, keep = ErrorRate(shifted, y, target=0.0), KeepLabels(x, y, tolerance=0.0)
        report = solve_repair(model, goal, [keep], weights="all", method=TrainThenCorrect()).report
        seconds = time.process_time() - started
    for parameter in model.requires_grad_(True).parameters():
        parameter.grad = torch.zeros_like(parameter)
    few = min(steps[0], 10)
    started = time.process_time()
    for _ in range(few):
        (F.cross_entropy(model(x[:BATCH]), y[:BATCH]) + F.cross_entropy(model(shifted[:BATCH]), y[:BATCH])).backward()
    passes = (time.process_time() - started) / few * steps[0]
    count = sum(p.numel() for p in model.parameters())
    found: dict[str, float] = {"weights": count, "samples": samples, "steps": steps[0], "cpu seconds": seconds}
    found |= {"seconds of passes": passes, "peak MiB": (peak.most - peak.before) / 2**20}
    return found | {"bytes a weight": (peak.most - peak.before) / count, "met": float(report.verdict == "repaired")}


def table(records: list[dict[str, float]], of: str) -> list[str]:
    """One row a repair, and the exponent fitted to time."""
    names = list(records[0])
    lines = ["| " + " | ".join(names) + " |", "|---|" + "---|" * (len(names) - 1)]
    lines += ["| " + " | ".join(f"{one[name]:,.4g}" for name in names) + " |" for one in records]
    if len(records) > 1:
        logs = [np.log([one[name] for one in records]) for name in (of, "cpu seconds")]
        lines += ["", f"Fitted exponent of time in {of}: {np.polyfit(*logs, 1)[0]:.2f}."]
    return lines


def main() -> None:
    """Run each repair in a process, write and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--weights", type=int, nargs="*", default=list(WEIGHTS))
    parser.add_argument("--samples", type=int, nargs="*", default=list(SAMPLES))
    parser.add_argument("--one", type=int, nargs=2, metavar=("WEIGHTS", "SAMPLES"), help="one repair, as JSON")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results", help="folder for the results")
    options = parser.parse_args()
    torch.set_num_threads(1)
    if options.one:
        print(json.dumps(one_repair(*options.one)))
        return

    def run(weights: int, samples: int) -> dict[str, float]:
        command = [sys.executable, __file__, "--one", str(weights), str(samples)]
        out = subprocess.run(command, capture_output=True, text=True, check=True).stdout
        found: dict[str, float] = json.loads(out.strip().splitlines()[-1])
        print(found, file=sys.stderr, flush=True)
        return found

    lines = ["# Growth of a repair of all layers", "", "Made by `python benchmarks/deep_growth.py`; one run each.", ""]
    lines += ["Memory is what a repair adds to the process at its peak, training's own included.", ""]
    for of, cases in (
        ("weights", [(n, FIXED_SAMPLES) for n in options.weights]),
        ("samples", [(FIXED_WEIGHTS, n) for n in options.samples]),
    ):
        if cases:
            lines += [f"## In {of}", "", *table([run(*case) for case in cases], of), ""]
    text = "\n".join(lines)
    options.out.mkdir(parents=True, exist_ok=True)
    (options.out / "deep_growth.md").write_text(text, encoding="utf-8")
    print(text)


if __name__ == "__main__":
    main()
