"""Labelled rows that methods of training and of search learn from: what fails, what is right, training, validation."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from repairopt.errors import SpecificationError
from repairopt.specify import labels_of, measured

from .task import Task

VALIDATION = 0.1  # of the training rows, where no validation rows are given
Pair = tuple[Tensor, Tensor]


@dataclass(frozen=True, eq=False)
class Material:
    """Rows ``(N, ...)`` with labels ``(N,)``, all on the engine's device.

    Attributes:
        failing: Rows of goal and constraints that the original network labels wrong; where these have no labels, such
            rows of the data.
        passing: Rows of goal and constraints that it labels right; where there are none, such rows of the data.
        training: The data, ``data=`` of the repair; without it the rows of goal and constraints.
        validation: Rows that choose among networks; not among the training rows.
    """

    failing: Pair
    passing: Pair
    training: Pair
    validation: Pair


def material_of(task: Task, *, validation: Pair | None = None, failing: bool = True) -> Material:
    """The labelled rows of a repair.

    Args:
        task: The repair.
        validation: Inputs and labels that choose among networks; without them a tenth of the training rows, drawn by
            the seed of the repair, is set aside for that.
        failing: Whether rows that fail are needed.

    Raises:
        SpecificationError: There are no labelled rows, their inputs differ in shape, or none fails.
    """
    stated = list(_distinct(found for one in (task.goal, *task.constraints) if (found := labels_of(measured(one)))))
    data = list(_distinct(task.data))
    if not stated and not data:
        raise SpecificationError(
            "the method learns from labelled rows; goal, constraints and data have none. Pass data=(inputs, labels)."
        )
    own = _joined(task, stated or data)
    training = _joined(task, data or stated)
    wrong = _wrong(task, own)
    others = _wrong(task, training) if data and stated else wrong
    fails = (own[0][wrong], own[1][wrong])
    right = (own[0][~wrong], own[1][~wrong]) if bool((~wrong).any()) else (training[0][~others], training[1][~others])
    if failing and not len(fails[0]):
        raise SpecificationError(
            f"the method learns from rows that fail; the network labels all {len(own[0])} labelled rows of goal and "
            "constraints right. State the rows that fail as the goal, such as ErrorRate(inputs, labels)."
        )
    if validation is None:
        training, chosen = _set_aside(training, task.seed)
    else:
        chosen = _joined(task, [validation])
    return Material(fails, right, training, chosen)


def _distinct(pairs: Iterable[Pair]) -> Iterable[Pair]:
    found: list[Pair] = []
    for x, y in pairs:
        if not any(x.shape == a.shape and torch.equal(x, a) and torch.equal(y, b) for a, b in found):
            found.append((x, y))
            yield x, y


def _joined(task: Task, pairs: list[Pair]) -> Pair:
    shapes = {tuple(x.shape[1:]) for x, _ in pairs}
    if len(shapes) > 1:
        raise SpecificationError(
            f"labelled inputs have rows of different shapes {sorted(shapes)}; the method learns from rows of one shape."
        )
    device = task.engine.device
    return torch.cat([x.to(device) for x, _ in pairs]), torch.cat([y.to(device) for _, y in pairs])


def _wrong(task: Task, rows: Pair) -> Tensor:
    outputs = task.engine.predict()(rows[0])
    return outputs.argmax(1) != rows[1]


def _set_aside(rows: Pair, seed: int) -> tuple[Pair, Pair]:
    """Training rows and validation rows; of fewer than ten rows all are both."""
    count = int(np.floor(VALIDATION * len(rows[0])))
    if not count:
        return rows, rows
    order = torch.randperm(len(rows[0]), generator=torch.Generator().manual_seed(seed)).to(rows[0].device)
    rest, some = order[count:].sort().values, order[:count].sort().values
    return (rows[0][rest], rows[1][rest]), (rows[0][some], rows[1][some])
