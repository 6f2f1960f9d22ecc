"""A Transformer and an LSTM by every method of the library: what repairs them, and what does not fit, with the reason.

    python benchmarks/sequences.py [--seconds S] [--read] [--out FOLDER]

The Transformer reads rows of pixels of small digits (``deep_networks.py``), the LSTM is M3 of the AutoRIC paper. Each
method runs once. Writes ``sequences.md``. Needs ``REPAIROPT_DATA``.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import environment  # noqa: F401 (before numpy and torch)
import torch
from deep_networks import BASE, small_digits, trained
from study_subjects import jigsaw

from repairopt.compare import Comparison, Limits, Subject, compare_repairs, list_systems, read_cells

LEFT_OUT = ("regions", "swarm")  # need a goal of input regions, or numbers of their own
ROWS = {"train": 1000, "validation": 200, "repair": 600, "test": 600}


def transformer() -> Subject:
    """The Transformer of rows of pixels, on shifted digits, a third of which it mislabels."""
    data, at = small_digits(), BASE
    parts = {}
    for name, count in ROWS.items():
        images = data.clean if name in ("train", "validation") else data.shifted
        parts[name] = (images[at : at + count], data.labels[at : at + count])
        at += count
    return Subject("Transformer", trained("transformer"), **parts)


SUBJECTS = {"Transformer": transformer, "M3 LSTM": jigsaw}


def main() -> None:
    """Run what is missing, write the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=20.0)
    parser.add_argument("--read", action="store_true", help="write the table of what is in OUT")
    parser.add_argument("--out", type=Path, default=Path("sequences"))
    given = parser.parse_args()
    torch.set_num_threads(1)
    if given.read:
        found = Comparison(tuple(read_cells(given.out).values()))
    else:
        names = ["auto", *(one.name for one in list_systems() if one.name not in LEFT_OUT)]
        subjects = [make() for make in SUBJECTS.values()]
        found = compare_repairs(subjects, names, repetitions=1, limits=Limits(seconds=given.seconds), folder=given.out)
    (given.out / "sequences.md").write_text(written(found), encoding="utf-8")


def written(found: Comparison) -> str:
    """What each method did to each network."""
    head = " | ".join(f"{name}: RR | NFR | CPU s" for name in found.subjects)
    lines = ["# Sequences", "", f"| method | {head} |", "|---" * (3 * len(found.subjects) + 1) + "|"]
    cells = {(cell.method, cell.subject): cell for cell in found.cells}
    for method in sorted(found.methods, key=str.lower):
        told = []
        for subject in found.subjects:
            cell = cells.get((method, subject))
            if cell is None:
                told += ["not run", "", ""]
            elif str(cell.outcome) == "measured":
                told += [f"{cell.value(one):.3g}" for one in ("repair_rate", "negative_flips", "cpu_seconds")]
            else:
                told += [f"{cell.outcome}: {' '.join(cell.reason.split())[:160]}", "", ""]
        lines.append(f"| {method} | {' | '.join(told)} |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
