"""Rows told apart by a hash of their contents: folds that are the same for every set of inputs, and overlaps."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

Hashes = npt.NDArray[np.uint64]
BLOCK = 2**22  # numbers hashed at a time


def row_hashes(inputs: Tensor) -> Hashes:
    """A 64-bit hash of each row's numbers in single precision, ``(N,)``; the same for equal rows of any dtype."""
    count = inputs.shape[0]
    width = max(1, inputs[0].numel()) if count else 1
    factors = np.random.default_rng(20_211).integers(2**63, size=width, dtype=np.uint64) * np.uint64(2) + np.uint64(1)
    found = np.empty(count, dtype=np.uint64)
    step = max(1, BLOCK // width)
    for start in range(0, count, step):
        part = inputs[start : start + step].detach().reshape(-1, width).to("cpu", torch.float32)
        bits = (part + 0.0).numpy().view(np.uint32).astype(np.uint64)  # -0.0 becomes 0.0
        mixed = (bits + np.uint64(0x9E3779B97F4A7C15)) * factors
        mixed ^= mixed >> np.uint64(29)
        found[start : start + step] = (mixed * factors[::-1]).sum(axis=1, dtype=np.uint64)
    found ^= found >> np.uint64(32)
    return found * np.uint64(0xD6E8FEB86659FD93)


class Folds:
    """Divides rows into folds by their hashes, another way for each seed: equal rows are in the same fold.

    ``tied`` are groups of sets with as many rows each, of which row ``i`` of one belongs to row ``i`` of the others, as
    an image and the same image turned; they are in the same fold.
    """

    def __init__(self, count: int, seed: int = 0, tied: Sequence[Sequence[Tensor]] = ()) -> None:
        self.count = count
        mixed = (2 * seed + 1) * 0x9E3779B97F4A7C15 % 2**64
        self.factor = np.uint64(mixed | 1)
        self._known: dict[tuple[int, torch.Size, int], tuple[Tensor, Tensor]] = {}
        self._moved: tuple[Hashes, npt.NDArray[np.int64]] = (np.empty(0, np.uint64), np.empty(0, np.int64))
        hashes = [row_hashes(other) for first, *others in tied for other in others]
        folds = [self._by_hash(row_hashes(first)) for first, *others in tied for _ in others]
        if hashes:
            kept, places = np.unique(np.concatenate(hashes), return_index=True)
            self._moved = (kept, np.concatenate(folds)[places])

    def of(self, inputs: Tensor) -> Tensor:
        """Fold of each row, ``(N,)``."""
        key = (inputs.data_ptr(), inputs.shape, inputs._version)
        if key not in self._known:
            hashes = row_hashes(inputs)
            fold, (moved, there) = self._by_hash(hashes), self._moved
            if len(moved):
                place = np.minimum(np.searchsorted(moved, hashes), len(moved) - 1)
                fold = np.where(moved[place] == hashes, there[place], fold)
            self._known[key] = (inputs, torch.as_tensor(fold))
        return self._known[key][1]

    def _by_hash(self, hashes: Hashes) -> npt.NDArray[np.int64]:
        mixed = hashes * self.factor
        return ((mixed >> np.uint64(40)) % np.uint64(self.count)).astype(np.int64)

    def outside(self, fold: int, inputs: Tensor) -> Tensor:
        """Mask of the rows that are not in a fold."""
        return self.of(inputs) != fold


def tied_sets(pairs: Sequence[tuple[Tensor, Tensor]]) -> list[list[Tensor]]:
    """Groups of labelled sets with the same labels in the same order: versions of the same samples, as it seems."""
    groups: list[tuple[Tensor, list[Tensor]]] = []
    for inputs, labels in pairs:
        own = labels.cpu()
        if len(torch.unique(own)) < 2:
            continue
        found = next((group for known, group in groups if torch.equal(known, own)), None)
        if found is None:
            groups.append((own, [inputs]))
        else:
            found.append(inputs)
    return [group for _, group in groups if len(group) > 1]


def distinct_rows(sets: Sequence[Tensor]) -> int:
    """How many rows stand in some sets, each counted once wherever it stands; rows of another shape are others."""
    seen: dict[torch.Size, list[Hashes]] = {}
    for inputs in sets:
        seen.setdefault(inputs.shape[1:], []).append(row_hashes(inputs))
    return sum(len(np.unique(np.concatenate(hashes))) for hashes in seen.values())


def overlap(first: Sequence[Tensor], second: Sequence[Tensor]) -> int:
    """How many rows of the second sets stand in the first ones too; rows of another shape never do."""
    seen: dict[torch.Size, list[Hashes]] = {}
    for inputs in first:
        seen.setdefault(inputs.shape[1:], []).append(row_hashes(inputs))
    found = 0
    for inputs in second:
        if inputs.shape[1:] in seen:
            known = np.unique(np.concatenate(seen[inputs.shape[1:]]))
            found += int(np.isin(row_hashes(inputs), known).sum())
    return found
