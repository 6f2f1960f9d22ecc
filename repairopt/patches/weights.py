"""The weights of a model or of a state dict, by name: what a patch is made of, applied to and checked against.

Weights are the parameters and the persistent buffers, under the names that ``state_dict()`` gives them; tied ones under
each of their names. Buffers that a module keeps out of its state dict are no part of them.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from repairopt.errors import ModelError, PatchError

from .tensor_bits import Bits, to_bits, write_bits

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
