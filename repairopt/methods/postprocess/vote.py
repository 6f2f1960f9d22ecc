"""Vote: soft voting of the original network and of a repaired one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch

from repairopt.errors import SpecificationError
from repairopt.localize import WeightChange, Wrapped
from repairopt.methods.method import Method, uses
from repairopt.methods.outcome import Outcome
from repairopt.methods.registry import find_method
from repairopt.methods.settings import Expected
from repairopt.methods.subtask import run_with
from repairopt.methods.task import Task
from repairopt.network import Candidate
from repairopt.program import Status


@dataclass(frozen=True, kw_only=True)
class Vote:
    """Repair by another method, then mix the probabilities of the original network and of the repaired one.

    Of some shares of the repaired network the judge chooses on the repair data; of equal ones the smallest share.

    Attributes:
        of: The method that repairs, by name or as an instance.
        shares: Weights of the repaired network that are tried, between 0 and 1.

    References:
        Kittler, Hatef, Duin and Matas, On Combining Classifiers, 1998 (the sum rule).
    """

    systems: ClassVar[Mapping[str, Mapping[str, Any]]] = {"Soft voting (SV)": {"shares": (0.5,)}}

    of: str | Method = "sqp"
    shares: Sequence[float] = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95)

    def __post_init__(self) -> None:
        between = Expected(high=1, above=True, below=True)
        if isinstance(self.shares, str) or not len(self.shares) or not all(between.fits(one) for one in self.shares):
            raise SpecificationError(f"method Vote: shares={self.shares!r}; expected numbers between 0 and 1.")

    @property
    def uses(self) -> frozenset[str]:
        """What the method ``of`` uses."""
        return uses(find_method(self.of))

    @property
    def default_weights(self) -> Any:
        """What ``weights="auto"`` means for the method ``of``."""
        return getattr(find_method(self.of), "default_weights", "auto")

    def run(self, task: Task) -> Outcome:
        """Run the method, then try the shares."""
        check_plain(task, self)
        outcome = run_with(task, find_method(self.of))
        settings, tensors = other_parts(task, outcome.candidate)
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


def check_plain(task: Task, method: object) -> None:
    """Refuse a network whose outputs are read in another way than its call gives them.

    Args:
        task: The repair.
        method: Who asks, for the message.

    Raises:
        SpecificationError: The Classifier has a ``forward_fn``, or another meaning of outputs than logits.
    """
    if task.engine.forward_fn is not None:
        raise SpecificationError(
            f"method {type(method).__name__}: reads the outputs (N, k) of the module itself, but the Classifier reads "
            f"them in another way. Put that into a module of your own, whose call takes the inputs and gives logits."
        )


def other_parts(task: Task, candidate: Candidate | Any) -> tuple[dict[str, Any], dict[str, Any]]:
    """Settings and tensors of the repaired network for :func:`other_network`; no tensors where it is the same."""
    if isinstance(candidate, Wrapped):
        return {"kind": candidate.kind, "settings": dict(candidate.settings)}, dict(candidate.tensors)
    found = WeightChange(task.location, candidate) if isinstance(candidate, np.ndarray) else candidate
    old, new = task.engine.model.state_dict(), found.apply(task.engine.model).state_dict()
    if set(old) != set(new):
        raise SpecificationError(
            f"a vote cannot be held with a {type(found).__name__}; expected new weights or a registered wrapper."
        )
    return {}, {name: value.detach() for name, value in new.items() if not torch.equal(value, old[name])}
