"""Certified margins and radii against closed forms, an independent implementation and searches for counterexamples."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from repairopt.errors import SpecificationError, UnsupportedError
from repairopt.network import Certifier, Search, attack, attacked_radius
from repairopt.network.sets import certifier as certifiers
from repairopt.network.sets.zonotope import certified_margin, certified_radius, last_layer_zonotope


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


class Residual(nn.Module):
    """Two branches that meet, batch normalization, functional layers."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.last = nn.Linear(5, 6), nn.Linear(6, 6), nn.Linear(6, 3)
        self.norm = nn.BatchNorm1d(6)
        self.register_buffer("mean", torch.rand(5))

    def forward(self, x):
        h = F.relu(self.norm(self.first((x - self.mean) / 0.5)))
        h = h + torch.relu(self.second(h))
        return self.last(F.dropout(h, training=self.training))


def mlp(*widths):
    layers = []
    for a, b in zip(widths, widths[1:], strict=False):
        layers += [nn.Linear(a, b), nn.ReLU()]
    return nn.Sequential(*layers[:-1])


def small_cnn():
    conv = [nn.Conv2d(1, 2, 3, padding=1), nn.BatchNorm2d(2), nn.ReLU(), nn.AvgPool2d(2), nn.Conv2d(2, 3, 2), nn.ReLU()]
    return nn.Sequential(*conv, nn.Flatten(), nn.Linear(3, 3))


def randomized(network, dtype=torch.float64):
    for module in network.modules():
        if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d):
            module.running_mean.uniform_(-0.3, 0.3)
            module.running_var.uniform_(0.5, 2)
            nn.init.uniform_(module.weight, -1.5, 1.5)
            nn.init.uniform_(module.bias, -0.5, 0.5)
        elif isinstance(module, nn.Linear | nn.Conv2d):
            nn.init.normal_(module.weight, std=1.5 / module.weight[0].numel() ** 0.5)
    return network.to(dtype).eval()


def true_margin(network, points, labels):
    with torch.no_grad():
        logits = network(points)
    own = logits.gather(1, labels[:, None])
    return (own - logits.scatter(1, labels[:, None], -torch.inf)).min(1).values


def samples_in_ball(inputs, radius, count):
    """Random points and corners of the balls within [0, 1], (N count, ...)."""
    noise = torch.rand(len(inputs), count, *inputs.shape[1:]) * 2 - 1
    noise[:, ::2] = noise[:, ::2].sign()
    radius = radius.reshape(-1, *[1] * inputs.ndim)
    return (inputs[:, None] + radius * noise.to(inputs)).clamp(0, 1).flatten(0, 1)


