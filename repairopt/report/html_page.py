"""A report as one HTML file: no script, no network, readable on a phone, on paper and by screen readers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from importlib.resources import files
from typing import Any

from repairopt.patches import library_versions
from repairopt.report.pictures.evidence import AffectedInputs, Evidence, GroupTable
from repairopt.report.pictures.gallery import draw_gallery
from repairopt.report.pictures.plots import have_matplotlib

from .plain_words import Plain, list_caveats, measured, number, percent, proof_in_words, summarize
from .stated import BOUNDS, Row, better, missed, restate, restate_evidence, stated_names, stated_rows

WIDEST = 100  # numbers of an input, above which the table of the most affected ones leaves them out
SPLITS = {False: "repair data", True: "held-out data"}
FREE = 1e-9  # price of a bound that costs nothing
TONES = {"repaired": "good", "improved": "open"}
NO_PICTURES = "Pictures need Matplotlib, which is not installed here: pip install repairopt[report]"
NO_EVIDENCE = (
    "Only the figures of the report were at hand, neither networks nor data, so pictures of single samples, weights "
    "and inputs are missing. save_evidence(repair.report.evidence, folder) keeps what they need."
)
METRICS = {
    "count": "rows",
    "accuracy_score": "accuracy",
    "selection_rate": "selection rate",
    "true_positive_rate": "true positive rate",
    "false_positive_rate": "false positive rate",
}


def claim_rows(plain: Plain, evidence: Evidence, stated: Sequence[Mapping[str, Any]] = ()) -> list[Row]:
    """The rows of a report as a dict: goal, constraints, what is only watched, accuracies; those of a name together.

    ``stated`` are the claims of a spec file, which are shown as they are.
    """
    if stated:
        return _stated(plain, stated)
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


def _stated(plain: Plain, stated: Sequence[Mapping[str, Any]]) -> list[Row]:
    """The claims of a spec file, cross-validation after the repair data of the same name, accuracies."""
    names = {"repair": SPLITS[False], "held_out": SPLITS[True]}
    crossed = {claim["name"]: claim for claim in plain.get("claims", []) if claim["source"] != SPLITS[True]}
    rows: list[Row] = []
    order = [claim["name"] for claim in stated]
    bounds = {claim["name"]: claim["bound"] or "" for claim in stated}
    for row in sorted(stated_rows(stated, names), key=lambda row: (order.index(row.name), row.data == SPLITS[True])):
        rows.append(row)
        if row.data == SPLITS[False] and row.name in crossed:
            rows.append(replace(_crossed(crossed.pop(row.name)), limit=bounds[row.name]))
    return rows + [_crossed(claim) for claim in crossed.values()] + _accuracies(plain["labels"])


def _measure(measure: Plain, claims: dict[str, Plain]) -> Row:
    split, target = measure["held_out"], measure["target"]
    row = Row(measure["name"], SPLITS[split], number(measure["before"]), number(measure["after"]))
    if target is None:
        return row
    return _judged(row, target, not missed(measure), claims.get(measure["name"]) if split else None)


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
    relation = claim.get("relation", "<=")
    met = interval["low"] >= limit if relation == ">=" else interval["high"] <= limit
    average, bound = claim["confidence"] <= 0.5, f"{BOUNDS[relation]} {number(limit)}"
    result = ("met on average" if average else f"met with {share} confidence") if met else "not met"
    good: bool | None = met
    if not met and not better(claim, limit, value):
        good, result, rows = None, f"met here, not shown with {share} confidence", claim["rows"]
        result += f"; about {rows:,.0f} rows of the smallest group would show it" if rows else ""
    ends = "" if average else _ends(interval)
    return Row(claim["name"], claim["source"], "", number(value), ends, bound, result, good)


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


def open_template(name: str) -> Any:
    """A template of this room; everything put into it is escaped."""
    from jinja2 import Environment, FunctionLoader, StrictUndefined

    loader = FunctionLoader(read_part)
    return Environment(autoescape=True, undefined=StrictUndefined, loader=loader).get_template(name)


def read_part(name: str) -> str:
    """The text of a template, style sheet or script of this room."""
    return files("repairopt.report").joinpath(name).read_text(encoding="utf-8")


def render_page(
    plain: Plain,
    evidence: Evidence,
    *,
    title: str = "Repair report",
    frontier: Any = (),
    features: Sequence[str] = (),
    claims: Sequence[Mapping[str, Any]] = (),
    complete: bool = True,
) -> str:
    """The page of a report as a dict; without pictures, and saying so, where Matplotlib is not installed.

    ``claims`` are those of a spec file; ``complete`` says whether the evidence was collected from networks and data.
    """
    stated = stated_names(claims)
    plain, evidence = restate(plain, stated), restate_evidence(evidence, stated)
    drawn = have_matplotlib()
    pictures = draw_gallery(evidence, frontier, *on_frontier(plain)) if drawn else []
    missing = NO_PICTURES if not drawn else "" if complete else NO_EVIDENCE
    return open_template("page.html.j2").render(
        title=title,
        verdict=plain["verdict"],
        meaning=plain["meaning"],
        tone=outcome_tone(plain),
        sentences=summarize(plain),
        caveats=list_caveats(plain, evidence.label),
        rows=claim_rows(plain, evidence, claims),
        certified=any("certified" in measure["name"] for measure in plain["measures"]),
        proof=proof_in_words(plain),
        costs=cost_rows(plain),
        tables=[group_table(table, evidence) for table in evidence.tables],
        pictures=pictures,
        missing=missing,
        affected=[
            input_table(one, evidence, features, WIDEST)
            for one in evidence.affected
            if not one.are_images or not pictures
        ],
        facts=_facts(plain),
        rounds=_rounds(plain),
        version=library_versions().get("repairopt", ""),
    )


def render_fragment(plain: Plain) -> str:
    """Verdict, caveats and claims for a notebook, without style sheet and pictures."""
    from markupsafe import escape

    cells = [(r.name, r.data, r.before, r.after, r.limit, r.result) for r in claim_rows(plain, Evidence())]
    rows = "".join(f"<tr>{''.join(f'<td>{escape(cell)}</td>' for cell in row)}</tr>" for row in cells)
    head = "".join(f"<th>{cell}</th>" for cell in ("claim", "data", "before", "after", "limit", "result"))
    caveats = "".join(f"<li>{escape(text)}</li>" for text in list_caveats(plain))
    return (
        f"<div><p><strong>{escape(plain['verdict'].upper())}</strong> {escape(' '.join(summarize(plain)))}</p>"
        f"<ul>{caveats}</ul><table><thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table></div>"
    )


def outcome_tone(plain: Plain) -> str:
    """Good only where the target is met on held-out data too, if there are any."""
    unseen = measured(plain, held_out=True)
    short = unseen is not None and missed(unseen)
    return "open" if short and plain["verdict"] == "repaired" else TONES.get(plain["verdict"], "bad")


def on_frontier(plain: Plain) -> tuple[tuple[float, float] | None, tuple[float, float] | None]:
    """Value of the goal and accuracy, after and before, on the repair data, as the points of a frontier have it."""
    goal, sets = plain["measures"][0], [counts for counts in plain["labels"] if not counts["held_out"]]
    if not sets:
        return None, None
    before, after = max(sets, key=lambda counts: counts["count"])["accuracy"]
    return (goal["after"], after), (goal["before"], before)


def cost_rows(plain: Plain) -> list[list[str]]:
    """Of each bound what was taken off it for new data, and its price."""
    buffers, leads, prices = (plain.get(key, {}) for key in ("buffers", "margins", "prices"))
    names = dict.fromkeys([*buffers, *prices])
    lead = {name: f", and a lead of {number(size)} logits" for name, size in leads.items()}
    rounded = {name: 0.0 if abs(price) < FREE else price for name, price in prices.items()}
    more = dict.fromkeys(plain.get("out_of_reach", ()), " or more: out of reach of the last step")
    return [
        [name, number(buffers.get(name)) + lead.get(name, ""), number(rounded.get(name)) + more.get(name, "")]
        for name in names
    ]


def group_table(table: GroupTable, evidence: Evidence) -> Plain:
    """Metrics in each group and disparities, as texts."""
    rows = []
    for group, before, after in zip(table.groups, table.before, table.after, strict=True):
        cells = [
            f"{int(b):,}" if metric == "count" else f"{b:.3f} → {a:.3f}"
            for metric, b, a in zip(table.metrics, before, after, strict=True)
        ]
        rows.append([group, *cells])
    return {
        "title": f"{table.name}, {SPLITS[table.held_out]}, favorable label {evidence.label(table.favorable)}",
        "head": ["group", *(METRICS.get(metric, metric) for metric in table.metrics)],
        "rows": rows,
        "numbers": list(range(1, len(table.metrics) + 1)),
        "gaps": [[name, number(before), number(after)] for name, (before, after) in table.gaps.items()],
    }


def input_table(
    affected: AffectedInputs, evidence: Evidence, features: Sequence[str], most: int | None = None
) -> Plain:
    """The most affected inputs, as texts; without their values where they are images, or have more than ``most``."""
    flat = affected.inputs.reshape(len(affected.rows), -1)
    names, cells = list(affected.features or features), affected.cells
    if not cells:
        names = names if len(names) == flat.shape[1] else [f"column {j}" for j in range(flat.shape[1])]
        cells = tuple(tuple(f"{value:.4g}" for value in row) for row in flat)
    title = f"{affected.name}, {SPLITS[affected.held_out]}"
    if most is not None and (affected.are_images or len(names) > most):
        title += f"; the {len(names):,} numbers of each input are left out"
        names, cells = [], ((),) * len(affected.rows)
    rows, places = [], affected.places or [f"{int(row):,}" for row in affected.rows]
    for k, place in enumerate(places):
        label, before, after = (int(of[k]) for of in (affected.labels, affected.before, affected.after))
        answer = ["-" if label < 0 else evidence.label(label), evidence.label(before), evidence.label(after)]
        rows.append([place, *answer, f"{affected.shift[k]:.3f}", *cells[k]])
    where = "row of the file, from 0" if affected.places else "row"
    head = [where, "true label", "before", "after", "probability moved", *names]
    return {"title": title, "head": head, "rows": rows, "numbers": list(range(len(head)))}


def _facts(plain: Plain) -> list[tuple[str, str]]:
    weights, seconds = plain["weights"], plain["seconds"]
    chosen = "; ".join(f"{name}: {count:,}" for name, count in weights["parameters"].items())
    solvers = ", ".join(dict.fromkeys(r["solver"] for r in plain["rounds"] if r["solver"])) or "none"
    change = [
        ("weights", f"{weights['changed']:,} of {weights['size']:,} chosen ({chosen}) changed"),
        ("largest change", number(weights["largest_change"])),
        ("chosen by", weights["method"]),
    ]
    if str(plain.get("candidate", "")).startswith("wrapped"):
        change = [("change", plain["candidate"])]
    return [
        *change,
        ("method", plain["method"]),
        ("solver", f"{solvers}; last status {plain['status']}"),
        ("time", f"{number(seconds.get('total'))} s, {number(plain['cpu_seconds'])} s of processor"),
        ("seed", str(plain["seed"])),
        ("versions", ", ".join(f"{name} {value}" for name, value in plain["versions"].items())),
    ]


def _rounds(plain: Plain) -> list[list[str]]:
    def row(r: Plain) -> list[str]:
        known = [r["step"], r["status"], r["solver"], f"{r['rows']:,}", number(r["goal"])]
        return [*known, "yes" if r["accepted"] else "no", r["note"]]

    return [row(r) for r in plain["rounds"]]
