"""The weights of a model or of a state dict, by name, and their SHA-256: what patches are made of."""

from __future__ import annotations

import copy
import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from torch import Tensor, nn

from repairopt.errors import ModelError, PatchError

from .tensor_bits import Bits, dtype_name, to_bits, write_bits

Weights = nn.Module | Mapping[str, Tensor]
Ties = tuple[tuple[str, ...], ...]


def state_of(source: Weights, what: str = "model") -> dict[str, Tensor]:
    """The tensors of a module or state dict by name, sharing memory with it; ``what`` is its name in messages.

    Extra state of modules that is no tensor is left out. A ModelError names what is no plain dense tensor with data.
    """
    if isinstance(source, nn.Module):
        found: dict[str, Tensor] = dict(source.named_parameters(remove_duplicate=False))
        hidden = transient_buffers(source)
        found |= {n: b for n, b in source.named_buffers(remove_duplicate=False) if n not in hidden}
    elif isinstance(source, Mapping):
        found = {n: value for n, value in source.items() if n != "_extra_state" and not n.endswith("._extra_state")}
    else:
        raise ModelError(
            f"{what}: expected a torch.nn.Module or a state dict, got {type(source).__name__}. A file of weights is "
            f"read by load_weights(path)."
        )
    for name, value in found.items():
        _check_tensor(f"{what}, '{name}'", value)
    return found


def _check_tensor(what: str, value: object) -> None:
    if not isinstance(value, Tensor):
        raise ModelError(f"{what}: expected a tensor, got {type(value).__name__}. Pass a plain state dict.")
    if torch.nn.parameter.is_lazy(value) or value.device.type == "meta":
        raise ModelError(f"{what}: has no data yet. Load the weights, or run the model once, before.")
    if value.layout != torch.strided or value.is_quantized:
        raise ModelError(f"{what}: is sparse or quantized; expected a plain dense tensor. Convert it before.")


def transient_buffers(model: nn.Module) -> dict[str, Tensor]:
    """The buffers that a model keeps out of its state dict."""
    return {
        f"{prefix}.{name}" if prefix else name: buffer
        for prefix, module in model.named_modules(remove_duplicate=False)
        for name, buffer in module.named_buffers(recurse=False)
        if name in module._non_persistent_buffers_set
    }


def ties_of(state: Mapping[str, Tensor]) -> Ties:
    """Groups of names whose tensors are the same memory, each group and all groups in the order of the state."""
    groups: dict[tuple[object, ...], list[str]] = {}
    for name, value in state.items():
        if value.numel():
            place = (value.device, value.data_ptr(), value.dtype, value.shape, value.stride())
            groups.setdefault(place, []).append(name)
    return tuple(tuple(names) for names in groups.values() if len(names) > 1)


def fill_ties(state: Mapping[str, Tensor], ties: Ties) -> dict[str, Tensor]:
    """The state with each missing name that is tied to a present one; files often keep tied weights once."""
    full = dict(state)
    for group in ties:
        present = next((state[name] for name in group if name in state), None)
        if present is not None:
            full |= {name: present for name in group if name not in state}
    return full


def copy_model(model: nn.Module) -> nn.Module:
    """A deep copy; a ModelError where the model cannot be copied."""
    try:
        return copy.deepcopy(model)
    except Exception as error:
        raise ModelError(
            f"model {type(model).__name__}: cannot be copied ({type(error).__name__}: {error}). Patch its state dict "
            f"instead: model.load_state_dict(patch.apply_to_state_dict(model.state_dict()))."
        ) from error


def write_into(model: nn.Module, new: Mapping[str, Bits]) -> None:
    """Write new bits into weights of a model, in place; tied weights must get the same bits under each name."""
    state = state_of(model)
    for group in ties_of(state):
        values = [new.get(name, to_bits(state[name])) for name in group if any(n in new for n in group)]
        if any((value != values[0]).any() for value in values[1:]):
            raise PatchError(
                f"model {type(model).__name__}: {listed(group)} are one tied weight, but the patch gives them "
                f"different values. Untie them, or make the patch from this model."
            )
    for name, bits in new.items():
        target = state[name]
        if any(stride == 0 and size > 1 for stride, size in zip(target.stride(), target.shape, strict=True)):
            raise PatchError(f"weight '{name}': is an expanded tensor, whose entries share memory. Make it contiguous.")
        write_bits(bits, target)


def listed(names: Sequence[str], most: int = 8) -> str:
    """Names for a message, the first few."""
    shown = ", ".join(f"'{name}'" for name in names[:most])
    return shown if len(names) <= most else f"{shown} and {len(names) - most} more"


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
