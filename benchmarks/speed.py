"""CPU seconds of one repair of the census network, against what its network evaluations alone cost; and memory.

    python benchmarks/speed.py

Prints markdown tables and writes them to ``results/speed.md``. See ``benchmarks/README.md``.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import environment  # noqa: F401 (before numpy and torch)
import numpy as np
import torch
from protocol import Task, measure, tasks
from torch import nn

import repairopt.pipeline.prepare
from repairopt import CARE, ErrorRate, Incremental, KeepLabels, Sequential, Settings, SurrogateSettings, solve_repair
from repairopt.localize import localize
from repairopt.network import Engine
from repairopt.surrogate import fit_surrogate

BUFFER = 0.004
ENGINES: list[Engine] = []


class Recorded(Engine):
    """An engine that can be found again after the call."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        ENGINES.append(self)


def cpu(function: Callable[[], Any]) -> tuple[float, Any]:
    """CPU seconds of a call, and its result."""
    started = time.process_time()
    found = function()
    return time.process_time() - started, found


def least(function: Callable[[], Any], repeats: int) -> float:
    """The least CPU seconds of some calls: what the machine can do when nothing disturbs it."""
    return min(cpu(function)[0] for _ in range(repeats))


def census_repair(task: Task, split: int, method: Any) -> tuple[float, Any]:
    """The repair in the mode that meets the quality bar: data and network are loaded, properties are built."""
    half = task.part(*task.indices(split)[0])
    keep = [half.keep(0.02)]
    return cpu(
        lambda: solve_repair(
            task.network, half.goal, keep, weights=task.weights, method=method, settings=Settings(seed=split)
        )
    )


def one_process(splits: list[int]) -> list[dict[str, Any]]:
    """What a fresh process measures: CPU seconds of each call, stages, quality."""
    task = tasks()["M1 gender"]
    rows = []
    for split in splits:
        seconds, result = census_repair(task, split, Sequential(buffer=BUFFER))
        held_out = task.part(*task.indices(split)[1])
        before, after = (measure(network, held_out) for network in (task.network, result.model))
        change = 100 * (after["accuracy"] - before["accuracy"])
        rows.append({"cpu": seconds, "stages": result.report.seconds, "gap": after["gap"], "points": change})
    return rows


def fresh(*arguments: str, quick: bool = False) -> Any:
    """Run this file in a fresh process, or in this one where it should be quick; its last line is JSON."""
    if quick:
        return run_process(arguments[0], [int(number) for number in arguments[1:]])
    found = subprocess.run([sys.executable, __file__, *arguments], capture_output=True, text=True, check=True)
    return json.loads(found.stdout.splitlines()[-1])


def run_process(what: str, numbers: list[int]) -> Any:
    """What the process of :func:`fresh` does."""
    return one_process(numbers) if what == "--process" else large_process(*numbers)


def repair_table(splits: int, processes: int, *, quick: bool) -> str:
    """First calls in fresh processes, warmed calls in one process, quality over the splits."""
    begun, *rows = fresh("--process", *map(str, [0, *range(splits)]), quick=quick)
    first = [begun["cpu"], *(fresh("--process", str(split))[0]["cpu"] for split in range(1, processes))]
    seconds = [row["cpu"] for row in rows]
    total = sum(row["stages"]["total"] for row in rows)
    stages = {stage: sum(row["stages"].get(stage, 0.0) for row in rows) / total for stage in rows[0]["stages"]}
    gap, points = np.mean([row["gap"] for row in rows]), np.mean([row["points"] for row in rows])
    lines = [
        "### Census gender, the paper's 24 weights, sequential with a buffer",
        "",
        "| what | value |",
        "|---|---|",
        f"| held-out gap, mean of {splits} splits | {gap:.4f} |",
        f"| held-out accuracy, points | {points:+.2f} |",
        f"| first call in a fresh process, CPU s | {np.mean(first):.3f} ({min(first):.3f} to {max(first):.3f}) |",
        f"| warmed call, CPU s | {np.mean(seconds):.3f} ({min(seconds):.3f} to {max(seconds):.3f}) |",
        *(f"| of it {stage} | {100 * value:.0f} % |" for stage, value in stages.items() if stage != "total"),
    ]
    return "\n".join(lines)


def floor_table(task: Task, splits: int, repeats: int) -> str:
    """The network evaluations that the repair made, at the measured rate, and the ratio to it."""
    repairopt.pipeline.prepare.Engine = Recorded
    census_repair(task, 0, Sequential(buffer=BUFFER))  # warm
    evaluations, seconds = [], []
    for split in range(splits):
        ENGINES.clear()
        seconds.append(census_repair(task, split, Sequential(buffer=BUFFER))[0])
        evaluations.append(ENGINES[0].evaluations)
    repairopt.pipeline.prepare.Engine = Engine
    half = task.part(*task.indices(0)[0])
    engine = Engine(task.network, localize(task.network, task.weights).indices)
    inputs, zero = half.goal.samples.inputs, np.zeros(engine.n)
    predict = engine.predict(zero)
    predict(inputs)  # fills the cache of activations before the first changed layer
    rate = len(inputs) / least(lambda: predict(inputs), repeats)
    floor = float(np.mean(evaluations)) / rate
    checked = 2 * (len(inputs) + len(half.rows))
    with torch.no_grad():
        whole = len(inputs) / least(lambda: task.network(inputs), repeats)
    checking = checked / whole
    lines = [
        "### Floor",
        "",
        "| what | value |",
        "|---|---|",
        f"| evaluations of the changed part in one repair, mean | {np.mean(evaluations):,.0f} |",
        f"| rate of the changed part, one batch of {len(inputs):,}, inputs/s | {rate:,.0f} |",
        f"| floor: these evaluations, CPU s | {floor:.4f} |",
        f"| both whole networks once on the repair data, for verification, CPU s | {checking:.4f} |",
        f"| the repair, warmed, CPU s | {np.mean(seconds):.4f} |",
        f"| ratio to the floor | {np.mean(seconds) / floor:.1f} |",
        f"| ratio to floor and verification | {np.mean(seconds) / (floor + checking):.1f} |",
    ]
    return "\n".join(lines)


