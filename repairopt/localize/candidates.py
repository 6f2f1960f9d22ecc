"""The kinds of candidates: a weight change, new weights, a wrapped network, a new architecture."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from repairopt.errors import ModelError
from repairopt.network import Array, Engine, ModuleCandidate, Remembering
from repairopt.patches import Patch, WrappedPatch, wrap

from .location import Location
from .write_change import apply


@dataclass(frozen=True, eq=False)
class WeightChange:
    """A vector of changes, new minus old weights ``(n,)``, over the weights of a location."""

    location: Location
    delta: Array

    def predict(self, engine: Engine) -> Remembering:
        """The changed network; the engine's weights are those of the location."""
        return Remembering(engine, self.delta)

    def moved(self, engine: Engine) -> Array:
        """The change itself."""
        return self.delta

    def describe(self) -> str:
        """How many of the weights that may change do."""
        return f"{self.size()} of {self.location.size} weights changed"

    def size(self) -> int:
        """Weights that change."""
        return int((self.delta != 0).sum())

    def apply(self, model: nn.Module) -> nn.Module:
        """A copy of the model with the change written into it."""
        return apply(model, self.location, self.delta)[0]

    def as_patch(self, model: nn.Module, **info: Any) -> Patch:
        """The change as a patch of the model."""
        return Patch.between(model, self.apply(model), **info)


@dataclass(frozen=True, eq=False)
class NewWeights(ModuleCandidate):
    """Weights for the same architecture, from training: new parameters and buffers by name, the others stay.

    ``trained`` says how many of their numbers could change; None for all.
    """

    weights: Mapping[str, Tensor]
    trained: int | None = None

    def describe(self) -> str:
        """How many numbers of how many tensors were trained."""
        return f"{self.size()} weights in {len(self.weights)} tensors retrained"

    def size(self) -> int:
        """Numbers that were trained."""
        return sum(tensor.numel() for tensor in self.weights.values()) if self.trained is None else self.trained

    def moved(self, engine: Engine) -> Array:
        """New minus old values of the engine's weights."""
        pieces = [
            self.weights[name].detach().to(engine.device).flatten()[ix].double()
            if name in self.weights
            else engine.weights(engine.as_delta(None))[name].flatten()[ix].double()
            for name, ix in engine.indices.items()
        ]
        old = engine.initial.double()
        return (torch.cat(pieces) - old if pieces else old).cpu().numpy()

    def apply(self, model: nn.Module) -> nn.Module:
        """A copy of the model with the new weights; a ModelError where a name or a shape does not fit."""
        changed = copy.deepcopy(model)
        own = changed.state_dict()
        for name, tensor in self.weights.items():
            if name not in own or own[name].shape != tensor.shape:
                came = tuple(tensor.shape)
                want = f"shape {tuple(own[name].shape)}" if name in own else "a name of the model's state dict"
                raise ModelError(f"new weights '{name}' have shape {came}; expected {want}.")
            with torch.no_grad():
                own[name].copy_(tensor)
        return changed

    def as_patch(self, model: nn.Module, **info: Any) -> Patch:
        """The difference as a patch of the model."""
        return Patch.between(model, self.apply(model), **info)


@dataclass(frozen=True, eq=False)
class Wrapped(ModuleCandidate):
    """A network around the original one, such as a vote or offsets by group.

    Attributes:
        kind: Name of the wrapper in the entry-point group ``repairopt.wrappers``; called with a copy of the model, the
            settings and the tensors, it returns the module.
        settings: What is not a tensor; plain values that JSON can hold.
        tensors: What the wrapper adds, by name.
    """

    kind: str
    settings: Mapping[str, Any] = field(default_factory=dict)
    tensors: Mapping[str, Tensor] = field(default_factory=dict)

    def describe(self) -> str:
        """The kind and how much it adds."""
        return f"wrapped: {self.kind}, {self.size()} numbers added"

    def size(self) -> int:
        """Numbers that are added."""
        return sum(tensor.numel() for tensor in self.tensors.values())

    def apply(self, model: nn.Module) -> nn.Module:
        """A copy of the model inside of the wrapper."""
        return wrap(self.kind, copy.deepcopy(model), self.settings, self.tensors)

    def as_patch(self, model: nn.Module, **info: Any) -> WrappedPatch:
        """The wrapper as a file for this model."""
        return WrappedPatch.around(model, self.kind, self.settings, self.tensors, **info)


@dataclass(frozen=True, eq=False)
class NewArchitecture(Wrapped):
    """A network in which a block is replaced by one of another architecture.

    It is saved like a wrapper: the original stays inside of the module, so that a patch of it can be reverted.
    ``settings`` has the ``name`` of the block and its ``genotype``, a list of edges with their operations.
    """

    def describe(self) -> str:
        """The block, its operations and how many numbers it has."""
        words = ", ".join(str(edge["operation"]) for edge in self.settings["genotype"])
        return f"new architecture of '{self.settings['name']}': {words}; {self.size()} numbers"
