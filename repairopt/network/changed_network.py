"""The network under a weight change: which weights change, where they enter, how it is run with others in their place.

The model is never modified: parameters are passed functionally, on a copy of the module structure that shares the
tensors and is in evaluation mode. Activations before the first changed layer do not depend on the change: the network
is split there, at its frontier.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import suppress
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn

from repairopt.errors import ModelError

from .inference_tensors import usable
from .linear_layers import ChangedLayer, changed_layers
from .model_checks import (
    accepts,
    check_model,
    check_one_precision,
    check_outputs,
    check_positions,
    shadow,
    telling_rows,
    writes_into,
)
from .replace_weights import Replaceable
from .split_graph import Split, split_at

FEW = 5  # rows on which a network is tried
ForwardFunction = Callable[[nn.Module, Tensor], Tensor]


class Caller(nn.Module):
    """One tensor in, logits out, whatever the user's model looks like; names of parameters have ``model.`` in front.

    ``copies`` says whether the model is given a copy, since its forward writes into what it is given.
    """

    def __init__(self, model: nn.Module, forward_fn: ForwardFunction | None, copies: bool = False) -> None:
        super().__init__()
        self.model = model
        self.forward_fn = forward_fn
        self.copies = copies
        self.user_class = type(model).__name__

    def forward(self, inputs: Tensor) -> Tensor:
        """Outputs ``(N, k)``."""
        inputs = inputs.clone() if self.copies else inputs
        return self.model(inputs) if self.forward_fn is None else self.forward_fn(self.model, inputs)


class ChangedNetwork:
    """One network at any weight change ``delta``, a vector over ``n`` chosen weights; the model is not modified.

    ``indices`` has for each parameter name the flat positions, sorted, that ``delta`` runs over; ``forward_fn`` takes
    ``(model, inputs)`` to logits ``(N, k)``. ``caller`` is the module from one tensor to logits, its parameters named
    with ``model.`` in front; ``n_changed`` counts the numbers of the parameters that change, ``classes`` the outputs (0
    before the first run), ``evaluations`` the samples run from the frontier on; ``writes_into_outputs`` says whether an
    operation behind a changed layer works in place, as a pass has found out. ``traced`` is the same network with other
    weights to change, whose trace is used again.

    Raises:
        ModelError: Unknown parameter, position out of range, half precision, or no floating parameters at all.
    """

    def __init__(
        self,
        model: nn.Module,
        indices: Mapping[str, Tensor] | None = None,
        forward_fn: ForwardFunction | None = None,
        traced: ChangedNetwork | None = None,
    ) -> None:
        self.model, self.forward_fn = model, forward_fn
        self.caller = Caller(shadow(model), forward_fn).eval()
        parameters = dict(self.caller.model.named_parameters())
        self.dtype, self.device = check_model(model, parameters)
        self.indices = {name: check_positions(name, ix, parameters) for name, ix in (indices or {}).items()}
        if self.indices:
            check_one_precision(model, parameters)
        self._initial = {name: parameters[name].detach() for name in self.indices}
        self.n = sum(len(ix) for ix in self.indices.values())
        self.n_changed = sum(p.numel() for p in self._initial.values())
        self.classes = self.evaluations = 0
        self.writes_into_outputs = False
        self._split: Split | None = None
        self._traced = traced
        self._writes = (True, True)  # whether prefix and suffix may write into what they are given
        self._replaceable: Replaceable | None = None  # made at the first run, as is the split
        self._takes_integers = False
        self._shapes: set[torch.Size] = set()  # of single inputs, on which the network was found to run
        self._layers: list[ChangedLayer] | None = None

    @property
    def initial(self) -> Tensor:
        """The ``n`` chosen weights as they are in the model."""
        empty = torch.zeros(0, dtype=self.dtype, device=self.device)
        return torch.cat([empty, *(self._initial[name].flatten()[ix] for name, ix in self.indices.items())])

    @cached_property
    def scale(self) -> Tensor:
        """Natural size of a change of each weight, ``(n,)`` in float64: ``max(|weight|, rms of its parameter)``.

        A parameter that is next to zero throughout, such as a fresh bias, takes the rms of all parameters of the model.
        """
        parts = []
        for name, ix in self.indices.items():
            base = self._initial[name].to(torch.float64)
            rms = float(base.square().mean().sqrt())
            rms = self._rms if rms < 1e-6 * self._rms else rms
            parts.append(base.flatten()[ix].abs().clamp(min=rms))
        return torch.cat(parts) if parts else torch.zeros(0, dtype=torch.float64)

    @cached_property
    def _rms(self) -> float:
        flat = [p.detach().flatten().double() for p in self.model.parameters() if p.is_floating_point()]
        return float(torch.cat(flat).square().mean().sqrt()) or 1.0

    @cached_property
    def _places(self) -> list[tuple[str, Tensor, slice, bool]]:
        """Of each parameter its positions, where they stand in a weight change, and whether they are all there are."""
        found, start = [], 0
        for name, ix in self.indices.items():
            span = slice(start, start := start + ix.numel())
            found.append((name, ix, span, ix.numel() == self._initial[name].numel()))
        return found

    def weights(self, delta: Tensor) -> dict[str, Tensor]:
        """The changed parameters, by name, at a weight change ``delta (n,)``."""
        out = {}
        for name, ix, span, whole in self._places:
            base, piece = self._initial[name], delta[span]
            flat = base.flatten() + piece if whole else base.flatten().index_add(0, ix, piece)
            out[name] = flat.view(base.shape)
        return out

    def as_delta(self, delta: Any) -> Tensor:
        """Any array ``(..., n)`` as a tensor of the model's dtype and device; None means no change."""
        if delta is None:
            return torch.zeros(self.n, dtype=self.dtype, device=self.device)
        return torch.as_tensor(delta, device=self.device).to(self.dtype)

    def layers(self, inputs: Tensor) -> list[ChangedLayer] | None:
        """The linear layers that hold all changed weights, or None where some are used in another way."""
        self._prepare(inputs)
        return self._layers

    @property
    def exact(self) -> bool:
        """Whether outputs are affine in ``delta``: all changed weights are in the last linear layer."""
        return self._split is not None and self._split.last_linear is not None

    def run(self, weights: Mapping[str, Tensor], part: tuple[Tensor, ...]) -> Tensor:
        """Outputs ``(B, k)`` from activations ``part`` at the frontier, with the named parameters replaced."""
        self.evaluations += part[0].shape[0]
        assert self._replaceable is not None
        part = tuple(one.clone() for one in part) if self._writes[1] else part
        return self._replaceable.run(weights, part)

    def to_frontier(self, inputs: Tensor) -> tuple[Tensor, ...]:
        """Activations of a batch of inputs where the first changed weight enters; the inputs where that is unknown."""
        self._prepare(inputs)
        inputs = self.converted(inputs)
        if self._split is None or self._split.prefix is None:
            return (inputs,)
        with torch.no_grad():
            return tuple(self._split.prefix(inputs.clone() if self._writes[0] else inputs))

    def widest(self, inputs: Tensor) -> int:
        """The most numbers that one layer after the frontier makes for each sample."""
        self._prepare(inputs)
        return self._split.widest if self._split else max(64, inputs[0].numel() * 8)

    def floats(self, inputs: Tensor) -> int:
        """Numbers that all layers after the frontier make for each sample."""
        self._prepare(inputs)
        return self._split.floats if self._split else max(64, inputs[0].numel() * 32)

    def converted(self, inputs: Tensor) -> Tensor:
        """Inputs as the network takes them: its device, its precision unless they are whole numbers that it reads."""
        inputs = usable(inputs).detach().to(self.device)
        if inputs.is_floating_point() or not self._takes_integers:
            inputs = inputs.to(self.dtype)
        return inputs.clone() if self.caller.copies else inputs

    @property
    def suffix(self) -> nn.Module:
        """What is run from the frontier on; the whole network before the first run, or where it cannot be split."""
        return self.caller if self._split is None else self._split.suffix

    def _prepare(self, inputs: Tensor) -> None:
        """Check that the network is usable on inputs of this shape; the first time, split it."""
        if inputs.shape[1:] in self._shapes:
            return
        few = usable(inputs[torch.arange(FEW, device=inputs.device) % inputs.shape[0]]).detach()
        if not few.is_floating_point():  # integers too where nothing runs, so that the error speaks of them
            self._takes_integers = accepts(self.caller, few.to(self.device)) or not accepts(
                self.caller, self.converted(few)
            )
        few = self.converted(few)
        self.classes = check_outputs(self.caller, few, inputs)
        self.caller.copies = self.caller.copies or writes_into(self.caller, few)
        self._shapes.add(inputs.shape[1:])
        if self._replaceable is not None:
            return
        names = {f"model.{name}" for name in self.indices}
        if names:
            known = None if self._traced is None or self._traced._split is None else self._traced._split.graph
            self._split = split_at(self.caller, names, torch.cat([few, self.converted(telling_rows(inputs))]), known)
            self._traced = None
            self._writes = self._split.writes if self._split else (True, True)
        self._layers = changed_layers(self.suffix, self.indices)
        changed = {name: p for name, p in self.caller.model.named_parameters() if name in self.indices}
        self._replaceable = Replaceable(self.suffix, changed)

    def check_read(self, inputs: Tensor) -> None:
        """A ModelError where forward reads none of the chosen weights, as where it calls layers of another module."""
        part, start = self.to_frontier(inputs[:FEW]), self.as_delta(None)
        assert self._replaceable is not None
        with torch.enable_grad():
            weights = self.weights(start.requires_grad_())
            outputs = self._replaceable.run(weights, tuple(one.clone() for one in part))
            with suppress(RuntimeError):  # of a function without a derivative
                if torch.autograd.grad(outputs.sum(), start, allow_unused=True)[0] is not None:
                    return
        with torch.no_grad():  # without derivatives, as of NumPy in forward, the weights may be read all the same
            changes = [start + share * self.scale.to(start) for share in (1.0, -0.5)]
            others = [
                self._replaceable.run(self.weights(change), tuple(one.clone() for one in part)) for change in changes
            ]
        if all(torch.equal(outputs, other) for other in others):
            raise ModelError(
                f"model {type(self.model).__name__}: its outputs do not change with the chosen weights, "
                f"{', '.join(map(repr, [*self.indices][:4]))}. Look for a forward that was replaced by a function, or "
                f"for a hook: a copy of the model still calls the layers of the original through it."
            )
