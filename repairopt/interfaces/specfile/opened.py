"""A spec with everything that it names: the network, the rows, goal and bounds on them."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from repairopt.errors import LanguageError
from repairopt.interfaces.specfile.language.bind import BoundStatement, bind_statement
from repairopt.interfaces.specfile.language.row_sets import Data
from repairopt.interfaces.specfile.language.statements import Statement

from .load_rows import load_data
from .model_file import load_model
from .reader import SpecFile, check_spec, read_spec


@dataclass(frozen=True, eq=False)
class OpenSpec:
    """A repair, ready to be checked, solved or verified; ``held_out`` has the statements on held-out rows."""

    file: SpecFile
    model: nn.Module
    data: Data
    goal: BoundStatement | None
    bounds: tuple[BoundStatement, ...]
    watch: tuple[BoundStatement, ...]
    held_out: tuple[BoundStatement, ...] = field(default=())

    def hashes(self) -> dict[str, str]:
        """SHA-256 of every file that the spec names."""
        spec, found = self.file.spec, {}
        names = [entry.file for entry in spec.data.values()]
        names += [name for name in (spec.model.weights, spec.model.onnx) if name is not None]
        for name in dict.fromkeys(names):
            with (self.file.folder / name).open("rb") as file:
                found[name] = hashlib.file_digest(file, "sha256").hexdigest()
        return found


def open_spec(source: str | Path | SpecFile | Mapping[str, Any]) -> OpenSpec:
    """Load the network and the rows of a spec, by path, as read, or as a dict, and bind goal and bounds to them."""
    if isinstance(source, Mapping):
        file = check_spec(Path("spec"), dict(source))
    else:
        file = source if isinstance(source, SpecFile) else read_spec(source)
    data = _cast(load_data(file), model := load_model(file))
    goal = None if file.goal is None else _bind(file, file.goal, data, ("goal",))
    bounds = tuple(_bind(file, bound, data, ("bounds", i)) for i, bound in enumerate(file.bounds))
    watch = tuple(_bind(file, item, data, ("watch", i)) for i, item in enumerate(file.watch))
    own = [item for item in (goal, *bounds, *watch) if item is not None and item.data == "repair"]
    where = ("data", "held_out")
    twins = [_bind(file, item.statement, data, where, "held_out") for item in own if "held_out" in data.sets]
    if goal is not None:
        goal.as_goal()
    return OpenSpec(file, model, data, goal, bounds, watch, tuple(twins))


def _bind(file: SpecFile, statement: Statement, data: Data, where: Any, on: str | None = None) -> BoundStatement:
    try:
        return bind_statement(statement, data, on)
    except LanguageError as error:
        raise file.fail(where, str(error)) from error


def _cast(data: Data, model: nn.Module) -> Data:
    """Inputs with fractions in the precision of the network."""
    dtype = next((p.dtype for p in model.parameters() if p.is_floating_point()), torch.float32)
    sets = dict(data.sets)
    for name, rows in data.sets.items():
        if rows.inputs.is_floating_point():
            sets[name] = replace(rows, inputs=rows.inputs.to(dtype))
    return replace(data, sets=sets)
