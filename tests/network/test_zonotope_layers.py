"""Layers that zonotopes pass through, against equivalent networks; layers that they do not, by their messages."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from repairopt.errors import ModelError, SpecificationError, UnsupportedError
from repairopt.network import attack, attacked_radius, relaxation
from repairopt.network.sets.propagate_zonotope import TracedNetwork
from repairopt.network.sets.zonotope import certified_margin, certified_radius
from repairopt.network.sets.zonotope_layers import RELAXATIONS


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


@pytest.mark.parametrize("options", [{"stride": 2, "padding": 1}, {"dilation": 2}, {"groups": 2, "padding": "same"}])
def test_convolution_is_its_dense_matrix(options):
    conv = nn.Conv2d(2, 4, 3, **options).double()
    points = torch.eye(2 * 6 * 6, dtype=torch.float64).reshape(-1, 2, 6, 6)
    with torch.no_grad():
        bias = conv(torch.zeros(1, 2, 6, 6, dtype=torch.float64)).flatten()
        matrix = (conv(points).flatten(1) - bias).T
    last = nn.Linear(len(bias), 3).double()
    dense = nn.Linear(72, len(bias)).double()
    dense.load_state_dict({"weight": matrix, "bias": bias})
    inputs, labels = torch.rand(6, 2, 6, 6, dtype=torch.float64), torch.arange(6) % 3
    margins = [
        certified_margin(network.double(), inputs, labels, 0.1)
        for network in (
            nn.Sequential(conv, nn.ReLU(), nn.Flatten(), last),
            nn.Sequential(nn.Flatten(), dense, nn.ReLU(), last),
        )
    ]
    torch.testing.assert_close(*margins, rtol=1e-9, atol=1e-9)


def test_batch_normalization_is_its_folded_form():
    network = nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6), nn.ReLU(), nn.Linear(6, 3)).double()
    first, norm = network[0], network[1]
    norm.running_mean.uniform_(-0.3, 0.3)
    norm.running_var.uniform_(0.5, 2)
    nn.init.uniform_(norm.weight, -1.5, 1.5)
    scale = norm.weight / (norm.running_var + norm.eps).sqrt()
    folded = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), network[3]).double()
    folded[0].weight.data = scale[:, None].detach() * first.weight.detach()
    folded[0].bias.data = (scale * (first.bias - norm.running_mean) + norm.bias).detach()
    inputs, labels = torch.rand(8, 4, dtype=torch.float64), torch.arange(8) % 3
    network.train()  # bounds are for evaluation mode, and leave the mode alone
    margins = [certified_margin(net, inputs, labels, 0.2) for net in (network, folded)]
    torch.testing.assert_close(*margins, rtol=1e-9, atol=1e-9)
    assert network.training


class Cancelling(nn.Module):
    """Affine in truth: what the branches share cancels only if symbols keep their place."""

    def __init__(self) -> None:
        super().__init__()
        self.hidden, self.other, self.last = nn.Linear(4, 3), nn.Linear(4, 3), nn.Linear(4, 3)

    def forward(self, x):
        x = x.view(x.size(0), -1)
        shared, extra = F.relu(self.hidden(x)), F.relu(self.other(x))
        out = self.last(x) + shared + extra
        return 2 * (out - shared) - extra * 2 + 1


def test_branches_keep_their_symbols():
    network = Cancelling().double()
    plain = nn.Sequential(nn.Flatten(), network.last)
    inputs, labels = torch.rand(8, 2, 2, dtype=torch.float64), torch.arange(8) % 3
    bound = certified_margin(network, inputs, labels, 0.3)
    torch.testing.assert_close(bound, 2 * certified_margin(plain, inputs, labels, 0.3), rtol=1e-9, atol=1e-9)


class Calls(nn.Module):
    def __init__(self, function):
        super().__init__()
        self.function, self.last = function, nn.Linear(4, 2)

    def forward(self, x):
        return self.function(self.last, x)


def _hooked():
    layer = nn.Linear(4, 2)
    layer.register_forward_hook(lambda module, args, output: 2 * output)
    return nn.Sequential(layer)


@pytest.mark.parametrize(
    ("network", "message"),
    [
        (nn.Sequential(nn.Linear(4, 4), nn.Softshrink(), nn.Linear(4, 2)), r"layer '1' \(Softshrink\)"),
        (nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4, track_running_stats=False)), r"layer '1' \(BatchNorm1d\)"),
        (Calls(lambda last, x: last(torch.cat([x, x], 1)[:, :4])), "operation 'cat'"),
        (Calls(lambda last, x: last(1 / x)), "operation 'truediv'"),
        (Calls(lambda last, x: last(x * x)), "operation 'mul'"),
        (Calls(lambda last, x: last(F.dropout(x))), "operation 'dropout'"),
        (Calls(lambda last, x: last(x.T.T)), "operation 'getattr'"),
        (Calls(lambda last, x: last(x) if x.sum() > 0 else last(-x)), "cannot be traced"),
        (Calls(lambda last, x: last(x + torch.relu_(x))), "operation 'relu_'"),
        (Calls(lambda last, x: last(x)[:, 0]), "operation 'getitem'"),
        (_hooked(), r"layer '0' \(Linear\)"),
    ],
)
def test_what_has_no_transformer_is_named(network, message):
    with pytest.raises(UnsupportedError, match=message) as caught:
        certified_margin(network, torch.rand(2, 4), [0, 1], 0.1)
    assert "Calls" in str(caught.value) or "Sequential" in str(caught.value)


def test_operations_that_write_into_their_input_are_noticed():
    def forward(last, x):
        hidden = last(x)
        return F.relu(hidden, inplace=True) - 2 * hidden

    network = Calls(forward)
    nn.init.constant_(network.last.bias, -9.0)
    with pytest.raises(UnsupportedError, match="write into their input"):
        certified_margin(network, torch.rand(2, 4), [0, 1], 0.1)


def test_misuse_is_named():
    network, inputs = nn.Linear(4, 2), torch.rand(3, 4)
    for call, error, message in (
        (lambda: certified_margin(network, inputs + 1, [0, 1, 0], 0.1), SpecificationError, "not within the bounds"),
        (lambda: certified_margin(network, inputs, [0, 1, 2], 0.1), SpecificationError, "out of range"),
        (lambda: certified_margin(network, inputs, [0, 1, 0], -0.1), SpecificationError, "radius -0.1"),
        (lambda: certified_radius(network, inputs, [0, 1, 0], tol=0), SpecificationError, "tol 0"),
        (lambda: attacked_radius(network, inputs, [0, 1, 0], start=0), SpecificationError, "start 0"),
        (lambda: certified_margin(network, inputs, [0, 1, 0], 0.1, parameters={"w": inputs}), ModelError, "'w'"),
        (lambda: certified_margin(nn.Linear(4, 1), inputs, [0, 0, 0], 0.1), UnsupportedError, "k at least 2"),
    ):
        with pytest.raises(error, match=message):
            call()


def test_the_network_is_left_alone():
    class Shifted(nn.Module):
        def __init__(self):
            super().__init__()
            self.last = nn.Linear(4, 2)

        def forward(self, x):
            return self.last(x - torch.tensor([0.1, 0.2, 0.3, 0.4]))

    network = Shifted().train()
    before = {name: (value, value.clone()) for name, value in network.state_dict().items()}, sorted(vars(network))
    certified_radius(network, torch.rand(3, 4), [0, 1, 0])
    attack(network, torch.rand(3, 4), [0, 1, 0], 0.1)
    TracedNetwork(network)
    assert network.training
    assert sorted(vars(network)) == before[1]
    assert all(torch.equal(*pair) for pair in before[0].values())


class Squash(nn.Module):
    """A layer of a user: an odd function that torch.fx would look into."""

    def forward(self, x):
        return x / (1 + x.abs())


@pytest.fixture
def squash():
    """Its relaxation, for the module, the function and the method that compute the same."""
    before = dict(RELAXATIONS)

    @relaxation(Squash, F.softsign, "softsign", widens=True)
    def _softsign(call):
        low, high = call.z.center - call.z.spread, call.z.center + call.z.spread
        slope = torch.minimum((1 + low.abs()) ** -2, (1 + high.abs()) ** -2)
        above, below = call.run(high) - slope * high, call.run(low) - slope * low
        return call.band(slope, (above + below) / 2, (above - below) / 2)

    yield _softsign
    RELAXATIONS.clear()
    RELAXATIONS.update(before)


class Called(nn.Module):
    def __init__(self, first, last, function) -> None:
        super().__init__()
        self.first, self.last, self.function = first, last, function

    def forward(self, x):
        return self.last(self.function(self.first(x)))


def test_a_layer_of_ones_own_is_sound_as_module_function_and_of_a_subclass(squash):
    class Other(Squash):
        pass

    first, last = nn.Linear(3, 8).double(), nn.Linear(8, 3).double()
    inputs = torch.rand(10, 3, dtype=torch.float64)
    networks = [nn.Sequential(first, kind(), last) for kind in (Squash, Other)] + [Called(first, last, F.softsign)]
    labels = networks[0](inputs).argmax(1)
    margins = [certified_margin(network, inputs, labels, 0.05).detach() for network in networks]
    torch.testing.assert_close(margins[0], margins[1])
    torch.testing.assert_close(margins[0], margins[2])
    draws = (inputs + 0.1 * torch.rand(5000, 10, 3, dtype=torch.float64) - 0.05).clamp(0, 1)
    outputs = networks[0](draws).detach()
    own = outputs.gather(-1, labels.expand(5000, -1)[..., None])[..., 0]
    leads = (own - outputs.scatter(-1, labels.expand(5000, -1)[..., None], -torch.inf).amax(-1)).amin(0)
    assert bool((margins[0] <= leads + 1e-9).all())
    assert float((leads - margins[0]).max()) < 0.1  # a bound that is far off would be sound as well


def test_margins_through_a_layer_of_ones_own_can_be_differentiated(squash):
    network = nn.Sequential(nn.Linear(3, 6), Squash(), nn.Linear(6, 2)).double()
    inputs, labels = torch.rand(5, 3, dtype=torch.float64), torch.arange(5) % 2
    weight = network[0].weight.detach().clone().requires_grad_()

    def margin(value):
        return certified_margin(network, inputs, labels, 0.05, parameters={"0.weight": value}).sum()

    assert torch.autograd.gradcheck(margin, (weight,), atol=1e-4)


def test_a_relaxation_may_refuse_and_targets_are_checked(squash):
    relaxation(Squash)(lambda call: None)
    with pytest.raises(
        UnsupportedError, match=r"layer '1' \(Squash\), as it is used here, has no zonotope transformer"
    ):
        certified_margin(nn.Sequential(nn.Linear(3, 6), Squash(), nn.Linear(6, 2)), torch.rand(2, 3), [0, 1], 0.1)
    with pytest.raises(SpecificationError, match=r"relaxation: 3 is a int; expected a module type, a function, or"):
        relaxation(3)
