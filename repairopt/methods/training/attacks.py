"""Attacks on classifiers, in batches: FGSM, BIM, PGD, C&W and JSMA. An attack makes points near given ones."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from repairopt.errors import ModelError, RepairError, SpecificationError
from repairopt.methods.adam import Adam
from repairopt.methods.settings import Expected, check_settings
from repairopt.network import Search, attack, check_time

RADIUS = 0.1  # of balls in the maximum norm, for inputs in [0, 1] of one color; 8 / 255 is usual for three
INSIDE = 1 - 1e-6  # of the box that tanh reaches


class Attack(Protocol):
    """Makes points on which a network errs."""

    def __call__(
        self, network: nn.Module, inputs: Tensor, labels: Tensor, *, lower: float, upper: float, seed: int = 0
    ) -> Tensor:
        """Attacked points, of the shape of the inputs.

        Args:
            network: From inputs to logits ``(N, k)``, in evaluation mode.
            inputs: Points ``(N, ...)``, floating numbers.
            labels: Their classes ``(N,)``.
            lower: Smallest allowed input.
            upper: Largest allowed input.
            seed: Of random starts.
        """
        ...


@dataclass(frozen=True, kw_only=True)
class FGSM:
    """Fast gradient sign method: one step of size ``radius`` along the sign of the gradient of the cross-entropy.

    References:
        Goodfellow, Shlens and Szegedy, Explaining and harnessing adversarial examples, ICLR 2015.
    """

    radius: float = RADIUS

    def __post_init__(self) -> None:
        check_settings(self, {"radius": Expected()})

    def __call__(
        self, network: nn.Module, inputs: Tensor, labels: Tensor, *, lower: float, upper: float, seed: int = 0
    ) -> Tensor:
        """Attacked points, as every :class:`Attack`."""
        moved = inputs + self.radius * _slope(_loss(network, labels), inputs).sign()
        return moved.clamp(lower, upper)


@dataclass(frozen=True, kw_only=True)
class BIM:
    """Basic iterative method: steps along the sign of the gradient of the cross-entropy, within a maximum-norm ball.

    Attributes:
        radius: Of the ball.
        steps: Gradient steps.
        size: Of a step, as a share of the radius.
        random: Whether it starts at a random point of the ball.

    References:
        Kurakin, Goodfellow and Bengio, Adversarial examples in the physical world, ICLR workshop 2017. Steps and size
        are the defaults of foolbox.
    """

    radius: float = RADIUS
    steps: int = 10
    size: float = 0.2
    random: bool = False

    def __post_init__(self) -> None:
        check_settings(self, {"radius": Expected(), "steps": Expected(low=1, whole=True), "size": Expected(above=True)})

    def __call__(
        self, network: nn.Module, inputs: Tensor, labels: Tensor, *, lower: float, upper: float, seed: int = 0
    ) -> Tensor:
        """Attacked points, as every :class:`Attack`."""
        low, high = (inputs - self.radius).clamp(min=lower), (inputs + self.radius).clamp(max=upper)
        loss, points = _loss(network, labels), inputs
        if self.random:
            draw = torch.rand(inputs.shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
            points = low + draw.to(inputs) * (high - low)
        for _ in range(self.steps):
            points = points + self.size * self.radius * _slope(loss, points).sign()
            points = torch.minimum(torch.maximum(points, low), high)
        return points


@dataclass(frozen=True, kw_only=True)
class PGD(BIM):
    """Projected gradient descent: as the basic iterative method, from a random start.

    References:
        Madry, Makelov, Schmidt, Tsipras and Vladu, Towards deep learning models resistant to adversarial attacks, ICLR
        2018. Steps and size are the defaults of foolbox and of the comparative study of model fixing.
    """

    steps: int = 40
    size: float = 0.01 / 0.3
    random: bool = True


@dataclass(frozen=True, kw_only=True)
class CarliniWagner:
    """Carlini and Wagner: the nearest point whose logits err by ``confidence``.

    In the Euclidean norm Adam minimizes ``|x' - x|^2 + c max(Z_label - max_other Z, -confidence)`` in the space of
    ``tanh``, with a binary search for each ``c``; points where nothing is found stay. In the maximum norm
    (``radius`` is given) the same difference of logits is minimized by projected gradient steps within the ball.

    Attributes:
        confidence: Logits by which another class must lead.
        searches: Steps of the binary search for ``c``.
        steps: Gradient steps of each.
        rate: Learning rate.
        first: First value of ``c``.
        radius: Of a maximum-norm ball; None for the Euclidean norm.

    References:
        Carlini and Wagner, Towards evaluating the robustness of neural networks, S&P 2017. Their code takes 10,000
        steps where ours takes 100, which costs 90 times less than training can afford otherwise.
    """

    confidence: float = 0.0
    searches: int = 9
    steps: int = 100
    rate: float = 0.01
    first: float = 1e-3
    radius: float | None = None

    def __post_init__(self) -> None:
        counts = dict.fromkeys(("searches", "steps"), Expected(low=1, whole=True))
        above = dict.fromkeys(("rate", "first"), Expected(above=True))
        check_settings(self, {**counts, **above, "confidence": Expected(), "radius": Expected(none=True)})

    def __call__(
        self, network: nn.Module, inputs: Tensor, labels: Tensor, *, lower: float, upper: float, seed: int = 0
    ) -> Tensor:
        """Attacked points, as every :class:`Attack`."""
        if self.radius is not None:
            search = Search(steps=self.steps, seed=seed)
            return attack(network, inputs, labels, self.radius, lower=lower, upper=upper, search=search)[0]
        middle, half = (upper + lower) / 2, (upper - lower) / 2
        start = torch.atanh(((inputs - middle) / half * INSIDE).clamp(-INSIDE, INSIDE))
        price = torch.full_like(labels, 1, dtype=inputs.dtype) * self.first
        low, high = torch.zeros_like(price), torch.full_like(price, float("inf"))
        best, nearest = inputs.clone(), torch.full_like(price, float("inf"))
        for _ in range(self.searches):
            place = start.clone().requires_grad_()
            made, found = Adam([place], lr=self.rate), torch.zeros_like(labels, dtype=torch.bool)
            for _ in range(self.steps):
                check_time()
                points = middle + half * torch.tanh(place)
                distance = (points - inputs).flatten(1).square().sum(1)
                lead = _lead(network(points), labels)
                made.zero_grad()
                place.grad = torch.autograd.grad((distance + price * lead.clamp(min=-self.confidence)).sum(), place)[0]
                errs = lead.detach() < -self.confidence
                closer = errs & (distance.detach() < nearest)
                found |= errs
                nearest = torch.where(closer, distance.detach(), nearest)
                best = torch.where(_wide(closer, inputs), points.detach(), best)
                made.step()
            high, low = torch.where(found, torch.minimum(high, price), high), torch.where(found, low, price)
            price = torch.where(high.isfinite(), (low + high) / 2, 10 * price)
        return best


@dataclass(frozen=True, kw_only=True)
class JSMA:
    """Jacobian-based saliency map attack: features are raised one by one until the class changes.

    The target is the class with the second largest logit. In each step the feature with the largest
    ``dZ_target / dx * |sum over others of dZ / dx|`` is raised by ``size``, among those where the first factor is
    positive and the sum is negative, each at most once, until the network errs or a share of the features has changed.

    Attributes:
        size: By how much a feature is raised.
        most: Share of the features that may change.

    References:
        Papernot, McDaniel, Jha, Fredrikson, Celik and Swami, The limitations of deep learning in adversarial settings,
        EuroS&P 2016: raised by 1, at most 14.5 % of the features. Features are taken one at a time, not in pairs.
    """

    size: float = 1.0
    most: float = 0.145

    def __post_init__(self) -> None:
        check_settings(self, {"size": Expected(above=True), "most": Expected(high=1)})

    def __call__(
        self, network: nn.Module, inputs: Tensor, labels: Tensor, *, lower: float, upper: float, seed: int = 0
    ) -> Tensor:
        """Attacked points, as every :class:`Attack`."""
        points, rows = inputs.clone(), torch.arange(len(inputs), device=inputs.device)
        with torch.no_grad():
            target = _others(network(points), labels).argmax(1)
        untouched = torch.ones_like(points.flatten(1), dtype=torch.bool)
        for _ in range(max(1, round(self.most * untouched.shape[1]))):
            check_time()
            place = points[rows].requires_grad_()
            logits = network(place)
            still = logits.argmax(1) == labels[rows]
            whole = torch.autograd.grad(logits.sum(), place, retain_graph=True)[0].flatten(1)
            aim = torch.autograd.grad(logits.gather(1, target[rows, None]).sum(), place)[0].flatten(1)
            room = untouched[rows] & (place.detach().flatten(1) < upper)
            fits = room & (aim > 0) & (whole - aim < 0) & still[:, None]
            saliency = torch.where(fits, aim * (whole - aim).abs(), 0.0)
            value, feature = saliency.max(1)
            rows, feature = rows[value > 0], feature[value > 0]
            if not len(rows):
                break
            flat = points.flatten(1)
            flat[rows, feature] = (flat[rows, feature] + self.size).clamp(lower, upper)
            points = flat.view(points.shape)
            untouched[rows, feature] = False
        return points


ATTACKS: dict[str, Callable[[float], Attack]] = {
    "fgsm": lambda radius: FGSM(radius=radius),
    "bim": lambda radius: BIM(radius=radius),
    "pgd": lambda radius: PGD(radius=radius),
    "cw": lambda _: CarliniWagner(),
    "cw_linf": lambda radius: CarliniWagner(radius=radius),
    "jsma": lambda _: JSMA(),
}


def find_attack(name: Any, radius: float = RADIUS) -> Attack:
    """The attack of a name, or the attack itself; ``radius`` is that of those within maximum-norm balls."""
    if isinstance(name, str) and name in ATTACKS:
        return ATTACKS[name](radius)
    if callable(name):
        found: Attack = name
        return found
    raise SpecificationError(f"attack={name!r}; choose {', '.join(ATTACKS)}, or pass an attack.")


def attacked(
    made: Attack, network: nn.Module, inputs: Tensor, labels: Tensor, seed: int = 0, rows: int = 500
) -> Tensor:
    """Attacked points, some rows at a time, within the least and the largest of all inputs.

    Raises:
        SpecificationError: Inputs are not floating numbers.
        ModelError: The network takes the inputs, and not points near them.
    """
    if not inputs.is_floating_point():
        raise SpecificationError(f"attacks move inputs by gradients; inputs are {inputs.dtype}. Text has none.")
    box = {"lower": float(inputs.min()), "upper": float(inputs.max())}
    found = []
    for x, y in zip(inputs.split(rows), labels.split(rows), strict=True):
        check_time()
        try:
            with torch.enable_grad():
                found.append(made(network, x, y, seed=seed, **box).detach())
        except (ArithmeticError, AssertionError, IndexError, RuntimeError, ValueError) as error:
            if isinstance(error, RepairError):
                raise
            raise ModelError(
                f"attacks move each number of an input, and the network does not take what they make: "
                f"{type(error).__name__}: {error}. Some numbers may be no measurements, such as a mask or a length. "
                "Attack a network that is given the others alone, or choose a method that makes no inputs."
            ) from error
    return torch.cat(found)


def _loss(network: nn.Module, labels: Tensor) -> Callable[[Tensor], Tensor]:
    return lambda points: F.cross_entropy(network(points), labels, reduction="sum")


def _slope(function: Callable[[Tensor], Tensor], points: Tensor) -> Tensor:
    check_time()
    place = points.detach().clone().requires_grad_()
    return torch.autograd.grad(function(place), place)[0]


def _others(logits: Tensor, labels: Tensor) -> Tensor:
    return logits.masked_fill(F.one_hot(labels, logits.shape[1]).bool(), float("-inf"))


def _lead(logits: Tensor, labels: Tensor) -> Tensor:
    return logits.gather(1, labels[:, None])[:, 0] - _others(logits, labels).amax(1)


def _wide(rows: Tensor, like: Tensor) -> Tensor:
    return rows.view(-1, *[1] * (like.ndim - 1))
