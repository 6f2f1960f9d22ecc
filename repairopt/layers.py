"""The affine layers of a network in execution order, and which weights read which values.

The network is traced with ``torch.fx``. Who reads a unit is found by poisoning its values with NaN and following them
through activations, dropout, pooling, reshaping, concatenation and sums up to the next layers with weights. That needs
no list of operations; where one mixes all units (layer norm, softmax), units keep their positions.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from .errors import ModelError, SpecificationError
from .evaluate import Engine, ForwardFunction

CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
FUNCTIONS: dict[Any, str] = {F.linear: "linear", F.conv1d: "conv", F.conv2d: "conv", F.conv3d: "conv"}


@dataclass(frozen=True, eq=False)
class Layer:
    """One call of a layer with weights.

    Attributes:
        name: The module's name, or the prefix of its weight where a function is called.
        kind: ``"linear"``, ``"conv"`` or ``"recurrent"``.
        weights: Parameters whose columns (second axis) read the layer's input.
        bias: Name of the bias, or None.
        node: Where it is called in the traced graph; None where the network cannot be traced.
    """

    name: str
    kind: str
    weights: tuple[str, ...]
    bias: str | None
    node: fx.Node | None = None


class LayerGraph:
    """A network seen as layers.

    Args:
        model: The user's network; not modified.
        forward_fn: ``(model, inputs) -> logits``, as for the engine.
        example: Some inputs, to see shapes; guessed where the first layer is linear or recurrent.
    """

    def __init__(
        self, model: nn.Module, forward_fn: ForwardFunction | None = None, example: Tensor | None = None
    ) -> None:
        self.engine = Engine(model, forward_fn=forward_fn)
        self.what = f"model {type(model).__name__}"
        self._network = self.engine._caller
        shared = dict(model.named_parameters(remove_duplicate=False))
        first = {id(parameter): name for name, parameter in model.named_parameters()}
        self.names = {name: first[id(parameter)] for name, parameter in shared.items()}  # a tied name -> its first one
        self.parameters = dict(model.named_parameters())
        self._modules = {f"model.{name}" if name else "model": m for name, m in self._network.model.named_modules()}
        self._embeds = any(isinstance(module, nn.Embedding | nn.EmbeddingBag) for module in self._modules.values())
        self._example = example
        self.graph = self._trace()
        if self.graph is not None:
            nodes = list(self.graph.graph.nodes)
            self._at = {node: layer for node in nodes if (layer := self._layer_at(node)) is not None}
            self.layers = list(self._at.values())
        else:
            self._at, self.layers = {}, self._called()

    # ---------------------------------------------------------------- layers

    @property
    def affine(self) -> list[Layer]:
        """The linear and convolutional layers, in execution order."""
        return [layer for layer in self.layers if layer.kind != "recurrent"]

    def named(self, name: str) -> list[Layer]:
        """All calls of the layer of this name.

        Raises:
            ModelError: The network calls no layer of this name.
        """
        found = [layer for layer in self.layers if layer.name == name]
        if not found:
            raise ModelError(
                unknown(f"{self.what}: no layer with weights is called", name, [ly.name for ly in self.layers])
            )
        return found

    def units(self, layer: Layer) -> int:
        """How many units (neurons, channels) the layer has."""
        return self.parameters[layer.weights[0]].shape[0]

    def incoming(self, layer: Layer, units: Sequence[int], bias: bool) -> dict[str, Tensor]:
        """The rows of the layer's weights that make the units, and their biases if wanted."""
        names = [*layer.weights, *([layer.bias] if bias and layer.bias else [])]
        return {name: rows(self.parameters[name], units) for name in names}

    def outgoing(self, layer: Layer, units: Sequence[int]) -> dict[str, Tensor]:
        """The columns of the next layers that read the units.

        Raises:
            ModelError: The network cannot be traced, or nothing with weights reads the layer.
        """
        if layer.kind == "recurrent":
            raise ModelError(
                f"{self.what}: the units of the recurrent layer '{layer.name}' are gate rows, which no other layer "
                f"reads. Use weights='incoming', or name the columns of the next layer with a mask."
            )
        values = self.values
        found: dict[str, Tensor] = {}
        for call in self.named(layer.name):
            assert call.node is not None
            poisoned = _poison(values[call.node], units, 1 if call.kind == "conv" else -1)
            for _, part in self._readers(call.node, poisoned):
                found = {
                    name: torch.cat([found[name], part[name]]).unique() if name in found else part[name]
                    for name in [*found, *(name for name in part if name not in found)]
                    for part in [{**found, **part}]
                }
        if not found:
            raise ModelError(
                f"{self.what}: no later layer with weights reads layer '{layer.name}', so its units have no outgoing "
                f"weights. Use weights='incoming', or an earlier layer."
            )
        return found

    def input_columns(self, units: Sequence[int], layer: str | None) -> tuple[str, dict[str, Tensor]]:
        """The columns of the first layer that reads these input features, or of the named one, and its name.

        Raises:
            ModelError: No such feature, no such layer, or the layer does not read the input directly.
        """
        values = self.values
        entry = next(node for node in values if node.op == "placeholder")
        axis = 1 if self.layers and self.layers[0].kind == "conv" else -1
        check_units(f"inputs of {self.what}", units, values[entry].shape[axis])
        wanted = None if layer is None else self.named(layer)
        for reader, found in self._readers(entry, _poison(values[entry], units, axis)):
            if wanted is None or reader in wanted:
                return reader.name, found
        which = "no layer with weights" if layer is None else f"layer '{layer}'"
        raise ModelError(
            f"{self.what}: expected input feature(s) {list(units)} to be read by a layer, but {which} reads them "
            f"directly. Leave layer=None, or name the weights with a mask."
        )

    # ---------------------------------------------------------------- values

    @cached_property
    def values(self) -> dict[fx.Node, Any]:
        """The value of every node on a few example inputs.

        Raises:
            ModelError: The network cannot be traced, or there are no example inputs.
        """
        if self.graph is None:
            raise ModelError(
                f"{self.what}: cannot be traced with torch.fx (data-dependent control flow?), so who reads whom is "
                f"unknown. Name the weights by layer, pattern or mask, or use 'gradient'."
            )
        few = self._few()
        kept = _Keeper(self.graph, set(self.graph.graph.nodes))
        with torch.no_grad():
            traced, plain = kept.run(few), self._network(few)
        if not torch.allclose(traced, plain, rtol=1e-5, atol=1e-6):
            raise ModelError(
                f"{self.what}: its torch.fx trace disagrees with a plain run (control flow that depends on the input?)."
                f" Name the weights by layer, pattern or mask, or use 'gradient'."
            )
        return kept.kept

    @property
    def is_traceable(self) -> bool:
        """Whether :attr:`values` can be had."""
        try:
            return bool(self.values)
        except ModelError:
            return False

    def convert(self, inputs: Tensor) -> Tensor:
        """Inputs on the model's device and, unless they are indices for an embedding, in its dtype."""
        inputs = inputs.detach().to(self.engine.device)
        return inputs.to(self.engine.dtype) if inputs.is_floating_point() or not self._embeds else inputs

    def activation(self, layer: Layer) -> fx.Node:
        """The node after the layer's activation function: where an intervention on its units enters."""
        node, values = layer.node, self.values
        assert node is not None
        while True:
            following = list(node.users)
            if len(following) != 1 or following[0].op == "output" or self._stops(following[0]):
                return node
            if following[0].all_input_nodes != [node] or _shape(values[following[0]]) != _shape(values[node]):
                return node
            node = following[0]

    def reader(self, node: fx.Node) -> Layer | None:
        """The linear layer that alone reads this node, or None."""
        following = list(node.users)
        layer = self._at.get(following[0]) if len(following) == 1 else None
        return layer if layer is not None and layer.kind == "linear" and layer.node.args[0] is node else None  # type: ignore[union-attr]

    def hidden(self) -> list[Layer]:
        """The affine layers whose units are read by a later layer; the last call where one is called twice."""
        found = {}
        for layer in self.affine:
            assert layer.node is not None
            value = self.values[layer.node]
            if any(True for _ in self._readers(layer.node, torch.full_like(value, float("nan")))):
                found[layer.name] = layer
        return list(found.values())

    # ---------------------------------------------------------------- inside

    def _trace(self) -> fx.GraphModule | None:
        for module in self._network.modules():  # the engine's own copy: values must survive being read
            if getattr(module, "inplace", False) is True:
                module.inplace = False  # type: ignore[assignment]
        try:
            traced = fx.symbolic_trace(self._network)
        except Exception:  # tracing runs the user's forward on proxies: whatever it raises means "cannot be traced"
            return None
        traced.graph.eliminate_dead_code()
        for node in traced.graph.nodes:
            if node.kwargs.get("inplace") is True:
                node.kwargs = {**node.kwargs, "inplace": False}
        return traced if sum(node.op == "placeholder" for node in traced.graph.nodes) == 1 else None

    def _layer_at(self, node: fx.Node) -> Layer | None:
        if node.op == "call_module":
            return self._layer_of(str(node.target), self._modules.get(str(node.target)), node)
        if node.op != "call_function" or node.target not in FUNCTIONS:
            return None
        given = dict(zip(("input", "weight", "bias"), node.args, strict=False)) | node.kwargs
        weight, bias = (self._parameter(given.get(key)) for key in ("weight", "bias"))
        if weight is None:
            return None
        return Layer(weight.rpartition(".")[0] or weight, FUNCTIONS[node.target], (weight,), bias, node)

    def _parameter(self, node: Any) -> str | None:
        if not isinstance(node, fx.Node) or node.op != "get_attr":
            return None
        return self.names.get(str(node.target).removeprefix("model."))

    def _layer_of(self, target: str, module: nn.Module | None, node: fx.Node | None = None) -> Layer | None:
        name = target.removeprefix("model").removeprefix(".")
        own = {key: self.names.get(f"{name}.{key}" if name else key) for key in ("weight", "bias")}
        if isinstance(module, nn.Linear | nn.Conv1d | nn.Conv2d | nn.Conv3d) and own["weight"]:
            kind = "linear" if isinstance(module, nn.Linear) else "conv"
            return Layer(name, kind, (own["weight"],), own["bias"], node)
        if isinstance(module, nn.RNNBase):
            keys = [f"{name}.weight_ih_l0{way}" if name else f"weight_ih_l0{way}" for way in ("", "_reverse")]
            return Layer(name, "recurrent", tuple(self.names[key] for key in keys if key in self.names), None, node)
        return None

    def _called(self) -> list[Layer]:
        """The layers of a network that cannot be traced: in the order of a run, or as defined without an example."""
        order: list[Layer] = []
        handles = []
        for target, module in self._modules.items():
            layer = self._layer_of(target, module)
            if layer is not None and self._example is None:
                order.append(layer)
            elif layer is not None:
                handles.append(module.register_forward_hook(lambda *_, layer=layer: order.append(layer)))
        try:
            if handles:
                self.engine.predict()(self._few())
        finally:
            for handle in handles:
                handle.remove()
        return [layer for i, layer in enumerate(order) if layer not in order[i + 1 :]]

    def _few(self) -> Tensor:
        if self._example is not None:
            return self.convert(self._example[torch.arange(3) % len(self._example)])
        first = self.layers[0] if self.layers else None
        if first is None or first.kind == "conv":
            raise ModelError(
                f"{self.what}: the shape of its inputs is needed to see which weights read which units, and is not "
                f"known. Pass inputs=... (a few are enough) or the goal."
            )
        size = self.parameters[first.weights[0]].shape[1]
        shape = (3, size) if first.kind == "linear" else (3, 4, size)
        guess = torch.linspace(-1, 1, size, dtype=self.engine.dtype, device=self.engine.device).expand(shape)
        try:
            with torch.no_grad():
                self._network(guess)
        except (RuntimeError, TypeError, ValueError, IndexError) as error:
            raise ModelError(f"{self.what}: the shape of its inputs cannot be guessed. Pass inputs=...") from error
        return guess

    def _stops(self, node: fx.Node) -> bool:
        """Whether the node holds weights of its own, so that units end there."""
        if node in self._at or node.op != "call_module":
            return node in self._at
        return any(parameter.ndim > 1 for parameter in self._modules[str(node.target)].parameters())

    def _readers(self, start: fx.Node, poisoned: Tensor) -> Iterable[tuple[Layer, dict[str, Tensor]]]:
        """The layers that read the NaN in the value of ``start``, with the columns that do."""
        assert self.graph is not None
        values, runner = self.values, fx.Interpreter(self.graph)
        tainted: dict[fx.Node, Any] = {start: poisoned}
        for node in self.graph.graph.nodes:
            parents = [parent for parent in node.all_input_nodes if parent in tainted]
            if not parents or node.op == "output":
                continue
            if self._stops(node):
                layer = self._at.get(node)
                if layer is not None:
                    yield layer, self._columns(layer, tainted[parents[0]].isnan())
                continue
            args, kwargs = fx.map_arg((node.args, dict(node.kwargs)), lambda n: tainted.get(n, values[n]))
            with torch.no_grad():
                value = getattr(runner, node.op)(node.target, args, kwargs)
            if isinstance(value, Tensor) and value.shape == tainted[parents[0]].shape and value.is_floating_point():
                lost = bool(value.isnan().all()) or not bool(value.isnan().any())
                value = values[node].masked_fill(tainted[parents[0]].isnan(), float("nan")) if lost else value
            if isinstance(value, tuple | list) or (isinstance(value, Tensor) and bool(value.isnan().any())):
                tainted[node] = value

    def _columns(self, layer: Layer, mask: Tensor) -> dict[str, Tensor]:
        axis = 1 if layer.kind == "conv" else mask.ndim - 1
        read = mask.movedim(axis, 0).flatten(1).any(1)
        return {name: _columns_of(self.parameters[name], read) for name in layer.weights}


