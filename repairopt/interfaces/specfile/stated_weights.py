"""Which weights a spec lets change, as ``solve_repair`` takes them."""

from __future__ import annotations

import re
from typing import Any

from repairopt.interfaces.specfile.language.statements import did_you_mean
from repairopt.localize import Gradient, Inputs, LayerGraph, LowRank

from .opened import OpenSpec


def chosen_weights(spec: OpenSpec) -> Any:
    """What to pass as ``weights`` of ``solve_repair``: the union of layers and columns, or ``"auto"``."""
    change = spec.file.spec.change
    layers = [change.layers] if isinstance(change.layers, str) else list(change.layers or [])
    columns = [change.columns] if isinstance(change.columns, str) else list(change.columns or [])
    if change.rank is not None:
        return _low_rank(spec, layers, columns, change.rank)
    parts: list[Any] = [part for name in layers for part in _named(spec, name)]
    if columns:
        parts.append(Inputs([i for name in columns for i in _places(spec, name)]))
    if not parts:
        return "auto" if change.count is None else Gradient(change.count)
    chosen: Any = parts[0] if len(parts) == 1 else parts
    return chosen if change.count is None else Gradient(change.count, within=chosen)


def _low_rank(spec: OpenSpec, layers: list[str], columns: list[str], rank: int) -> LowRank:
    """Factors beside the layers; of all where none is named."""
    change = spec.file.spec.change
    if columns or change.count is not None:
        key = "columns" if columns else "count"
        raise spec.file.fail(("change", key), f"{key} chooses weights, and rank changes factors; leave one of them out")
    names: list[str] = []
    for name in layers:
        if name in ("auto", "care", "gradient"):
            raise spec.file.fail(("change", "layers"), f"'{name}' chooses weights; with rank, name layers, or all")
        if name != "all":
            own = ["last1"] if name == "last" else [name]
            found = _named(spec, own[0])
            names += [one.rpartition(".")[0] for one in found if one.endswith(".weight")] if found != own else own
    return LowRank(rank, names)


def _named(spec: OpenSpec, name: str) -> list[str]:
    """The name itself, or for ``last2`` the names of the parameters of the last two layers."""
    numbered = re.fullmatch(r"last(\d+)", name)
    if numbered is None:
        return [name]
    count, rows = int(numbered[1]), spec.data.sets["repair"].inputs
    affine = LayerGraph(spec.model, None, rows[:2]).affine
    if not 1 <= count <= len(affine):
        reason = f"'{name}': the network has {len(affine)} linear and convolutional layers"
        raise spec.file.fail(("change", "layers"), reason)
    return [weight for layer in affine[-count:] for weight in (*layer.weights, *([layer.bias] if layer.bias else []))]


def _places(spec: OpenSpec, name: str) -> list[int]:
    known = list(spec.data.input_columns)
    found = [i for i, column in enumerate(known) if column == name or column.startswith(f"{name}=")]
    if not found:
        reason = f"the network reads no column '{name}'; {did_you_mean(name, known)}"
        raise spec.file.fail(("change", "columns"), reason)
    return found
