"""The bi-level search of a cell: its weights on one half of the rows, what operations are taken on the other."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .cell import RelaxedCell
from .operations import Separable

Pair = tuple[Tensor, Tensor]
MOMENTUM = 0.9


@dataclass(frozen=True, kw_only=True)
class Schedule:
    """How long, with how many rows and by which steps a block is trained.

    Attributes:
        epochs: At most so many.
        patience: Epochs without a smaller validation loss after which training ends.
        batch: Rows of a step.
        rate: Learning rate of weights, which falls to 0 by a cosine.
        decay: Weight decay.
        alpha_rate: Learning rate of the architecture.
        alpha_decay: Its weight decay.
        seed: Of the order of rows.
        check: Called before each step.
    """

    epochs: int
    patience: int
    batch: int
    rate: float
    decay: float
    alpha_rate: float = 3e-4
    alpha_decay: float = 1e-3
    seed: int = 0
    check: Callable[[], None] = lambda: None


def search_cell(
    network: nn.Module, cell: RelaxedCell, training: Pair, validation: Pair, schedule: Schedule
) -> list[float]:
    """Train a relaxed cell inside of a network: alternately its weights and its architecture, first order.

    Args:
        network: From one tensor to logits, with the cell inside; nothing else of it changes.
        cell: The cell.
        training: Rows for the weights.
        validation: Rows for the architecture.
        schedule: How.

    Returns:
        The validation loss before, and after each epoch.
    """
    architecture = torch.optim.Adam(
        cell.architecture(), lr=schedule.alpha_rate, betas=(0.5, 0.999), weight_decay=schedule.alpha_decay
    )
    draw = torch.Generator().manual_seed(schedule.seed + 1)

    def before() -> None:
        rows = torch.randint(len(validation[0]), (min(schedule.batch, len(validation[0])),), generator=draw)
        architecture.zero_grad()
        loss_of(network, validation, rows.to(validation[0].device)).backward()
        architecture.step()

    return train_block(network, cell, cell.weights(), training, validation, schedule, before)


def train_block(
    network: nn.Module,
    block: nn.Module,
    weights: list[Tensor],
    training: Pair,
    validation: Pair,
    schedule: Schedule,
    before: Callable[[], None] | None = None,
) -> list[float]:
    """Train weights by SGD until the validation loss no longer falls; the best epoch is kept, the start included.

    Args:
        network: From one tensor to logits.
        block: What trains: its batch normalization is in training mode meanwhile, and all of its state is kept.
        weights: What SGD changes.
        training: Rows that are learned.
        validation: Rows that choose the epoch.
        schedule: How.
        before: Called before each step.

    Returns:
        The validation loss before, and after each epoch.
    """
    optimizer = torch.optim.SGD(weights, lr=schedule.rate, momentum=MOMENTUM, weight_decay=schedule.decay)
    falling = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, max(1, schedule.epochs))
    draw = torch.Generator().manual_seed(schedule.seed)
    network.eval()
    losses = [validation_loss(network, validation)]
    best, kept, still = losses[0], _state(block), 0
    for _ in range(schedule.epochs):
        with torch.enable_grad():
            _train_new(block)
            for rows in torch.randperm(len(training[0]), generator=draw).split(schedule.batch):
                if len(rows) < 2:
                    continue  # batch normalization of one row is no number
                schedule.check()
                if before is not None:
                    before()
                optimizer.zero_grad()
                loss_of(network, training, rows.to(training[0].device)).backward()
                optimizer.step()
        falling.step()
        network.eval()
        losses.append(validation_loss(network, validation))
        still = 0 if losses[-1] < best else still + 1
        if losses[-1] < best:
            best, kept = losses[-1], _state(block)
        if still >= schedule.patience:
            break
    block.load_state_dict(kept)
    return losses


def loss_of(network: nn.Module, rows: Pair, chosen: Tensor) -> Tensor:
    """Mean cross-entropy of some rows."""
    return F.cross_entropy(network(rows[0][chosen]), rows[1][chosen])


def validation_loss(network: nn.Module, rows: Pair) -> float:
    """Mean cross-entropy of all rows."""
    with torch.no_grad():
        pairs = zip(rows[0].split(500), rows[1].split(500), strict=True)
        parts = [F.cross_entropy(network(x), y, reduction="sum") for x, y in pairs]
    return float(torch.stack(parts).sum()) / len(rows[0])


def _train_new(block: nn.Module) -> None:
    """Batch normalization of new operations learns its statistics; that of the original keeps them."""
    for module in block.modules():
        if isinstance(module, Separable):
            module.train()


def _state(block: nn.Module) -> dict[str, Tensor]:
    return {name: one.detach().clone() for name, one in block.state_dict().items()}
