"""Localize: which weights may change."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True, eq=False)
class Location:
    """The ``n`` weights that may change.

    Attributes:
        indices: For each parameter name its flat positions, sorted int64.
        scores: A score for each position, same keys and sizes, larger is more responsible; or None.
        method: How they were found, in words for the report.
    """

    indices: dict[str, Tensor]
    scores: dict[str, Tensor] | None = None
    method: str = "given"

    @property
    def size(self) -> int:
        """Number of weights, ``n``."""
        return sum(len(positions) for positions in self.indices.values())
