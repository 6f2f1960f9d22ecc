"""The table of claims: every goal, bound and constraint with its value, interval, limit and data, met or not."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from repairopt.report.pictures.evidence import Evidence

from .plain_words import Plain, number, percent

SPLITS = {False: "repair data", True: "held-out data"}


@dataclass(frozen=True)
class Row:
    """One line of the table, as text; ``good`` is None where it is open or nothing is promised."""

    name: str
    data: str
    before: str
    after: str
    interval: str = ""
    limit: str = ""
    result: str = ""
    good: bool | None = None


def claim_rows(plain: Plain, evidence: Evidence) -> list[Row]:
    """The rows of a report as a dict: goal, constraints, what is only watched, accuracies; those of a name together."""
    measures, checks = plain["measures"], plain["checks"]
    claims = plain.get("claims", [])
    held_out = {claim["name"]: claim for claim in claims if claim["source"] == SPLITS[True]}
    crossed = {claim["name"]: claim for claim in claims if claim["source"] != SPLITS[True]}
    bounded = {(name, split): values for name, split, *values in evidence.bounded}
    goal = measures[0]["name"]
    rows = [_measure(m, held_out) for m in measures if m["name"] == goal]
    rows[1:1] = [_crossed(crossed.pop(goal))] if goal in crossed else []
    for name in dict.fromkeys(check["constraint"] for check in checks):
        own = [_check(c, bounded.get((name, c["held_out"])), held_out) for c in checks if c["constraint"] == name]
        own[1:1] = [_crossed(crossed.pop(name))] if name in crossed else []
        rows += own
    rows += [_crossed(claim) for claim in crossed.values()]
    rows += [_measure(m, held_out) for m in measures if m["name"] != goal]
    return rows + _accuracies(plain["labels"])


def _measure(measure: Plain, claims: dict[str, Plain]) -> Row:
    split, target = measure["held_out"], measure["target"]
    row = Row(measure["name"], SPLITS[split], number(measure["before"]), number(measure["after"]))
    if target is None:
        return row
    return _judged(row, target, measure["after"] <= target, claims.get(measure["name"]) if split else None)


def _judged(row: Row, limit: float, met: bool, claim: Plain | None) -> Row:
    """A row with its result; with a claim, met means with its confidence."""
    good: bool | None = met
    result, interval = "met" if met else "not met", ""
    if claim is not None:
        interval, share = _ends(claim["interval"]), f"{100 * claim['confidence']:.4g} %"
        if claim["met"]:
            result = f"met with {share} confidence"
        elif met:
            good, result = None, f"met here, not shown with {share} confidence"
    return replace(row, interval=interval, limit=f"at most {number(limit)}", result=result, good=good)


def _crossed(claim: Plain) -> Row:
    interval, share = claim["interval"], f"{100 * claim['confidence']:.4g} %"
    value, limit = interval["value"], claim["limit"]
    met, average = interval["high"] <= limit, claim["confidence"] <= 0.5
    result = ("met on average" if average else f"met with {share} confidence") if met else "not met"
    good: bool | None = met
    if not met and value <= limit:
        good, result, rows = None, f"met here, not shown with {share} confidence", claim["rows"]
        result += f"; about {rows:,.0f} rows of the smallest group would show it" if rows else ""
    ends = "" if average else _ends(interval)
    return Row(claim["name"], claim["source"], "", number(value), ends, f"at most {number(limit)}", result, good)


def _check(check: Plain, bounded: Sequence[float] | None, claims: dict[str, Plain]) -> Row:
    name, split = check["constraint"], SPLITS[check["held_out"]]
    if bounded is not None:
        before, after, limit = bounded
        claim = claims.get(name) if check["held_out"] else None
        return _judged(Row(name, split, number(before), number(after)), limit, check["holds"], claim)
    failed_before = check.get("failed_before")
    fails = "" if failed_before is None else f"{failed_before:,} fail"
    failed = f"{check['failed']:,} of {check['applied']:,} fail"
    if check["applied"] == 0:
        return Row(name, split, fails, "", "", "", "vacuous: spoke of no input")
    if check["soft"]:
        return Row(name, split, fails, failed, "", "", "a wish")
    allowed, holds = f"at most {check['allowed']:,} may fail", bool(check["holds"])
    return Row(name, split, fails, failed, "", allowed, "met" if holds else "not met", holds)


def _accuracies(labels: Sequence[Plain]) -> list[Row]:
    rows, seen = [], set()
    for counts in labels:
        key = (counts["held_out"], counts["count"], *counts["accuracy"], *map(str, counts["recall"].items()))
        if key in seen:  # the same inputs under another name
            continue
        seen.add(key)
        before, after = (percent(share) for share in counts["accuracy"])
        name = f"accuracy, {counts['count']:,} inputs of '{counts['name']}'"
        rows.append(Row(name, SPLITS[counts["held_out"]], before, after))
    return rows


def _ends(interval: Plain) -> str:
    return f"{number(interval['low'])} to {number(interval['high'])}"
