"""The rows that must hold: which they are, by how much, and which of them fail."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from repairopt.methods.task import Task
from repairopt.network import Predict, identity
from repairopt.specify import (
    SampleConstraint,
    SampleShare,
    ShareRows,
    allowed_samples,
    answers_only,
    labels_of,
    measured,
    price_of,
    samples_in,
    stands_for_population,
)

HAIR = 1e-3  # of the mean margin, by which rows without labels are met more than exactly
MOST_ROWS = 4_000  # in one program: more are out of reach of a correction


def hard_constraints(task: Task) -> list[Any]:
    """Constraints on at least one sample that must hold, but for the number of samples that they allow to fail."""
    known = [c for c in task.constraints if isinstance(c, SampleConstraint) and price_of(c) is None]
    return [c for c in known if len(samples_in(c))]


def rows_of_goal(task: Task) -> list[Any]:
    """A row for each point of a goal that no given point is wrong; none of other goals."""
    goal = task.goal
    if not isinstance(goal, SampleShare) or goal.target > 0 or stands_for_population(goal):
        return []
    rows: Any = ShareRows(goal)
    return [rows] if len(rows.samples) <= MOST_ROWS else []


def known_inputs(task: Task) -> list[Tensor]:
    """All rows that the repair knows, whose outputs are to stay."""
    items = [task.goal, *(measured(c) for c in task.constraints)]
    known = [pair[0] for pair in map(labels_of, items) if pair is not None]
    known += [c.inputs for c in hard_constraints(task)] + [x for x, _ in task.data]
    return list({identity(x): x for x in known}.values())


def asked_margins(task: Task, constraint: Any, margin: float) -> Tensor:
    """Smallest margins that the rows ask for, by sample of the constraint."""
    samples = samples_in(constraint)
    k = next((k for k, one in enumerate(task.constraints) if one is constraint), None)
    if k is None:  # the points of the goal
        return torch.tensor(margin)
    required = torch.as_tensor(task.required[k]).reshape(len(samples), -1)
    if answers_only(constraint):
        return required.clamp(min=margin)
    with torch.no_grad():
        now = constraint.margins_of(task.engine.predict()(constraint.inputs)[samples], samples)
    return required + HAIR * float(now.double().abs().mean())  # a row that is met exactly fails by rounding


def to_correct(predict: Predict, constraint: Any) -> list[int]:
    """Positions, among the constraint's samples, of those that fail, without the worst ones that it allows to."""
    samples = samples_in(constraint)
    with torch.no_grad():
        outputs = predict(constraint.inputs)
        margins = constraint.margins_of(outputs[samples.to(outputs.device)], samples)
    least = margins.reshape(len(samples), -1).amin(1).cpu()
    worst_first = least.argsort()[: int((least < 0).sum())].tolist()
    return sorted(worst_first[allowed_samples(constraint, margins.cpu().numpy()) :])
