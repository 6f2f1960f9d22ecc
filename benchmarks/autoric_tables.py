"""Tables 4, 6, 7 and 8 of the AutoRIC paper as a protocol: fitted on one half of the data, reported on the other half.

    python benchmarks/autoric_tables.py --tables 4 6 7 8 --splits 10

Prints the tables as markdown and writes every run to a CSV file. See ``benchmarks/README.md``.
"""

from __future__ import annotations

import argparse
import csv
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import environment  # noqa: F401 (before numpy and torch)
import torch
from fine_tuning import Sweep, care_swarm, majority, tune
from protocol import Task, measure, tasks
from tables import table_4, table_6, table_7, table_8
from torch import nn

from repairopt import (
    Bisection,
    FixLabels,
    Incremental,
    OneShot,
    Sequential,
    Settings,
    SurrogateSettings,
    solve_repair,
)

TOLERANCE = 0.02  # share of right answers that a repair may break; OneShot does not look at it
FAITHFUL = {"surrogate": SurrogateSettings(kind="full", radius=1.0), "trust_radius": 1.0}
BUFFER = 0.004  # taken off the target, for the noise of counting on half of the data
STAGES = ("surrogate", "linearize", "select", "solve", "total")


@dataclass(frozen=True, eq=False)
class Run:
    """What a method returned: a network, its CPU seconds, and anything to put into the CSV file."""

    network: nn.Module
    seconds: float
    extra: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class PeerSettings:
    """Size of the runs of the peers; smaller with ``--quick``."""

    steps: int = 300
    swarm: int = 100


Runner = Callable[[Task, int, PeerSettings], Run]


def repaired(method: Any, *, with_constraints: bool = True, weights: Any = None, left: float = 1.0) -> Runner:
    """A runner for one method of the library; ``left`` is the target as a share of the task's own."""

    def run(task: Task, split: int, settings: PeerSettings) -> Run:
        half = task.part(*task.indices(split)[0])
        goal, how, faithful = half.goal, method, isinstance(method, OneShot | Incremental | Bisection)
        constraints: list[Any] = [half.keep(TOLERANCE)]
        if faithful:
            constraints = [half.keep(1.0 if isinstance(method, OneShot) else TOLERANCE)]
        if isinstance(method, OneShot):
            how = replace(method, selection=task.selection, use_constraints=with_constraints)
            constraints.append(FixLabels(half.rows, half.labels))  # the negative rows
        elif isinstance(method, Incremental):
            how = replace(method, selection=task.selection)
        elif task.guard and isinstance(method, Sequential):
            constraints.append(half.recall(buffer=0.01))
        started = time.process_time()
        result = solve_repair(
            task.network,
            replace(goal, target=0.0 if faithful else left * task.target),
            constraints,
            weights=task.weights if weights is None else weights,
            method=how,
            settings=Settings(seed=split),
        )
        seconds = time.process_time() - started
        stages = {f"seconds {stage}": result.report.seconds.get(stage, 0.0) for stage in STAGES}
        extra = {"rows used": result.report.rows_used, "weights": result.report.location.size, **stages}
        return Run(result.model, seconds, extra)

    return run


def tuned(whole: bool = False, **options: Any) -> Runner:
    """A runner for Adam; the seconds are those of the sweep."""

    def run(task: Task, split: int, settings: PeerSettings) -> Run:
        sweep = Sweep(steps=settings.steps, whole=whole, **options)
        found = tune(task, task.indices(split)[0], sweep, split)
        extra = {"seconds of one run": found.seconds_run, "penalty": found.choice[0], "rate": found.choice[1]}
        return Run(found.network, found.seconds_sweep, extra)

    return run


def swarm(task: Task, split: int, settings: PeerSettings) -> Run:
    half = task.part(*task.indices(split)[0])
    started = time.process_time()
    network = care_swarm(task, half, split, iterations=settings.swarm)
    return Run(network, time.process_time() - started)


