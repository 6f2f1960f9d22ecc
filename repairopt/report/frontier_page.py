"""A frontier as one HTML file in which a slider chooses among the repairs; without script all are shown in turn."""

from __future__ import annotations

import base64
import hashlib
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from repairopt.patches import library_versions

from .axes import span, ticks
from .html_page import SPLITS, claim_rows, cost_rows, group_table, input_table, open_template, outcome_tone, read_part
from .pictures.collect import collect_evidence
from .pictures.evidence import AffectedInputs, Evidence, Rates
from .plain_words import list_caveats, number, percent, summarize
from .stated import BOUNDS, Stated, restate, restate_evidence, stated_names

AFFECTED, LISTED = 5000, 100  # inputs of a set whose answers changed that can be searched, and that stand on the page
MOST_COLUMNS = 40  # of an input, above which its values are left out
WIDTH, HEIGHT, LEFT, RIGHT, TOP, BOTTOM = 480, 330, 60, 14, 14, 50  # of the picture, and its margins
MOVED = 5e-4  # change of a rate that is worth a mark
Claims = Sequence[Sequence[Mapping[str, Any]]]


def render_frontier(
    frontier: Any,
    *,
    title: str = "Frontier of repairs",
    features: Sequence[str] = (),
    claims: Claims = (),
    words: Callable[[Evidence], Evidence] | None = None,
    patches: Sequence[str] = (),
) -> str:
    """The page of a :class:`repairopt.Frontier`; runs the networks of each repair over the data once more.

    ``claims`` are those of a spec file for each repair, ``words`` puts evidence into the words of its data, ``patches``
    are the names of the files of the repairs.
    """
    stated = stated_names([row for rows in claims for row in rows])
    name, lead = stated.get(frontier.name, (frontier.name, None))
    sign = "<=" if lead is None else ">="
    shown = [_shown(point, lead) for point in (frontier.original, *frontier.points)]
    repairs = []
    for k, (point, figures) in enumerate(zip(frontier.points, shown[1:], strict=True)):
        own = claims[k] if claims else ()
        one = _repair(point.repair.report, stated, own, features, words)
        said = f"Repair {k + 1} of {len(frontier.points)}, {name} {BOUNDS[sign]} {number(figures['target'])}"
        patch = patches[k] if patches else ""
        repairs.append(one | figures | {"id": f"repair-{k + 1}", "number": k + 1, "said": said, "patch": patch})
    held_out = any(math.isfinite(one["held_out_value"]) for one in shown)
    script = read_part("frontier.js")
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    return open_template("frontier.html.j2").render(
        title=title,
        name=name,
        bound=BOUNDS[sign],
        original=shown[0],
        repairs=repairs,
        chosen=max((k for k, one in enumerate(repairs) if one["met"]), default=0),
        held_out=held_out,
        chart=_chart(shown, [_shown(point, lead) for point in frontier.thresholds], held_out, name),
        script=script,
        digest=digest,
        version=library_versions().get("repairopt", ""),
        number=number,
        share=lambda value: percent(value) if math.isfinite(value) else "-",
    )


def _shown(point: Any, lead: Callable[[float], float] | None) -> dict[str, Any]:
    """Figures of a point in the unit of the statement."""
    way = lead or float
    shares = {key: getattr(point, key) for key in ("accuracy", "held_out_accuracy")}
    values = {key: way(getattr(point, key)) for key in ("target", "value", "held_out_value")}
    return {**values, **shares, "met": getattr(point, "met", True)}


