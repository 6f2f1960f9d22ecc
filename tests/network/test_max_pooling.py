"""Max pooling in bounds: equal to the pool itself, tight where a window has one winner, repaired and proved."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from repairopt import Region, solve_repair
from repairopt.errors import UnsupportedError
from repairopt.network import Certifier, NetworkSteps, relax
from repairopt.report import Verdict

POOLS = {
    "2d": (nn.MaxPool2d(2), (3, 5, 6)),
    "2d, padding": (nn.MaxPool2d((3, 2), (2, 1), (1, 0)), (2, 5, 5)),
    "2d, ceil": (nn.MaxPool2d(3, 2, 1, ceil_mode=True), (2, 6, 4)),
    "2d, gaps": (nn.MaxPool2d(2, 1, dilation=(2, 1)), (2, 5, 4)),
    "1d": (nn.MaxPool1d(3, 2, padding=1), (2, 9)),
    "3d": (nn.MaxPool3d((1, 2, 2)), (1, 2, 4, 4)),
}


def network(pool: nn.Module, shape: tuple[int, ...]) -> nn.Sequential:
    flat = pool(torch.zeros(1, *shape)).numel()
    torch.manual_seed(1)
    return nn.Sequential(pool, nn.Flatten(), nn.Linear(flat, 3)).eval()


@pytest.mark.parametrize("name", POOLS)
def test_the_pool_is_copied_exactly_and_bounded(name: str) -> None:
    pool, shape = POOLS[name]
    model = network(pool, shape)
    steps = NetworkSteps(model, shape)
    x = torch.randn(200, *shape, dtype=torch.float64)
    with torch.no_grad():
        plain = model.double()(x)
        torch.testing.assert_close(steps.forward(x.flatten(1)), plain, atol=1e-12, rtol=1e-12)
        low, width = x[:8].flatten(1), 0.5
        bound = relax(steps, low, low + width).below(torch.eye(3).double(), steps.output)[0]
        inside = low[:, None] + width * torch.rand(8, 300, low.shape[1], dtype=torch.float64)
        values = model(inside.flatten(0, 1).unflatten(1, shape)).unflatten(0, (8, 300))
        exact = relax(steps, low, low).below(torch.eye(3).double(), steps.output)[0]
    assert bool((bound <= values.amin(1) + 1e-12).all())
    torch.testing.assert_close(exact, plain[:8], atol=1e-9, rtol=1e-9)


def test_a_window_with_one_winner_is_linear() -> None:
    steps = NetworkSteps(network(nn.MaxPool1d(4), (1, 4)), (1, 4))
    low = torch.tensor([[0.0, 0.1, 2.0, 0.3]], dtype=torch.float64)
    with torch.no_grad():
        both = torch.cat([torch.eye(3), -torch.eye(3)]).double()
        found = relax(steps, low, low + 0.5).below(both, steps.output)[0]
        ends = steps.forward(torch.cat([low, low + 0.5]))
    torch.testing.assert_close(found[0, :3], ends.amin(0))
    torch.testing.assert_close(-found[0, 3:], ends.amax(0))


def test_radius_of_a_network_with_max_pooling() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(1, 2, 2), nn.MaxPool2d(2, 1), nn.Flatten(), nn.Linear(8, 3)).double().eval()
    x = torch.rand(10, 1, 4, 4, dtype=torch.float64)
    certifier = Certifier(model, x, torch.zeros(10).long(), lower=-1e9, upper=1e9)
    with torch.no_grad():
        margins = certifier.margins(0.1, {})
        outputs = model((x[:, None] + 0.2 * torch.rand(10, 500, 1, 4, 4) - 0.1).flatten(0, 1)).unflatten(0, (10, 500))
    lead = outputs[..., :1] - outputs[..., 1:]
    assert bool((margins <= lead.amin(2).amin(1) + 1e-12).all())


def test_a_ball_is_repaired_and_checked() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(1, 3, 2), nn.ReLU(), nn.MaxPool2d(2, 1), nn.Flatten(), nn.Linear(12, 8), nn.ReLU(), nn.Linear(8, 3)
    ).eval()
    x = torch.rand(60, 1, 4, 4)
    label = int((model(x[:1]).argmax(1) + 1) % 3)
    repair = solve_repair(model, Region.label(x[0], 0.05, label, 3), data=(x, model(x).argmax(1)))
    assert repair.report.verdict is Verdict.REPAIRED
    assert repair.report.proof_verdict is not None
    assert repair.report.proof_verdict.status == "proved"
    near = (x[:1] + 0.1 * torch.rand(20_000, 1, 4, 4) - 0.05).clamp(0, 1)
    assert bool((repair.model(near).argmax(1) == label).all())


def test_pools_that_cannot_be_copied_are_named() -> None:
    class Gaps(nn.Module):
        def forward(self, x):
            return F.max_pool1d(x, 2, stride=1, padding=1, dilation=2).flatten(1)

    with pytest.raises(UnsupportedError, match=r"as it is used here, has no zonotope transformer.*max pooling"):
        NetworkSteps(Gaps(), (1, 6))
