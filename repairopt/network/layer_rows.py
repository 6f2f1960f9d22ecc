"""Rows of derivatives layer by layer, as activations and signals: nothing of the size of rows times weights is made.

The derivative of a sample's margin in the weight of a linear or convolutional layer is the sum, over the positions at
which the layer is applied, of the signal behind it times the activations before it. Products of rows with each other,
and sums of rows, need these two factors alone.

References:
    Goodfellow, Efficient Per-Example Gradient Computations, 2015. Rochette, Manoel and Tramel, Efficient Per-Example
    Gradient Computations in Convolutional Neural Networks, 2019. Martens and Grosse, Optimizing Neural Networks with
    Kronecker-factored Approximate Curvature, ICML 2015 (the metric).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from .deadline import check_time
from .engine import Engine
from .model_checks import check_derivative

RIDGE = 1e-3  # of the mean second moment of a layer's activations, added to all
WIDEST = 4_096  # activations of a layer above which their second moment is taken for diagonal
KNOWN = 2_000  # samples of each set that tell the second moments, at most
ENOUGH, FEWEST = 10, 200  # places of a set for each activation, and samples, where layers see many places of a sample
FLOATS = 2**23  # numbers that a block of a product of rows takes

Chosen = Mapping[str, tuple[nn.Module, bool]]  # layers whose weight changes as a whole, and whether the bias does


@dataclass(frozen=True, eq=False)
class LayerRows:
    """Rows ``(R, o f)`` of one layer; row ``r`` sums ``signals[r, p]`` times ``features[of[r], p]`` over places ``p``.

    Attributes:
        features: Activations before the layer, ``(S, P, f)``, with a 1 behind them where the bias changes too.
        signals: Derivatives behind the layer, ``(R, P, o)``.
        of: Sample of each row, ``(R,)``.
    """

    features: Tensor
    signals: Tensor
    of: Tensor

    def gram(self, metric: Metric) -> Tensor:
        """Products of the rows with each other in the inverse metric, ``(R, R)``, float64."""
        own, rows = self.features, len(self.of)
        (_, p, f), o = own.shape, self.signals.shape[2]
        other = metric.solve(own)
        total = own.new_zeros(rows, rows, dtype=torch.float64)
        if p == 1:
            products = (own[:, 0].double() @ other[:, 0].double().T)[self.of][:, self.of]
            total = products * (self.signals[:, 0].double() @ self.signals[:, 0].double().T)
        elif rows * p * p * (o + f) > p * o * f + rows * o * f:  # the rows themselves, some units at a time
            for units in self.signals.split(max(1, FLOATS // (rows * f)), dim=2):
                check_time()
                left, right = (torch.einsum("rpo,rpf->rof", units, x[self.of]).flatten(1) for x in (own, other))
                total += left.double() @ right.double().T
        else:
            step = max(1, FLOATS // (rows * p * p))
            for block in torch.arange(rows, device=self.of.device).split(step):
                check_time()
                signals = torch.einsum("ipo,jqo->ipjq", self.signals[block], self.signals)
                products = torch.einsum("ipf,jqf->ipjq", own[self.of[block]], other[self.of])
                total[block] = (signals * products).double().sum((1, 3))
        return (total + total.T) / 2

    def times(self, change: Tensor) -> Tensor:
        """Product of each row with a change ``(o, f)``: ``(R,)``."""
        return torch.einsum("rpo,rpo->r", self.signals, (self.features @ change.to(self.features).T)[self.of])

    @classmethod
    def joined(cls, parts: Sequence[LayerRows]) -> LayerRows:
        """Rows below each other."""
        starts = torch.tensor([0, *(len(part.features) for part in parts)]).cumsum(0).tolist()
        of = [part.of + start for part, start in zip(parts, starts, strict=False)]
        return cls(torch.cat([p.features for p in parts]), torch.cat([p.signals for p in parts]), torch.cat(of))

    def combined(self, prices: Tensor) -> Tensor:
        """The sum of the rows, each times its price ``(R,)``: ``(o, f)``."""
        by_sample = self.signals.new_zeros(len(self.features), *self.signals.shape[1:])
        by_sample.index_add_(0, self.of, self.signals * prices[:, None, None])
        return by_sample.flatten(0, 1).T @ self.features.flatten(0, 1)


@dataclass(frozen=True, eq=False)
class Metric:
    """What a change of a layer costs: its mean squared effect on the outputs, as far as activations and signals tell.

    ``factor`` is the lower Cholesky factor of the activations' second moment times the mean squared signal, ``(f, f)``,
    or the square root of its diagonal, ``(f,)``.
    """

    factor: Tensor

    @classmethod
    def of(cls, moment: Tensor, signal: float) -> Metric:
        """The metric of a second moment, a matrix or its diagonal, and of the signals' mean square."""
        ridge = RIDGE * float(moment.mean() if moment.ndim == 1 else moment.trace() / len(moment)) or 1.0
        scale = signal or 1.0
        if moment.ndim == 1:
            return cls(((moment + ridge) * scale).sqrt())
        return cls(torch.linalg.cholesky(scale * (moment + ridge * torch.eye(len(moment)).to(moment))))

    def solve(self, rows: Tensor) -> Tensor:
        """``rows (..., f)`` times the inverse of the metric."""
        if self.factor.ndim == 1:
            return rows / self.factor**2
        return torch.cholesky_solve(rows.flatten(0, -2).T, self.factor).T.reshape(rows.shape)


