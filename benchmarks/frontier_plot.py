"""The picture of ``frontier.py``: change of accuracy against gap, held-out means with standard errors."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmark_files import Record
from frontier_statistics import changes, curve, error, front_of, mean, values
from frontier_tables import ALSO, IN_SIGHT, OURS, OURS_AVERAGE, REFERENCE, SWEEPS, rows_of

PANELS = ("gender, parity", "gender, sampled", "race, parity", "age bands, parity", "bank age, sampled")
FAR, OFFSETS = "SQP, far columns", "SQP, offsets by group"
COLORS = {
    OURS[0]: "#d55e00",
    OURS[1]: "#e69f00",
    FAR: "#b22222",
    OFFSETS: "#f0a3a3",
    SWEEPS[0]: "#0072b2",
    SWEEPS[1]: "#56b4e9",
    SWEEPS[2]: "#009e73",
    REFERENCE: "black",
}
OTHERS = ["#cc79a7", "#8c564b", "#9467bd", "#7f7f7f", "#bcbd22"]
LOWEST = -4.0  # points; what lies below is not shown


def draw(records: Sequence[Record], path: Path) -> None:
    """One panel for each case that was run."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot

    shown = [name for name in PANELS if any(record["case"] == name for record in records)]
    if not shown:
        return
    columns = min(3, len(shown))
    rows = math.ceil(len(shown) / columns)
    figure, axes = pyplot.subplots(rows, columns, figsize=(5.4 * columns, 4.2 * rows), squeeze=False)
    for axis, case in zip(axes.flat, shown, strict=False):
        panel(axis, records, case)
    for axis in axes.flat[len(shown) :]:
        axis.set_visible(False)
    found = dict(pair[::-1] for axis in axes.flat for pair in zip(*axis.get_legend_handles_labels(), strict=True))
    figure.legend(found.values(), found.keys(), loc="upper center", bbox_to_anchor=(0.5, 0.0), ncols=3, frameon=False)
    figure.tight_layout()
    figure.savefig(path, dpi=110, bbox_inches="tight")
    pyplot.close(figure)


def panel(axis: Any, records: Sequence[Record], case: str) -> None:
    """Curves of sweeps and thresholds, points of all else."""
    own = [record for record in records if record["case"] == case]
    lowest = 0.0
    for name in (REFERENCE, *SWEEPS):
        points = [(gap, change) for gap, change, _ in curve(own, case, name) if change >= LOWEST]
        if points:
            front = front_of(points)
            axis.plot(*zip(*front, strict=True), "-" if name == REFERENCE else "--", color=COLORS[name], label=name)
            axis.plot(*zip(*points, strict=True), ".", color=COLORS[name], markersize=4)
            lowest = min(lowest, *(change for _, change in points))
    axis.plot(mean(values(own, "gap before")), 0.0, "k*", markersize=10, label="original network")
    apart = (*COLORS, *IN_SIGHT, *OURS_AVERAGE, *ALSO)
    others = [m for m in dict.fromkeys(r["method"] for r in records) if m not in apart]
    look = COLORS | {m: OTHERS[i % len(OTHERS)] for i, m in enumerate(others)}  # the same in all panels
    for _, method, _, runs in rows_of(own, [case], [m for m in look if m not in (*SWEEPS, REFERENCE)]):
        x, y = values(runs, "gap after"), changes(runs)
        if mean(y) >= LOWEST:
            ours = method in (*OURS, FAR, OFFSETS)
            size = {"marker": "o" if ours else "s", "markersize": 7 if ours else 5, "capsize": 2, "linestyle": "none"}
            axis.errorbar(mean(x), mean(y), error(y), error(x), color=look[method], label=method, **size)
            lowest = min(lowest, mean(y))
    axis.set_ylim(1.15 * lowest - 0.1, 0.6)
    axis.set_xlim(left=0.0)
    axis.set_title(case)
    axis.set_xlabel("gap, held-out")
    axis.set_ylabel("accuracy, points against the original")
    axis.grid(alpha=0.3)
