"""Turns the records of ``benchmarks/solvers.py`` into markdown: times, accuracy, failures, rules."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any

from solver_instances import REAL
from solver_runs import BY_ROWS, DEFAULT

Record = dict[str, Any]
ACCURATE = 1e-6  # relative gap, and violation, of an answer that counts as right
CLOSE, TICK = 1.25, 0.5e-3  # ratio and seconds up to which two times count as the same
NONE = ""
LIMITS = ("size limit", "too large")


@dataclass(frozen=True)
class Cell:
    """All runs of one way on one instance.

    Attributes:
        way: The back end, ``"default"``, or a working set with a back end.
        seconds: Median CPU seconds; infinite where there is no right answer.
        runs: How many.
        shown: What the table says.
        right: Whether the answer is feasible and, by the best bound that any way proved, optimal.
        wrong: Whether the native library called an answer optimal or infeasible that was not right.
        violation: Recomputed.
        gap: To the best bound proven, relative.
        own: Whether the multipliers of this very answer prove it.
        message: Native status text where there is no right answer.
    """

    way: str
    seconds: float
    runs: int
    shown: str
    right: bool = False
    wrong: bool = False
    violation: float = math.nan
    gap: float = math.nan
    own: bool = False
    message: str = ""


def cells(records: Sequence[Record]) -> dict[str, Cell]:
    """The records of one instance by way."""
    bounds = [r["objective"] - r["gap"] * r["scale"] for r in records if math.isfinite(r.get("gap", math.nan))]
    best = max(bounds, default=math.nan)
    grouped: dict[str, list[Record]] = {}
    for record in records:
        grouped.setdefault(record["way"], []).append(record)
    return {way: cell(way, group, best) for way, group in grouped.items()}


def cell(way: str, group: Sequence[Record], best: float) -> Cell:
    """One cell; the first run stands for all but the time."""
    first = group[0]
    message = str(first.get("message", "")).replace("|", "/")
    if "objective" not in first:
        late = first["status"].startswith(">")
        shown = "size limit" if "size-limited" in message else "too large" if " GiB" in message else first["status"]
        false = first["status"] in ("infeasible", "unbounded") or bool(first.get("claimed"))
        return Cell(way, math.inf, len(group), shown, wrong=false, message="" if late else message)
    gap = (first["objective"] - best) / first["scale"]
    right = first["violation"] <= ACCURATE and gap <= ACCURATE
    claimed = first["status"] == "optimal" or first.get("claimed") == "optimal"
    own = math.isfinite(first.get("gap", math.nan)) and abs(first["gap"]) <= ACCURATE
    seconds = median(r["cpu"] for r in group)
    shown = clock(seconds) if right else f"off ({clock(seconds)})"
    counted = seconds if right else math.inf
    return Cell(way, counted, len(group), shown, right, claimed and not right, first["violation"], gap, own, message)


def by_instance(records: Iterable[Record]) -> dict[tuple[str, str], list[Record]]:
    """Records by family and instance, in their order."""
    found: dict[tuple[str, str], list[Record]] = {}
    for record in records:
        found.setdefault((record["family"], record["instance"]), []).append(record)
    return found


# -------------------------------------------------------------------- tables


def family_tables(records: Sequence[Record]) -> list[str]:
    """CPU seconds by instance and way: one table for each family, real programs together."""
    groups: dict[str, dict[tuple[str, str], list[Record]]] = {}
    for key, group in by_instance(records).items():
        groups.setdefault(key[0], {})[key] = group
    found = []
    for title, rows in groups.items():
        filled = {key: cells(group) for key, group in rows.items()}
        names = list(dict.fromkeys(way for each in filled.values() for way in each))
        names.sort(key=lambda way: (way.startswith(BY_ROWS), way == DEFAULT, way))
        body = []
        for key, each in filled.items():
            least = min((c.seconds for c in each.values()), default=math.inf)
            size = f"{rows[key][0]['n']:,} x {rows[key][0]['m']:,}"
            line = [f"{key[1]}, {size}" if key[0] == REAL else size]
            body.append(line + [shown(each.get(way), least) for way in names])
        found.append(markdown(title, ["weights x rows", *names], body))
    return found


def shown(one: Cell | None, least: float) -> str:
    """A time, bold where it is the least."""
    if one is None:
        return NONE
    return f"**{one.shown}**" if one.right and one.seconds <= least else one.shown


def accuracy_table(records: Sequence[Record]) -> str:
    """Each way over all instances: tried, right, wrong, late; the worst violation and gap among right answers."""
    body = []
    every = {key: cells(group) for key, group in by_instance(records).items()}
    for way in sorted({way for each in every.values() for way in each}):
        tried = [each[way] for each in every.values() if way in each]
        right = [c for c in tried if c.right]
        late = sum(c.shown.startswith(">") for c in tried)
        limited = sum(c.shown in LIMITS for c in tried)
        other = len(tried) - len(right) - late - limited - sum(c.wrong for c in tried)
        worst = [f"{max((getattr(c, what) for c in right), default=math.nan):.0e}" for what in ("violation", "gap")]
        proven = sum(c.own for c in right)
        counts = [len(tried), len(right), proven, sum(c.wrong for c in tried), late, limited, other]
        body.append([way, *map(str, counts), *worst])
    head = ["way", "tried", "right", "proven by its own multipliers", "wrong claims", "too slow", "size, memory"]
    return markdown("Accuracy", [*head, "failed otherwise", "largest violation", "largest gap"], body)


def failure_table(records: Sequence[Record]) -> str:
    """Every answer that is not right and was not stopped by a limit."""
    body = []
    for (family, name), group in by_instance(records).items():
        for one in cells(group).values():
            if not one.right and not one.shown.startswith(">") and one.shown not in LIMITS:
                first = next(record for record in group if record["way"] == one.way)
                numbers = [f"{one.violation:.0e}", f"{one.gap:.0e}"] if math.isfinite(one.gap) else ["", ""]
                status = f"{first['status']}, claimed {first['claimed']}" if first.get("claimed") else first["status"]
                body.append([titled(family, name), one.way, status, *numbers, one.message[:90]])
    return markdown("Answers that are not right", ["instance", "way", "status", "violation", "gap", "message"], body)


def rules_table(records: Sequence[Record]) -> str:
    """For each instance the fastest right back end, what the rules take, and what ``solver=None`` took."""
    body = []
    for (family, name), group in by_instance(records).items():
        each, first = cells(group), group[0]
        single = [c for way, c in each.items() if way != DEFAULT and not way.startswith(BY_ROWS) and c.right]
        best = min(single, key=lambda c: c.seconds, default=None)
        taken = each.get(first["preferred"][0])
        default = each.get(DEFAULT)
        rows = [c for way, c in each.items() if way.startswith(BY_ROWS) and c.right]
        quick = min(rows, key=lambda c: c.seconds, default=None)
        line = [titled(family, name)] + ([f"{first['n']:,} x {first['m']:,}"] if family == REAL else [NONE])
        line += [f"{best.way} {best.shown}" if best else "none", f"{quick.way} {quick.shown}" if quick else NONE]
        line += [f"{first['preferred'][0]} {taken.shown}" if taken else f"{first['preferred'][0]}, not run"]
        line += [default.shown if default else NONE]
        body.append([*line, verdict(default, [c for c in (best, quick) if c])])
    head = ["instance", "size", "fastest on all rows", "fastest on few rows", "first by the rules", "default"]
    return markdown("Rules against measurements", [*head, "default over the best"], body)


def titled(family: str, name: str) -> str:
    """An instance in one phrase."""
    return name if family == REAL else f"{family}, {name}"


def verdict(default: Cell | None, best: Sequence[Cell]) -> str:
    """How much longer the default choice takes than the best way; empty where that is little."""
    least = min((c.seconds for c in best), default=math.inf)
    if default is None or not math.isfinite(least):
        return "no way is right" if default is not None and not default.right else NONE
    if not default.right:
        return "**fails**"
    if default.seconds - least <= TICK or default.seconds <= CLOSE * least:
        return NONE
    return f"**{default.seconds / max(least, TICK):.1f}**"


# -------------------------------------------------------------------- the other parts


def integer_table(records: Sequence[Record]) -> str:
    """Mixed-integer programs: time to the gap, or the gap that was left."""
    names = list(dict.fromkeys(record["way"] for record in records))
    body = []
    for (_, name), group in by_instance(records).items():
        values = {record["way"]: record for record in group}
        bound = max((r["bound"] for r in group if math.isfinite(r.get("bound", math.nan))), default=math.nan)
        points = [r["objective"] for r in group if math.isfinite(r.get("objective", math.nan))]
        line = [name, f"{min(points):.4f}", f"{bound:.4f}"]
        body.append(line + [integer_cell(values.get(way), min(points)) for way in names])
    return markdown("Mixed-integer programs", ["program", "best point", "best bound", *names], body)


def integer_cell(record: Record | None, best: float) -> str:
    """Seconds; the proven gap where one is left; how far the point is from the best one known."""
    if record is None:
        return NONE
    if not math.isfinite(record.get("objective", math.nan)):
        return "size limit" if "size-limited" in record.get("message", "") else record["status"]
    parts = [clock(record["cpu"])]
    gap = (record["objective"] - record["bound"]) / abs(record["objective"])
    if gap > 0.0101:
        parts.append("no bound" if not math.isfinite(gap) else f"gap {100 * gap:.0f} %")
    off = (record["objective"] - best) / abs(best)
    return ", ".join([*parts, f"point off by {100 * off:.1f} %"] if off > 1e-4 else parts)


def overhead_table(records: Sequence[Record]) -> str:
    """The layer's cost over the native call."""
    body = []
    for r in records:
        extra = r["solve"] - r["native"]
        line = [r["solver"], f"{r['n']} x {r['m']:,}", *(f"{1e3 * r[k]:.3f}" for k in ("native", "back end", "solve"))]
        body.append([*line, f"{1e3 * extra:.3f}", f"{100 * extra / r['native']:.1f} %", f"{1e3 * r['checks']:.3f}"])
    head = ["back end", "weights x rows", "native call, ms", "translated, ms", "solve(), ms", "added, ms", "added"]
    return markdown("What solve() adds to the native call", [*head, "checks alone, ms"], body)


