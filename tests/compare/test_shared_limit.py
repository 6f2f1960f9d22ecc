"""Calls that run many repairs: one time limit for all of them."""

import time

import pytest
from biased_task import task

from repairopt import Settings, SpecificationError, calibrate_margin, explain_unmet, trace_frontier

SECONDS = 0.5
BEYOND = 2.0  # what a repair cannot do without, a few times: judging the original, the measures at the end


def _limited(call, *given, **options):
    started = time.process_time()
    found = call(*given, settings=Settings(time_limit=SECONDS), **options)
    assert time.process_time() - started < SECONDS + BEYOND
    return found


def test_a_frontier_ends_at_its_limit():
    toy = task()
    found = _limited(trace_frontier, toy.model, toy.gap(), [toy.keep()], targets=30, data=(toy.inputs, toy.labels))
    assert found.stopped == "time limit"
    assert 1 <= len(found.points) <= 30
    assert "Stopped early (time limit)" in str(found)


def test_of_conflicts_nothing_is_said_that_more_time_may_refute():
    toy = task()
    keep = [toy.keep(name=f"keep {k}") for k in range(3)]
    found = _limited(explain_unmet, toy.model, toy.gap(-1.0), keep)
    assert found.stopped == "time limit"
    assert set(found.conflict) >= {f"keep {k}" for k in range(3)}  # none was shown to be without part in it
    assert not found.proved
    assert "with more time, some of these may be met" in str(found)


def test_margins_share_the_time():
    toy = task()
    found = _limited(calibrate_margin, toy.model, toy.gap(), toy.keep(), weights="last")
    assert found.tried
    assert found.stopped == "time limit"
    with pytest.raises(SpecificationError, match="time limit, 1e-06 s, ended before one margin was tried"):
        calibrate_margin(toy.model, toy.gap(), toy.keep(), settings=Settings(time_limit=1e-6))


def test_without_a_limit_nothing_is_stopped():
    toy = task()
    found = trace_frontier(toy.model, toy.gap(), targets=[0.2], weights="last")
    assert found.stopped == ""
    assert found.points[0].met
