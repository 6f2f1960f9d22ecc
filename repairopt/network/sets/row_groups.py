"""What must hold of the outputs on each region: for every group of rows, one row above its offset."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True, eq=False)
class RowGroups:
    """Rows ``matrix y > offset`` of ``Q`` regions, padded to ``R`` rows and ``G`` groups each.

    Attributes:
        matrix: ``(Q, R, k)``.
        offset: ``(Q, R)``.
        member: ``(Q, G, R)``, whether a row is in a group; a group without rows always holds.
    """

    matrix: Tensor
    offset: Tensor
    member: Tensor

    @classmethod
    def of(cls, rows: Sequence[tuple[Any, Any, Any]]) -> RowGroups:
        """From ``(matrix (R, k), offset (R,), group (R,))`` of each region; groups are numbered from 0."""
        parts = [tuple(torch.as_tensor(part) for part in one) for one in rows]
        most = max(len(offset) for _, offset, _ in parts)
        groups = max(int(group.max()) + 1 for _, _, group in parts)
        matrix = torch.zeros(len(parts), most, parts[0][0].shape[1], dtype=torch.float64)
        offset = torch.zeros(len(parts), most, dtype=torch.float64)
        member = torch.zeros(len(parts), groups, most, dtype=torch.bool)
        for q, (own, least, group) in enumerate(parts):
            matrix[q, : len(own)], offset[q, : len(own)] = own.double(), least.double()
            member[q, group.long(), torch.arange(len(group))] = True
        return cls(matrix, offset, member)

    def through(self, matrix: Tensor, offset: Tensor) -> RowGroups:
        """The same rows in terms of ``z``, where the outputs are ``matrix z + offset``."""
        return RowGroups(self.matrix @ matrix, self.offset - self.matrix @ offset, self.member)

    def values(self, outputs: Tensor, region: Tensor) -> Tensor:
        """Rows minus offsets ``(B, R)`` at outputs ``(B, k)`` of points in regions with the numbers ``region (B,)``."""
        return (self.matrix[region] @ outputs[:, :, None])[..., 0] - self.offset[region]

    def best(self, values: Tensor, region: Tensor) -> tuple[Tensor, Tensor]:
        """For each group the largest of its rows' values, ``(B, G)``, and which row that is."""
        member = self.member[region]
        found = values[:, None].masked_fill(~member, -torch.inf).max(-1)
        return found.values.masked_fill(~member.any(-1), torch.inf), found.indices

    def least(self, values: Tensor, region: Tensor) -> Tensor:
        """Value of the worst group, ``(B,)``: positive where everything holds."""
        return self.best(values, region)[0].amin(1)
