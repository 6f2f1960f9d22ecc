"""Products of rows, layer by layer, are those of the rows; changes in their metric are the least."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from repairopt.network import Engine, LayerRows, LayersOfRows, layer_rows, sample_rows
from repairopt.network.layer_rows import Metric


class Sequences(nn.Module):
    """Linear layers over positions, one of them in place behind, and an attention-like mean."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.act, self.last = nn.Linear(3, 5), nn.ReLU(inplace=True), nn.Linear(5, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.last(self.act(self.first(x.view(len(x), 4, 3))).mean(1))


def convolutions() -> nn.Module:
    return nn.Sequential(
        nn.Unflatten(1, (1, 3, 4)),
        nn.Conv2d(1, 4, (3, 1), padding="same"),
        nn.BatchNorm2d(4),
        nn.ReLU(inplace=True),
        nn.Conv2d(4, 6, 2, stride=2, padding=1, bias=False),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(36, 3),
    )


def built(build) -> Engine:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = build().double().eval()
    indices = {name: torch.arange(p.numel()) for name, p in model.named_parameters()}
    return Engine(model, indices)


@pytest.mark.parametrize("build", [convolutions, Sequences], ids=["convolutions", "positions"])
@pytest.mark.parametrize("block", [40, 2**23])
@pytest.mark.parametrize("wide", [False, True])
def test_they_agree_with_the_rows_themselves(monkeypatch, build, block, wide):
    monkeypatch.setattr(layer_rows, "FLOATS", block)
    engine = built(build)
    draw = torch.Generator().manual_seed(1)
    x = torch.randn(7, 12, generator=draw).double()
    delta = 0.05 * torch.randn(engine.n, generator=draw).double()
    layers = LayersOfRows(engine)
    samples = torch.tensor([5, 1, 3])
    chosen = torch.tensor([[True, False, True], [True, True, True], [False, False, True]])
    if wide:  # more rows than the products of positions are worth
        samples, chosen = torch.arange(7), torch.ones(7, 3, dtype=torch.bool)
    parts = list(layers.rows(x, samples, delta, lambda out, part: 2 * out, lambda now, part: chosen[part]))
    rows = {name: LayerRows.joined([part for _, _, by in parts for part in [by[name]]]) for name in layers.layers}
    where = torch.cat([one for _, one, _ in parts])
    whole = sample_rows(engine, x, samples[where[:, 0]], 2 * torch.eye(3).double()[where[:, 1]], delta)
    norm = torch.cat(
        [
            torch.full((p.numel(),), "2." not in n or build is Sequences)
            for n, p in engine.caller.model.named_parameters()
        ]
    )  # of the batch normalization, which does not move
    whole = whole * norm
    now = torch.cat([one for one, _, _ in parts])
    assert torch.allclose(now, 2 * engine.predict(delta)(x)[samples[where[:, 0]], where[:, 1]])
    plain = {name: Metric(torch.ones(one.features.shape[2]).double()) for name, one in rows.items()}
    gram = sum(one.gram(plain[name]) for name, one in rows.items())
    assert torch.allclose(gram, whole @ whole.T)
    prices = torch.randn(len(whole), generator=draw).double()
    change = layers.change({name: one.combined(prices) for name, one in rows.items()}, plain)
    assert torch.allclose(change, prices @ whole)
    products = sum(one.times(layers.pieces(delta)[name]) for name, one in rows.items())
    assert torch.allclose(products, whole @ delta)
    metrics = layers.metrics([x], delta)
    white = sum(one.gram(metrics[name]) for name, one in rows.items())
    moved = layers.change({name: one.combined(prices) for name, one in rows.items()}, metrics)
    assert torch.allclose(whole @ moved, white @ prices)
    assert float(torch.linalg.eigvalsh(white)[0]) > -1e-8 * float(white.trace())


def test_layers_that_change_in_part_do_not_move():
    model = nn.Sequential(nn.Linear(4, 5), nn.ReLU(), nn.Linear(5, 5), nn.ReLU(), nn.Linear(5, 2))
    indices = {"0.weight": torch.arange(20), "2.weight": torch.arange(3), "4.weight": torch.arange(10)}
    layers = LayersOfRows(Engine(model, indices)).layers
    assert {name: bias for name, (_, bias) in layers.items()} == {"0": False, "4": False}
