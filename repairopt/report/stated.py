"""Claims as the user wrote them: the library minimizes, and bounds ``1 - recall(a)`` by 0.45 for ``recall(a) >= 0.55``.

The rows of a spec file's claims (``repairopt.interfaces.specfile.claim_rows``) are what every reader is shown; what the
report says beside them is led back to their names and units here.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from repairopt.patches import number
from repairopt.report.pictures.evidence import Evidence
from repairopt.specify import WAYS

Plain = dict[str, Any]
Stated = dict[str, tuple[str, Callable[[float], float]]]  # name as written, way to its unit; larger is better
BY_NAME = ("buffers", "margins", "prices")
NAMED = ("rates", "margins", "slacks", "affected", "tables")
BOUNDS = {"<=": "at most", ">=": "at least"}


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


def stated_names(claims: Sequence[Mapping[str, Any]]) -> Stated:
    """Of each name that the library may use for a claim, what leads back to the statement."""
    return {way + claim["name"]: (claim["name"], lead) for claim in claims for way, lead in WAYS.items() if way}


def restate(plain: Plain, stated: Stated) -> Plain:
    """A report as a dict in the names and units of the statements; each measure and claim says its ``relation``."""
    if not stated:
        return plain

    def named(item: Plain, key: str = "name") -> Plain:
        return {**item, key: _name(stated, item[key])}

    goal = plain["measures"][0]["name"]
    return {
        **plain,
        "measures": [_measure(stated, one) for one in plain["measures"]],
        "checks": [named(one, "constraint") for one in plain["checks"]],
        "labels": [named(one) for one in plain["labels"]],
        "claims": [_claim(stated, one) for one in plain.get("claims", [])],
        "rounds": [{**one, "goal": _value(stated, goal, one["goal"])} for one in plain["rounds"]],
        "out_of_reach": [_name(stated, name) for name in plain.get("out_of_reach", ())],
        **{key: {_name(stated, name): v for name, v in plain.get(key, {}).items()} for key in BY_NAME},
    }


def restate_evidence(evidence: Evidence, stated: Stated) -> Evidence:
    """The same of what the pictures show."""
    if not stated:
        return evidence
    found: dict[str, Any] = {
        key: tuple(replace(one, name=_name(stated, one.name)) for one in getattr(evidence, key)) for key in NAMED
    }
    if evidence.progress is not None:
        own = evidence.progress
        _, lead = stated.get(own.name, (own.name, WAYS[""]))
        goal = own.goal.copy()
        goal[:] = [lead(float(v)) for v in goal]
        found["progress"] = replace(own, name=_name(stated, own.name), goal=goal, target=lead(own.target))
    return replace(evidence, **found)


def better(measure: Plain, first: float, second: float) -> bool:
    """Whether the first value is nearer to what is asked for than the second."""
    return first > second if measure.get("relation") == ">=" else first < second


def missed(measure: Plain, value: str = "after") -> bool:
    """Whether a measure with a target is on the wrong side of it."""
    return measure["target"] is not None and better(measure, measure["target"], measure[value])


def stated_rows(claims: Sequence[Mapping[str, Any]], splits: Mapping[str, str]) -> list[Row]:
    """The claims as rows of a table, in the order and with the figures that the terminal shows."""
    rows = []
    for claim in claims:
        unseen = claim["data"] == "held_out"
        ends = "" if claim["low"] is None or not unseen else f"{number(claim['low'])} to {number(claim['high'])}"
        good, result = claim["met"], {True: "met", False: "not met"}.get(claim["met"], claim["role"])
        result = "" if result == "watch" else "a wish" if result == "wish" else result
        if good and unseen and claim["shown"] is not None:
            share = f"{100 * claim['confidence']:.4g} % confidence"
            good = True if claim["shown"] else None
            result = f"met with {share}" if claim["shown"] else f"met here, not shown with {share}"
        left_out = claim.get("left_out", 0)
        result += f"; {left_out:,} rows are in no group compared" if left_out else ""
        figures = (number(claim["before"]), number(claim["value"]), ends, claim["bound"] or "")
        rows.append(Row(claim["name"], splits.get(claim["data"], claim["data"]), *figures, result.lstrip("; "), good))
    return rows


def _name(stated: Stated, name: str) -> str:
    return stated[name][0] if name in stated else name


def _value(stated: Stated, name: str, value: float | None) -> float | None:
    return value if value is None or name not in stated else stated[name][1](value)


def _measure(stated: Stated, measure: Plain) -> Plain:
    name = measure["name"]
    figures = {key: _value(stated, name, measure[key]) for key in ("before", "after", "target")}
    return {**measure, **figures, "name": _name(stated, name), "relation": ">=" if name in stated else "<="}


def _claim(stated: Stated, claim: Plain) -> Plain:
    name, interval = claim["name"], claim["interval"]
    if name not in stated:
        return claim
    ends = [_value(stated, name, interval[key]) for key in ("high", "low")]
    interval = {**interval, "value": _value(stated, name, interval["value"]), "low": ends[0], "high": ends[1]}
    limit = _value(stated, name, claim["limit"])
    return {**claim, "name": _name(stated, name), "interval": interval, "limit": limit, "relation": ">="}
