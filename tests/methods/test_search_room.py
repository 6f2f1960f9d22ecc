"""Methods that search: what the table of systems asks of each, on small real problems."""

import copy

import numpy as np
import pytest
import torch
from digits import proposal
from torch import nn

from repairopt import ErrorRate, GroupGap, KeepLabels, Settings, SpecificationError, methods, solve_repair
from repairopt.compare import loan_decisions
from repairopt.localize import CARE, LayerGraph, care_neurons
from repairopt.methods.search.markov import learn_chain, traces_of
from repairopt.methods.search.particles import Particles
from repairopt.patches import load_patch


@pytest.fixture(scope="module")
def loans():
    return loan_decisions(2000)


def _gap(loans, **options):
    return GroupGap.observed(loans[1], column=5, favorable=1, target=0.05, **options)


def _goal(digits):
    return ErrorRate(*digits.repair)


def _errors(model, x, y):
    with torch.no_grad():
        return float((model(x).argmax(1) != y).double().mean())


def test_particles_find_a_minimum_within_bounds():
    draw = np.random.default_rng(0)
    rules = Particles(iterations=60)
    best, score = rules.move(lambda p: ((p - 0.3) ** 2).sum(1), draw.uniform(-1, 1, (20, 4)), draw, (-1.0, 0.25))
    np.testing.assert_allclose(best, 0.25, atol=1e-2)
    assert score == pytest.approx(4 * 0.05**2, rel=0.2)


def test_CARE(loans):
    model, x, y = loans
    planted = nn.Sequential(nn.Linear(6, 4), nn.ReLU(), nn.Linear(4, 2))
    with torch.no_grad():
        for layer in (planted[0], planted[2]):
            layer.weight.mul_(0.2)
            layer.bias.zero_()
        planted[0].weight[2] = torch.tensor([0.0, 0, 0, 0, 0, 1.0])  # the third neuron reads the group alone
        planted[2].weight[:, 2] = torch.tensor([-3.0, 3.0])
    goal = GroupGap.sampled(x, 5, count=300, favorable=1)
    ranked = care_neurons(LayerGraph(planted, None, x[:3]), goal, CARE(score="removed", count=4))
    assert ranked[0][:2] == ("0", 2)
    task, _, repaired = proposal(methods.CARERepair(protected=(5,)), model, _gap(loans), data=(x, y))
    assert float(task.goal.value(lambda rows: repaired(rows))) < 0.6 * float(task.goal.value(lambda rows: model(rows)))
    assert _errors(repaired, x, y) < _errors(model, x, y) + 0.08


def test_PVNN(loans):
    model, x, y = loans
    method = methods.PVNN(error=0.1)
    traces = traces_of(_gap(loans), (5,), 1, "test")
    with torch.no_grad():
        chain = learn_chain(lambda rows: model(rows), traces, (0.05, 0.05, 50_000))
        brute, member = traces.drawn(60_000, torch.Generator().manual_seed(7))
        label = model(brute).argmax(1) == 1
        exact = abs(float(label[member == 1].double().mean()) - float(label[member == 0].double().mean()))
        assert chain.settled
        assert abs(chain.difference - exact) <= 2 * 0.05
        _, _, repaired = proposal(method, model, _gap(loans), data=(x, y))
        rates = [float((repaired(brute[member == s]).argmax(1) == 1).double().mean()) for s in (0, 1)]
    assert abs(rates[1] - rates[0]) < exact
    with pytest.raises(SpecificationError, match="gap between groups"):
        proposal(method, model, ErrorRate(x, y), data=(x, y))


@pytest.mark.parametrize("version", [1, 2])
def test_Arachne(digits, version):
    layer = "0" if version == 1 else None
    method = methods.Arachne(version=version, layer=layer, iterations=30, population=60)
    _, outcome, repaired = proposal(method, digits.model, _goal(digits), data=digits.training)
    was, now = (digits.wrong(model, digits.repair) for model in (digits.model, repaired))
    assert 0 < np.count_nonzero(outcome.delta) < 40
    assert int((was & ~now).sum()) >= 0.127 * int(was.sum())  # the family's share on MNIST in the study
    assert (
        float((digits.wrong(repaired, digits.test) & ~digits.wrong(digits.model, digits.test)).double().mean()) < 0.06
    )


def test_NeuRecover(digits):
    spoiled = copy.deepcopy(digits.model)
    with torch.no_grad():
        spoiled[2].weight[3] += 0.12 * torch.randn(32, generator=torch.Generator().manual_seed(1))
        spoiled[2].bias[3] -= 2.0
    method = methods.NeuRecover(history=digits.history, rate=0.5, iterations=40)
    was = digits.wrong(spoiled, digits.repair)
    regressed = was & ~digits.wrong(digits.model, digits.repair)
    assert int(regressed.sum()) > 10
    _, _, repaired = proposal(method, spoiled, _goal(digits), data=digits.training)
    now = digits.wrong(repaired, digits.repair)
    assert int((regressed & ~now).sum()) > 0.3 * int(regressed.sum())
    assert int((now & ~was).sum()) < int((was & ~now).sum())
    with pytest.raises(SpecificationError, match="history="):
        proposal(methods.NeuRecover(), spoiled, _goal(digits), data=digits.training)