def layers_table(records: Sequence[Record]) -> str:
    """Building and all told, by modelling layer."""
    head = ["solver", "weights x rows", "way", "building the model, ms", "all told, ms", "status", "violation"]
    rows = [
        [r["solver"], f"{r['n']} x {r['m']:,}", r["way"], f"{1e3 * r['build']:.1f}", f"{1e3 * r['total']:.1f}"]
        + [r["status"], f"{r['violation']:.0e}"]
        for r in records
    ]
    return markdown("Direct, through CVXPY, through Pyomo", head, rows)


def repairs_table(records: Sequence[Record]) -> str:
    """Known answers with their times."""
    body = []
    for r in records:
        figures = [f"{r[k]:.2f}" if k in r else NONE for k in ("efficacy", "drawdown", "generalization")]
        time = clock(r["cpu"]) if "cpu" in r else r["status"]
        body.append([r["repair"], r["way"], *figures, time, r["published"]])
    head = ["repair", "back end", "efficacy, %", "drawdown, points", "generalization, points", "CPU s"]
    return markdown("Repairs of real networks, held-out figures", [*head, "published: drawdown, generalization"], body)


def watermarks_table(records: Sequence[Record]) -> str:
    """Published optima."""
    body = [[str(r["size"]), f"{r['sets']:,}", f"{r['error']:.0e}", f"{1e3 * r['cpu']:.1f}"] for r in records]
    head = ["watermarks", "sets", "largest relative difference", "mean CPU ms"]
    return markdown("Published optima of the watermark sets, HiGHS", head, body)


def clock(seconds: float) -> str:
    """Seconds with three figures, milliseconds where short."""
    return f"{1e3 * seconds:.3g} ms" if seconds < 0.0995 else f"{seconds:.3g} s"


def markdown(title: str, head: Sequence[str], body: Sequence[Sequence[str]]) -> str:
    """A titled table."""
    rows = [head, ["---"] * len(head), *body]
    return f"### {title}\n\n" + "\n".join("| " + " | ".join(row) + " |" for row in rows)
