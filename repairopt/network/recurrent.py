"""Recurrent layers as steps of their cells, which ``vmap`` can batch; it knows no whole LSTM, GRU or RNN."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

State = tuple[Tensor, ...]  # the hidden state (B, h), and the cell of an LSTM


@contextlib.contextmanager
def in_steps(network: nn.Module) -> Iterator[None]:
    """Run the recurrent layers of a network, which must be the engine's own copy, step by step within the block."""
    layers = [m for m in network.modules() if isinstance(m, nn.RNNBase) and not m.proj_size]
    try:
        for layer in layers:
            layer.__dict__["forward"] = lambda x, hx=None, layer=layer: _run(layer, x, hx)
        yield
    finally:
        for layer in layers:
            layer.__dict__.pop("forward", None)


def _step(
    mode: str, x: Tensor, state: State, w_ih: Tensor, w_hh: Tensor, b_ih: Tensor | None, b_hh: Tensor | None
) -> State:
    """One step of a cell, by the formulas of torch's documentation."""
    h, own, back = state[0], F.linear(x, w_ih, b_ih), F.linear(state[0], w_hh, b_hh)
    if mode == "LSTM":
        i, f, g, o = (own + back).chunk(4, -1)
        cell = f.sigmoid() * state[1] + i.sigmoid() * g.tanh()
        return o.sigmoid() * cell.tanh(), cell
    if mode == "GRU":
        (r, z, n), (back_r, back_z, back_n) = own.chunk(3, -1), back.chunk(3, -1)
        z, n = (z + back_z).sigmoid(), (n + (r + back_r).sigmoid() * back_n).tanh()
        return ((1 - z) * n + z * h,)
    return ((own + back).relu() if mode == "RNN_RELU" else (own + back).tanh(),)


def _run(layer: nn.RNNBase, x: Tensor, hx: Any) -> tuple[Tensor, Any]:
    """What the layer's own forward gives in evaluation mode, from a batch of sequences."""
    if not isinstance(x, Tensor) or x.ndim != 3:
        raise ValueError(f"layer {type(layer).__name__}: steps are for batches of sequences alone")
    values = list((x.transpose(0, 1) if layer.batch_first else x).unbind(0))
    long = layer.mode == "LSTM"
    given = (hx if long else (hx,)) if hx is not None else ()
    ways = ("", "_reverse")[: 1 + layer.bidirectional]
    ends: list[State] = []
    for k in range(layer.num_layers):
        outputs = []
        for way in ways:
            names = [f"{kind}_l{k}{way}" for kind in ("weight_ih", "weight_hh", "bias_ih", "bias_hh")]
            parts: list[Any] = [getattr(layer, name, None) for name in names]
            zero = values[0].new_zeros(values[0].shape[0], layer.hidden_size)
            state = tuple(part[len(ends)] for part in given) or (zero,) * (1 + long)
            steps = []
            for value in reversed(values) if way else values:
                state = _step(layer.mode, value, state, *parts)
                steps.append(state[0])
            outputs.append(steps[::-1] if way else steps)
            ends.append(state)
        values = [torch.cat(both, -1) for both in zip(*outputs, strict=True)] if layer.bidirectional else outputs[0]
    last = [torch.stack(parts) for parts in zip(*ends, strict=True)]
    return torch.stack(values, 1 if layer.batch_first else 0), tuple(last) if long else last[0]