KINDS = {
    "one hidden layer": (lambda: mlp(4, 8, 3), (4,)),
    "three hidden layers": (lambda: mlp(3, 6, 6, 6, 2), (3,)),
    "two branches": (Residual, (5,)),
    "convolutions": (small_cnn, (1, 4, 4)),
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("kind", KINDS)
def test_no_counterexample_in_a_certified_ball(kind, dtype):
    make, shape = KINDS[kind]
    for seed in range(5):  # 4 kinds x 2 dtypes x 5 networks x 25 inputs = 1,000 cases
        torch.manual_seed(seed)
        network = randomized(make(), dtype)
        inputs = torch.rand(25, *shape, dtype=dtype)
        labels = network(inputs).argmax(1)
        radius = certified_radius(network, inputs, labels, tol=1e-4)
        assert bool((radius > 0).any())
        repeated = labels.repeat_interleave(40)
        assert (
            true_margin(network, samples_in_ball(inputs, radius, 40), repeated)[
                (radius > 0).repeat_interleave(40)
            ].min()
            > 0
        )
        _, found = attack(network, inputs, labels, radius, search=Search(steps=8, restarts=1))
        assert bool((found[radius > 0] > 0).all())
        wide = torch.rand(25).to(dtype) * 0.6  # also where nothing is certified, the margin is a lower bound
        bound = certified_margin(network, inputs, labels, wide).detach()
        seen = true_margin(network, samples_in_ball(inputs, wide, 40), repeated).reshape(25, 40).amin(1)
        assert bool((bound <= seen).all())
        _, seen = attack(network, inputs, labels, wide, search=Search(steps=8, restarts=1))
        assert bool((bound <= seen).all())


def closed_form(weight, bias, inputs, labels):
    """Radius of an affine network without bounds: smallest margin over the 1-norm of the weight difference."""
    gap = weight[labels][:, None] - weight[None]
    margins = torch.einsum("nkd,nd->nk", gap, inputs) + bias[labels][:, None] - bias
    return margins, gap.abs().sum(2)


def test_affine_network_is_exact():
    network = randomized(nn.Sequential(nn.Linear(6, 5), nn.BatchNorm1d(5), nn.Dropout(), nn.Linear(5, 4)))
    inputs = torch.randn(30, 6, dtype=torch.float64)
    with torch.no_grad():
        bias = network(torch.zeros(1, 6, dtype=torch.float64))[0]
        weight = (network(torch.eye(6, dtype=torch.float64)) - bias).T
        labels = network(inputs).argmax(1)
    margins, norms = closed_form(weight, bias, inputs, labels)
    other = ~F.one_hot(labels, 4).bool()
    free = {"lower": -torch.inf, "upper": torch.inf}
    before = margins.masked_fill(~other, torch.inf).amin(1)
    for radius in (0.0, 0.1, 0.5):
        expected = (margins - radius * norms).masked_fill(~other, torch.inf).amin(1)
        bound = certified_margin(network, inputs, labels, radius, **free).detach()
        torch.testing.assert_close(bound, expected, rtol=1e-10, atol=1e-10)
        assert bool((bound <= before + 1e-12).all())
        before = bound
    expected = (margins / norms).masked_fill(~other, torch.inf).amin(1).clamp(max=4.0)
    low = certified_radius(network, inputs, labels, tol=1e-4, start=0.01, max_radius=4.0, **free)
    search = Search(restarts=4)  # one run for each rival: exact on an affine network
    high = attacked_radius(network, inputs, labels, tol=1e-4, start=0.01, max_radius=8.0, search=search, **free)
    assert bool((low <= expected).all())
    assert bool((expected - low <= 1e-4).all())
    assert bool((high >= low).all())
    assert bool((high >= expected - 1e-9)[expected < 4.0].all())
    assert bool((high <= expected + 2e-4)[expected < 4.0].all())


def reference_margin(network, x, label, radius):
    """DeepZ for one input, neuron by neuron, in NumPy."""
    low, high = np.clip(x - radius, 0, 1), np.clip(x + radius, 0, 1)
    center, columns = (low + high) / 2, [row for row in np.diag((high - low) / 2)]
    for module in network:
        if isinstance(module, nn.Linear):
            weight = module.weight.detach().numpy()
            center, columns = weight @ center + module.bias.detach().numpy(), [weight @ g for g in columns]
            continue
        new = []
        for i in range(len(center)):
            reach = sum(abs(g[i]) for g in columns)
            bottom, top = center[i] - reach, center[i] + reach
            slope, shift = (1.0 if bottom >= 0 else 0.0), 0.0
            if bottom < 0 < top:
                slope = top / (top - bottom)
                shift = -slope * bottom / 2
                new.append(shift * np.eye(len(center))[i])
            center[i] = slope * center[i] + shift
            for g in columns:
                g[i] *= slope
        columns += new
    bounds = [
        center[label] - center[j] - sum(abs(g[label] - g[j]) for g in columns) for j in range(len(center)) if j != label
    ]
    return min(bounds)


def test_agrees_with_an_independent_implementation():
    network = randomized(mlp(5, 9, 7, 3))
    inputs, labels = torch.rand(12, 5, dtype=torch.float64), torch.arange(12) % 3
    radius = torch.linspace(0.01, 0.7, 12).double()
    bound = certified_margin(network, inputs, labels, radius).detach().numpy()
    expected = [reference_margin(network, inputs[i].numpy(), int(labels[i]), float(radius[i])) for i in range(12)]
    np.testing.assert_allclose(bound, expected, rtol=1e-9, atol=1e-9)


def test_margin_of_a_ball_is_below_the_margin_of_its_center():
    network = randomized(mlp(5, 9, 7, 3))
    inputs, labels = torch.rand(40, 5, dtype=torch.float64), torch.arange(40) % 3
    center = true_margin(network, inputs, labels)
    point = certified_margin(network, inputs, labels, 0.0).detach()
    torch.testing.assert_close(point, center, rtol=0, atol=1e-11)
    assert bool((certified_margin(network, inputs, labels, 0.05).detach() < center).all())


def test_every_slope_is_sound_and_least_area_is_the_default():
    network = randomized(mlp(4, 8, 8, 3))
    inputs = torch.rand(20, 4, dtype=torch.float64)
    labels, radius = network(inputs).argmax(1), torch.full((20,), 0.3).double()
    seen = (
        true_margin(network, samples_in_ball(inputs, radius, 100), labels.repeat_interleave(100))
        .reshape(20, -1)
        .amin(1)
    )
    bounds = [
        certified_margin(network, inputs, labels, radius, slope=slope).detach()
        for slope in (None, 0.0, 0.4, 1.0, {"1": torch.tensor(0.7)})
    ]
    for bound in bounds:
        assert bool((bound <= seen).all())
    assert all(bool((bounds[0] != bound).any()) for bound in bounds[1:])


@pytest.mark.parametrize("kind", KINDS)
def test_batches_pruning_and_kept_layers_change_nothing(kind):
    make, shape = KINDS[kind]
    network = randomized(make())
    inputs, labels = torch.rand(9, *shape, dtype=torch.float64), torch.arange(9) % 2
    whole = certified_margin(network, inputs, labels, 0.2)
    one_by_one = certified_margin(network, inputs, labels, 0.2, memory_limit=1)
    torch.testing.assert_close(one_by_one, whole, rtol=1e-10, atol=1e-10)

    name = list(dict(network.named_parameters()))[-4]
    other = {name: torch.randn_like(network.get_parameter(name))}
    certifier = Certifier(network, inputs, labels, changed=(name,))
    expected = certified_margin(network, inputs, labels, 0.2, parameters=other)
    for _ in range(2):
        torch.testing.assert_close(certifier.margins(0.2, other), expected, rtol=1e-10, atol=1e-10)
    with pytest.raises(SpecificationError, match="not in changed"):
        certifier.margins(0.2, {"unannounced": torch.zeros(1)})

    traced = certifier.traced
    ball = {traced.input: certifier.ball(certifier.as_radii(0.2), certifier.inputs)}
    loose, tight = (traced.run(traced.nodes, ball, {}, prune=prune)[traced.nodes[-1]] for prune in (False, True))
    torch.testing.assert_close(loose.spread, tight.spread, rtol=1e-10, atol=1e-10)
    assert loose.generators.shape[1] >= tight.generators.shape[1]


@pytest.mark.parametrize("tol", [1e-2, 1e-3, 3e-4])
def test_halvings_looked_at_together_end_where_single_ones_do(tol, monkeypatch):
    network = randomized(mlp(4, 6, 5, 3))
    inputs, labels = torch.rand(40, 4, dtype=torch.float64), torch.arange(40) % 3
    together = Certifier(network, inputs, labels).radii({}, tol=tol)
    monkeypatch.setattr(certifiers, "SMALL", 0)
    assert torch.equal(together, Certifier(network, inputs, labels).radii({}, tol=tol))
    assert 0 < (together > 0).sum() < 40  # of both kinds


def test_derivative_in_the_weights_is_the_difference_quotient():
    network = randomized(mlp(4, 6, 5, 3))
    inputs, labels = torch.rand(6, 4, dtype=torch.float64), torch.arange(6) % 3
    parameters = {name: value.detach().clone().requires_grad_() for name, value in network.named_parameters()}

    def total(values):
        return certified_margin(network, inputs, labels, 0.1, parameters=values).sum()

    slopes = torch.autograd.grad(total(parameters), list(parameters.values()))
    ways = {name: torch.randn_like(value) for name, value in parameters.items()}
    ends = [total({name: v + s * ways[name] for name, v in parameters.items()}) for s in (1e-6, -1e-6)]
    product = sum((slope * ways[name]).sum() for slope, name in zip(slopes, parameters, strict=True))
    assert float(product.detach()) == pytest.approx(float((ends[0] - ends[1]).detach()) / 2e-6, rel=1e-5)
    own = torch.autograd.grad(certified_margin(network, inputs, labels, 0.1).sum(), list(network.parameters()))
    for a, b in zip(own, slopes, strict=True):
        torch.testing.assert_close(a, b)


def test_last_layer_gives_the_margin_and_valid_cuts():
    network = randomized(mlp(4, 7, 3))
    inputs, labels = torch.rand(5, 4, dtype=torch.float64), torch.arange(5) % 3
    last = last_layer_zonotope(network, inputs, 0.2)
    assert last.name == "2"
    for weight in (network[2].weight.detach(), torch.randn(3, 7, dtype=torch.float64)):
        given = {"2.weight": weight, "2.bias": torch.zeros(3, dtype=torch.float64)}
        gaps = weight[labels][:, None] - weight
        values, points = last.lowest(gaps)
        expected = certified_margin(network, inputs, labels, 0.2, parameters=given)
        own = F.one_hot(labels, 3).bool()
        torch.testing.assert_close(values.masked_fill(own, torch.inf).amin(1), expected, rtol=1e-9, atol=1e-9)
        torch.testing.assert_close((points * gaps).sum(2), values)
        elsewhere = torch.randn(5, 3, 7, dtype=torch.float64)
        assert bool((last.lowest(elsewhere)[0] <= (points * elsewhere).sum(2) + 1e-12).all())
    with pytest.raises(UnsupportedError, match="expected a Linear module"):
        last_layer_zonotope(nn.Sequential(nn.Linear(4, 3), nn.ReLU()).double(), inputs, 0.2)


def test_radius_is_certified_and_zero_for_wrong_inputs():
    network = randomized(mlp(4, 8, 3))
    inputs = torch.rand(20, 4, dtype=torch.float64)
    right = network(inputs).argmax(1)
    radius = certified_radius(network, inputs, right, tol=1e-3)
    assert bool((certified_margin(network, inputs, right, radius) > 0)[radius > 0].all())
    assert bool((certified_radius(network, inputs, (right + 1) % 3) == 0).all())
    assert bool((attacked_radius(network, inputs, (right + 1) % 3) == 0).all())
    constant = nn.Linear(4, 2).double()
    constant.load_state_dict({"weight": torch.zeros(2, 4), "bias": torch.tensor([1.0, 0.0])})
    zeros = torch.zeros(20, dtype=torch.int64)
    assert certified_radius(constant, inputs, zeros, max_radius=0.7).tolist() == [0.7] * 20
    assert bool(attacked_radius(constant, inputs, zeros).isinf().all())
