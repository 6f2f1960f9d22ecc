"""A report as text for a terminal."""

from __future__ import annotations

import math
import textwrap
from typing import Any

from repairopt.verify import Check, LabelCounts, Measure

from .plain_words import list_caveats

WIDTH = 96
NAME = 40
MOST_CLASSES = 4  # up to which the text gives the recall of each; to_dict() always does


def report_text(report: Any) -> str:
    """A :class:`repairopt.Report` as lines of at most 96 characters: verdict, table, change, trust, time."""
    v = report.verification
    goal = v.measures[0]
    lines = [f"{str(report.verdict).upper()}   {goal.name}: {_number(goal.before)} -> {_number(goal.after)}"]
    lines[0] += "" if goal.target is None else f"   (target {_number(goal.target)})"
    lines += textwrap.wrap(report.verdict.meaning, WIDTH)
    lines += _caveats(report)
    lines += ["", f"{'':{NAME}}{'repair data':^24}{'held-out data':^28}", f"{'':{NAME}}{_heads()}{_heads()}"]
    lines += _measure_lines(v.measures)
    lines += _label_lines(v.labels)
    lines += _check_lines(v.checks)
    lines += ["", *_new_data(report), *_how(report), *_believe(report), *_time(report)]
    return "\n".join(line.rstrip() for line in lines)


def _caveats(report: Any) -> list[str]:
    out = []
    for text in list_caveats(report.to_dict()):
        out += textwrap.wrap(text, WIDTH, initial_indent="! ", subsequent_indent="  ")
    return out


def _new_data(report: Any) -> list[str]:
    """Claims about new data, what was taken off the bounds for them, and what the bounds cost."""
    lines = []
    for claim in report.claims:
        lines += _wrapped(f"new data: {claim}")
    buffers = [f"{_number(size)} off '{name}'" for name, size in report.buffers.items() if size > 0]
    buffers += [f"a lead of {_number(lead)} logits in '{name}'" for name, lead in report.margins.items() if lead > 0]
    if buffers:
        lines += _wrapped(f"buffers for new data: {', '.join(buffers)}")
    prices = [f"'{name}' {_number(0.01 * price)}" for name, price in report.prices.items() if price > 0]
    if prices:
        lines += _wrapped(f"prices, in the objective (loss) for each 0.01 of a bound: {', '.join(prices)}")
    return [*lines, ""] if lines else []


def _wrapped(text: str) -> list[str]:
    return textwrap.wrap(text, WIDTH, subsequent_indent="  ")


def _heads() -> str:
    return f"{'before':>12}{'after':>12}    "


def _number(value: float) -> str:
    if not math.isfinite(value):
        return "-"
    return f"{value:.4g}" if abs(value) < 1e-3 and value != 0 else f"{value:.4f}"


def _row(name: str, repair: tuple[str, str] | None, held_out: tuple[str, str] | None) -> str:
    left, right = repair or ("", ""), held_out or ("", "")
    name = name if len(name) <= NAME - 1 else name[: NAME - 2] + "…"
    return f"{name:{NAME}}{left[0]:>12}{left[1]:>12}    {right[0]:>12}{right[1]:>12}"


def _pair(values: tuple[float, float] | None) -> tuple[str, str] | None:
    return None if values is None else (_number(values[0]), _number(values[1]))


def _measure_lines(measures: tuple[Measure, ...]) -> list[str]:
    lines, names = [], list(dict.fromkeys(m.name for m in measures))
    for name in names:
        found = {m.held_out: m for m in measures if m.name == name}
        here, there = found.get(False), found.get(True)
        lines.append(_row(name, *(_pair((m.before, m.after)) if m else None for m in (here, there))))
        keys = list(dict.fromkeys([*(here.details if here else {}), *(there.details if there else {})]))
        for key in keys:
            pairs = [_pair(m.details.get(key)) if m else None for m in (here, there)]
            lines.append(_row(f"  {key}", *pairs))
    return lines


