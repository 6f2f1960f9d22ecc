"""The swarm: what it finds, what it obeys, and that it compares places as the judge does."""

import numpy as np
import pytest
import torch
from biased_task import Steps, repair as repair_with, task

from repairopt import CallableProperty, ChangeLimit, LinearRows, SpecificationError, Swarm
from repairopt.interfaces.testing import check_method
from repairopt.methods.search.swarm import _Rating
from repairopt.pipeline import Settings, prepare_repair
from repairopt.specify import Specification

SMALL = Swarm(particles=20, iterations=40)


def test_it_passes_the_checks():
    ran = check_method(SMALL)
    assert {"gap: better", "points: better", "gap: start", "out of reach: nothing is claimed"} <= set(ran)


def test_it_repairs_a_network_without_derivatives():
    given = task(Steps())
    found = repair_with(given.model, given.gap(), [given.keep(0.1)], method=SMALL, weights="all").report
    assert found.verdict == "repaired"
    assert found.method == "Swarm(particles=20, iterations=40)"


def test_places_are_compared_as_the_judge_does():
    given = task()
    options = {"method": SMALL, "weights": "all", "settings": Settings()}
    rows = LinearRows(np.eye(22)[:1], -0.1, 0.1)
    spec = Specification(given.gap(0.1), (given.keep(0.1), rows))
    made = prepare_repair(given.model, spec, **options).task
    draw = np.random.default_rng(0)
    places = draw.normal(size=(60, made.engine.n)) * np.logspace(-2, 0.3, 60)[:, None]
    places[:20, 0] = 0
    scores = _Rating(made)(places)
    kinds = set()
    for place, score in zip(places, scores, strict=True):
        judged = made.judge(place)
        fits = judged.surplus == 0 and judged.change_holds
        assert (score > 1) == (not fits)
        assert (score < 0) == (fits and judged.met)
        assert score < 1.0 or not fits
        kinds.add((fits, judged.met))
    assert len(kinds) > 2


def test_among_places_at_the_target_the_loss_decides():
    given = task()
    loose = repair_with(given.model, given.gap(0.3), method=SMALL, weights="all", data=(given.inputs, given.labels))
    assert loose.report.verdict == "repaired"
    with torch.no_grad():
        now, before = (
            torch.nn.functional.cross_entropy(m(given.inputs), given.labels) for m in (loose.model, given.model)
        )
    assert now < before


def test_without_data_the_smallest_change_is_kept():
    given = task()
    goal = CallableProperty(lambda predict: predict(given.inputs)[:, 1].mean(), -0.1, name="mean")
    found = repair_with(given.model, goal, method=Swarm(), weights="2.bias").report
    assert found.verdict == "repaired"
    before = found.verification.goal_before
    assert found.largest_change == pytest.approx(before + 0.1, abs=0.01)


def test_limits_on_the_change_hold():
    given = task()
    limits = [ChangeLimit(absolute=0.3), given.keep(0.2)]
    found = repair_with(given.model, given.gap(0.2), limits, method=SMALL, weights="all").report
    assert found.verdict in ("repaired", "improved")
    assert 0 < found.largest_change <= 0.3 + 1e-6


def test_the_seed_decides():
    given = task()
    runs = [repair_with(given.model, given.gap(), method=SMALL, weights="last", seed=seed) for seed in (0, 0, 1)]
    assert torch.equal(runs[0].delta["2.weight"], runs[1].delta["2.weight"])
    assert not torch.equal(runs[0].delta["2.weight"], runs[2].delta["2.weight"])


def test_an_interrupt_and_the_time_limit_keep_the_best_place():
    given, seen = task(), []

    def stop(entry):
        seen.append(entry.goal)
        if len(seen) == 3:
            raise KeyboardInterrupt

    found = repair_with(given.model, given.gap(0.0), method=SMALL, weights="all", progress=stop).report
    assert (found.stopped, found.verification.goal_after) == ("interrupted", seen[-1])
    late = repair_with(given.model, given.gap(0.0), method=SMALL, weights="all", time_limit=1e-6).report
    assert late.stopped == "time limit"
    assert late.changed == 0


@pytest.mark.parametrize("option", [{"solver": "daqp"}, {"isolate": True}, {"tolerance": 1e-5}])
def test_settings_that_it_would_ignore_raise(option):
    given = task()
    with pytest.raises(SpecificationError, match="method Swarm does not use it.*sqp"):
        repair_with(given.model, given.gap(), method="swarm", **option)


@pytest.mark.parametrize("wrong", [{"particles": 1}, {"iterations": 0}, {"radius": 0.0}, {"patience": 1.5}])
def test_wrong_numbers_are_named(wrong):
    with pytest.raises(SpecificationError, match=f"method Swarm: {next(iter(wrong))}="):
        Swarm(**wrong)
