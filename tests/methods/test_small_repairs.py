"""What small repairs cost, in counts: runs begun anew, rounds of cross-validation, passes for derivatives."""

import typing

import numpy as np
import pytest
import torch
from torch import nn

from repairopt import Bound, ErrorRate, GroupGap, KeepLabels, MissRate, OutputBounds, Verdict, solve_repair
from repairopt.localize import localize
from repairopt.methods.sqp.confident import ROUNDS
from repairopt.network import Engine, differentiate, sample_rows, tangent, tracing
from repairopt.specify import contracts

pytestmark = pytest.mark.slow


def trained(rows, width, classes=2, seed=0):
    torch.manual_seed(seed)
    x = torch.randn(rows, width)
    y = (x[:, 0] * 2 + torch.randn(rows)).clamp(-0.9, classes - 1.1).round().long().clamp(0, classes - 1)
    net = nn.Sequential(nn.Linear(width, 8), nn.ReLU(), nn.Linear(8, classes))
    optimizer = torch.optim.Adam(net.parameters(), 2e-2)
    for _ in range(40):
        optimizer.zero_grad()
        nn.functional.cross_entropy(net(x), y).backward()
        optimizer.step()
    return net, x, y


class Share:
    """A function of a user's own: the mean probability of the last class, asked to be above 1."""

    name, target = "share", -0.5

    def __init__(self, x):
        self.x = x

    def value(self, predict):
        return -predict(self.x).softmax(-1)[:, -1].mean() + 1.0


def noise(rows, width):
    net, x, _ = trained(rows, width)
    return net, ErrorRate(x, torch.randint(2, (rows,))), [KeepLabels(x, net(x).argmax(1), tolerance=0.02)]


def opposite_bounds(rows, width):
    net, x, y = trained(rows, width)
    bounds = [Bound(MissRate(x, y, c), limit=0.0, name=f"missed {c}") for c in (0, 1)]
    return net, ErrorRate(x.clone(), 1 - y, target=0.1), bounds


def kept_gap(rows, width):
    net, x, _ = trained(rows, width)
    answers = net(x).argmax(1)
    gap = GroupGap.observed(x, sensitive_features=answers.tolist(), target=0.0)
    return net, gap, [KeepLabels(x, answers, tolerance=0.0)]


def outputs_in_the_way(rows, width):
    net, x, y = trained(rows, width)
    below = OutputBounds(x, torch.tensor([[0.0, 1.0], [0.0, -1.0]]), torch.tensor([0.1, 0.1]))
    return net, ErrorRate(x, 1 - y, target=0.0), [below, KeepLabels(x, y, tolerance=0.0)]


def own_function(rows, width):
    net, x, y = trained(rows, width)
    return net, Share(x), [KeepLabels(x, y, tolerance=0.0)]


UNREACHABLE = [noise, opposite_bounds, kept_gap, outputs_in_the_way, own_function]


@pytest.mark.parametrize("make", UNREACHABLE)
def test_what_is_out_of_reach_is_given_up_soon(make, monkeypatch):
    sequences, whole = [], "repairopt.methods.sqp.sequence.Sequence.run"
    run = __import__("repairopt.methods.sqp.sequence", fromlist=["Sequence"]).Sequence.run
    monkeypatch.setattr(whole, lambda self, *given, **how: sequences.append(self.called) or run(self, *given, **how))
    net, goal, constraints = make(40, 4)
    found = solve_repair(net, goal, constraints)
    assert found.report.verdict is not Verdict.REPAIRED
    stages = [called for called in sequences if called]
    assert len(stages) <= 3, "only the run on all rows is begun anew, and once, as it gains nothing"
    assert len(sequences) <= len(stages) + 1 + 2 * 3 * ROUNDS


def test_the_contracts_ask_for_what_typing_says():
    kinds = [kind for kind in vars(contracts).values() if isinstance(kind, contracts._Contract)]
    kinds = [kind for kind in kinds if kind.__dict__.get("_is_protocol")]
    assert len(kinds) > 15
    for kind in kinds:
        assert {name for name, _ in contracts._members(kind)} == typing._get_protocol_attrs(kind)


def test_a_method_that_is_none_is_not_offered_and_derived_classes_are_told_apart():
    class Plain:
        name, target = "plain", 0.0

        def value(self, predict):
            return 0.0

    class Derived(contracts.Property):
        name, target = "derived", 0.0

        def value(self, predict):
            return 0.0

    class Emptied(Plain):
        value = None

    assert isinstance(Plain(), contracts.Property)
    assert isinstance(Derived(), contracts.Property)
    assert not isinstance(Emptied(), contracts.Property)
    assert not isinstance(Plain(), Derived)


@pytest.mark.parametrize(("rows", "width", "classes"), [(10, 3, 2), (120, 5, 2), (60, 4, 5), (30, 2, 3), (17, 6, 4)])
def test_derivatives_around_a_point_are_made_once_where_they_are_few(rows, width, classes, monkeypatch):
    net, x, _ = trained(rows, width, classes)
    net, x = net.double(), x.double()
    weights = localize(net, "all")
    engine, plain = Engine(net, weights.indices), Engine(net, weights.indices)
    random = np.random.default_rng(rows)
    delta, step = 0.1 * random.normal(size=(2, engine.n))
    samples, cotangents = torch.randint(rows, (25,)), torch.randn(25, classes, dtype=torch.float64)
    engine.predict()(x)
    plain.predict()(x)
    made = []
    rows_of = differentiate._rows_from_tapes
    monkeypatch.setattr(differentiate, "_rows_from_tapes", lambda *a: made.append(len(a[2])) or rows_of(*a))
    found = [tangent(engine, x, delta, step) for _ in range(3)][0], sample_rows(engine, x, samples, cotangents, delta)
    assert made == [rows * classes]
    monkeypatch.setattr(differentiate, "FEW", 0)
    wanted = tangent(plain, x, delta, step), sample_rows(plain, x, samples, cotangents, delta)
    for one, other in zip(found, wanted, strict=True):
        assert torch.allclose(one, other, rtol=1e-10, atol=1e-12)


def test_weights_that_are_given_are_not_traced(monkeypatch):
    net, *_ = trained(20, 3)
    traces = []
    trace = tracing.Tracer.trace
    monkeypatch.setattr(tracing.Tracer, "trace", lambda *a: traces.append(1) or trace(*a))
    chosen = localize(net, "last")
    assert len(traces) == 1
    localize(net, chosen)
    assert len(traces) == 1


def test_few_labelled_rows_are_traced_for_the_usual_weights_alone(monkeypatch):
    net, x, y = trained(60, 4)
    traces = []
    trace = tracing.Tracer.trace
    monkeypatch.setattr(tracing.Tracer, "trace", lambda *a: traces.append(1) or trace(*a))
    solve_repair(net, ErrorRate(x, 1 - y, target=0.3))
    assert len(traces) <= 6, "choices of weights that too few rows cannot tell apart are not prepared"
