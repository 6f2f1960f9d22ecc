"""Mixed-integer repair programs: how soon a gap of 1 % is proven, or which gap is left at the time limit.

Generated programs (``tests/support/integer_instances.py``): dense rows, correlated or not, a low-rank Hessian, a box.
Three ways: SCIP alone; ``solve_integer`` (first point, bounds of relaxations, then SCIP); the first point alone. CPU s,
one thread.

    python benchmarks/mixed_integer.py [--quick] [--limit 60] [--seeds 1]
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

FOLDER = Path(__file__).resolve().parent
sys.path.insert(0, str(FOLDER.parent / "tests" / "support"))

from integer_instances import broken_samples, singles, sparse_change  # noqa: E402

from repairopt.program import IntegerProgram, allow_broken, limit_changes, solve, solve_integer  # noqa: E402
from repairopt.program.integer.incumbent import find_incumbent  # noqa: E402
from repairopt.program.integer.mixed_integer import groups_bound, relaxation_bound  # noqa: E402
from repairopt.solvers import SCIP  # noqa: E402

GAP = 0.01
CPU_CLOCK = {"timing/clocktype": 1}
HEAD = ["program", "seed", "SCIP alone", "solve_integer", "first point", "its CPU s", "SCIP's point at the end"]
HEAD += ["best known", "first point off by", "bounds before SCIP: fractions, groups"]


def instances(quick: bool, seed: int) -> dict[str, IntegerProgram]:
    """The programs of the table."""
    weights, rows = ((24,), (200,)) if quick else ((24, 60, 100), (200, 500, 2000))
    few = {f"at most 8 of {n} weights": limit_changes(sparse_change(n, seed), 8) for n in weights}
    for correlated in (False, True):
        for m in rows:
            program = broken_samples(m, seed=seed, correlated=correlated)
            name = f"at most 5 of {m} rows broken" + (", correlated" if correlated else "")
            few[name] = allow_broken(program, 5, singles(m))
    return few


def cpu(function: Callable[[], Any]) -> tuple[float, Any]:
    """CPU seconds of a call, and its result."""
    started = time.process_time()
    found = function()
    return time.process_time() - started, found


def outcome(seconds: float, gap: float) -> str:
    """Seconds where the gap was closed, else the gap."""
    return f"{seconds:.1f} s" if gap <= GAP * 1.0001 else f"{100 * gap:.0f} % left after {seconds:.0f} s"


def row(name: str, integer: IntegerProgram, seed: int, limit: float) -> list[str]:
    """One row of the table."""
    scip = SCIP(time_limit=limit, gap_tol=GAP, native=CPU_CLOCK)
    plain_seconds, plain = cpu(lambda: solve(integer.program, scip))
    first_seconds, first = cpu(lambda: find_incumbent(integer))
    ours_seconds, ours = cpu(lambda: solve_integer(integer, scip, time_limit=limit, gap_tol=GAP))
    plain_gap = (plain.objective - plain.bound) / abs(plain.objective) if plain.found else np.inf
    best = min(plain.objective if plain.found else np.inf, first.objective, ours.objective)
    groups = groups_bound(integer)
    bounds = f"{relaxation_bound(integer):.4f}" + (f", {groups:.4f}" if np.isfinite(groups) else "")
    cells = [name, str(seed), outcome(plain_seconds, plain_gap), outcome(ours_seconds, ours.gap)]
    cells += [f"{first.objective:.4f}", f"{first_seconds:.2f}", f"{plain.objective:.4f}", f"{best:.4f}"]
    return [*cells, f"{100 * (first.objective - best) / abs(best):.1f} %", bounds]


def main() -> None:
    """Run, print and write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="the two smallest programs, 10 s each")
    parser.add_argument("--limit", type=float, default=60.0, help="seconds for each program and way")
    parser.add_argument("--seeds", type=int, default=1, help="programs of each kind")
    options = parser.parse_args()
    limit = min(10.0, options.limit) if options.quick else options.limit
    lines = ["| " + " | ".join(HEAD) + " |", "|" + "---|" * len(HEAD)]
    print("\n".join(lines), flush=True)
    for seed in range(options.seeds):
        for name, integer in instances(options.quick, seed).items():
            lines.append("| " + " | ".join(row(name, integer, seed, limit)) + " |")
            print(lines[-1], flush=True)
    if not options.quick:
        text = f"# Mixed-integer repair programs\n\nTo a gap of 1 %, limit {limit:.0f} s each; CPU s, one thread.\n\n"
        (FOLDER / "results").mkdir(exist_ok=True)
        (FOLDER / "results" / "mixed_integer.md").write_text(text + "\n".join(lines) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
