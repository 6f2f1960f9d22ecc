"""How a repair went, and what it costs: convergence, frontier."""

from __future__ import annotations

from typing import Any

import numpy as np

from repairopt.errors import SpecificationError

from .evidence import Progress
from .style import AFTER, BEFORE, QUIET, WORSE, drawing, wrapped


def plot_convergence(progress: Progress) -> Any:
    """A Matplotlib figure of the goal after each round, and of the samples that failed beyond what is allowed."""
    rounds = np.arange(len(progress.goal))
    known, kept = np.isfinite(progress.goal), progress.accepted
    broken = bool((progress.broken > 0).any())
    ratios = [2, 1] if broken else None
    with drawing(3.2 + 1.2 * broken, 1 + broken, ratios) as (figure, panels):
        axes = panels[0] if broken else panels
        on, off = known & kept, known & ~kept
        axes.plot(rounds[on], progress.goal[on], "-s", color=AFTER, ms=4.5, label="kept")
        axes.plot(rounds[off], progress.goal[off], "x", color=QUIET, label="not kept")
        if np.isfinite(progress.target):
            axes.axhline(progress.target, color="black", linestyle="--", linewidth=1.1, label="target")
        axes.set_ylabel(wrapped(progress.name, 30))
        axes.set_title("Progress on the true network")
        axes.xaxis.get_major_locator().set_params(integer=True)
        last = axes
        if broken:
            last = panels[1]
            last.bar(rounds, np.clip(progress.broken, 0, None), color=WORSE, width=0.6)
            last.set_ylabel("failing beyond\nallowance")
            last.set_xlim(axes.get_xlim())
            last.xaxis.get_major_locator().set_params(integer=True)
        last.set_xlabel("round (0 is the original network)")
        figure.legend(*axes.get_legend_handles_labels(), loc="outside lower left", ncols=3)
    return figure


def plot_frontier(
    points: Any, chosen: tuple[float, float] | None = None, original: tuple[float, float] | None = None
) -> Any:
    """A Matplotlib figure: what accuracy each level of the property costs.

    Args:
        points: Objects with ``value`` and ``accuracy``, in any order; or a :class:`repairopt.Frontier` of them.
        chosen: Value and accuracy of the repair that the report is about.
        original: Value and accuracy of the original network.

    Raises:
        SpecificationError: No points, or one without value or accuracy.
    """
    points = list(getattr(points, "points", points))
    if not points or any(not hasattr(p, "value") or not hasattr(p, "accuracy") for p in points):
        raise SpecificationError(
            "frontier: expected one or more points with .value and .accuracy. Pass what trace_frontier returns."
        )
    values = np.array([float(p.value) for p in points])
    accuracy = 100 * np.array([float(p.accuracy) for p in points])
    order = values.argsort()
    with drawing(3.4) as (figure, axes):
        axes.plot(values[order], accuracy[order], "-o", color=QUIET, ms=4.5, label="repairs for other targets")
        if original is not None:
            axes.plot(original[0], 100 * original[1], "o", mfc="white", mec=BEFORE, mew=1.8, label="original")
        if chosen is not None:
            axes.plot(chosen[0], 100 * chosen[1], "s", color=AFTER, ms=9, label="this repair")
        axes.set_xlabel("property, smaller is better")
        axes.set_ylabel("accuracy, %")
        axes.set_title("Accuracy against the property, repair data")
        axes.margins(0.08)
        figure.legend(*axes.get_legend_handles_labels(), loc="outside lower left", ncols=2)
    return figure
