"""An ONNX file as a torch network that can be traced and repaired, checked against ONNX Runtime.

Covers the operators of classifiers: fully connected and convolutional layers, activations, pooling, normalization,
reshaping, sums. Layers keep the names of their weights in the file. A softmax at the end is left out, because the
library works on logits; :func:`repairopt.interfaces.specfile.onnx_model.with_softmax` puts it back.
"""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, fx, nn

from repairopt.errors import ModelError, require_extra
from repairopt.patches import TOLERANCES

from .onnx_operators import LAYERS, OPERATIONS, Call

ROWS = 3  # on which a file is compared with ONNX Runtime
SOFTMAX = "repairopt_softmax"


def load_onnx(path: Path) -> nn.Module:
    """Read an ONNX file with one input, the batch first, and one output of logits or probabilities ``(N, k)``.

    The network is in evaluation mode; its outputs agree with ONNX Runtime's on random inputs.
    """
    require_extra("onnx", f"reading '{path.name}'", "onnx", "onnxruntime")
    import onnx

    try:
        model = onnx.load(str(path))
        onnx.checker.check_model(model)
    except Exception as error:
        text = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ModelError(f"'{path}': is no valid ONNX file ({text}).") from error
    network = _Builder(model.graph, str(path)).build()
    _compare(path, network, model.graph)
    return network


def with_softmax(network: nn.Module) -> nn.Module:
    """The network with the softmax that its ONNX file had at the end, if it had one."""
    return nn.Sequential(network, nn.Softmax(-1)) if _has_softmax(network) else network


def _has_softmax(network: nn.Module) -> bool:
    return isinstance(network, fx.GraphModule) and bool(network.meta.get(SOFTMAX))


class _Builder:
    """One graph: its constants, and the torch node for each name."""

    def __init__(self, graph: Any, what: str) -> None:
        from onnx import numpy_helper

        self.graph, self.what = graph, what
        self.constants = {item.name: numpy_helper.to_array(item) for item in graph.initializer}
        self.module = fx.GraphModule(nn.Module(), fx.Graph())
        self.torch = fx.Graph()
        self.nodes: dict[str, fx.Node] = {}
        self.uses = Counter(name for node in graph.node for name in node.input)

    def build(self) -> nn.Module:
        inputs = [item for item in self.graph.input if item.name not in self.constants]
        if len(inputs) != 1:
            raise ModelError(f"'{self.what}': has {len(inputs)} inputs; expected one tensor with the batch first.")
        self.nodes[inputs[0].name] = self.torch.placeholder("inputs")
        steps, output = self._ending()
        for node in steps:
            self._add(node)
        if output not in self.nodes:
            raise ModelError(f"'{self.what}': its output '{output}' does not depend on its input.")
        self.torch.output(self.nodes[output])
        self.module.graph = self.torch
        self.module.recompile()
        return self.module.eval()

    def _ending(self) -> tuple[list[Any], str]:
        """The nodes that the output needs, and its name; without a softmax at the end."""
        output = self.graph.output[0].name
        if len(self.graph.output) > 1:
            count = len(self.graph.output)
            raise ModelError(f"'{self.what}': has {count} outputs; expected one, logits or probabilities (N, k).")
        maker = next((node for node in self.graph.node if output in node.output), None)
        if maker is not None and maker.op_type == "Softmax" and _attributes(maker).get("axis", -1) in (-1, 1):
            self.module.meta[SOFTMAX] = True
            output = maker.input[0]
        needed, names = [], {output}
        for node in reversed(self.graph.node):
            if names & set(node.output):
                needed.append(node)
                names |= set(node.input)
        return needed[::-1], output

    def _add(self, node: Any) -> None:
        kind, name = node.op_type, node.output[0]
        if kind == "Constant":
            self.constants[name] = _attributes(node)["value"]
            return
        if kind == "Identity" and node.input[0] in self.constants:
            self.constants[name] = self.constants[node.input[0]]
            return
        if kind == "Add" and self._as_bias(node):
            return
        call = Call(self.what, node, _attributes(node), self.constants)
        if kind in LAYERS and call.is_layer:
            layer = LAYERS[kind](call)
            self.nodes[name] = self.torch.call_module(self._place(call, layer), (self.nodes[node.input[0]],))
        elif kind in OPERATIONS:
            function, arguments, options = OPERATIONS[kind](call)
            values = [self._value(item) if isinstance(item, str) else item for item in arguments]
            args = (values,) if kind == "Concat" else tuple(values)
            self.nodes[name] = self.torch.call_function(function, args, options)
        else:
            known = ", ".join(sorted({*LAYERS, *OPERATIONS}))
            raise ModelError(
                f"'{self.what}': operator {kind} is not covered; covered: {known}. Give the network by factory: and "
                f"weights: in place of onnx:."
            )

    def _place(self, call: Call, layer: nn.Module) -> str:
        """The name of a layer: that of its weight in the file, else by its kind and number."""
        weight = call.node.input[1] if len(call.node.input) > 1 else ""
        name = weight.removesuffix(".weight") if weight.endswith(".weight") else ""
        if not name or not all(part.isidentifier() or part.isdigit() for part in name.split(".")):
            name = f"{call.node.op_type.lower()}{len(self.nodes)}"
        taken = dict(self.module.named_modules())
        name = f"{name}_{len(self.nodes)}" if name in taken else name
        self.module.add_submodule(name, layer)
        return name

    def _as_bias(self, node: Any) -> bool:
        """Whether a sum is the bias of the product before it, which then gets it."""
        for first, second in (node.input, tuple(node.input)[::-1]):
            if second in self.constants and first in self.nodes and self.uses[first] == 1:
                made, bias = self.nodes[first], self.constants[second]
                layer = self.module.get_submodule(str(made.target)) if made.op == "call_module" else None
                if isinstance(layer, nn.Linear) and layer.bias is None and bias.shape == (layer.out_features,):
                    layer.bias = nn.Parameter(torch.tensor(bias))
                    self.nodes[node.output[0]] = made
                    return True
        return False

    def _value(self, name: str) -> Any:
        if name in self.nodes:
            return self.nodes[name]
        if name not in self.constants:
            raise ModelError(f"'{self.what}': an operator reads '{name}', which nothing makes.")
        buffer = f"constant{sum(1 for _ in self.module.buffers())}"
        self.module.register_buffer(buffer, torch.tensor(np.array(self.constants[name])))
        return self.torch.get_attr(buffer)


