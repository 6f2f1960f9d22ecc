"""Push zonotopes through a traced network, node by node.

The network is traced with ``torch.fx``; parameters may be replaced by name, so one trace serves all weight changes and
derivatives with respect to them. Column ``p`` of the generators means the same noise symbol in every layer, so branches
that meet again (residual connections) are added symbol by symbol.
"""

from __future__ import annotations

import operator
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.func import functional_call

from repairopt.errors import ModelError, UnsupportedError
from repairopt.network.model_checks import shadow
from repairopt.network.split_graph import parameters_read
from repairopt.network.tracing import Tracer, network_name

from . import activation_bands  # noqa: F401  (registers)
from .max_pooling import without_max_pooling
from .zonotope_layers import Call, Zonotope, relaxation_of, replaced

Slope = float | Tensor | Mapping[str, Tensor] | None
Environment = dict[fx.Node, Any]

SUPPORTED = (
    "Supported: Linear, Conv1d/2d/3d, BatchNorm, average and max pooling, ReLU, LeakyReLU, ReLU6, Hardtanh, Tanh, "
    "Sigmoid, GELU, SiLU, Softplus, ELU, Dropout, Flatten, view, reshape, the sum of two branches, +, -, *, / with "
    "constants, and what @repairopt.network.relaxation adds."
)


class _Tracer(Tracer):
    """Keeps modules of the user whole where they have a relaxation."""

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return relaxation_of(None, m) is not None or super().is_leaf_module(m, module_qualified_name)


class TracedNetwork:
    """A network from one tensor to logits as a list of steps that zonotopes can take; not modified.

    An UnsupportedError where it cannot be traced, or takes more than one input.
    """

    def __init__(self, network: nn.Module) -> None:
        self.what = f"network {network_name(network)}"
        self.network = shadow(network)
        try:
            graph = _Tracer().trace(self.network)
        except Exception as error:  # tracing runs the user's forward on proxies: whatever it raises means "cannot"
            raise UnsupportedError(
                f"{self.what}: cannot be traced with torch.fx ({type(error).__name__}: {error}), as certified bounds "
                f"need. Remove control flow that depends on data from forward. {SUPPORTED}"
            ) from error
        without_max_pooling(self.network, graph)
        self.nodes = list(graph.nodes)
        self.input, *others = [node for node in self.nodes if node.op == "placeholder"]
        self.defaults = {node: node.args[0] for node in others if node.args}
        if len(self.defaults) < len(others):
            raise UnsupportedError(f"{self.what}: takes {1 + len(others)} inputs; certified bounds are for one tensor.")
        self.original = dict(self.network.named_parameters(remove_duplicate=False))
        self.chain = self._is_chain()

    def module(self, node: fx.Node) -> nn.Module | None:
        """The layer of a node that calls one."""
        return self.network.get_submodule(str(node.target)) if node.op == "call_module" else None

    def widens(self, node: fx.Node) -> bool:
        """Whether the node adds generators, as a ReLU does."""
        found = relaxation_of(node.target, self.module(node))
        return found is not None and found.widens

    def late(self, changed: Iterable[str]) -> list[fx.Node]:
        """The nodes whose value depends on one of the named parameters, in order."""
        identities = set(self._replacements(dict.fromkeys(changed, torch.empty(0))))
        found: set[fx.Node] = set()
        for node in self.nodes:
            reads = parameters_read(self.network, node)
            if any(parent in found for parent in node.all_input_nodes) or identities & reads:
                found.add(node)
        return [node for node in self.nodes if node in found]

    def run(
        self,
        nodes: list[fx.Node],
        known: Environment,
        parameters: Mapping[str, Tensor],
        slope: Slope = None,
        prune: bool = True,
    ) -> Environment:
        """Evaluate ``nodes`` in order, from values ``known``; returns those that other nodes still need, and the last.

        ``prune`` drops generators that are 0 for all inputs; without, all shapes are independent of values.
        """
        step = _Step(self, self._replacements(parameters), slope, prune)
        values, done = {**self.defaults, **known}, set(self.defaults)
        for node in nodes:
            if node not in values:
                values[node] = step(node, values)
            done.add(node)
            for parent in node.all_input_nodes:
                if parent.users.keys() <= done:
                    values.pop(parent, None)
        return values

    def value_of(self, parameter: Tensor, parameters: Mapping[str, Tensor]) -> Tensor:
        """A parameter of the network, or what is given in its place by name."""
        return self._replacements(parameters).get(id(parameter), parameter)

    def call_of(self, node: fx.Node, values: Environment, parameters: Mapping[str, Tensor]) -> Call:
        """A node that acts on a set as a call, with the values of what it reads; its first argument is the set."""
        args, kwargs = fx.map_arg((node.args, node.kwargs), lambda parent: values[parent])
        step = _Step(self, self._replacements(parameters), None, False)

        def run(*args: Any, **kwargs: Any) -> Any:
            return step.plain(node, args, kwargs)

        return Call(args, kwargs, node.target, self.module(node), step.given, run)

    def _replacements(self, parameters: Mapping[str, Tensor]) -> dict[int, Tensor]:
        unknown = sorted(set(parameters) - set(self.original))
        if unknown:
            known = ", ".join(list(self.original)[:12])
            raise ModelError(f"{self.what}: has no parameter '{unknown[0]}'. Its parameters: {known}.")
        return {id(self.original[name]): value for name, value in parameters.items()}

    def _is_chain(self) -> bool:
        """Whether no two branches meet, so that generators need not keep their column."""
        data = {self.input}
        for node in self.nodes:
            parents = data.intersection(node.all_input_nodes)
            if len(parents) > 1:
                return False
            if parents and not asks_shape(node):
                data.add(node)
        return True


