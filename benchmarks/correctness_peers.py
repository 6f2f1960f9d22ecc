"""Fine-tuning of the last layer by L-BFGS and by Adam, and of all layers by Adam: sweeps and their choice."""

from __future__ import annotations

import copy
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import product

import torch
from correctness_data import Digits
from torch import Tensor, nn

BATCH = 512  # samples of each kind in a step of Adam
SOFT, CONSERVATIVE, HARD = "soft", "conservative", "hard"
SWEEP = "sweep"  # in place of a mode: every setting, fitted on the whole half
CLEAN, FLIPS = 0.986, 0.004  # what the soft and the conservative mode must keep


@dataclass(frozen=True)
class Sweep:
    """Runs to choose from: one for each combination, looked at after each of the stops.

    Attributes:
        optimizer: ``"lbfgs"`` or ``"adam"``.
        keep: Weights of the clean samples' loss against the shifted ones'.
        decay: Weights of half the squared change.
        rates: Learning rates of Adam.
        stops: Iterations of L-BFGS, or steps of Adam.
    """

    optimizer: str
    keep: tuple[float, ...] = (0.3, 1.0, 3.0, 10.0)
    decay: tuple[float, ...] = (1e-3, 1e-2)
    rates: tuple[float, ...] = (1.0,)
    stops: tuple[int, ...] = (10, 30, 100)

    def settings(self) -> list[tuple[float, float, float]]:
        """Keep, decay, rate of each run."""
        return list(product(self.keep, self.decay, self.rates))


@dataclass(frozen=True, eq=False)
class Tried:
    """A layer of a sweep: its setting, after how many steps, the tuned copy, CPU seconds up to there."""

    setting: tuple[float, float, float]
    stop: int
    layer: nn.Module
    seconds: float


def tune(layer: nn.Module, features: Digits, sweep: Sweep, setting: tuple[float, float, float]) -> list[Tried]:
    """One run on the features that enter the last layer."""
    return list((_lbfgs if sweep.optimizer == "lbfgs" else _adam)(layer, features, sweep, setting))


def choose(layer: nn.Module, tries: Sequence[Tried], fit: Digits, validation: Digits, mode: str) -> Tried:
    """The best of a sweep by the validation part.

    ``soft``: most shifted samples right with enough clean ones right; ``conservative``: most errors repaired with few
    enough flips; ``hard``: most errors repaired of those without a flip among the samples that it was fitted on.
    """

    def rank(tried: Tried) -> tuple[float, float]:
        found = outcome(layer, tried.layer, validation)
        if mode == SOFT:
            return max(0.0, CLEAN - found["clean accuracy"]), -found["shifted accuracy"]
        if mode == CONSERVATIVE:
            return max(0.0, found["flips"] - FLIPS), -found["repair rate"]
        return outcome(layer, tried.layer, fit)["flips"], -found["repair rate"]

    return min(tries, key=rank)


def outcome(before: nn.Module, after: nn.Module, data: Digits) -> dict[str, float]:
    """Repair rate and accuracy on the shifted samples, accuracy and negative flips on the clean ones."""
    with torch.no_grad():
        right = [[model(x).argmax(1) == data.labels for x in (data.clean, data.shifted)] for model in (before, after)]
    (clean, shifted), (clean_now, shifted_now) = right
    return {
        "repair rate": float(shifted_now[~shifted].double().mean()),
        "shifted accuracy": float(shifted_now.double().mean()),
        "clean accuracy": float(clean_now.double().mean()),
        "flips": float((clean & ~clean_now).double().mean()),
        "flipped": float((clean & ~clean_now).sum()),
    }


def _loss(layer: nn.Module, data: Digits, origin: list[Tensor], keep: float, decay: float) -> Tensor:
    loss = nn.functional.cross_entropy(layer(data.shifted), data.labels)
    if keep:
        loss = loss + keep * nn.functional.cross_entropy(layer(data.clean), data.labels)
    if decay:
        loss = loss + decay / 2 * sum(((p - o) ** 2).sum() for p, o in zip(layer.parameters(), origin, strict=True))
    return loss / (1 + keep)


def _lbfgs(layer: nn.Module, data: Digits, sweep: Sweep, setting: tuple[float, float, float]) -> Iterator[Tried]:
    started = time.process_time()
    keep, decay, _ = setting
    tuned, done = copy.deepcopy(layer), 0
    origin = [p.detach().clone() for p in tuned.parameters()]
    for stop in sweep.stops:
        options = {"history_size": 20, "line_search_fn": "strong_wolfe"}
        optimizer = torch.optim.LBFGS(tuned.parameters(), max_iter=stop - done, **options)

        def loss(optimizer: torch.optim.LBFGS = optimizer) -> Tensor:
            optimizer.zero_grad()
            value = _loss(tuned, data, origin, keep, decay)
            value.backward()
            return value

        optimizer.step(loss)
        done = stop
        yield Tried(setting, stop, copy.deepcopy(tuned), time.process_time() - started)


def _adam(layer: nn.Module, data: Digits, sweep: Sweep, setting: tuple[float, float, float]) -> Iterator[Tried]:
    started = time.process_time()
    keep, decay, rate = setting
    tuned = copy.deepcopy(layer)
    origin = [p.detach().clone() for p in tuned.parameters()]
    optimizer = torch.optim.Adam(tuned.parameters(), lr=rate)
    draw = torch.Generator().manual_seed(0)
    for step in range(1, max(sweep.stops) + 1):
        pick = torch.randint(len(data.labels), (BATCH,), generator=draw)
        optimizer.zero_grad()
        _loss(tuned, data.part(pick), origin, keep, decay).backward()
        optimizer.step()
        if step in sweep.stops:
            yield Tried(setting, step, copy.deepcopy(tuned), time.process_time() - started)


def tune_all_layers(model: nn.Module, data: Digits, *, epochs: float = 2.0, rate: float = 3e-4) -> nn.Module:
    """Adam on all layers, clean and shifted images alike; what is possible where any weight may change."""
    tuned = copy.deepcopy(model)
    optimizer = torch.optim.Adam(tuned.parameters(), lr=rate)
    draw = torch.Generator().manual_seed(0)
    origin: list[Tensor] = []
    for _ in range(max(1, int(epochs * len(data.labels) / 128))):
        pick = torch.randint(len(data.labels), (128,), generator=draw)
        optimizer.zero_grad()
        _loss(tuned, data.part(pick), origin, 1.0, 0.0).backward()
        optimizer.step()
    return tuned
