"""Search for counterexamples by projected gradient steps: the upper bounds that stand beside certified lower bounds.

References:
    Madry, Makelov, Schmidt, Tsipras, Vladu, Towards Deep Learning Models Resistant to Adversarial Attacks, ICLR 2018.
    Gowal, Uesato, Qin, Huang, Mann, Kohli, An Alternative Surrogate Loss for PGD-based Adversarial Testing, 2019.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from repairopt.errors import SpecificationError
from repairopt.network.deadline import check_time
from repairopt.network.inputs import check_inputs, check_labels
from repairopt.network.model_checks import shadow, writes_into
from repairopt.network.replace_weights import Replaceable

Bound = float | Tensor
Slope = Callable[[Tensor], Tensor]
FEW = 100_000  # numbers that runs of a search hold together, at most


@dataclass(frozen=True)
class Search:
    """How hard to look for counterexamples.

    The first run starts at the input and goes for the nearest class, the others start at random points of the ball and
    go for one class each, in the order of their logits.

    Attributes:
        steps: Gradient steps of each run.
        restarts: Runs.
        seed: Random seed of the starts.
        step: Length of a step as a share of the radius; None for ``2.5 / steps``.
        random_start: Whether the first run starts at a random point too.
    """

    steps: int = 20
    restarts: int = 3
    seed: int = 0
    step: float | None = None
    random_start: bool = False

    def __post_init__(self) -> None:
        if self.steps < 1 or self.restarts < 1:
            raise SpecificationError(f"search: steps {self.steps}, restarts {self.restarts}; expected at least 1 each.")
        if self.step is not None and not self.step > 0:
            raise SpecificationError(f"search: step {self.step}; expected a share of the radius above 0, or None.")


def attack(network: nn.Module, inputs: Any, labels: Any, radius: Any, **options: Any) -> tuple[Tensor, Tensor]:
    """The worst points ``(N, ...)`` that projected gradient steps find in maximum-norm balls, and margins ``(N,)``.

    A margin is the logit of the label minus the largest other one: at most 0 is a counterexample, above 0 says nothing.
    Options are ``parameters``, ``lower`` and ``upper``, as for certified margins, and the :class:`Search`.
    """
    attacker = _Attacker(network, inputs, labels, **options)
    like: dict[str, Any] = {"dtype": attacker.inputs.dtype, "device": attacker.inputs.device}
    radii = torch.as_tensor(radius, **like).detach().expand(len(attacker.inputs))
    return attacker.run(radii, torch.arange(len(radii), device=radii.device))


def attacked_radius(
    network: nn.Module,
    inputs: Any,
    labels: Any,
    *,
    tol: float = 1e-3,
    start: float = 0.2,
    max_radius: float = 1.0,
    **options: Any,
) -> Tensor:
    """Distance ``(N,)`` to the nearest counterexample found, an upper bound of the true robustness radius.

    0 where the input itself is one, ``inf`` where none was found. The radius is doubled from ``start`` up to
    ``max_radius`` until there is a counterexample, then bisected to ``tol``; other arguments as for :func:`attack`.
    """
    if not (tol > 0 and start > 0 and max_radius > 0):
        raise SpecificationError(f"attacked radius: tol {tol}, start {start}, max_radius {max_radius}; expected > 0.")
    attacker = _Attacker(network, inputs, labels, **options)
    low = attacker.inputs.new_zeros(len(attacker.inputs))
    high, radii = torch.full_like(low, float("inf")), torch.full_like(low, min(start, max_radius))
    high[attacker.margin(attacker.inputs, attacker.labels) <= 0] = 0.0

    def step(rows: Tensor) -> None:
        points, margins = attacker.run(radii, rows)
        distance = (points - attacker.inputs[rows]).flatten(1).abs().amax(1)
        found = margins <= 0
        high[rows[found]] = torch.minimum(high[rows[found]], distance[found])
        low[rows[~found]] = radii[rows[~found]]

    while len(rows := torch.nonzero(high.isinf() & (low < max_radius))[:, 0]):
        step(rows)
        radii = torch.where(high.isinf(), (2 * radii).clamp(max=max_radius), radii)
    while len(rows := torch.nonzero(high.isfinite() & (high - low > tol))[:, 0]):
        radii = (low + high) / 2
        step(rows)
    return high


def _runner(module: nn.Module, own: Mapping[str, Tensor], given: Mapping[str, Tensor]) -> Callable[[Tensor], Tensor]:
    """Runs a copy with tensors ``own``, some of them ``given``: by places known once, where forward keeps nothing."""
    known = dict(module.named_parameters(remove_duplicate=False))
    if any(True for _ in module.buffers()) or any(name not in known for name in given):
        return lambda x: functional_call(module, dict(own), (x,))
    replaceable = Replaceable(module, {name: known[name] for name in given})
    return lambda x: replaceable.run(given, (x,))


class _Attacker:
    def __init__(
        self,
        network: nn.Module,
        inputs: Any,
        labels: Any,
        *,
        parameters: Mapping[str, Tensor] | None = None,
        lower: Bound = 0.0,
        upper: Bound = 1.0,
        search: Search | None = None,
    ) -> None:
        copy = shadow(network)
        own = {name: value.detach() for name, value in (*copy.named_parameters(), *copy.named_buffers())}
        own.update({name: value.detach() for name, value in (parameters or {}).items()})
        call = _runner(copy, own, {name: own[name] for name in parameters or {}})
        self.inputs, self.labels = check_inputs("attack", inputs, labels)
        first = next((p for p in own.values() if p.is_floating_point()), self.inputs)
        like: dict[str, Any] = {"dtype": first.dtype, "device": first.device}
        self.inputs, self.labels = self.inputs.detach().to(**like), self.labels.to(first.device)
        seen = torch._C._functorch.peek_interpreter_stack() is not None  # a run before was outside
        writes = not seen and writes_into(call, self.inputs[:1])
        self.call = (lambda x: call(x.clone())) if seen or writes else call
        self.lower, self.upper = (torch.as_tensor(side, **like) for side in (lower, upper))
        self.search = search or Search()
        with torch.no_grad():
            check_labels("attack", self.labels, int(self.call(self.inputs[:1]).shape[1]))

    def margin(self, points: Tensor, labels: Tensor) -> Tensor:
        with torch.no_grad():
            return margin(self.call(points), labels)

    def rivals(self, x: Tensor, labels: Tensor, rank: int) -> Tensor:
        """The class that comes ``rank + 1``-th in the logits after the label, going round."""
        with torch.no_grad():
            logits = self.call(x)
        is_own = torch.nn.functional.one_hot(labels, logits.shape[1]).bool()
        order = logits.masked_fill(is_own, float("-inf")).argsort(1, descending=True)
        return order[:, rank % (logits.shape[1] - 1)]

    def run(self, radii: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
        x, y = self.inputs[rows], self.labels[rows]
        radius = radii[rows].reshape(-1, *[1] * (x.ndim - 1))
        low, high = torch.maximum(x - radius, self.lower), torch.minimum(x + radius, self.upper)
        best, smallest = x, self.margin(x, y)
        random = torch.Generator().manual_seed(self.search.seed)
        length = 2.5 / self.search.steps if self.search.step is None else self.search.step
        for runs in self._together(x):
            starts = [self._start(restart, x, low, high, random) for restart in runs]
            aims = _Aims(x, y, [None if restart == 0 else self.rivals(x, y, restart) for restart in runs])
            wide_low, wide_high, wide_radius = (_repeated(one, len(runs)) for one in (low, high, radius))
            points, least = torch.cat(starts), _repeated(smallest, len(runs))
            worst = points
            logits, slope = self._recorded(points)
            for _ in range(self.search.steps):
                check_time()
                points = points - length * wide_radius * slope(aims.weights(logits)).sign()
                points = points.clamp(wide_low, wide_high)
                logits, slope = self._recorded(points)
                value = aims.margins(logits)
                better = value < least
                worst = torch.where(better.reshape(wide_radius.shape), points, worst)
                least = torch.where(better, value, least)
            for point, value in zip(worst.split(len(x)), least.split(len(x)), strict=True):
                better = value < smallest
                best = torch.where(better.reshape(radius.shape), point, best)
                smallest = torch.where(better, value, smallest)
        return best, smallest

    def _together(self, x: Tensor) -> list[range]:
        """Runs of the search by batches: of few numbers all at once, for it is the calls that cost then."""
        count = self.search.restarts
        many = max(1, min(count, FEW // max(1, x.numel())))
        return [range(first, min(first + many, count)) for first in range(0, count, many)]

    def _start(self, restart: int, x: Tensor, low: Tensor, high: Tensor, random: torch.Generator) -> Tensor:
        noise = torch.rand(x.shape, generator=random, dtype=torch.float64).to(x)
        return x if restart == 0 and not self.search.random_start else low + noise * (high - low)

    def _recorded(self, points: Tensor) -> tuple[Tensor, Slope]:
        """Logits of points, and what makes the gradient of weighted logits there: in one pass where torch allows.

        Where ``torch.func`` differentiates what calls this, it has to make this gradient too.
        """
        if torch._C._functorch.peek_interpreter_stack() is not None:
            slope = torch.func.grad(lambda at, weights: (self.call(at) * weights).sum())
            with torch.no_grad():
                return self.call(points), partial(slope, points)
        with torch.enable_grad():
            leaf = points.detach().requires_grad_()
            logits = self.call(leaf.clone())
        return logits.detach(), partial(_slope, logits, leaf)


class _Aims:
    """What runs of a search go for, one run after the other: classes by row and run, None for the nearest class."""

    def __init__(self, x: Tensor, labels: Tensor, rivals: Sequence[Tensor | None]) -> None:
        self.labels = _repeated(labels, len(rivals))[:, None]
        self.near = len(x) * sum(one is None for one in rivals)  # rows; such a run is the first one
        given = [one for one in rivals if one is not None]
        self.rivals = torch.cat(given)[:, None] if given else labels[:0, None]
        self.of_two: Tensor | None = None

    def margins(self, logits: Tensor) -> Tensor:
        """Logits of the labels minus the largest other ones."""
        own = logits.gather(-1, self.labels)
        return (own - logits.scatter(-1, self.labels, float("-inf")).amax(-1, keepdim=True))[:, 0]

    def weights(self, logits: Tensor) -> Tensor:
        """Gradient in the logits of the margins to what is aimed at; classes that are equally near share it.

        Of two classes it is always the same.
        """
        if self.of_two is not None:
            return self.of_two
        near, labels = logits[: self.near], self.labels[: self.near]
        others = near.scatter(-1, labels, float("-inf"))
        nearest = (others == others.amax(-1, keepdim=True)).to(logits)
        far = torch.zeros_like(logits[self.near :]).scatter_(-1, self.rivals, 1.0)
        weights = -torch.cat([nearest / nearest.sum(-1, keepdim=True), far])
        weights.scatter_(-1, self.labels, 1.0)
        self.of_two = weights if logits.shape[-1] == 2 else None
        return weights


def _repeated(x: Tensor, times: int) -> Tensor:
    return x if times == 1 else torch.cat([x] * times)


def _slope(logits: Tensor, points: Tensor, weights: Tensor) -> Tensor:
    """Gradient of weighted logits in points whose logits were recorded; 0 where these do not depend on them."""
    if not logits.requires_grad:
        return torch.zeros_like(points)
    return torch.autograd.grad(logits, points, weights, allow_unused=True, materialize_grads=True)[0]


def margin(logits: Tensor, labels: Tensor, rivals: Tensor | None = None) -> Tensor:
    """Logit of the label minus the largest other one, or that of a given rival, ``(N,)``."""
    is_own = torch.nn.functional.one_hot(labels, logits.shape[-1]).bool()
    own = logits.gather(-1, labels[:, None])[:, 0]
    if rivals is not None:
        return own - logits.gather(-1, rivals[:, None])[:, 0]
    return own - logits.masked_fill(is_own, float("-inf")).amax(-1)
