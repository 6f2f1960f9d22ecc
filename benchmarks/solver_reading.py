"""The section "Reading" of ``results/solvers.md``: what the measurements say, sentence by sentence made from them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from solver_instances import REAL
from solver_layers import WITHIN_MS, WITHIN_PERCENT
from solver_runs import BY_ROWS, DEFAULT
from solver_tables import Cell, by_instance, cells, clock, titled, verdict

Record = dict[str, Any]


def reading(found: dict[str, list[Record]]) -> str:
    """All sentences."""
    lines = [
        "## Reading",
        "",
        "Fastest right way by kind and size; in brackets the default's time over it, where longer.",
    ]
    lines += ["", *[f"* {line}" for line in fastest(found["programs"])], ""]
    lines += ["Where the rules of `solvers/choice.py` disagree with that:", ""]
    lines += [f"* {line}" for line in disagreements(found["programs"])] or ["* nowhere"]
    lines += ["", "Claims that were wrong:", ""]
    lines += [f"* {line}" for line in wrong_claims(found["programs"])] or ["* none"]
    lines += ["", "The layer's own cost:", "", *[f"* {line}" for line in costs(found["overhead"])]]
    return "\n".join(lines)


def fastest(records: Sequence[Record]) -> list[str]:
    """A line for each family and number of weights, and for each program of a real repair."""
    groups: dict[str, list[tuple[Record, dict[str, Cell]]]] = {}
    for (family, name), group in by_instance(records).items():
        title = f"{name if family == REAL else family}, {group[0]['n']:,} weights"
        groups.setdefault(title, []).append((group[0], cells(group)))
    lines = []
    for title, members in groups.items():
        parts = []
        for first, each in members:
            best = least(each)
            ratio = verdict(each.get(DEFAULT), [best] if best else []).replace("*", "")
            note = f" [{ratio}]" if ratio else ""
            parts.append(f"{first['m']:,} rows {f'{best.way} {best.shown}' if best else 'none'}{note}")
        lines.append(f"{title}: {'; '.join(parts)}.")
    return lines


def least(each: dict[str, Cell]) -> Cell | None:
    """The fastest right way but the default."""
    right = [one for way, one in each.items() if one.right and way != DEFAULT]
    return min(right, key=lambda one: one.seconds, default=None)


def disagreements(records: Sequence[Record]) -> list[str]:
    """Instances on which the default is slower than it could be, or fails."""
    lines = []
    for (family, name), group in by_instance(records).items():
        each = cells(group)
        best, default = least(each), each.get(DEFAULT)
        ratio = verdict(default, [best] if best else []).replace("*", "")
        if best is None or default is None or not ratio:
            continue
        taken = group[0]["preferred"][0]
        used = next((record["solver"] for record in group if record["way"] == DEFAULT and record.get("solver")), taken)
        how = "fails" if ratio == "fails" else f"takes {used} and {default.shown}, {ratio} times as long"
        kind = " on few rows" if best.way.startswith(BY_ROWS) else ""
        way = best.way.removeprefix(BY_ROWS)
        lines.append(f"{titled(family, name)}: {way}{kind} needs {clock(best.seconds)}, the default {how}.")
    return lines


def wrong_claims(records: Sequence[Record]) -> list[str]:
    """What a native library called optimal, infeasible or unbounded and was not."""
    lines = []
    for (family, name), group in by_instance(records).items():
        for one in cells(group).values():
            if one.wrong:
                first = next(record for record in group if record["way"] == one.way)
                said = first.get("claimed") or first["status"]
                off = f"violation {one.violation:.0e}, gap {one.gap:.0e}" if math.isfinite(one.gap) else "no point"
                ended = f"; the core made it '{first['status']}'" if first.get("claimed") else "; the core believed it"
                lines.append(f"{one.way} on {titled(family, name)}: '{said}' with {off}{ended}.")
    return lines


def costs(records: Sequence[Record]) -> list[str]:
    """The cost of solve() against its bars."""
    lines = []
    for r in records:
        extra = r["solve"] - r["native"]
        percent = 100 * extra / r["native"]
        small = r["n"] <= 24
        holds = 1e3 * extra <= WITHIN_MS if small else percent <= WITHIN_PERCENT
        bar = f"{WITHIN_MS:g} ms" if small else f"{WITHIN_PERCENT:g} %"
        size = f"{r['solver']}, {r['n']} x {r['m']:,}"
        checks, ends = f"the checks alone take {1e3 * r['checks']:.2f} ms", "holds" if holds else "missed"
        lines.append(f"{size}: {1e3 * extra:.2f} ms, {percent:.1f} % of the native call; {checks}. Bar {bar}: {ends}.")
    return lines
