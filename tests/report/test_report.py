"""The report: a verdict with what to try next, text for a terminal, JSON without NaN."""

import json
import math
from dataclasses import replace

import pytest
import torch
from biased_task import repair as repair_with, task

from repairopt import Bisection, FixLabels, GroupGap, Incremental, KeepLabels, RepairFailedError, Verdict


def repaired(**options):
    toy = task(count=200)
    settings = {"weights": "last", "trust_radius": 1.0, "method": "incremental", "held_out": toy.held_out, **options}
    goal, constraints = settings.pop("goal", toy.gap()), settings.pop("constraints", [toy.keep()])
    return repair_with(toy.model, goal, constraints, **settings).report


@pytest.fixture(scope="module")
def reports():
    """One of each way to end."""
    toy = task(count=200)
    twice = torch.cat([toy.inputs[:10], toy.inputs[:10]])
    both = torch.cat([toy.labels[:10], 1 - toy.labels[:10]])
    conflict = [FixLabels(twice, both, weight=None, tolerance=0.0)]
    return {
        "repaired": repaired(),
        "improved": repaired(goal=toy.gap(0.0), constraints=[toy.keep(0.0)], method=Bisection()),
        "violated or infeasible": repaired(constraints=conflict, method=Incremental(max_rounds=3), held_out=()),
        "met already": repaired(goal=toy.gap(0.9)),
        "unsolved": repaired(goal=lambda predict: 0.3, weights="0.weight", held_out=()),
        "stopped": repaired(time_limit=1e-9),
        "linear": repaired(program="lp"),
        "sequence": repaired(method="sequential", watch=[GroupGap.observed(toy.inputs, 1, name="observed gap")]),
    }


KINDS = ["repaired", "improved", "violated or infeasible", "met already", "unsolved", "stopped", "linear", "sequence"]


def plain(value):
    """Whether a value is made of what JSON knows, without NaN."""
    if isinstance(value, dict):
        return all(isinstance(key, str) and plain(item) for key, item in value.items())
    if isinstance(value, list):
        return all(plain(item) for item in value)
    if type(value) is float:
        return math.isfinite(value)
    return value is None or type(value) in (bool, int, str)


@pytest.mark.parametrize("kind", KINDS)
def test_json_holds_plain_numbers_and_comes_back_the_same(reports, kind):
    found = reports[kind].to_dict()
    assert plain(found)
    assert json.loads(json.dumps(found, allow_nan=False)) == found
    assert {"verdict", "meaning", "status", "method", "weights", "measures", "checks", "labels", "seconds"} <= set(
        found
    )
    assert found["versions"]["torch"] == torch.__version__
    assert found["weights"]["size"] == reports[kind].location.size
    assert found["measures"][0]["name"] == reports[kind].measure().name


@pytest.mark.parametrize("kind", KINDS)
def test_text_fits_a_terminal_and_starts_with_the_verdict(reports, kind):
    report = reports[kind]
    lines = str(report).splitlines()
    assert lines[0].startswith(str(report.verdict).upper())
    assert max(map(len, lines)) <= 100
    assert " ".join(report.meaning.split()) in " ".join(str(report).split())
    assert not any(line != line.rstrip() for line in lines)
    for word in ("repair data", "held-out data", "change:", "method:", "believe:", "seconds:", "versions:"):
        assert word in str(report)


def test_verdicts(reports):
    assert reports["repaired"].verdict is Verdict.REPAIRED
    assert reports["improved"].verdict is Verdict.IMPROVED
    assert reports["violated or infeasible"].verdict in (Verdict.VIOLATED, Verdict.INFEASIBLE)
    assert reports["met already"].verdict is Verdict.REPAIRED
    assert reports["unsolved"].verdict is Verdict.UNSOLVED


@pytest.mark.parametrize("verdict", list(Verdict))
def test_every_verdict_says_what_it_means_and_all_but_success_what_to_try(verdict):
    assert verdict.meaning.endswith(".")
    assert verdict is Verdict.REPAIRED or "Try" in verdict.meaning or "Give" in verdict.meaning


def test_more_layers_are_advised_only_where_there_are_some(reports):
    report = reports["improved"]
    everything = replace(report, location=replace(report.location, method="all"))
    assert "more layers" in report.meaning
    assert "more layers" not in everything.meaning
    assert "Try a larger trust_radius" in str(everything).replace("\n", " ")


def test_both_columns_stand_side_by_side(reports):
    report = reports["repaired"]
    here, there = report.measure(), report.measure(held_out=True)
    line = next(line for line in str(report).splitlines() if line.startswith("group gap"))
    shown = [float(number) for number in line.split()[2:]]
    assert shown == pytest.approx([here.before, here.after, there.before, there.after], abs=1e-4)
    assert report.labels().count == 200
    assert report.labels(held_out=True).count == 200
    assert report.measure("nothing of this name") is None


