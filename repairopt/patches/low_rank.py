"""A difference of low rank that is exact to the bit in both directions.

The entries move by the product of two factors, one outer product after the other, each multiplied and added entry by
entry in float64; then they are rounded to their type. These operations are defined to the bit by IEEE 754, and no sum
is left to a library, so that every machine gets the same result with any number of threads. Where the rounded result is
not the wanted one, the exclusive or of the two is kept: sparse corrections, one set for each direction. Rounding loses
bits of the old value where an entry grows, so the corrections of the way back are often more.

The factors come from :mod:`repairopt.patches.factorize`; whatever they are, the corrections make the result exact.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from repairopt.errors import PatchError

from .differences import (
    Facts,
    Kind,
    Positions,
    expect,
    read_flips,
    read_positions,
    sparse_bytes,
    write_flips,
    write_positions,
)
from .factorize import find_factors
from .fingerprints import digest_entries
from .tensor_bits import FLOATS, Bits, Values, round_to_bits, to_float64

MOST_OUTER_PRODUCTS = 64  # that are looked for where the form is not asked for; more takes minutes on large matrices
_BLOCK = 2**21  # entries of the product that are computed at a time


@dataclass(frozen=True, eq=False)
class Corrections:
    """Where rounding misses, and the bits to flip there; both ``(c,)``."""

    positions: Positions
    flips: Bits

    @classmethod
    def between(cls, found: Bits, wanted: Bits) -> Corrections:
        """Those that turn one into the other."""
        at = np.flatnonzero(found != wanted)
        return cls(at, found[at] ^ wanted[at])

    def correct(self, bits: Bits) -> Bits:
        """The corrected entries; written in place."""
        bits[self.positions] ^= self.flips
        return bits


@dataclass(frozen=True, eq=False)
class LowRank:
    """A matrix changes by one of low rank. A convolution's weight is taken as ``(out, rest)``.

    Touches the whole tensor: the result at every entry depends on what was there.

    Attributes:
        kind: Of the tensor.
        left: Factor ``(m, r)``, float64, or numbers of float32 in it.
        right: Factor ``(r, n)``, as ``left``.
        forward: Corrections of the result.
        backward: Corrections of the way back.
        before: Digest of the entries before.
        after: Digest of the entries after.
    """

    form: ClassVar[str] = "low_rank"
    kind: Kind
    left: Values
    right: Values
    forward: Corrections
    backward: Corrections
    before: str
    after: str

    @classmethod
    def between(cls, kind: Kind, before: Bits, after: Bits, most: int | None = None) -> LowRank | None:
        """Find factors and corrections.

        Args:
            kind: Of the tensor.
            before: Its bits before.
            after: Its bits after.
            most: Bytes that the form may take at most, with no more than 64 outer products; None for any number.

        Returns:
            The difference, or None where it takes more.

        Raises:
            PatchError: The tensor is no matrix of floating-point numbers.
        """
        if not can_be_low_rank(kind):
            raise PatchError(
                f"a tensor of type {kind.dtype} and shape {kind.shape} has no low-rank difference; expected float16, "
                f"bfloat16, float32 or float64 and at least two dimensions. Use form='auto'."
            )
        old, new = (to_float64(bits, kind.dtype).reshape(_matrix_shape(kind)) for bits in (before, after))
        ranks = None if most is None else min(MOST_OUTER_PRODUCTS, most // _bytes_per_rank(kind))
        factors = find_factors(old, new, kind.dtype, ranks)
        if factors is None:
            return None
        product = multiply(*factors)
        up = Corrections.between(_shift(before, kind.dtype, product), after)
        down = Corrections.between(_shift(after, kind.dtype, -product), before)
        found = cls(kind, *factors, up, down, digest_entries(before), digest_entries(after))
        return found if most is None or found.bytes <= most else None

    @classmethod
    def from_parts(cls, kind: Kind, tensors: Mapping[str, Tensor], facts: Facts) -> LowRank:
        """From what ``parts`` gave.

        Raises:
            PatchError: Factors or corrections do not fit the tensor.
        """
        expect(can_be_low_rank(kind), f"a low-rank difference of type {kind.dtype} and shape {kind.shape}")
        left, right = tensors["left"], tensors["right"]
        rows, columns = _matrix_shape(kind)
        fits = left.ndim == right.ndim == 2 and (len(left), right.shape[1]) == (rows, columns)
        fits = fits and left.shape[1] == len(right) and left.dtype == right.dtype == _factor_type(kind)
        expect(fits, f"factors of shapes {tuple(left.shape)} and {tuple(right.shape)}")
        corrections = []
        for way in ("forward", "backward"):
            positions = read_positions(kind, tensors[f"{way}_positions"])
            flips = read_flips(kind, tensors[f"{way}_flips"])
            expect(flips.shape == positions.shape, f"'{way}_flips' of shape {flips.shape}")
            corrections.append(Corrections(positions, flips))
        digests = (str(facts["before"]), str(facts["after"]))
        return cls(kind, left.double().numpy(), right.double().numpy(), corrections[0], corrections[1], *digests)

    @property
    def rank(self) -> int:
        """Number of outer products."""
        return self.left.shape[1]

    @property
    def touched(self) -> Positions:
        """All positions."""
        return np.arange(self.kind.size)

    @property
    def bytes(self) -> int:
        """Bytes of its tensors in a file."""
        corrected = len(self.forward.positions) + len(self.backward.positions)
        return self.rank * _bytes_per_rank(self.kind) + sparse_bytes(self.kind, corrected, values=1)

    def move(self, bits: Bits, back: bool = False) -> Bits:
        """The entries plus the product, rounded and corrected; ``back`` minus the product."""
        product = multiply(self.left, self.right)
        moved = _shift(bits, self.kind.dtype, -product if back else product)
        return (self.backward if back else self.forward).correct(moved)

    def stale(self, bits: Bits, back: bool = False) -> Positions:
        """Nothing, or all positions: a digest does not tell which entry is another."""
        right = digest_entries(bits) == (self.after if back else self.before)
        return self.touched[: 0 if right else None]

    def parts(self) -> tuple[dict[str, Tensor], Facts]:
        """Factors and corrections; digests of the entries before and after."""
        factor_type = _factor_type(self.kind)
        tensors = {name: torch.from_numpy(getattr(self, name).copy()).to(factor_type) for name in ("left", "right")}
        for way, corrections in (("forward", self.forward), ("backward", self.backward)):
            tensors[f"{way}_positions"] = write_positions(self.kind, corrections.positions)
            tensors[f"{way}_flips"] = write_flips(corrections.flips, corrections.flips.shape)
        return tensors, {"before": self.before, "after": self.after}


def can_be_low_rank(kind: Kind) -> bool:
    """Whether a tensor is a matrix of floating-point numbers, or can be taken as one."""
    return kind.dtype in FLOATS and len(kind.shape) >= 2 and kind.size > 0


def multiply(left: Values, right: Values) -> Values:
    """Product of two factors, flat ``(m n,)``: one outer product after the other, entry by entry."""
    rows, columns = len(left), right.shape[1]
    product = np.zeros((rows, columns))
    step = max(1, _BLOCK // max(1, columns))
    with np.errstate(all="ignore"):
        for start in range(0, rows, step):
            block = product[start : start + step]
            for k in range(left.shape[1]):
                block += np.multiply.outer(left[start : start + step, k], right[k])
    return product.reshape(-1)


def _shift(bits: Bits, dtype: torch.dtype, change: Values) -> Bits:
    """The bits plus a change, rounded; entries without a change, not finite, or moved to NaN stay as they are."""
    with np.errstate(all="ignore"):
        values = to_float64(bits, dtype)
        moved = values + change
        at = np.isfinite(values) & np.isfinite(moved) & (change != 0)
        shifted = bits.copy()
        shifted[at] = round_to_bits(moved[at], dtype)
    return shifted


def _matrix_shape(kind: Kind) -> tuple[int, int]:
    return kind.shape[0], kind.size // kind.shape[0]


def _bytes_per_rank(kind: Kind) -> int:
    return sum(_matrix_shape(kind)) * _factor_type(kind).itemsize


def _factor_type(kind: Kind) -> torch.dtype:
    """Numbers of float32 are enough for all types but float64: their error is far below that of rounding."""
    return torch.float64 if kind.dtype == torch.float64 else torch.float32
