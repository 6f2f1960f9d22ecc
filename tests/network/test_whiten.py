"""White coordinates of a last layer: an exact pair of maps, in which the features' second moment is the unit."""

import numpy as np
import pytest
import torch

from repairopt.network import Engine, whitening
from repairopt.network.whiten import RIDGE

LAST = {"4.weight": torch.arange(18)}
WITH_BIAS = {**LAST, "4.bias": torch.arange(3)}


@pytest.fixture
def lopsided_inputs(small_inputs):
    """Features of very different sizes that depend on each other."""
    return small_inputs.repeat(20, 1) * torch.tensor([10.0, 1.0, 0.1, 0.1]).double() + small_inputs.repeat(20, 1)[:, :1]


@pytest.mark.parametrize("indices", [LAST, WITH_BIAS], ids=["weight", "weight and bias"])
def test_to_white_coordinates_and_back(small_net, lopsided_inputs, indices):
    engine = Engine(small_net, indices)
    white = whitening(engine, [lopsided_inputs])
    delta = np.random.default_rng(0).normal(size=engine.n)
    assert np.allclose(white.colored(white.whitened(delta)), delta, rtol=1e-9, atol=1e-12)
    assert np.allclose(white.whitened(white.colored(delta)), delta, rtol=1e-9, atol=1e-12)
    assert np.allclose(white.root @ white.inverse, np.eye(len(white.root)), atol=1e-9)
    slope = np.random.default_rng(1).normal(size=engine.n)
    assert white.pulled(slope) @ delta == pytest.approx(slope @ white.colored(delta)), "the transpose of colored"


@pytest.mark.parametrize("indices", [LAST, WITH_BIAS], ids=["weight", "weight and bias"])
def test_features_become_white(small_net, lopsided_inputs, indices):
    engine = Engine(small_net, indices)
    parts = [lopsided_inputs[:200], lopsided_inputs[200:]]
    white = whitening(engine, parts)
    features = small_net[:4](lopsided_inputs).detach().numpy()
    if len(indices) == 2:
        features = np.hstack([features, np.ones((len(features), 1))])
    moment = features.T @ features / len(features)
    assert np.linalg.cond(moment) > 100, "there was something to whiten"
    damped = moment + RIDGE * np.trace(moment) / len(moment) * np.eye(len(moment))
    assert np.allclose(white.root @ damped @ white.root.T, np.eye(len(moment)), atol=1e-9)
    sizes = np.linalg.eigvalsh(white.root @ moment @ white.root.T)
    assert sizes.max() <= 1.0 + 1e-9
    assert sizes.max() > 0.99


@pytest.mark.parametrize("indices", [LAST, WITH_BIAS], ids=["weight", "weight and bias"])
def test_a_unit_step_changes_the_outputs_by_one_on_average(small_net, lopsided_inputs, indices):
    engine = Engine(small_net, indices)
    white = whitening(engine, [lopsided_inputs])
    for place in range(engine.n):
        moved = engine.predict(white.colored(np.eye(engine.n)[place]))(lopsided_inputs)
        change = moved - engine.predict()(lopsided_inputs)
        assert float(change.square().sum(1).mean()) <= 1.0 + 1e-9
        assert int((change.abs().amax(0) > 1e-12).sum()) == 1, "of one output"


@pytest.mark.parametrize(
    "indices",
    [
        {"4.weight": torch.arange(17)},
        {"4.weight": torch.arange(18), "4.bias": torch.arange(2)},
        {"4.bias": torch.arange(3)},
        {"2.weight": torch.arange(48)},
    ],
    ids=["a part of the weights", "a part of the bias", "the bias alone", "a layer before"],
)
def test_other_choices_of_weights_have_no_white_coordinates(small_net, small_inputs, indices):
    assert whitening(Engine(small_net, indices), [small_inputs]) is None


def test_without_samples_there_is_nothing_to_go_by(small_net):
    assert whitening(Engine(small_net, LAST), []) is None
