"""The layers of a network that have weights, in execution order, from a ``torch.fx`` trace."""

from __future__ import annotations

import contextlib
import difflib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from repairopt.errors import ModelError, SpecificationError
from repairopt.network import Engine, ForwardFunction, agree, run_and_keep, trace_network, writes_in_place
from repairopt.specify import inputs_of

FUNCTIONS: dict[Any, str] = {F.linear: "linear", F.conv1d: "conv", F.conv2d: "conv", F.conv3d: "conv"}
REMEDY = "Name the weights by layer, pattern or mask instead, or use 'gradient'."


@dataclass(frozen=True, eq=False)
class Layer:
    """One call of a layer with weights.

    ``name`` is that of the module, or the prefix of the weight where a function is called; ``kind`` ``"linear"``,
    ``"conv"`` or ``"recurrent"``; ``weights`` the parameters whose columns (second axis) read the layer's input;
    ``node`` where it is called, None where the network cannot be traced.
    """

    name: str
    kind: str
    weights: tuple[str, ...]
    bias: str | None
    node: fx.Node | None = None

    @property
    def parameters(self) -> tuple[str, ...]:
        """Names of its weights, and of its bias if there is one."""
        return (*self.weights, self.bias) if self.bias else self.weights

    @property
    def axis(self) -> int:
        """Axis of its units in its output, and of its columns in its input."""
        return 1 if self.kind == "conv" else -1


class LayerGraph:
    """A network seen as layers; ``example`` shows shapes, guessed where the first layer is linear or recurrent.

    Attributes:
        parameters: By name, each once.
        names: For each name of a parameter, its first one; they differ where parameters are shared.
    """

    def __init__(
        self, model: nn.Module, forward_fn: ForwardFunction | None = None, example: Tensor | None = None
    ) -> None:
        self.model, self.forward_fn, self.what = model, forward_fn, f"model {type(model).__name__}"
        self.engine = Engine(model, forward_fn=forward_fn)
        self.parameters = dict(model.named_parameters())
        first = {id(parameter): name for name, parameter in self.parameters.items()}
        self.names = {name: first[id(p)] for name, p in model.named_parameters(remove_duplicate=False)}
        self._network = self.engine.caller
        self._modules = {f"model.{name}" if name else "model": m for name, m in model.named_modules()}
        self._embeds = any(isinstance(module, nn.Embedding | nn.EmbeddingBag) for module in model.modules())
        self._example = example

    @cached_property
    def graph(self) -> fx.GraphModule | None:
        """The trace, made when it is asked for."""
        return _trace(self._network)

    @cached_property
    def at(self) -> dict[fx.Node, Layer]:
        """The layer of each node that is one."""
        nodes = [] if self.graph is None else list(self.graph.graph.nodes)
        return {node: layer for node in nodes if (layer := self._layer_at(node)) is not None}

    @cached_property
    def layers(self) -> list[Layer]:
        """The layers in execution order; a layer called twice is there twice."""
        return self._called() if self.graph is None else list(self.at.values())

    @property
    def affine(self) -> list[Layer]:
        """The linear and convolutional layers, in execution order."""
        return [layer for layer in self.layers if layer.kind != "recurrent"]

    def named(self, name: str) -> list[Layer]:
        """All calls of the layer of this name; a ModelError where there is none."""
        found = [layer for layer in self.layers if layer.name == name]
        if not found:
            raise ModelError(unknown(f"{self.what}: calls no layer", name, [layer.name for layer in self.layers]))
        return found

    def stops(self, node: fx.Node) -> bool:
        """Whether the node holds weights of its own, so that what it reads ends there."""
        if node in self.at or node.op != "call_module":
            return node in self.at
        return any(parameter.ndim > 1 for parameter in self._modules[str(node.target)].parameters())

    def activation(self, layer: Layer) -> fx.Node:
        """The node after the layer's activation function: where an intervention on its units enters."""
        node, values = _node(layer), self.values
        while len(node.users) == 1:
            following = next(iter(node.users))
            if following.op == "output" or self.stops(following) or following.all_input_nodes != [node]:
                break
            if not isinstance(values[following], Tensor) or values[following].shape != values[node].shape:
                break
            node = following
        return node

    def sole_reader(self, node: fx.Node) -> Layer | None:
        """The linear layer that alone reads this node, or None."""
        layer = self.at.get(next(iter(node.users))) if len(node.users) == 1 else None
        return layer if layer is not None and layer.kind == "linear" and _node(layer).args[0] is node else None

    @cached_property
    def values(self) -> dict[fx.Node, Any]:
        """The value of every node on three example inputs; a ModelError where these, or the trace, are missing."""
        if self.graph is None:
            raise ModelError(f"{self.what}: torch.fx cannot trace it, so who reads which unit is unknown. {REMEDY}")
        few = self._few()
        plain = self.engine.predict()(few)
        output, kept = run_and_keep(self.graph, few)
        if not agree(output, plain):
            raise ModelError(f"{self.what}: its torch.fx trace and a plain run disagree. {REMEDY}")
        return kept

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

    def _layer_at(self, node: fx.Node) -> Layer | None:
        if node.op == "call_module":
            return self._layer_of(str(node.target), self._modules.get(str(node.target)), node)
        if node.op != "call_function" or node.target not in FUNCTIONS:
            return None
        given = dict(zip(("input", "weight", "bias"), node.args, strict=False)) | node.kwargs
        weight, bias = (self._parameter_at(given.get(key)) for key in ("weight", "bias"))
        if weight is None:
            return None
        return Layer(weight.rpartition(".")[0] or weight, FUNCTIONS[node.target], (weight,), bias, node)

    def _parameter_at(self, node: Any) -> str | None:
        is_parameter = isinstance(node, fx.Node) and node.op == "get_attr"
        return self.names.get(str(node.target).removeprefix("model.")) if is_parameter else None

    def _layer_of(self, target: str, module: nn.Module | None, node: fx.Node | None = None) -> Layer | None:
        name = target.removeprefix("model").removeprefix(".")
        prefix = f"{name}." if name else ""
        if isinstance(module, nn.Linear | nn.Conv1d | nn.Conv2d | nn.Conv3d) and prefix + "weight" in self.names:
            kind = "linear" if isinstance(module, nn.Linear) else "conv"
            return Layer(name, kind, (self.names[prefix + "weight"],), self.names.get(prefix + "bias"), node)
        if isinstance(module, nn.RNNBase):
            keys = [f"{prefix}weight_ih_l0{way}" for way in ("", "_reverse")]
            return Layer(name, "recurrent", tuple(self.names[key] for key in keys if key in self.names), None, node)
        return None

    def _called(self) -> list[Layer]:
        """The layers of a network that cannot be traced: in the order of a run, or as defined without an example."""
        order: list[Layer] = []
        handles = []
        for name, module in self._network.named_modules():
            layer = self._layer_of(name, module)
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
        if first is not None and first.kind != "conv":
            size = self.parameters[first.weights[0]].shape[1]
            shape = (3, size) if first.kind == "linear" else (3, 4, size)
            guess = torch.linspace(-1, 1, size, dtype=self.engine.dtype, device=self.engine.device).expand(shape)
            try:
                with torch.no_grad():
                    self._network(guess)
                return guess
            except (RuntimeError, TypeError, ValueError, IndexError):
                pass  # the guess is wrong; the message below says what to pass
        raise ModelError(
            f"{self.what}: the shape of its inputs is not known, and is needed to see which weights read which units. "
            f"Pass inputs=... (a few rows are enough) or the goal."
        )


