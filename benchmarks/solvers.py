"""All back ends on programs of real repairs and on generated ones: time, accuracy, failures, cost of the layers.

    python benchmarks/solvers.py [--quick] [--parts programs integer layers repairs] [--ways WAY ...]

Writes ``solvers.md``, the raw runs ``solver_*.csv`` and the performance profiles ``solver_profiles.png``. ``--parts``
runs some parts anew and takes the others from the CSV files, ``--ways`` programs by some ways only; ``--read`` takes
all from there.
"""

from __future__ import annotations

import argparse
import resource
import sys
import time
from collections.abc import Callable
from importlib.metadata import distributions
from pathlib import Path
from typing import Any

import environment  # noqa: F401  (one thread)
import solver_integer
import solver_layers
import solver_repairs
import solver_tables as tables
import torch
from benchmark_files import read_csv, write_csv
from solver_instances import DATA, instances
from solver_profile import draw
from solver_reading import reading
from solver_runs import LIMIT, measure_all, measure_here

Record = dict[str, Any]
TEXT = {"family", "instance", "kind", "way", "status", "claimed", "solver", "message", "repair", "published"}
LIBRARIES = ("daqp", "piqp", "highspy", "scipy", "clarabel", "osqp", "proxsuite", "pyscipopt", "gurobipy", "cvxpy")


def parts(quick: bool) -> dict[str, Callable[[], list[Record]]]:
    """What can be run, by the name of its CSV file."""
    real = (DATA / "provable").is_dir() and not quick
    return {
        "programs": lambda: programs(quick),
        "integer": lambda: solver_integer.measure(quick),
        "overhead": lambda: solver_layers.overhead(quick),
        "layers": lambda: solver_layers.layers(quick),
        "repairs": lambda: solver_repairs.repairs() if real else [],
        "watermarks": lambda: solver_repairs.watermarks() if real else [],
    }


def again(ways: set[str], words: list[str], before: list[Record]) -> list[Record]:
    """Programs with these words in their names, by some ways; other runs stay, with the order that rules give now."""
    everything = instances()
    chosen = [one for one in everything if not words or any(word in f"{one.family}, {one.name}" for word in words)]
    kinds = {(one.family, one.name): str(one.kind) for one in everything}
    new = measure_all(chosen, log, ways)
    rules = {(record["family"], record["instance"]): record["preferred"] for record in new}
    measured = {(one.family, one.name) for one in chosen}
    kept = [r for r in before if r["way"] not in ways or (r["family"], r["instance"]) not in measured]
    found = [r | {"preferred": rules.get((r["family"], r["instance"]), r["preferred"])} for r in kept]
    found += [record | {"kind": kinds[record["family"], record["instance"]]} for record in new]
    order = list(kinds)
    return sorted(found, key=lambda record: order.index((record["family"], record["instance"])))


def programs(quick: bool) -> list[Record]:
    """All back ends on all instances."""
    chosen = instances(quick)
    kinds = {(one.family, one.name): str(one.kind) for one in chosen}
    records = measure_here(chosen) if quick else measure_all(chosen, log)
    return [record | {"kind": kinds[record["family"], record["instance"]]} for record in records]


def log(text: str) -> None:
    """A line on the error stream."""
    print(f"{time.strftime('%H:%M:%S')} {text}", file=sys.stderr, flush=True)


def report(found: dict[str, list[Record]]) -> str:
    """Everything as markdown."""
    lines = [HEADER.format(limit=LIMIT, integer=solver_integer.LIMIT, versions=versions())]
    lines += tables.family_tables(found["programs"])
    lines += [tables.accuracy_table(found["programs"]), tables.failure_table(found["programs"])]
    lines += [tables.integer_table(found["integer"]), tables.overhead_table(found["overhead"])]
    lines.append(tables.layers_table(found["layers"]))
    if found["repairs"]:
        lines += [tables.repairs_table(found["repairs"]), tables.watermarks_table(found["watermarks"])]
    return "\n\n".join([*lines, tables.rules_table(found["programs"]), reading(found)]) + "\n"


def versions() -> str:
    """Of the libraries, as installed."""
    installed = {each.metadata["Name"].lower(): each.version for each in distributions()}
    return ", ".join(f"{name} {installed[name]}" for name in LIBRARIES if name in installed)


def read(path: Path) -> list[Record]:
    """Records of a CSV file; names of back ends in a list again."""
    found = [{k: v for k, v in record.items() if v != ""} for record in read_csv(path, [*TEXT, "preferred"])]
    return [r | ({"preferred": r["preferred"].split()} if "preferred" in r else {}) for r in found]


def main() -> None:
    """Run what is asked for, write and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="small programs, some seconds")
    parser.add_argument("--parts", nargs="+", choices=parts(True), help="run these, read the others")
    parser.add_argument("--ways", nargs="+", help="of the programs only these, such as default; the others are read")
    parser.add_argument("--only", nargs="+", help="with --ways: programs whose names contain one of these")
    parser.add_argument("--read", action="store_true", help="run nothing")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results", help="folder for the results")
    options = parser.parse_args()
    torch.set_num_threads(1)
    options.out.mkdir(parents=True, exist_ok=True)
    found: dict[str, list[Record]] = {}
    for name, run in parts(options.quick).items():
        path = options.out / f"solver_{name}.csv"
        known = options.read or options.ways or (options.parts and name not in options.parts)
        if known:
            found[name] = read(path) if path.is_file() else []
        if options.ways and name == "programs":
            found[name] = again(set(options.ways), options.only or [], found[name])
        elif known:
            continue
        else:
            found[name] = run()
        if found[name]:
            write_csv(found[name], path, figures=None)  # gaps are differences of objectives
        log(f"{name} done")
    used = sum(resource.getrusage(who).ru_utime for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    log(f"{used / 60:.1f} CPU minutes")
    text = report(found)
    draw(found["programs"], options.out / "solver_profiles.png")
    (options.out / "solvers.md").write_text(text, encoding="utf-8")
    print(text)


HEADER = """# Back ends

Made by `python benchmarks/solvers.py`; raw runs in `solver_*.csv`. One thread, CPU seconds, medians of 5 runs (3 above
0.3 s, 1 above 3 s) of `solve(program, name)`, the core's checks and second tries included; given up after {limit} s,
mixed-integer programs after {integer:.0f} s. An answer is right when its recomputed violation and its relative gap are
at most 1e-6; the gap is to the best bound that the multipliers of any answer prove. "off" is an answer that is not
right, "default" is `solver=None`, "rows + X" is a working set of rows with back end X, bold is the fastest. Empty: not
tried, because a smaller program of the family was too slow, or because the rows are few.

{versions}.

![performance profiles](solver_profiles.png)"""

if __name__ == "__main__":
    main()
