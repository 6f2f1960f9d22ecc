"""The comparative study on six networks: methods of the literature and our own by one protocol, with letter groups.

    python benchmarks/study.py [--subjects ...] [--methods ...] [--repetitions N] [--seconds S] [--processor-time]
        [--read] [--out FOLDER]

Without ``--methods`` every system is run, ours too. With ``--processor-time`` limits count the processor's time, so
that a busy machine changes no result. Runs are kept in ``OUT/cells.jsonl`` and not done again. Writes ``study.md`` and
``study_letters.json``; the page is ``OUT/comparison.html``. Needs ``REPAIROPT_DATA`` and the ``bench`` extra.
"""

from __future__ import annotations

import argparse
import json
import sys
from math import isfinite
from pathlib import Path
from typing import Any

import environment  # noqa: F401 (before numpy and torch)
import torch
from study_peers import TunedAdam
from study_subjects import SUBJECTS

from repairopt.compare import Cell, Comparison, Limits, Metric, compare_repairs, list_systems, named_methods, read_cells
from repairopt.interfaces.specfile.study import read_published
from repairopt.report import shown_letters

PUBLISHED = read_published(Path(__file__).parent / "study_published.csv")  # tables 3 and 5 of the study, MNIST
ADAM = "tuned Adam"
LEFT_OUT = (  # need a goal of their own, or are the same network as another
    "regions",
    "on_grid",
    "at_most_broken",
    "most_fixed",
    "swarm",
    "vote",
    "offsets",
    "thresholds",
)
OURS = ("auto", "auto, no limit", "sqp", "train_then_correct", "fine_tune")
NO_LIMIT, LONG = "auto, no limit", 600.0  # seconds that stand for none
CLOCK = Path(__file__).parent / "processor_clock"


def main() -> None:
    """Run what is missing, write the tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--subjects", nargs="*", default=list(SUBJECTS), choices=list(SUBJECTS))
    parser.add_argument("--methods", nargs="*", default=[])
    parser.add_argument("--repetitions", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=30.0)
    parser.add_argument("--processes", type=int, default=1)
    parser.add_argument("--processor-time", action="store_true", help="count seconds of the processor, not of the wall")
    parser.add_argument("--read", action="store_true", help="write the tables of what is in OUT")
    parser.add_argument("--out", type=Path, default=Path("study"))
    given = parser.parse_args()
    torch.set_num_threads(1)
    if not given.read:
        run_missing(given)
    cells = sorted(read_cells(given.out).values(), key=lambda one: (one.method, one.subject, one.repetition))
    found = Comparison(tuple(cells), PUBLISHED)
    found.save_html(given.out / "comparison.html", title="Comparative study")
    groups = {name: part for name, part in found.to_dict().items() if name in ("letters", "means", "paired_letters")}
    text = json.dumps(groups, indent=1, sort_keys=True) + "\n"
    (given.out / "study_letters.json").write_text(text, encoding="utf-8")
    (given.out / "study.md").write_text(written(found), encoding="utf-8")


def run_missing(given: argparse.Namespace) -> None:
    """All methods once on every network, before any twice."""
    if given.processor_time:
        sys.path.insert(0, str(CLOCK))  # the processes of cells begin with it
    names = given.methods or [ADAM, "auto", NO_LIMIT, *(one.name for one in list_systems() if one.name not in LEFT_OUT)]
    made = {ADAM: TunedAdam(), NO_LIMIT: "auto"}
    subjects = [SUBJECTS[name]() for name in given.subjects]
    parts = [([one for one in names if one != NO_LIMIT], given.seconds), ([NO_LIMIT] * (NO_LIMIT in names), LONG)]
    for repetition in range(1, given.repetitions + 1):
        for some, seconds in parts:
            options: Any = {"limits": Limits(seconds=seconds), "processes": given.processes, "folder": given.out}
            methods = {name: made.get(name, name) for name in some}
            if methods:
                compare_repairs(
                    subjects,
                    named_methods(methods),
                    repetitions=repetition,
                    progress=tell,
                    published=PUBLISHED,
                    **options,
                )


def tell(done: int, count: int, left: float, cell: Cell) -> None:
    """A line for each run."""
    said = f"{cell.subject} {cell.method} {cell.repetition} {cell.outcome} {cell.reason[:80]}"
    print(f"{done}/{count} {said}", flush=True)


def written(found: Comparison) -> str:
    """Means and letters over all networks, then the figures of each network."""
    metrics = [one for one in found.measured() if one.name not in ("goal", "met")]
    groups = {one.name: (found.means(one.name), found.letters(one.name)) for one in metrics}
    order = sorted(found.methods, key=lambda name: (name not in OURS, name.lower()))
    lines = ["# Comparative study", "", "| method | " + " | ".join(one.title for one in metrics) + " | not measured |"]
    lines += ["|---" * (len(metrics) + 2) + "|"]
    for name in order:
        cells = [_over_all(name, one, *groups[one.name]) for one in metrics]
        ends = [str(cell.outcome) for cell in found.cells if cell.method == name and str(cell.outcome) != "measured"]
        told = ", ".join(f"{ends.count(one)} {one}" for one in dict.fromkeys(ends))
        lines.append(f"| {name} | " + " | ".join(cells) + f" | {told} |")
    for subject in found.subjects:
        means = {(name, one.name): found.mean(name, subject, one.name) for name in order for one in metrics}
        own = [one for one in metrics if any(isfinite(means[name, one.name][0]) for name in order)]
        head = "| method | " + " | ".join(one.title for one in own) + " |"
        lines += ["", f"## {subject}", "", head, "|---" * (len(own) + 1) + "|"]
        for name in order:
            texts = [_with_error(*means[name, one.name]) for one in own]
            if any(text != "-" for text in texts):
                lines.append(f"| {name} | " + " | ".join(texts) + " |")
    return "\n".join(lines) + "\n"


def _over_all(name: str, metric: Metric, means: dict[str, float], letters: dict[str, str]) -> str:
    if name not in means:
        return "-"
    shown = f"{means[name]:+.4f}" if metric.relative else f"{means[name]:.4g}"
    return f"{shown} {shown_letters(letters[name])}"


def _with_error(mean: float, error: float) -> str:
    return ("-" if not isfinite(mean) else f"{mean:.4g}") + (f" ± {error:.2g}" if isfinite(error) and error else "")


if __name__ == "__main__":
    main()
