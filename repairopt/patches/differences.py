"""The differences of tensors, sparse or dense, each exact to the bit in both directions, and of two sets of weights."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from repairopt.errors import PatchError, WrongBaseError

from .tensor_bits import DTYPES, FLOATS, Bits, dtype_name, flips_to_tensor, from_bits, to_bits, to_float64
from .weights import (
    Fingerprint,
    Ties,
    Weights,
    digest_entries,
    fill_ties,
    fingerprint,
    listed,
    state_of,
    ties_of,
    transient_buffers,
)

Positions = npt.NDArray[np.int64]
Facts = dict[str, Any]


@dataclass(frozen=True)
class Kind:
    """Type and shape of a tensor that changes."""

    dtype: torch.dtype
    shape: tuple[int, ...]

    @property
    def size(self) -> int:
        """Number of entries."""
        return math.prod(self.shape)


class Difference(Protocol):
    """How one tensor changes; ``form`` is the name of the class in files."""

    form: ClassVar[str]

    @property
    def kind(self) -> Kind:
        """Type and shape of the tensor."""

    @property
    def touched(self) -> Positions:
        """Flat positions that it changes or depends on, sorted."""

    @property
    def bytes(self) -> int:
        """Bytes of its tensors in a file."""

    def move(self, bits: Bits, back: bool = False) -> Bits:
        """The entries after, from those before; or the other way."""

    def stale(self, bits: Bits, back: bool = False) -> Positions:
        """Touched positions without the value that ``move`` starts from; all of them where it cannot be told which."""

    def parts(self) -> tuple[dict[str, Tensor], Facts]:
        """What to write to a file: tensors by the name of the part, and facts for the header."""


@dataclass(frozen=True, eq=False)
class Sparse:
    """Some entries change: at the flat, sorted ``positions`` from the bits ``before`` to ``after``, each ``(c,)``."""

    form: ClassVar[str] = "sparse"
    kind: Kind
    positions: Positions
    before: Bits
    after: Bits

    @classmethod
    def between(cls, kind: Kind, before: Bits, after: Bits) -> Sparse:
        """From the bits of the whole tensor before and after."""
        positions = np.flatnonzero(before != after)
        return cls(kind, positions, before[positions], after[positions])

    @classmethod
    def from_parts(cls, kind: Kind, tensors: Mapping[str, Tensor], facts: Facts) -> Sparse:
        """From what ``parts`` gave; refuses positions out of range or unsorted, tensors of another type or size."""
        positions = read_positions(kind, tensors["positions"])
        for side in ("before", "after"):
            expect(tensors[side].dtype == kind.dtype, f"'{side}' has type {tensors[side].dtype}")
            expect(tensors[side].shape == positions.shape, f"'{side}' has shape {tuple(tensors[side].shape)}")
        return cls(kind, positions, to_bits(tensors["before"]), to_bits(tensors["after"]))

    @property
    def touched(self) -> Positions:
        """The positions that change."""
        return self.positions

    @property
    def bytes(self) -> int:
        """Bytes of its tensors in a file."""
        return len(self.positions) * (_positions_dtype(self.kind).itemsize + 2 * self.kind.dtype.itemsize)

    def move(self, bits: Bits, back: bool = False) -> Bits:
        """The entries with the new values at the positions; ``back`` with the old ones."""
        moved = bits.copy()
        moved[self.positions] = self.before if back else self.after
        return moved

    def stale(self, bits: Bits, back: bool = False) -> Positions:
        """The positions that do not have the value of the base; ``back`` that of the repair."""
        return self.positions[bits[self.positions] != (self.after if back else self.before)]

    def parts(self) -> tuple[dict[str, Tensor], Facts]:
        """Positions, entries before, entries after."""
        positions = torch.from_numpy(self.positions.copy()).to(_positions_dtype(self.kind))
        before, after = (from_bits(bits, self.kind.dtype, bits.shape) for bits in (self.before, self.after))
        return {"positions": positions, "before": before, "after": after}, {}


@dataclass(frozen=True, eq=False)
class Dense:
    """Many entries change: ``flips (numel,)`` is the exclusive or of all bits; ``before``, ``after`` are digests."""

    form: ClassVar[str] = "dense"
    kind: Kind
    flips: Bits
    before: str
    after: str

    @classmethod
    def between(cls, kind: Kind, before: Bits, after: Bits) -> Dense:
        """From the bits of the whole tensor before and after."""
        at = before != after
        return cls(kind, before ^ after, digest_entries(before[at]), digest_entries(after[at]))

    @classmethod
    def from_parts(cls, kind: Kind, tensors: Mapping[str, Tensor], facts: Facts) -> Dense:
        """From what ``parts`` gave; refuses a tensor of another type or shape."""
        flips = read_flips(kind, tensors["flips"])
        expect(tensors["flips"].shape == kind.shape, f"'flips' has shape {tuple(tensors['flips'].shape)}")
        return cls(kind, flips, str(facts["before"]), str(facts["after"]))

    @property
    def touched(self) -> Positions:
        """The positions that change."""
        return np.flatnonzero(self.flips)

    @property
    def bytes(self) -> int:
        """Bytes of its tensors in a file."""
        return self.kind.size * self.kind.dtype.itemsize

    def move(self, bits: Bits, back: bool = False) -> Bits:
        """The entries with the bits flipped, which is its own inverse."""
        return bits ^ self.flips

    def stale(self, bits: Bits, back: bool = False) -> Positions:
        """Nothing, or everything that it touches: a digest does not tell which entry is another."""
        at = self.touched
        return at[:0] if digest_entries(bits[at]) == (self.after if back else self.before) else at

    def parts(self) -> tuple[dict[str, Tensor], Facts]:
        """Flipped bits; digests of the entries that change."""
        return {"flips": flips_to_tensor(self.flips, self.kind.shape)}, {"before": self.before, "after": self.after}


FORMS: dict[str, type[Sparse] | type[Dense]] = {one.form: one for one in (Sparse, Dense)}


def make_difference(kind: Kind, before: Bits, after: Bits, form: str = "auto") -> Difference:
    """The difference of two tensors, given by their bits ``(numel,)``; ``"auto"`` is the smaller in a file."""
    if form == "auto":
        return min((one.between(kind, before, after) for one in FORMS.values()), key=lambda made: made.bytes)
    if form not in FORMS:
        raise PatchError(f"form={form!r}: choose auto, {', '.join(FORMS)}.")
    return FORMS[form].between(kind, before, after)


def _positions_dtype(kind: Kind) -> torch.dtype:
    return torch.int32 if kind.size <= 2**31 else torch.int64


def read_positions(kind: Kind, tensor: Tensor) -> Positions:
    """Flat positions from a file; refuses those that are not in the tensor, not sorted, or given twice."""
    expect(tensor.dtype == _positions_dtype(kind) and tensor.ndim == 1, f"positions of type {tensor.dtype}")
    positions = tensor.numpy().astype(np.int64)
    inside = not len(positions) or (positions[0] >= 0 and positions[-1] < kind.size)
    expect(bool(inside) and bool((np.diff(positions) > 0).all()), "positions that are out of range or not sorted")
    return positions


def read_flips(kind: Kind, tensor: Tensor) -> Bits:
    """Flipped bits from a file; refuses those of another size than the tensor's entries."""
    expect(not tensor.is_floating_point() and tensor.element_size() == kind.dtype.itemsize, f"flips of {tensor.dtype}")
    return to_bits(tensor)


