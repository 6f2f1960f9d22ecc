"""Columns of a table as inputs of the network, and labels as class numbers, as the spec says."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from repairopt.interfaces.specfile.language.statements import did_you_mean

if TYPE_CHECKING:
    from .models import ColumnSpec, Spec
    from .reader import SpecFile


def input_names(spec: Spec) -> tuple[str, ...]:
    """Names of the inputs in order; a column by one_hot gives ``column=value`` for each value."""
    if spec.inputs is None:
        return tuple(spec.array.columns or ()) if spec.array is not None else ()
    names: list[str] = []
    for name, column in spec.inputs.items():
        names += [name] if column.one_hot is None else [f"{name}={value}" for value in column.one_hot]
    return tuple(names)


def encode(file: SpecFile, path: Path, columns: Mapping[str, Any]) -> Any:
    """The inputs ``(N, d)``, float32: one column for each entry of ``inputs``, more for one_hot."""
    parts = []
    for name, how in (file.spec.inputs or {}).items():
        if name not in columns:
            reason = f"'{path}' has no column '{name}'; {did_you_mean(name, list(columns))}"
            raise file.fail(("inputs", name), reason)
        parts.append(_encode_column(file, path, name, how, columns[name]))
    return np.ascontiguousarray(np.concatenate(parts, axis=1), dtype=np.float32)


def _encode_column(file: SpecFile, path: Path, name: str, how: ColumnSpec, values: Any) -> Any:
    import pandas

    where = ("inputs", name)
    missing = pandas.isna(values)
    if missing.any():
        if how.fill is None:
            count, row = int(missing.sum()), int(missing.nonzero()[0][0])
            reason = f"column '{name}' of '{path}' has {count} missing values, first in row {row}; give fill:"
            raise file.fail(where, reason)
        values = np.where(missing, np.array(how.fill, dtype=object), values.astype(object))
    wanted = how.categories if how.categories is not None else how.one_hot
    if wanted is not None:
        number = _positions(file, path, (name, where), wanted, values)
        return number[:, None] if how.one_hot is None else np.eye(len(wanted))[number]
    try:
        numbers = values.astype(np.float64)
    except (ValueError, TypeError):
        found = sorted({str(value) for value in values})[:8]
        reason = f"column '{name}' of '{path}' holds texts ({', '.join(found)}, ...); give categories: or one_hot:"
        raise file.fail(where, reason) from None
    if how.scale is not None:
        numbers = (numbers - how.scale[0]) / (how.scale[1] - how.scale[0])
    if how.mean is not None and how.std is not None:
        numbers = (numbers - how.mean) / how.std
    return numbers[:, None]


def _positions(file: SpecFile, path: Path, name: tuple[str, Any], wanted: list[Any], values: Any) -> Any:
    """The place of each value among the categories."""
    place = {_plain(value): i for i, value in enumerate(wanted)}
    found = np.array([place.get(_plain(value), -1) for value in values])
    if (found < 0).any():
        row = int((found < 0).nonzero()[0][0])
        unknown = sorted({str(value) for value in values[found < 0]})
        reason = f"column '{name[0]}' of '{path}' has values that are not listed, such as '{unknown[0]}' in row {row}"
        raise file.fail(name[1], f"{reason}; {did_you_mean(unknown[0], [str(value) for value in wanted])}")
    return found


def _plain(value: Any) -> str:
    """Numbers and texts that mean the same category look the same: 1, 1.0 and "1"."""
    if isinstance(value, int | float | np.number) and float(value) == int(value):
        return str(int(value))
    return str(value).strip()


def label_numbers(file: SpecFile, path: Path, columns: Mapping[str, Any]) -> Any:
    """Class indices ``(N,)``, int64, or None where the spec names no label."""
    label = file.spec.label
    if label is None:
        return None
    where = ("label",)
    if label.column not in columns:
        reason = f"'{path}' has no column '{label.column}'; {did_you_mean(label.column, list(columns))}"
        raise file.fail(where, reason)
    values = columns[label.column]
    names = None if label.classes is None else {_plain(name) for name in label.classes}
    if names is not None and (values.dtype.kind in "OUSTb" or {_plain(value) for value in values} <= names):
        return _positions(file, path, (label.column, where), label.classes or [], values).astype(np.int64)
    if values.dtype.kind not in "fiub" or (values.astype(np.float64) != np.round(values.astype(np.float64))).any():
        found = ", ".join(sorted({str(value) for value in values})[:8])
        reason = (
            f"label '{label.column}' of '{path}' holds {found}; list them in order: label: {{column: , classes: [...]}}"
        )
        raise file.fail(where, reason)
    return values.astype(np.int64)
