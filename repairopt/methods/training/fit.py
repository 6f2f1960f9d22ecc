"""fit_weights(): the one training loop; a method says what differs: loss, rows, masks, when to stop, what is chosen."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from repairopt.errors import SpecificationError
from repairopt.methods.adam import Adam
from repairopt.methods.material import Material, material_of
from repairopt.methods.settings import Expected, check_settings, is_one_of
from repairopt.methods.task import Task
from repairopt.network import check_labelled

from .trainee import Masks, Trainee

Pair = tuple[Tensor, Tensor]
Score = tuple[float, ...]


@dataclass(frozen=True, kw_only=True)
class Training:
    """What methods that train have in common.

    Attributes:
        epochs: Passes over the rows.
        batch: Rows of a step, at most.
        rate: Learning rate.
        validation: Inputs and labels that choose among networks; None for a tenth of the training rows.
    """

    uses: ClassVar[frozenset[str]] = frozenset({"weights"})
    default_weights: ClassVar[str] = "all"
    systems: ClassVar[Mapping[str, Mapping[str, Any]]] = {}

    epochs: int = 20
    batch: int = 128
    rate: float = 1e-3
    validation: Pair | None = field(default=None, repr=False)

    def __post_init__(self) -> None:
        counts = {"epochs": Expected(whole=True), "batch": Expected(low=1, whole=True)}
        check_settings(self, {**counts, "rate": Expected(above=True), **self.expected()})
        if self.validation is not None:
            owner = f"method {type(self).__name__}: validation"
            pair = self.validation if isinstance(self.validation, tuple) else (self.validation, None)
            object.__setattr__(self, "validation", check_labelled(owner, *pair, integers=True))

    def expected(self) -> dict[str, Expected]:
        """What further settings may be, by name."""
        return {}

    def material(self, task: Task, *, failing: bool = True) -> Material:
        """The labelled rows of the repair."""
        return material_of(task, validation=self.validation, failing=failing)

    def wrong(self, text: str) -> SpecificationError:
        """An error about this method."""
        return SpecificationError(f"method {type(self).__name__}: {text}")

    def chosen(self, name: str, known: Iterable[str]) -> None:
        """Refuse a word that is not known."""
        value = getattr(self, name)
        if not is_one_of(value, known := tuple(known)):
            raise self.wrong(f"{name}={value!r}; choose {', '.join(known)}.")


def fit_weights(
    net: Trainee,
    loss: Callable[[Tensor], Tensor],
    count: int,
    method: Training,
    *,
    optimizer: torch.optim.Optimizer | Adam | None = None,
    batches: Callable[[torch.Generator], Iterable[Tensor]] | None = None,
    masks: Callable[[Tensor], Masks] | None = None,
    score: Callable[[Trainee], Score] | None = None,
    begin: Callable[[int], None] | None = None,
    patience: int | None = None,
    stop: Callable[[Trainee], bool] | None = None,
    step: str = "epoch",
    seed: int | None = None,
    told: bool = True,
) -> None:
    """Train; in the end the weights are those of the best epoch, or without a score those of the last.

    Args:
        net: What trains.
        loss: Loss of the rows at some positions.
        count: Number of rows.
        method: Its epochs, rows of a step and learning rate.
        optimizer: None for Adam.
        batches: Positions of the rows of each step of an epoch; None for all rows in random order.
        masks: For the rows of a step, which entries may move.
        score: What an epoch is chosen by, smaller is better.
        begin: Called before each epoch with its number.
        patience: Stop after so many epochs in a row without a better score.
        stop: Whether to stop, asked after each epoch.
        step: What the log calls an epoch.
        seed: Of the order of rows; None for that of the repair.
        told: Whether each epoch is judged and logged.
    """
    task = net.task
    made = optimizer or Adam(list(net.own.values()), lr=method.rate)
    draw = torch.Generator().manual_seed(task.seed if seed is None else seed)
    best: tuple[Score, dict[str, Tensor]] | None = None
    still = 0
    for epoch in range(method.epochs):
        if begin is not None:
            begin(epoch)
        for rows in shuffled(count, method.batch, draw) if batches is None else batches(draw):
            task.judge.check_time()
            here = rows.to(task.engine.device)
            net.step(made, loss(here), None if masks is None else masks(rows))
        if told:
            net.record(f"{step} {epoch + 1}")
        if score is not None:
            now = score(net)
            still += 1
            if best is None or now < best[0]:
                best, still = (now, net.state()), 0
        if (patience is not None and still >= patience) or (stop is not None and stop(net)):
            break
    if best is not None:
        net.load(best[1])


def shuffled(count: int, batch: int, draw: torch.Generator) -> list[Tensor]:
    """Positions of ``count`` rows in random order, at most ``batch`` at a time and about equally many."""
    return list(torch.randperm(count, generator=draw).tensor_split(max(1, -(-count // batch))))


def cross_entropy(net: Trainee, rows: Pair) -> Callable[[Tensor], Tensor]:
    """The mean cross-entropy of the rows at some positions."""
    return lambda chosen: F.cross_entropy(net(rows[0][chosen]), rows[1][chosen])


def by_error(rows: Pair) -> Callable[[Trainee], Score]:
    """Share of rows that are wrong, then mean cross-entropy."""

    def score(net: Trainee) -> Score:
        outputs = net.predict(rows[0])
        return float((outputs.argmax(1) != rows[1]).float().mean()), float(F.cross_entropy(outputs, rows[1]))

    return score


def accuracy(net: Trainee, rows: Pair) -> float:
    """Share of rows that are right."""
    return float((net.predict(rows[0]).argmax(1) == rows[1]).float().mean())


def joined(*pairs: Pair) -> Pair:
    """Rows of several pairs, one after the other."""
    return torch.cat([x for x, _ in pairs]), torch.cat([y for _, y in pairs])
