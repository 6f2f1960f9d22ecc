"""One pass over samples, kept for several derivatives, where the changed weights are those of linear layers.

The derivative of a sample's output in a weight ``w_ij`` of a linear layer is signal ``i`` behind the layer times
activation ``j`` before it. So one pass gives the activations, one backward pass for each vector of cotangents gives the
signals of all samples at once, and rows of chosen weights are products of two gathered arrays: no parameter is copied
for each sample, nothing of the size of samples times parameters is made.

References:
    Goodfellow, Efficient Per-Example Gradient Computations, 2015.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from .changed_network import ChangedNetwork
from .linear_layers import ChangedLayer
from .still_rows import StillRows


class LinearTape:
    """Activations and graph of one pass from the frontier on, at the weight change ``change``.

    ``still`` says which samples ``part`` is of, where those are not all; outputs, cotangents and rows are of all then.

    Attributes:
        outputs: ``(N, k)``, without graph.
        flat: Whether every layer saw one vector for each sample; without, no rows can be made.
    """

    def __init__(
        self,
        network: ChangedNetwork,
        layers: list[ChangedLayer],
        part: tuple[Tensor, ...],
        change: Tensor,
        still: StillRows | None = None,
    ) -> None:
        self.network, self.layers, self.change, self.still = network, layers, change, still
        self.inputs: list[Tensor] = [torch.empty(0)] * len(layers)
        self.behind: list[Tensor] = [torch.empty(0)] * len(layers)
        self._versions = [0] * len(layers)
        written = network.writes_into_outputs
        if not written:
            try:
                self._run(part, copied=False)
            except RuntimeError:  # such as an operation in place on a leaf of the graph
                written = True
            written = (
                written or any(z._version for z in self.behind) or self._versions != [x._version for x in self.inputs]
            )
        if written:
            self._run(part, copied=True)
            network.writes_into_outputs = True
        self.outputs = self.graph.detach() if still is None else still.outputs(self.graph.detach())
        count = self.graph.shape[0]
        self.flat = all(x.ndim == 2 and x.shape[0] == count for x in self.inputs)

    def _run(self, part: tuple[Tensor, ...], *, copied: bool) -> None:
        hooks = [layer.module.register_forward_hook(self._recorder(k, copied)) for k, layer in enumerate(self.layers)]
        try:
            with torch.enable_grad():
                self.graph = self.network.run(self.network.weights(self.change), part)
        finally:
            for hook in hooks:
                hook.remove()

    def _recorder(self, k: int, copied: bool) -> Any:
        def record(module: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> Tensor:
            self.inputs[k] = args[0].detach().clone() if copied else args[0].detach()
            self._versions[k] = args[0]._version
            if not output.requires_grad:
                output.requires_grad_()
            self.behind[k] = output
            return output.clone() if copied else output  # what follows may write into it

        return record

    def _signals(self, cotangent: Tensor) -> list[Tensor]:
        """Derivatives of ``sum(cotangent * outputs)`` behind each layer, of the shape of its output, of what moves.

        Zeros where there are none, as before step activations.
        """
        found: Any = [None] * len(self.behind)
        if self.graph.requires_grad:
            with torch.enable_grad():
                summed = (self.graph * cotangent).sum()  # a scalar: grad_outputs would import a symbolic algebra system
            try:
                found = torch.autograd.grad(summed, self.behind, retain_graph=True, allow_unused=True)
            except RuntimeError as error:
                if "is not implemented" not in str(error):  # torch's words for an operation without a derivative
                    raise
        return [torch.zeros_like(z) if g is None else g for g, z in zip(found, self.behind, strict=True)]

    def pull_back(self, cotangent: Tensor) -> Tensor:
        """Derivative of ``sum(cotangent * outputs)`` in the weights, ``(n,)``."""
        total = torch.zeros(self.network.n, dtype=self.network.dtype, device=self.network.device)
        own = cotangent if self.still is None else cotangent[self.still.moved]
        for layer, x, signal in zip(self.layers, self.inputs, self._signals(own), strict=True):
            signal, x = signal.flatten(0, -2), x.flatten(0, -2)
            if layer.weight is not None:
                read, unit, place = layer.read
                x = x if len(read) == x.shape[1] else x.index_select(1, read)
                total[layer.columns] = (signal.T @ x)[unit, place]
            if layer.bias is not None:
                total[layer.bias_columns] = signal.sum(0)[layer.bias]
        return total

    def rows(self, samples: Tensor, cotangents: Tensor) -> Tensor:
        """Derivative of ``cotangent . output`` for each row's sample, ``(R, n)``; samples may repeat."""
        if self.still is None:
            return self._rows(samples, cotangents)
        place = self.still.place[samples]
        moves = place >= 0
        rows = torch.zeros(len(samples), self.network.n, dtype=self.network.dtype, device=self.network.device)
        rows[moves] = self._rows(place[moves], cotangents[moves])
        return rows

    def _rows(self, samples: Tensor, cotangents: Tensor) -> Tensor:
        rows = torch.empty(len(samples), self.network.n, dtype=self.network.dtype, device=self.network.device)
        for place in _without_repeats(samples):
            chosen = samples[place]
            every = len(chosen) == len(self.graph) and isinstance(place, slice)
            spread = torch.zeros_like(self.graph)
            spread[chosen] = cotangents[place].to(spread)
            for layer, x, signal in zip(self.layers, self.inputs, self._signals(spread), strict=True):
                if not every:
                    x, signal = x[chosen], signal[chosen]
                if layer.weight is not None:
                    read, unit, at = layer.read
                    rows[place, layer.columns] = signal.index_select(1, unit).mul_(x.index_select(1, read[at]))
                if layer.bias is not None:
                    rows[place, layer.bias_columns] = signal[:, layer.bias]
        return rows


def _without_repeats(samples: Tensor) -> Iterator[Tensor | slice]:
    """Positions in groups, so that no sample is twice in one; a slice where that is all of them, in order."""
    if bool((samples[1:] > samples[:-1]).all()):
        yield slice(None)
        return
    order = torch.argsort(samples, stable=True)
    ordered = samples[order]
    first = torch.ones_like(ordered, dtype=torch.bool)
    first[1:] = ordered[1:] != ordered[:-1]
    start = torch.nonzero(first)[:, 0]
    counts = torch.diff(start, append=torch.tensor([len(samples)], device=samples.device))
    rank = torch.arange(len(samples), device=samples.device) - torch.repeat_interleave(start, counts)
    for r in range(int(counts.max()) if len(samples) else 0):
        yield order[rank == r]
