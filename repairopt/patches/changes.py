"""Compare two sets of weights: one change for each weight that differs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from repairopt.errors import PatchError, WrongBaseError

from .differences import Difference, Kind, make_difference
from .fingerprints import Fingerprint, fingerprint
from .tensor_bits import DTYPES, FLOATS, dtype_name, to_bits, to_float64
from .weights import Ties, Weights, fill_ties, listed, state_of, ties_of, transient_buffers


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
