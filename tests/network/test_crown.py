"""Backward bounds: below every value, tight where they say so, cuts for all weights of the last layer."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from repairopt.errors import UnsupportedError
from repairopt.network import (
    Certifier,
    LastLayer,
    Leaves,
    NetworkSteps,
    RowGroups,
    own_last_layer,
    relax,
    relax_in_parts,
)


def chain(seed: int, inputs: int = 3) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(inputs, 12), nn.ReLU(), nn.Linear(12, 10), nn.ReLU(), nn.Linear(10, 4))


class Residual(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.inner, self.last = nn.Linear(3, 8), nn.Linear(8, 8), nn.Linear(8, 4)

    def forward(self, x):
        x = torch.relu(self.first(x))
        return self.last(torch.relu(self.inner(x)) + x)


def convolutional() -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(1, 3, 3, padding=1),
        nn.BatchNorm2d(3),
        nn.ReLU(),
        nn.AvgPool2d(2),
        nn.Flatten(),
        nn.Linear(12, 6),
        nn.ReLU(),
        nn.Linear(6, 4),
    ).eval()


class Pooled(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Conv2d(1, 2, 2), nn.Linear(4, 4)

    def forward(self, x):
        x = nn.functional.max_pool2d(torch.tanh(self.first(x)), (2, 3), stride=(2, 1), padding=1)
        return self.last(nn.functional.max_pool1d(x.flatten(2), 3, stride=2, ceil_mode=False).flatten(1))


def pooled() -> nn.Sequential:
    """Max pooling with and without padding, of windows that overlap."""
    return nn.Sequential(
        nn.Conv2d(1, 3, 2),
        nn.MaxPool2d(2, stride=1),
        nn.MaxPool2d(3, stride=2, padding=1),
        nn.Flatten(),
        nn.Linear(12, 6),
        nn.ReLU(),
        nn.Unflatten(1, (2, 3)),
        nn.MaxPool1d(2, stride=2, ceil_mode=True),
        nn.Flatten(),
        nn.Linear(4, 4),
    )


CASES = {
    "chain": (lambda: chain(0), (3,)),
    "residual": (Residual, (3,)),
    "convolutional": (convolutional, (1, 4, 4)),
    "max pooling": (pooled, (1, 5, 5)),
    "max pooling by functions": (Pooled, (1, 4, 4)),
    "activation last": (lambda: nn.Sequential(nn.Linear(3, 4), nn.ReLU()), (3,)),
    "affine": (lambda: nn.Sequential(nn.Flatten(), nn.Linear(3, 4)), (3,)),
}


def some_boxes(size: int, count: int = 6) -> tuple[torch.Tensor, torch.Tensor]:
    draw = torch.Generator().manual_seed(3)
    middle = 2 * torch.rand(count, size, generator=draw, dtype=torch.float64) - 1
    half = 0.5 * torch.rand(count, 1, generator=draw, dtype=torch.float64)
    return middle - half, middle + half


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("alternatives", [1, 3])
def test_bounds_are_below_every_value(name: str, alternatives: int) -> None:
    torch.manual_seed(1)
    make, shape = CASES[name]
    model = make()
    network = NetworkSteps(model, shape)
    low, high = some_boxes(network.size(0))
    with torch.no_grad():
        boxes = relax(network, low, high, alternatives=alternatives)
        directions = torch.randn(5, 4, dtype=torch.float64)
        bound = boxes.below(directions, network.output)[0]
        x = low[:, None] + (high - low)[:, None] * torch.rand(len(low), 500, low.shape[1], dtype=torch.float64)
        outputs = network.forward(x.flatten(0, 1))
        plain = model.double()(x.flatten(0, 1).unflatten(1, shape))
    torch.testing.assert_close(outputs, plain)
    values = (outputs @ directions.T).unflatten(0, (len(low), 500)).amin(1)
    assert bool((bound <= values + 1e-12).all())
    assert bool((bound > values - 100).all())


@pytest.mark.parametrize("seed", range(20))
def test_cuts_hold_for_all_weights_of_the_last_layer(seed: int) -> None:
    network = NetworkSteps(chain(seed), (3,))
    low, high = some_boxes(3)
    with torch.no_grad():
        boxes = relax(network, low, high, alternatives=1)
        last, _, _ = own_last_layer(network)
        rows = torch.randn(5, 4, dtype=torch.float64)
        value, features = boxes.lowest(rows @ last.weight)
        torch.testing.assert_close(value, (features * (rows @ last.weight)).sum(-1), atol=1e-12, rtol=1e-12)
        other = rows @ (last.weight + torch.randn_like(last.weight))
        assert bool((boxes.lowest(other)[0] <= (features * other).sum(-1) + 1e-12).all())


@pytest.mark.parametrize("name", ["chain", "residual"])
def test_single_precision_gives_the_same_bounds_and_small_boxes_go_without_it(name: str) -> None:
    made, shape = CASES[name]
    network = NetworkSteps(made(), shape)
    low, high = some_boxes(3)
    for width in (1.0, 1e-7):
        with torch.no_grad():
            upper = low + width * (high - low)
            exact, rough = (relax_in_parts(network, low, upper, single=single).intervals for single in (False, True))
        for index, pair in exact.items():
            assert rough[index][0].dtype == torch.float64
            largest = max(float(side.abs().max()) for side in pair)
            worst = max(float((a - b).abs().max()) for a, b in zip(pair, rough[index], strict=True))
            assert worst <= 1e-5 * largest if width == 1.0 else worst == 0.0
    assert network.in_single() is not None
    smooth = NetworkSteps(nn.Sequential(nn.Linear(3, 2), nn.Tanh(), nn.Linear(2, 2)), (3,))
    assert smooth.in_single() is None, "other activations stay in double precision"


def test_halves_inherit_bounds_and_splitting_proves() -> None:
    network = NetworkSteps(chain(2), (3,))
    low, high = some_boxes(3, 2)
    rows = RowGroups.of([([[1.0, 0, 0, 0]], [-50.0], [0])] * 2)
    with torch.no_grad():
        last = own_last_layer(network)[0]
        leaves = Leaves.of(network, low, high, rows, torch.arange(2))
        halves = leaves.halves(torch.tensor([0, 2]))
    assert float(halves.volume().sum()) == 2.0
    for index, (below, above) in halves.boxes.intervals.items():
        before = leaves.boxes.intervals[index]
        assert bool((below >= before[0].repeat(2, 1) - 1e-12).all())
        assert bool((above <= before[1].repeat(2, 1) + 1e-12).all())
    assert bool((halves.least(last) > 0).all())
    assert isinstance(last, LastLayer)


def test_bounds_have_derivatives_in_all_weights() -> None:
    model = chain(0)
    network = NetworkSteps(model, (3,))
    own = {name: p.detach().double().requires_grad_() for name, p in model.named_parameters()}
    low, high = some_boxes(3)
    network.refresh(own)
    bound = relax(network, low, high).below(torch.eye(4).double(), network.output)[0]
    slopes = torch.autograd.grad(bound.sum(), list(own.values()))
    assert all(bool(slope.abs().max() > 0) for slope in slopes)


def test_a_layer_without_relaxation_is_named() -> None:
    with pytest.raises(UnsupportedError, match=r"Softshrink.*Supported"):
        NetworkSteps(nn.Sequential(nn.Linear(3, 3), nn.Softshrink(), nn.Linear(3, 2)), (3,))


ACTIVATIONS = {
    "tanh": nn.Tanh(),
    "sigmoid": nn.Sigmoid(),
    "gelu": nn.GELU(),
    "gelu, tanh": nn.GELU(approximate="tanh"),
    "silu": nn.SiLU(),
    "softplus": nn.Softplus(beta=2.0),
    "elu": nn.ELU(),
    "leaky": nn.LeakyReLU(0.1),
    "relu6": nn.ReLU6(),
    "hardtanh": nn.Hardtanh(-0.5, 0.7),
}


@pytest.mark.parametrize("name", ACTIVATIONS)
@pytest.mark.parametrize("width", [1e-9, 0.3, 4.0, 40.0])
def test_activations_stay_between_their_lines_and_in_zonotopes(name: str, width: float) -> None:
    torch.manual_seed(2)
    model = nn.Sequential(nn.Linear(2, 6), ACTIVATIONS[name], nn.Linear(6, 5), ACTIVATIONS[name], nn.Linear(5, 3))
    network = NetworkSteps(model, (2,))
    low = 3 * torch.randn(8, 2, dtype=torch.float64)
    high = low + width
    certifier = Certifier(model.double(), (low + high) / 2, torch.zeros(8).long(), lower=-1e9, upper=1e9)
    with torch.no_grad():
        x = low[:, None] + width * torch.rand(8, 2000, 2, dtype=torch.float64)
        x[:, 0], x[:, 1] = low, high
        outputs = network.forward(x.flatten(0, 1)).unflatten(0, (8, 2000))
        bound = relax(network, low, high).below(torch.eye(3).double(), network.output)[0]
        margins = certifier.margins(width / 2, {})
    assert bool((bound <= outputs.amin(1) + 1e-12).all())
    assert bool((margins <= (outputs[..., :1] - outputs[..., 1:]).amin(2).amin(1) + 1e-12).all())
    if width < 1:
        assert bool((outputs.amin(1) - bound < 3 * width).all())


@pytest.mark.parametrize("name", ["chain", "residual", "max pooling"])
def test_optimized_lines_raise_bounds_and_stay_sound(name: str) -> None:
    torch.manual_seed(5)
    make, shape = CASES[name]
    network = NetworkSteps(make(), shape)
    low, high = some_boxes(network.size(0))
    rows = RowGroups.of([([[1.0, -1, 0, 0], [0, 0, 1, 1]], [0.0, 0.1], [0, 1])] * len(low))
    with torch.no_grad():
        last, matrix, offset = own_last_layer(network)
        leaves = Leaves.of(network, low, high, rows.through(matrix, offset), torch.arange(len(low)))
        before, sharp = leaves.least(last), leaves.sharpened(last, 20)
        after = sharp.least(last)
        x = low[:, None] + (high - low)[:, None] * torch.rand(len(low), 2000, low.shape[1], dtype=torch.float64)
        where = torch.arange(len(low)).repeat_interleave(2000)
        values = rows.least(rows.values(network.forward(x.flatten(0, 1)), where), where).unflatten(0, (len(low), 2000))
        other = LastLayer(last.weight + 0.3 * torch.randn_like(last.weight), last.bias)
        cuts = sharp.cuts(last)
        elsewhere = (rows.matrix @ other.weight * cuts.features).sum(-1) + rows.matrix @ other.bias - rows.offset
    assert bool((after >= before).all())
    assert bool((after > before + 1e-6).any())
    assert bool((after <= values.amin(1) + 1e-12).all())
    assert bool((sharp.bounds(other) <= elsewhere + 1e-12).all()), "cuts hold for all weights of the last layer"
    both = sharp[:2].join(leaves[2:])
    torch.testing.assert_close(both.least(last), torch.cat([after[:2], before[2:]]))
