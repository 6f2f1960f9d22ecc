"""CARE and Arachne through the public call: CARE on the census network, Arachne on digits, on rows that no repair saw.

CARE: the gap of the published sampled sets, half of each repaired on and half held out, and half of the test rows for
accuracy; it scales neurons of the network of AutoRIC's paper. Arachne: a network learned half of scikit-learn's digits;
a quarter is repaired on, a quarter held out; what is reported is what the method itself proposes. One thread, CPU s.

    python benchmarks/searches.py [--quick] [--out FOLDER]
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path

import environment  # noqa: F401  (one thread)
import numpy as np
import torch

FOLDER = Path(__file__).resolve().parent
sys.path.insert(0, str(FOLDER.parent / "examples"))

from real_networks import FeedForward, load  # noqa: E402
from torch import Tensor, nn  # noqa: E402

from repairopt import ErrorRate, GroupGap, Settings, Specification, solve_repair  # noqa: E402
from repairopt.localize import apply  # noqa: E402
from repairopt.methods import Arachne, CARERepair  # noqa: E402
from repairopt.pipeline import prepare_repair  # noqa: E402

PROTECTED = 9  # the column of the census rows that holds the sex
PUBLISHED = "published code (feasibility study, 3 neurons, 5 seeds): gap .128, accuracy .838, 178 CPU s"


def care(quick: bool) -> list[str]:
    """Gap, accuracy and time of CARE on the census network, for 13 neurons (AutoRIC's experiments) and 3."""
    data, network = load("census.npz"), FeedForward(load("census_m1.npz"))
    x, y = torch.tensor(data["test_x"].astype(np.float32)), torch.tensor(data["test_y"]).long()
    groups = [torch.tensor(data[f"sample_{one}_x"].astype(np.float32)) for one in ("male", "female")]
    if quick:
        x, y, *groups = (rows[::4] for rows in (x, y, *groups))
    lines = [
        "| neurons | split | gap | held-out gap | held-out accuracy | CPU s |",
        "|---|---|---|---|---|---|",
    ]
    for neurons in (3,) if quick else (13, 3):
        for seed in range(1 if quick else 5):
            draw = torch.Generator().manual_seed(seed)
            order, half = torch.randperm(len(x), generator=draw), len(groups[0]) // 2
            rows, rest = order[: len(x) // 2], order[len(x) // 2 :]
            own, held = (GroupGap.given([g[s] for g in groups], favorable=0) for s in (slice(half), slice(half, None)))
            method = CARERepair(neurons=neurons, protected=(PROTECTED,))
            started = time.process_time()
            found = solve_repair(network, own, data=(x[rows], y[rows]), method=method, settings=Settings(seed=seed))
            seconds = time.process_time() - started
            with torch.no_grad():
                gaps = [(float(goal.value(network)), float(goal.value(found.model))) for goal in (own, held)]
                right = [float((net(x[rest]).argmax(1) == y[rest]).double().mean()) for net in (network, found.model)]
            shown = [f"{before:.3f} to {after:.3f}" for before, after in (*gaps, (right[0], right[1]))]
            lines.append(f"| {neurons} | {seed + 1} | {' | '.join(shown)} | {seconds:.1f} |")
    return lines


def arachne(quick: bool) -> list[str]:
    """What both versions of Arachne fix and break."""
    from sklearn.datasets import load_digits

    data = load_digits()
    x, y = torch.tensor(data.data / 16, dtype=torch.float32), torch.tensor(data.target)
    lines = ["| version | run | repair rows | held-out rows | CPU s |", "|---|---|---|---|---|"]
    for version in (1, 2):
        for seed in range(1 if quick else 5):
            order = torch.randperm(len(x), generator=torch.Generator().manual_seed(seed))
            training, repair, test = ((x[s], y[s]) for s in (order[:900], order[900:1350], order[1350:]))
            torch.manual_seed(seed)
            network = nn.Sequential(nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 10))
            optimizer = torch.optim.Adam(network.parameters(), lr=0.01)
            for _ in range(60):
                optimizer.zero_grad()
                nn.functional.cross_entropy(network(training[0]), training[1]).backward()
                optimizer.step()
            method, spec = Arachne(version=version), Specification(ErrorRate(*repair))
            settings = Settings(seed=seed)
            task = prepare_repair(network, spec, data=training, weights="auto", method=method, settings=settings).task
            started = time.process_time()
            delta = method.run(task).delta
            seconds = time.process_time() - started
            changed = apply(network, task.location, delta)[0]
            told = [_told(network, changed, part) for part in (repair, test)]
            lines.append(f"| {version} | {seed + 1} | {' | '.join(told)} | {seconds:.1f} |")
    return lines


def _told(before: nn.Module, after: nn.Module, rows: tuple[Tensor, Tensor]) -> str:
    with torch.no_grad():
        right, now = (model(rows[0]).argmax(1) == rows[1] for model in (before, after))
    return f"fixed {int((~right & now).sum())} of {int((~right).sum())}, broke {int((right & ~now).sum())}"


def main() -> None:
    """Measure and write the tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--out", type=Path, default=FOLDER / "results")
    given = parser.parse_args()
    what = (__doc__ or "").split("\n\n")[1].replace("\n", " ")
    text = ["# CARE and Arachne\n", f"Made by `python benchmarks/searches.py`. {what}\n"]
    for title, measure, note in (("CARE", care, PUBLISHED), ("Arachne", arachne, "study, MNIST: fixes 12.7 %")):
        lines = [f"### {title}", "", *measure(given.quick), "", f"Next to it: {note}."]
        print("\n".join(lines), flush=True)
        text.append("\n".join(lines) + "\n")
    given.out.mkdir(parents=True, exist_ok=True)
    (given.out / "searches.md").write_text("\n".join(text), encoding="utf-8")


if __name__ == "__main__":
    main()
