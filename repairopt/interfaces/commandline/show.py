"""Print results: text for people, one JSON object for programs."""

from __future__ import annotations

import json
import textwrap
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import click

from repairopt.errors import visible

if TYPE_CHECKING:
    from repairopt.interfaces.commandline.runs import results

WIDTH = 100
CONSTANT = "The network now gives all rows one class, which counts as not met."


def emit(result: results.Result, as_json: bool, text: Callable[[Any], str]) -> None:
    """Print a result, as JSON or by ``text``, and end the process with its exit code."""
    click.echo(visible(result.model_dump_json(indent=1) if as_json else text(result)))
    raise SystemExit(result.exit_code)


def emit_error(name: str, message: str, as_json: bool) -> None:
    """Print an error: to stderr for people, as JSON to stdout; exit code 2."""
    if as_json:
        click.echo(json.dumps({"format": 1, "exit_code": 2, "command": "error", "error": name, "message": message}))
    else:
        click.echo(visible(f"repairopt: {message}"), err=True)
    raise SystemExit(2)


def check_text(result: results.CheckResult) -> str:
    """The claims, and whether all is met."""
    from repairopt.interfaces.specfile.claim_rows import claim_table

    rows = ", ".join(f"{name} {count}" for name, count in result.rows.items())
    verdict = "Goal and bounds are met." if result.met else CONSTANT if result.constant else "Not everything is met."
    lines = [claim_table(result.claims), "", f"{verdict} Rows: {rows}."]
    usual, own = result.most_frequent, result.accuracy
    shares = [f"{name} {right:.4f} (the most frequent label: {usual[name]:.4f})" for name, right in own.items()]
    lines += textwrap.wrap(f"Accuracy: {', '.join(shares)}.", WIDTH) if shares else []
    if shares and all(right < usual[name] for name, right in own.items()):
        text = (
            "On every set the network does worse than one label for all rows. Look whether inputs stand in the order, "
        )
        text += "and on the scale, in which the network was trained, and classes in the order of its outputs."
        lines += textwrap.wrap(text, WIDTH, initial_indent="! ", subsequent_indent="  ")
    return "\n".join(lines)


def solve_text(result: results.SolveResult) -> str:
    """Verdict, claims, notes, and what was written."""
    from repairopt.interfaces.specfile.claim_rows import claim_table

    weights = result.weights
    lines = [result.verdict.upper(), *textwrap.wrap(result.meaning, WIDTH)]
    if result.stopped:
        lines.append(f"Stopped early ({result.stopped}); this is the best point found until then.")
    for note in result.notes:
        lines += textwrap.wrap(note, WIDTH, initial_indent="! ", subsequent_indent="  ")
    lines += ["", claim_table(result.claims), ""]
    change = (
        f"{weights.changed} of {weights.chosen} chosen weights changed, the largest by {weights.largest_change:.4g}"
    )
    if not weights.chosen:
        change = f"no weight changed; {weights.changed} numbers were added around the network"
    lines.append(f"{change}; {result.method}; {result.seconds:.1f} s")
    lines += [f"wrote {path}" for path in result.files.values()]
    lines.append(f"Verify it from the files alone: repairopt verify {result.spec} --patch {result.files['patch']}")
    return "\n".join(lines)


def frontier_text(result: results.FrontierResult) -> str:
    """The goal of each repair, and what was written."""
    from repairopt.interfaces.specfile.claim_rows import number

    goals = [row for row in result.original if row.role == "goal"]
    lines = [goals[0].name, f"{'bound':>10}" + "".join(f"{row.data:>12}" for row in goals) + "  verdict"]
    sides = [("now", result.original, ""), *((f"{one.bound:.4g}", one.claims, one.verdict) for one in result.repairs)]
    for name, claims, verdict in sides:
        values = [number(row.value) for row in claims if row.role == "goal"]
        lines.append(f"{name:>10}" + "".join(f"{value:>12}" for value in values) + f"  {verdict}".rstrip())
    wrote = [one.patch for one in result.repairs] + [result.out]
    if result.stopped:
        lines += ["", f"Stopped early ({result.stopped}); bounds that are missed or missing may be met in more time."]
    return "\n".join([*lines, "", *(f"wrote {path}" for path in wrote)])


def compare_text(result: results.CompareResult) -> str:
    """The table with letters, and which methods to take."""
    advice = [f"  {line}" for line in result.advice[:5]]
    return "\n".join([result.table, "", "most advisable", *advice, "", f"wrote {result.out}"])


def systems_text(result: results.SystemsResult) -> str:
    """Names by family, what each needs, and where it was published."""
    lines = []
    for family in dict.fromkeys(one.family for one in result.systems):
        lines.append(family)
        for one in (one for one in result.systems if one.family == family):
            needs = f"   needs {', '.join(one.needs)}" if one.needs else ""
            lines.append(f"  {one.name:44} {one.method:24}{needs}".rstrip())
            lines += [f"      {one.paper}"] if one.paper else []
    return "\n".join(lines)