def _attributes(node: Any) -> dict[str, Any]:
    from onnx import TensorProto, helper, numpy_helper

    found = {item.name: helper.get_attribute_value(item) for item in node.attribute}
    return {key: numpy_helper.to_array(v) if isinstance(v, TensorProto) else v for key, v in found.items()}


def _compare(path: Path, network: nn.Module, graph: Any) -> None:
    """Compare outputs on random inputs with ONNX Runtime's; a ModelError where they differ, or one cannot run."""
    import onnxruntime

    runtime = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    entry = runtime.get_inputs()[0]
    dtype = {"tensor(float)": torch.float32, "tensor(double)": torch.float64}.get(entry.type)
    if dtype is None:
        raise ModelError(f"'{path}': reads {entry.type}; expected float or double.")
    fixed = [size for size in entry.shape[1:] if not isinstance(size, int)]
    if fixed:
        raise ModelError(f"'{path}': its input has shape {entry.shape}; expected all sizes but the batch as numbers.")
    rows = entry.shape[0] if isinstance(entry.shape[0], int) else ROWS
    random = torch.Generator().manual_seed(0)
    inputs = torch.rand(rows, *entry.shape[1:], generator=random, dtype=dtype)
    expected = torch.tensor(runtime.run(None, {entry.name: inputs.numpy()})[0])
    with torch.no_grad():
        try:
            found: Tensor = network(inputs)
        except RuntimeError as error:
            raise ModelError(f"'{path}': cannot be run as a torch network ({error}).") from error
    found = torch.softmax(found, -1) if _has_softmax(network) else found
    if found.ndim != 2 or found.shape != expected.shape:
        raise ModelError(f"'{path}': gives outputs of shape {tuple(expected.shape)}; expected (N, k).")
    if not torch.allclose(found, expected, *TOLERANCES[torch.float32]):
        apart = float((found - expected).abs().max())
        raise ModelError(
            f"'{path}': the torch network differs from ONNX Runtime by {apart:.3g}; it cannot be repaired."
        )