@dataclass(frozen=True)
class _Step:
    """Evaluates one node: the transformer of its layer where it sees a zonotope, the operation itself elsewhere."""

    traced: TracedNetwork
    given: Mapping[int, Tensor]
    slope: Slope
    prune: bool

    def __call__(self, node: fx.Node, values: Environment) -> Any:
        args, kwargs = fx.map_arg((node.args, node.kwargs), lambda parent: values[parent])
        if node.op == "output":
            return args[0]
        if node.op == "get_attr":
            value = operator.attrgetter(str(node.target))(self.traced.network)
            return self.given.get(id(value), value)
        varies = any(isinstance(values[parent], Zonotope) for parent in node.all_input_nodes)
        if not varies or asks_shape(node):
            args = tuple(value.center if isinstance(value, Zonotope) else value for value in args)
            return self.plain(node, args, kwargs)
        result = self._relaxed(node, args, kwargs, values)
        if result is None:
            raise UnsupportedError(self._refusal(node))
        return result

    def _relaxed(self, node: fx.Node, args: Any, kwargs: Any, values: Environment) -> Zonotope | None:
        module = self.traced.module(node)
        if module is not None and (len(args) != 1 or module._forward_hooks or module._forward_pre_hooks):
            return None
        found = relaxation_of(node.target, module)
        if found is None or (found.first and not (args and isinstance(args[0], Zonotope))):
            return None

        def run(*args: Any, **kwargs: Any) -> Any:
            return self.plain(node, args, kwargs)

        call = Call(args, kwargs, node.target, module, self.given, run)
        if found.widens:
            live = (value.generators.shape[1] for value in values.values() if isinstance(value, Zonotope))
            slope = self.slope
            if isinstance(slope, Mapping):
                slope = slope.get(str(node.target) if module is not None else node.name)
            prune = self.prune and self.traced.chain
            call = replace(call, slope=slope, columns=max(live), prune=prune, compact=self.prune)
        return found.function(call)

    def plain(self, node: fx.Node, args: tuple[Any, ...], kwargs: Any) -> Any:
        """The operation itself, on tensors."""
        target: Any = node.target
        if node.op == "call_method":
            return getattr(args[0], target)(*args[1:], **kwargs)
        if node.op == "call_function":
            return target(*args, **kwargs)
        module = self.traced.network.get_submodule(str(target))
        return functional_call(module, replaced(module, self.given), args, kwargs)

    def _refusal(self, node: fx.Node) -> str:
        name = node.target if isinstance(node.target, str) else getattr(node.target, "__name__", str(node.target))
        if node.op == "call_module":
            what = f"layer '{name}' ({type(self.traced.network.get_submodule(name)).__name__})"
        else:
            what = f"operation '{name}' (node '{node.name}')"
        hint = said_of_softmax(what)
        return f"{self.traced.what}: {what}, as it is used here, has no zonotope transformer. {SUPPORTED}{hint}"


def said_of_softmax(operation: str) -> str:
    """What to say of an operation at the end of networks, which bounds need not have."""
    if "softmax" not in operation.lower():
        return ""
    return " A softmax at the end orders classes as the logits do: give the network without it."


def asks_shape(node: fx.Node) -> bool:
    """Whether a node reads the shape or kind of a tensor, and nothing of its values."""
    if node.op == "call_method":
        return node.target in ("size", "dim")
    return node.target is getattr and node.args[1] in ("shape", "ndim", "dtype", "device")