def verify_text(result: results.VerifyResult) -> str:
    """What was looked at, and the claims as recomputed."""
    from repairopt.interfaces.specfile.claim_rows import claim_table

    lines = []
    for line in result.checks:
        mark = {True: "ok", False: "FAILED", None: "-"}[line.ok]
        lines += textwrap.wrap(line.detail, WIDTH, initial_indent=f"{mark:8}{line.what:20}", subsequent_indent=" " * 28)
    lines += ["", claim_table(result.claims), ""] if result.claims else [""]
    named = {ok: ", ".join(line.what for line in result.checks if line.ok is ok) for ok in (True, False, None)}
    not_met = CONSTANT if result.constant else "Not every goal and bound is met."
    lines += ["Goal and bounds are met." if result.met else not_met]
    said = f"NOT what is stated: {named[False]}." if named[False] else "Nothing that was checked is misstated."
    said += f" Checked: {named[True] or 'nothing'}." + (f" Not checked: {named[None]}." if named[None] else "")
    said += " Notes, times and versions cannot be recomputed; the hashes and a signature cover them."
    return "\n".join([*lines, *textwrap.wrap(said, WIDTH)])


def proof_text(result: results.ProofResult) -> str:
    """What was found, and how much of the regions it covers."""
    lines = [result.status.upper(), *textwrap.wrap(result.meaning, WIDTH)]
    for line in result.checks:
        mark = "ok" if line.ok else "FAILED"
        lines += textwrap.wrap(line.detail, WIDTH, initial_indent=f"{mark:8}{line.what:20}", subsequent_indent=" " * 28)
    if result.status == "refused":
        return "\n".join(lines)
    said = f"{result.boxes} boxes, {result.leaves} leaves, {result.splits} further splits."
    if result.status == "proved":
        said += f" The rows hold by at least {result.least:.3g}, in every run in {result.execution}."
    if result.status == "undecided":
        said += f" Proved on {result.share:.6%} of the volume; {result.open_boxes} smaller boxes are open."
    if result.samples:
        said += f" At {result.samples:,} points at which the network was run, the least value is "
        said += f"{result.sampled_least:.3g}."
    lines += ["", *textwrap.wrap(f"{said} {result.seconds:.1f} s.", WIDTH)]
    if result.point is not None and result.outputs is not None:
        numbers = [", ".join(f"{value:.9g}" for value in part[:20]) for part in (result.point, result.outputs)]
        lines += ["", *textwrap.wrap(f"Violated at input ({numbers[0]}), outputs ({numbers[1]}).", WIDTH)]
    return "\n".join(lines)


def init_text(result: results.InitResult) -> str:
    """What was guessed, and what to do next."""
    lines = [f"wrote {result.out}", ""]
    lines += [f"{what:20}{said}" for what, said in (("inputs", result.inputs), ("label", result.label))]
    lines += [f"{'groups':20}{result.sensitive_features}", "", "Three goals to choose from, with what they are now:"]
    lines += [f"  {one['measure']:56} {one['value']:.4g}" for one in result.candidates]
    return "\n".join([*lines, "", f"Look at {result.out}, then: repairopt check {result.out}"])


def doctor_text(result: results.DoctorResult) -> str:
    """What works, and what trial repairs cost."""
    lines = [result.model, f"Examined on {result.basis}.", ""]
    for line in result.findings:
        mark = {True: "ok", False: "FAILED", None: "-"}[line.ok]
        lines += textwrap.wrap(line.detail, WIDTH, initial_indent=f"{mark:8}{line.what:20}", subsequent_indent=" " * 28)
    if result.trials:
        said = f"expected for {result.rows:,} rows"
        lines += [
            "",
            "Trial repairs, and what one of all rows costs (processor time, memory of the process):",
        ]
        lines += [f"{'weights':12}{'number':>12}  {'trial':>20}  {said:>26}  verdict of the trial"]
    for one in result.trials:
        more = "> " if one.at_least else ""
        cost = f"{f'{one.rows:,} rows {one.seconds:.1f} s':>20}"
        expected = f"{more}{_seconds(one.expected_seconds)} s {one.expected_bytes / 2**20:8,.0f} MiB"
        lines.append(f"{one.weights:12}{one.count:12,}  {cost}  {expected:>26}  {one.verdict}")
    return "\n".join([*lines, "", "It can be repaired." if result.usable else "It cannot be repaired as it is."])


def _seconds(value: float) -> str:
    return f"{value:.1f}" if value < 10 else f"{value:,.0f}"


def patch_text(result: results.PatchResult) -> str:
    """The patch as its own text."""
    from repairopt.patches import load_patch

    return str(load_patch(result.patch))


def solvers_text(result: results.SolversResult) -> str:
    """One line for each back end."""
    lines = [f"{'':12}{'installed':12}{'licensed':10}{'kinds':34}{'version':14}needs"]
    for s in result.solvers:
        licensed = {True: "yes", False: "no", None: "-"}[s.licensed]
        kinds, needs = ", ".join(s.kinds), ", ".join(s.needs)
        lines.append(f"{s.name:12}{'yes' if s.installed else 'no':12}{licensed:10}{kinds:34}{s.version:14}{needs}")
    return "\n".join(lines)
