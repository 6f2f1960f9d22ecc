"""Fingerprints: SHA-256 of weights, per tensor and in total.

The digest of a tensor is that of its dtype, its shape and the bytes of its entries, little-endian and in the order of
the indices; the total is that of all names with their digests, sorted by name. So it depends neither on the order of
the state dict, nor on the device or the layout in memory; and it tells -0.0 from 0.0 and one NaN from another.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from torch import Tensor, nn

from repairopt.errors import PatchError

from .tensor_bits import Bits, dtype_name, to_bits
from .weights import Weights, copy_model, listed, state_of, write_into


@dataclass(frozen=True)
class Fingerprint:
    """SHA-256 of weights: for each name the digest of its tensor, 64 hexadecimal digits."""

    tensors: dict[str, str]

    @cached_property
    def total(self) -> str:
        """Digest of all names with the digests of their tensors."""
        text = json.dumps(sorted(self.tensors.items()), separators=(",", ":"))
        return hashlib.sha256(text.encode()).hexdigest()

    def with_tensors(self, changed: Mapping[str, str]) -> Fingerprint:
        """The fingerprint after some tensors changed."""
        return Fingerprint({**self.tensors, **changed})

    def differences(self, other: Fingerprint) -> str:
        """In words, which tensors of another fingerprint differ from those of this one; empty where none does."""
        mine, theirs = self.tensors, other.tensors
        groups = {
            "differ": [name for name in mine if name in theirs and mine[name] != theirs[name]],
            "are missing": [name for name in mine if name not in theirs],
            "are not expected": [name for name in theirs if name not in mine],
        }
        return "; ".join(f"{len(names)} {what}: {listed(names)}" for what, names in groups.items() if names)


def fingerprint(weights: Weights) -> Fingerprint:
    """SHA-256 of the parameters and persistent buffers of a model or state dict, which is not modified.

    Example:
        >>> import torch
        >>> fingerprint({"a": torch.zeros(2), "b": torch.ones(1)}).total[:16]
        'eff729c2e96233a6'
    """
    return Fingerprint({name: digest_tensor(value) for name, value in state_of(weights).items()})


def written_copy(model: nn.Module, new: Mapping[str, Bits], expected: Fingerprint, what: str) -> nn.Module:
    """A copy of a model with new bits in some of its weights; a PatchError where it is not what is expected."""
    moved = copy_model(model)
    write_into(moved, new)
    found = fingerprint(moved)
    if found != expected:
        raise PatchError(
            f"{what}: {expected.differences(found)}. Look for weights that share a part of their memory. The model was "
            f"not modified."
        )
    return moved


def digest_tensor(tensor: Tensor) -> str:
    """SHA-256 of dtype, shape and bytes of a tensor."""
    return digest_bits(to_bits(tensor), dtype_name(tensor.dtype), tuple(tensor.shape))


def digest_bits(bits: Bits, dtype: str, shape: tuple[int, ...]) -> str:
    """SHA-256 of a tensor that is given by its bits."""
    head = json.dumps([dtype, list(shape)], separators=(",", ":"))
    return digest_entries(bits, head.encode() + b"\0")


def digest_entries(bits: Bits, head: bytes = b"") -> str:
    """SHA-256 of some bytes and of entries, little-endian on every machine."""
    digest = hashlib.sha256(head)
    digest.update(np.ascontiguousarray(bits.astype(f"<u{bits.itemsize}", copy=False)).data)
    return digest.hexdigest()
