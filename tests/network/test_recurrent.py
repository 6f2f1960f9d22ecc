"""Recurrent layers step by step: what torch's own layers give, and derivatives of all samples in one pass."""

import time

import pytest
import torch
from torch import nn

from repairopt.network import Engine, pull_back, sample_rows
from repairopt.network.recurrent import in_steps

KINDS = {
    "LSTM": (nn.LSTM, {}),
    "GRU": (nn.GRU, {"batch_first": True}),
    "tanh": (nn.RNN, {"num_layers": 2}),
    "relu": (nn.RNN, {"nonlinearity": "relu", "bias": False}),
    "two ways": (nn.LSTM, {"bidirectional": True, "num_layers": 2, "batch_first": True}),
    "GRU two ways": (nn.GRU, {"bidirectional": True, "num_layers": 3}),
}


@pytest.mark.parametrize("started", [False, True])
@pytest.mark.parametrize("name", KINDS)
def test_steps_give_what_the_layer_gives(name, started):
    kind, options = KINDS[name]
    layer, x = kind(3, 4, **options).double(), torch.randn(5, 6, 3).double()
    count = layer.num_layers * (1 + layer.bidirectional)
    state = torch.randn(count, 5 if layer.batch_first else 6, 4).double() if started else None
    given = (state, state + 1) if started and kind is nn.LSTM else state
    output, end = layer(x, given)
    with in_steps(layer):
        stepped, last = layer(x, given)
    assert torch.allclose(stepped, output)
    for one, other in zip(last, end, strict=True):
        assert torch.allclose(one, other)
    assert torch.equal(layer(x, given)[0], output), "the layer is as it was"


class Reads(nn.Module):
    def __init__(self, kind, options):
        super().__init__()
        self.recurrent = kind(3, 4, **{**options, "batch_first": True})
        self.out = nn.Linear(4 * (1 + self.recurrent.bidirectional), 2)

    def forward(self, x):
        return self.out(self.recurrent(x)[0][:, -1])


@pytest.mark.parametrize("name", KINDS)
def test_rows_of_all_samples_sum_to_the_derivative(name):
    model, x = Reads(*KINDS[name]).double(), torch.randn(300, 6, 3).double()
    weight = model.recurrent.weight_hh_l0
    engine = Engine(model, {"recurrent.weight_hh_l0": torch.arange(weight.numel())})
    cotangents = torch.randn(300, 2).double()
    started = time.process_time()
    rows = sample_rows(engine, x, torch.arange(300), cotangents)
    assert time.process_time() - started < 1.0
    assert torch.allclose(rows.sum(0), pull_back(engine, x, cotangents), atol=1e-10)