def first_inputs(goal: Any, constraints: Sequence[Any]) -> Tensor | None:
    """The first inputs that a goal asks the network about, or those of a constraint; without running the network."""

    class Asked(Exception):
        pass

    seen: list[Tensor] = []

    def ask(inputs: Tensor) -> Tensor:
        seen.extend([inputs] if isinstance(inputs, Tensor) else [])
        raise Asked

    own = inputs_of(goal)
    if own is not None:
        seen.append(own)
    elif goal is not None:
        with contextlib.suppress(Asked, SpecificationError):  # some goals need the network itself
            goal.value(ask)
    seen += [found for c in constraints if (found := inputs_of(c)) is not None]
    return seen[0] if seen else None


def unknown(what: str, name: str, known: Sequence[str]) -> str:
    """The message for a name that is not known, with the nearest ones that are."""
    words = list(dict.fromkeys(known))
    near = difflib.get_close_matches(name, words, n=2, cutoff=0.5)
    hint = f" Did you mean {' or '.join(repr(word) for word in near)}?" if near else ""
    return f"{what} '{name}'.{hint} Known: {', '.join(words[:16]) or 'none'}{', ...' if len(words) > 16 else ''}."


def _trace(network: nn.Module) -> fx.GraphModule | None:
    for module in network.modules():  # the engine's own copy; values that are kept must not be overwritten
        if getattr(module, "inplace", False) is True:
            module.inplace = False  # type: ignore[assignment]
    try:
        traced = trace_network(network)
    except Exception:  # tracing runs the user's forward on proxies: whatever it raises means "cannot be traced"
        return None
    if any(writes_in_place(node) and not node.users for node in traced.graph.nodes):
        return None  # a statement that writes into a value that others read: who reads what is not what the graph says
    traced.graph.eliminate_dead_code()
    for node in traced.graph.nodes:
        if node.kwargs.get("inplace") is True:
            node.kwargs = {**node.kwargs, "inplace": False}
    return traced if sum(node.op == "placeholder" for node in traced.graph.nodes) == 1 else None


def _node(layer: Layer) -> fx.Node:
    if layer.node is None:
        raise ModelError(f"layer '{layer.name}': torch.fx cannot trace the model, so its readers are unknown. {REMEDY}")
    return layer.node
