"""Training within a memory limit, in lower precision and with channels last: same repair, fewer bytes."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn
from torch.autograd.graph import saved_tensors_hooks

from repairopt import ErrorRate, KeepLabels, Settings, SpecificationError, TrainThenCorrect, solve_repair
from repairopt.methods.training import two_sides
from repairopt.methods.training.activations import blocks_of, kept_by, lay_by_pixel, run_blocks_again


class Residual(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.inner = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Dropout(0.5), nn.Linear(4 * width, width))
        self.norm = nn.BatchNorm1d(width)

    def forward(self, x):
        return x + self.norm(self.inner(x))


def deep(blocks: int = 6, width: int = 8) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        layers = [nn.Linear(4, width), nn.Sequential(*(Residual(width) for _ in range(blocks))), nn.Linear(width, 3)]
        return nn.Sequential(*layers).eval()


@pytest.fixture
def rows():
    x = torch.randn(60, 4, generator=torch.Generator().manual_seed(0))
    return x, (x[:, 0] > 0).long() + (x[:, 1] > 0).long()


def test_blocks_in_a_row_are_found():
    model = deep()
    assert blocks_of(model) == list(model[1])
    assert blocks_of(nn.Sequential(nn.Linear(4, 4), nn.ReLU())) == []
    shared = Residual(4)
    assert blocks_of(nn.ModuleList([shared, shared])) == [shared]
    layer = nn.TransformerEncoderLayer(4, 1, 8, batch_first=True)
    assert len(blocks_of(nn.TransformerEncoder(layer, 3, enable_nested_tensor=False))) == 3


def saved(model, x) -> int:
    """Bytes that autograd itself keeps, counted apart."""
    own = {parameter.data_ptr() for parameter in (*model.parameters(), *model.buffers())}
    sizes = {}

    def pack(tensor):
        if tensor.untyped_storage().data_ptr() not in own:
            sizes[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with saved_tensors_hooks(pack, lambda tensor: tensor):
        outputs = model(x)
    del outputs
    return sum(sizes.values())


def test_bytes_are_those_that_autograd_keeps_and_gradients_stay(rows):
    model, (x, y) = deep(), rows
    found = kept_by(model, x)
    assert found.plain == pytest.approx(saved(model, x) / len(x), rel=0.02)
    one = kept_by(deep(1), x)
    more = kept_by(deep(7), x)
    assert more.plain - one.plain > 4 * (more.again - one.again)  # a further block costs what it is given alone
    assert one.again <= found.again <= found.plain / 2
    again = copy.deepcopy(model)
    run_blocks_again(blocks_of(again))
    gradients = []
    for network in (model, again):
        nn.functional.cross_entropy(network(x), y).backward()
        gradients.append([parameter.grad for parameter in network.parameters()])
    assert all(torch.equal(a, b) for a, b in zip(*gradients, strict=True))
    assert saved(again, x) < saved(model, x) / 3


def test_a_repair_in_little_memory_is_the_same(rows, monkeypatch):
    model, (x, y) = deep(), rows
    runs = []
    monkeypatch.setattr(
        two_sides, "run_blocks_again", lambda blocks: (runs.append(len(blocks)), run_blocks_again(blocks))
    )
    found = []
    for limit in (2**30, int(2 * 12 * kept_by(model, x).plain)):
        settings = Settings(memory_limit=limit)
        given = {
            "weights": "all",
            "method": TrainThenCorrect(epochs=1, batch=32),
            "data": [(x, y)],
            "settings": settings,
        }
        found.append(solve_repair(model, ErrorRate(x, y, target=0.2), **given))
        assert bool(runs) == (limit < 2**30)
    assert set(runs) == {6}
    first, second = (torch.cat([p.flatten() for p in one.model.parameters()]) for one in found)
    torch.testing.assert_close(first, second, rtol=1e-3, atol=1e-3)
    before = dict(model.named_buffers())
    for one in found:
        assert all(torch.equal(before[name], value) for name, value in one.model.named_buffers())


@pytest.mark.parametrize("fast", [{"precision": "bfloat16"}, {"channels_last": True}], ids=str)
def test_quick_passes_propose_and_the_network_counts_in_its_own_precision(fast):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        convolutions = nn.Conv2d(1, 6, 3, padding=1), nn.ReLU(), nn.Conv2d(6, 6, 3, padding=1), nn.ReLU()
        model = nn.Sequential(*convolutions, nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(24, 3)).eval()
        x = torch.randn(60, 1, 6, 6)
    y = (x.mean((1, 2, 3)) > 0).long() + (x[:, 0, :3].mean((1, 2)) > 0).long()
    precisions = []

    def note(module, given, output):
        precisions.append((output.dtype, torch.is_grad_enabled()))

    model[2].register_forward_hook(note)
    right = model(x).argmax(1) == y
    goal, keep = ErrorRate(x[~right], y[~right], target=0.3), KeepLabels(x[right], y[right], tolerance=0.0)
    found = solve_repair(model, goal, [keep], weights="all", method=TrainThenCorrect(epochs=2, **fast), data=[(x, y)])
    assert found.report.verification.goal_after < 0.5
    assert next(found.model.parameters()).dtype == torch.float32
    after = found.model(x).argmax(1)
    assert float((after != y)[~right].double().mean()) == found.report.verification.goal_after
    assert int((after != y)[right].sum()) == found.report.verification.checks[0].failed
    wanted = torch.bfloat16 if "precision" in fast else torch.float32
    assert {dtype for dtype, learns in precisions if not learns} == {torch.float32}
    assert wanted in {dtype for dtype, learns in precisions if learns}


class Viewed(nn.Module):
    """What many networks do between convolutions and linear layers, which asks for one channel after the other."""

    def forward(self, x):
        return x.view(len(x), -1)


@pytest.mark.parametrize("between", [nn.Flatten, Viewed])
def test_weights_of_convolutions_lie_by_pixel_where_the_network_runs_so(between):
    model = nn.Sequential(nn.Conv2d(2, 4, 3), nn.ReLU(), between(), nn.Linear(64, 2))
    x = torch.randn(5, 2, 6, 6)
    before = model(x)
    lay_by_pixel(model, x)
    assert model[0].weight.is_contiguous() == (between is Viewed)
    torch.testing.assert_close(model(x), before)


def test_wrong_choices_are_named(rows):
    x, y = rows
    for wrong in ({"precision": "half"}, {"channels_last": 1}):
        with pytest.raises(SpecificationError, match=f"TrainThenCorrect: {next(iter(wrong))}="):
            TrainThenCorrect(**wrong)
    plain = {"weights": "all", "method": TrainThenCorrect(epochs=1)}
    solve_repair(deep(1).double(), ErrorRate(x, y), **plain)  # data of another precision are converted
    with pytest.raises(SpecificationError, match="the network is torch.float64; expected float32"):
        solve_repair(
            deep(1).double(), ErrorRate(x, y), weights="all", method=TrainThenCorrect(precision="bfloat16", epochs=1)
        )
