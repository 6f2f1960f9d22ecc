"""ONNX operators as torch layers and functions, one entry each."""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from repairopt.errors import ModelError

Made = tuple[Callable[..., Any], tuple[Any, ...], dict[str, Any]]


@dataclass(frozen=True, eq=False)
class Call:
    """One node of a graph, its attributes by name, the graph's constant arrays; ``what`` is the file, for messages."""

    what: str
    node: Any
    attributes: dict[str, Any]
    constants: Mapping[str, Any]

    @property
    def is_layer(self) -> bool:
        """Whether what follows the input are constants, so that it can be a layer with weights."""
        names = list(self.node.input)
        return names[0] not in self.constants and all(name in self.constants for name in names[1:] if name)

    def array(self, place: int) -> Any:
        """A constant input, or None."""
        names = list(self.node.input)
        return self.constants.get(names[place]) if place < len(names) and names[place] else None

    def get(self, name: str, default: Any = None) -> Any:
        """An attribute."""
        return self.attributes.get(name, default)

    def refuse(self, why: str) -> ModelError:
        """An error that names the operator."""
        return ModelError(f"'{self.what}': operator {self.node.op_type} {why}; this is not covered.")

    def padding(self, dimensions: int) -> list[int]:
        """The same padding on both sides of each axis."""
        if self.get("auto_pad", b"NOTSET") not in (b"NOTSET", "NOTSET", b"VALID"):
            raise self.refuse(f"pads by auto_pad={self.get('auto_pad')!r}")
        pads = list(self.get("pads", [0] * 2 * dimensions))
        if pads[:dimensions] != pads[dimensions:]:
            raise self.refuse(f"pads {pads}, not the same on both sides")
        return pads[:dimensions]


def _filled(layer: nn.Linear | nn.Conv1d | nn.Conv2d | nn.Conv3d, weight: Any, bias: Any) -> nn.Module:
    with torch.no_grad():
        layer.weight.copy_(torch.tensor(weight))
        if bias is not None and layer.bias is not None:
            layer.bias.copy_(torch.tensor(np.broadcast_to(bias, (weight.shape[0],)).copy()))
    return layer


def _linear(weight: Any, bias: Any) -> nn.Module:
    dtype = torch.tensor(weight).dtype
    return _filled(nn.Linear(weight.shape[1], weight.shape[0], bias=bias is not None, dtype=dtype), weight, bias)


def _gemm(call: Call) -> nn.Module:
    if call.get("transA", 0):
        raise call.refuse("transposes its input")
    if not call.get("alpha", 1.0):
        raise call.refuse("multiplies its input by alpha=0")
    weight, bias = call.array(1), call.array(2) if call.get("beta", 1.0) else None
    if bias is not None and bias.size not in (1, weight.shape[0 if call.get("transB", 0) else 1]):
        raise call.refuse(f"adds an array of shape {bias.shape}")
    weight = (weight if call.get("transB", 0) else weight.T) * np.asarray(call.get("alpha", 1.0), weight.dtype)
    bias = None if bias is None else (bias * np.asarray(call.get("beta", 1.0), bias.dtype)).reshape(-1)
    return _linear(np.ascontiguousarray(weight), bias)


def _matmul(call: Call) -> nn.Module:
    weight = call.array(1)
    if weight.ndim != 2:
        raise call.refuse(f"multiplies by a constant of shape {weight.shape}")
    return _linear(np.ascontiguousarray(weight.T), None)


def _conv(call: Call) -> nn.Module:
    weight, bias = call.array(1), call.array(2)
    n = weight.ndim - 2
    groups = int(call.get("group", 1))
    layer = getattr(nn, f"Conv{n}d")(
        weight.shape[1] * groups,
        weight.shape[0],
        tuple(weight.shape[2:]),
        stride=tuple(call.get("strides", [1] * n)),
        padding=tuple(call.padding(n)),
        dilation=tuple(call.get("dilations", [1] * n)),
        groups=groups,
        bias=bias is not None,
        dtype=torch.tensor(weight).dtype,
    )
    return _filled(layer, weight, bias)


class _Normalize(nn.Module):
    """Batch normalization with fixed statistics, for inputs of any rank."""

    def __init__(self, arrays: list[Any], eps: float) -> None:
        super().__init__()
        scale, bias, mean, variance = (torch.tensor(array) for array in arrays)
        self.weight, self.bias = nn.Parameter(scale), nn.Parameter(bias)
        self.register_buffer("mean", mean)
        self.register_buffer("variance", variance)
        self.eps = eps

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.batch_norm(x, self.mean, self.variance, self.weight, self.bias, False, 0.0, self.eps)  # type: ignore[arg-type]


def _normalize(call: Call) -> nn.Module:
    return _Normalize([call.array(i) for i in range(1, 5)], float(call.get("epsilon", 1e-5)))


def _layer_norm(call: Call) -> nn.Module:
    scale, bias = call.array(1), call.array(2)
    if call.get("axis", -1) != -1 and scale.ndim != 1:
        raise call.refuse(f"normalizes from axis {call.get('axis')}")
    options: Any = {"bias": bias is not None, "dtype": torch.tensor(scale).dtype}
    layer = nn.LayerNorm(scale.shape, float(call.get("epsilon", 1e-5)), **options)
    with torch.no_grad():
        layer.weight.copy_(torch.tensor(scale))
        if bias is not None:
            layer.bias.copy_(torch.tensor(bias))
    return layer


