"""Trackers get every round and the figures of the report, by names that they accept."""

from __future__ import annotations

import re

import pytest
from biased_task import task

from repairopt import Settings, solve_repair
from repairopt.interfaces.track import report_metrics, track_rounds


@pytest.fixture(scope="module")
def logged():
    """A repair, and what its rounds logged."""
    toy, seen = task(count=200), []
    repair = solve_repair(
        *(toy.model, toy.gap(0.2), [toy.keep(0.3)]),
        held_out=toy.held_out,
        method="sequential",
        weights="last",
        settings=Settings(progress=track_rounds(lambda metrics, step: seen.append((step, metrics)), "run")),
    )
    return repair, seen


def test_each_round_is_logged_with_its_number(logged):
    repair, seen = logged
    assert [step for step, _ in seen] == list(range(1, len(repair.report.rounds) + 1))
    for (_, metrics), entry in zip(seen, repair.report.rounds, strict=True):
        assert metrics.get("run/goal", entry.goal) == pytest.approx(entry.goal, nan_ok=True)
        assert metrics["run/accepted"] == float(entry.accepted)
        assert all(value == value for value in metrics.values())


def test_the_report_is_logged_under_names_that_trackers_take(logged):
    report = logged[0].report
    found = report_metrics(report)
    assert found["repair/group gap/repair/after"] == report.measure().after
    assert found["repair/group gap/held-out/before"] == report.measure(held_out=True).before
    assert found["repair/keep labels/repair/failing"] == report.verification.checks[0].failed
    assert found["repair/repaired"] == float(report.verdict == "repaired")
    assert all(re.fullmatch(r"[A-Za-z0-9_\-./ ]+", name) for name in found)
    assert len(found) == len(set(found)) >= 10
