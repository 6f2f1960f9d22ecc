"""A torch network as layers in NumPy, for the check of proofs; it shares no code with the bounds of the search."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor, fx, nn

from repairopt.errors import UnsupportedError
from repairopt.network import network_name, run_and_keep, said_of_softmax, shadow, trace_network
from repairopt.patches import fingerprint
from repairopt.program import AffineLayer, Layer, LayeredNetwork

from .copied_operations import COPIES, Flow, Operation

EXECUTIONS = {torch.float32: "float32", torch.float64: "float64"}
CLOSE = 1e-3  # between network and copy, relative; far above what rounding does, far below any mistake
TRIED = 32  # random inputs on which they are compared
ASKS = ("size", "dim", "getattr", "getitem")  # operations that may give something else than a tensor: shapes
SUPPORTED = (
    "Supported: Linear, Conv1d/2d/3d, BatchNorm, average and max pooling, ReLU, LeakyReLU, ReLU6, Hardtanh, tanh, "
    "sigmoid, SiLU, GELU, ELU, Softplus, Dropout, Flatten, view, reshape, sums of branches, and +, -, *, / with "
    "constants."
)


def layered_copy(network: nn.Module, shape: tuple[int, ...]) -> LayeredNetwork:
    """A network from one tensor ``(N, *shape)`` to outputs ``(N, k)`` as layers in NumPy, with its fingerprint.

    Args:
        network: In float32 or float64; not changed. It is taken as in evaluation mode.
        shape: Of one input.

    Raises:
        UnsupportedError: The network cannot be traced, has another operation, or its copy gives other outputs.
    """
    copy = _Copy(network, tuple(shape))
    layered = LayeredNetwork(int(np.prod(shape)), tuple(copy.layers), fingerprint(network).total)
    draw = torch.Generator().manual_seed(0)
    sizes = torch.logspace(-2, 1, TRIED).reshape(-1, *[1] * len(shape))
    inputs = (sizes * torch.randn(TRIED, *shape, generator=draw)).to(copy.dtype)
    with torch.no_grad():
        expected = copy.network(inputs).double().numpy()
    found = layered.run(inputs.flatten(1).double().numpy())
    if not np.allclose(found, expected, rtol=CLOSE, atol=CLOSE * float(np.abs(expected).max())):
        raise UnsupportedError(f"{copy.what}: its copy in NumPy gives other outputs, so no proof of it can be checked.")
    return layered


def execution_of(network: nn.Module) -> str:
    """The precision in which a network is run, ``"float32"`` or ``"float64"``; an UnsupportedError for others."""
    kinds = {value.dtype for value in network.state_dict().values() if value.is_floating_point()}
    if len(kinds) != 1 or not kinds <= set(EXECUTIONS):
        raise UnsupportedError(
            f"network {network_name(network)}: has weights of {sorted(map(str, kinds))}; proofs of regions are for "
            f"networks in float32 or float64."
        )
    return EXECUTIONS[kinds.pop()]


class _Copy:
    """Builds the layers of a network, node by node."""

    def __init__(self, network: nn.Module, shape: tuple[int, ...]) -> None:
        self.what = f"network {network_name(network)}"
        self.dtype = getattr(torch, execution_of(network))
        self.network = shadow(network)
        self.layers: list[Layer] = []
        try:
            self.traced = trace_network(self.network)
            self.seen = run_and_keep(self.traced, torch.zeros(2, *shape, dtype=self.dtype))[1]
        except Exception as error:  # tracing runs the user's forward on proxies: whatever it raises means "cannot"
            raise UnsupportedError(
                f"{self.what}: cannot be traced on inputs of shape {shape} ({type(error).__name__}: {error}). "
                f"{SUPPORTED}"
            ) from error
        known: dict[fx.Node, Any] = {}
        for node in self.traced.graph.nodes:
            known[node] = self._value(node, known, shape)
        end = known[node]
        if not isinstance(end, Flow) or len(end.shape) != 1:
            raise UnsupportedError(f"{self.what}: expected outputs (N, k) as its only output.")
        if end.index != len(self.layers):  # the output is to be the last layer
            one, none = np.ones(end.shape[0]), np.zeros(end.shape[0])
            self._add(AffineLayer((end.index,), one, none, 0, none))

    def _add(self, layer: Layer) -> int:
        self.layers.append(layer)
        return len(self.layers)

    def _value(self, node: fx.Node, known: dict[fx.Node, Any], shape: tuple[int, ...]) -> Any:
        """What a node gives: a flow where it depends on the input, else a constant."""
        if node.op == "placeholder":
            return (node.args[0] if node.args else None) if known else Flow(0, shape)
        args, kwargs = fx.map_arg((node.args, node.kwargs), lambda parent: known[parent])
        if node.op == "output":
            return args[0]
        result = self.seen[node]
        if not any(isinstance(known[parent], Flow) for parent in node.all_input_nodes):
            return result
        module = self.traced.get_submodule(str(node.target)) if node.op == "call_module" else None
        name = type(module).__name__ if module is not None else getattr(node.target, "__name__", str(node.target))
        if not isinstance(result, Tensor) and name in ASKS:
            return result
        copied = COPIES.get(type(module) if module is not None else node.target)
        found = None
        plain = module is None or not (module._forward_hooks or module._forward_pre_hooks)
        if copied is not None and plain and isinstance(result, Tensor) and args:
            run: Any = getattr(Tensor, str(node.target)) if node.op == "call_method" else module or node.target
            found = copied(Operation(args, dict(kwargs), module, run, result, self._add, self.dtype))
        if found is None:
            raise UnsupportedError(
                f"{self.what}: '{node.name}' ({name}), as it is used here, is not covered by the check of proofs. "
                f"{SUPPORTED}{said_of_softmax(name)}"
            )
        return Flow(found, tuple(result.shape[1:]))
