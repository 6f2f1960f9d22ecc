"""What each operation of a torch network becomes in NumPy, for the check of proofs.

Each operation of the deployed network becomes one layer, so that each rounding of a run is counted. Linear operations
other than products with a matrix are run on the rows of an identity matrix, in float64: their coefficients are exact.
"""

from __future__ import annotations

import operator
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from repairopt.network import second_of_two
from repairopt.program import AffineLayer, Array, Layer, RectifierLayer, SmoothLayer, SumLayer

AT_A_TIME = 512  # rows of an identity matrix
USUAL = {"approximate": "none", "alpha": 1.0, "beta": 1, "threshold": 20}  # of smooth functions
POOLED = ("kernel_size", "stride", "padding", "dilation", "ceil_mode", "return_indices")  # settings of max pooling
NORMALIZED = 12  # roundings of a normalization with stored statistics, in whichever form it is computed


@dataclass(frozen=True)
class Flow:
    """A value that depends on the input: the number of its layer, and the shape of one row."""

    index: int
    shape: tuple[int, ...]


@dataclass(frozen=True, eq=False)
class Operation:
    """One operation of a network.

    Attributes:
        args: Its arguments, with a :class:`Flow` for each that depends on the input.
        kwargs: Its named arguments.
        module: The layer, or None for a function or method.
        run: The operation itself, on tensors.
        result: What it gives for two rows of zeros.
        add: Appends a layer to the copy and returns its number.
        dtype: Of the network.
    """

    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    module: nn.Module | None
    run: Callable[..., Any]
    result: Tensor
    add: Callable[[Layer], int]
    dtype: torch.dtype

    @property
    def flow(self) -> Flow:
        """The first argument, where it depends on the input."""
        found: Flow = self.args[0]
        return found

    @property
    def shape(self) -> tuple[int, ...]:
        """Of one row of the result."""
        return tuple(self.result.shape[1:])

    def constant(self, place: int, name: str) -> Any:
        """An argument by place or name, or None."""
        return self.args[place] if len(self.args) > place else self.kwargs.get(name)


Copied = Callable[[Operation], int | None]
COPIES: dict[Any, Copied] = {}  # by type of module, function, or name of a method


def copies(*targets: Any) -> Callable[[Copied], Copied]:
    """Register a function that copies operations: the number of the layer, or None where it cannot as it is used."""

    def register(function: Copied) -> Copied:
        COPIES.update(dict.fromkeys(targets, function))
        return function

    return register


def _array(value: Tensor) -> Array:
    return value.detach().cpu().double().numpy()


def _affine(
    call: Operation, weight: Any, bias: Array | None, terms: int | None = None, size: Array | None = None
) -> int:
    """A layer that reads the call's first argument; by default a row has two roundings more than products."""
    rows = int(np.prod(call.shape))
    bias = np.zeros(rows) if bias is None else bias
    if terms is None:
        dense = isinstance(weight, np.ndarray)
        terms = 2 + (weight.shape[1] if dense else int(np.diff(weight.indptr).max(initial=0)))
    size = np.abs(bias) if size is None else size
    return call.add(AffineLayer((call.flow.index,), weight, bias, terms, size))


def _probed(function: Callable[[Tensor], Tensor], shape: tuple[int, ...]) -> Any:
    """The matrix of a linear function of rows, ``(m, n)``, sparse, from the rows of an identity matrix."""
    from scipy import sparse

    count, parts = int(np.prod(shape)), []
    for start in range(0, count, AT_A_TIME):
        size = min(AT_A_TIME, count - start)
        rows = torch.zeros(size, count, dtype=torch.float64)
        rows[torch.arange(size), start + torch.arange(size)] = 1
        with torch.no_grad():
            parts.append(sparse.csr_array(function(rows.unflatten(1, shape)).flatten(1).numpy()))
    return sparse.csr_array(sparse.vstack(parts).T)