def _repair(
    report: Any,
    stated: Stated,
    claims: Sequence[Mapping[str, Any]],
    features: Sequence[str],
    words: Callable[[Evidence], Evidence] | None,
) -> dict[str, Any]:
    plain = report.to_dict()
    evidence = report.evidence
    if report.subjects is not None:
        evidence = collect_evidence(report.subjects, report.verification, plain, affected=AFFECTED)
    evidence = evidence if words is None else words(evidence)
    plain, evidence = restate(plain, stated), restate_evidence(evidence, stated)
    compared = [one for one in evidence.rates if one.quantity != "recall"]
    return {
        "verdict": plain["verdict"],
        "tone": outcome_tone(plain),
        "sentences": summarize(plain),
        "caveats": list_caveats(plain, evidence.label),
        "rows": claim_rows(plain, evidence, claims),
        "costs": cost_rows(plain),
        "groups": [_rates(one) for one in compared or evidence.rates],
        "tables": [group_table(table, evidence) for table in evidence.tables],
        "affected": [_searched(one, evidence, features) for one in evidence.affected],
        "weights": plain["weights"]["changed"],
    }


def _searched(affected: AffectedInputs, evidence: Evidence, features: Sequence[str]) -> dict[str, Any]:
    """The first rows, which stand on the page, and further ones whose answers changed, which its search looks in."""
    table, changed = input_table(affected, evidence, features, MOST_COLUMNS), affected.before != affected.after
    further = [row for row, moved in zip(table["rows"][LISTED:], changed[LISTED:], strict=True) if moved]
    count = f"{'the first ' if len(changed) == AFFECTED and changed.all() else ''}{int(changed.sum()):,}"
    return table | {"rows": table["rows"][:LISTED], "changed": changed.tolist(), "further": further, "count": count}


def _rates(rates: Rates) -> dict[str, Any]:
    """A rate in each group before and after, as text and as places on a line of 100 units."""
    rows = []
    for k, group in enumerate(rates.groups):
        before, after, low, high = (float(of[k]) for of in (rates.before, rates.after, rates.low, rates.high))
        moved = after - before
        ends = f"{low:.3f} to {high:.3f}" if math.isfinite(low) else ""
        cells = [group, f"{before:.3f}", f"{after:.3f}", ends, f"{moved:+.3f}" if abs(moved) >= MOVED else "none"]
        rows.append({"cells": cells, "before": 100 * before, "after": 100 * after, "moved": abs(moved) >= MOVED})
    kind = "class" if rates.quantity == "recall" else "group"
    title = f"{rates.quantity.capitalize()} by {kind}, {rates.name}, {SPLITS[rates.held_out]}"
    return {"title": title, "rows": rows}


def _chart(
    shown: Sequence[dict[str, Any]], thresholds: Sequence[dict[str, Any]], held_out: bool, name: str
) -> dict[str, Any]:
    """Accuracy against the property as places in the picture: the curves, the dots, the ticks; empty without them."""
    value, share = ("held_out_value", "held_out_accuracy") if held_out else ("value", "accuracy")
    pairs = [[(one[value], 100 * one[share]) for one in side] for side in (shown, thresholds)]
    known = [pair for side in pairs for pair in side if all(map(math.isfinite, pair))]
    if not known or len(known) < len(shown) + len(thresholds):
        return {}
    spans = [span([pair[axis] for pair in known]) for axis in (0, 1)]

    def place(pair: tuple[float, float]) -> tuple[float, float]:
        x, y = ((v - low) / (high - low) for v, (low, high) in zip(pair, spans, strict=True))
        return round(LEFT + x * (WIDTH - LEFT - RIGHT), 1), round(HEIGHT - BOTTOM - y * (HEIGHT - TOP - BOTTOM), 1)

    (start, *dots), steps = ([place(pair) for pair in side] for side in pairs)
    return {
        "width": WIDTH,
        "height": HEIGHT,
        "frame": (LEFT, TOP, WIDTH - RIGHT, HEIGHT - BOTTOM),
        "original": start,
        "dots": dots,
        "thresholds": steps,
        "across": [(place((tick, spans[1][0]))[0], f"{tick:g}") for tick in ticks(*spans[0])],
        "up": [(place((spans[0][0], tick))[1], f"{tick:g}") for tick in ticks(*spans[1])],
        "axes": (name, f"accuracy, %, {SPLITS[held_out]}"),
    }
