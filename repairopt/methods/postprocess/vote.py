"""Vote: soft voting of the original network and of a repaired one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from repairopt.errors import SpecificationError
from repairopt.localize import Wrapped
from repairopt.methods.outcome import Outcome
from repairopt.methods.settings import Expected
from repairopt.methods.task import Task
from repairopt.program import Status

from .two_networks import TwoNetworks


@dataclass(frozen=True, kw_only=True)
class Vote(TwoNetworks):
    """Repair by another method, then mix the probabilities of the original network and of the repaired one.

    Of some shares of the repaired network the judge chooses on the repair data; of equal ones the smallest share.

    Attributes:
        of: The method that repairs, by name or as an instance.
        shares: Weights of the repaired network that are tried, between 0 and 1.

    References:
        Kittler, Hatef, Duin and Matas, On Combining Classifiers, 1998 (the sum rule).
    """

    systems: ClassVar[Mapping[str, Mapping[str, Any]]] = {"Soft voting (SV)": {"shares": (0.5,)}}

    shares: Sequence[float] = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95)

    def __post_init__(self) -> None:
        between = Expected(high=1, above=True, below=True)
        listed = isinstance(self.shares, Sequence) and not isinstance(self.shares, str) and len(self.shares)
        if not listed or not all(between.fits(one) for one in self.shares):
            raise SpecificationError(f"method Vote: shares={self.shares!r}; expected numbers between 0 and 1.")

    def run(self, task: Task) -> Outcome:
        """Run the method, then try the shares."""
        outcome, settings, tensors = self.repaired(task)
        if not tensors:
            return outcome
        best = None
        for share in sorted(self.shares):
            judged = task.judge.keep(Wrapped("vote", {"weight": float(share), **settings}, tensors))
            better = best is None or judged.better_than(best)
            task.log.last = (0, 1, None)
            task.record(f"vote, share {share:g}", judged, accepted=better)
            best = judged if better else best
        assert best is not None
        return Outcome(best.candidate, Status.FEASIBLE, claims=(), buffers=outcome.buffers, margins=outcome.margins)
