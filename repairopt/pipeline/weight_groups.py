"""Groups of weights that are chosen together: columns of input features, offsets by group, whole layers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from repairopt.errors import RepairError
from repairopt.localize import LayerGraph, first_inputs, frozen_parameters, input_columns, weights_reading
from repairopt.methods import GroupOffsets
from repairopt.specify import Divided, inputs_of, measured, of_real_rows

from .prepare import Prepared

MOST_WEIGHTS = 6_000  # in the model of all weights; layers are left out from the first on until it fits
MOST_COLUMNS = 64  # input features whose columns are groups of their own
LEAST_SUPPORT, LEAST_SHARE = 30, 0.05  # rows, or a share of few, that differ in a column whose weights may change


@dataclass(frozen=True, eq=False)
class WeightGroup:
    """Some weights that go together."""

    name: str
    indices: dict[str, Tensor]
    column: bool = False
    unit: int | None = None  # input feature whose column it is


def find_groups(prepared: Prepared) -> list[WeightGroup]:
    """Columns of input features where they are few, then layers, the last ones first; never an overlap."""
    spec = prepared.specification
    graph = LayerGraph(prepared.model, prepared.task.engine.forward_fn, first_inputs(spec.goal, spec.on_outputs))
    found: list[WeightGroup] = []
    total, seen = 0, set[str]()
    frozen = frozen_parameters(prepared.model)
    layers = [layer for layer in graph.affine if layer.weights]
    columns = _columns(graph, prepared) if len(layers) > 1 else []
    protected = _protected(graph, spec.protected)
    for layer in reversed(layers[1:] if columns else layers):
        names = [*layer.weights, *([layer.bias] if layer.bias else [])]
        size = sum(graph.parameters[name].numel() for name in names)
        if frozen & set(names):
            continue
        if seen & set(names) or (found and total + size > MOST_WEIGHTS):
            break
        seen |= set(names)
        total += size
        own = {n: torch.arange(graph.parameters[n].numel()) for n in names}
        own = {n: p[~torch.isin(p, protected[n])] if n in protected else p for n, p in own.items()}
        found.append(WeightGroup(layer.name or names[0], {n: p for n, p in own.items() if len(p)}))
    columns = [*columns, *(group for group in _offsets(prepared.model) if not seen & set(group.indices))]
    size = sum(len(p) for group in columns for p in group.indices.values())
    return [*found, *(columns if total + size <= MOST_WEIGHTS else [])] if total <= MOST_WEIGHTS else []


def _protected(graph: LayerGraph, units: Sequence[Any]) -> dict[str, Tensor]:
    """Positions of the weights that read protected columns; none where they cannot be told."""
    try:
        return weights_reading(graph, units) if units else {}
    except RepairError:
        return {}


def _offsets(model: nn.Module) -> list[WeightGroup]:
    """The offsets of each :class:`GroupOffsets`: like a column, few weights that tell groups apart."""
    found = []
    for name, module in model.named_modules():
        if isinstance(module, GroupOffsets):
            called = f"{name}.offsets" if name else "offsets"
            found.append(WeightGroup(called, {called: torch.arange(module.offsets.numel())}, column=True))
    return found


def _columns(graph: LayerGraph, prepared: Prepared) -> list[WeightGroup]:
    """The weights of each input feature in the first layer; none where features are many, or no linear layer reads.

    Features that next to all rows share are left out, because what their weights do is seen on a few rows alone, and
    those of protected attributes that nothing is asked of.
    """
    if graph.graph is None or not graph.affine or len(graph.affine[0].weights) != 1:
        return []
    weight = graph.parameters[graph.affine[0].weights[0]]
    if graph.affine[0].weights[0] in frozen_parameters(prepared.model):
        return []
    if weight.ndim != 2 or weight.shape[1] > MOST_COLUMNS:
        return []
    found, spec = [], prepared.specification
    rare, names = _rare_columns(prepared, weight.shape[1]), spec.columns
    for unit in range(weight.shape[1]):
        try:
            _, indices = input_columns(graph, [unit], None)
        except RepairError:
            return []
        name = names[unit] if len(names) == weight.shape[1] else f"input {unit}"
        if unit not in rare and unit not in spec.protected:
            found.append(WeightGroup(name, indices, column=True, unit=unit))
    return found


def _rare_columns(prepared: Prepared, width: int) -> set[int]:
    """Features in which too few of the real rows differ from the most frequent value."""
    items = (prepared.task.goal, *map(measured, prepared.task.constraints))
    real = [inputs for inputs, _ in prepared.task.data]
    real += [
        x for one in items if (x := inputs_of(one)) is not None and (not isinstance(one, Divided) or of_real_rows(one))
    ]
    rows = max((x for x in real if x.ndim == 2 and x.shape[1] == width), key=len, default=None)
    if rows is None:
        return set()
    least = min(LEAST_SUPPORT, LEAST_SHARE * len(rows))
    usual = rows.mode(0).values
    return set(((rows != usual).sum(0) < least).nonzero()[:, 0].tolist())
