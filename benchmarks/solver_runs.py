"""Runs back ends on one program after the other, in processes that a limit of CPU seconds may end; a record a run.

What a back end claims is not believed: violation and objective are recomputed from the program's data, and the gap is
certified from its multipliers alone.
"""

from __future__ import annotations

import argparse
import json
import math
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import environment  # noqa: F401  (one thread)
import numpy as np
import torch
from solver_instances import Built, Instance, instances

from repairopt.errors import RepairError
from repairopt.program import Kind, Program, Solution, solve, solve_working_set
from repairopt.program.backends import available_solvers, preferred_solvers
from repairopt.program.rechecking import objective_scale
from repairopt.program.working_sets.relaxed_program import certified_gap
from repairopt.program.working_sets.row_oracles import DenseRows

Record = dict[str, Any]
DEFAULT, BY_ROWS = "default", "rows + "
LIMIT = 12  # CPU seconds for a solve
LATE = f"> {LIMIT} s"
ENOUGH, LONG = 0.3, 3.0  # seconds of a run below which 5 are made, and below which 3 are
SHORT = 0.03  # seconds below which solves are timed many at once
FLAT = 1e-6  # relative stationarity that counts as zero
MANY = 5  # rows for each weight above which a working set is tried too
LARGEST = {  # entries of the matrix above which a back end is not tried: far too slow there, or over its size limit
    "pyomo": 100_000,
    "scip": 100_000,
    "cvxpy": 500_000,
    "osqp": 500_000,
    "proxqp": 500_000,
    "gurobi": 4_000_000,
    "scipy": 4_000_000,
}


def ways(kind: Kind, built: Built) -> list[str]:
    """Every back end, the default choice, and working sets with those that could serve."""
    entries = built.program.n * built.program.m
    found = [name for name in available_solvers(kind) if entries <= LARGEST.get(name, math.inf)] + [DEFAULT]
    if built.rows is not None and built.program.m > MANY * built.program.n:
        inner = ["daqp", "piqp", "woodbury", "clarabel", "highs"]
        found += [BY_ROWS + name for name in inner if name in available_solvers(kind)]
    return found


def run_way(way: str, built: Built) -> Solution:
    """One solve."""
    if way.startswith(BY_ROWS):
        assert built.head is not None
        assert built.rows is not None
        return solve_working_set(built.head, built.rows, solver=way.removeprefix(BY_ROWS))
    return solve(built.program, None if way == DEFAULT else way)


def warm(way: str, kind: Kind) -> None:
    """Load the libraries: the same way on a program of two variables."""
    sides = {"lower": np.zeros(2), "upper": np.full(2, np.inf)}
    tiny = Program(gradient=np.ones(2), delta_lower=-np.ones(2), delta_upper=np.ones(2))
    tiny = replace(tiny, hessian=np.eye(2) if kind is Kind.QP else None)
    run_way(way, Built(replace(tiny, matrix=np.eye(2), **sides), tiny, DenseRows(np.eye(2), np.zeros(2))))


def runs(built: Built, way: str, most: int = 5) -> Iterator[Record]:
    """One record for each run, at most so many, fewer where they are long."""
    try:
        warm(way, built.program.kind)
    except RepairError as error:
        yield {"status": "failed", "message": str(error)[:200]}
        return
    wanted, done, times = 1, 0, 1
    while done < wanted:
        allow(LIMIT)
        started, wall = time.process_time(), time.perf_counter()
        try:
            for _ in range(times):
                found = run_way(way, built)
        except RepairError as error:
            yield {"status": "failed", "message": f"{type(error).__name__}: {error}"[:200]}
            return
        cpu, wall = (time.process_time() - started) / times, (time.perf_counter() - wall) / times
        allow(None)
        if most > 1 and times == 1 and wall < SHORT and done == 0:  # shorter than the clock's ticks: many at once
            times = math.ceil(2 * SHORT / max(wall, 1e-5))
            continue
        yield {"run": done, "cpu": cpu, "wall": wall} | described(built.program, found)
        wanted = min(most, 5 if cpu < ENOUGH else 3 if cpu < LONG else 1)
        done += 1


def allow(seconds: int | None) -> None:
    """From now on, CPU seconds after which the process ends, or ten times as many by the clock; None for no limit."""
    signal.alarm(0 if seconds is None else 10 * seconds)
    _, hard = resource.getrlimit(resource.RLIMIT_CPU)
    soft = hard if seconds is None else int(time.process_time()) + seconds + 1
    resource.setrlimit(resource.RLIMIT_CPU, (soft, hard))


