"""Guess what the columns of a table are: label, groups, numbers of rows, and how inputs are encoded and filled."""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import Mapping, Sequence
from keyword import iskeyword
from pathlib import Path
from typing import Any

import numpy as np

from repairopt.errors import SpecFileError
from repairopt.network import is_missing_word, missing_values

LABELS = ("label", "labels", "target", "y", "class", "decision", "outcome", "approved", "default", "income", "response")
SENSITIVE = ("sex", "gender", "race", "ethnicity", "ethnic", "age_group", "nationality", "religion", "disability")
IDENTIFIERS = ("id", "index", "row", "uuid", "key")
FEW, MANY = 12, 40  # values of a column: a group at most, categories at most
ROWS_OF_A_CLASS = 5  # at least, on average, of a column that is taken for the label by its name
TRIED = 5  # columns that may be the label, beside the likeliest
PLAIN = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
COMMAS = re.compile(r"[+-]?(\d+|\d*,\d+)")  # numbers with a decimal comma, and whole ones
ROW_NUMBERS = re.compile(r"|Unnamed: \d+|__index_level_\d+__")  # names of a column that a frame's index became


def label_columns(columns: Mapping[str, Any], label: str | None) -> list[tuple[str, str]]:
    """The columns that may be the true class, the likeliest first, and how each was found.

    Without a name that says so, the first one where no other has texts, else the last one; then the first, texts, and
    others of few values.
    """
    if label is not None:
        if label not in columns:
            raise SpecFileError(f"--label {label}: there is no such column; columns: {', '.join(columns)}.")
        return [(label, "as you said")]
    names = list(columns)
    told_by_name = [name for name in reversed(names) if name.lower() in LABELS and _has_classes(columns[name])]
    if told_by_name:
        return [(name, f"guessed by the name '{name}'") for name in told_by_name[:1]]
    texts = [name for name in names if columns[name].dtype.kind in "OUS"]
    words = texts == names[:1] and 2 <= len(distinct(columns[names[0]])) <= FEW
    first, why = (names[0], "the only column of texts") if words else (names[-1], "the last column")
    few = [name for name in reversed(names) if name != first and 2 <= len(distinct(columns[name])) <= FEW]
    few.sort(key=lambda name: (name not in (names[0], names[-1]), name not in texts))
    told = f"guessed: the network knows more of it than of '{first}', {why}"
    return [(first, f"guessed: '{first}' is {why}"), *((name, told) for name in few[:TRIED])]


