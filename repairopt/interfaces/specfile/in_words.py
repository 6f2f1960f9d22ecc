"""Inputs of the network back in the units and categories of the data, and class numbers as names."""

from __future__ import annotations

import re
from dataclasses import replace
from typing import Any

import numpy as np

from .models import ColumnSpec
from .opened import OpenSpec


def decode(spec: OpenSpec, evidence: Any) -> Any:
    """What a page shows (``repairopt.report.pictures.evidence.Evidence``), in the words of a spec."""
    said, shown = spec.file.spec, []
    for one in evidence.affected:
        names, cells = tuple(spec.data.input_columns), one.cells
        if said.inputs is not None:
            names, cells = tuple(said.inputs), _rows(said.inputs, one.inputs)
        elif said.array is not None and not one.are_images:
            low, high = said.array.scale or (0.0, 1.0)
            values = (one.inputs * (said.array.std or 1.0) + (said.array.mean or 0.0)) * (high - low) + low
            flat = values.reshape(len(values), -1)
            names = names or tuple(f"column {j}" for j in range(flat.shape[1]))
            cells = tuple(tuple(f"{value:.5g}" for value in row) for row in flat)
        shown.append(replace(one, features=names, cells=cells, places=_places(spec, one)))
    classes = tuple(map(str, spec.data.classes))
    rates = [replace(one, groups=tuple(_group(group, classes) for group in one.groups)) for one in evidence.rates]
    return replace(evidence, affected=tuple(shown), rates=tuple(rates), classes=classes)


def _places(spec: OpenSpec, one: Any) -> tuple[str, ...]:
    """For each affected input the row of the file that it is; none where one of them is in no file, as sampled ones."""
    sets = [rows for name, rows in spec.data.sets.items() if (name == "held_out") == one.held_out]
    files = {str(rows.source) for rows in spec.data.sets.values()}
    found = []
    for row in one.inputs:
        at: list[tuple[str, int]] = []
        for rows in sets:
            if rows.source is not None and rows.inputs.shape[1:] == row.shape:
                same = (rows.inputs.numpy() == row).reshape(len(rows), -1).all(axis=1)
                at += [(rows.source.path.name, int(number)) for number in rows.source.numbers[same]]
        if not at:
            return ()
        at = list(dict.fromkeys(at))
        told = f"{at[0][1]:,}" if len(files) == 1 else f"{at[0][0]}: {at[0][1]:,}"
        found.append(told if len(at) == 1 else f"{told} and {len(at) - 1} like it")
    return tuple(found)


def _group(name: str, classes: tuple[str, ...]) -> str:
    """A class by its name, also where a group is told apart by it, as in ``women, label 1``."""
    found = re.fullmatch(r"(class |.*, label )(\d+)", name, re.DOTALL)
    if found is None or int(found[2]) >= len(classes):
        return name
    return found[1].removeprefix("class ") + classes[int(found[2])]


def _rows(columns: dict[str, ColumnSpec], inputs: Any) -> tuple[tuple[str, ...], ...]:
    """One text for each column of the data, from the inputs ``(K, d)``."""
    texts, at = [], 0
    for how in columns.values():
        width = 1 if how.one_hot is None else len(how.one_hot)
        texts.append(_column(how, np.asarray(inputs[:, at : at + width], dtype=np.float64)))
        at += width
    return tuple(zip(*texts, strict=True))


def _column(how: ColumnSpec, values: Any) -> list[str]:
    if how.one_hot is not None:
        return [str(how.one_hot[k]) for k in values.argmax(axis=1)]
    numbers = values[:, 0]
    if how.categories is not None:
        return [str(how.categories[k]) for k in numbers.round().astype(int)]
    if how.scale is not None:
        numbers = numbers * (how.scale[1] - how.scale[0]) + how.scale[0]
    if how.mean is not None and how.std is not None:
        numbers = numbers * how.std + how.mean
    return [f"{number:.5g}" for number in numbers]