def test_the_degeneracy_guard_is_in_every_report(reports):
    for report in reports.values():
        text = str(report)
        if report.labels() is None:
            continue
        for word in ("balanced accuracy", "recall, class 0", "recall, class 1", "newly wrong / newly right"):
            assert word in text
    assert "favorable rate, column 1 = 0" in str(reports["repaired"])
    assert reports["repaired"].to_dict()["labels"][0]["rate"].keys() == {"0", "1"}


def test_what_a_reader_must_be_told(reports):
    flat = {kind: " ".join(str(report).split()) for kind, report in reports.items()}
    assert "Stopped early (time limit)" in flat["stopped"]
    assert "met by the original network already" in flat["met already"]
    assert "No held-out data were given" in flat["unsolved"]
    assert "No held-out data" not in flat["repaired"]
    assert "Hard rows that gave way: 'fix labels', sample" in flat["violated or infeasible"]
    missed = reports["repaired"].measure(held_out=True)
    lifted = replace(missed, after=missed.target + 0.1)
    verification = reports["repaired"].verification
    measures = tuple(lifted if m is missed else m for m in verification.measures)
    worse = replace(reports["repaired"], verification=replace(verification, measures=measures))
    assert "On held-out data the target is missed" in str(worse)


def test_numbers_that_tell_whether_to_believe_the_method(reports):
    trust = reports["repaired"].trust
    assert trust.linearization_error == pytest.approx(0.0, abs=1e-9)  # last layer: exact
    assert math.isfinite(trust.fit_error)
    assert trust.improvement_ratio > 0
    early = repaired(weights="0.weight", method=Bisection())
    assert math.isnan(early.trust.linearization_error) or early.trust.linearization_error >= 0
    earlier = repaired(weights="0.weight")
    assert earlier.trust.linearization_error > 1e-6


def test_stages_and_rounds(reports):
    report = reports["repaired"]
    assert {"localize", "surrogate", "linearize", "select", "solve", "verify", "total"} <= set(report.seconds)
    stages = sum(seconds for name, seconds in report.seconds.items() if name != "total")
    assert stages <= report.seconds["total"] * 1.05
    assert report.cpu_seconds > 0
    assert all(entry.solver for entry in report.rounds)
    assert report.changed <= report.location.size
    assert report.largest_change > 0


def test_failing_on_demand(reports):
    assert reports["repaired"].raise_if_failed() is reports["repaired"]
    for kind in ("improved", "unsolved", "violated or infeasible"):
        with pytest.raises(RepairFailedError) as error:
            reports[kind].raise_if_failed()
        assert error.value.report is reports[kind]
        assert str(reports[kind].verdict) in str(error.value)


def test_a_vacuous_constraint_reads_vacuous_and_a_wish_reads_wish():
    toy = task(count=200)
    right = (toy.model(toy.inputs).argmax(1) == toy.labels).nonzero()[:, 0]
    fix = FixLabels(toy.inputs[right], toy.labels[right], name="nothing to fix")
    text = str(repaired(constraints=[toy.keep(), fix, FixLabels(toy.inputs, toy.labels)], held_out=()))
    rows = {line.split("  ")[0]: line for line in text.splitlines()}
    assert rows["nothing to fix"].endswith("vacuous")
    assert rows["fix labels"].endswith("wish")
    assert next(line for name, line in rows.items() if name.startswith("keep labels")).endswith("holds")
    assert KeepLabels(toy.inputs, toy.labels).name == "keep labels"


ODD = ["\x1b[31mred", "\u202eleft \u4e2d\u6587"]  # a color, a change of direction, letters that a font may lack


def test_names_in_data_do_not_steer_the_terminal():
    toy = task(count=200)
    gap = GroupGap.observed(toy.inputs, sensitive_features=[ODD[i % 2] for i in range(len(toy.inputs))], target=0.5)
    text = str(repaired(goal=gap, constraints=[], held_out=()))
    assert "\x1b" not in text
    assert "\u202e" not in text
    assert r"\u001b[31mred" in text
    assert r"\u202eleft" in text


def test_pictures_of_letters_that_the_font_lacks_are_drawn_without_a_warning(tmp_path):
    pytest.importorskip("matplotlib", reason="pictures come with the extra 'report'")
    toy = task(count=200)
    groups = [ODD[i % 2] for i in range(len(toy.inputs))]
    gap = GroupGap.observed(toy.inputs, sensitive_features=groups, target=0.05)
    repair_with(toy.model, gap, [toy.keep()], weights="last").save_html(tmp_path / "page.html")
    assert "\u4e2d\u6587" in (tmp_path / "page.html").read_text(encoding="utf-8")
