"""Programs with many rows or many weights: a working set of rows against all rows at once. CPU seconds and memory.

    python benchmarks/large_programs.py [--quick]

Prints a markdown table and writes it to ``results/large_programs.md``. Each line is a fresh process. The programs
imitate repairs: dense correlated rows that the present weights satisfy, a Hessian of low rank, a box.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import environment  # noqa: F401  (one thread)
import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests" / "support"))

from row_kinds import FeatureRows, ScreenedRows  # noqa: E402

from repairopt.program import LowRankHessian, Program, solve, solve_working_set
from repairopt.program.working_sets.relaxed_program import certified_gap
from repairopt.program.working_sets.row_oracles import DenseRows

Array = np.ndarray[Any, np.dtype[np.float64]]
LIMIT = 60  # CPU seconds for all rows at once
WORKING_SET, SCREENED = "working set", "working set, float32 screening"
FULL = [(24, 500_000), (222, 50_000), (222, 500_000), (1000, 50_000)]
QUICK = [(24, 50_000), (222, 20_000)]


def correlated(n: int, m: int, seed: int, latent: int = 20) -> tuple[Array, Array]:
    """Rows that share directions, made in place, and lower sides that zero satisfies."""
    random = np.random.default_rng(seed)
    matrix, mixing = np.empty((m, n)), random.standard_normal((latent, n)) / np.sqrt(latent)
    step = max(1, 4_000_000 // n)
    for i in range(0, m, step):
        part = matrix[i : i + step]
        random.standard_normal(out=part)
        part *= 0.3
        part += random.standard_normal((len(part), latent)) @ mixing
    return matrix, -random.exponential(1.0, m)


def box(n: int, size: float = 1.0) -> dict[str, Array]:
    return {"delta_lower": np.full(n, -size), "delta_upper": np.full(n, size)}


def dense_case(n: int, m: int, seed: int) -> tuple[Program, Array, Array]:
    matrix, lower = correlated(n, m, seed)
    random = np.random.default_rng(seed + 1)
    factor = random.standard_normal((n, max(1, n // 3))) / np.sqrt(n)
    return Program(gradient=random.standard_normal(n), hessian=factor @ factor.T, **box(n)), matrix, lower


def wide_case(n: int, m: int, seed: int) -> tuple[Program, Array, Array]:
    """Far more weights than any dense Hessian allows; rows as long whatever the number of weights."""
    matrix, lower = correlated(n, m, seed, latent=30)
    matrix /= np.sqrt(n)
    random = np.random.default_rng(seed + 1)
    hessian = LowRankHessian(random.uniform(0.5, 2.0, n), random.standard_normal((n, 20)) / np.sqrt(n))
    return Program(gradient=random.standard_normal(n), hessian=hessian, **box(n)), matrix, lower


def feature_case(count: int, width: int, classes: int, seed: int) -> tuple[Program, FeatureRows]:
    """Keep every label of a last layer: a row for each sample and rival class."""
    random = np.random.default_rng(seed)
    mixing = random.standard_normal((20, width))
    features = np.maximum(
        random.standard_normal((count, 20)) @ mixing / 4 + random.standard_normal((count, width)), 0.0
    )
    outputs = features @ random.standard_normal((width, classes))
    label, samples = outputs.argmax(1), np.repeat(np.arange(count), classes - 1)
    rivals = np.array([[r for r in range(classes) if r != own] for own in range(classes)])[label].reshape(-1)
    pairs = np.stack([label[samples], rivals], axis=1)
    margins = outputs[samples, pairs[:, 0]] - outputs[samples, pairs[:, 1]]
    rows = FeatureRows(features, pairs, -margins, samples=samples, outputs=classes)
    factor = random.standard_normal((rows.n, 60)) / np.sqrt(rows.n)
    return Program(gradient=random.standard_normal(rows.n), hessian=factor @ factor.T, **box(rows.n)), rows


def peak() -> float:
    """Largest memory of this process so far, GiB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


def described(found: Any, seconds: float, floor: float, before: float) -> dict[str, Any]:
    """What the table shows of a solve."""
    line = {"status": str(found.status), "solver": found.solver, "cpu": seconds, "floor": floor}
    line |= {"before": before, "peak": peak(), "violation": found.violation, "objective": found.objective}
    for name in ("rounds", "passes", "pass_seconds", "largest"):
        line[name] = getattr(found, name, None)
    line["gap"] = getattr(found, "distance", None)
    return line


def cpu(function: Any) -> tuple[float, Any]:
    started = time.process_time()
    found = function()
    return time.process_time() - started, found