@copies(nn.Linear)
def _linear(call: Operation) -> int | None:
    layer: Any = call.module
    return _product(call, layer.weight, layer.bias)


@copies(F.linear)
def _functional_linear(call: Operation) -> int | None:
    return _product(call, call.constant(1, "weight"), call.constant(2, "bias"))


@copies(torch.matmul, operator.matmul, "matmul", "mm", torch.mm)
def _matmul(call: Operation) -> int | None:
    other = call.constant(1, "other")
    return _product(call, other.T, None) if isinstance(call.args[0], Flow) and isinstance(other, Tensor) else None


def _product(call: Operation, weight: Any, bias: Any) -> int | None:
    if not isinstance(weight, Tensor) or weight.ndim != 2:
        return None
    from scipy import sparse

    matrix, offset = _array(weight), None if bias is None else _array(bias)
    if len(call.flow.shape) == 1:
        return _affine(call, matrix, offset)
    count = int(np.prod(call.flow.shape[:-1]))  # the same matrix for each of several vectors
    blocks = sparse.csr_array(sparse.kron(sparse.eye_array(count), sparse.csr_array(matrix)))
    return _affine(call, blocks, None if offset is None else np.tile(offset, count))


@copies(nn.Conv1d, nn.Conv2d, nn.Conv3d)
def _conv(call: Operation) -> int | None:
    layer: Any = call.module
    if layer.padding_mode != "zeros":
        return None
    kind: Any = {nn.Conv1d: F.conv1d, nn.Conv2d: F.conv2d, nn.Conv3d: F.conv3d}[type(layer)]
    said = (layer.weight, layer.bias, layer.stride, layer.padding, layer.dilation, layer.groups)
    return _functional_conv(replace(call, args=(call.flow, *said), run=kind))


@copies(F.conv1d, F.conv2d, F.conv3d)
def _functional_conv(call: Operation) -> int | None:
    weight, bias = call.constant(1, "weight"), call.constant(2, "bias")
    if not isinstance(weight, Tensor) or isinstance(bias, Flow):
        return None
    named = {name: value for name, value in call.kwargs.items() if name not in ("weight", "bias")}
    kernel = weight.detach().double()
    matrix = _probed(lambda rows: call.run(rows, kernel, None, *call.args[3:], **named), call.flow.shape)
    return _affine(call, matrix, None if bias is None else _array(bias).repeat(int(np.prod(call.shape[1:]))))


@copies(nn.AvgPool1d, nn.AvgPool2d, nn.AvgPool3d, nn.AdaptiveAvgPool1d, nn.AdaptiveAvgPool2d)
@copies(F.avg_pool1d, F.avg_pool2d, F.adaptive_avg_pool1d, F.adaptive_avg_pool2d)
def _average(call: Operation) -> int | None:
    return _affine(call, _probed(lambda rows: call.run(rows, *call.args[1:], **call.kwargs), call.flow.shape), None)


@copies(second_of_two)
def _second_of_two(call: Operation) -> int | None:
    return _affine(call, np.array([[0.0], [1.0]]), None, 0) if call.flow.shape in ((), (1,)) else None


@copies(nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)
def _batch_norm(call: Operation) -> int | None:
    layer: Any = call.module
    if layer.running_mean is None:
        return None
    scale = 1 / np.sqrt(_array(layer.running_var) + layer.eps)
    scale = scale if layer.weight is None else scale * _array(layer.weight)
    shift = _array(layer.running_mean) * scale
    bias = np.zeros_like(scale) if layer.bias is None else _array(layer.bias)
    parts = (scale, bias - shift, np.abs(bias) + np.abs(shift))
    weight, offset, size = (part.repeat(int(np.prod(call.shape[1:]))) for part in parts)
    return _affine(call, weight, offset, NORMALIZED, size)


@copies(nn.ReLU, F.relu, torch.relu, "relu")
def _relu(call: Operation) -> int | None:
    return call.add(RectifierLayer((call.flow.index,), int(np.prod(call.shape))))


