"""Tensors made in inference mode have no derivatives and tell no changes: equal ones stand in for them."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from typing import Any

import torch
from torch import Tensor, nn

from .remembered import identity


def usable(value: Any, known: dict[Any, Any] | None = None) -> Any:
    """A value itself where no tensor in it was made in inference mode, else a copy with equal tensors in their place.

    Looks into lists, tuples, mappings and dataclasses. Tensors that view the same memory still do.
    """
    known = {} if known is None else known
    if isinstance(value, Tensor):
        if not value.is_inference():
            return value
        key = identity(value)
        if key not in known:
            with torch.inference_mode(False):
                found = value.detach().clone()
                is_parameter = isinstance(value, nn.Parameter)
                known[key] = nn.Parameter(found, value.requires_grad) if is_parameter else found
        return known[key]
    if isinstance(value, list | tuple):
        parts = [usable(part, known) for part in value]
        same = all(new is old for new, old in zip(parts, value, strict=True))
        plain = type(value) in (list, tuple)
        return value if same or not plain else type(value)(parts)
    if isinstance(value, Mapping):
        new_map = {key: usable(part, known) for key, part in value.items()}
        return value if all(new_map[key] is part for key, part in value.items()) else new_map
    if is_dataclass(value) and not isinstance(value, type):
        own = {field.name: getattr(value, field.name, None) for field in fields(value)}
        new = {name: part for name, old in own.items() if (part := usable(old, known)) is not old}
        if new:
            value = copy.copy(value)
            for name, part in new.items():
                object.__setattr__(value, name, part)
    return value
