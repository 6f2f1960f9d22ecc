"""Which localizer serves which method best: weights from each localizer for each of some methods, on held-out rows.

Networks learned half of scikit-learn's digits; each repair has the errors on a quarter as its goal and keeps the labels
of the rows it learned from. Figures are of the last quarter, which no repair saw: share of the original's errors that
are fixed, share of its right rows that break, and processor seconds, means over networks. One thread.

    python benchmarks/localizers.py [--quick] [--out FOLDER]
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import Any

import environment  # noqa: F401  (one thread)
import torch
from torch import Tensor, nn

from repairopt import ErrorRate, KeepLabels, RepairError, Settings, solve_repair
from repairopt.localize import available_localizers
from repairopt.methods import SQP, FineTune

Pair = tuple[Tensor, Tensor]
METHODS: dict[str, Any] = {"sqp": SQP(confidence=None, max_steps=20), "fine_tune": FineTune(epochs=15)}
READING = """All weights and those of the last layer serve both methods best here. Of the localizers the two spectra
(DeepFault, ArchRepair's) come closest, with a fourth and a half of the weights; under SQP DeepFault fixes as much as
any choice and breaks more. The 8 weights of Arachne's front break fewest rows under SQP and fix 11 % of the errors. SQP
fixes more than fine-tuning with every choice, and breaks more with most. I-REPAIR's influence ratio fixes least: it
also takes weights that influence next to nothing. Two networks, two divisions of the rows: differences of a few
points are noise.
"""
LIMIT = 30.0  # seconds for each repair
TARGET = 0.25  # of the errors on the rows to repair, as a share of the original's


def networks() -> dict[str, tuple[nn.Module, tuple[int, ...]]]:
    """Small networks that are not trained yet, and the shape of their inputs."""
    dense = [nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 24), nn.ReLU(), nn.Linear(24, 10)]
    kernels = [nn.Conv2d(1, 8, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(8, 12, 3, padding=1), nn.ReLU()]
    return {
        "64-32-24-10": (nn.Sequential(*dense), (64,)),
        "two convolutions": (nn.Sequential(*kernels, nn.Flatten(), nn.Linear(192, 10)), (1, 8, 8)),
    }


def learned(model: nn.Module, rows: Pair) -> nn.Module:
    """The network after 60 steps of Adam."""
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    for _ in range(60):
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(rows[0]), rows[1]).backward()
        optimizer.step()
    return model.eval()


def measured(model: nn.Module, parts: list[Pair], localizer: str, method: str, seed: int) -> dict[str, float] | None:
    """Shares fixed and broken on the last part, and processor seconds; None where the localizer does not fit."""
    training, repair, test = parts
    with torch.no_grad():
        wrong = float((model(repair[0]).argmax(1) != repair[1]).double().mean())
        before = model(test[0]).argmax(1) == test[1]
    goal = ErrorRate(*repair, target=TARGET * wrong)
    keep = [KeepLabels(*training, tolerance=0.01)]
    started = time.process_time()
    try:
        found = solve_repair(
            model,
            goal,
            keep,
            weights=localizer,
            method=METHODS[method],
            data=training,
            settings=Settings(seed=seed, time_limit=LIMIT),
        )
    except RepairError as error:
        print(f"{localizer}, {method}: {type(error).__name__}: {error}")
        return None
    seconds = time.process_time() - started
    with torch.no_grad():
        after = found.model(test[0]).argmax(1) == test[1]
    return {
        "weights": float(found.report.location.size),
        "repair error": found.report.verification.goal_after,
        "fixed": float(after[~before].double().mean()),
        "broken": float((~after)[before].double().mean()),
        "seconds": seconds,
    }


def table(method: str, quick: bool) -> list[str]:
    """A line for each localizer, the one that fixes most on balance first."""
    from sklearn.datasets import load_digits

    data = load_digits()
    x, y = torch.tensor(data.data / 16, dtype=torch.float32), torch.tensor(data.target)
    names = ["last", "all", "gradient", "care", *available_localizers()]
    found: dict[str, list[dict[str, float]]] = {name: [] for name in names}
    for seed in range(1 if quick else 2):
        order = torch.randperm(len(x), generator=torch.Generator().manual_seed(seed))
        spans = [order[:300], order[300:500], order[500:700]] if quick else [order[:900], order[900:1350], order[1350:]]
        torch.manual_seed(seed)
        for model, shape in list(networks().values())[: 1 if quick else None]:
            parts = [(x[span].view(-1, *shape), y[span]) for span in spans]
            learned(model, parts[0])
            for name in ("last", "gradient") if quick else names:
                one = measured(model, parts, name, method, seed)
                if one is not None:
                    found[name].append(one)
    means = {}
    for name, runs in found.items():
        if runs:
            means[name] = {key: sum(one[key] for one in runs) / len(runs) for key in runs[0]}
    order_of = sorted(means, key=lambda name: 9 * means[name]["broken"] - means[name]["fixed"])  # 9 of 10 are right
    head = ["weights", "runs", "count", "error, repair rows %", "fixed %", "broken %", "CPU s"]
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    for name in order_of:
        own = means[name]
        shares = " | ".join(f"{100 * own[key]:.1f}" for key in ("repair error", "fixed", "broken"))
        lines.append(f"| {name} | {len(found[name])} | {own['weights']:.0f} | {shares} | {own['seconds']:.1f} |")
    return lines


def main() -> None:
    """Measure and write the tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--out", type=Path, default=Path(__file__).resolve().parent / "results")
    given = parser.parse_args()
    what = (__doc__ or "").split("\n\n")[1].replace("\n", " ")
    text = ["# Localizers and methods\n", f"Made by `python benchmarks/localizers.py`. {what}\n", READING]
    for method in METHODS:
        lines = table(method, given.quick)
        print("\n".join([f"### {method}", *lines]), flush=True)
        text.append("\n".join([f"### {method}", "", *lines, ""]))
    given.out.mkdir(parents=True, exist_ok=True)
    (given.out / "localizers.md").write_text("\n".join(text), encoding="utf-8")


if __name__ == "__main__":
    main()