def one(case: str, n: int, m: int, how: str) -> dict[str, Any]:
    """One line of the table, in this process."""
    if case == "features":
        program, rows = feature_case(m // 9, n // 10, 10, 0)
        floor, before = min(cpu(lambda: rows.violations(program.gradient))[0] for _ in range(2)), peak()
        seconds, found = cpu(lambda: solve_working_set(program, rows))
        return described(found, seconds, floor, before)
    head, matrix, lower = (wide_case if case == "wide" else dense_case)(n, m, 0)
    vector = np.random.default_rng(2).standard_normal(n)
    floor, before = min(cpu(lambda: matrix @ vector)[0] for _ in range(3)), peak()
    if how in (WORKING_SET, SCREENED) or how.startswith(WORKING_SET + " + "):
        solver = how.split(" + ")[1] if " + " in how else None
        kind = ScreenedRows if how == SCREENED else DenseRows
        run = lambda: solve_working_set(head, kind(matrix, lower), solver=solver)  # noqa: E731
    else:
        program = replace(head, matrix=matrix, lower=lower, upper=np.full(m, np.inf))
        resource.setrlimit(resource.RLIMIT_CPU, (int(time.process_time()) + LIMIT, resource.RLIM_INFINITY))
        run = lambda: solve(program, how)  # noqa: E731
    seconds, found = cpu(run)
    line = described(found, seconds, floor, before)
    if line["gap"] is None and found.delta is not None:
        line["gap"] = certified_gap(program, found)
    return line


def fresh(case: str, n: int, m: int, how: str) -> dict[str, Any]:
    """The same in a fresh process."""
    command = [sys.executable, __file__, "--one", case, str(n), str(m), how]
    run = subprocess.run(command, capture_output=True, text=True, check=False)
    if run.returncode == -24 or run.returncode == 152:  # CPU time limit
        return {"status": f"> {LIMIT} s", "solver": how}
    if run.returncode:
        return {"status": run.stderr.strip().splitlines()[-1][:60] if run.stderr.strip() else "killed", "solver": how}
    found: dict[str, Any] = json.loads(run.stdout.splitlines()[-1])
    return found


def shown(case: str, n: int, m: int, how: str, line: dict[str, Any]) -> str:
    """One line of markdown."""
    first = f"| {n:,} x {m:,}{' (features)' if case == 'features' else ''} | {how} |"
    if "cpu" not in line:
        return f"{first} {line['status']} | | | | | | | | |"
    passes, seconds = line["passes"], line["pass_seconds"]
    ratio = f"{line['cpu'] / seconds:.2f}" if seconds else ""
    gap = float("nan") if line["gap"] is None else line["gap"] / (1 + abs(line["objective"]))
    cells = [line["solver"], f"{line['cpu']:.2f}", f"{line['floor']:.3f}", line["rounds"] or "", passes or "", ratio]
    cells += [
        line["largest"] or "",
        f"{line['violation']:.0e}",
        f"{gap:.0e}",
        f"{line['peak']:.2f} ({line['before']:.2f})",
    ]
    status = "" if line["status"] == "optimal" else f" {line['status']}"
    return f"{first} {' | '.join(map(str, cells))}{status} |"


def plan(quick: bool) -> list[tuple[str, int, int, str]]:
    """All lines of the table."""
    lines = []
    for n, m in QUICK if quick else FULL:
        hows = [WORKING_SET, SCREENED, f"{WORKING_SET} + {'piqp' if n <= 60 else 'daqp'}", "piqp", "daqp"]
        if n == 1000:
            hows = [WORKING_SET, f"{WORKING_SET} + woodbury", "piqp"]
        lines += [("dense", n, m, how) for how in hows]
    lines.append(("features", 640, 54_000 if quick else 540_000, WORKING_SET))
    wide = (20_000, 2_000) if quick else (100_000, 9_000)
    return [*lines, ("wide", *wide, "woodbury"), ("wide", *wide, WORKING_SET)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="small programs, some seconds; writes no file")
    parser.add_argument("--one", nargs=4, metavar=("CASE", "N", "M", "HOW"), help="one line as JSON, in this process")
    options = parser.parse_args()
    torch.set_num_threads(1)
    if options.one:
        case, n, m, how = options.one
        print(json.dumps(one(case, int(n), int(m), how)))
        return
    names = ["weights x rows", "how", "back end", "CPU s", "one pass s", "rounds", "passes", "CPU / its passes"]
    names += ["most rows", "violation", "relative gap", "peak GiB (data alone)"]
    table = [f"| {' | '.join(names)} |", f"|{'---|' * len(names)}"]
    print("\n".join(table), flush=True)
    for case, n, m, how in plan(options.quick):
        table.append(shown(case, n, m, how, fresh(case, n, m, how)))
        print(table[-1], flush=True)
    if not options.quick:
        path = Path(__file__).parent / "results" / "large_programs.md"
        path.parent.mkdir(exist_ok=True)
        path.write_text(HEADER + "\n".join(table) + "\n", encoding="utf-8")


HEADER = f"""# Large programs

Made by `python benchmarks/large_programs.py`: one thread, CPU seconds of oracle and solve together, data apart. "One
pass" is `matrix @ delta` (features: all margins). "CPU / its passes" is the time over that of the loop's own passes.
The gap is certified from the multipliers alone, over `1 + |objective|`. All rows at once are given up after {LIMIT} CPU
seconds. Peak memory is that of the process, imports and data included. Of programs given to `piqp`, `daqp` and
`woodbury` whole, the time includes the core's checks of the answer, four more passes.

"""

if __name__ == "__main__":
    main()
