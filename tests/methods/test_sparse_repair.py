"""Repairs that choose: few weights, few broken samples, most wrong samples; judged on the true network."""

import numpy as np
import pytest
import torch
from biased_task import repair as repair_with, task
from torch import nn

from repairopt import (
    ErrorRate,
    FixLabels,
    Incremental,
    KeepLabels,
    OneShot,
    Sequential,
    SpecificationError,
    Strictest,
    Verdict,
    available_solvers,
)
from repairopt.methods import Method
from repairopt.methods.choosing.few_weights import AtMostBroken, FewWeights, MostFixed, weight_groups
from repairopt.network import Engine

pytestmark = pytest.mark.skipif(not available_solvers("MIQP"), reason="no MIQP back end is installed")
ALL = Strictest(positive=1, negative=1)


def repaired(toy, method, **options):
    settings = {"weights": "last", "shrink": False, **options}
    constraints = settings.pop("constraints", [toy.keep()])
    return repair_with(toy.model, settings.pop("goal", toy.gap()), constraints, method=method, **settings)


def changed(repair):
    return sum(int((delta != 0).sum()) for delta in repair.delta.values())


@pytest.mark.parametrize("program", ["qp", "lp"])
def test_a_network_is_repaired_by_at_most_three_weights(program):
    toy = task()
    found = repaired(toy, FewWeights(count=3), program=program)
    report = found.report
    assert 1 <= changed(found) <= 3 < report.location.size
    assert report.verdict in (Verdict.REPAIRED, Verdict.IMPROVED)
    before, after = report.verification.measures[0].before, report.verification.measures[0].after
    assert after < 0.6 * before
    assert all(check.holds for check in report.verification.checks)
    assert report.rounds[0].note.startswith("3 of 10 chosen, gap")


def test_more_weights_reach_at_least_as_far():
    toy = task()
    values = []
    for count in (1, 2, 10):
        found = repaired(toy, FewWeights(count=count, selection=ALL))
        assert changed(found) <= count
        values.append(found.report.surrogate.value(np.concatenate([d.flatten() for d in found.delta.values()])))
    free = repaired(toy, OneShot(ALL))
    assert values[0] >= values[1] - 1e-9 >= values[2] - 2e-9
    assert values[2] >= free.report.surrogate.value(np.concatenate([d.flatten() for d in free.delta.values()])) - 1e-6


def test_neurons_and_layers_are_counted():
    toy = task()
    neurons = repaired(toy, FewWeights(count=1, groups="neurons"), weights="all").delta
    touched = [
        (name.split(".")[0], unit) for name, d in neurons.items() for unit in d.reshape(len(d), -1).any(1).nonzero()
    ]
    assert len({(layer, int(unit)) for layer, unit in touched}) == 1
    layers = repaired(toy, FewWeights(count=1, groups="layers"), weights="all").delta
    assert len({name.split(".")[0] for name, d in layers.items() if bool(d.any())}) == 1


def test_groups_hold_every_weight_once():
    model = nn.Sequential(nn.Conv2d(2, 3, 2), nn.Flatten(), nn.Linear(12, 4))
    indices = {name: torch.arange(p.numel()) for name, p in model.named_parameters()}
    engine = Engine(model, indices)
    groups = {unit: weight_groups(engine, unit) for unit in ("weights", "neurons", "layers")}
    for found in groups.values():
        assert sorted(np.concatenate(found).tolist()) == list(range(engine.n))
    assert [len(found) for found in groups.values()] == [engine.n, 7, 2]
    assert sorted(map(len, groups["neurons"])) == [9] * 3 + [13] * 4


def test_another_method_goes_on_with_the_chosen_weights():
    toy = task()
    alone = repaired(toy, FewWeights(count=2))
    then = repaired(toy, FewWeights(count=2, then=Sequential()))
    assert changed(then) <= 2
    goals = [r.report.verification.measures[0].after for r in (alone, then)]
    assert goals[1] <= max(goals[0], 0.05) + 1e-9
    assert len(then.report.rounds) > len(alone.report.rounds)


def test_breaking_a_few_samples_reaches_further_than_keeping_all_rows():
    toy = task()
    kept = repaired(toy, Incremental(ALL), constraints=[toy.keep(0.0)], goal=toy.gap(0.0))
    found = repaired(toy, AtMostBroken(ALL, seconds=3), constraints=[toy.keep(0.02)], goal=toy.gap(0.0))
    check = found.report.verification.checks[0]
    assert check.holds
    goals = [r.report.verification.measures[0].after for r in (kept, found)]
    assert goals[1] <= goals[0]
    flat = [np.concatenate([d.flatten() for d in r.delta.values()]) for r in (kept, found)]
    surrogate = found.report.surrogate
    assert surrogate.value(flat[1]) < surrogate.value(flat[0])


def test_none_may_break_is_the_plain_program():
    toy = task()
    one = repaired(toy, AtMostBroken(ALL, count=0), constraints=[toy.keep(0.0)])
    other = repaired(toy, OneShot(ALL), constraints=[toy.keep(0.0)])
    values = [r.report.surrogate.value(np.concatenate([d.flatten() for d in r.delta.values()])) for r in (one, other)]
    assert values[0] == pytest.approx(values[1], abs=1e-6)


def test_most_wrong_samples_are_fixed_and_no_right_one_breaks():
    toy = task()
    inputs, labels = toy.inputs[:150], toy.labels[:150]
    keep, fix = KeepLabels(inputs, labels, tolerance=0.0), FixLabels(inputs, labels)
    wrong = toy.model(inputs).argmax(1) != labels
    goal = ErrorRate(inputs, labels, target=0.0)
    found = repaired(toy, MostFixed(seconds=10), constraints=[keep, fix], goal=goal)
    after = found.model(inputs).argmax(1) != labels
    assert not bool((after & ~wrong).any())
    assert int(after.sum()) < int(wrong.sum())
    assert found.report.rounds[0].solver


def test_settings_are_checked():
    assert isinstance(FewWeights(), Method)
    for build in (
        lambda: FewWeights(count=0),
        lambda: FewWeights(groups="units"),
        lambda: FewWeights(batch=0),
        lambda: AtMostBroken(count=-1),
        lambda: MostFixed(seconds=0.0),
    ):
        with pytest.raises(SpecificationError, match="method "):
            build()
    toy = task()
    with pytest.raises(SpecificationError, match="Add FixLabels"):
        repaired(toy, MostFixed())


def test_a_time_limit_keeps_the_best_point():
    toy = task()
    found = repaired(toy, FewWeights(count=3), time_limit=0.2)
    assert changed(found) <= 3
