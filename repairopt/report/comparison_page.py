"""A comparison of methods as one HTML file: tables with letters, trade-offs as pictures, figures of papers beside."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from repairopt.patches import library_versions

from .axes import decades, span, ticks
from .html_page import open_template

WIDTH, HEIGHT, LEFT, RIGHT, TOP, BOTTOM = 520, 360, 64, 18, 16, 52  # of a picture, and its margins
RADAR, REACH = 190, 58  # size of a radar, and length of its axes
MOST_REASON = 220  # characters of a reason that are shown


def render_comparison(comparison: Any, metrics: Sequence[Any], *, title: str = "Comparison of repairs") -> str:
    """The page of a :class:`repairopt.compare.Comparison`; ``metrics`` are those that have figures."""
    methods, subjects = comparison.methods, comparison.subjects
    letters = {one.name: comparison.letters(one.name) for one in metrics}
    means = {one.name: comparison.means(one.name) for one in metrics}
    ranks = {one.name: _ranks(means[one.name], one.better) for one in metrics}
    order = sorted(methods, key=lambda name: _mean_rank(name, ranks))
    numbers = {name: k + 1 for k, name in enumerate(order)}
    return open_template("comparison.html.j2").render(
        title=title,
        counts={"methods": len(methods), "subjects": len(subjects), "cells": len(comparison.cells)},
        metrics=[{"title": one.title, "meaning": one.meaning, "relative": one.relative} for one in metrics],
        head=["method", "runs measured", *(one.title for one in metrics), "mean rank"],
        rows=[_group_row(comparison, name, numbers, metrics, means, letters, ranks) for name in order],
        rank_rows=[[name, *(_shown_rank(ranks[one.name].get(name)) for one in metrics)] for name in order],
        subjects=[_subject(comparison, one, order, metrics) for one in subjects],
        charts=_charts(means, numbers, metrics),
        legend=[{"number": numbers[name], "name": name} for name in order],
        radars=[_radar(name, metrics, ranks) for name in order],
        failures=_failures(comparison),
        published=[[subject, system, metric, f"{value:g}"] for subject, system, metric, value in comparison.published],
        version=library_versions().get("repairopt", ""),
    )


def _ranks(means: Mapping[str, float], better: int) -> dict[str, float]:
    """Ranks from 1, equal means share theirs."""
    order = sorted(means.values(), key=lambda value: -better * value)
    return {
        name: 1 + (order.index(value) + len(order) - 1 - order[::-1].index(value)) / 2 for name, value in means.items()
    }


def _mean_rank(name: str, ranks: Mapping[str, Mapping[str, float]]) -> float:
    own = [by_name[name] for by_name in ranks.values() if name in by_name]
    return float(np.mean(own)) if own else math.inf


def shown_letters(letters: str) -> str:
    """Letters of a method with runs of three and more as their ends: ``a-d, g`` for ``abcdg``."""
    runs: list[str] = []
    for one in letters:
        if runs and ord(one) == ord(runs[-1][-1]) + 1:
            runs[-1] += one
        else:
            runs.append(one)
    if all(len(run) < 3 for run in runs):
        return letters
    return ", ".join(f"{run[0]}-{run[-1]}" if len(run) > 2 else run for run in runs)


def _group_row(
    comparison: Any, name: str, numbers: Mapping[str, int], metrics: Sequence[Any], means: Any, letters: Any, ranks: Any
) -> list[str]:
    ends = [cell.outcome == "measured" for cell in comparison.cells if cell.method == name]
    cells = [f"{numbers[name]} {name}", f"{sum(ends)} of {len(ends)}"]
    for one in metrics:
        value = means[one.name].get(name)
        sign = "+" if one.relative else ""
        cells.append(
            "-" if value is None else f"{_number(value, sign)} {shown_letters(letters[one.name].get(name, ''))}"
        )
    rank = _mean_rank(name, ranks)
    return [*cells, f"{rank:.1f}" if math.isfinite(rank) else "-"]


def _number(value: float, sign: str = "") -> str:
    return f"{value:{sign}.3g}" if abs(value) >= 1 else f"{value:{sign}.4f}"


def _shown_rank(rank: float | None) -> str:
    return "-" if rank is None else f"{rank:g}"


def _subject(comparison: Any, subject: str, order: Sequence[str], metrics: Sequence[Any]) -> dict[str, Any]:
    rows = []
    for name in order:
        cells = []
        for one in metrics:
            mean, error = comparison.mean(name, subject, one.name)
            shown = _number(mean) + (f" ± {_number(error)}" if math.isfinite(error) else "")
            cells.append(shown if math.isfinite(mean) else "-")
        outcomes = [str(one) for one in comparison.outcomes(name, subject)]
        told = ", ".join(f"{outcomes.count(one)} {one}" for one in dict.fromkeys(outcomes))
        rows.append([name, *cells, told])
    return {"name": subject, "rows": rows, "head": ["method", *(one.title for one in metrics), "outcomes"]}


def _failures(comparison: Any) -> list[list[str]]:
    """What was not measured, and why; repetitions with the same reason together."""
    found: dict[tuple[str, str, str, str], list[str]] = {}
    for cell in comparison.cells:
        if cell.outcome != "measured":
            reason = " ".join(cell.reason.split())
            short = reason if len(reason) <= MOST_REASON else reason[: MOST_REASON - 3] + "..."
            found.setdefault((cell.method, cell.subject, str(cell.outcome), short), []).append(str(cell.repetition))
    return [[method, subject, outcome, ", ".join(of), why] for (method, subject, outcome, why), of in found.items()]


def _charts(means: Mapping[str, Mapping[str, float]], numbers: Mapping[str, int], metrics: Sequence[Any]) -> list[Any]:
    """Repair rate against negative flips and against time, where they were measured."""
    known = {one.name: one for one in metrics}
    pairs = [("negative_flips", "repair_rate", False), ("cpu_seconds", "repair_rate", True)]
    return [
        _chart(known[x], known[y], means, numbers, logarithmic)
        for x, y, logarithmic in pairs
        if x in known and y in known and means[x].keys() & means[y].keys()
    ]


def _chart(across: Any, up: Any, means: Any, numbers: Mapping[str, int], logarithmic: bool) -> dict[str, Any]:
    names = [name for name in numbers if name in means[across.name] and name in means[up.name]]
    points = [(means[across.name][name], means[up.name][name]) for name in names]
    scaled = [(math.log10(max(x, 1e-3)) if logarithmic else x, y) for x, y in points]
    spans = [span([pair[axis] for pair in scaled]) for axis in (0, 1)]

    def place(pair: tuple[float, float]) -> tuple[float, float]:
        x, y = ((v - low) / (high - low) for v, (low, high) in zip(pair, spans, strict=True))
        return round(LEFT + x * (WIDTH - LEFT - RIGHT), 1), round(HEIGHT - BOTTOM - y * (HEIGHT - TOP - BOTTOM), 1)

    best = _pareto(points, across.better, up.better)
    together: dict[tuple[float, float], list[int]] = {}
    for k, pair in enumerate(scaled):
        together.setdefault(place(pair), []).append(k)
    dots = [
        {
            "place": at,
            "numbers": ",".join(str(numbers[names[k]]) for k in of),
            "name": ", ".join(names[k] for k in of),
            "best": of[0] in best,
            "x": points[of[0]][0],
            "y": points[of[0]][1],
        }
        for at, of in together.items()
    ]
    line = sorted((dot["place"] for dot in dots if dot["best"]), key=lambda at: (at[0], -at[1]))
    marks = [(10.0**tick if logarithmic else tick, tick) for tick in (decades if logarithmic else ticks)(*spans[0])]
    return {
        "title": f"{up.title} against {across.title}",
        "axes": (across.title, up.title),
        "width": WIDTH,
        "height": HEIGHT,
        "frame": (LEFT, TOP, WIDTH - RIGHT, HEIGHT - BOTTOM),
        "dots": dots,
        "line": line,
        "across": [(place((at, spans[1][0]))[0], f"{value:.3g}") for value, at in marks],
        "up": [(place((spans[0][0], tick))[1], f"{tick:g}") for tick in ticks(*spans[1])],
    }


def _pareto(points: Sequence[tuple[float, float]], *better: int) -> list[int]:
    """Positions of the points that no other is better than in both."""

    def beats(a: tuple[float, float], b: tuple[float, float]) -> bool:
        gains = [sign * (x - y) for sign, x, y in zip(better, a, b, strict=True)]
        return min(gains) >= 0 and max(gains) > 0

    return [k for k, own in enumerate(points) if not any(beats(other, own) for other in points)]


def _radar(name: str, metrics: Sequence[Any], ranks: Mapping[str, Mapping[str, float]]) -> dict[str, Any]:
    """A polygon whose corners are the farther out the better the rank of a method is; missing metrics at the center."""
    corners, axes = [], []
    for k, one in enumerate(metrics):
        angle = 2 * math.pi * k / len(metrics) - math.pi / 2
        own, worst = ranks[one.name].get(name), max(ranks[one.name].values(), default=1.0)
        share = 0.0 if own is None else 1.0 if worst <= 1 else 1 - (own - 1) / worst
        corners.append(tuple(round(RADAR / 2 + share * REACH * f(angle), 1) for f in (math.cos, math.sin)))
        end, text = (
            tuple(round(RADAR / 2 + reach * f(angle), 1) for f in (math.cos, math.sin)) for reach in (REACH, REACH + 15)
        )
        axes.append({"end": end, "text": text, "title": one.title})
    told = ", ".join(f"{one.title} rank {_shown_rank(ranks[one.name].get(name))}" for one in metrics)
    return {"name": name, "size": RADAR, "corners": corners, "axes": axes, "told": told}
