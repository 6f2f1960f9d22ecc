"""A time limit and Ctrl-C end a repair with the best point so far, and the report says so."""

import time

import pytest
from biased_task import repair as repair_with, task

from repairopt import GroupGap, Status


def says(found, words):
    """Whether the printed report says so, wherever its lines break."""
    return words in " ".join(str(found.report).split())


def quick(toy, goal, **options):
    return repair_with(toy.model, goal, [toy.keep()], weights="last", trust_radius=1.0, **options)


@pytest.mark.parametrize("method", ["one_shot", "incremental", "bisection", "sequential"])
@pytest.mark.parametrize("limit", [1e-9, 0.02, 0.2])
def test_a_time_limit_returns_the_best_point_so_far(method, limit):
    toy = task()
    started = time.perf_counter()
    found = quick(toy, toy.gap(0.0), method=method, time_limit=limit)
    assert time.perf_counter() - started < limit + 5
    assert found.report.verification.checks[0].holds
    assert found.report.measure().after <= found.report.measure().before
    if limit < 1e-6:
        assert found.report.stopped == "time limit"
        assert says(found, "Stopped early (time limit)")
        assert found.report.changed == 0


class Interrupting(GroupGap):
    """A gap whose measurement is interrupted once, as by Ctrl-C."""

    calls = 0

    def value(self, predict):
        type(self).calls += 1
        if type(self).calls == 12:
            raise KeyboardInterrupt
        return super().value(predict)


def test_ctrl_c_returns_the_best_point_so_far_marked_so():
    toy, Interrupting.calls = task(), 0
    goal = Interrupting.sampled(toy.inputs, 1, count=400, target=0.0)
    found = quick(toy, goal, method="sequential")
    assert found.report.stopped == "interrupted"
    assert says(found, "Stopped early (interrupted)")
    assert found.report.verification.checks[0].holds
    assert found.report.measure().after < found.report.measure().before
    assert found.report.status is Status.FEASIBLE


def test_ctrl_c_in_the_progress_callback_too():
    seen = []

    def progress(entry):
        seen.append(entry)
        if len(seen) == 3:
            raise KeyboardInterrupt

    toy = task()
    found = quick(toy, toy.gap(0.0), method="sequential", progress=progress)
    assert found.report.stopped == "interrupted"
    assert len(found.report.rounds) == 3
    best = min(entry.goal for entry in seen if entry.broken == 0)
    assert found.report.measure().after <= best + 1e-9


def test_progress_sees_every_round():
    seen = []
    found = quick(task(), task().gap(), method="sequential", progress=seen.append)
    assert tuple(seen) == found.report.rounds
    assert all(entry.solver and entry.status for entry in seen)