@copies(nn.LeakyReLU)
def _leaky(call: Operation) -> int | None:
    leak = float(getattr(call.module, "negative_slope"))  # noqa: B009 (the type knows no such attribute)
    return call.add(RectifierLayer((call.flow.index,), int(np.prod(call.shape)), leak)) if 0 <= leak < 1 else None


@copies(nn.Tanh, torch.tanh, "tanh", F.tanh)
@copies(nn.Sigmoid, torch.sigmoid, "sigmoid", F.sigmoid, nn.SiLU, F.silu, nn.GELU, F.gelu, nn.ELU, F.elu)
@copies(nn.Softplus, F.softplus)
def _smooth(call: Operation) -> int | None:
    """Smooth functions with their usual settings."""
    layer: Any = call.module
    target = type(layer).__name__ if layer is not None else getattr(call.run, "__name__", str(call.run))
    settings = {name: value for name, value in vars(layer).items() if name in USUAL} if layer is not None else {}
    if any(USUAL[name] != value for name, value in {**settings, **call.kwargs}.items() if name in USUAL):
        return None
    if layer is None and (len(call.args) > 1 or set(call.kwargs) - {"inplace", *USUAL}):
        return None
    return call.add(SmoothLayer((call.flow.index,), int(np.prod(call.shape)), target.lower().removeprefix("_")))


@copies(nn.MaxPool1d, nn.MaxPool2d, nn.MaxPool3d)
def _max_pool(call: Operation) -> int | None:
    """``max(a, b) = a + relu(b - a)`` of pairs of entries of each window, an identity that the run does not compute."""
    layer: Any = call.module
    n = {nn.MaxPool1d: 1, nn.MaxPool2d: 2, nn.MaxPool3d: 3}[type(layer)]
    return _maximum(call, n, {name: getattr(layer, name) for name in POOLED})


@copies(F.max_pool1d, F.max_pool2d, F.max_pool3d)
def _functional_max_pool(call: Operation) -> int | None:
    n = {F.max_pool1d: 1, F.max_pool2d: 2, F.max_pool3d: 3}[call.run]
    said = {**dict(zip(POOLED, (None, None, 0, 1, False, False), strict=True)), **call.kwargs}
    return _maximum(call, n, said | dict(zip(POOLED, call.args[1:], strict=False)))


def _maximum(call: Operation, n: int, said: dict[str, Any]) -> int | None:
    """Windows with padding are read at the nearest place inside, which belongs to them where they have no gaps."""
    stride = said["kernel_size"] if said["stride"] in (None, []) else said["stride"]
    sizes = [np.broadcast_to(one, n).tolist() for one in (said["kernel_size"], stride, said["padding"])]
    gaps = np.broadcast_to(said["dilation"], n).tolist()
    outside = any(sizes[2]) or said["ceil_mode"]
    if said["return_indices"] or (outside and max(gaps) > 1) or len(call.flow.shape) != n + 1:
        return None
    places = np.arange(int(np.prod(call.flow.shape))).reshape(call.flow.shape)
    waiting = []
    for offsets in np.ndindex(*sizes[0]):
        found = places
        for axis, offset in enumerate(offsets, 1):
            starts = sizes[1][axis - 1] * np.arange(call.shape[axis]) - sizes[2][axis - 1]
            at = np.clip(starts + gaps[axis - 1] * offset, 0, call.flow.shape[axis] - 1)
            found = np.take(found, at, axis=axis)
        waiting.append(_selected(call, found.ravel()))
    while len(waiting) > 1:
        first, second, *rest = waiting
        waiting = [*rest, _larger(call, first, second)]
    return waiting[0]


def _selected(call: Operation, places: Any) -> int:
    from scipy import sparse

    count, one = len(places), np.ones(len(places))
    matrix = sparse.csr_array((one, (np.arange(count), places)), shape=(count, int(np.prod(call.flow.shape))))
    return call.add(AffineLayer((call.flow.index,), matrix, 0 * one, 0, 0 * one))


