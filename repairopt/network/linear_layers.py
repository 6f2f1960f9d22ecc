"""The linear layers that hold the weights that may change."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from operator import attrgetter

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
        weight, bias = (mine.get(kind, "") for kind in ("weight", "bias"))
        changed = (indices.get(weight), indices.get(bias), spans.get(weight), spans.get(bias))
        found.append(ChangedLayer(module, *changed))
    read = (attrgetter(str(node.target))(suffix) for node in suffix.graph.nodes if node.op == "get_attr")
    return found if used == set(indices) and not any(isinstance(value, nn.Parameter) for value in read) else None
