"""The engine: every run of the network goes through it, in batches within a memory budget, and is remembered.

Activations before the first changed layer are computed once for each set of inputs; outputs and passes at the last few
weight changes are kept, since values, derivatives and verdicts ask for the same ones.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import vmap

from repairopt.errors import SpecificationError

from .changed_network import ChangedNetwork, ForwardFunction
from .classifier import UNORDERED, meaning_of
from .deadline import check_time
from .linear_tape import LinearTape
from .remembered import ByTensor, LastPoints, T, identity, version_of
from .shards import Shards
from .still_rows import StillRows, columns_read, moved_rows
from .tracing import ONE_AT_A_TIME

Predict = Callable[[Tensor], Tensor]
POINTS = 3  # weight changes whose outputs and passes are kept
warnings.filterwarnings("ignore", "There is a performance drop because we have not yet implemented", UserWarning)
CACHE_BYTES = 8 * 2**20  # of weight vectors or of rows that are run at once: more leave the CPU cache


class Predictor:
    """What properties and constraints see: the network at one weight change, as a function of the inputs.

    Attributes:
        network: Module from one tensor to logits; its parameters bear the model's names with ``model.`` in front.
        parameters: The changed parameters under those names.
    """

    def __init__(self, engine: Engine, delta: Tensor, frozen: bool = False) -> None:
        self._engine, self._delta, self._frozen = engine, delta, frozen

    def __call__(self, inputs: Tensor) -> Tensor:
        """Outputs ``(N, k)`` of inputs ``(N, ...)``; a SpecificationError without any."""
        if not isinstance(inputs, Tensor):
            raise SpecificationError(
                f"predict: got inputs of type {type(inputs).__name__}; expected a tensor (N, ...), as of "
                f"torch.as_tensor(inputs)."
            )
        if not inputs.ndim or not len(inputs):
            raise SpecificationError(f"predict: no inputs, shape {tuple(inputs.shape)}; expected (N, ...), N above 0.")
        if not self._frozen:
            return self._engine.outputs(inputs, self._delta)
        return self._engine.known_outputs(inputs, self._delta)

    @property
    def regression(self) -> bool:
        """Whether the outputs are numbers, or labels of their own, and no scores of classes."""
        return self._engine.classes == 1 or meaning_of(self._engine.forward_fn) in UNORDERED

    @property
    def network(self) -> nn.Module:
        """The unchanged network in evaluation mode; run it with ``parameters`` replaced."""
        return self._engine.caller

    @property
    def parameters(self) -> dict[str, Tensor]:
        """The changed parameters, by their names in ``network``."""
        check_time()
        return {f"model.{name}": value for name, value in self._engine.weights(self._delta).items()}


class Remembering(Predictor):
    """A predictor that runs each set of inputs once and remembers its outputs, by the identity of the inputs."""

    def __init__(self, engine: Engine, delta: Any = None) -> None:
        super().__init__(engine, engine.as_delta(delta), frozen=True)
        self.outputs: dict[tuple[object, ...], Tensor] = {}
        self._seen: dict[tuple[object, ...], tuple[Tensor, tuple[int, int]]] = {}  # alive: none takes their memory

    def __call__(self, inputs: Tensor) -> Tensor:
        """Outputs ``(N, k)`` of inputs ``(N, ...)``."""
        if not isinstance(inputs, Tensor):
            return super().__call__(inputs)
        key = identity(inputs)
        if key not in self.outputs or self._seen[key][1] != (version_of(inputs), version_of(self.outputs[key])):
            found = self.outputs[key] = super().__call__(inputs)
            self._seen[key] = inputs, (version_of(inputs), version_of(found))
        return self.outputs[key]


def batched(function: Callable[..., Tensor], *rows: Tensor, chunk: int) -> Tensor:
    """A scalar function at each row of its arguments, in float64; by ``vmap`` where that can, else one by one."""
    if len(rows[0]) > 1:
        # The function may read numbers out of tensors; vmap's fallback, of which it warns, is slower than a loop.
        with suppress(RuntimeError, ValueError, TypeError, UserWarning), ONE_AT_A_TIME, warnings.catch_warnings():
            warnings.simplefilter("error", UserWarning)
            return vmap(function, chunk_size=chunk)(*rows).to(torch.float64)
    return torch.stack([function(*row).to(torch.float64).reshape(()) for row in zip(*rows, strict=True)])


class Engine(ChangedNetwork):
    """Runs one network at any weight change, see :class:`ChangedNetwork`.

    ``memory_limit`` says how many bytes activations and intermediate results may take; ``shards`` with which processes
    the rows of outputs without gradients are shared, or None.
    """

    def __init__(
        self,
        model: nn.Module,
        indices: Mapping[str, Tensor] | None = None,
        *,
        forward_fn: ForwardFunction | None = None,
        memory_limit: int = 2**30,
        traced: ChangedNetwork | None = None,
    ) -> None:
        super().__init__(model, indices, forward_fn, traced)
        self.memory_limit = memory_limit
        self.shards: Shards | None = None
        self._by_inputs = ByTensor()  # frontiers, and which samples no change moves
        self._points = LastPoints(POINTS)  # outputs, passes
        self._frontier_bytes = 0

    def predict(self, delta: Any = None) -> Predictor:
        """The network at ``delta`` as a function from inputs ``(N, ...)`` to outputs ``(N, k)``, without gradients."""
        return Predictor(self, self.as_delta(delta), frozen=True)

    def outputs(self, inputs: Tensor, delta: Tensor, samples: Tensor | None = None) -> Tensor:
        """Outputs ``(N, k)``, or ``(len(samples), k)``; in batches within the memory limit; differentiable in delta."""
        weights = self.weights(delta) if self.n else {}
        still = self.still(inputs) if samples is None else None
        samples = samples if still is None else still.moved
        most = None if torch.is_grad_enabled() else self.rows_in_cache(inputs)
        parts = [self.run(weights, part) for _, part in self.batches(inputs, samples, 3 * self.widest(inputs), most)]
        found = parts[0] if len(parts) == 1 else torch.cat(parts)
        return found if still is None else still.outputs(found)

    def rows_in_cache(self, inputs: Tensor) -> int | None:
        """Rows of a pass without gradients of which no layer leaves the cache; None where that does not matter.

        Passes of convolutions over more rows took twice as long, since the system clears fresh memory for each layer.
        """
        itemsize = torch.finfo(self.dtype).bits // 8
        return max(1, CACHE_BYTES // (self.widest(inputs) * itemsize)) if self.device.type == "cpu" else None

    def known_outputs(self, inputs: Tensor, delta: Tensor) -> Tensor:
        """Outputs without gradients, remembered for the last few weight changes; not to be written into."""
        return self._points.at(delta).find("outputs", inputs, lambda: self._all_outputs(inputs, delta))

    @torch.no_grad()
    def _all_outputs(self, inputs: Tensor, delta: Tensor) -> Tensor:
        rows = len(inputs)
        if self.shards is None or rows < self.shards.count:
            return self.outputs(inputs, delta)
        own = self.shards.own(rows)
        return self.shards.joined(self.outputs(inputs, delta, torch.arange(own.start, own.stop)), rows)

    def remembered(self, kind: str, inputs: Tensor, delta: Tensor, compute: Callable[[], T]) -> T:
        """What ``compute`` gives for inputs and a weight change, kept for the last few weight changes."""
        return self._points.at(delta).find(kind, inputs, compute)

    def tapes(self, inputs: Tensor, delta: Tensor) -> list[tuple[slice, LinearTape]] | None:
        """Passes over all samples, each with its slice of them; remembered for the last weight changes.

        None where the changed weights are not those of linear layers, or the activations of all samples do not fit into
        a quarter of the memory limit.
        """
        layers = self.layers(inputs) or []
        size = 4 * self.floats(inputs) * inputs.shape[0] * (torch.finfo(self.dtype).bits // 8)
        if not layers or size > self.memory_limit // 4:
            return None

        def record() -> list[tuple[slice, LinearTape]]:
            still = self.still(inputs)
            parts = self.batches(inputs, None if still is None else still.moved, 4 * self.floats(inputs))
            found = [(span, LinearTape(self, layers, part, delta, still)) for span, part in parts]
            if still is not None:  # within the quarter of the limit there is one batch
                found = [(slice(0, inputs.shape[0]), found[0][1])]
            point.find("outputs", inputs, lambda: torch.cat([tape.outputs for _, tape in found]))
            return found

        point = self._points.at(delta)
        return point.find("tapes", inputs, record)

    def still(self, inputs: Tensor) -> StillRows | None:
        """The samples whose output cannot change, where they are most of all; remembered with their outputs."""
        self._prepare(inputs)
        columns = self._columns
        if columns is None:
            return None

        def find() -> StillRows | None:
            frontier = self._frontier(inputs)
            moved = None if frontier is None else moved_rows(frontier, columns)
            if moved is None:
                return None
            with torch.no_grad():
                return StillRows.of(moved, self.outputs(inputs, self.as_delta(None), torch.arange(len(inputs))))

        return self._by_inputs.find("still", inputs, find)

    @cached_property
    def _columns(self) -> Tensor | None:
        return None if self.exact else columns_read(self.suffix, self._layers)

    def values(self, function: Callable[[Predict], Any], deltas: Tensor) -> Tensor:
        """A scalar ``function(predict)`` at weight changes ``(K, n)``: ``(K,)`` in float64, in one batch if it can."""
        deltas = self.as_delta(deltas)
        seen: list[int] = []

        class Watching(Predictor):
            def __call__(self, inputs: Tensor) -> Tensor:
                seen.append(inputs.shape[0] * self._engine.widest(inputs))
                return super().__call__(inputs)

        # Fills the caches outside of vmap, and shows how large the runs are:
        function(Watching(self, self.as_delta(None), frozen=True))
        size = max(seen, default=1) * deltas.element_size() * 3
        chunk = max(1, min(self.memory_limit // size, max(1, CACHE_BYTES // size), len(deltas)))

        def one(delta: Tensor) -> Tensor:
            found = function(Predictor(self, delta))
            return found if isinstance(found, Tensor) else torch.tensor(found, dtype=torch.float64)

        with torch.no_grad():
            return batched(one, deltas, chunk=chunk)

    def frontier(self, inputs: Tensor) -> tuple[Tensor, ...]:
        """Activations where the first changed weight enters, one row for each sample."""
        return tuple(torch.cat(parts) for parts in zip(*(p for _, p in self.batches(inputs, None, 1)), strict=True))

    def batches(
        self, inputs: Tensor, samples: Tensor | None, floats: int, most: int | None = None
    ) -> Iterator[tuple[slice, tuple[Tensor, ...]]]:
        """Slices of the samples, at most ``most``, and their frontier; ``floats`` numbers a sample are in the limit."""
        count = inputs.shape[0] if samples is None else len(samples)
        itemsize = torch.finfo(self.dtype).bits // 8
        step = max(1, min(count, most or count, self.memory_limit // 2 // max(1, floats * itemsize)))
        cached = self._frontier(inputs)
        for start in range(0, count, step):
            check_time()
            span = slice(start, min(start + step, count))
            rows: Any = span if samples is None else samples[span].to(inputs.device if cached is None else self.device)
            if cached is not None:
                yield span, tuple(part if samples is None and step >= count else part[rows] for part in cached)
            else:
                yield span, self.to_frontier(inputs[rows])

    def _frontier(self, inputs: Tensor) -> tuple[Tensor, ...] | None:
        """Activations at the frontier, remembered; None where all that are remembered would take too much memory."""

        def compute() -> tuple[Tensor, ...] | None:
            probe = self.to_frontier(inputs[:1])
            size = sum(part[0].numel() * part.element_size() for part in probe) * inputs.shape[0]
            if size + self._frontier_bytes > self.memory_limit // 2:
                return None
            self._frontier_bytes += size
            widest = max(64, inputs[0].numel() * 16)
            room = min(self.memory_limit // 4, CACHE_BYTES if self.device.type == "cpu" else self.memory_limit)
            step = max(1, room // (widest * probe[0].element_size()))
            with torch.no_grad():
                parts = [self.to_frontier(block) for block in inputs.split(step)]
            return tuple(torch.cat(block) if len(block) > 1 else block[0] for block in zip(*parts, strict=True))

        return self._by_inputs.find("frontier", inputs, compute)
