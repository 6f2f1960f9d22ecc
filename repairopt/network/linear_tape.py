"""One pass over samples, kept for several derivatives, where the changed weights are those of linear layers.

The derivative of a sample's output in a weight ``w_ij`` of a linear layer is signal ``i`` behind the layer times
activation ``j`` before it. So one pass gives the activations, one backward pass for each vector of cotangents gives the
signals of all samples at once, and rows of chosen weights are products of two gathered arrays: no parameter is copied
for each sample, nothing of the size of samples times parameters is made.

References:
    Goodfellow, Efficient Per-Example Gradient Computations, 2015.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, fx, nn

if TYPE_CHECKING:
    from repairopt.evaluate import Engine

    from .still_rows import StillRows


@dataclass(frozen=True, eq=False)
class ChangedLayer:
    """A linear layer with weights that may change.

    Attributes:
        module: The layer, as the suffix calls it.
        weight: Positions of the changed entries in the flat weight, or None.
        bias: Positions of the changed entries in the bias, or None.
        columns: Where the changed weight entries stand in ``delta``, a slice, or None.
        bias_columns: The same for the bias.
    """

    module: nn.Linear
    weight: Tensor | None
    bias: Tensor | None
    columns: slice | None
    bias_columns: slice | None

    @cached_property
    def read(self) -> tuple[Tensor, Tensor, Tensor]:
        """Inputs of the layer that changed weights read, sorted; for each such weight its unit, and its input there."""
        assert self.weight is not None
        read, place = torch.unique(self.weight % self.module.in_features, return_inverse=True)
        return read, self.weight // self.module.in_features, place


def changed_layers(suffix: nn.Module, indices: Mapping[str, Tensor]) -> list[ChangedLayer] | None:
    """The linear layers that hold all changed weights.

    Args:
        suffix: What the engine runs; its parameters bear the model's names with ``model.`` in front.
        indices: For each parameter name the flat positions that ``delta`` runs over, in its order.

    Returns:
        The layers; None where a changed parameter is used in another way, or a layer more than once.
    """
    if not isinstance(suffix, fx.GraphModule) or not indices:
        return None
    calls = Counter(str(node.target) for node in suffix.graph.nodes if node.op == "call_module")
    owners = Counter(id(p) for _, p in suffix.named_parameters(remove_duplicate=False))
    spans, start = {}, 0
    for name, index in indices.items():
        spans[name] = slice(start, start + len(index))
        start += len(index)
    found, used = [], set()
    for target in calls:
        module = suffix.get_submodule(target)
        names = {kind: f"{target.removeprefix('model.')}.{kind}" for kind in ("weight", "bias")}
        mine = {kind: name for kind, name in names.items() if name in indices}
        if not mine:
            continue
        shared = any(owners[id(parameter)] > 1 for parameter in module.parameters())
        if type(module) is not nn.Linear or calls[target] != 1 or shared or not target.startswith("model."):
            return None
        used |= set(mine.values())
        weight, bias = (mine.get(kind) for kind in ("weight", "bias"))
        found.append(
            ChangedLayer(
                module,
                None if weight is None else indices[weight],
                None if bias is None else indices[bias],
                None if weight is None else spans[weight],
                None if bias is None else spans[bias],
            )
        )
    direct = any(node.op == "get_attr" and _is_parameter(suffix, str(node.target)) for node in suffix.graph.nodes)
    return found if used == set(indices) and not direct else None


class LinearTape:
    """Activations and graph of one pass.

    Args:
        engine: The network and the ``n`` weights.
        layers: From :func:`changed_layers`.
        part: Activations at the frontier, one row for each sample.
        change: ``delta`` as a tensor.
        still: Where the frontier is that of the samples that move alone, which those are; outputs, cotangents and rows
            are of all samples then.

    Attributes:
        outputs: ``(N, k)``, without graph.
        flat: Whether every layer saw one vector for each sample; without, no rows can be made.
    """

    def __init__(
        self,
        engine: Engine,
        layers: list[ChangedLayer],
        part: tuple[Tensor, ...],
        change: Tensor,
        still: StillRows | None = None,
    ) -> None:
        self.engine, self.layers, self.change, self.still = engine, layers, change, still
        self.inputs: list[Tensor] = [torch.empty(0)] * len(layers)
        self.behind: list[Tensor] = [torch.empty(0)] * len(layers)
        written = engine.writes_into_outputs
        if not written:
            try:
                self._run(part, copied=False)
            except RuntimeError:  # such as an operation in place on a leaf of the graph
                written = True
            written = written or any(z._version for z in self.behind)
        if written:
            self._run(part, copied=True)
            engine.writes_into_outputs = True
        self.outputs = self.graph.detach() if still is None else still.outputs(self.graph.detach())
        count = self.graph.shape[0]
        self.flat = all(x.ndim == 2 and x.shape[0] == count for x in self.inputs)

    def _run(self, part: tuple[Tensor, ...], *, copied: bool) -> None:
        hooks = [layer.module.register_forward_hook(self._recorder(k, copied)) for k, layer in enumerate(self.layers)]
        try:
            with torch.enable_grad():
                self.graph = self.engine.run(self.engine.weights(self.change), part)
        finally:
            for hook in hooks:
                hook.remove()

    def _recorder(self, k: int, copied: bool) -> Any:
        def record(module: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> Tensor:
            self.inputs[k] = args[0].detach()
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
            try:
                found = torch.autograd.grad(self.graph, self.behind, cotangent, retain_graph=True, allow_unused=True)
            except RuntimeError as error:
                if "is not implemented" not in str(error):  # torch's words for an operation without a derivative
                    raise
        return [torch.zeros_like(z) if g is None else g for g, z in zip(found, self.behind, strict=True)]

    def pull_back(self, cotangent: Tensor) -> Tensor:
        """Derivative of ``sum(cotangent * outputs)`` in the weights, ``(n,)``."""
        total = torch.zeros(self.engine.n, dtype=self.engine.dtype, device=self.engine.device)
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
        rows = torch.zeros(len(samples), self.engine.n, dtype=self.engine.dtype, device=self.engine.device)
        rows[moves] = self._rows(place[moves], cotangents[moves])
        return rows

    def _rows(self, samples: Tensor, cotangents: Tensor) -> Tensor:
        rows = torch.empty(len(samples), self.engine.n, dtype=self.engine.dtype, device=self.engine.device)
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


def _is_parameter(module: nn.Module, target: str) -> bool:
    value: Any = module
    for part in target.split("."):
        value = getattr(value, part, None)
    return isinstance(value, nn.Parameter)
