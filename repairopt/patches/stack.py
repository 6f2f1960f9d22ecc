"""Several patches on one model: in a chain, or side by side where they touch different entries.

A patch that was made on top of another applies after it; hashes tell. Patches made on the same weights that touch no
entry in common can be stacked in any order: the hash of the base does not match any more, so this must be asked for,
and every touched entry is compared with its value in the base. What two such patches claim was checked for each alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from torch import Tensor, nn

from repairopt.errors import PatchConflictError, WrongBaseError, public

from .differences import Change, Positions
from .patch import Patch
from .tensor_bits import Bits, from_bits, to_bits
from .weights import copy_model, fingerprint, state_of, written_copy

_SHOWN = 5


@dataclass(frozen=True)
class Conflict:
    """Two patches of a list that cannot stand side by side: a weight that both touch, how many entries, the first few.

    ``weight`` is empty where the patches were made for different bases.
    """

    first: int
    second: int
    weight: str = ""
    count: int = 0
    positions: tuple[int, ...] = ()

    def __str__(self) -> str:
        who = f"patches {self.first} and {self.second}"
        if not self.weight:
            return f"{who}: made for different weights, and neither on top of the other"
        more = ", ..." if self.count > len(self.positions) else ""
        return f"{who}: '{self.weight}', {self.count} entries at {', '.join(map(str, self.positions))}{more}"


@public
def find_conflicts(patches: Sequence[Patch]) -> list[Conflict]:
    """Pairs of patches, in the order of their use, that touch the same entries or have different bases.

    There is a conflict for each weight that two patches touch in common, unless the second was made on top of the
    first, directly or over others of the list. A low-rank difference touches its whole weight.
    """
    found: list[Conflict] = []
    for j in range(len(patches)):
        for i in sorted(set(range(j)) - _below(patches, j)):
            found += _overlaps(patches, i, j) if _same_start(patches, i, j) else [Conflict(i, j)]
    return found


def _below(patches: Sequence[Patch], j: int) -> set[int]:
    """The patches that number ``j`` was made on top of, the latest match first, back to the start of its chain."""
    below: set[int] = set()
    for i in range(j - 1, -1, -1):
        if patches[i].repaired == patches[min(below, default=j)].base and patches[i].changes:
            below.add(i)
    return below


def _same_start(patches: Sequence[Patch], i: int, j: int) -> bool:
    """Whether the two stand on common weights: the base of one is a state that the other's chain went through."""
    chains = [{patches[k].base.total for k in {n, *_below(patches, n)}} for n in (i, j)]
    return bool(chains[0] & chains[1])


def _overlaps(patches: Sequence[Patch], i: int, j: int) -> list[Conflict]:
    theirs = {name: change for change in patches[j].changes for name in change.names}
    found = []
    for change in patches[i].changes:
        others = dict.fromkeys(theirs[name] for name in change.names if name in theirs)
        common = [np.intersect1d(change.difference.touched, other.difference.touched) for other in others]
        at = np.unique(np.concatenate(common)) if common else np.zeros(0, dtype=np.int64)
        if len(at):
            found.append(Conflict(i, j, change.names[0], len(at), tuple(int(p) for p in at[:_SHOWN])))
    return found


@public
def apply_all(model: nn.Module, patches: Sequence[Patch], *, same_base: bool = False) -> nn.Module:
    """A copy of a model with several patches applied.

    Args:
        model: With the weights of the first patch's base; not modified.
        patches: Patches in order, each made on top of the one before.
        same_base: Whether a patch that was made on earlier weights, or on another patch alone, may be stacked too,
            where it touches other entries than the patches that it was not made on.

    Returns:
        The copy. Each patch of a chain is checked by its hashes, each other one entry by entry.

    Raises:
        WrongBaseError: A patch fits neither these weights nor those before, or an entry that it touches has another
            value than in its base.
        PatchConflictError: Patches touch the same entries, or they are side by side without ``same_base``.
    """
    if same_base and (conflicts := find_conflicts(patches)):
        lines = "".join(f"\n  {conflict}" for conflict in conflicts)
        raise PatchConflictError(
            f"the patches are in conflict:{lines}\nMake the later one on top of the earlier, or leave one out.",
            conflicts,
        )
    current, now = model, fingerprint(model)
    passed = [now]
    for number, patch in enumerate(patches):
        if patch.base == now or patch.base not in passed:
            current = _checked(number, patch, current, back=False)
        elif same_base:
            current = _move_entries(number, patch, current, back=False)
        else:
            raise PatchConflictError(
                f"patches[{number}] was made on the weights before the last patch, not on top of it. Pass "
                f"same_base=True to stack patches that touch different entries, or make it anew on top."
            )
        now = fingerprint(current)
        passed += [now, patch.repaired]  # which differ where the patch stands beside another
    return current if patches else copy_model(model)


@public
def revert_all(model: nn.Module, patches: Sequence[Patch], *, same_base: bool = False) -> nn.Module:
    """A copy of what :func:`apply_all` returned, from before the same patches; they are reverted last first.

    The weights are those of the first patch's base, checked by their hash.

    Raises:
        WrongBaseError: The weights are not those that the patches led to.
    """
    if not patches:
        return copy_model(model)
    current = model
    for number, patch in reversed(list(enumerate(patches))):
        beside = same_base and fingerprint(current) != patch.repaired
        current = (_move_entries if beside else _checked)(number, patch, current, back=True)
    if fingerprint(current) != patches[0].base:
        patches[0].check_base(current)
    return current


def _checked(number: int, patch: Patch, model: nn.Module, back: bool) -> nn.Module:
    try:
        return patch.revert(model) if back else patch.apply(model)
    except WrongBaseError as error:
        raise WrongBaseError(f"patches[{number}]: {error}") from error


def _move_entries(number: int, patch: Patch, model: nn.Module, back: bool) -> nn.Module:
    """Apply or revert a patch whose other entries have moved on; its own ones are compared one by one."""
    state = state_of(model)
    what = f"patches[{number}]"
    new = {n: _moved_entries(what, n, change, state, back) for change in patch.changes for n in change.names}
    made = {name: from_bits(bits, state[name].dtype, state[name].shape) for name, bits in new.items()}
    expected = fingerprint(state).with_tensors(fingerprint(made).tensors)
    return written_copy(model, new, expected, f"{what}: the copy is not as written")


def _moved_entries(what: str, name: str, change: Change, state: dict[str, Tensor], back: bool) -> Bits:
    """The bits of one weight after; only touched entries differ, and they are those that the patch promises."""
    kind = change.difference.kind
    if name not in state or (state[name].dtype, tuple(state[name].shape)) != (kind.dtype, kind.shape):
        raise WrongBaseError(f"{what}: the model has no weight '{name}' of type {kind.dtype} and shape {kind.shape}.")
    bits = to_bits(state[name])
    _refuse_stale(what, name, change.difference.stale(bits, back), "repair" if back else "base")
    moved = change.difference.move(bits, back)
    _refuse_stale(what, name, change.difference.stale(moved, not back), "base" if back else "repair")
    return moved


def _refuse_stale(what: str, name: str, stale: Positions, side: str) -> None:
    if len(stale):
        shown = ", ".join(str(int(p)) for p in stale[:_SHOWN]) + (", ..." if len(stale) > _SHOWN else "")
        raise WrongBaseError(
            f"{what}: '{name}' does not have the values of the {side} in entries that the patch touches, at {shown} "
            f"({len(stale)} in all, or one of them). Another change was made there; revert it first."
        )
