"""Search for counterexamples by projected gradient steps: the upper bounds that stand beside certified lower bounds.

References:
    Madry, Makelov, Schmidt, Tsipras, Vladu, Towards Deep Learning Models Resistant to Adversarial Attacks, ICLR 2018.
    Gowal, Uesato, Qin, Huang, Mann, Kohli, An Alternative Surrogate Loss for PGD-based Adversarial Testing, 2019.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from repairopt.errors import SpecificationError
from repairopt.network.inputs import check_inputs, check_labels
from repairopt.network.model_checks import shadow, writes_into
from repairopt.network.replace_weights import Replaceable

Bound = float | Tensor
Slope = Callable[[Tensor | None], Tensor]


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
        for restart in range(self.search.restarts):
            rivals = None if restart == 0 else self.rivals(x, y, restart)
            noise = torch.rand(x.shape, generator=random, dtype=torch.float64).to(x)
            at_input = restart == 0 and not self.search.random_start
            points = x if at_input else low + noise * (high - low)
            _, slope = self._recorded(points, y)
            for _ in range(self.search.steps):
                points = points - length * radius * slope(rivals).sign()
                points = torch.minimum(torch.maximum(points, low), high)
                logits, slope = self._recorded(points, y)
                value = margin(logits, y)
                better = value < smallest
                best = torch.where(better.reshape(radius.shape), points, best)
                smallest = torch.where(better, value, smallest)
        return best, smallest

    def _recorded(self, points: Tensor, labels: Tensor) -> tuple[Tensor, Slope]:
        """Logits of points, and what makes the gradient of the margin to rivals there: in one pass where torch allows.

        Where ``torch.func`` differentiates what calls this, it has to make this gradient too.
        """
        if torch._C._functorch.peek_interpreter_stack() is not None:
            slope = torch.func.grad(lambda at, rivals: margin(self.call(at), labels, rivals).sum())
            with torch.no_grad():
                return self.call(points), partial(slope, points)
        with torch.enable_grad():
            leaf = points.detach().requires_grad_()
            logits = self.call(leaf.clone())
        return logits.detach(), partial(_slope, logits, leaf, labels)


def _slope(logits: Tensor, points: Tensor, labels: Tensor, rivals: Tensor | None) -> Tensor:
    """Gradient of the margins in points whose logits were recorded; 0 where the logits do not depend on them."""
    with torch.enable_grad():
        lead = margin(logits, labels, rivals).sum()
    if not lead.requires_grad:
        return torch.zeros_like(points)
    return torch.autograd.grad(lead, points, allow_unused=True, materialize_grads=True)[0]


def margin(logits: Tensor, labels: Tensor, rivals: Tensor | None = None) -> Tensor:
    """Logit of the label minus the largest other one, or that of a given rival, ``(N,)``."""
    is_own = torch.nn.functional.one_hot(labels, logits.shape[-1]).bool()
    own = logits.gather(-1, labels[:, None])[:, 0]
    if rivals is not None:
        return own - logits.gather(-1, rivals[:, None])[:, 0]
    return own - logits.masked_fill(is_own, float("-inf")).amax(-1)
