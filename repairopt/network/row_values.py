"""One policy for what belongs to rows: labels, groups and weights, in arrays, lists, frames and files alike.

A value is missing where it is None, NaN, NaT or the NA of pandas; a missing label or group is an error that counts such
rows, nothing is dropped or filled unasked. A text is a value, also ``"NA"`` or ``"None"``; only in a column of numbers
of a file do words such as NA stand for missing numbers. What belongs to rows is in their order: pandas objects have the
same index, and loaders are read in the order of their datasets.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from contextlib import suppress
from typing import Any

import numpy as np
import numpy.typing as npt
from torch import Tensor

from repairopt.errors import SpecificationError

WORDS = re.compile(r"-?1\.#(IND|QNAN)|#?NA|#N/A( N/A)?|<NA>|N/A|NULL|None|-?NaN", re.IGNORECASE)  # as pandas.read_csv
NEVER_MISSING = frozenset({str, int, bool})


def is_missing_word(value: Any) -> bool:
    """Whether a value is a text that stands for a missing number, such as NA."""
    return isinstance(value, str) and WORDS.fullmatch(value.strip()) is not None


def missing_values(values: Any) -> npt.NDArray[np.bool_]:
    """For each of some values ``(N, ...)`` whether it is missing."""
    if isinstance(values, list | tuple):  # NumPy makes texts of a list of texts and NaN
        if set(map(type, values)) <= NEVER_MISSING:
            return np.zeros(len(values), dtype=bool)
        return np.array([_is_missing(value) for value in values], dtype=bool)
    if isinstance(values, np.ma.MaskedArray):
        return np.ma.getmaskarray(values) | missing_values(values.data)
    array: Any = values.detach().cpu().numpy() if isinstance(values, Tensor) else np.asarray(values)
    if array.dtype.kind in "fcmM":
        found: Any = np.isnat(array) if array.dtype.kind in "mM" else np.isnan(array)
        return np.asarray(found, dtype=bool)
    if array.dtype.kind != "O":
        return np.zeros(array.shape, dtype=bool)
    return np.array([_is_missing(value) for value in array.flat], dtype=bool).reshape(array.shape)


def _is_missing(value: Any) -> bool:
    if isinstance(value, str | int):
        return False
    if isinstance(value, tuple):
        return any(map(_is_missing, value))
    if value is None or type(value).__name__ == "NAType":
        return True
    with suppress(TypeError, ValueError):
        return bool(value != value)
    return False


def refuse_missing(owner: str, what: str, values: Any) -> None:
    """A SpecificationError that counts the rows without a value, and names the first; ``what`` is in the singular."""
    rows = missing_values(values)
    if not rows.size or not rows.ndim:
        return  # there are no rows of which one could be missing; sizes are checked by who asks
    rows = np.asarray(rows.reshape(len(rows), -1).any(1)) if rows.ndim > 1 else rows
    if rows.any():
        raise SpecificationError(
            f"{owner}: the {what} of {int(rows.sum())} of {len(rows)} rows is missing, the first is row "
            f"{int(rows.argmax())}. Leave these rows out everywhere, or give them a {what}."
        )


def listed_values(owner: str, what: str, values: Any) -> list[Any]:
    """Values ``(N,)`` of any type as a list, in their order.

    Raises:
        SpecificationError: Values without an order, or not one for each row.
    """
    if hasattr(values, "columns") and hasattr(values, "to_numpy") and len(values.columns) == 1:
        values = values[values.columns[0]]
    shape = tuple(getattr(values, "shape", ()))
    if isinstance(values, set | frozenset | Mapping | str) or len(shape) > 1 or not hasattr(values, "__iter__"):
        got = f"shape {shape}" if len(shape) > 1 else f"a {type(values).__name__}"
        raise SpecificationError(f"{owner}: {what}: got {got}; expected one value for each row, in order, (N,).")
    found = values.tolist() if hasattr(values, "tolist") else list(values)
    if set(map(type, found)) <= {*NEVER_MISSING, float}:
        return found
    found = [item.item() if getattr(item, "ndim", 1) == 0 and hasattr(item, "item") else item for item in found]
    for row, item in enumerate(found):
        try:
            hash(item)
        except TypeError:
            raise SpecificationError(
                f"{owner}: {what}: row {row} has a {type(item).__name__}; expected one value for each row, (N,). Join "
                f"several into one text."
            ) from None
    return found


def check_same_index(owner: str, **parts: Any) -> None:
    """Refuse frames and series of pandas whose indexes differ; what has no index belongs to rows by its position."""
    indexed = [(name, value) for name, value in parts.items() if hasattr(value, "iloc")]
    for name, value in indexed[1:]:
        first, known = indexed[0]
        if len(known) == len(value) and not known.index.equals(value.index):
            row = next((k for k, (a, b) in enumerate(zip(known.index, value.index, strict=True)) if a != b), 0)
            raise SpecificationError(
                f"{owner}: {name} and {first} have different indexes: row {row} is {value.index[row]!r} and "
                f"{known.index[row]!r}. Pass {name}.loc[{first}.index], or {name}.to_numpy() where they belong "
                f"together by position."
            )


def samples_in(dataset: Any) -> int | None:
    """How many samples a dataset says that it has; None where it does not know."""
    try:
        return len(dataset)
    except (TypeError, NotImplementedError, AttributeError, AssertionError):
        return None
