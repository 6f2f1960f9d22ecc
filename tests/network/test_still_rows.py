"""Samples that no change moves: left out of runs, with the same outputs and derivatives."""

import numpy as np
import pytest
import torch
from biased_task import repair as repair_with
from torch import nn

from repairopt import SQP, GroupGap, Inputs
from repairopt.localize import localize
from repairopt.methods.cross_entropy import softmax_curvature
from repairopt.network import Engine, jacobian, pull_back, sample_rows
from repairopt.network.engine import Predictor
from repairopt.network.linear_tape import LinearTape


def network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(5, 8), nn.ReLU(), nn.Linear(8, 4), nn.ReLU(), nn.Linear(4, 2))


def rows(count=400, share=0.2):
    """Rows with zeros in column 3 but for a share of them."""
    x = torch.randn(count, 5, generator=torch.Generator().manual_seed(1))
    x[torch.arange(count) >= share * count, 3] = 0.0
    return x[torch.randperm(count, generator=torch.Generator().manual_seed(2))]


def engine_of(model, how):
    return Engine(model, localize(model, how, inputs=torch.zeros(1, 5)).indices)


@pytest.fixture
def given():
    model, x = network(), rows()
    engine = engine_of(model, Inputs([3]))
    draw = torch.Generator().manual_seed(3)
    return model, x, engine, 0.3 * torch.randn(engine.n, generator=draw)


def changed(model, engine, delta):
    """The network with the change applied to a copy of it."""
    other = network()
    other.load_state_dict(model.state_dict())
    with torch.no_grad():
        for name, value in engine.weights(delta).items():
            other.get_parameter(name).copy_(value)
    return other


def test_samples_with_zeros_where_the_weights_read_are_known(given):
    _, x, engine, _ = given
    still = engine.still(x)
    assert still is not None
    assert torch.equal(still.moved, (x[:, 3] != 0).nonzero()[:, 0])
    assert len(still.moved) == 80


def test_outputs_are_those_of_the_changed_network(given):
    model, x, engine, delta = given
    wanted = changed(model, engine, delta)(x)
    assert torch.allclose(engine.predict(delta)(x), wanted, atol=1e-6)
    before = engine.evaluations
    engine.outputs(x, 2 * delta)
    assert engine.evaluations - before == 80, "only samples that move are run"


def test_many_changes_at_once_give_what_one_after_the_other_gives(given):
    _, x, engine, delta = given
    deltas = torch.stack([delta, -delta, 0 * delta])
    found = engine.values(lambda predict: torch.softmax(predict(x), -1)[:, 1].mean(), deltas)
    one = [float(torch.softmax(engine.predict(d)(x), -1)[:, 1].mean()) for d in deltas]
    assert found.tolist() == pytest.approx(one, rel=1e-6)


def test_derivatives_are_those_of_all_samples(given):
    model, x, engine, delta = given
    cotangent = torch.randn(len(x), 2, generator=torch.Generator().manual_seed(4))
    leaf = delta.clone().requires_grad_()
    (Predictor(engine, leaf)(x) * cotangent).sum().backward()
    other = changed(model, engine, delta)
    (other(x) * cotangent).sum().backward()
    weight = other[0].weight.grad[:, 3].clone()
    assert torch.allclose(leaf.grad, weight, atol=1e-4)
    assert torch.allclose(pull_back(engine, x, cotangent, delta).float(), weight, atol=1e-4)
    value, slope = jacobian(engine, lambda predict: torch.softmax(predict(x), -1)[:, 1].mean(), delta)
    assert float(value) == pytest.approx(float(torch.softmax(other(x).detach(), -1)[:, 1].mean()), rel=1e-5)
    assert slope.shape == (1, engine.n)


def test_rows_of_samples_are_zero_where_nothing_moves(given):
    _, x, engine, delta = given
    samples = torch.arange(len(x))
    cotangents = torch.tensor([[1.0, -1.0]]).expand(len(x), 2)
    assert engine.tapes(x, delta) is not None
    found = sample_rows(engine, x, samples, cotangents, delta)
    plain = LinearTape(engine, engine.layers(x), (x,), delta).rows(samples, cotangents)
    assert torch.allclose(found, plain, atol=1e-6)
    assert bool((found[x[:, 3] == 0] == 0).all())
    repeated = torch.tensor([5, 5, 300, 7, 5])
    tape = engine.tapes(x, delta)[0][1]
    assert torch.allclose(tape.rows(repeated, cotangents[:5]), plain[repeated], atol=1e-6)
    chance = torch.softmax(engine.predict(delta)(x), -1)
    roots = (chance[:, 0] * chance[:, 1]).sqrt()[:, None] * plain
    assert torch.allclose(softmax_curvature(engine, x, chance, delta), (roots.T @ roots).double(), atol=1e-3)


@pytest.mark.parametrize(
    ("how", "share"), [(Inputs([3]), 0.9), ([Inputs([3]), "4.*"], 0.2), ("0.*", 0.2), ("2.*", 0.2), (Inputs([2]), 0.2)]
)
def test_all_samples_are_run_where_most_move_or_a_change_acts_in_another_way(how, share):
    engine = engine_of(network(), how)
    assert engine.still(rows(share=share)) is None


def test_inputs_that_change_in_place_are_looked_at_again(given):
    _, x, engine, _ = given
    assert len(engine.still(x).moved) == 80
    x[:, 3] = 1.0
    assert engine.still(x) is None


def test_a_repair_is_the_same_as_with_all_samples_run(monkeypatch):
    model, x = network(), rows(2000)
    labels = (x[:, 0] > 0).long()
    groups = [torch.randn(500, 5, generator=torch.Generator().manual_seed(k)) + 1.5 * k for k in range(2)]
    with torch.no_grad():
        lead = model(torch.cat(groups)).diff(dim=1).median()
        model[4].bias.add_(torch.tensor([lead / 2, -lead / 2]))  # half of the drawn inputs get each label
    gap = GroupGap.given(groups, target=0.02, name="gap")
    options = {"data": (x, labels), "weights": Inputs([3]), "method": SQP(confidence=None)}
    found = repair_with(model, gap, **options)
    monkeypatch.setattr(Engine, "still", lambda self, inputs: None)
    plain = repair_with(model, gap, **options)
    values = [float(gap.value(repair.model)) for repair in (found, plain)]
    assert max(values) <= 0.02 < float(gap.value(model))
    assert np.allclose(found.model[0].weight.detach(), plain.model[0].weight.detach(), atol=1e-2)