LAYERS: dict[str, Callable[[Call], nn.Module]] = {
    "Gemm": _gemm,
    "MatMul": _matmul,
    "Conv": _conv,
    "BatchNormalization": _normalize,
    "LayerNormalization": _layer_norm,
    "Relu": lambda call: nn.ReLU(),
    "LeakyRelu": lambda call: nn.LeakyReLU(float(call.get("alpha", 0.01))),
    "Elu": lambda call: nn.ELU(float(call.get("alpha", 1.0))),
    "Sigmoid": lambda call: nn.Sigmoid(),
    "Tanh": lambda call: nn.Tanh(),
    "Gelu": lambda call: nn.GELU("tanh" if call.get("approximate", b"none") == b"tanh" else "none"),
    "Softplus": lambda call: nn.Softplus(),
    "Identity": lambda call: nn.Identity(),
    "Dropout": lambda call: nn.Identity(),
}


def _of_inputs(function: Callable[..., Any]) -> Callable[[Call], Made]:
    return lambda call: (function, tuple(call.node.input), {})


def _along_axis(function: Callable[..., Any]) -> Callable[[Call], Made]:
    return lambda call: (function, (call.node.input[0],), {"dim": int(call.get("axis", -1))})


def _flatten(call: Call) -> Made:
    if call.get("axis", 1) != 1:
        raise call.refuse(f"flattens from axis {call.get('axis')}")
    return torch.flatten, (call.node.input[0], 1), {}


def _reshape(call: Call) -> Made:
    shape = call.array(1)
    if shape is None:
        raise call.refuse("takes a shape that is computed")
    sizes = [int(size) for size in shape]
    if sizes[0] not in (0, -1, 1) or (sizes[0] == -1 and sizes.count(-1) > 1) or 0 in sizes[1:]:
        raise call.refuse(f"reshapes to {sizes}, which does not keep the batch")
    return _reshape_rest, (call.node.input[0], tuple(sizes[1:])), {}


def _reshape_rest(x: torch.Tensor, sizes: tuple[int, ...]) -> torch.Tensor:
    return x.reshape(x.shape[0], *sizes)


def _pool(call: Call) -> Made:
    n = len(call.get("kernel_shape"))
    options: dict[str, Any] = {"kernel_size": tuple(call.get("kernel_shape")), "padding": tuple(call.padding(n))}
    options |= {"stride": tuple(call.get("strides", [1] * n)), "ceil_mode": bool(call.get("ceil_mode", 0))}
    if call.node.op_type == "MaxPool":
        options["dilation"] = tuple(call.get("dilations", [1] * n))
        return getattr(F, f"max_pool{n}d"), (call.node.input[0],), options
    options["count_include_pad"] = bool(call.get("count_include_pad", 0))
    return getattr(F, f"avg_pool{n}d"), (call.node.input[0],), options


def _mean_of_places(x: torch.Tensor) -> torch.Tensor:
    """Mean over all axes but batch and channels, kept as axes of size 1."""
    return x.mean(tuple(range(2, x.ndim)), keepdim=True)


def _axes(call: Call) -> tuple[int, ...]:
    given = call.get("axes") if call.get("axes") is not None else call.array(1)
    if given is None:
        raise call.refuse("takes axes that are computed or left out")
    return tuple(int(axis) for axis in given)


def _clip(call: Call) -> Made:
    low, high = (call.get("min", call.array(1)), call.get("max", call.array(2)))
    ends = {"min": None if low is None else float(low), "max": None if high is None else float(high)}
    return torch.clamp, (call.node.input[0],), ends


def _mean(call: Call) -> Made:
    return torch.mean, (call.node.input[0],), {"dim": _axes(call), "keepdim": bool(call.get("keepdims", 1))}


def _hard_sigmoid(call: Call) -> Made:
    options = {"slope": float(call.get("alpha", 0.2)), "shift": float(call.get("beta", 0.5))}
    return _hard_sigmoid_of, (call.node.input[0],), options


def _hard_sigmoid_of(x: torch.Tensor, slope: float, shift: float) -> torch.Tensor:
    return (slope * x + shift).clamp(0.0, 1.0)


def _unsqueeze(call: Call) -> Made:
    axes = _axes(call)
    if len(axes) != 1:
        raise call.refuse(f"adds {len(axes)} axes at once")
    return torch.unsqueeze, (call.node.input[0], axes[0]), {}


OPERATIONS: dict[str, Callable[[Call], Made]] = {
    "Add": _of_inputs(operator.add),
    "Sub": _of_inputs(operator.sub),
    "Mul": _of_inputs(operator.mul),
    "Div": _of_inputs(operator.truediv),
    "MatMul": _of_inputs(torch.matmul),
    "Flatten": _flatten,
    "Reshape": _reshape,
    "Transpose": lambda call: (torch.permute, (call.node.input[0], tuple(call.get("perm"))), {}),
    "MaxPool": _pool,
    "AveragePool": _pool,
    "GlobalAveragePool": lambda call: (_mean_of_places, (call.node.input[0],), {}),
    "Clip": _clip,
    "ReduceMean": _mean,
    "Squeeze": lambda call: (torch.squeeze, (call.node.input[0], _axes(call)), {}),
    "Unsqueeze": _unsqueeze,
    "Concat": lambda call: (torch.cat, tuple(call.node.input), {"dim": int(call.get("axis"))}),
    "Erf": lambda call: (torch.erf, (call.node.input[0],), {}),
    "Sqrt": lambda call: (torch.sqrt, (call.node.input[0],), {}),
    "Exp": lambda call: (torch.exp, (call.node.input[0],), {}),
    "Neg": lambda call: (torch.neg, (call.node.input[0],), {}),
    "Pow": _of_inputs(torch.pow),
    "HardSigmoid": _hard_sigmoid,
    "Softmax": _along_axis(F.softmax),
    "LogSoftmax": _along_axis(F.log_softmax),
}
