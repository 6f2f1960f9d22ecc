"""Which weights make a unit, which weights read it, and what follows when it is forced to a value.

Readers are found by poisoning the values of the units with NaN and following them through activations, dropout,
pooling, reshaping, concatenation and sums up to the next layers with weights. That needs no list of operations; where
one mixes all units (layer norm, softmax), units keep their positions. Unit numbers out of range are a
:class:`SpecificationError` throughout.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, fx

from repairopt.errors import ModelError, SpecificationError
from repairopt.network import run_and_keep

from .trace_layers import Layer, LayerGraph, unknown


def incoming(graph: LayerGraph, name: str, units: Sequence[int], bias: bool) -> dict[str, Tensor]:
    """The rows of a layer's weights that make the units, and their biases if wanted: flat positions by parameter.

    ``"lstm.l1"`` names level 1 of stacked recurrent layers, whose units are gate rows.
    """
    recurrent = {layer.name for layer in graph.layers if layer.kind == "recurrent"}
    base, _, level = name.rpartition(".")
    if name in recurrent:
        base, level = name, _only_level(graph, name)
    if base in recurrent:
        keys = [f"{base}.{kind}_{way}_{level}" for kind in ("weight", "bias")[: 1 + bias] for way in ("ih", "hh")]
        names = [key for key in keys if key in graph.parameters]
        if not names:
            raise ModelError(unknown(f"{graph.what}: calls no layer", name, _levels(graph, base)))
    else:
        layer = graph.named(name)[0]
        names = list(layer.parameters if bias else layer.weights)
    check_units(f"layer '{name}'", units, graph.parameters[names[0]].shape[0])
    return {key: _rows(graph.parameters[key], units) for key in names}


def outgoing(graph: LayerGraph, name: str, units: Sequence[int]) -> dict[str, Tensor]:
    """Sorted flat positions, by parameter, of the columns of the next layers that read the units of a layer."""
    calls = graph.named(name)
    if calls[0].kind == "recurrent":
        raise ModelError(
            f"{graph.what}: the units of the recurrent layer '{name}' are its gate rows, which no other layer reads. "
            f"Use weights='incoming', or name columns of the next layer with a mask."
        )
    check_units(f"layer '{name}'", units, graph.parameters[calls[0].weights[0]].shape[0])
    found: dict[str, Tensor] = {}
    values = graph.values
    for call in calls:
        node = call.node
        for _, columns in [] if node is None else readers(graph, node, _poison(values[node], units, call.axis)):
            for key, positions in columns.items():
                found[key] = torch.cat([found[key], positions]).unique() if key in found else positions
    if not found:
        raise ModelError(
            f"{graph.what}: no later layer with weights reads layer '{name}', so its units have no outgoing weights. "
            f"Use weights='incoming', or an earlier layer."
        )
    return found


def input_columns(graph: LayerGraph, units: Sequence[int], name: str | None) -> tuple[str, dict[str, Tensor]]:
    """The first layer that reads these input features (channels before a convolution), or the named one.

    Returns its name, and for each parameter the flat positions of the columns that read them.
    """
    wanted = graph.layers if name is None else graph.named(name)
    for reader, columns in _readers_of_inputs(graph, units):
        if reader in wanted:
            return reader.name, columns
    raise ModelError(
        f"{graph.what}: expected {'a layer' if name is None else repr(name)} to read input features {list(units)}, "
        f"but nothing there reads them directly. Leave layer=None, or name the weights with a mask."
    )


def weights_reading(graph: LayerGraph, units: Sequence[int]) -> dict[str, Tensor]:
    """Sorted flat positions, by parameter, of all weights that read these input features before any other weight."""
    found: dict[str, Tensor] = {}
    for _, columns in _readers_of_inputs(graph, units):
        for key, positions in columns.items():
            found[key] = torch.cat([found[key], positions]).unique() if key in found else positions
    return found


def _readers_of_inputs(graph: LayerGraph, units: Sequence[int]) -> Iterator[tuple[Layer, dict[str, Tensor]]]:
    """The layers that read these input features, or channels before a convolution, each with its columns."""
    values = graph.values
    entry = next(node for node in values if node.op == "placeholder")
    axis = graph.layers[0].axis if graph.layers else -1
    if len(units) and not values[entry].is_floating_point():
        raise ModelError(
            f"{graph.what}: its inputs are indices of an embedding, so no weight reads input feature {list(units)[0]} "
            f"alone. Name the weights by layer, pattern or mask instead, or use 'gradient'."
        )
    check_units(f"inputs of {graph.what}", units, values[entry].shape[axis])
    yield from readers(graph, entry, _poison(values[entry], units, axis))


def hidden_layers(graph: LayerGraph) -> dict[str, Layer]:
    """The affine layers whose units a later layer reads, by name; the last call where one is called twice."""
    found = {}
    for layer in graph.affine:
        if layer.node is not None:
            poisoned = torch.full_like(graph.values[layer.node], float("nan"))
            if next(iter(readers(graph, layer.node, poisoned)), None) is not None:
                found[layer.name] = layer
    return found


def readers(graph: LayerGraph, start: fx.Node, poisoned: Tensor) -> Iterator[tuple[Layer, dict[str, Tensor]]]:
    """The layers that read the NaN in the value of ``start``, each with the columns that do."""
    assert graph.graph is not None
    values, runner = graph.values, fx.Interpreter(graph.graph)
    tainted: dict[fx.Node, Any] = {start: poisoned}
    for node in graph.graph.graph.nodes:
        parents = [parent for parent in node.all_input_nodes if parent in tainted]
        if not parents or node.op == "output":
            continue
        if node in graph.at:
            layer = graph.at[node]
            read = tainted[parents[0]].isnan().movedim(layer.axis, 0).flatten(1).any(1)
            yield layer, {key: _columns(graph.parameters[key], read) for key in layer.weights}
        if graph.stops(node):
            continue
        args, kwargs = fx.map_arg((node.args, dict(node.kwargs)), lambda n: tainted.get(n, values[n]))
        with torch.no_grad():
            value = getattr(runner, node.op)(node.target, args, kwargs)
        value = _keep_positions(value, values[node], tainted[parents[0]])
        if any(isinstance(v, Tensor) and bool(v.isnan().any()) for v in (value if type(value) is tuple else [value])):
            tainted[node] = value


class Intervention:
    """Forces units of one layer to a value, after its activation function; only what follows runs again."""

    def __init__(self, graph: LayerGraph, layer: Layer) -> None:
        assert graph.graph is not None
        self.graph, self.axis = graph, layer.axis
        self.units = graph.activation(layer)
        reader = graph.sole_reader(self.units)
        self.columns = None if reader is None else graph.parameters[reader.weights[0]].detach().T
        self.start = self.units if reader is None or reader.node is None else reader.node
        late: dict[fx.Node, None] = {}
        nodes = list(graph.graph.graph.nodes)
        for node in nodes:
            if any(parent is self.start or parent in late for parent in node.all_input_nodes):
                late[node] = None
        frontier = {parent for node in late for parent in node.all_input_nodes} - set(late)
        self.wanted = frontier | {self.units, self.start}
        self._skipped = dict.fromkeys(node for node in nodes if node not in late)
        self._runner = fx.Interpreter(graph.graph)
        made = [graph.values[node] for node in (*late, self.start) if node.op != "output"]
        self.widest = max(value.numel() // 3 for value in made if isinstance(value, Tensor))

    def before(self, inputs: Tensor) -> dict[fx.Node, Any]:
        """Values of the unchanged network that the intervention and what follows need."""
        assert self.graph.graph is not None
        kept = run_and_keep(self.graph.graph, self.graph.convert(inputs), self.wanted)[1]
        kept[self.units] = kept[self.units].movedim(self.axis, 0).contiguous()  # a row for each unit
        return kept

    def force(self, before: dict[fx.Node, Any], unit: Tensor, value: Tensor) -> Tensor:
        """Outputs of the network with one unit forced to a value, for all samples."""
        rows = before[self.units]
        if self.columns is not None:  # the next linear layer changes by a rank-one term
            forced = torch.addcmul(before[self.start], (value - rows[unit])[..., None], self.columns[unit])
        else:
            chosen = (torch.arange(len(rows), device=rows.device) == unit).view(-1, *[1] * (rows.ndim - 1))
            forced = torch.where(chosen, value, rows).movedim(0, self.axis)
        return self._runner.run(initial_env={**self._skipped, **before, self.start: forced})


def check_units(owner: str, units: Sequence[int], size: int) -> None:
    """Refuse unit numbers that are none, not whole numbers, or not below ``size``."""
    if not len(units) or any(isinstance(unit, bool) or not isinstance(unit, int) for unit in units):
        raise SpecificationError(f"{owner}: units={units!r}; expected whole numbers, at least one, such as units=[0].")
    bad = [unit for unit in units if not 0 <= unit < size]
    if bad:
        raise SpecificationError(f"{owner}: unit {bad[0]} is out of range; there are {size}. Use 0 to {size - 1}.")


def _keep_positions(value: Any, clean: Any, parent: Any) -> Any:
    """Undo mixing: an operation that keeps the shape but poisons everything, or nothing, keeps units in place."""
    if not all(isinstance(v, Tensor) and v.is_floating_point() for v in (value, clean, parent)):
        return value
    poisoned = value.isnan()
    if value.shape == parent.shape and (bool(poisoned.all()) or not bool(poisoned.any())):
        return clean.masked_fill(parent.isnan(), float("nan"))
    return value


def _poison(value: Tensor, units: Sequence[int], axis: int) -> Tensor:
    return value.index_fill(axis, torch.as_tensor(list(units), device=value.device), float("nan"))


def _rows(parameter: Tensor, units: Sequence[int]) -> Tensor:
    positions = torch.arange(parameter.numel()).view(parameter.shape)
    return positions[torch.as_tensor(sorted(set(units)))].flatten()


def _columns(parameter: Tensor, read: Tensor) -> Tensor:
    """Flat positions of the columns (second axis, of each group of a convolution) that read something."""
    out, columns = parameter.shape[:2]
    groups = len(read) // columns
    chosen = read.cpu().view(groups, 1, columns, 1).expand(groups, out // groups, columns, parameter[0, 0].numel())
    return chosen.flatten().nonzero().flatten()


def _levels(graph: LayerGraph, name: str) -> list[str]:
    start = f"{name}.weight_ih_"
    return [f"{name}.{key.removeprefix(start)}" for key in graph.parameters if key.startswith(start)]


def _only_level(graph: LayerGraph, name: str) -> str:
    levels = _levels(graph, name)
    if len(levels) > 1:
        raise ModelError(f"layer '{name}': has {len(levels)} levels; say which of {', '.join(levels)}.")
    return levels[0].rpartition(".")[2]
