"""The original network and the one that another method repairs: what votes of both have in common."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from repairopt.errors import SpecificationError
from repairopt.localize import WeightChange, Wrapped
from repairopt.methods.method import Method, uses
from repairopt.methods.outcome import Outcome
from repairopt.methods.registry import find_method
from repairopt.methods.subtask import run_with
from repairopt.methods.task import Task
from repairopt.network import Candidate


@dataclass(frozen=True, kw_only=True)
class TwoNetworks:
    """Fields of the methods that repair by another method and then ask both networks.

    Attributes:
        of: The method that repairs, by name or as an instance.
    """

    of: str | Method = "sqp"

    @property
    def uses(self) -> frozenset[str]:
        """What the method ``of`` uses."""
        return uses(find_method(self.of))

    @property
    def default_weights(self) -> Any:
        """What ``weights="auto"`` means for the method ``of``."""
        return getattr(find_method(self.of), "default_weights", "auto")

    def repaired(self, task: Task) -> tuple[Outcome, dict[str, Any], dict[str, Any]]:
        """Run the method ``of``: its outcome, settings and tensors of the other network, none where it is the same."""
        check_plain(task, self)
        outcome = run_with(task, find_method(self.of))
        return outcome, *other_parts(task, outcome.candidate)


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