def rows(parameter: Tensor, units: Sequence[int]) -> Tensor:
    """Flat positions of the given rows (first axis) of a parameter, sorted."""
    positions = torch.arange(parameter.numel()).view(parameter.shape)
    return positions[torch.as_tensor(sorted(set(units)))].flatten()


def check_units(owner: str, units: Sequence[int], size: int) -> None:
    """Check unit numbers.

    Raises:
        SpecificationError: None given, not whole numbers, or out of range.
    """
    if not len(units) or any(not isinstance(unit, int) for unit in units):
        raise SpecificationError(f"{owner}: units={units!r}; expected whole numbers, at least one, such as units=[0].")
    bad = [unit for unit in units if not 0 <= unit < size]
    if bad:
        raise SpecificationError(f"{owner}: unit {bad[0]} is out of range. There are {size}: use 0 to {size - 1}.")


def unknown(what: str, name: str, known: Sequence[str]) -> str:
    """The message for a name that is not known, with the nearest ones that are."""
    near = difflib.get_close_matches(name, list(dict.fromkeys(known)), n=2, cutoff=0.5)
    hint = f" Did you mean {' or '.join(repr(word) for word in near)}?" if near else ""
    return f"{what} '{name}'.{hint} Known: {', '.join(list(dict.fromkeys(known))[:16]) or 'none'}."


class _Keeper(fx.Interpreter):
    """Runs a graph and keeps the values of some nodes."""

    def __init__(self, graph: fx.GraphModule, wanted: set[fx.Node]) -> None:
        super().__init__(graph)
        self.wanted, self.kept = wanted, dict[fx.Node, Any]()

    def run_node(self, n: fx.Node) -> Any:
        value = super().run_node(n)
        if n in self.wanted:
            self.kept[n] = value
        return value


def _poison(value: Tensor, units: Sequence[int], axis: int) -> Tensor:
    return value.index_fill(axis, torch.as_tensor(list(units), device=value.device), float("nan"))


def _columns_of(parameter: Tensor, read: Tensor) -> Tensor:
    """Flat positions of the columns (second axis, of each group of a convolution) that are read."""
    out, columns = parameter.shape[:2]
    groups = len(read) // columns
    chosen = read.cpu().view(groups, 1, columns, 1).expand(groups, out // groups, columns, parameter[0, 0].numel())
    return chosen.flatten().nonzero().flatten()


def _shape(value: Any) -> Any:
    return value.shape if isinstance(value, Tensor) else None
