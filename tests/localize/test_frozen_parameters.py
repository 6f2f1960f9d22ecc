"""Parameters that the user has frozen change only where they are named."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from repairopt import ErrorRate, KeepLabels, SpecificationError, solve_repair
from repairopt.localize import CARE, DeepFault, Gradient, Layers, Neurons, frozen_parameters, localize


def network(*frozen: int) -> nn.Sequential:
    torch.manual_seed(0)
    made = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 3))
    for layer in frozen:
        made[layer].requires_grad_(False)
    return made


X = torch.randn(120, 4, generator=torch.Generator().manual_seed(1))
Y = (X[:, :3] + 0.5 * X[:, 1:].abs()).argmax(1)
GOAL = ErrorRate(X, Y, target=0.1)


@pytest.mark.parametrize(
    "how",
    ["all", "last", "auto", "gradient", "care", "deepfault", CARE(count=5), Gradient(20), DeepFault(), ["all", "last"]],
    ids=str,
)
def test_a_choice_that_names_no_parameter_leaves_out_what_is_frozen(how):
    found = localize(network(0), how, goal=GOAL)
    assert found.indices
    assert not {"0.weight", "0.bias"} & set(found.indices)


@pytest.mark.parametrize("how", ["0", "0.weight", "0*", Layers("0"), Neurons("0", [1], "incoming"), {"0.bias": [1]}])
def test_what_is_named_may_change(how):
    assert {"0.weight", "0.bias"} & set(localize(network(0), how, goal=GOAL).indices)


def test_a_network_frozen_as_a_whole_is_one_that_is_ready_for_use():
    model = network(0, 2, 4)
    assert frozen_parameters(model) == frozenset()
    assert len(localize(model, "all").indices) == 6


def test_a_frozen_last_layer_is_named():
    with pytest.raises(SpecificationError, match=r"'last' means 4.weight, 4.bias, which .* has frozen"):
        localize(network(4), "last")


@pytest.mark.parametrize("frozen", [(0,), (4,)], ids=str)
@pytest.mark.parametrize("tolerance", [0.0, 0.1])
def test_a_repair_by_default_leaves_frozen_layers_as_they_are(frozen, tolerance):
    model = network(*frozen)
    right = model(X).argmax(1) == Y
    wrong = (~right).nonzero()[:3, 0]
    repair = solve_repair(model, ErrorRate(X[wrong], Y[wrong]), [KeepLabels(X[right], Y[right], tolerance=tolerance)])
    before, after = model.state_dict(), repair.model.state_dict()
    names = [f"{layer}.{kind}" for layer in frozen for kind in ("weight", "bias")]
    assert all(torch.equal(before[name], after[name]) for name in names)
    assert int((repair.model(X[wrong]).argmax(1) == Y[wrong]).sum()) > 0
