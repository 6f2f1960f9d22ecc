"""Numbers by sample: before against after, and the room that constraints leave."""

from __future__ import annotations

from typing import Any

import numpy as np

from .evidence import Margins
from .style import AFTER, BEFORE, BETTER, QUIET, WORSE, drawing, split_name, wrapped

MOST = 4000  # samples that did not cross; those that crossed are all drawn
BINS = 40


def plot_margins(margins: Margins) -> Any:
    """A Matplotlib figure: each sample before (across) and after (up), those that crossed with their own marks."""
    before, after, limit = margins.before, margins.after, margins.threshold
    fell, rose = (before >= limit) & (after < limit), (before < limit) & (after >= limit)
    stayed = np.flatnonzero(~fell & ~rose)
    stayed = stayed[np.linspace(0, len(stayed) - 1, min(MOST, len(stayed))).astype(int)] if len(stayed) else stayed
    with drawing(4.4) as (figure, axes):
        axes.axline((limit, limit), slope=1, color=QUIET, linewidth=0.8, linestyle=":")
        axes.axhline(limit, color="black", linewidth=1.0, linestyle="--")
        axes.axvline(limit, color="black", linewidth=1.0, linestyle="--")
        options: Any = {"linestyle": "none", "rasterized": True}
        axes.plot(before[stayed], after[stayed], ".", color=QUIET, ms=3, label="on the same side", **options)
        axes.plot(before[fell], after[fell], "x", color=WORSE, mew=1.6, label=f"now fail: {fell.sum():,}", **options)
        axes.plot(*(before[rose], after[rose], "^"), color=BETTER, ms=5, label=f"now hold: {rose.sum():,}", **options)
        axes.set_xlabel(f"{margins.quantity}, before")
        axes.set_ylabel("after")
        axes.set_title(wrapped(f"{margins.name}, {split_name(margins.held_out)}, {len(before):,} samples", 52))
        figure.legend(*axes.get_legend_handles_labels(), loc="outside lower left", ncols=3, columnspacing=1.0)
    return figure


def plot_slack(slack: Margins) -> Any:
    """A Matplotlib figure: how many samples are how far from breaking a constraint, before and after."""
    both = np.concatenate([slack.before, slack.after])
    low, high = min(float(both.min()), slack.threshold), max(float(both.max()), slack.threshold)
    width = (high - low) / BINS or 1.0
    first = slack.threshold - np.ceil((slack.threshold - low) / width) * width  # so that no bin straddles the threshold
    edges = first + width * np.arange(int(np.ceil((high - first) / width)) + 1)
    failed = int((slack.after < slack.threshold).sum())
    allowed = f" ({slack.allowed:,} may)" if slack.allowed >= 0 else ""
    with drawing(3.1) as (figure, axes):
        axes.hist(slack.after, edges, color=AFTER, alpha=0.75, label="after")
        axes.hist(slack.before, edges, histtype="step", color=BEFORE, linewidth=1.8, label="before")
        axes.axvline(slack.threshold, color="black", linestyle="--", linewidth=1.2, label="limit")
        axes.set_xlabel(slack.quantity)
        axes.set_ylabel("samples")
        title = f"{slack.name}, {split_name(slack.held_out)}: {failed:,} of {len(slack.after):,} fail{allowed}"
        axes.set_title(wrapped(title, 52))
        figure.legend(*axes.get_legend_handles_labels(), loc="outside lower left", ncols=3)
    return figure