def _larger(call: Operation, first: int, second: int) -> int:
    """``max(a, b)`` of two layers."""
    one = np.ones(int(np.prod(call.shape)))
    negated = call.add(AffineLayer((first,), -one, 0 * one, 0, 0 * one))
    gap = call.add(RectifierLayer((call.add(SumLayer((second, negated), len(one))),), len(one)))
    return call.add(SumLayer((first, gap), len(one)))


@copies(nn.ReLU6, nn.Hardtanh)
def _clipped(call: Operation) -> int | None:
    """``low + relu(x - low) - relu(x - high)``, an identity in real numbers; the run itself does not round."""
    layer: Any = call.module
    parts = []
    for end, sign in ((layer.min_val, 1.0), (layer.max_val, -1.0)):
        shift = np.full(int(np.prod(call.shape)), -float(end))
        moved = _affine(call, np.ones_like(shift), shift, 0)
        cut = call.add(RectifierLayer((moved,), len(shift)))
        back = np.full_like(shift, layer.min_val if sign > 0 else 0.0)
        parts.append(call.add(AffineLayer((cut,), np.full_like(shift, sign), back, 0, np.abs(back))))
    return call.add(SumLayer(tuple(parts), len(shift)))


@copies(nn.Flatten, nn.Unflatten, nn.Identity, nn.Dropout, nn.Dropout2d, torch.flatten, torch.reshape)
@copies("flatten", "reshape", "view", "unsqueeze", "squeeze", "contiguous", "clone", torch.unsqueeze, torch.squeeze)
def _same(call: Operation) -> int | None:
    """Row-major reshapes leave the flat vector as it is."""
    same = len(call.result) == 2 and int(np.prod(call.shape)) == int(np.prod(call.flow.shape))
    return call.flow.index if same else None


@copies(operator.neg, torch.neg, "neg")
def _negated(call: Operation) -> int | None:
    return _affine(call, np.full(int(np.prod(call.shape)), -1.0), None, 0)


def _arithmetic(call: Operation, kind: str) -> int | None:
    """``add``, ``sub``, ``mul`` or ``div`` of a flow and a constant; or ``add``, ``sub`` of two flows."""
    if len(call.args) != 2 or call.kwargs:
        return None
    first, second = call.args
    flow, constant = (first, second) if isinstance(first, Flow) else (second, first)
    if flow.shape != call.shape:
        return None
    count = int(np.prod(call.shape))
    if isinstance(constant, Flow):
        if kind not in ("add", "sub") or constant.shape != flow.shape:
            return None
        other = second.index
        if kind == "sub":
            other = call.add(AffineLayer((other,), np.full(count, -1.0), np.zeros(count), 0, np.zeros(count)))
        return call.add(SumLayer((first.index, other), count))
    value = torch.as_tensor(constant, dtype=call.dtype)
    if value.ndim > len(call.shape) + 1 or (value.ndim == len(call.shape) + 1 and len(value) != 1):
        return None
    given = _array(value.expand(1, *call.shape)).ravel()
    call = replace(call, args=(flow,))
    if kind in ("add", "sub"):
        sign = -1.0 if kind == "sub" and flow is second else 1.0
        return _affine(call, np.full(count, sign), -given if kind == "sub" and flow is first else given, 2)
    if kind == "div" and flow is second:
        return None
    return _affine(call, given if kind == "mul" else 1 / given, None, 2 if kind == "mul" else 4)


for _kind, _targets in {
    "add": (operator.add, operator.iadd, torch.add, "add"),
    "sub": (operator.sub, operator.isub, torch.sub, "sub"),
    "mul": (operator.mul, operator.imul, torch.mul, "mul"),
    "div": (operator.truediv, operator.itruediv, torch.div, "div"),
}.items():
    copies(*_targets)(partial(_arithmetic, kind=_kind))
