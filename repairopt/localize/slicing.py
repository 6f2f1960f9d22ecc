"""NNSlicer: slices of a network, the synapses and neurons that matter for some samples."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, fx

from repairopt.errors import ModelError, SpecificationError, public
from repairopt.network import check_time, run_and_keep

from .follow_units import readers
from .location import Location
from .question import Question
from .trace_layers import Layer, LayerGraph

ROWS = 500  # of a run


@dataclass(frozen=True, eq=False)
class Slice:
    """What matters in a network for some samples.

    Attributes:
        masks: For each weight and bias of the affine layers its key entries, booleans of its shape.
        neurons: For each affine layer by name its key neurons, ``(units,)``: those that a key synapse touches.
        scores: For each weight the cumulative contribution of its entries, of its shape.
    """

    masks: dict[str, Tensor]
    neurons: dict[str, Tensor]
    scores: dict[str, Tensor]

    def location(self) -> Location:
        """The key weights and the biases of key neurons as a choice of weights."""
        return Location.from_masks(self.masks, "slice (NNSlicer)")


@dataclass(frozen=True)
class NNSlicer:
    """The weights on the slices of the wrong answers: those that contribute most where the network fails (NNSlicer).

    For each class that failing rows are wrongly given, the slice of these rows with that output as target, see
    :class:`Slicer`; the scores of all classes are added up.

    Attributes:
        keep: Share of the weights of each layer that are chosen.
        mode: As for :class:`Slicer`.
        scope: As there.

    References:
        Zhang, Li, Guo, Chen and Liu, Dynamic slicing for deep neural networks, ESEC/FSE 2020. The share is ours.
    """

    keep: float = 0.1
    mode: str = "sample"
    scope: str = "layer"

    def scores(self, question: Question) -> Mapping[str, Tensor]:
        """Contributions, from 1 for the least one that is chosen; 0 for weights that are not."""
        failing, passing = question.failing[0], question.passing[0]
        data = torch.cat([failing, passing]) if len(passing) else failing
        slicer = Slicer(question.graph, data, keep=self.keep, mode=self.mode, scope=self.scope)
        given = question.graph.engine.predict()(failing).argmax(1).to(failing.device)
        total: dict[str, tuple[Tensor, Tensor]] = {}
        for label in given.unique().tolist():
            for name, (score, tie) in slicer.contributions(failing[given == label], [label]).items():
                known = total.get(name, (torch.zeros_like(score), torch.zeros_like(tie)))
                total[name] = known[0] + score, known[1] + tie
        scores, ties = ({name: pair[k] for name, pair in total.items()} for k in (0, 1))
        kept = slicer.kept(scores, ties)
        least = min(float(scores[name][mask].min()) for name, mask in kept.items() if bool(mask.any()))
        return {name: torch.where(mask, scores[name] - least + 1, 0.0).double().cpu() for name, mask in kept.items()}


@public
class Slicer:
    """Slices of one network; what all samples have in common is computed once.

    For sample s, the deviation of neuron n is its activation minus the mean over all data, ``D_n(s)``. Contributions
    start at 1 at the target neurons and go backwards: synapse from h to n with weight w contributes
    ``c = C_n D_n D_h w`` and adds ``sign(c)`` to its own score and to ``C_h``. Scores are summed over samples; ties are
    broken by the sum of c. The share ``keep`` of the synapses with the largest scores are the key synapses, by layer or
    of the whole network.

    A neuron of a convolution is a channel, with its mean activation; a synapse is an entry of a kernel. A synapse of a
    dense layer reads one entry of its input, whose own deviation counts. Activation functions, pooling, reshaping,
    concatenation and sums pass contributions on unchanged.

    Args:
        graph: The network; affine layers alone may have weights with two axes or more.
        data: All samples, ``(N, ...)``.
        keep: Share of the synapses that are kept, above 0, at most 1.
        mode: ``"sample"`` as above, or ``"set"``: one deviation for all samples, that of their mean.
        scope: ``"layer"`` ranks within each layer, ``"network"`` over all.

    Raises:
        SpecificationError: A setting is out of range, or the network has layers that slicing does not know.

    References:
        Zhang, Li, Guo, Chen and Liu, Dynamic slicing for deep neural networks, ESEC/FSE 2020, as formulas 6 and 7 of A
        Post-Training Framework for Improving the Performance of Deep Learning Models via Model Transformation, TOSEM
        2024, state it. There one deviation stands for all samples, so that most scores tie; ``mode="set"`` is that.
    """

    def __init__(
        self, graph: LayerGraph, data: Tensor, *, keep: float = 0.95, mode: str = "sample", scope: str = "layer"
    ) -> None:
        if not 0 < keep <= 1:
            raise SpecificationError(f"slicing: keep={keep!r}; expected a share of the synapses above 0, at most 1.")
        for what, value, known in (("mode", mode, ("sample", "set")), ("scope", scope, ("layer", "network"))):
            if value not in known:
                raise SpecificationError(f"slicing: {what}={value!r}; choose {' or '.join(known)}.")
        self.graph, self.keep, self.mode, self.scope = graph, keep, mode, scope
        self.layers = _affine_alone(graph)
        self._reads = _columns_of_units(graph, self.layers)
        self._means: list[tuple[Tensor, Tensor]] = []
        self._means = [(a.mean(0), b.mean(0)) for a, b in self._activations(data)]

    def slice(self, samples: Tensor, targets: Sequence[int] | None = None) -> Slice:
        """The slice for some samples ``(N, ...)``; ``targets`` are units of the last layer, None for all."""
        found = self.contributions(samples, targets)
        scores, ties = ({name: pair[k] for name, pair in found.items()} for k in (0, 1))
        kept = self.kept(scores, ties)
        sizes = {layer.name: _weight(self.graph, layer).shape[0] for layer in self.layers}
        neurons = {name: torch.zeros(size, dtype=torch.bool) for name, size in sizes.items()}
        for layer in self.layers:
            key = kept[layer.weights[0]]
            neurons[layer.name] |= key.flatten(1).any(1).cpu()
            read = key.movedim(1, 0).flatten(1).any(1).cpu()
            for other, columns in self._reads[layer.name]:
                neurons[other] |= _spread(columns, read)
        masks = dict(kept)
        for layer in self.layers:
            if layer.bias is not None:
                masks[layer.bias] = neurons[layer.name].to(kept[layer.weights[0]].device)
        return Slice(masks, neurons, scores)

    def contributions(self, samples: Tensor, targets: Sequence[int] | None) -> dict[str, tuple[Tensor, Tensor]]:
        """For each weight the scores of its entries over the samples, and the sums of contributions that break ties."""
        found: dict[str, tuple[Tensor, Tensor]] = {}
        for part in samples.split(ROWS):
            for name, (score, tie) in self._contributions(part, targets).items():
                known = found.get(name)
                found[name] = (score, tie) if known is None else (known[0] + score, known[1] + tie)
        return found

    def _activations(self, inputs: Tensor) -> list[tuple[Tensor, Tensor]]:
        """For each layer the means over positions of what it reads ``(N, columns)`` and of its units ``(N, units)``."""
        wanted = {node for layer in self.layers for node in self._nodes(layer)}
        found: list[list[tuple[Tensor, Tensor]]] = []
        assert self.graph.values
        for part in inputs.split(ROWS):
            check_time()
            traced = self.graph.graph
            assert traced is not None
            kept = run_and_keep(traced, self.graph.convert(part), wanted)[1]
            ends = [self._nodes(layer) for layer in self.layers]
            pairs = zip(self.layers, ends, strict=True)
            found.append([(by_unit(kept[a], one.axis), by_unit(kept[b], one.axis)) for one, (a, b) in pairs])
        return [(torch.cat([a for a, _ in own]), torch.cat([b for _, b in own])) for own in zip(*found, strict=True)]

    def _nodes(self, layer: Layer) -> tuple[fx.Node, fx.Node]:
        assert layer.node is not None
        return layer.node.all_input_nodes[0], self.graph.activation(layer)

    def _contributions(self, samples: Tensor, targets: Sequence[int] | None) -> dict[str, tuple[Tensor, Tensor]]:
        """Scores and sums of contributions of the entries of each weight, over some samples."""
        deviations = [
            (a - mean_a, b - mean_b)
            for (a, b), (mean_a, mean_b) in zip(self._activations(samples), self._means, strict=True)
        ]
        if self.mode == "set":
            deviations = [(a.mean(0, keepdim=True), b.mean(0, keepdim=True)) for a, b in deviations]
        at = {layer.name: torch.zeros_like(d[1]) for layer, d in zip(self.layers, deviations, strict=True)}
        last = at[self.layers[-1].name]
        last[:, slice(None) if targets is None or len(targets) > last.shape[1] else list(targets)] = 1.0
        found: dict[str, tuple[Tensor, Tensor]] = {}
        for layer, (reads, makes) in reversed(list(zip(self.layers, deviations, strict=True))):
            weight = _weight(self.graph, layer)
            flat = weight.flatten(2) if weight.ndim > 2 else weight[:, :, None]
            own = at[layer.name] * makes
            score = torch.einsum("sn,sc->nc", own.sign(), reads.sign())[:, :, None] * flat.sign()
            tie = torch.einsum("sn,sc->nc", own, reads)[:, :, None] * flat
            found[layer.weights[0]] = (score.view(weight.shape), tie.view(weight.shape))
            passed = (own.sign() @ flat.sign().sum(2)) * reads.sign()  # (samples, columns)
            for other, columns in self._reads[layer.name]:
                at[other] = at[other] + passed @ columns.to(passed)
        return found

    def kept(self, scores: dict[str, Tensor], ties: dict[str, Tensor]) -> dict[str, Tensor]:
        """Which entries have the largest scores, by layer or of all."""
        groups = [[name] for name in scores] if self.scope == "layer" else [list(scores)]
        kept: dict[str, Tensor] = {}
        for names in groups:
            score = torch.cat([scores[name].flatten() for name in names])
            tie = torch.cat([ties[name].flatten() for name in names])
            order = tie.argsort(descending=True, stable=True)
            order = order[score[order].argsort(descending=True, stable=True)]
            chosen = torch.zeros(len(score), dtype=torch.bool, device=score.device)
            chosen[order[: max(1, round(self.keep * len(score)))]] = True
            for name, part in zip(names, chosen.split([scores[name].numel() for name in names]), strict=True):
                kept[name] = part.view(scores[name].shape)
        return kept


def _affine_alone(graph: LayerGraph) -> list[Layer]:
    """The affine layers in execution order; an error where weights of other kinds lie between them."""
    assert graph.values
    layers = graph.layers
    known = {name for layer in layers for name in layer.parameters}
    others = [name for name, p in graph.parameters.items() if p.ndim > 1 and name not in known]
    odd = [layer.weights[0] for layer in layers if layer.kind == "recurrent"] + others
    if odd:
        raise SpecificationError(
            f"{graph.what}: slicing (NNSlicer) knows dense and convolutional layers alone; '{odd[0]}' is of "
            f"another kind."
        )
    names = [layer.name for layer in layers]
    if len(set(names)) < len(names):
        raise ModelError(f"{graph.what}: layer '{next(n for n in names if names.count(n) > 1)}' is called twice.")
    if any(_groups(graph, layer) > 1 for layer in layers):
        raise SpecificationError(f"{graph.what}: slicing (NNSlicer) does not know convolutions with groups.")
    return layers


def _groups(graph: LayerGraph, layer: Layer) -> int:
    assert layer.node is not None
    read = graph.values[layer.node.all_input_nodes[0]]
    return int(read.shape[layer.axis]) // int(_weight(graph, layer).shape[1])


def _columns_of_units(graph: LayerGraph, layers: list[Layer]) -> dict[str, list[tuple[str, Tensor]]]:
    """For each layer the layers that it reads, each with which of its columns read which unit, ``(columns, units)``."""
    found: dict[str, list[tuple[str, Tensor]]] = {layer.name: [] for layer in layers}
    for layer in layers:
        assert layer.node is not None
        value, units = graph.values[layer.node], _weight(graph, layer).shape[0]
        tables: dict[str, Tensor] = {}
        for unit in range(units):
            check_time()
            index = torch.tensor([unit], device=value.device)
            for reader, columns in readers(graph, layer.node, value.index_fill(layer.axis, index, float("nan"))):
                weight = _weight(graph, reader)
                table = tables.setdefault(reader.name, torch.zeros(weight.shape[1], units, dtype=torch.bool))
                read = torch.zeros(weight.shape, dtype=torch.bool).view(-1)
                read[columns[reader.weights[0]].cpu()] = True
                table[:, unit] |= read.view(weight.shape).movedim(1, 0).flatten(1).any(1)
        for name, table in tables.items():
            found[name].append((layer.name, table))
    return found


def _spread(columns: Tensor, read: Tensor) -> Tensor:
    """Units that any of the columns reads, ``(units,)``."""
    return columns[read].any(0)


def _weight(graph: LayerGraph, layer: Layer) -> Tensor:
    return graph.parameters[layer.weights[0]].detach()


def by_unit(value: Tensor, axis: int) -> Tensor:
    """Mean activation ``(N, units)`` of each unit over its positions; ``axis`` is that of the units."""
    moved = value.movedim(axis, 1)
    return moved.flatten(2).mean(2) if moved.ndim > 2 else moved
