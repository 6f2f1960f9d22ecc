"""Closeness to the original's own outputs on the rows to keep that it gets right."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from repairopt.methods.task import Task

SHARE = 4  # of the memory limit, one of so many parts of which may hold outputs of the original


def known_answers(task: Task, sets: Sequence[Tensor]) -> list[Tensor | None]:
    """Outputs ``(N, k)`` of the original on some sets of rows; None where they would take too much memory."""
    predict, room, found = task.engine.predict(), task.engine.memory_limit // SHARE, list[Tensor | None]()
    for inputs in sets:
        with torch.no_grad():
            first = predict(inputs[:1])
            size = first.nbytes * len(inputs)
            found.append(predict(inputs) if size <= room else None)
        room -= size if size <= room else 0
    return found


def distance(outputs: Tensor, labels: Tensor, original: Tensor, temperature: float) -> Tensor:
    """Sum over the rows that the original gets right of how far the network in training is from its softened answers.

    It is the divergence times the square of the temperature, so that slopes do not fall with it.

    Args:
        outputs: Of the network in training, ``(N, k)``.
        labels: ``(N,)``.
        original: Outputs of the original, ``(N, k)``.
        temperature: By which outputs are divided before they become probabilities.

    References:
        Hinton, Vinyals and Dean, Distilling the knowledge in a neural network, 2015.
    """
    aim, own = (original / temperature).softmax(1), (outputs / temperature).log_softmax(1)
    apart = temperature**2 * F.kl_div(own, aim, reduction="none").sum(1)
    return torch.where(original.argmax(1) == labels, apart, 0.0).sum()
