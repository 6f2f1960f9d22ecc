"""The original network and the one that another method repairs: what votes of both have in common."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import nn

from repairopt.errors import SpecificationError
from repairopt.localize import WeightChange, Wrapped, first_inputs
from repairopt.methods.method import Method, uses
from repairopt.methods.outcome import Outcome
from repairopt.methods.registry import find_method
from repairopt.methods.subtask import run_with
from repairopt.methods.task import Task
from repairopt.network import Candidate, Reading, meaning_of, shadow
from repairopt.patches import FORMS, AsLogits


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
        _, read = network_of_logits(task, self)
        outcome = run_with(task, find_method(self.of))
        settings, tensors = other_parts(task, outcome.candidate)
        return outcome, {**read, **settings}, tensors


def network_of_logits(task: Task, method: object) -> tuple[nn.Module, dict[str, Any]]:
    """The network of a repair as a wrapper takes it, and what the settings of the wrapper say of its outputs.

    Args:
        task: The repair.
        method: Who asks, for the message.

    Returns:
        A module from inputs to logits ``(N, k)``, in evaluation mode and with buffers of its own, and settings for
        :func:`repairopt.patches.wrap`: none where the network gives logits itself.

    Raises:
        SpecificationError: The Classifier has a ``forward_fn``, or outputs that logits cannot be turned into again.
    """
    model, read = shadow(task.engine.model), task.engine.forward_fn
    if read is None:
        return model, {}
    form = meaning_of(read)
    if form not in FORMS or not isinstance(read, Reading) or read.forward_fn is not None:
        raise SpecificationError(
            f"method {type(method).__name__}: goes around the module itself, whose outputs are to be logits, "
            f"probabilities or one number for each row, but the Classifier reads them in another way. Put its "
            f"forward_fn into a module of your own."
        )
    few = first_inputs(task.goal, task.constraints)
    if few is None:
        raise SpecificationError(
            f"method {type(method).__name__}: neither the goal '{task.goal.name}' nor a constraint asks the network "
            f"about inputs, so the form of its outputs is not known. State inputs with the goal."
        )
    with torch.no_grad():
        flat = model(task.engine.converted(few[:2])).ndim == 1
    return AsLogits(model, form), {"network_outputs": form, "network_flat": flat}


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
