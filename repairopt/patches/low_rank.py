"""Reads the low-rank differences of patches that repairopt 0.1 wrote; none are written any more.

The entries move by a sum of outer products, multiplied and added in float64 one after the other, are rounded to their
type, and corrected where rounding misses: operations that IEEE 754 defines to the bit.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from torch import Tensor

from .differences import Facts, Kind, Positions, expect, read_flips, read_positions
from .tensor_bits import FLOATS, Bits, round_to_bits, to_float64
from .weights import digest_entries


@dataclass(frozen=True, eq=False)
class LowRank:
    """The tensors and facts of a file, as they are there."""

    form: ClassVar[str] = "low_rank"
    kind: Kind
    tensors: dict[str, Tensor]
    facts: Facts

    @classmethod
    def from_parts(cls, kind: Kind, tensors: Mapping[str, Tensor], facts: Facts) -> LowRank:
        """From a file; refuses factors or corrections that do not fit the tensor."""
        left, right = tensors["left"], tensors["right"]
        expect(kind.dtype in FLOATS and len(kind.shape) > 1, f"a low-rank difference of type {kind.dtype}")
        fits = left.ndim == right.ndim == 2 and left.shape[1] == len(right)
        fits = fits and (len(left), left.shape[0] * right.shape[1]) == (kind.shape[0], kind.size)
        expect(fits, f"factors of shapes {tuple(left.shape)} and {tuple(right.shape)}")
        for way in ("forward", "backward"):
            flips = read_flips(kind, tensors[f"{way}_flips"])
            expect(flips.shape == read_positions(kind, tensors[f"{way}_positions"]).shape, f"'{way}_flips'")
        return cls(kind, dict(tensors), {side: str(facts[side]) for side in ("before", "after")})

    @property
    def touched(self) -> Positions:
        """All positions: the result at every entry depends on what was there."""
        return np.arange(self.kind.size)

    @property
    def bytes(self) -> int:
        """Bytes of its tensors in a file."""
        return sum(tensor.nbytes for tensor in self.tensors.values())

    def move(self, bits: Bits, back: bool = False) -> Bits:
        """The entries plus the product, rounded and corrected; ``back`` minus the product."""
        left, right = (self.tensors[side].double().numpy() for side in ("left", "right"))
        change = np.zeros((len(left), right.shape[1]))
        with np.errstate(all="ignore"):
            for k in range(len(right)):
                change += np.multiply.outer(left[:, k], right[k])
            values = to_float64(bits, self.kind.dtype)
            target = values + (-change if back else change).reshape(-1)
            known = np.isfinite(values) & np.isfinite(target) & (change.reshape(-1) != 0)
            moved = bits.copy()
            moved[known] = round_to_bits(target[known], self.kind.dtype)
        at, flips = (self.tensors[f"{'backward' if back else 'forward'}_{part}"] for part in ("positions", "flips"))
        moved[read_positions(self.kind, at)] ^= read_flips(self.kind, flips)
        return moved

    def stale(self, bits: Bits, back: bool = False) -> Positions:
        """Nothing, or all positions: a digest does not tell which entry is another."""
        return self.touched[: 0 if digest_entries(bits) == self.facts["after" if back else "before"] else None]

    def parts(self) -> tuple[dict[str, Tensor], Facts]:
        """What was read."""
        return self.tensors, self.facts