def _label_lines(labels: tuple[LabelCounts, ...]) -> list[str]:
    lines: list[str] = []
    repair = [c for c in labels if not c.held_out]
    held = [c for c in labels if c.held_out]
    for i in range(max(len(repair), len(held))):
        here = repair[i] if i < len(repair) else None
        there = held[i] if i < len(held) else None
        both = [c for c in (here, there) if c is not None]
        counts = " and ".join(str(c.count) for c in both)
        lines.append(_row(f"labels of {both[0].name!r}: {counts}", None, None))
        lines.append(_row("  accuracy", *(_pair(c.accuracy) if c else None for c in (here, there))))
        lines.append(_row("  balanced accuracy", *(_pair(c.balanced_accuracy) if c else None for c in (here, there))))
        classes = sorted({k for c in both for k in c.recall})
        if len(classes) > MOST_CLASSES:
            lines.append(_row("  lowest recall of a class", *(_lowest_recall(c) for c in (here, there))))
        for label in classes if len(classes) <= MOST_CLASSES else ():
            pairs = [_pair(c.recall.get(label)) if c else None for c in (here, there)]
            lines.append(_row(f"  recall, class {label}", *pairs))
        flips = [("", f"{c.newly_wrong} / {c.newly_right}") if c else None for c in (here, there)]
        lines.append(_row("  newly wrong / newly right", *flips))
    return lines


def _lowest_recall(counts: LabelCounts | None) -> tuple[str, str] | None:
    if counts is None:
        return None
    return _pair((min(r[0] for r in counts.recall.values()), min(r[1] for r in counts.recall.values())))


def _check_lines(checks: tuple[Check, ...]) -> list[str]:
    lines = []
    for name in dict.fromkeys(c.constraint for c in checks):
        found = {c.held_out: c for c in checks if c.constraint == name}
        cells: list[tuple[str, str] | None] = []
        for check in (found.get(False), found.get(True)):
            if check is None:
                cells.append(None)
                continue
            word = "vacuous" if check.applied == 0 else "wish" if check.soft else "holds" if check.holds else "FAILS"
            cells.append((f"{check.failed}/{check.applied} fail", word))
        allowed = next(c for c in checks if c.constraint == name)
        limit = "" if allowed.soft else f" (at most {allowed.allowed})"
        lines.append(_row(f"{name}{limit}", *cells))
    return lines


def _how(report: Any) -> list[str]:
    solvers = ", ".join(dict.fromkeys(r.solver for r in report.rounds if r.solver)) or "none"
    kept = sum(r.accepted for r in report.rounds)
    text = (
        f"change: {report.changed} of {report.location.size} chosen weights "
        f"({'; '.join(report.location.describe())}), by at most {_number(report.largest_change)}"
    )
    if not report.location.size or report.candidate.startswith("wrapped"):
        text = f"change: {report.candidate}"
    how = (
        f"method: {report.method}; {len(report.rounds)} rounds, {kept} kept; at most {report.rows_used} rows; "
        f"solver {solvers}, {report.status}; weights by {report.location.method}"
    )
    return [*_wrapped(text), *_wrapped(how)]


def _believe(report: Any) -> list[str]:
    kind = "none" if report.surrogate is None else report.surrogate.kind
    trust = report.trust
    text = (
        f"believe: surrogate {kind}, fit error {_number(trust.fit_error)}; largest linearization error "
        f"{_number(trust.linearization_error)} logits; actual / predicted improvement "
        f"{_number(trust.improvement_ratio)}"
    )
    return _wrapped(text)


def _time(report: Any) -> list[str]:
    stages = ", ".join(f"{name} {seconds:.3f}" for name, seconds in report.seconds.items())
    versions = ", ".join(f"{name} {value}" for name, value in report.versions.items())
    text = f"seconds: {stages}; processor {report.cpu_seconds:.2f}; seed {report.seed}"
    return [*_wrapped(text), *_wrapped(f"versions: {versions}")]
