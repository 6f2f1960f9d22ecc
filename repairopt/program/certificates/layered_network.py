"""A network as layers in NumPy, for the check of proofs: affine maps, activations, sums of branches.

Values are flat vectors. Layer ``i`` makes value ``i``; value 0 is the input. Weights are those of the deployed network
as float64 numbers, which hold float32 ones exactly.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from repairopt.errors import ProgramError
from repairopt.program.program import Array

from .smooth_functions import FUNCTIONS


@dataclass(frozen=True, eq=False)
class AffineLayer:
    """``weight @ x + bias``.

    Attributes:
        inputs: The one value that it reads.
        weight: ``(m, n)``, dense or a sparse matrix of SciPy; ``(n,)`` for a diagonal.
        bias: ``(m,)``.
        terms: Roundings that reach one entry where it is computed in floating point, however its terms are added up:
            2 more than the products of a row. 0 for a map that the deployed network does not compute, such as a part of
            an identity.
        bias_size: At least ``|bias|``, ``(m,)``: the sizes of the terms of which it is the sum.
    """

    inputs: tuple[int, ...]
    weight: Any
    bias: Array
    terms: int
    bias_size: Array

    @property
    def size(self) -> int:
        """Numbers in its result."""
        return len(self.bias)

    @property
    def is_diagonal(self) -> bool:
        """Whether each entry of the result reads one entry."""
        return bool(self.weight.ndim == 1)

    @cached_property
    def absolute(self) -> Any:
        """``|weight|``."""
        return abs(self.weight)

    @cached_property
    def row_size(self) -> Array:
        """Sums of ``|weight|`` over what each entry reads, ``(m,)``."""
        return self.absolute if self.is_diagonal else np.asarray(self.absolute.sum(axis=1)).ravel()

    @cached_property
    def signed(self) -> tuple[Any, Any]:
        """The weights above 0, and those below, zeros elsewhere."""
        if isinstance(self.weight, np.ndarray):
            return np.maximum(self.weight, 0), np.minimum(self.weight, 0)
        return self.weight.maximum(0), self.weight.minimum(0)

    def apply(self, weight: Any, values: Array) -> Array:
        """Products ``(N, m)`` of ``weight``, of the form of the layer's, with values ``(N, n)``."""
        if self.is_diagonal:
            return values * weight
        return values @ weight.T if isinstance(weight, np.ndarray) else (weight @ values.T).T

    def run(self, values: Sequence[Array]) -> Array:
        """The result ``(N, m)``."""
        return self.apply(self.weight, values[0]) + self.bias

    def pull_back(self, coefficients: Array) -> Array:
        """Coefficients ``(B, S, m)`` of the result as coefficients of what it reads, ``(B, S, n)``."""
        if self.is_diagonal or isinstance(self.weight, np.ndarray):
            return coefficients * self.weight if self.is_diagonal else coefficients @ self.weight
        flat = coefficients.reshape(-1, coefficients.shape[2])
        return np.asarray((self.weight.T @ flat.T).T).reshape(*coefficients.shape[:2], -1)


@dataclass(frozen=True, eq=False)
class RectifierLayer:
    """``max(x, leak x)`` of each entry: ReLU with leak 0, which is at least 0 and below 1."""

    inputs: tuple[int, ...]
    size: int
    leak: float = 0.0

    def run(self, values: Sequence[Array]) -> Array:
        """The result ``(N, m)``."""
        return np.maximum(values[0], self.leak * values[0])


@dataclass(frozen=True, eq=False)
class SmoothLayer:
    """A smooth function of each entry, by its name in :mod:`.smooth_functions`."""

    inputs: tuple[int, ...]
    size: int
    name: str

    def run(self, values: Sequence[Array]) -> Array:
        """The result ``(N, m)``."""
        return FUNCTIONS[self.name].value(values[0])


