"""The data of a spec: files of rows become sets with inputs, labels and columns. No pickle is ever read."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from repairopt.errors import LanguageError, SpecFileError, SpecificationError
from repairopt.interfaces.specfile.language.row_sets import Data, FileRows, RowSet, holds
from repairopt.interfaces.specfile.language.statements import did_you_mean
from repairopt.interfaces.specfile.language.syntax import read_filter
from repairopt.network import is_missing_word, missing_values
from repairopt.specify import row_weights

from .read_table import read_columns
from .reader import SpecFile

if TYPE_CHECKING:
    from .models import ColumnSpec, Spec


def input_names(spec: Spec) -> tuple[str, ...]:
    """Names of the inputs in order; a column by one_hot gives ``column=value`` for each value."""
    if spec.inputs is None:
        return tuple(spec.array.columns or ()) if spec.array is not None else ()
    names: list[str] = []
    for name, column in spec.inputs.items():
        names += [name] if column.one_hot is None else [f"{name}={value}" for value in column.one_hot]
    return tuple(names)


def encode(file: SpecFile, path: FileRows, columns: Mapping[str, Any]) -> Any:
    """The inputs ``(N, d)``, float32: one column for each entry of ``inputs``, more for one_hot."""
    parts = []
    for name, how in (file.spec.inputs or {}).items():
        if name not in columns:
            one = next(iter(columns)) if len(columns) == 1 else ""
            hint = next((f" Give the file separator: '{sign}'." for sign in ";\t|" if sign in one), "")
            reason = f"'{path}' has no column '{name}'; {did_you_mean(name, list(columns))}.{hint}"
            raise file.fail(("inputs", name), reason)
        parts.append(_encode_column(file, path, name, how, columns[name]))
    return np.ascontiguousarray(np.concatenate(parts, axis=1), dtype=np.float32)


def _encode_column(file: SpecFile, path: FileRows, name: str, how: ColumnSpec, values: Any) -> Any:
    where = ("inputs", name)
    wanted = how.categories if how.categories is not None else how.one_hot
    missing = _missing(values, wanted or (), how.missing)
    if missing.any():
        if how.fill is None:
            count, row = int(missing.sum()), path.first(missing)
            reason = f"column '{name}' of '{path}' has {count} missing values, first in row {row}; give fill:"
            raise file.fail(where, reason)
        values = np.where(missing, np.array(how.fill, dtype=object), values.astype(object))
    if wanted is not None:
        number = _positions(file, path, (name, where), wanted, values, how.other)
        return number[:, None] if how.one_hot is None else np.eye(len(wanted) + 1, len(wanted))[number]
    try:
        if any(isinstance(value, str) and "_" in value for value in values):
            raise ValueError("Python reads 1_000 as a number, other tools do not")
        numbers = values.astype(np.float64)
    except (ValueError, TypeError):
        found = sorted({str(value) for value in values})[:8]
        reason = f"column '{name}' of '{path}' holds texts ({', '.join(found)}, ...); give categories: or one_hot:"
        if all(str(value).replace(",", ".", 1).lstrip("+-").replace(".", "", 1).isdigit() for value in values):
            reason = f"column '{name}' of '{path}' holds numbers with commas ({found[0]}); give its file decimal: \",\""
        elif len(odd := [row for row, value in enumerate(values) if not _is_number(value)]) < len(values) / 2:
            reason = f"column '{name}' of '{path}' holds numbers, and {len(odd)} texts, such as {values[odd[0]]!r} in "
            reason += f"row {path.numbers[odd[0]]}; write them as numbers, or leave these rows out"
        raise file.fail(where, reason) from None
    _check_finite(file, path, where, f"column '{name}'", numbers)
    if how.scale is not None:
        numbers = (numbers - how.scale[0]) / (how.scale[1] - how.scale[0])
    if how.mean is not None and how.std is not None:
        numbers = (numbers - how.mean) / how.std
    return numbers[:, None]


def _check_finite(file: SpecFile, path: FileRows, where: tuple[str, ...], what: str, values: Any) -> None:
    """Refuse numbers ``(N, ...)`` that are none."""
    odd = ~np.isfinite(values).reshape(len(values), -1).all(axis=1)
    if odd.any():
        reason = f"{what} of '{path}' holds NaN or infinite numbers in {int(odd.sum())} rows, first in row "
        raise file.fail(where, f"{reason}{path.first(odd)}; correct them, or leave these rows out, by where: or rows:")


def _missing(values: Any, listed: Any, marks: Any = ()) -> Any:
    """Which values are missing: empty, marked so, or words such as NA and ? that are not among those ``listed``."""
    missing, given = missing_values(values), {_plain(mark) for mark in marks}
    if given:
        missing |= np.array([_plain(value) in given for value in values], dtype=bool)
    if values.dtype.kind in "OUS":
        known = {_plain(value) for value in listed}
        words = [(is_missing_word(value) or value == "?") and _plain(value) not in known for value in values]
        missing |= np.array(words, dtype=bool)
    return missing


def _is_number(value: Any) -> bool:
    with contextlib.suppress(ValueError, TypeError):
        float(value)
        return "_" not in str(value)
    return False


def _positions(
    file: SpecFile, path: FileRows, name: tuple[str, Any], wanted: list[Any], values: Any, other: Any = None
) -> Any:
    """The place of each value among the categories; of others that of ``other``, behind the last to be ignored."""
    place = {_plain(value): i for i, value in enumerate(wanted)}
    if len(place) < len(wanted):
        twice = next(value for i, value in enumerate(wanted) if place[_plain(value)] != i)
        raise file.fail(name[1], f"column '{name[0]}': {twice!r} is listed twice; keep one")
    rest = -1 if other is None else place.get(_plain(other), len(wanted))
    found = np.array([place.get(_plain(value), rest) for value in values])
    if (found < 0).any():
        row = path.first(found < 0)
        unknown = sorted({str(value) for value in values[found < 0]})
        reason = f"column '{name[0]}' of '{path}' has values that are not listed, such as '{unknown[0]}' in row {row}"
        hint = "" if name[1] == ("label",) else "; other: says what such values become"
        if {"True", "False"} & set(place) and unknown[0].lower() in ("yes", "no", "on", "off", "true", "false"):
            hint = f"; YAML reads {unknown[0]} as a truth value, so put the values into quotes"
        raise file.fail(name[1], f"{reason}; {did_you_mean(unknown[0], [str(value) for value in wanted])}{hint}")
    return found


def _plain(value: Any) -> str:
    """Numbers and texts that mean the same category look the same: 1, 1.0 and "1"."""
    if isinstance(value, float | np.number) and float(value).is_integer():
        return str(int(value))
    return str(value).strip()


def label_numbers(file: SpecFile, path: FileRows, columns: Mapping[str, Any]) -> Any:
    """Class indices ``(N,)``, int64, or None where the spec names no label."""
    label = file.spec.label
    if label is None:
        return None
    where = ("label",)
    if label.column not in columns:
        reason = f"'{path}' has no column '{label.column}'; {did_you_mean(label.column, list(columns))}"
        raise file.fail(where, reason)
    values = columns[label.column]
    if values.ndim > 1:
        what = "squeeze(1)" if values.shape[1] == 1 else "argmax(1), where it holds a 1 for the class"
        reason = (
            f"label '{label.column}' of '{path}' has shape {values.shape}; expected one label a row, such as by .{what}"
        )
        raise file.fail(where, reason)
    missing = _missing(values, label.classes or ())
    if missing.any():
        count, row = int(missing.sum()), path.first(missing)
        reason = f"label '{label.column}' of '{path}' is missing in {count} of {len(missing)} rows, first in row {row}"
        raise file.fail(where, f"{reason}; leave these rows out, by where: or in the file")
    names = None if label.classes is None else {_plain(name) for name in label.classes}
    by_name = values.dtype.kind in "OUSTb" or all(map(_is_number, names or ()))  # else numbers are positions
    if names is not None and (by_name or {_plain(value) for value in values} <= names):
        return _positions(file, path, (label.column, where), label.classes or [], values).astype(np.int64)
    if values.dtype.kind not in "fiub" or any(not float(value).is_integer() for value in np.unique(values)):
        found = ", ".join(sorted({str(value) for value in values})[:8])
        reason = (
            f"label '{label.column}' of '{path}' holds {found}; list them in order: label: {{column: , classes: [...]}}"
        )
        raise file.fail(where, reason)
    if (negative := values < 0).any():
        row = path.first(negative)
        reason = f"label '{label.column}' of '{path}' is {values[negative][0]} in row {row}; classes count from 0"
        raise file.fail(where, f"{reason}. Leave rows without a label out, by where: or in the file")
    return values.astype(np.int64)


def load_data(file: SpecFile) -> Data:
    """Read every set of rows that a spec names, with those that ``split`` draws from ``repair``."""
    opened: dict[Any, dict[str, Any]] = {}
    classes = [str(name) for name in (file.spec.label.classes or [])] if file.spec.label else []
    sets = {name: _row_set(file, name, opened) for name in file.spec.data}
    _check_shapes(file, sets)
    split = file.spec.split
    if split.held_out or split.guard:
        sets |= _divided(file, sets["repair"])
    return Data(sets, classes, input_names(file.spec), file.folder)


def _check_shapes(file: SpecFile, sets: Mapping[str, RowSet]) -> None:
    """Refuse sets whose rows one network cannot read: of another width, or another number of axes."""
    flexible = file.spec.array is not None and file.spec.array.integers  # texts may be of any length
    first = next(iter(sets), "")
    for name, rows in sets.items():
        own, wanted = tuple(rows.inputs.shape[1:]), tuple(sets[first].inputs.shape[1:])
        if len(own) != len(wanted) or (len(own) == 1 and own != wanted and not flexible):
            reason = f"rows of '{name}' ('{file.spec.data[name].file}') have shape {own}, those of '{first}' {wanted}"
            raise file.fail(("data", name), f"{reason}; one network reads them all")


def _divided(file: SpecFile, rows: RowSet) -> dict[str, RowSet]:
    split = file.spec.split
    order = np.random.default_rng(split.seed).permutation(len(rows))
    kind = _equal_rows(rows.inputs)[order] if split.together else order
    order, kind = (values[_by_first(kind)] for values in (order, kind))
    found, start = {}, 0
    for name, share in (("held_out", split.held_out), ("guard", split.guard)):
        count = round(share * len(rows))
        if share and not count:
            raise file.fail(("split", name), f"{share:g} of {len(rows)} rows is none; give a larger share.")
        if share:
            end = start + count
            while end < len(rows) and kind[end] == kind[end - 1]:
                end += 1
            found[name] = rows.choose(np.sort(order[start:end]))
            start = end
    if start == len(rows):
        raise file.fail(("split",), "leaves no row for the repair; give smaller shares.")
    return {**found, "repair": rows.choose(np.sort(order[start:]))}


def _equal_rows(inputs: torch.Tensor) -> Any:
    """For each row ``(N,)`` the number of what it reads, the same for equal inputs."""
    return torch.unique(inputs.flatten(1), dim=0, return_inverse=True)[1].numpy()


def _by_first(kind: Any) -> Any:
    """An order in which equal values stand together, where the first of them stood; that of distinct ones stays."""
    _, first, own = np.unique(kind, return_index=True, return_inverse=True)
    return np.argsort(first[own], kind="stable")


def _row_set(file: SpecFile, name: str, opened: dict[Any, dict[str, Any]]) -> RowSet:
    entry = file.spec.data[name]
    path = file.folder / entry.file
    key = (path, *entry.text_options.items())
    if key not in opened:
        opened[key] = read_columns(file, name, path)
    columns = opened[key]
    try:
        rows = FileRows(path, _chosen(file, name, columns))
        count = _count(file, columns)
        chosen = {key: v[rows.numbers] for key, v in columns.items() if v.ndim and len(v) == count}
        inputs = _inputs(file, rows, chosen)
        labels = label_numbers(file, rows, chosen)
        known = _group_columns(file, chosen, len(inputs))
        targets = None if labels is None else torch.from_numpy(labels)
        return RowSet(torch.from_numpy(inputs), targets, known, _weights(file, rows, chosen), rows)
    except SpecFileError:
        raise
    except SpecificationError as error:
        raise file.fail(("data", name), f"'{path}': {error}") from error


def _weights(file: SpecFile, path: FileRows, columns: Mapping[str, Any]) -> torch.Tensor | None:
    """How much each row counts ``(N,)``, or None where the spec names no weight."""
    name = file.spec.weight
    if name is None:
        return None
    if name not in columns:
        raise file.fail(("weight",), f"'{path}' has no column '{name}'; {did_you_mean(name, list(columns))}")
    values = columns[name]
    missing = _missing(values, ())
    if missing.any():
        count, row = int(missing.sum()), path.first(missing)
        reason = f"weight '{name}' of '{path}' is missing in {count} of {len(missing)} rows, first in row {row}"
        raise file.fail(("weight",), f"{reason}; leave these rows out, by where: or in the file")
    odd = [value for value in values.tolist() if not _is_number(value)]
    if odd:
        raise file.fail(("weight",), f"weight '{name}' of '{path}' holds {odd[0]!r}; expected numbers")
    try:
        return row_weights(f"column '{name}' of '{path}'", values.astype(np.float64), None, len(values))
    except SpecificationError as error:
        raise file.fail(("weight",), str(error)) from error


def _chosen(file: SpecFile, name: str, columns: Mapping[str, Any]) -> Any:
    """The numbers of the rows that ``rows`` and ``where`` choose, ``(N,)``."""
    entry, count = file.spec.data[name], _count(file, columns)
    rows = np.arange(count)
    if entry.rows is not None:
        start, stop = (int(end) if end else None for end in entry.rows.split(":"))
        rows = rows[start:stop]
        if not len(rows):
            raise file.fail(("data", name, "rows"), f"rows {entry.rows} are none of the {count} rows.")
    if entry.where is not None:
        texts = {key: values for key, values in columns.items() if values.ndim == 1 and len(values) == count}
        part = RowSet(torch.zeros(count, 1), None, texts | _named_columns(file, columns))
        try:
            rows = rows[holds(part, read_filter(entry.where))[rows]]
        except LanguageError:
            raise
        except SpecificationError as error:
            raise file.fail(("data", name, "where"), f"{entry.where}: {error}") from error
        if not len(rows):
            raise file.fail(("data", name, "where"), f"no row fulfils {entry.where}")
    return rows


def _count(file: SpecFile, columns: Mapping[str, Any]) -> int:
    if file.spec.array is None:
        return len(next(iter(columns.values())))
    name = file.spec.array.name
    if name not in columns:
        raise file.fail(("array",), f"there is no array '{name}'; {did_you_mean(name, list(columns))}")
    return len(columns[name])


def _inputs(file: SpecFile, path: FileRows, columns: Mapping[str, Any]) -> Any:
    """What the network reads, ``(N, ...)``."""
    array = file.spec.array
    if array is None:
        return encode(file, path, columns)
    values = columns[array.name]
    if values.dtype.kind not in "fiub":
        raise file.fail(("array",), f"array '{array.name}' of '{path}' holds {values.dtype}; expected numbers.")
    _check_finite(file, path, ("array",), f"array '{array.name}'", values)
    if array.integers and values.dtype.kind == "f":
        fractions = (values != np.round(values)).reshape(len(values), -1).any(axis=1)
        if fractions.any():
            reason = f"array '{array.name}' of '{path}' holds fractions, first in row {path.first(fractions)}"
            raise file.fail(("array", "integers"), f"{reason}; leave integers: out, or give whole numbers")
        values = values.astype(np.int64)
    if not array.integers:
        values = values.astype(np.float32)
    if array.scale is not None:
        values = (values - array.scale[0]) / np.float32(array.scale[1] - array.scale[0])
    if array.mean is not None or array.std is not None:
        values = (values - np.float32(array.mean or 0.0)) / np.float32(array.std or 1.0)
    if array.shape is not None:
        if int(np.prod(array.shape)) != int(np.prod(values.shape[1:])):
            raise file.fail(("array", "shape"), f"rows of shape {values.shape[1:]} do not become {tuple(array.shape)}")
        values = values.reshape(len(values), *array.shape)
    return np.ascontiguousarray(values if array.integers else values.astype(np.float32))


def _named_columns(file: SpecFile, columns: Mapping[str, Any]) -> dict[str, Any]:
    """The columns of the array that have names."""
    array = file.spec.array
    if array is None or array.columns is None:
        return {}
    values = columns[array.name]
    if values.ndim != 2 or values.shape[1] != len(array.columns):
        reason = f"{len(array.columns)} names for an array of shape {values.shape}; expected one a column."
        raise file.fail(("array", "columns"), reason)
    return {name: values[:, i] for i, name in enumerate(array.columns)}


def _group_columns(file: SpecFile, columns: Mapping[str, Any], count: int) -> dict[str, Any]:
    """The columns that statements may name; those of ``sensitive_features`` must be there."""
    found = {key: values for key, values in columns.items() if values.ndim == 1 and len(values) == count}
    found = {**_named_columns(file, columns), **found}
    for i, name in enumerate(file.spec.sensitive_features):
        if name not in found:
            reason = f"there is no column '{name}'; {did_you_mean(name, list(found))}"
            raise file.fail(("sensitive_features", i), reason)
    return found
