"""Mixed-integer programs for ``benchmarks/solvers.py``: at most k weights change, at most C rows break.

Each way runs in a process of its own, with a limit of its own solver and one of CPU seconds behind it.
"""

from __future__ import annotations

import argparse
import json
import math
import resource
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import environment  # noqa: F401  (one thread)
import torch

from repairopt.program import IntegerProgram, allow_broken, limit_changes, solve, solve_integer
from repairopt.program.integer.incumbent import find_incumbent
from repairopt.solvers import CVXPY, SCIP, Gurobi, Pyomo

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests" / "support"))

Record = dict[str, Any]
GAP = 0.01
LIMIT = 30.0  # seconds
FEW, BROKEN = (24, 60, 100), (200, 500, 2_000)
WAYS = ("scip", "solve_integer", "first point", "gurobi")
LAYERS = ("cvxpy", "pyomo")  # on the smallest program


def programs(quick: bool = False) -> list[tuple[str, int]]:
    """Kinds and sizes."""
    if quick:
        return [("few", 12), ("broken", 30), ("correlated", 30)]
    return [("few", n) for n in FEW] + [(kind, m) for kind in ("broken", "correlated") for m in BROKEN]


def named(kind: str, size: int) -> str:
    """What the tables call it."""
    if kind == "few":
        return f"at most 8 of {size} weights change"
    return f"at most 5 of {size:,} rows break" + (", correlated rows" if kind == "correlated" else "")


def made(kind: str, size: int) -> IntegerProgram:
    """The program, by repairopt.program.integer."""
    from integer_instances import broken_samples, singles, sparse_change

    if kind == "few":
        return limit_changes(sparse_change(size), 8)
    return allow_broken(broken_samples(size, correlated=kind == "correlated"), 5, singles(size))


def solved(kind: str, size: int, way: str, limit: float) -> Record:
    """One solve; the point is put into the program again."""
    integer, started = made(kind, size), time.process_time()
    cpu_clock = {"timing/clocktype": 1}
    if way == "first point":
        point: Any = find_incumbent(integer, time_limit=limit)
        found = {"status": "feasible", "objective": point.objective, "bound": -math.inf}
        delta = integer.lift(point.delta, point.chosen)
    elif way == "solve_integer":
        answer: Any = solve_integer(integer, SCIP(gap_tol=GAP, native=cpu_clock), time_limit=limit, gap_tol=GAP)
        found = {"status": str(answer.status), "objective": answer.objective, "bound": answer.bound}
        delta = None if answer.delta is None else integer.lift(answer.delta, answer.chosen)
    else:
        backend = {
            "scip": SCIP(time_limit=limit, gap_tol=GAP, native=cpu_clock),
            "gurobi": Gurobi(time_limit=limit, gap_tol=GAP, threads=1),
            "cvxpy": CVXPY("SCIP", time_limit=limit, native={"scip_params": {"limits/gap": GAP}}),
            "pyomo": Pyomo("scip_direct", time_limit=limit, native={"limits/gap": GAP}),
        }[way]
        plain = solve(integer.program, backend)
        found = {"status": str(plain.status), "objective": plain.objective, "bound": plain.bound}
        delta, found["message"] = plain.delta, plain.message[:200]
    found["cpu"] = time.process_time() - started
    if delta is not None:
        found |= {"violation": integer.program.violation(delta), "objective": integer.program.objective(delta)}
    return found


def measure(quick: bool = False) -> list[Record]:
    """All ways on all programs."""
    found = []
    for index, (kind, size) in enumerate(programs(quick)):
        for way in WAYS[:3] if quick else WAYS + LAYERS * (index == 0):
            record = solved(kind, size, way, 5.0) if quick else fresh(kind, size, way)
            found.append({"instance": named(kind, size), "family": "MIQP", "way": way, "n": size} | record)
    return found


def fresh(kind: str, size: int, way: str) -> Record:
    """One solve in a fresh process."""
    command = [sys.executable, __file__, kind, str(size), way]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        last = (done.stderr.strip().splitlines() or [f"ended by signal {-done.returncode}"])[-1]
        return {"status": "failed", "message": last[:200]}
    record: Record = json.loads(done.stdout.splitlines()[-1])
    return record


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("kind", choices=("few", "broken", "correlated"))
    parser.add_argument("size", type=int)
    parser.add_argument("way", choices=WAYS + LAYERS)
    options = parser.parse_args()
    torch.set_num_threads(1)
    resource.setrlimit(resource.RLIMIT_CPU, (int(2 * LIMIT) + 10, resource.RLIM_INFINITY))
    print(json.dumps(solved(options.kind, options.size, options.way, LIMIT)))