def expect(right: bool, wrong: str) -> None:
    """Raise a PatchError that says what a file holds wrongly, unless it is right."""
    if not right:
        raise PatchError(f"the patch holds {wrong}, which does not fit the tensor. The file is damaged; get it again.")


@dataclass(frozen=True, eq=False)
class Change:
    """How one weight changes: its names (several where it is tied), the difference, how many entries differ."""

    names: tuple[str, ...]
    difference: Difference
    count: int
    largest: float | None

    def __str__(self) -> str:
        kind, form = self.difference.kind, self.difference.form
        largest = "" if self.largest is None else f", largest change {self.largest:.3g}"
        what = f"{' = '.join(self.names)}  {dtype_name(kind.dtype)} {kind.shape}"
        return f"{what}  {self.count} of {kind.size} entries{largest}; {form}, {self.difference.bytes} bytes"


def compare(
    base: Weights, repaired: Weights, form: str | Mapping[str, str] = "auto"
) -> tuple[tuple[Change, ...], Fingerprint, Fingerprint, Ties]:
    """Changes, hashes and ties in ``base`` of two sets of weights; see :meth:`repairopt.patches.Patch.between`."""
    old, new = state_of(base, "base"), state_of(repaired, "repaired")
    ties = ties_of(old)
    new = fill_ties(new, ties)
    _check_same_kinds(old, new)
    _check_transient(base, repaired)
    before, after = fingerprint(old), fingerprint(new)
    for group in ties:
        if len({after.tensors[name] for name in group}) > 1:
            raise PatchError(
                f"{listed(group)} are one tied weight in the base, but differ in the repaired weights. Tie them "
                f"there, or untie them in the base before the repair."
            )
    groups = {name: next((group for group in ties if name in group), (name,)) for name in old}
    changed = dict.fromkeys(groups[name] for name in old if before.tensors[name] != after.tensors[name])
    forms = dict(form) if isinstance(form, Mapping) else dict.fromkeys(old, form)
    if unknown := [name for name in forms if name not in old]:
        raise PatchError(f"form: the weights have no {listed(unknown)}. Use their names, or one form for all.")
    changes = tuple(
        _change(names, old[names[0]], new[names[0]], next((forms[n] for n in names if n in forms), "auto"))
        for names in changed
    )
    return changes, before, after, ties


