"""Slices: a planted path gets the top scores, masks keep exactly their share, shapes of every kind of layer fit."""

from __future__ import annotations

import pytest
import torch
from sample_networks import Convolutional, Residual
from torch import nn

from repairopt import ErrorRate, SpecificationError
from repairopt.localize import LayerGraph, NNSlicer, Slicer, localize


def path_network() -> nn.Module:
    """Three layers of ones and zeros: class 1 reads input 0 through unit 2 and then unit 1."""
    model = nn.Sequential(nn.Linear(4, 5), nn.ReLU(), nn.Linear(5, 3), nn.ReLU(), nn.Linear(3, 2)).double()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(0.01 * torch.randn(parameter.shape).sign())
        model[0].weight[2, 0] = model[2].weight[1, 2] = model[4].weight[1, 1] = 1.0
    return model


@pytest.mark.parametrize("mode", ["sample", "set"])
def test_the_planted_path_gets_the_top_scores_and_masks_keep_their_share(mode):
    torch.manual_seed(3)
    model, data = path_network(), torch.rand(200, 4, dtype=torch.float64)
    wanted = data[data[:, 0] > 0.7]
    slicer = Slicer(LayerGraph(model, None, data[:3]), data, keep=0.3, mode=mode)
    found = slicer.slice(wanted, [1])
    for name, entry in (("0.weight", (2, 0)), ("2.weight", (1, 2)), ("4.weight", (1, 1))):
        score = found.scores[name]
        assert float(score[entry]) == float(score.max())
        assert int(found.masks[name].sum()) == round(0.3 * score.numel())
        assert bool(found.masks[name][entry])
    assert bool(found.neurons["0"][2])
    assert bool(found.neurons["2"][1])
    assert torch.equal(found.masks["2.bias"], found.neurons["2"])
    assert found.location().size == sum(int(mask.sum()) for mask in found.masks.values())


def test_as_a_localizer_it_chooses_the_path_of_the_wrong_answers():
    torch.manual_seed(3)
    model, data = path_network(), torch.rand(200, 4, dtype=torch.float64)
    data[:100, 0] = 0.0
    labels = model(data).argmax(1)
    labels[data[:, 0] > 0.5] = 0  # the path leads to wrong answers
    found = localize(model, NNSlicer(keep=0.2), goal=ErrorRate(data, labels))
    assert "0.weight" in found.indices
    assert 2 * 4 + 0 in found.indices["0.weight"].tolist()
    assert 1 * 5 + 2 in found.indices["2.weight"].tolist()
    assert localize(model, "nnslicer", goal=ErrorRate(data, labels)).size > 0


def test_scores_by_hand():
    model = nn.Sequential(nn.Linear(2, 2, bias=False), nn.ReLU(), nn.Linear(2, 1, bias=False)).double()
    with torch.no_grad():
        model[0].weight.copy_(torch.tensor([[1.0, -1.0], [2.0, 1.0]]))
        model[2].weight.copy_(torch.tensor([[1.0, -3.0]]))
    data = torch.tensor([[1.0, 0.0], [3.0, 2.0], [2.0, 1.0]], dtype=torch.float64)
    # units: (1, 2), (1, 8), (1, 5); means 1 and 5. Outputs -5, -23, -14; mean -14. Deviations of the second sample:
    # inputs (1, 1), units (0, 3), output -9. Output <- unit 1: -9 * -3 * 3 > 0. Unit 1 <- inputs: 3 * 2 * 1, 3 * 1 * 1.
    found = Slicer(LayerGraph(model, None, data), data, keep=1.0).slice(data[1:2], [0])
    assert found.scores["2.weight"].tolist() == [[0.0, 1.0]]
    assert found.scores["0.weight"].tolist() == [[0.0, 0.0], [1.0, 1.0]]


@pytest.mark.parametrize(("network", "shape"), [(Convolutional, (1, 6, 6)), (Residual, (4,))])
@pytest.mark.parametrize("scope", ["layer", "network"])
def test_masks_have_the_shapes_of_the_weights(network, shape, scope):
    model = network().eval()
    data = torch.randn(20, *shape)
    found = Slicer(LayerGraph(model, None, data[:3]), data, keep=0.5, scope=scope).slice(data[:10])
    parameters = dict(model.named_parameters())
    assert all(mask.shape == parameters[name].shape for name, mask in found.masks.items())
    weights = [mask for name, mask in found.masks.items() if mask.ndim > 1]
    assert sum(int(m.sum()) for m in weights) == pytest.approx(0.5 * sum(m.numel() for m in weights), abs=len(weights))


def test_networks_and_settings_that_slicing_does_not_know_are_refused():
    lstm = nn.Sequential(nn.Embedding(5, 3), nn.Flatten(), nn.Linear(12, 2))
    with pytest.raises(SpecificationError, match="dense and convolutional layers alone; '0.weight'"):
        Slicer(LayerGraph(lstm, None, torch.zeros(3, 4).long()), torch.zeros(3, 4).long())
    graph = LayerGraph(path_network(), None, torch.rand(3, 4))
    for wrong in ({"keep": 0.0}, {"mode": "other"}, {"scope": "other"}):
        with pytest.raises(SpecificationError, match=next(iter(wrong))):
            Slicer(graph, torch.rand(5, 4), **wrong)
