"""Rows that are asked for two answers at once, which no network gives."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations
from typing import Any

import numpy as np
import numpy.typing as npt
from torch import Tensor

from .contracts import SampleConstraint, SampleShare, labels_of, price_of
from .folds import Hashes, row_hashes
from .margins import LabelLeads, allowed_samples, samples_in

Labels = npt.NDArray[np.int64]
LABEL_BITS = 32  # of a pair of a row's place and its label


def said_of_contradictions(goal: Any, constraints: Sequence[Any], *, double: bool = False) -> str:
    """A warning where rows get one label in one statement and another one in another, and too few may be wrong.

    Only what no network can give is told: rows that count, in statements that ask for the lead of a label.

    Args:
        goal: What is to be reached, anchored; rows count where its target is a share of them.
        constraints: Anchored; those with a price may give way, and are left out.
        double: Whether the network reads double precision, in which more rows differ than in single.

    Returns:
        One sentence for each pair of statements that cannot hold together, and what to do; empty where all can.
    """
    asked = []
    if isinstance(goal, SampleShare) and (known := _led(goal)) is not None:
        rows: Any = np.arange(len(known[1])) if goal.counted is None else goal.counted.cpu().numpy()
        asked.append(_Asked(goal.name, *known, rows, _missed_at_most(goal, len(known[1])), double))
    for one in constraints:
        hard = isinstance(one, SampleConstraint) and price_of(one) is None
        if hard and (known := _led(one)) is not None:
            rows = samples_in(one).numpy()
            asked.append(_Asked(one.name, *known, rows, allowed_samples(one, rows), double))
    said = [
        f"{count:,} rows of '{one.name}' stand there twice, with another label: at least so many are missed by any "
        f"network. Leave them out, or let so many be missed."
        for one in asked
        if (count := one.torn()) > one.allowed
    ]
    for first, second in combinations(asked, 2):
        count, missed = first.against(second)
        if missed > first.allowed + second.allowed:
            said.append(
                f"{count:,} rows of '{second.name}' have another label in '{first.name}', and no network gives both: "
                f"leave them out of one of the two, or let so many be missed."
            )
    return " ".join(said)


def _led(item: Any) -> tuple[Tensor, Tensor] | None:
    """Inputs and labels where what is asked for is that each label leads; not of labels that mean something else."""
    leads = getattr(type(item), "margins_of", None) is LabelLeads.margins_of
    known = labels_of(item) if leads else None
    return known if known is not None and known[1].ndim == 1 else None


def _missed_at_most(goal: Any, count: int) -> int:
    """How many rows may be missed at the target of a goal at most: the lightest ones, where rows have weights."""
    weights = getattr(goal, "sample_weight", None)
    if weights is None:
        return int(np.floor(max(0.0, float(goal.target)) * count + 1e-9))
    heavy = np.sort(weights.cpu().numpy()[weights.cpu().numpy() > 0])
    return int((np.cumsum(heavy) <= float(goal.target) * heavy.sum() * (1 + 1e-9)).sum())


def _hashes(inputs: Tensor, double: bool) -> Hashes:
    """Hashes of rows as the network tells them apart: also by what single precision leaves out."""
    found = row_hashes(inputs)
    if double if inputs.is_floating_point() else inputs.element_size() > 2:  # smaller ones are exact
        whole = inputs.detach().cpu().double()
        found ^= row_hashes(whole - whole.float().double()) * np.uint64(3)
    return found


class _Asked:
    """Rows with the label that is asked for, and how many may get another one."""

    def __init__(
        self, name: str, inputs: Tensor, labels: Tensor, rows: npt.NDArray[Any], allowed: int, double: bool
    ) -> None:
        self.name, self.allowed, self.shape = name, allowed, inputs.shape[1:]
        self.hashes: Hashes = _hashes(inputs, double)[rows]
        self.labels: Labels = labels.cpu().numpy()[rows]

    def torn(self) -> int:
        """How many of the rows get another label than most of their equals, at least."""
        kept, places, counts = np.unique(self.hashes, return_inverse=True, return_counts=True)
        many = counts[places] > 1
        pairs, sizes = np.unique(_paired(places[many], self.labels[many]), return_counts=True)
        most = np.zeros(len(kept), dtype=np.int64)
        np.maximum.at(most, pairs >> LABEL_BITS, sizes)
        return int(many.sum() - most.sum())

    def against(self, other: _Asked) -> tuple[int, int]:
        """How many rows of the other stand here, with none of the labels asked for there; how many any network misses.

        Of rows that stand several times in one of the two, a network may give the other its label.
        """
        if self.shape != other.shape:
            return 0, 0
        size = len(self.hashes)
        kept, places = np.unique(np.concatenate([self.hashes, other.hashes]), return_inverse=True)
        copies = np.stack([np.bincount(part, minlength=len(kept)) for part in (places[:size], places[size:])])
        shared = copies.min(axis=0)[places] > 0
        pairs = _paired(places, np.concatenate([self.labels, other.labels]))[shared]
        _, first, answers = np.unique(pairs, return_index=True, return_inverse=True)
        own = int(shared[:size].sum())
        both = np.bincount(answers[:own], minlength=len(first)) > 0
        both &= np.bincount(answers[own:], minlength=len(first)) > 0
        copies[:, places[shared][first[both]]] = 0
        copies = copies[:, copies.min(axis=0) > 0]
        return int(copies[1].sum()), int(copies.min(axis=0).sum())


def _paired(places: npt.NDArray[np.int64], labels: Labels) -> npt.NDArray[np.int64]:
    """One number for each pair of a place and a label."""
    return (places << LABEL_BITS) + labels