def _has_classes(values: Any) -> bool:
    """Whether values repeat as classes do, and are no measurements: an income in currency is no label."""
    kinds = distinct(values)
    if values.dtype.kind not in "fiu":
        return 2 <= len(kinds) <= max(MANY, len(values) // ROWS_OF_A_CLASS)
    whole = all(float(kind).is_integer() for kind in kinds)
    counted = whole and max(kinds, default=0) - min(kinds, default=0) == len(kinds) - 1
    return whole and (2 <= len(kinds) <= MANY or (counted and len(kinds) <= len(values) // ROWS_OF_A_CLASS))


def group_columns(columns: Mapping[str, Any], label: str, sensitive: Sequence[str]) -> tuple[list[str], str]:
    """The columns that tell groups apart, and how they were found."""
    if sensitive:
        unknown = [name for name in sensitive if name not in columns]
        if unknown:
            raise SpecFileError(f"--sensitive {unknown[0]}: there is no such column; columns: {', '.join(columns)}.")
        if label in sensitive:
            raise SpecFileError(f"--sensitive {label}: is the label; name the label by --label, or another column.")
        return list(sensitive), "as you said"
    few = [name for name in columns if name != label and 2 <= len(distinct(columns[name])) <= FEW]
    named: dict[str, str] = {}
    for name in few:
        own = name.lower().replace("-", "_")
        for word in SENSITIVE:
            if own == word or own.startswith(f"{word}_"):  # the first of several columns, one for each value
                named.setdefault(word, name)
    if named:
        return list(named.values())[:2], "guessed by name"
    texts = [name for name in few if columns[name].dtype.kind in "OUS"]
    return texts[:1], "guessed: a column of few texts" if texts else "none found; name them by --sensitive"


def distinct(values: Any) -> list[Any]:
    """The values that occur, without missing ones."""
    import pandas

    return list(pandas.unique(pandas.Series(values).dropna()))


def with_numbers(columns: Mapping[str, Any]) -> dict[str, Any]:
    """The columns, those of numbers and of words such as NA as numbers, NaN where they are missing."""
    found = dict(columns)
    for name, values in columns.items():
        if values.ndim == 1 and values.dtype.kind == "O":
            missing = missing_values(values)
            missing |= np.array([isinstance(one, str) and (is_missing_word(one) or one == "?") for one in values])
            try:
                given = values[~missing].astype(np.float64)
            except (TypeError, ValueError):
                continue
            if len(given) and missing.any():
                found[name] = np.full(len(values), np.nan)
                found[name][~missing] = given
    return found


def encoding_of(data: Path) -> dict[str, str]:
    """The encoding of a CSV file that is not in UTF-8: by its first bytes, or the usual one of one byte a letter."""
    content = data.read_bytes()
    if content[:2] in (b"\xff\xfe", b"\xfe\xff"):
        return {"encoding": "utf-16"}
    try:
        content.decode()
    except UnicodeDecodeError:
        return {} if b"\0" in content else {"encoding": "cp1252"}
    return {}


def said_of_unread(columns: Mapping[str, Any], left: Sequence[str]) -> str:
    """In words which columns are texts that cannot be encoded, with an example."""
    few = [name for name in left if columns[name].dtype.kind in "OUSb" and len(distinct(columns[name])) < 2]
    many = [name for name in left if columns[name].dtype.kind in "OUS" and len(distinct(columns[name])) > MANY]
    said = f" '{many[0]}' has {len(distinct(columns[many[0]]))} texts, such as {columns[many[0]][0]!r}." if many else ""
    return said + (f" '{few[0]}' has one value alone." if few else "")


def text_options(data: Path, columns: Mapping[str, Any], separator: str) -> dict[str, str]:
    """A decimal comma, where a file whose cells another sign divides has numbers with one.

    Raises:
        SpecFileError: The first line of a CSV file is a row, so that the columns have no names.
    """
    if not data.name.endswith((".csv", ".csv.gz", ".tsv")):
        return {}
    texts = {name: values for name, values in columns.items() if values.dtype.kind == "O"}
    numbers = [name for name in columns if name not in texts]
    values = all(map(_is_number, numbers)) and all(name in distinct(texts[name]) for name in texts)
    if values and (texts or any(not float(name).is_integer() for name in numbers)):  # names such as 0, 1 are a frame's
        raise SpecFileError(
            f"data '{data.name}': its first line, {', '.join(list(columns)[:6])}, looks like a row; expected names of "
            f"the columns. Write a line of names above it."
        )
    if separator == "," and data.suffix != ".tsv":
        return {}
    kept = [found for values in texts.values() if (found := distinct(values))]
    commas = any(all(isinstance(value, str) and COMMAS.fullmatch(value) for value in found) for found in kept)
    return {"decimal": ","} if commas else {}


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def rows_to_read(columns: Mapping[str, Any], needed: Sequence[str]) -> str:
    """A condition on the rows that leaves out those without a label or a group; empty where none lacks one."""
    parts = []
    for name in needed:
        values = columns[name]
        if not missing_values(values).any():
            continue
        quoted = name if PLAIN.fullmatch(name) and not iskeyword(name) else json.dumps(name, ensure_ascii=False)
        numbers = values.dtype.kind in "fiu"
        parts.append(f"{quoted} >= {float(np.nanmin(values)):g}" if numbers else f'{quoted} != ""')
    return " and ".join(parts)


def encodings(columns: Mapping[str, Any], left: list[str], groups: Sequence[str], width: int | None) -> Any:
    """Choices of columns, each with its encoding, whose width is that of the network; the most natural first.

    Columns come in the order of the table, then numbers first or texts first, as encoders of frames leave them.
    """
    named = [name for name in left if not _counts_rows(name, columns[name])]
    numbers = [name for name in named if columns[name].dtype.kind in "fiub"]
    selections = [left, named, [n for n in named if n not in groups], numbers, [n for n in numbers if n not in groups]]
    seen: list[Any] = []
    for selection in selections:
        ordered = [sorted(selection, key=lambda name: (name in numbers) != first) for first in (True, False)]
        ways = itertools.product(("categories", "one_hot"), ("", "standard", "unit"), (selection, *ordered))
        for text, scaling, names in ways:
            found = {name: _encoding(columns[name], text, scaling) for name in names}
            wide = sum(len(how.get("one_hot", [0])) for how in found.values() if how is not None)
            fits = None not in found.values() and found and (width is None or wide == width)
            if fits and list(found.items()) not in seen:
                seen.append(list(found.items()))
                yield found


def repeated_share(inputs: Sequence[Any]) -> float:
    """The share of rows whose inputs, arrays ``(N, ...)``, are those of a row before."""
    import pandas

    flat = [[row.tobytes() for row in values] if values.ndim > 1 else values for values in inputs]
    return float(pandas.DataFrame(dict(enumerate(flat))).duplicated().mean())


def _counts_rows(name: str, values: Any) -> bool:
    """Whether a column is a number of the row, by its name or as the index of a frame that was written with it."""
    if name.lower() in IDENTIFIERS:
        return True
    return bool(ROW_NUMBERS.fullmatch(name)) and values.dtype.kind in "iu" and bool((np.diff(values) == 1).all())


def _encoding(values: Any, text: str, scaling: str) -> dict[str, Any] | None:
    """How one column is read; None for texts of too many kinds, and for columns without a value."""
    kept = distinct(values)
    missing = missing_values(values)
    if not kept:
        return None
    if values.dtype.kind in "OUSb":
        kinds = sorted(map(str, kept))
        given = [str(value) for value in values[~missing]]
        filled: dict[str, Any] = {"fill": max(kinds, key=given.count)} if missing.any() else {}
        return {text: kinds} | filled if 2 <= len(kinds) <= MANY else None
    numbers = values.astype(float)
    finite = numbers[np.isfinite(numbers)]
    mean, std, low, high = (float(f(finite)) for f in (np.mean, np.std, np.min, np.max))
    fill = {"fill": float(f"{float(np.median(finite)):.6g}")} if missing.any() else {}
    if scaling == "standard" and std > 0 and not (abs(mean) < 0.3 and 0.5 < std < 2):
        return {"mean": float(f"{mean:.6g}"), "std": float(f"{std:.6g}")} | fill
    if scaling == "unit" and high > low and not (low >= 0 and 0.5 < high <= 1):
        return {"scale": [low, high]} | fill
    return fill


def orders(values: Any) -> list[list[Any] | None]:
    """Ways to number the classes: as they are, or the texts in each order where these are few."""
    kinds = sorted(distinct(values), key=str)
    plain = [item.item() if isinstance(item, np.generic) else item for item in kinds]
    if values.dtype.kind in "fiu" and plain == list(range(len(plain))):
        return [None]
    numbers = [isinstance(item, int | float) and not isinstance(item, bool) for item in plain]
    names = [int(item) if number else str(item) for item, number in zip(plain, numbers, strict=True)]
    return [list(order) for order in itertools.permutations(names)] if len(names) <= 3 else [names]
