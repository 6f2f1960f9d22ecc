"""Samples that no change moves: those with zeros wherever the changed weights read.

A weight acts on a sample through the activation that it reads. Where all changed weights are columns of one linear
layer (the column of a group's indicator, of an amount that most people do not have, of a unit that is mostly off),
samples with zeros there keep their outputs whatever the change, and need not be run again.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, fx, nn

from .linear_layers import ChangedLayer

WORTHWHILE = 0.5  # largest share of samples that move for which they are run apart


def columns_read(suffix: nn.Module, layers: list[ChangedLayer] | None) -> Tensor | None:
    """Columns of the activations at the frontier through which alone a change acts on a sample, sorted.

    None where a change acts in other ways too: by a bias, by other layers, by what stands between.
    """
    if not isinstance(suffix, fx.GraphModule) or layers is None or len(layers) != 1:
        return None
    layer = layers[0]
    if layer.weight is None or layer.bias is not None:
        return None
    given = [node for node in suffix.graph.nodes if node.op == "placeholder"]
    calls = [n for n in suffix.graph.nodes if n.op == "call_module" and suffix.get_submodule(n.target) is layer.module]
    if len(given) != 1 or len(calls) != 1 or calls[0].args[:1] != (given[0],):
        return None
    return layer.read[0]


@dataclass(frozen=True, eq=False)
class StillRows:
    """A set of samples, most of which no change moves.

    ``moved`` are the positions of the others, ``(M,)``, sorted; ``original`` the outputs of the unchanged network,
    ``(N, k)``; ``place`` the position of each sample among the moved ones, or -1, ``(N,)``.
    """

    moved: Tensor
    original: Tensor
    place: Tensor

    @classmethod
    def of(cls, moved: Tensor, original: Tensor) -> StillRows:
        """From the moved samples and all outputs."""
        place = torch.full((len(original),), -1, dtype=torch.long, device=original.device)
        place[moved] = torch.arange(len(moved), device=original.device)
        return cls(moved, original, place)

    def outputs(self, found: Tensor) -> Tensor:
        """Outputs of all samples from those of the moved ones; differentiable, and works inside ``vmap``."""
        return self.original.index_copy(0, self.moved, found)


def moved_rows(frontier: tuple[Tensor, ...], columns: Tensor) -> Tensor | None:
    """Positions of the samples that a change moves; None where they are none or too many to run them apart."""
    if frontier[0].ndim != 2:
        return None
    moved = (frontier[0].index_select(1, columns.to(frontier[0].device)) != 0).any(1).nonzero()[:, 0]
    return moved if 0 < len(moved) <= WORTHWHILE * len(frontier[0]) else None
