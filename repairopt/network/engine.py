"""The engine: every run of the network goes through it.

It owns device, dtype, batching within a memory budget, ``torch.func`` and the reuse of activations before the first
changed layer. The model is never modified: parameters are passed functionally, on a copy of the module structure that
shares the tensors and is in evaluation mode.
"""

from __future__ import annotations

import warnings
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import vmap

from .changed_layers import ChangedLayer, changed_layers
from .check_model import accepts, check_model, check_outputs, check_positions, shadow
from .linear_tape import LinearTape
from .replace_weights import Replaceable
from .split_graph import Split, split_at
from .still_rows import StillRows, columns_read, moved_rows

ForwardFunction = Callable[[nn.Module, Tensor], Tensor]
POINTS = 3  # weight changes whose outputs and passes are kept
CACHE_BYTES = 8 * 2**20  # weight vectors are batched in chunks of about this size: larger ones leave the CPU cache


class _Caller(nn.Module):
    """One tensor in, logits out, whatever the user's model looks like."""

    def __init__(self, model: nn.Module, forward_fn: ForwardFunction | None) -> None:
        super().__init__()
        self.model = model
        self.forward_fn = forward_fn

    def forward(self, inputs: Tensor) -> Tensor:
        return self.model(inputs) if self.forward_fn is None else self.forward_fn(self.model, inputs)


def identity(inputs: Tensor) -> tuple[object, ...]:
    """Tells tensors apart by the memory that they view, so that views of one array share what was computed for it."""
    return (inputs.data_ptr(), inputs.shape, inputs.stride(), inputs.dtype, inputs.device)


class Predictor:
    """What properties and constraints see: the network at one weight change, as a function of the inputs.

    Attributes:
        network: Module from one tensor to logits; its parameters bear the model's names with ``model.`` in front.
        parameters: The changed parameters under those names.
    """

    def __init__(self, engine: Engine, delta: Tensor, frozen: bool = False) -> None:
        self._engine, self._delta, self._frozen = engine, delta, frozen

    def __call__(self, inputs: Tensor) -> Tensor:
        """Outputs ``(N, k)`` of inputs ``(N, ...)``."""
        if not self._frozen:
            return self._engine.outputs(inputs, self._delta)
        return self._engine.known_outputs(inputs, self._delta)

    @property
    def network(self) -> nn.Module:
        """The unchanged network in evaluation mode; run it with ``parameters`` replaced."""
        return self._engine._caller

    @property
    def parameters(self) -> dict[str, Tensor]:
        """The changed parameters, by their names in ``network``."""
        return {f"model.{name}": value for name, value in self._engine.weights(self._delta).items()}


class Remembering(Predictor):
    """A predictor that runs each set of inputs once and remembers its outputs, by the identity of the inputs."""

    def __init__(self, engine: Engine, delta: Any = None) -> None:
        super().__init__(engine, engine.as_delta(delta), frozen=True)
        self.outputs: dict[tuple[object, ...], Tensor] = {}

    def __call__(self, inputs: Tensor) -> Tensor:
        """Outputs ``(N, k)`` of inputs ``(N, ...)``."""
        key = identity(inputs)
        if key not in self.outputs:
            self.outputs[key] = super().__call__(inputs)
        return self.outputs[key]