def parts_table(task: Task, repeats: int) -> str:
    """CARE's localization and the sampled full surrogate."""
    half = task.part(*task.indices(0)[0])
    care = least(lambda: localize(task.network, CARE(count=13), goal=half.goal), repeats)
    gradient = least(lambda: localize(task.network, "auto", goal=half.goal), repeats)
    engine = Engine(task.network, localize(task.network, task.weights).indices)
    settings = SurrogateSettings(kind="full", radius=1.0)
    seconds, fitted = cpu(lambda: fit_surrogate(engine, half.goal, settings))
    vectors = fitted.fit_error.evaluations if fitted.fit_error else 0
    inputs = half.goal.samples.inputs
    predict = engine.predict()
    rate = len(inputs) / least(lambda: predict(inputs), repeats)
    floor = vectors * len(inputs) / rate
    lines = [
        "### Parts",
        "",
        "| what | CPU s |",
        "|---|---|",
        f"| CARE, 13 of 124 neurons | {care:.3f} |",
        f"| automatic weights (gradient) | {gradient:.3f} |",
        f"| full surrogate, 24 weights: {vectors:,} weight vectors × {len(inputs):,} inputs | {seconds:.3f} |",
        f"| floor of it: its evaluations one weight vector at a time | {floor:.3f} |",
    ]
    return "\n".join(lines)


def large_process(rows: int, width: int) -> dict[str, Any]:
    """A repair of ``10 width`` weights with ``rows`` kept rows of 10 classes: seconds and memory."""
    torch.manual_seed(0)
    classes = 10
    centers = torch.randn(classes, 50)
    labels = torch.arange(rows) % classes
    inputs = centers[labels] + 2.0 * torch.randn(rows, 50)
    model = nn.Sequential(nn.Linear(50, width), nn.ReLU(), nn.Linear(width, classes, bias=False))
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    for _ in range(60):
        pick = torch.randint(rows, (1000,))
        loss = nn.functional.cross_entropy(model(inputs[pick]), labels[pick])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    moved = labels[:2000]
    shifted = centers[moved] + 2.0 * torch.randn(2000, 50) + 1.5  # a shift that the network has not seen
    with torch.no_grad():
        wrong = float((model(shifted).argmax(1) != moved).double().mean())
    found: dict[str, Any] = {"wrong before": wrong}
    for name, method in (("sequential", Sequential(max_steps=10)), ("incremental", Incremental())):
        goal = ErrorRate(shifted, moved, target=wrong / 2)
        keep = KeepLabels(inputs, labels, allowed=len(labels) // 50)
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10
        seconds, result = cpu(lambda: solve_repair(model, goal, [keep], weights="2.weight", method=method))  # noqa: B023
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10
        report = result.report
        found[name] = {
            "cpu": seconds,
            "before": before,
            "peak": peak,
            "wrong": report.verification.goal_after,
            "verdict": str(report.verdict),
            "weights": report.location.size,
        }
    return found


def large_table(rows: int, width: int, *, quick: bool) -> str:
    """Time and memory at scale."""
    found = fresh("--large", str(rows), str(width), quick=quick)
    wrong = found.pop("wrong before")
    lines = [
        f"### {rows:,} rows × 10 classes × {10 * width:,} weights (last layer)",
        "",
        "| method | CPU s | memory of the process before, MiB | peak, MiB | wrong shifted points | verdict |",
        "|---|---|---|---|---|---|",
    ]
    for name, run in found.items():
        shown = f"{wrong:.3f} → {run['wrong']:.3f}"
        lines.append(
            f"| {name} | {run['cpu']:.1f} | {run['before']:.0f} | {run['peak']:.0f} | {shown} | {run['verdict']} |"
        )
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description="Speed and memory of a repair.")
    parser.add_argument("--splits", type=int, default=10)
    parser.add_argument("--quick", action="store_true", help="one split, few repeats, a small large case, one process")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results", help="folder for the tables")
    parser.add_argument("--process", type=int, nargs="+", help=argparse.SUPPRESS)
    parser.add_argument("--large", type=int, nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    torch.set_num_threads(1)
    if options.process or options.large:
        print(json.dumps(run_process("--process" if options.process else "--large", options.process or options.large)))
        return
    task, quick = tasks()["M1 gender"], options.quick
    splits, repeats = (1, 2) if quick else (options.splits, 20)
    text = "\n\n".join(
        [
            repair_table(splits, 1 if quick else 5, quick=quick),
            floor_table(task, splits, repeats),
            parts_table(task, 2 if quick else 5),
            large_table(*((2_000, 10) if quick else (100_000, 100)), quick=quick),
        ]
    )
    options.out.mkdir(parents=True, exist_ok=True)
    (options.out / "speed.md").write_text(text + "\n")
    print(text)


if __name__ == "__main__":
    main()
