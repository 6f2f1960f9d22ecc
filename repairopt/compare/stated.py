"""A hash of what a subject or a method states, for cells that are taken up again only where nothing has changed."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import fields, is_dataclass
from types import FunctionType
from typing import Any

import numpy as np
from torch import Tensor, nn


def hash_stated(*values: Any) -> str:
    """A hash of values and of all that they hold: tensors to the bit, networks with their structure, functions' code.

    Objects of foreign classes count by their attributes. The hash is the same in another process.
    """
    found = hashlib.sha256()
    for part in _parts(values, set()):
        found.update(len(part).to_bytes(8, "little") + part)
    return found.hexdigest()


def _parts(value: Any, inside: set[int]) -> Iterator[bytes]:
    yield f"{type(value).__module__}.{type(value).__qualname__}".encode()
    if value is None or isinstance(value, str | int | float | complex | bool | np.generic | type):
        yield repr(value).encode()
    elif isinstance(value, bytes):
        yield value
    elif isinstance(value, Tensor | np.ndarray):
        array = value.detach().cpu().contiguous().numpy() if isinstance(value, Tensor) else np.ascontiguousarray(value)
        yield repr((array.shape, array.dtype.str)).encode()
        yield repr(array.tolist()).encode() if array.dtype.hasobject else array.tobytes()
    elif id(value) not in inside:  # else it holds itself
        for one in _held(value):
            yield from _parts(one, inside | {id(value)})


def _held(value: Any) -> list[Any]:
    if isinstance(value, nn.Module):
        return [repr(value), *(one for pair in sorted(value.state_dict().items()) for one in pair)]
    if isinstance(value, Mapping):
        return [one for pair in sorted(value.items(), key=lambda pair: repr(pair[0])) for one in pair]
    if isinstance(value, set | frozenset):
        return sorted(value, key=repr)
    if isinstance(value, list | tuple):
        return list(value)
    if isinstance(value, FunctionType):
        code = value.__code__
        consts = [one for one in code.co_consts if not hasattr(one, "co_code")]
        cells = [cell.cell_contents for cell in value.__closure__ or ()]
        return [value.__qualname__, code.co_code, code.co_names, consts, value.__defaults__, cells]
    if is_dataclass(value):
        return [one for field in fields(value) for one in (field.name, getattr(value, field.name))]
    return [dict(getattr(value, "__dict__", {}))]
