"""Means over splits, their standard errors, and curves of a sweep in hindsight."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from benchmark_files import Record

NONE = "–"


def values(runs: Sequence[Record], key: str) -> list[float]:
    """A measure of each run."""
    return [float(run[key]) for run in runs]


def changes(runs: Sequence[Record], key: str = "accuracy") -> list[float]:
    """After minus before, in percentage points."""
    return [100 * (run[f"{key} after"] - run[f"{key} before"]) for run in runs]


def mean(numbers: Sequence[float]) -> float:
    """NaN of none."""
    return float(np.mean(numbers)) if len(numbers) else math.nan


def error(numbers: Sequence[float]) -> float:
    """Standard error of a mean; the two directions of a division count as one draw, since they share their rows."""
    pairs = [float(np.mean(numbers[i : i + 2])) for i in range(0, len(numbers), 2)]
    return float(np.std(pairs, ddof=1) / len(pairs) ** 0.5) if len(pairs) > 1 else math.nan


def spread(numbers: Sequence[float], form: str) -> str:
    """Mean and standard error as text."""
    wide = error(numbers)
    return f"{mean(numbers):{form}} ± " + ("?" if math.isnan(wide) else f"{wide:{form.lstrip('+')}}")


def select(records: Sequence[Record], case: str, method: str, typed: float | None = None) -> list[Record]:
    """The runs for one bound in the order of the splits; for the bound NaN those of methods that know none."""
    found = [r for r in records if r["case"] == case and r["method"] == method and not r["setting"]]
    if typed is not None:
        found = [r for r in found if r["typed"] == typed or (math.isnan(r["typed"]) and math.isnan(typed))]
    return sorted(found, key=lambda r: r["split"])


def curve(records: Sequence[Record], case: str, method: str) -> list[tuple[float, float, str]]:
    """Mean gap, mean change of accuracy in points, and setting, of each setting of a sweep; by gap."""
    own = [r for r in records if r["case"] == case and r["method"] == method and r["setting"]]
    found = []
    for setting in dict.fromkeys(r["setting"] for r in own):
        runs = [r for r in own if r["setting"] == setting]
        found.append((mean(values(runs, "gap after")), mean(changes(runs)), setting))
    return sorted(found)


def in_hindsight(points: Sequence[tuple[float, float, str]], gap: float, before: float) -> float:
    """Change of accuracy of the best setting at a gap, linear between neighbors on the front of settings.

    The original network stands at the end of the front. Generous: it is chosen by the held-out figures themselves, and
    what lies between two settings has not been run. NaN where no setting reaches the gap.
    """
    front = front_of([(at, change) for at, change, _ in points] + [(before, 0.0)])
    if not points or gap < front[0][0]:
        return math.nan
    return float(np.interp(gap, [at for at, _ in front], [change for _, change in front]))


def front_of(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """Those of which none with a smaller gap is as accurate, by gap."""
    front: list[tuple[float, float]] = []
    for at, change in sorted(points):
        if not front or change > front[-1][1]:
            front.append((at, change))
    return front


def markdown(title: str, head: Sequence[str], body: Sequence[Sequence[str]]) -> str:
    """A table with its title."""
    lines = [f"### {title}", "", "| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    return "\n".join([*lines, *("| " + " | ".join(row) + " |" for row in body)])
