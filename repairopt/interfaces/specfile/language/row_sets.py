"""Sets of rows by name, with the columns and classes that statements speak of."""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from repairopt.errors import SpecificationError
from repairopt.network import as_tensor, missing_values

from .syntax import Condition

COMPARE: dict[str, Callable[[Any, Any], Any]] = {
    "<": operator.lt,
    "<=": operator.le,
    ">": operator.gt,
    ">=": operator.ge,
    "==": operator.eq,
    "!=": operator.ne,
    "in": lambda values, wanted: np.isin(values, wanted),
}


@dataclass(frozen=True, eq=False)
class FileRows:
    """Which rows of a file are meant: their numbers ``(N,)``, counted from 0 below the names of the columns."""

    path: Path
    numbers: Any

    def __str__(self) -> str:
        return str(self.path)

    def first(self, mask: Any) -> int:
        """Number in the file of the first row for which a mask ``(N,)`` holds."""
        return int(self.numbers[np.asarray(mask).nonzero()[0][0]])


@dataclass(frozen=True, eq=False)
class RowSet:
    """Rows of data.

    ``inputs`` is what the network reads, ``(N, ...)``, ``labels`` class indices ``(N,)`` or None. ``columns`` has by
    name the values of further columns as they stand in the data, ``(N,)`` each: for groups and conditions. ``weights``
    say how much each row counts, ``(N,)``; None for all the same. ``source`` says which rows of which file they are.
    """

    inputs: Tensor
    labels: Tensor | None = None
    columns: Mapping[str, Any] = field(default_factory=dict)
    weights: Tensor | None = None
    source: FileRows | None = None

    def __post_init__(self) -> None:
        for what in ("inputs", "labels", "weights"):
            given = getattr(self, what)
            if given is not None or what == "inputs":
                found = as_tensor(f"rows, {what}", given)
                if not found.ndim:
                    raise SpecificationError(f"rows: {what} is {given!r}; expected one for each sample, (N, ...).")
                object.__setattr__(self, what, found)
        if not isinstance(self.columns, Mapping):
            raise SpecificationError(
                f"rows: columns is a {type(self.columns).__name__}; expected values (N,) by name, {{'age': ages}}."
            )
        object.__setattr__(self, "columns", {name: np.atleast_1d(values) for name, values in self.columns.items()})
        sizes = {name: len(values) for name, values in self.columns.items()}
        sizes |= {} if self.labels is None else {"labels": len(self.labels)}
        sizes |= {} if self.weights is None else {"weights": len(self.weights)}
        wrong = [name for name, size in sizes.items() if size != len(self)]
        if wrong:
            raise SpecificationError(
                f"rows: '{wrong[0]}' has {sizes[wrong[0]]} values for {len(self)} inputs; expected one for each."
            )

    def __len__(self) -> int:
        return int(self.inputs.shape[0])

    def choose(self, rows: Any) -> RowSet:
        """Some of the rows, by positions or a mask."""
        picked = np.asarray(rows)
        at = torch.as_tensor(picked.nonzero()[0] if picked.dtype == bool else picked.astype(np.int64))
        labels = None if self.labels is None else self.labels[at]
        weights = None if self.weights is None else self.weights[at]
        columns = {name: v[at.numpy()] for name, v in self.columns.items()}
        source = None if self.source is None else replace(self.source, numbers=self.source.numbers[at.numpy()])
        return RowSet(self.inputs[at], labels, columns, weights, source)


@dataclass(frozen=True, eq=False)
class Data:
    """All sets of rows of a repair.

    Attributes:
        sets: By name; ``repair`` is what statements speak of unless they say otherwise, ``held_out`` what a repair
            never sees.
        classes: Names of the classes in the order of the network's outputs, or empty where they are numbers.
        input_columns: Names of the columns of the inputs, in order, or empty.
        folder: What file names and Python modules in statements are relative to.
        regions: Input regions that are stated beside the rows.
    """

    sets: Mapping[str, RowSet]
    classes: Sequence[str] = ()
    input_columns: Sequence[str] = ()
    folder: Path = Path()
    regions: Sequence[Any] = ()
    _parts: dict[Any, RowSet] = field(default_factory=dict, init=False, repr=False)

    def part(self, name: str, where: tuple[Condition, ...] | None = None, first: int | None = None) -> RowSet:
        """A set, or the first of its rows for which conditions hold, perhaps none; the same tensors each time."""
        if where is None and first is None:
            return self.sets[name]
        key = (name, repr([(c.column, c.relation, c.value) for c in where or ()]), first)
        if key not in self._parts:
            found = self.sets[name]
            rows = np.arange(len(found)) if where is None else holds(found, where).nonzero()[0]
            self._parts[key] = found.choose(rows[:first])
        return self._parts[key]


def holds(rows: RowSet, where: tuple[Condition, ...]) -> Any:
    """For each row whether all conditions hold, ``(N,)``: none does for a missing value.

    A SpecificationError where a column does not fit.
    """
    mask = np.ones(len(rows), dtype=bool)
    for condition in where:
        if condition.column not in rows.columns:
            raise SpecificationError(
                f"there is no column '{condition.column}'; columns: {', '.join(map(str, rows.columns)) or 'none'}"
            )
        values, wanted = rows.columns[condition.column], condition.value
        texts = values.dtype.kind in "OUS"
        missing = missing_values(values)
        values = np.where(missing, "", values).astype(str) if texts else values
        sample = wanted[0] if isinstance(wanted, list) and wanted else wanted
        if texts != isinstance(sample, str):
            kind = "texts" if texts else "numbers"
            raise SpecificationError(f"column '{condition.column}' holds {kind}, compared with {wanted!r}")
        mask &= np.asarray(COMPARE[condition.relation](values, wanted), dtype=bool) & ~missing
    return mask