@dataclass(frozen=True, eq=False)
class SumLayer:
    """The sum of several values of one size."""

    inputs: tuple[int, ...]
    size: int

    def run(self, values: Sequence[Array]) -> Array:
        """The result ``(N, m)``."""
        return np.sum(values, axis=0)


Layer = AffineLayer | RectifierLayer | SmoothLayer | SumLayer


@dataclass(frozen=True, eq=False)
class LayeredNetwork:
    """Layers from an input of ``inputs`` numbers to the result of the last one.

    Attributes:
        inputs: Numbers of the input.
        layers: In an order in which each reads earlier ones.
        fingerprint: SHA-256 of the deployed parameters, as a patch states it.

    Raises:
        ProgramError: The layers do not fit together, or hold NaN.
    """

    inputs: int
    layers: tuple[Layer, ...]
    fingerprint: str = ""

    def __post_init__(self) -> None:
        sizes = [self.inputs]
        if not self.layers:
            raise ProgramError("layered network: has no layers; expected at least one.")
        for number, layer in enumerate(self.layers, 1):
            if not layer.inputs or min(layer.inputs) < 0 or max(layer.inputs) >= number:
                raise ProgramError(f"layered network: layer {number} reads {layer.inputs}; expected earlier values.")
            read = [sizes[parent] for parent in layer.inputs]
            if isinstance(layer, AffineLayer):
                _check_affine(number, layer, read)
            elif len({*read, layer.size}) != 1 or (isinstance(layer, RectifierLayer) and not 0 <= layer.leak < 1):
                raise ProgramError(f"layered network: layer {number} of size {layer.size} reads sizes {read}.")
            elif isinstance(layer, SmoothLayer) and layer.name not in FUNCTIONS:
                known = ", ".join(FUNCTIONS)
                raise ProgramError(f"layered network: layer {number} is '{layer.name}'; expected one of {known}.")
            sizes.append(layer.size)

    @property
    def outputs(self) -> int:
        """Numbers of the output."""
        return self.layers[-1].size

    def run(self, inputs: Array) -> Array:
        """Outputs ``(N, k)`` of inputs ``(N, d)``, in float64."""
        values = [np.asarray(inputs, dtype=np.float64)]
        for layer in self.layers:
            values.append(layer.run([values[parent] for parent in layer.inputs]))
        return values[-1]


def _check_affine(number: int, layer: AffineLayer, read: list[int]) -> None:
    shape = (layer.size, *read)
    expected = shape[1:] if layer.is_diagonal else shape
    if len(read) != 1 or layer.weight.shape != expected or (layer.is_diagonal and shape[0] != shape[1]):
        raise ProgramError(
            f"layered network: layer {number} of size {layer.size} reads {read} numbers, weights {layer.weight.shape}."
        )
    weights = layer.weight if isinstance(layer.weight, np.ndarray) else layer.weight.data
    if not np.isfinite(weights).all() or not np.isfinite(layer.bias).all():
        raise ProgramError(f"layered network: layer {number} has weights or biases that are not finite.")
    if layer.bias_size.shape != layer.bias.shape or (layer.bias_size < np.abs(layer.bias)).any():
        raise ProgramError(f"layered network: layer {number} states sizes of its biases that are below these.")


def dense_layers(weights: Sequence[tuple[Array, Array]], fingerprint: str = "") -> LayeredNetwork:
    """A chain of dense layers ``(weight (m, n), bias (m,))`` with ReLU between them."""
    layers: list[Layer] = []
    for weight, bias in weights:
        matrix, offset = np.asarray(weight, dtype=np.float64), np.asarray(bias, dtype=np.float64)
        if layers:
            layers.append(RectifierLayer((len(layers),), layers[-1].size))
        layers.append(AffineLayer((len(layers),), matrix, offset, matrix.shape[1] + 2, np.abs(offset)))
    return LayeredNetwork(np.asarray(weights[0][0]).shape[1], tuple(layers), fingerprint)
