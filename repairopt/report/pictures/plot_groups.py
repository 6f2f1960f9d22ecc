"""A rate in each group before and after, with the uncertainty of what came after."""

from __future__ import annotations

from typing import Any

import numpy as np

from .evidence import Rates
from .style import AFTER, BEFORE, QUIET, drawing, split_name, wrapped

MOST = 24  # groups in a picture


def plot_rates(rates: Rates) -> Any:
    """A Matplotlib figure with one line for each group: hollow before, full after, with 95 % intervals."""
    shown = slice(0, MOST)
    names = [wrapped(name) for name in rates.groups[shown]]
    before, after = rates.before[shown], rates.after[shown]
    place = np.arange(len(names))[::-1]
    lines = sum(name.count("\n") + 1 for name in names)
    with drawing(1.5 + 0.2 * lines + 0.16 * len(names)) as (figure, axes):
        axes.hlines(place, before, after, color=QUIET, linewidth=1.2, zorder=1)
        if np.isfinite(rates.low[shown]).all():
            reach = np.abs(np.stack([after - rates.low[shown], rates.high[shown] - after]))
            axes.errorbar(after, place, xerr=reach, fmt="none", ecolor=AFTER, capsize=4, linewidth=1.4, zorder=2)
        axes.plot(before, place, "o", mfc="white", mec=BEFORE, mew=1.8, ms=9, label="before", zorder=3)
        axes.plot(after, place, "s", color=AFTER, label="after", zorder=4)
        axes.set_yticks(place, names)
        axes.set_ylim(-0.6, len(names) - 0.4)
        axes.grid(axis="y", visible=False)
        axes.set_xlabel(rates.quantity)
        axes.margins(x=0.08)
        title = f"{rates.name}, {split_name(rates.held_out)}"
        if len(rates.groups) > MOST:
            title += f", the first {MOST} of {len(rates.groups)} groups"
        axes.set_title(wrapped(title, 52))
        figure.legend(*axes.get_legend_handles_labels(), loc="outside lower left", ncols=2)
    return figure
