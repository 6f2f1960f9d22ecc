"""The linear layers that hold the weights that may change."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, fx, nn


@dataclass(frozen=True, eq=False)
class ChangedLayer:
    """A linear layer of the suffix with weights that may change.

    ``weight`` and ``bias`` are the positions of the changed entries in these, ``columns`` and ``bias_columns`` where
    they stand in ``delta``; None where none changes.
    """

    module: nn.Linear
    weight: Tensor | None
    bias: Tensor | None
    columns: slice | None
    bias_columns: slice | None

    @cached_property
    def read(self) -> tuple[Tensor, Tensor, Tensor]:
        """Inputs of the layer that changed weights read, sorted; for each such weight its unit, and its input there."""
        assert self.weight is not None
        read, place = torch.unique(self.weight % self.module.in_features, return_inverse=True)
        return read, self.weight // self.module.in_features, place


def changed_layers(suffix: nn.Module, indices: Mapping[str, Tensor]) -> list[ChangedLayer] | None:
    """The linear layers of the suffix that hold all changed weights, flat positions by parameter name.

    None where a changed parameter is used in another way, or a layer more than once.
    """
    if not isinstance(suffix, fx.GraphModule) or not indices:
        return None
    calls = Counter(str(node.target) for node in suffix.graph.nodes if node.op == "call_module")
    owners = Counter(id(p) for _, p in suffix.named_parameters(remove_duplicate=False))
    spans, start = {}, 0
    for name, index in indices.items():
        spans[name] = slice(start, start + len(index))
        start += len(index)
    found, used = [], set()
    for target in calls:
        module = suffix.get_submodule(target)
        names = {kind: f"{target.removeprefix('model.')}.{kind}" for kind in ("weight", "bias")}
        mine = {kind: name for kind, name in names.items() if name in indices}
        if not mine:
            continue
        shared = any(owners[id(parameter)] > 1 for parameter in module.parameters())
        if type(module) is not nn.Linear or calls[target] != 1 or shared or not target.startswith("model."):
            return None
        used |= set(mine.values())
        weight, bias = (mine.get(kind) for kind in ("weight", "bias"))
        found.append(
            ChangedLayer(
                module,
                None if weight is None else indices[weight],
                None if bias is None else indices[bias],
                None if weight is None else spans[weight],
                None if bias is None else spans[bias],
            )
        )
    direct = any(node.op == "get_attr" and _is_parameter(suffix, str(node.target)) for node in suffix.graph.nodes)
    return found if used == set(indices) and not direct else None


def _is_parameter(module: nn.Module, target: str) -> bool:
    value: Any = module
    for part in target.split("."):
        value = getattr(value, part, None)
    return isinstance(value, nn.Parameter)
