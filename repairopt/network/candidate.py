"""Candidates: what a repair proposes, whatever its kind."""

from __future__ import annotations

from typing import Any, Protocol, runtime_checkable

import numpy as np
import numpy.typing as npt
from torch import nn

from .engine import Engine, Remembering

Array = npt.NDArray[np.float64]


@runtime_checkable
class Candidate(Protocol):
    """A changed network that can be run, described, applied to a model and written to a file.

    Kinds are the weight change, new weights of the same architecture, and a network that is wrapped. A weight change
    may also be given as a plain vector over the weights of the engine.
    """

    def predict(self, engine: Engine) -> Remembering:
        """The changed network as a function of its inputs; ``engine`` runs the original."""
        ...

    def moved(self, engine: Engine) -> Array:
        """The change ``(n,)`` of the engine's weights, on which constraints on the change are judged."""
        ...

    def describe(self) -> str:
        """What is changed, in a line for the report."""
        ...

    def size(self) -> int:
        """How many numbers differ from the original, or are added to it."""
        ...

    def apply(self, model: nn.Module) -> nn.Module:
        """A changed copy of the model, which is not modified."""
        ...

    def as_patch(self, model: nn.Module, **info: Any) -> Any:
        """The change as a file that can be saved, applied and reverted; ``model`` is the original."""
        ...


class ModuleCandidate:
    """The part of a candidate that follows from ``apply``, for one that leaves the original weights as they are."""

    def apply(self, model: nn.Module) -> nn.Module:
        """A changed copy of the model; each kind has its own."""
        raise NotImplementedError(f"{type(self).__name__} has no apply(model)")

    def moved(self, engine: Engine) -> Array:
        """No change."""
        return np.zeros(engine.n)

    def predict(self, engine: Engine) -> Remembering:
        """The changed network, run on an engine of its own."""
        changed = self.apply(engine.model)
        return Remembering(Engine(changed, forward_fn=engine.forward_fn, memory_limit=engine.memory_limit))


def network_of(engine: Engine, candidate: Candidate | Array) -> Remembering:
    """The network of a candidate of any kind, or of a weight change ``(n,)``; it runs each set of inputs once."""
    if isinstance(candidate, np.ndarray):  # first: whether something is a Candidate takes as long as a small network
        return Remembering(engine, candidate)
    return candidate.predict(engine) if isinstance(candidate, Candidate) else Remembering(engine, candidate)