def described(program: Program, found: Solution) -> Record:
    """What an answer is worth, recomputed."""
    record: Record = {"status": str(found.status), "claimed": str(found.claimed or ""), "solver": found.solver}
    record |= {"tries": max(1, len(found.attempts)), "message": found.message[:200]}
    if found.delta is None:
        return record
    scale = objective_scale(program, found.delta)
    record |= {"objective": program.objective(found.delta), "violation": program.violation(found.delta), "scale": scale}
    gap = certified_gap(program, found) / scale
    if math.isnan(gap) and found.row_duals is not None and found.stationarity <= FLAT * scale:
        gap = found.gap  # a variable without bounds: complementarity, as far as the gradient is zero
    return record | {"gap": gap}


# -------------------------------------------------------------------- processes


def child(name: str, family: str, skipped: list[str]) -> None:
    """All ways on an instance but some, in this process; prints a JSON object a line."""
    (instance,) = [one for one in instances() if (one.name, one.family) == (name, family)]
    built = instance.build()
    facts = {"n": built.program.n, "m": built.program.m, "preferred": preferred_solvers(built.program)}
    for way in ways(instance.kind, built):
        if way in skipped:
            continue
        print(json.dumps({"way": way} | facts), flush=True)
        for record in runs(built, way):
            print(json.dumps({"way": way} | facts | record), flush=True)


def measure(instance: Instance, skipped: set[str]) -> list[Record]:
    """All ways on an instance but some, a fresh process after each that ran out of time or crashed."""
    found: list[Record] = []
    over = set(skipped)
    while True:
        command = [sys.executable, __file__, instance.name, instance.family, *sorted(over)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        lines = [json.loads(line) for line in done.stdout.splitlines() if line.startswith('{"way"')]
        found += [line for line in lines if "status" in line]
        if done.returncode == 0:
            return [record | {"instance": instance.name, "family": instance.family} for record in found]
        if not lines:
            raise RuntimeError(f"{instance.name}: {done.stderr[-2000:]}")
        if "status" not in lines[-1]:
            found.append(lines[-1] | ended(-done.returncode, done.stderr))
        over |= {line["way"] for line in lines}


def ended(by: int, text: str) -> Record:
    """What is said of a way whose process a signal ended."""
    if by in (signal.SIGXCPU, signal.SIGKILL):
        return {"status": LATE, "message": ""}
    if by == signal.SIGALRM:
        return {
            "status": "hung",
            "message": f"no answer after {10 * LIMIT} s by the clock, without using the processor",
        }
    return {"status": "crashed", "message": (text.strip().splitlines() or [""])[-1][:200]}


def measure_all(chosen: list[Instance], log: Callable[[str], None], only: set[str] | None = None) -> list[Record]:
    """All instances, by all ways or some; what was too slow is not tried on larger ones of the family."""
    found: list[Record] = []
    late: dict[tuple[str, str], list[tuple[int, int]]] = {}
    for instance in chosen:
        n, m = instance.size or (0, 0)
        skipped = {
            way
            for (family, way), sizes in late.items()
            if family == instance.family and any(n >= size[0] and m >= size[1] for size in sizes)
        }
        if only:
            skipped |= set(ways(instance.kind, instance.build())) - only
        records = measure(instance, skipped)
        for record in records:
            if record["status"] in (LATE, "hung") and instance.size:
                late.setdefault((instance.family, record["way"]), []).append(instance.size)
        found += records
        log(f"{instance.family}, {instance.name}: {len(records)} runs")
    return found


def measure_here(chosen: list[Instance]) -> list[Record]:
    """The same in this process, without the modelling layers; for small instances."""
    found: list[Record] = []
    for instance in chosen:
        built = instance.build()
        facts = {"n": built.program.n, "m": built.program.m, "preferred": preferred_solvers(built.program)}
        facts |= {"instance": instance.name, "family": instance.family}
        for way in ways(instance.kind, built):
            if way not in ("cvxpy", "pyomo"):
                found += [{"way": way} | facts | record for record in runs(built, way, most=1)]
    return found


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("name")
    parser.add_argument("family")
    parser.add_argument("skipped", nargs="*")
    options = parser.parse_args()
    torch.set_num_threads(1)
    child(options.name, options.family, options.skipped)