def _change(names: tuple[str, ...], old: Tensor, new: Tensor, form: str) -> Change:
    if dtype_name(old.dtype) not in DTYPES:
        raise PatchError(
            f"weight '{names[0]}': has type {old.dtype}, which patches cannot change; they can change "
            f"{', '.join(DTYPES)}."
        )
    before, after = to_bits(old), to_bits(new)
    try:
        difference = make_difference(Kind(old.dtype, tuple(old.shape)), before, after, form)
    except PatchError as error:
        raise PatchError(f"weight '{names[0]}': {error}") from error
    largest = np.nan
    if old.dtype in FLOATS:
        with np.errstate(all="ignore"):
            largest = np.abs(to_float64(after, new.dtype) - to_float64(before, old.dtype)).max()
    return Change(names, difference, int((before != after).sum()), float(largest) if np.isfinite(largest) else None)


def _check_same_kinds(old: Mapping[str, Tensor], new: Mapping[str, Tensor]) -> None:
    only = {"base": [n for n in old if n not in new], "repaired": [n for n in new if n not in old]}
    for side, names in only.items():
        if names:
            raise PatchError(
                f"only the {side} weights have {listed(names)}; a patch needs the same names on both sides."
            )
    for name, value in old.items():
        if (value.dtype, value.shape) != (new[name].dtype, new[name].shape):
            raise PatchError(
                f"weight '{name}': is {value.dtype} {tuple(value.shape)} in the base but {new[name].dtype} "
                f"{tuple(new[name].shape)} in the repaired weights; a patch changes values alone. Cast before."
            )


def _check_transient(base: Weights, repaired: Weights) -> None:
    """A buffer outside of the state dict that differs would be lost without a word."""
    if not (isinstance(base, nn.Module) and isinstance(repaired, nn.Module)):
        return
    old, new = fingerprint(transient_buffers(base)), fingerprint(transient_buffers(repaired))
    if old != new:
        raise PatchError(
            f"buffers outside of the state dict: {old.differences(new)}. A patch holds what state_dict() holds; "
            f"register them with persistent=True."
        )


def check_is_base(changes: Sequence[Change], base: nn.Module, repaired: nn.Module, delta: Mapping[str, Tensor]) -> None:
    """Check that the changes between two models are exactly the ``delta`` of a repair, else raise a WrongBaseError."""
    old, new = state_of(base), state_of(repaired)
    wrong = [change.names[0] for change in changes if not any(name in delta for name in change.names)]
    for name, moved in delta.items():
        if not torch.equal(new[name].detach().cpu() - old[name].detach().cpu(), moved.detach().cpu()):
            wrong.append(name)
    if wrong:
        raise WrongBaseError(
            f"base_model: {listed(wrong)} differ from the repaired model by something else than the repair changed. "
            f"Pass the model that was given to solve_repair, as it was then."
        )
