"""Select rows: the margins worth solving with, since all of them are too many."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from repairopt.errors import SpecificationError
from repairopt.program import Array
from repairopt.specify import Expected, is_one_of, price_of

from .linearization import Linearization, Picks

ORDERS = ("tightest", "easiest", "worst", "cheap")
Index = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Strictest:
    """The paper's selection: a share of the satisfied rows and a share of the violated ones, once.

    Attributes:
        positive: Share of the rows that hold at the start, 0 to 1.
        negative: Share of the rows that are violated at the start, 0 to 1.
        order_positive: ``"tightest"`` (smallest margin first) or ``"easiest"``.
        order_negative: ``"cheap"`` (least violated first) or ``"worst"``.
        normalize: Rank by margin over the length of the row, the distance in weight space, in place of the margin.

    References:
        AutoRIC, Algorithm 4 and Table 3.
    """

    positive: float = 0.002
    negative: float = 0.002
    order_positive: str = "tightest"
    order_negative: str = "cheap"
    normalize: bool = True

    def __post_init__(self) -> None:
        for what in ("positive", "negative"):
            share = getattr(self, what)
            if not Expected(high=1).fits(share):
                raise SpecificationError(f"selection: {what}={share!r} is not a share, a number from 0 to 1.")
        orders = (self.order_positive, ("tightest", "easiest")), (self.order_negative, ("cheap", "worst"))
        if not all(is_one_of(order, names) for order, names in orders):
            raise SpecificationError(
                f"selection: order_positive={self.order_positive!r}, order_negative={self.order_negative!r}; choose "
                f"tightest or easiest, and cheap or worst."
            )


@dataclass(frozen=True)
class MostViolated:
    """Incremental selection: the ``batch`` rows that a step violates most, linearized, of *all* samples."""

    batch: int = 100


def select_rows(
    linearization: Linearization,
    how: Strictest | MostViolated,
    *,
    step: Array | None = None,
    chosen: Picks | None = None,
    linearized: tuple[Array, ...] | None = None,
) -> Picks:
    """Select the margins to build rows for, by the paper's shares or, at a step ``(n,)``, the most violated.

    Those in ``chosen`` are not returned again; ``linearized`` are the margins at ``step``, where known. No row of the
    others is built; ranking by distance builds the rows of the candidates a few at a time.
    """
    if isinstance(how, Strictest):
        picks = {}
        for c, margins in enumerate(linearization.margins):
            holds, fails = np.flatnonzero(margins >= 0), np.flatnonzero(margins < 0)
            kept = _ranked(linearization, c, holds, how.positive, how.order_positive == "easiest", how.normalize)
            mended = _ranked(linearization, c, fails, how.negative, how.order_negative == "worst", how.normalize)
            picks[c] = np.sort(np.concatenate([kept, mended])).astype(np.int64)
        return picks
    at = linearized if linearized is not None else linearization.at(np.zeros(0) if step is None else step)
    return _most_violated(linearization, how, at, chosen or {})


def _ranked(linearization: Linearization, c: int, index: Index, share: float, largest: bool, normalize: bool) -> Index:
    """The share of ``index`` with the smallest (or largest) margin, after dropping rows that no weight influences."""
    count = int(np.ceil(share * len(index) - 1e-9))
    if count == 0 or not len(index):
        return np.zeros(0, dtype=np.int64)
    size = np.abs(linearization.margins[c][index])
    order = np.argsort(-size if largest else size, kind="stable")
    index = index[order[: max(10 * count, 2000)]]  # distance is worked out for these candidates alone
    size = np.abs(linearization.margins[c][index])
    norms = linearization.norms(c, index)
    alive = norms > 1e-12 * max(1e-300, float(norms.max(initial=0.0)))
    index, size, norms = index[alive], size[alive], norms[alive]
    rank = size / norms if normalize else size
    return index[np.argsort(-rank if largest else rank, kind="stable")[:count]]


def _most_violated(linearization: Linearization, how: MostViolated, at: tuple[Array, ...], chosen: Picks) -> Picks:
    lacks = []
    for c, margins in enumerate(at):
        lack = linearization.required[c] - margins
        price = price_of(linearization.constraints[c])
        lack = lack * (1.0 if price is None else min(1.0, price))  # hard rows first
        lack[chosen.get(c, np.zeros(0, dtype=np.int64))] = -np.inf
        lacks.append(lack)
    everything = np.concatenate(lacks) if lacks else np.zeros(0)
    owner = np.concatenate([np.full(len(lack), c) for c, lack in enumerate(lacks)]) if lacks else np.zeros(0)
    start = np.cumsum([0] + [len(lack) for lack in lacks])
    count = min(how.batch, len(everything))
    top = np.argpartition(-everything, count - 1)[:count] if count else np.zeros(0, dtype=np.int64)
    top = top[everything[top] > 1e-9]
    return {c: np.sort(top[owner[top] == c] - start[c]).astype(np.int64) for c in range(len(lacks))}