class Engine:
    """Runs one network at any weight change ``delta``, a vector over ``n`` chosen weights.

    Args:
        model: Any module whose call gives logits ``(N, k)``; not modified.
        indices: For each parameter name the flat positions, sorted, that ``delta`` runs over; empty for plain runs.
        forward_fn: ``(model, inputs) -> logits`` for models with other inputs or outputs.
        memory_limit: Bytes that activations and intermediate results may take.

    Raises:
        ModelError: Unknown parameter, position out of range, half precision, or no floating parameters at all.
    """

    def __init__(
        self,
        model: nn.Module,
        indices: Mapping[str, Tensor] | None = None,
        *,
        forward_fn: ForwardFunction | None = None,
        memory_limit: int = 2**30,
    ) -> None:
        self.model, self.forward_fn, self.memory_limit = model, forward_fn, memory_limit
        self._caller = _Caller(shadow(model), forward_fn).eval()
        parameters = dict(self._caller.model.named_parameters())
        self.dtype, self.device = check_model(model, parameters)
        self.indices = {name: check_positions(name, ix, parameters) for name, ix in (indices or {}).items()}
        self._initial = {name: parameters[name].detach() for name in self.indices}
        self.n = sum(len(ix) for ix in self.indices.values())
        self.n_changed = sum(p.numel() for p in self._initial.values())  # numbers in the parameters that change
        self._split: Split | None = None
        self._ready = False
        self._takes_integers = False
        self._suffix: nn.Module = self._caller
        self._replaceable: Replaceable | None = None
        self._frontiers: dict[tuple[object, ...], tuple[Tensor, int, tuple[Tensor, ...]]] = {}
        self._cached_bytes = 0
        self._layers: list[ChangedLayer] | None = None
        self.writes_into_outputs = False  # whether an operation behind a changed layer works in place
        self._columns: Tensor | None = None
        self._still: dict[tuple[object, ...], tuple[Tensor, int, StillRows | None]] = {}
        self._known: OrderedDict[bytes, dict[tuple[object, ...], tuple[Tensor, int, Any]]] = OrderedDict()
        self.classes = 0
        self.evaluations = 0  # samples run through the suffix, all weight vectors together

    # ---------------------------------------------------------------- weights

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

    def weights(self, delta: Tensor) -> dict[str, Tensor]:
        """The changed parameters, by name, at a weight change ``delta (n,)``."""
        out, start = {}, 0
        for name, ix in self.indices.items():
            base, piece = self._initial[name], delta[start : start + len(ix)]
            start += len(ix)
            flat = base.flatten()
            flat = flat + piece if len(ix) == flat.numel() else flat.index_add(0, ix, piece)
            out[name] = flat.view(base.shape)
        return out

    def as_delta(self, delta: Any) -> Tensor:
        """Any array ``(..., n)`` as a tensor of the model's dtype and device; None means no change."""
        if delta is None:
            return torch.zeros(self.n, dtype=self.dtype, device=self.device)
        return torch.as_tensor(delta, device=self.device).to(self.dtype)

    # ---------------------------------------------------------------- plain runs

    def predict(self, delta: Any = None) -> Predictor:
        """The network at ``delta`` as a function from inputs ``(N, ...)`` to outputs ``(N, k)``, without gradients."""
        return Predictor(self, self.as_delta(delta), frozen=True)

    def outputs(self, inputs: Tensor, delta: Tensor, samples: Tensor | None = None) -> Tensor:
        """Outputs ``(N, k)``, or ``(len(samples), k)``; in batches within the memory limit; differentiable in delta."""
        weights = self.weights(delta) if self.n else {}
        still = self.still(inputs) if samples is None else None
        samples = samples if still is None else still.moved
        parts = [self.run(weights, part) for _, part in self.batches(inputs, samples, 3 * self.widest(inputs))]
        found = parts[0] if len(parts) == 1 else torch.cat(parts)
        return found if still is None else still.outputs(found)

    def known_outputs(self, inputs: Tensor, delta: Tensor) -> Tensor:
        """Outputs without gradients, remembered for the last few weight changes; not to be written into."""
        known = self._point(delta)
        key = ("outputs", *identity(inputs))
        if key not in known or known[key][1] != inputs._version:
            with torch.no_grad():
                known[key] = (inputs, inputs._version, self.outputs(inputs, delta))
        found: Tensor = known[key][2]
        return found

    def tapes(self, inputs: Tensor, delta: Tensor) -> list[tuple[slice, LinearTape]] | None:
        """Passes over all samples that several derivatives can be taken from; remembered for the last weight changes.

        Returns:
            For each batch its samples and its pass; None where the changed weights are not those of linear layers, or
            the activations of all samples do not fit into a quarter of the memory limit.
        """
        self._prepare(inputs)
        size = 4 * self.floats(inputs) * inputs.shape[0] * (torch.finfo(self.dtype).bits // 8)
        if self._layers is None or size > self.memory_limit // 4:
            return None
        known, key = self._point(delta), ("tapes", *identity(inputs))
        if key not in known or known[key][1] != inputs._version:
            still, layers = self.still(inputs), self._layers
            parts = self.batches(inputs, None if still is None else still.moved, 4 * self.floats(inputs))
            found = [(span, LinearTape(self, layers, part, delta, still)) for span, part in parts]
            if still is not None:  # within the quarter of the limit there is one batch
                found = [(slice(0, inputs.shape[0]), found[0][1])]
            known[key] = (inputs, inputs._version, found)
            outputs = found[0][1].outputs if len(found) == 1 else torch.cat([tape.outputs for _, tape in found])
            known.setdefault(("outputs", *identity(inputs)), (inputs, inputs._version, outputs))
        tapes: list[tuple[slice, LinearTape]] = known[key][2]
        return tapes

    def still(self, inputs: Tensor) -> StillRows | None:
        """Which samples no change moves, where they are most; remembered with their outputs."""
        self._prepare(inputs)
        if self._columns is None:
            return None
        known = self._still.get(identity(inputs))
        if known is None or known[1] != inputs._version:
            frontier = self._cached(inputs)
            moved = None if frontier is None else moved_rows(frontier, self._columns)
            found = None
            if moved is not None:
                with torch.no_grad():
                    found = StillRows.of(moved, self.outputs(inputs, self.as_delta(None), torch.arange(len(inputs))))
            self._still[identity(inputs)] = known = (inputs, inputs._version, found)
        return known[2]

    def layers(self, inputs: Tensor) -> list[ChangedLayer] | None:
        """The linear layers that hold all changed weights, or None where some are used in another way."""
        self._prepare(inputs)
        return self._layers

    def _point(self, delta: Tensor) -> dict[tuple[object, ...], tuple[Tensor, int, Any]]:
        key = delta.detach().cpu().numpy().tobytes()
        if key not in self._known:
            while len(self._known) >= POINTS:
                self._known.popitem(last=False)
            self._known[key] = {}
        self._known.move_to_end(key)
        return self._known[key]

    def values(self, function: Callable[[Predict], Any], deltas: Tensor) -> Tensor:
        """``function(predict)`` at each of ``K`` weight changes, in one batch where the function allows it.

        Args:
            function: From ``predict`` to a scalar.
            deltas: Weight changes ``(K, n)``.

        Returns:
            Values ``(K,)`` in float64.
        """
        deltas = self.as_delta(deltas)
        seen: list[int] = []

        class Watching(Predictor):
            def __call__(self, inputs: Tensor) -> Tensor:
                seen.append(inputs.shape[0] * self._engine.widest(inputs))
                return super().__call__(inputs)

        function(
            Watching(self, self.as_delta(None), frozen=True)
        )  # fills the caches outside of vmap, and shows how large the runs are
        size = max(seen, default=1) * deltas.element_size() * 3
        chunk = max(1, min(self.memory_limit // size, max(1, CACHE_BYTES // size), len(deltas)))

        def one(delta: Tensor) -> Tensor:
            found = function(Predictor(self, delta))
            return found if isinstance(found, Tensor) else torch.tensor(found, dtype=torch.float64)

        with torch.no_grad():
            try:
                with warnings.catch_warnings():
                    warnings.simplefilter("error", UserWarning)  # vmap's slow fallback is slower than a plain loop
                    batch = vmap(one, chunk_size=chunk)
                    return batch(deltas).to(torch.float64) if len(deltas) > 1 else one(deltas[0]).double()[None]
            except (RuntimeError, ValueError, TypeError, UserWarning):  # the function reads numbers out of tensors
                return torch.stack([one(delta).to(torch.float64).reshape(()) for delta in deltas])

    # ---------------------------------------------------------------- interventions

    def frontier(self, inputs: Tensor) -> tuple[Tensor, ...]:
        """Activations where the first changed weight enters, one row for each sample."""
        return tuple(torch.cat(parts) for parts in zip(*(p for _, p in self.batches(inputs, None, 1)), strict=True))

    def run_from(self, frontier: tuple[Tensor, ...]) -> Tensor:
        """Outputs of the unchanged network from given activations at the frontier."""
        return self.run({}, frontier)

    # ---------------------------------------------------------------- inside

    @property
    def exact(self) -> bool:
        """Whether outputs are affine in ``delta``: all changed weights are in the last linear layer."""
        return self._split is not None and self._split.last_linear is not None

    def run(self, weights: Mapping[str, Tensor], part: tuple[Tensor, ...]) -> Tensor:
        """Outputs ``(B, k)`` from activations ``part`` at the frontier, with the named parameters replaced."""
        self.evaluations += part[0].shape[0]
        assert self._replaceable is not None
        return self._replaceable.run(weights, part)

    def widest(self, inputs: Tensor) -> int:
        """The most numbers that one layer after the frontier makes for each sample."""
        self._prepare(inputs)
        return self._split.widest if self._split else max(64, inputs[0].numel() * 8)

    def floats(self, inputs: Tensor) -> int:
        """Numbers that all layers after the frontier make for each sample."""
        self._prepare(inputs)
        return self._split.floats if self._split else max(64, inputs[0].numel() * 32)

    def batches(
        self, inputs: Tensor, samples: Tensor | None, floats: int
    ) -> Iterator[tuple[slice, tuple[Tensor, ...]]]:
        """Slices of the samples and their frontier, so that ``floats`` numbers a sample stay within the limit."""
        self._prepare(inputs)
        count = inputs.shape[0] if samples is None else len(samples)
        itemsize = torch.finfo(self.dtype).bits // 8
        step = max(1, min(count, self.memory_limit // 2 // max(1, floats * itemsize)))
        cached = self._cached(inputs)
        for start in range(0, count, step):
            span = slice(start, min(start + step, count))
            rows: Any = span if samples is None else samples[span].to(inputs.device if cached is None else self.device)
            if cached is not None:
                yield span, tuple(part if samples is None and step >= count else part[rows] for part in cached)
            else:
                yield span, self._to_frontier(inputs[rows])

    def _cached(self, inputs: Tensor) -> tuple[Tensor, ...] | None:
        known = self._frontiers.get(identity(inputs))
        if known is not None and known[1] == inputs._version:
            return known[2]
        with torch.no_grad():
            probe = self._to_frontier(inputs[:1])
            size = sum(part[0].numel() * part.element_size() for part in probe) * inputs.shape[0]
            if size + self._cached_bytes > self.memory_limit // 2:
                return None
            self._cached_bytes += size
            widest = max(64, inputs[0].numel() * 16)
            step = max(1, self.memory_limit // 4 // (widest * probe[0].element_size()))
            parts = [self._to_frontier(block) for block in inputs.split(step)]
        frontier = tuple(torch.cat(block) if len(block) > 1 else block[0] for block in zip(*parts, strict=True))
        self._frontiers[identity(inputs)] = (inputs, inputs._version, frontier)
        return frontier

    def _to_frontier(self, inputs: Tensor) -> tuple[Tensor, ...]:
        inputs = self._convert(inputs)
        if self._split is None or self._split.prefix is None:
            return (inputs,)
        with torch.no_grad():
            return tuple(self._split.prefix(inputs))

    def _convert(self, inputs: Tensor) -> Tensor:
        inputs = inputs.detach().to(self.device)
        if inputs.is_floating_point() or not self._takes_integers:
            inputs = inputs.to(self.dtype)
        return inputs

    def _prepare(self, inputs: Tensor) -> None:
        """Once: check that the network is usable and split it."""
        if self._ready:
            return
        few = inputs[torch.arange(5, device=inputs.device) % inputs.shape[0]].detach()
        self._takes_integers = not few.is_floating_point() and accepts(self._caller, few.to(self.device))
        few = self._convert(few)
        self.classes = check_outputs(self._caller, few, inputs)
        names = {f"model.{name}" for name in self.indices}
        self._split = split_at(self._caller, names, few) if names else None
        self._suffix = self._caller if self._split is None else self._split.suffix
        self._layers = changed_layers(self._suffix, self.indices)
        self._columns = None if self.exact else columns_read(self._suffix, self._layers)
        changed = {name: p for name, p in self._caller.model.named_parameters() if name in self.indices}
        self._replaceable = Replaceable(self._suffix, changed)
        self._ready = True


Predict = Callable[[Tensor], Tensor]
