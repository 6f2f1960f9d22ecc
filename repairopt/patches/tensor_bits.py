"""Tensors as the bit patterns of their entries.

Floating-point addition cannot be undone, and comparison takes -0.0 for 0.0 and no NaN for itself. So patches work on
bits: unsigned integers of an entry's size, in which equal means equal and exclusive or is its own inverse.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from repairopt.errors import ModelError

Bits = npt.NDArray[np.unsignedinteger]
Values = npt.NDArray[np.float64]

_SIGNED = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
_PRECISION = {torch.float64: 53, torch.float32: 24, torch.float16: 11, torch.bfloat16: 8}
FLOATS = tuple(_PRECISION)
DTYPES = {
    str(dtype).removeprefix("torch."): dtype
    for dtype in (
        *FLOATS,
        *(torch.float8_e4m3fn, torch.float8_e5m2),
        *(torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8, torch.bool),
    )
}


def dtype_name(dtype: torch.dtype) -> str:
    """Name of a dtype without ``torch.``."""
    return str(dtype).removeprefix("torch.")


def to_bits(tensor: Tensor) -> Bits:
    """The bit patterns of a tensor of any layout and device, ``(numel,)``; may share memory with the tensor."""
    size = tensor.element_size()
    if size not in _SIGNED:
        raise ModelError(f"tensor of type {tensor.dtype}: expected entries of at most 8 bytes. Split it into two.")
    plain = tensor.detach().resolve_conj().resolve_neg().cpu().contiguous().reshape(-1)
    return plain.view(_SIGNED[size]).numpy().view(f"u{size}")


def from_bits(bits: Bits, dtype: torch.dtype, shape: Sequence[int]) -> Tensor:
    """The tensor of some bit patterns, on the CPU; shares no memory with them."""
    signed = np.ascontiguousarray(bits).view(np.uint8 if bits.itemsize == 1 else f"i{bits.itemsize}").copy()
    return torch.from_numpy(signed).view(dtype).reshape(tuple(shape))


def flips_to_tensor(flips: Bits, shape: Sequence[int]) -> Tensor:
    """Bits as integers for a file; safetensors knows signed ones of every size everywhere."""
    return from_bits(flips, _SIGNED[flips.itemsize], shape)


def write_bits(bits: Bits, target: Tensor) -> None:
    """Write bit patterns into a tensor in place, whatever its layout and device."""
    signed = _SIGNED[target.element_size()]
    target.detach().view(signed).copy_(from_bits(bits, signed, target.shape))


def to_float64(bits: Bits, dtype: torch.dtype) -> Values:
    """The values of floating-point entries, exactly."""
    if dtype == torch.bfloat16:
        bits = bits.astype(np.uint32) << np.uint32(16)
    with np.errstate(invalid="ignore"):  # signaling NaN
        return bits.view(f"f{bits.itemsize}").astype(np.float64)


def round_to_bits(values: Values, dtype: torch.dtype) -> Bits:
    """Bits of the entries nearest to float64 numbers without NaN, half to even, to bfloat16 through float32."""
    with np.errstate(over="ignore", under="ignore"):
        if dtype != torch.bfloat16:
            return values.astype(f"f{dtype.itemsize}").view(f"u{dtype.itemsize}")
        wide = values.astype(np.float32).view(np.uint32)
    odd = (wide >> np.uint32(16)) & np.uint32(1)
    return ((wide + np.uint32(0x7FFF) + odd) >> np.uint32(16)).astype(np.uint16)


def spacing(values: Values, dtype: torch.dtype) -> Values:
    """Distance from each value to the next larger one of a dtype; infinite where the value is not finite."""
    _, exponents = np.frexp(values)
    smallest = torch.finfo(dtype).smallest_normal * torch.finfo(dtype).eps
    distances = np.maximum(np.ldexp(1.0, exponents - _PRECISION[dtype]), smallest)
    return np.where(np.isfinite(values), np.where(values == 0, smallest, distances), np.inf)
