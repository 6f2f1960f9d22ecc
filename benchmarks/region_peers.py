"""Regions by the methods that take them, in one run: boxes, squares in planes and segments around HCAS counterexamples.

    python benchmarks/region_peers.py [--seconds N]

The network pra1_tau05 of HCAS and the first ten published counterexamples, around which class 4 must win: in boxes of
half a raw unit, in squares of two of the three inputs, and on segments of one. Every method gets the same regions and
the same time; "proved" is by the independent check in NumPy, where the method has the network checked as deployed.
Writes ``results/region_peers.md``. Needs ``REPAIROPT_DATA``.
"""

from __future__ import annotations

import argparse
import itertools
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import environment  # noqa: F401  (first, for one thread)
import torch
from regions import FRESH, hcas_network, outputs
from torch import Tensor

from repairopt import RepairError, Settings, solve_repair
from repairopt.specify import Region

RESULT = Path(__file__).parent / "results" / "region_peers.md"
RADIUS, COUNT, WINS, CLASSES = 0.5, 10, 4, 5
METHODS = ("auto", "prdnn", "aprnn", "counterexample_guided", "spec_repair", "birdnn_rt")
PUBLISHED = """## Published

Of other regions, machines and solvers, for the scale alone: PRDNN repairs N2,9 of ACAS Xu on planes in its decoupled
network (PLDI 2021); APRNN repairs it on polytopes by their vertices and keeps the architecture (PLDI 2023); REASSURE
takes 2,117 s for 100 points of a 784-256-256-10 network on ten cores (ICLR 2022); ProRepair claims 36 of 36 networks
of ACAS Xu where the best provable peer repairs 8 (arXiv 2511.07741), VeRe 36 of 36 without a proof (ICSE 2024). Whole
boxes of ACAS Xu, which PRDNN and APRNN do not take, are in `regions.md`.
"""


def regions_of(kind: str, points: Tensor) -> list[Region]:
    """Regions of one, two or three of the inputs around points ``(N, 3)``; the rest stays as it is."""
    if kind == "boxes":
        options = {"lower": -torch.inf, "upper": torch.inf}
        return [Region.label(x, RADIUS, WINS, CLASSES, **options) for x in points]
    free = {"squares": 2, "segments": 1}[kind]
    found = []
    for x in points:
        corners = [list(sides) + [0.0] * (3 - free) for sides in itertools.product((-RADIUS, RADIUS), repeat=free)]
        found.append(Region.polytope(x + torch.tensor(corners, dtype=x.dtype), y=WINS, classes=CLASSES))
    return found


def run(kind: str, method: str, seconds: float) -> dict[str, Any]:
    """One method on the regions of one kind."""
    model, raw = hcas_network()
    started = time.process_time()
    row: dict[str, Any] = {"regions": kind, "method": method}
    try:
        goal = regions_of(kind, raw[:COUNT])
        found = solve_repair(model, goal, method=method, settings=Settings(seed=0, time_limit=seconds))
    except RepairError as error:
        return row | {"verdict": "refused", "proof": "", "CPU s": time.process_time() - started, "why": str(error)}
    proof = found.report.proof_verdict
    draw = torch.Generator().manual_seed(1)
    x = (raw.amin(0) + (raw.amax(0) - raw.amin(0)) * torch.rand(FRESH, 3, generator=draw)).float()
    before, after = outputs(model, x), outputs(found.model, x)
    details = found.report.verification.measures[0].details
    return row | {
        "verdict": str(found.report.verdict),
        "proof": "none" if proof is None else str(proof.status),
        "regions proved": f"{details['proved regions'][1]:g} of {COUNT}" if "proved regions" in details else "",
        "CPU s": time.process_time() - started,
        "advisories changed, %": 100 * float((before.argmax(1) != after.argmax(1)).double().mean()),
        "change of the scores, deviations": float((after - before).square().mean().sqrt() / before.std(0).mean()),
    }


def table(rows: Sequence[dict[str, Any]]) -> str:
    """The rows as a table."""
    names = [name for name in dict.fromkeys(key for row in rows for key in row) if name != "why"]
    lines = ["| " + " | ".join(names) + " |", "|---" * len(names) + "|"]
    for row in rows:
        cells = [row.get(name, "") for name in names]
        lines.append("| " + " | ".join(f"{c:.3g}" if isinstance(c, float) else str(c) for c in cells) + " |")
    refused = [f"* {row['method']}, {row['regions']}: {row['why']}" for row in rows if "why" in row]
    return "\n".join([*lines, "", *refused]) + "\n"


def main() -> None:
    """Run everything and write the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=120.0, help="time limit of each run")
    seconds = parser.parse_args().seconds
    rows = []
    for kind, method in itertools.product(("boxes", "squares", "segments"), METHODS):
        rows.append(run(kind, method, seconds))
        print(rows[-1], flush=True)
    told = (__doc__ or "").partition("N]")[2].strip()
    head = f"# Regions by several methods\n\nMade by `python benchmarks/region_peers.py`, one thread. {told}"
    RESULT.write_text(f"{head}\n\n{table(rows)}\n{PUBLISHED}", encoding="utf-8")


if __name__ == "__main__":
    main()