def test_DISTRREP(digits, monkeypatch):
    method = methods.DistrRep(pairs=3, patcher=methods.Arachne(iterations=15, population=40), iterations=40)
    kept = {}
    patches, scoring = methods.DistrRep._patches, methods.DistrRep._score
    monkeypatch.setattr(methods.DistrRep, "_patches", lambda *a: kept.setdefault("patches", patches(*a)))
    monkeypatch.setattr(methods.DistrRep, "_score", lambda *a: kept.setdefault("score", scoring(*a)))
    task, outcome, _ = proposal(method, digits.model, _goal(digits), data=digits.training)
    averaged = np.zeros(task.engine.n)
    for places, change in zip(*kept["patches"], strict=True):
        averaged[places] += change / len(kept["patches"][0])
    merged, naive = (float(kept["score"](task.engine.predict(delta))) for delta in (outcome.delta, averaged))
    assert merged > naive


def test_GenMuNN():
    x = torch.randn(200, 4, generator=torch.Generator().manual_seed(0))
    y = (x[:, 0] + 0.12 > 0).long()
    model = nn.Linear(4, 2)
    with torch.no_grad():
        model.weight.copy_(torch.tensor([[-1.0, 0.02, 0.0, 0.0], [1.0, -0.02, 0.0, 0.0]]))
        model.bias.copy_(torch.tensor([0.05, -0.05]))
    task, _, repaired = proposal(methods.GenMuNN(share=0.5, degree=0.2), model, ErrorRate(x, y), data=(x, y))
    assert _errors(repaired, x, y) < _errors(model, x, y)
    assert [one.goal for one in task.log.rounds] == sorted((one.goal for one in task.log.rounds), reverse=True)


def test_GenMuNN_ranks_many_weights_by_the_spectrum(digits):
    task, _, repaired = proposal(
        methods.GenMuNN(ranking="spectrum", degree=0.3), digits.model, _goal(digits), data=digits.training
    )
    assert task.log.rounds
    assert _errors(repaired, *digits.repair) <= _errors(digits.model, *digits.repair)


def test_GenMuNN_never_lowers_the_accuracy(digits):
    _, _, repaired = proposal(methods.GenMuNN(generations=10), digits.model, _goal(digits), data=digits.training)
    assert _errors(repaired, *digits.repair) <= _errors(digits.model, *digits.repair)


def test_BIRDNN_FT(digits):
    spoiled = copy.deepcopy(digits.model)
    with torch.no_grad():
        spoiled[0].bias[7] += 6.0  # one neuron is active where it should not
    _, _, repaired = proposal(methods.BirdnnFT(), spoiled, _goal(digits), data=digits.training)
    was, now = (digits.wrong(model, digits.repair) for model in (spoiled, repaired))
    assert int((was & ~now).sum()) > int((now & ~was).sum())
    assert _errors(repaired, *digits.test) < _errors(spoiled, *digits.test)


SEARCHES = {
    "care": methods.CARERepair(neurons=4, particles=8, iterations=5),
    "arachne": methods.Arachne(population=20, iterations=4),
    "distrrep": methods.DistrRep(pairs=2, patcher=methods.Arachne(population=20, iterations=3), iterations=5),
    "genmunn": methods.GenMuNN(generations=3),
    "birdnn_ft": methods.BirdnnFT(neurons=4, particles=8, iterations=5),
    "neurecover": None,
}


@pytest.mark.parametrize("name", SEARCHES)
def test_every_search_is_a_method_like_the_others(name, digits, fingerprint, tmp_path):
    model = copy.deepcopy(digits.model)
    with torch.no_grad():
        model[2].bias[3] -= 1.5
    before = fingerprint(model)
    method = SEARCHES[name] or methods.NeuRecover(history=digits.history, rate=0.5, particles=20, iterations=3)
    assert name in methods.available_methods()
    goal = ErrorRate(*digits.repair, target=0.01)
    options = {"method": method, "data": digits.training}
    runs = [solve_repair(model, goal, settings=Settings(seed=3), **options) for _ in range(2)]
    assert fingerprint(model) == before
    assert runs[0].report.rounds
    assert [r.goal for r in runs[0].report.rounds] == [r.goal for r in runs[1].report.rounds]
    assert runs[0].report.verdict in ("improved", "unsolved", "repaired")
    runs[0].as_patch(model).save(tmp_path / "patch.safetensors")
    applied = load_patch(tmp_path / "patch.safetensors").apply(model)
    assert torch.equal(applied(digits.test[0]), runs[0].model(digits.test[0]))
    late = solve_repair(model, goal, [KeepLabels(*digits.test)], settings=Settings(time_limit=1e-3), **options)
    assert late.report.stopped == "time limit"


@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("CARERepair", {"alpha": 2.0}),
        ("CARERepair", {"neurons": 0}),
        ("PVNN", {"error": 0.0}),
        ("Arachne", {"version": 3}),
        ("Arachne", {"population": 2}),
        ("NeuRecover", {"past": "next"}),
        ("NeuRecover", {"rate": 0.0}),
        ("DistrRep", {"risks": {}}),
        ("DistrRep", {"importance": {0: -1.0}}),
        ("GenMuNN", {"degree": 0.0}),
        ("GenMuNN", {"ranking": "luck"}),
        ("BirdnnFT", {"price": -1.0}),
    ],
)
def test_wrong_settings_are_refused(name, settings):
    with pytest.raises(SpecificationError, match=next(iter(settings))):
        getattr(methods, name)(**settings)
