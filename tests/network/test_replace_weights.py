"""Parameters replaced for one run: the outputs of ``functional_call``, ties kept, everything put back."""

import warnings

import pytest
import torch
from torch import nn
from torch.func import functional_call, jvp, vmap

from repairopt.network import Engine
from repairopt.network.replace_weights import Replaceable


class Tied(nn.Module):
    """The same weight in two places."""

    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Linear(4, 4), nn.Linear(4, 4)
        self.second.weight = self.first.weight
        self.last = nn.Linear(4, 3)

    def forward(self, x):
        return self.last(torch.relu(self.second(torch.relu(self.first(x)))))


@pytest.fixture
def given():
    torch.manual_seed(0)
    model, x = Tied(), torch.randn(7, 4)
    other = torch.randn(4, 4)
    wanted = functional_call(model, {"first.weight": other}, (x,)).detach()
    before = model(x).detach()
    replaceable = Replaceable(model, {"weight": model.first.weight, "bias": model.last.bias})
    return replaceable, x, other, wanted, before


def test_the_outputs_are_those_of_functional_call(given):
    runs, x, other, wanted, before = given
    assert torch.equal(runs.run({"weight": other}, (x,)), wanted)
    assert torch.equal(runs.run({}, (x,)), before)
    assert torch.equal(runs.module(x), before), "put back"
    assert runs.module.first.weight is runs.module.second.weight


def test_gradients_go_to_what_was_given_and_nowhere_else(given):
    runs, x, other, _, _ = given
    assert not runs.run({}, (x,)).requires_grad
    leaf = other.clone().requires_grad_()
    runs.run({"weight": leaf}, (x,)).sum().backward()
    assert bool(leaf.grad.abs().sum() > 0)
    assert all(parameter.grad is None for parameter in runs.module.parameters())


def test_what_raises_leaves_the_parameters_as_they_were(given):
    runs, x, other, _, before = given
    with pytest.raises(RuntimeError):
        runs.run({"weight": other[:, :2]}, (x,))
    assert torch.equal(runs.module(x), before)


def test_it_works_inside_vmap_and_in_forward_mode(given):
    runs, x, other, _, _ = given

    def run(weight):
        return runs.run({"weight": weight}, (x,))

    many = torch.stack([other, 2 * other, -other])
    assert torch.allclose(vmap(run)(many), torch.stack([run(one) for one in many]), atol=1e-6)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # torch's own, on the first use of forward mode
        _, slope = jvp(run, (other,), (torch.ones_like(other),))
    step = 1e-3
    near = (run(other + step) - run(other - step)) / (2 * step)
    assert torch.allclose(slope, near, atol=1e-2)


def test_recurrent_layers_are_left_to_functional_call():
    torch.manual_seed(0)
    model, x = nn.LSTM(3, 4, batch_first=True), torch.randn(2, 5, 3)
    parameters, other = dict(model.named_parameters()), torch.randn(16, 3)
    wanted = functional_call(model, {"weight_ih_l0": other}, (x,))[0].detach()
    runs = Replaceable(model, {"weight": model.weight_ih_l0})
    assert all(model.get_parameter(name) is parameter for name, parameter in parameters.items()), "nothing was done"
    leaf = other.clone().requires_grad_()
    found = runs.run({"weight": leaf}, (x,))[0]
    assert torch.allclose(found, wanted, atol=1e-6)
    found.sum().backward()
    assert bool(leaf.grad.abs().sum() > 0)
    assert all(parameter.grad is None for parameter in parameters.values())


def test_the_users_model_keeps_its_parameters():
    torch.manual_seed(0)
    model, x = Tied(), torch.randn(7, 4)
    before = {name: (parameter, parameter.clone()) for name, parameter in model.named_parameters()}
    engine = Engine(model, {"first.weight": torch.arange(16)})
    engine.outputs(x, torch.ones(16))
    for name, parameter in model.named_parameters():
        assert parameter is before[name][0]
        assert parameter.requires_grad
        assert torch.equal(parameter, before[name][1])
