"""Rows that are asked for two answers at once, which no network gives."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations
from typing import Any

import numpy as np
import numpy.typing as npt

from .contracts import SampleConstraint, SampleShare, price_of
from .folds import Hashes, row_hashes
from .margins import allowed_samples, labels_of, samples_in

Labels = npt.NDArray[np.int64]


def said_of_contradictions(goal: Any, constraints: Sequence[Any]) -> str:
    """A warning where rows get one label in one statement and another one in another, and too few may be wrong.

    Args:
        goal: What is to be reached; rows count where its target is a share of them.
        constraints: Anchored; those with a price may give way, and are left out.

    Returns:
        One sentence for each pair of statements that cannot hold together, and what to do; empty where all can.
    """
    asked = []
    if isinstance(goal, SampleShare) and (known := labels_of(goal)) is not None and known[1].ndim == 1:
        count = len(known[1])
        asked.append(_Asked(goal.name, *known, np.arange(count), int(max(0.0, goal.target) * count)))
    for one in constraints:
        hard = isinstance(one, SampleConstraint) and price_of(one) is None
        if hard and (known := labels_of(one)) is not None and known[1].ndim == 1:
            rows = samples_in(one).numpy()
            asked.append(_Asked(one.name, *known, rows, allowed_samples(one, rows)))
    said = [
        f"{count:,} rows of '{one.name}' stand there twice, with another label: at least so many are missed by any "
        f"network. Leave them out, or let so many be missed."
        for one in asked
        if (count := one.torn()) > one.allowed
    ]
    for first, second in combinations(asked, 2):
        count = first.against(second)
        if count > first.allowed + second.allowed:
            said.append(
                f"{count:,} rows of '{second.name}' have another label in '{first.name}', and no network gives both: "
                f"leave them out of one of the two, or let so many be missed."
            )
    return " ".join(said)


class _Asked:
    """Rows with the label that is asked for, and how many may get another one."""

    def __init__(self, name: str, inputs: Any, labels: Any, rows: npt.NDArray[Any], allowed: int) -> None:
        self.name, self.allowed, self.shape = name, allowed, inputs.shape[1:]
        self.hashes: Hashes = row_hashes(inputs)[rows]
        self.labels: Labels = labels.cpu().numpy()[rows]

    def torn(self) -> int:
        """How many of the rows get another label than most of their equals, at least."""
        kept, places, counts = np.unique(self.hashes, return_inverse=True, return_counts=True)
        if len(kept) == len(self.hashes):
            return 0
        many = counts[places] > 1
        pairs, sizes = np.unique(np.stack([places[many], self.labels[many]]), axis=1, return_counts=True)
        most = np.zeros(len(kept), dtype=np.int64)
        np.maximum.at(most, pairs[0], sizes)
        return int(many.sum() - most.sum())

    def against(self, other: _Asked) -> int:
        """How many rows of the other stand here, none with the label that is asked for there."""
        if self.shape != other.shape or not np.isin(other.hashes, self.hashes).any():
            return 0
        wanted = set(zip(self.hashes.tolist(), self.labels.tolist(), strict=True))
        here = np.isin(other.hashes, self.hashes)
        pairs = zip(other.hashes[here].tolist(), other.labels[here].tolist(), strict=True)
        return sum(pair not in wanted for pair in pairs)