METHODS: dict[str, Runner] = {
    "one-shot QP, projected": repaired(OneShot(convexify="project", **FAITHFUL)),
    "one-shot QP, shifted": repaired(OneShot(convexify="shift", **FAITHFUL)),
    "incremental": repaired(Incremental(batch=10, convexify="project", **FAITHFUL)),
    "bisection": repaired(Bisection(convexify="project", **FAITHFUL)),
    "sequential": repaired(Sequential()),
    "sequential, buffer": repaired(Sequential(buffer=BUFFER)),
    "sequential, buffer, last three layers": repaired(Sequential(buffer=BUFFER), weights=["fc4", "fc5", "fc6"]),
    "sequential, buffer, last three layers, a fifth of the target": repaired(
        Sequential(buffer=BUFFER), weights=["fc4", "fc5", "fc6"], left=0.2
    ),
    "sequential, buffer, auto weights": repaired(Sequential(buffer=BUFFER), weights="auto"),
    "Adam + penalty, same weights": tuned(),
    "Adam + penalty, all weights": tuned(whole=True, penalties=(1.0, 10.0, 100.0), rates=(0.0003,)),
    "fine-tuning, all weights": tuned(whole=True, penalties=(0.0,), rates=(0.0003,)),
    "CARE swarm": swarm,
    "always the common answer": lambda task, split, settings: Run(majority(task), 0.0),
    "one-shot QP, projected, no rows": repaired(OneShot(convexify="project", **FAITHFUL), with_constraints=False),
    "one-shot LP": repaired(OneShot(program="lp", **FAITHFUL)),
    "one-shot LP, no rows": repaired(OneShot(program="lp", **FAITHFUL), with_constraints=False),
}
SHOWN = {  # which runs each table needs
    4: [*METHODS][:11] + ["always the common answer"],
    6: [
        "one-shot QP, projected",
        "sequential, buffer",
        "sequential, buffer, last three layers",
        "Adam + penalty, same weights",
        "fine-tuning, all weights",
        "CARE swarm",
        "always the common answer",
    ],
    7: ["one-shot QP, projected", "sequential, buffer"],
    8: ["one-shot QP, projected", "one-shot QP, projected, no rows", "one-shot LP", "one-shot LP, no rows"],
}
TABLES = {4: table_4, 6: table_6, 7: table_7, 8: table_8}
QUICK = ("M1 gender",)


def run_all(wanted: dict[str, Task], splits: int, settings: PeerSettings, names: list[str]) -> list[dict[str, Any]]:
    """One record for each task, split and method: before and after on the held-out half, seconds, extras."""
    records = []
    for task in wanted.values():
        for split in range(splits):
            held_out = task.part(*task.indices(split)[1])
            before = measure(task.network, held_out)
            for name in names:
                run = METHODS[name](task, split, settings)
                after = measure(run.network, held_out)
                record = {"task": task.name, "split": split, "method": name, "target": task.target}
                record |= {f"{key} before": value for key, value in before.items()}
                record |= {f"{key} after": value for key, value in after.items()}
                records.append(record | {"cpu seconds": run.seconds} | run.extra)
            print(f"{task.name}, split {split}: done", file=sys.stderr, flush=True)
    return records


def write_csv(records: list[dict[str, Any]], path: Path) -> None:
    columns = list(dict.fromkeys(key for record in records for key in record))
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, columns, restval="")
        writer.writeheader()
        for record in records:
            writer.writerow({k: f"{v:.6g}" if isinstance(v, float) else v for k, v in record.items()})


def read_csv(path: Path) -> list[dict[str, Any]]:
    """Records as :func:`write_csv` wrote them; empty cells are left out."""

    def value(key: str, cell: str) -> Any:
        return cell if key in ("task", "method") else int(cell) if key == "split" else float(cell)

    with path.open(newline="") as file:
        return [{k: value(k, cell) for k, cell in row.items() if cell} for row in csv.DictReader(file)]


def main() -> None:
    parser = argparse.ArgumentParser(description="Tables 4, 6, 7 and 8 of the AutoRIC paper, held-out.")
    parser.add_argument("--tables", type=int, nargs="+", choices=sorted(TABLES), default=sorted(TABLES))
    parser.add_argument("--tasks", nargs="+", help="names of tasks, for example 'M1 gender'; all unless given")
    parser.add_argument(
        "--methods", nargs="+", choices=METHODS, help="only these; all that the tables show unless given"
    )
    parser.add_argument("--splits", type=int, default=10, help="seeds times the two directions of each division")
    parser.add_argument("--quick", action="store_true", help="one split of a fifth of the data, one task, short peers")
    parser.add_argument("--read", type=Path, nargs="+", help="make the tables from these CSV files; nothing is run")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results", help="folder for the CSV file")
    options = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    known = tasks()
    names = options.tasks or (QUICK if options.quick else known)
    wanted = {name: known[name].thinned(5 if options.quick else 1) for name in names}
    if options.read:
        records = [record for path in options.read for record in read_csv(path)]
    else:
        settings = PeerSettings(steps=10, swarm=2) if options.quick else PeerSettings()
        methods = options.methods or [m for m in METHODS if any(m in SHOWN[table] for table in options.tables)]
        records = run_all(wanted, 1 if options.quick else options.splits, settings, methods)
    options.out.mkdir(parents=True, exist_ok=True)
    write_csv(records, options.out / "autoric_runs.csv")
    text = "\n\n".join(TABLES[table](records, wanted, SHOWN[table]) for table in options.tables)
    (options.out / "autoric_tables.md").write_text(text + "\n")
    print(text)


if __name__ == "__main__":
    main()
