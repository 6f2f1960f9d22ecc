"""A report as text for a terminal."""

from __future__ import annotations

import math
import textwrap
from itertools import zip_longest
from typing import Any

from repairopt.errors import visible
from repairopt.verify import Check, LabelCounts, Measure

from .plain_words import list_caveats, proof_in_words

WIDTH = 96
NAME = 40
MOST_CLASSES = 4  # up to which the text gives the recall of each; to_dict() always does


def report_text(report: Any) -> str:
    """A :class:`repairopt.Report` as lines of at most 96 characters: verdict, table, change, trust, time."""
    v = report.verification
    goal = v.measures[0]
    lines = [f"{str(report.verdict).upper()}   {goal.name}: {_number(goal.before)} -> {_number(goal.after)}"]
    lines[0] += "" if goal.target is None else f"   (target {_number(goal.target)})"
    lines += textwrap.wrap(report.meaning, WIDTH)
    for text in list_caveats(report.to_dict()):
        lines += textwrap.wrap(text, WIDTH, initial_indent="! ", subsequent_indent="  ")
    heads = 2 * f"{'before':>12}{'after':>12}    "
    lines += ["", f"{'':{NAME}}{'repair data':^24}{'held-out data':^28}", f"{'':{NAME}}{heads}"]
    lines += [*_measure_lines(v.measures), *_label_lines(v.labels), *_check_lines(v.checks), "", *_new_data(report)]
    proof = proof_in_words(report.to_dict())
    for text in (*([f"proof: {proof}"] if proof else []), _change(report), _how(report), *_trust(report)):
        lines += _wrapped(text)
    return visible("\n".join(line.rstrip() for line in lines))


def _new_data(report: Any) -> list[str]:
    """Claims about new data, what was taken off the bounds for them, and what the bounds cost."""
    texts = [f"new data: {claim}" for claim in report.claims]
    buffers = [f"{_number(size)} off '{name}'" for name, size in report.buffers.items() if size > 0]
    buffers += [f"a lead of {_number(lead)} logits in '{name}'" for name, lead in report.margins.items() if lead > 0]
    texts += [f"buffers for new data: {', '.join(buffers)}"] if buffers else []
    more = dict.fromkeys(report.out_of_reach, " or more, being out of reach")
    prices = [f"'{name}' {_number(0.01 * p)}{more.get(name, '')}" for name, p in report.prices.items() if p > 0]
    texts += [f"prices, in the objective (loss) for each 0.01 of a bound: {', '.join(prices)}"] if prices else []
    return [line for text in texts for line in _wrapped(text)] + ([""] if texts else [])


def _wrapped(text: str) -> list[str]:
    return textwrap.wrap(text, WIDTH, subsequent_indent="  ")


def _number(value: float) -> str:
    if not math.isfinite(value):
        return "-"
    return f"{value:.4g}" if abs(value) < 1e-3 and value != 0 else f"{value:.4f}"


def _row(name: str, repair: tuple[str, str] | None = None, held_out: tuple[str, str] | None = None) -> str:
    left, right = repair or ("", ""), held_out or ("", "")
    name = (
        name if len(name) <= NAME - 1 else f"{name[:12]}…{name[14 - NAME :]}"
    )  # what tells groups apart is at the end
    return f"{name:{NAME}}{left[0]:>12}{left[1]:>12}    {right[0]:>12}{right[1]:>12}"


def _pair(values: tuple[float, float] | None) -> tuple[str, str] | None:
    return None if values is None else (_number(values[0]), _number(values[1]))


def _measure_lines(measures: tuple[Measure, ...]) -> list[str]:
    lines = []
    for name in dict.fromkeys(m.name for m in measures):
        found = {m.held_out: m for m in measures if m.name == name}
        both = [found.get(False), found.get(True)]
        lines.append(_row(name, *(_pair((m.before, m.after)) if m else None for m in both)))
        for key in dict.fromkeys(key for m in both if m and not m.brief for key in m.details):
            lines.append(_row(f"  {key}", *(_pair(m.details.get(key)) if m else None for m in both)))
    return lines


def _label_lines(labels: tuple[LabelCounts, ...]) -> list[str]:
    lines: list[str] = []
    for both in zip_longest((c for c in labels if not c.held_out), (c for c in labels if c.held_out)):
        known = [c for c in both if c is not None]
        lines.append(_row(f"labels of {known[0].name!r}: {' and '.join(str(c.count) for c in known)}"))
        lines.append(_row("  accuracy", *(_pair(c.accuracy) if c else None for c in both)))
        lines.append(_row("  balanced accuracy", *(_pair(c.balanced_accuracy) if c else None for c in both)))
        classes = sorted({k for c in known for k in c.recall})
        if len(classes) > MOST_CLASSES:
            least = [tuple(map(min, zip(*c.recall.values(), strict=True))) if c else None for c in both]
            lines.append(_row("  lowest recall of a class", *(_pair(pair) for pair in least)))
        for label in classes if len(classes) <= MOST_CLASSES else ():
            lines.append(_row(f"  recall, class {label}", *(_pair(c.recall.get(label)) if c else None for c in both)))
        flips = [("", f"{c.newly_wrong} / {c.newly_right}") if c else None for c in both]
        lines.append(_row("  newly wrong / newly right", *flips))
    return lines


def _check_lines(checks: tuple[Check, ...]) -> list[str]:
    lines = []
    for name in dict.fromkeys(c.constraint for c in checks):
        own = [c for c in checks if c.constraint == name]
        cells: dict[bool, tuple[str, str]] = {}
        for check in own:
            word = "vacuous" if check.applied == 0 else "wish" if check.soft else "holds" if check.holds else "FAILS"
            cells[check.held_out] = (f"{check.failed}/{check.applied} fail", word)
        limit = "" if own[0].soft else f" (at most {own[0].allowed})"
        lines.append(_row(f"{name}{limit}", cells.get(False), cells.get(True)))
    return lines


def _change(report: Any) -> str:
    if not report.location.size or report.candidate.startswith("wrapped"):
        return f"change: {report.candidate}"
    return (
        f"change: {report.changed} of {report.location.size} chosen weights "
        f"({'; '.join(report.location.describe())}), by at most {_number(report.largest_change)}"
    )


def _how(report: Any) -> str:
    solvers = ", ".join(dict.fromkeys(r.solver for r in report.rounds if r.solver)) or "none"
    kept = sum(r.accepted for r in report.rounds)
    return (
        f"method: {report.method}; {len(report.rounds)} rounds, {kept} kept; at most {report.rows_used} rows; "
        f"solver {solvers}, {report.status}; weights by {report.location.method}"
    )


def _trust(report: Any) -> list[str]:
    """Whether to believe the method, times, versions."""
    kind, trust = "none" if report.surrogate is None else report.surrogate.kind, report.trust
    stages = ", ".join(f"{name} {seconds:.3f}" for name, seconds in report.seconds.items())
    return [
        f"believe: surrogate {kind}, fit error {_number(trust.fit_error)}; largest linearization error "
        f"{_number(trust.linearization_error)} logits; actual / predicted improvement "
        f"{_number(trust.improvement_ratio)}",
        f"seconds: {stages}; processor {report.cpu_seconds:.2f}; seed {report.seed}",
        f"versions: {', '.join(f'{name} {value}' for name, value in report.versions.items())}",
    ]