class LayersOfRows:
    """The linear and convolutional layers that change as a whole, and rows of derivatives in them.

    Layers that are changed in part, grouped convolutions, and layers that do not see one block for each sample are left
    out, so their weights do not move.
    """

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self.places = {}
        start = 0
        for name, positions in engine.indices.items():
            self.places[name] = slice(start, start + len(positions))
            start += len(positions)
        self.layers: Chosen = {
            name: (module, f"{name}.bias" in self.places)
            for name, module in engine.caller.model.named_modules()
            if _fits(module) and self._is_whole(name, module)
        }

    def _is_whole(self, name: str, module: nn.Module) -> bool:
        sizes = {f"{name}.{kind}": parameter.numel() for kind, parameter in module.named_parameters(recurse=False)}
        places = {own: len(self.engine.indices.get(own, ())) for own in sizes}
        return places.get(f"{name}.weight", 0) > 0 and all(places[own] in (0, size) for own, size in sizes.items())

    def metrics(self, inputs: Sequence[Tensor], delta: Any) -> dict[str, Metric]:
        """What changes cost, told by some samples of all ``inputs`` at a weight change."""
        moments: dict[str, Tensor] = {}
        squares = dict.fromkeys(self.layers, 0.0)
        counts = dict.fromkeys(self.layers, 0)
        draw = torch.Generator().manual_seed(0)
        known = self._known(inputs[0], delta) if len(inputs) else KNOWN
        for one in inputs:
            samples = torch.arange(0, len(one), max(1, -(-len(one) // known)))
            for part in samples.split(self._step(one)):
                with self._recorded(one[part.to(one.device)], delta) as (outputs, seen):
                    sides = torch.randint(0, 2, outputs.shape, generator=draw).to(outputs) * 2 - 1
                    signals = _signals(self.engine.model, outputs, seen, sides)
                for name, one_seen in seen.items():
                    flat = one_seen.features.flatten(0, 1)
                    own = flat.T @ flat if flat.shape[1] <= WIDEST else flat.square().sum(0)
                    moments[name] = moments.get(name, 0.0) + own
                    counts[name] += len(flat)
                    squares[name] += float(signals[name].square().sum()) / signals[name].shape[2]
        return {name: Metric.of(moments[name] / counts[name], squares[name] / counts[name]) for name in moments}

    def _known(self, inputs: Tensor, delta: Any) -> int:
        """Samples of a set that tell the second moments: of convolutions fewer, of which each sample shows many."""
        with self._recorded(inputs[:1], delta) as (_, seen):
            sizes = [one.features.shape[1:] for one in seen.values()]
        if all(places == 1 for places, _ in sizes):
            return KNOWN
        return min(KNOWN, max([FEWEST, *(ENOUGH * f // places for places, f in sizes if f <= WIDEST)]))

    def rows(
        self,
        inputs: Tensor,
        samples: Tensor,
        delta: Any,
        margins: Callable[[Tensor, Tensor], Tensor],
        wanted: Callable[[Tensor, Tensor], Tensor],
    ) -> Iterator[tuple[Tensor, Tensor, dict[str, LayerRows]]]:
        """Margins of samples and their derivatives, in parts that fit into memory.

        Args:
            inputs: The set that the samples are of.
            samples: Positions ``(S,)``.
            delta: Weight change ``(n,)`` at which the derivatives are taken.
            margins: From outputs and places among ``samples`` to margins ``(S, q)``.
            wanted: From margins and places to which of them are to have rows, ``(S, q)``, on the CPU.

        Yields:
            The margins ``(R,)``, which they are, ``(R, 2)`` (place among the samples, column), and their rows by layer.
        """
        for part in torch.arange(len(samples)).split(self._step(inputs)):
            check_time()
            with self._recorded(inputs[samples[part].to(inputs.device)], delta) as (outputs, seen):
                now = margins(outputs, part)
                chosen = wanted(now.detach().cpu(), part)
                kept, places = [], []
                for column in range(now.shape[1]):
                    at = chosen[:, column].nonzero().flatten()
                    if len(at):
                        signals = _signals(self.engine.model, now, seen, _only(now, column))
                        kept.append({name: signal[at.to(signal.device)] for name, signal in signals.items()})
                        places.append(torch.stack([at, torch.full_like(at, column)], 1))
            if places:
                where = torch.cat(places)
                of = where[:, 0].to(outputs.device)
                signals = {name: torch.cat([k[name] for k in kept]) for name in seen}
                rows = {name: LayerRows(one.features, signals[name], of) for name, one in seen.items()}
                yield (
                    now.detach().cpu()[where[:, 0], where[:, 1]],
                    torch.stack([part[where[:, 0]], where[:, 1]], 1),
                    rows,
                )

    def change(self, combined: Mapping[str, Tensor], metrics: Mapping[str, Metric]) -> Tensor:
        """Weight change ``(n,)`` of sums of rows by layer, ``(o, f)``, in the inverse metric."""
        found = torch.zeros(self.engine.n, dtype=torch.float64)
        for name, total in combined.items():
            module, bias = self.layers[name]
            moved: Any = metrics[name].solve(total).double().cpu()
            width = moved.shape[1] - bias
            found[self.places[f"{name}.weight"]] = moved[:, :width].flatten()
            if bias:
                found[self.places[f"{name}.bias"]] = moved[:, width]
        return found

    def pieces(self, change: Tensor) -> dict[str, Tensor]:
        """A weight change ``(n,)`` by layer, ``(o, f)``, the bias behind the weights."""
        found = {}
        for name, (module, bias) in self.layers.items():
            piece = change[self.places[f"{name}.weight"]].view(len(module.weight), -1)  # type: ignore[arg-type]
            own = [piece, change[self.places[f"{name}.bias"], None]] if bias else [piece]
            found[name] = torch.cat(own, 1)
        return found

    def _step(self, inputs: Tensor) -> int:
        itemsize = torch.finfo(self.engine.dtype).bits // 8
        return max(1, self.engine.memory_limit // 4 // (8 * self.engine.floats(inputs) * itemsize))

    @contextmanager
    def _recorded(self, inputs: Tensor, delta: Any) -> Iterator[tuple[Tensor, dict[str, _Seen]]]:
        """Outputs with their graph, and what each layer saw."""
        seen: dict[str, _Seen] = {}

        def record(name: str, bias: bool) -> Any:
            def hook(module: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> Tensor:
                behind = output if output.requires_grad else output.detach().requires_grad_()
                if len(args[0]) == len(inputs) and name not in seen:
                    seen[name] = _Seen(_blocks(module, args[0].detach(), bias), behind, isinstance(module, nn.Conv2d))
                return behind.clone()  # what follows may write into it

            return hook

        handles = [module.register_forward_hook(record(name, bias)) for name, (module, bias) in self.layers.items()]
        weights = {f"model.{name}": value for name, value in self.engine.weights(self.engine.as_delta(delta)).items()}
        try:
            with torch.enable_grad():
                yield functional_call(self.engine.caller, weights, (self.engine.converted(inputs),)), seen
        finally:
            for handle in handles:
                handle.remove()


@dataclass(frozen=True, eq=False)
class _Seen:
    """Activations ``(S, P, f)`` before a layer, its output with the graph, and whether that has channels first."""

    features: Tensor
    behind: Tensor
    image: bool


def _fits(module: nn.Module) -> bool:
    if type(module) is nn.Linear:
        return True
    return type(module) is nn.Conv2d and module.groups == 1 and module.padding_mode == "zeros"


def _blocks(module: nn.Module, x: Tensor, bias: bool) -> Tensor:
    """What a layer multiplies its weight with, ``(S, P, f)``."""
    if isinstance(module, nn.Conv2d):
        shape: Any = {"dilation": module.dilation, "stride": module.stride}
        padding: Any = module.padding
        if padding == "same":
            total = [d * (k - 1) for d, k in zip(module.dilation, module.kernel_size, strict=True)]
            x = nn.functional.pad(x, (total[1] // 2, -(-total[1] // 2), total[0] // 2, -(-total[0] // 2)))
        padding = 0 if isinstance(padding, str) else padding
        found = nn.functional.unfold(x, module.kernel_size, padding=padding, **shape).transpose(1, 2)
    else:
        found = x.clone().reshape(len(x), -1, x.shape[-1])
    return torch.cat([found, found.new_ones(*found.shape[:2], 1)], 2) if bias else found


def _only(margins: Tensor, column: int) -> Tensor:
    found = torch.zeros_like(margins)
    found[:, column] = 1.0
    return found


def _signals(model: nn.Module, outputs: Tensor, seen: Mapping[str, _Seen], cotangent: Tensor) -> dict[str, Tensor]:
    """Derivatives behind each layer, ``(S, P, o)``."""
    behind = [one.behind for one in seen.values()]
    check_derivative(model, outputs)
    with torch.enable_grad():
        summed = (outputs * cotangent).sum()  # a scalar: grad_outputs would import a symbolic algebra system
    found = torch.autograd.grad(summed, behind, retain_graph=True, allow_unused=True)
    signals = {}
    for (name, one), given in zip(seen.items(), found, strict=True):
        signal = torch.zeros_like(one.behind) if given is None else given
        signal = signal.flatten(2).transpose(1, 2) if one.image else signal
        signals[name] = signal.reshape(len(signal), one.features.shape[1], -1)
    return signals
