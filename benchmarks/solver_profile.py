"""Performance profiles: for each back end the share of programs that it solved within a factor of the fastest time.

Dolan and More, Benchmarking optimization software with performance profiles, Mathematical Programming 2002.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from solver_runs import BY_ROWS, DEFAULT
from solver_tables import TICK, by_instance, cells

LARGEST = 1000.0  # factor at which the picture ends
COLORS = ["#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#7f7f7f", "#8c564b", "#bcbd22", "#9467bd"]
STYLES = ["-", "--", "-.", ":"]
LEGEND: dict[str, Any] = {"ncols": 3, "frameon": False, "fontsize": 9, "columnspacing": 1.2, "handlelength": 2.4}


def ratios(records: Sequence[dict[str, Any]], kind: str) -> dict[str, list[float]]:
    """For each way its time over the least on each program of a kind; infinite without a right answer in time.

    A way counts where it was not tried because a smaller program of the family was too slow already.
    """
    times = []
    for group in by_instance(records).values():
        if group[0]["kind"] == kind:
            found = {way: one.seconds for way, one in cells(group).items() if not way.startswith(BY_ROWS)}
            if math.isfinite(min(found.values())):
                times.append(found)
    names = sorted({way for found in times for way in found})
    best = [max(TICK, min(found.values())) for found in times]  # below a tick of the clock all are the same
    pairs = list(zip(times, best, strict=True))
    return {name: [max(TICK, found.get(name, math.inf)) / least for found, least in pairs] for name in names}


def draw(records: Sequence[dict[str, Any]], path: Path) -> None:
    """The picture, linear programs on the left, quadratic ones on the right."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot

    names = sorted({way for kind in ("LP", "QP") for way in ratios(records, kind)} - {DEFAULT})
    look = {name: (COLORS[i % len(COLORS)], STYLES[i % len(STYLES)], 1.6) for i, name in enumerate(names)}
    look[DEFAULT] = ("black", "-", 2.6)
    figure, axes = pyplot.subplots(1, 2, figsize=(12, 5.2), sharey=True)
    for axis, kind in zip(axes, ("LP", "QP"), strict=True):
        found = ratios(records, kind)
        count = max((len(values) for values in found.values()), default=0)
        for name in sorted(found, key=lambda name: (-share(found[name], LARGEST), -share(found[name], 1.0), name)):
            color, style, width = look[name]
            label = f"{name} ({100 * share(found[name], math.inf):.0f} %)"
            axis.step(*steps(found[name]), where="post", color=color, linestyle=style, linewidth=width, label=label)
        axis.set_xscale("log")
        axis.set_xlim(1.0, LARGEST)
        axis.set_ylim(0.0, 1.02)
        axis.set_xlabel("time over that of the fastest")
        axis.set_title(f"{count} {'linear' if kind == 'LP' else 'quadratic'} programs")
        axis.grid(alpha=0.3)
        axis.legend(title="solved at all", loc="upper center", bbox_to_anchor=(0.5, -0.13), **LEGEND)
    axes[0].set_ylabel("share of programs solved")
    figure.savefig(path, dpi=110, bbox_inches="tight")
    pyplot.close(figure)


def share(values: Sequence[float], factor: float) -> float:
    """Share of the programs solved within a factor of the fastest."""
    solved = [value for value in values if value <= factor and math.isfinite(value)]
    return len(solved) / len(values) if values else 0.0


def steps(values: Sequence[float]) -> tuple[list[float], list[float]]:
    """The corners of the curve."""
    finite = sorted(value for value in values if math.isfinite(value))
    x = [1.0, *finite, LARGEST]
    return x, [share(values, at) for at in x[:-1]] + [share(values, LARGEST)]
