"""Read a file of rows as columns by name, ``(N, ...)`` each: npz, CSV, Parquet. No pickle is ever read.

In CSV an empty cell is missing, and so are words such as NA in columns of numbers; elsewhere these are texts.
"""

from __future__ import annotations

import csv
import gzip
from collections import Counter
from datetime import date, time
from decimal import Decimal
from pathlib import Path
from types import NoneType
from typing import Any

import numpy as np

from repairopt.errors import SpecFileError
from repairopt.patches import check_archive, read_arrays

from .reader import SpecFile

TABLES = (".csv", ".csv.gz", ".tsv", ".parquet")
Where = tuple[str, str, str]  # key of a file in a spec


def read_columns(file: SpecFile, name: str, path: Path) -> dict[str, Any]:
    """The columns, or arrays, of the file that the set of rows ``name`` of a spec stands in."""
    where, entry = ("data", name, "file"), file.spec.data[name]
    file.existing(where, entry.file)
    ending = "".join(path.suffixes[-2:]) if path.suffix == ".gz" else path.suffix
    if ending not in (".npz", *TABLES):
        raise file.fail(where, f"'{path}': unknown kind of file '{ending}'; expected .npz, {', '.join(TABLES)}")
    if entry.text_options and ending in (".npz", ".parquet"):
        key = next(iter(entry.text_options))
        raise file.fail(("data", name, key), f"'{path}': {key} is for CSV files; leave it out.")
    try:
        if ending == ".npz":
            arrays = read_arrays(path)
            if not any(len(values) for values in arrays.values() if values.ndim):
                raise file.fail(where, f"'{path}': has no rows.")
            return arrays
        check_archive(path)
        if ending == ".parquet":
            import pandas

            table = pandas.read_parquet(path)
        else:
            table = _read_csv(file, where, path, entry.separator or ("\t" if ending == ".tsv" else ","))
    except (SpecFileError, ImportError):
        raise
    except Exception as error:
        text = str(error).splitlines()[0] if str(error) else type(error).__name__
        hint = " Arrays of Python objects are pickles, which are refused." if "pickle" in text else ""
        hint = " Give its encoding:, such as cp1252 or utf-16." if isinstance(error, UnicodeError) else hint
        raise file.fail(where, f"'{path}': cannot be read ({text}).{hint}") from error
    _check_names(file, where, path, [str(column) for column in table.columns])
    if not len(table):
        raise file.fail(where, f"'{path}': has no rows.")
    return {str(column): _plain_cells(table[column].to_numpy()) for column in table.columns}


def _plain_cells(values: Any) -> Any:
    """Numbers and texts ``(N,)``: decimals become numbers; dates, lists and the like texts, which no network reads."""
    if values.dtype.kind in "mM":
        return np.where(np.isnat(values), None, values.astype(str).astype(object))
    if values.dtype.kind != "O":
        return values
    kinds = {type(value) for value in values}
    if any(issubclass(kind, Decimal) for kind in kinds) and all(
        issubclass(kind, Decimal | float | NoneType) for kind in kinds
    ):
        return np.array([np.nan if value is None else float(value) for value in values])
    odd = [kind for kind in kinds if kind.__hash__ is None or issubclass(kind, date | time)]
    return values if not odd else np.array([str(v) if type(v) in odd else v for v in values], dtype=object)


def _check_names(file: SpecFile, where: Where, path: Path, names: list[str]) -> None:
    twice = [name for name, count in Counter(names).items() if count > 1 and name]
    if twice:
        reason = f"'{path}': several columns are called '{twice[0]}'. Give each a name of its own."
        raise file.fail(where, reason)


def _read_csv(file: SpecFile, where: Where, path: Path, separator: str) -> Any:
    import pandas

    entry = file.spec.data[where[1]]
    columns = _checked_cells(file, where, path, (entry.encoding, separator))
    options: Any = {"sep": separator, "decimal": entry.decimal, "encoding": entry.encoding, "skipinitialspace": True}
    options |= {"usecols": range(len(columns)), "index_col": False}
    table = pandas.read_csv(path, **options)
    gaps = [k for k, column in enumerate(table.columns) if table[column].isna().any()]
    gaps = [k for k in gaps if table.dtypes.iloc[k].kind not in "fiu" or _lists_words(file, str(table.columns[k]))]
    gaps += [k for k, column in enumerate(table.columns) if k not in gaps and _lists_codes(file, str(column))]
    if gaps:  # texts such as NA are values there
        options |= {"usecols": gaps, "keep_default_na": False, "na_values": [""], "dtype": str}
        texts = pandas.read_csv(path, **options)
        for column in texts.columns:
            table[column] = texts[column].astype(object)
    return table


def _listed(file: SpecFile, column: str) -> list[Any]:
    """The values of a column that the spec lists."""
    how, label = (file.spec.inputs or {}).get(column), file.spec.label
    listed = [*(how.categories or how.one_hot or [])] if how else []
    return listed + [*((label.classes or []) if label is not None and label.column == column else [])]


def _lists_words(file: SpecFile, column: str) -> bool:
    """Whether the spec lists the texts of a column, so that it holds no numbers."""
    return any(isinstance(value, str) for value in _listed(file, column))


def _lists_codes(file: SpecFile, column: str) -> bool:
    """Whether the spec lists texts of digits that are others once they are read as numbers, such as 007."""
    return any(isinstance(value, str) and _is_code(value) for value in _listed(file, column))


def _is_code(text: str) -> bool:
    """Whether a text is a number that is written otherwise by Python."""
    try:
        number = float(text)
    except ValueError:
        return False
    return text not in (str(number), f"{number:.0f}")


def _checked_cells(file: SpecFile, where: Where, path: Path, how: tuple[str, str]) -> list[str]:
    """Names in the first line, after a look at every line: it has a cell for each name, and else empty ones only."""
    encoding, separator = how
    encoding = "utf-8-sig" if encoding.lower().replace("_", "-") in ("utf-8", "utf8") else encoding
    opened: Any = gzip.open if path.suffix == ".gz" else open
    with opened(path, "rt", encoding=encoding, newline="") as text:
        names: list[str] = []
        reader = csv.reader(text, delimiter=separator, skipinitialspace=True)
        for cells in reader:
            if len(cells) < 2 and not "".join(cells).strip():
                continue
            if not names:
                names = cells[: len(cells) - next((k for k, c in enumerate(reversed(cells)) if c.strip()), 0)]
                _check_names(file, where, path, names)
            elif len(cells) < len(names) or (len(cells) > len(names) and "".join(cells[len(names) :]).strip()):
                reason = f"'{path}', line {reader.line_num}: has {len(cells)} cells, its first line {len(names)}"
                raise file.fail(where, f"{reason}. Cells with '{separator}' in them stand in quotes.")
    return names
