"""The same repair on a part of its rows, for cross-validation."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from torch import Tensor

from repairopt.constraints import Bound
from repairopt.errors import SpecificationError
from repairopt.evaluate import Remembering
from repairopt.judge import Judge
from repairopt.linearize import anchor, margins_at, required_margins

from .task import Task

Keep = Callable[[Tensor], Tensor]


def task_on(task: Task, keep: Keep) -> Task | None:
    """The repair on the rows that ``keep`` chooses, a mask ``(N,)`` from inputs ``(N, ...)``.

    Properties and constraints that cannot be restricted (no ``where``, no labelled rows) stay as they are. Limits taken
    from the original network stay those of all rows.

    Args:
        task: The repair.
        keep: Chooses rows by their contents.

    Returns:
        The part; None where it lacks rows of some group or class.
    """
    predict = Remembering(task.engine)
    try:
        goal = _restricted(task.goal, keep)
        constraints = tuple(anchor(_restricted(one, keep), predict) for one in task.constraints)
    except SpecificationError:
        return None
    data = tuple((x[mask], y[mask.cpu()]) for x, y in task.data if bool((mask := keep(x)).any()))
    margins = margins_at(predict, constraints)
    required = tuple(required_margins(c, m) for c, m in zip(constraints, margins, strict=True))
    judge = Judge(task.engine, goal, constraints, (), task.judge.deadline)
    judge.change = task.judge.change
    return replace(
        task,
        goal=goal,
        constraints=constraints,
        judge=judge,
        required=required,
        data=data,
        rounds=[],
        progress=None,
        start=None,
        checkpoint=None,
    )


def _restricted(item: Any, keep: Keep) -> Any:
    if isinstance(item, Bound):
        return replace(item, property=_restricted(item.property, keep))
    if hasattr(item, "where"):
        return item.where(keep)
    inputs, labels = getattr(item, "inputs", None), getattr(item, "labels", None)
    if isinstance(inputs, Tensor) and isinstance(labels, Tensor) and hasattr(item, "on"):
        mask = keep(inputs)
        if not bool(mask.any()):
            raise SpecificationError(f"'{item.name}': no rows are left.")
        return item.on(inputs[mask], labels[mask.cpu()])
    return item
