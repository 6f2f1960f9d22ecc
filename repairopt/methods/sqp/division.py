"""The division of a repair's rows for cross-validation."""

from __future__ import annotations

from functools import partial

from repairopt.errors import SpecificationError
from repairopt.methods.subtask import part_of
from repairopt.methods.task import Task
from repairopt.specify import Attacked, Certified, Folds, inputs_of, labelled_data, measured, tied_sets

TINIEST = 150  # rows, below which more effort only fits their noise
EFFORT = 80  # points that are judged of the fewest rows, after which runs are short and none is tried again
DEAR = 3  # of them, as many as one of a goal that takes an attack or a certificate counts for
DIVISIONS = 8  # into folds that are drawn where one takes all rows of a group out


def divided(task: Task, folds: int) -> tuple[Folds, list[Task]] | None:
    """A division, and the repair without each of its folds; None, with a note, where some group or class is too few.

    A division that would take all rows of a group out at once is drawn anew a few times.
    """
    tied = tied_sets([*task.data, *labelled_data([measured(item) for item in (task.goal, *task.constraints)])])
    for draw in range(DIVISIONS):
        division = Folds(folds, task.seed + draw, tied)
        try:
            return division, [part_of(task, partial(division.outside, k)) for k in range(folds)]
        except SpecificationError as error:
            reason = str(error)
    task.log.note(
        f"No buffers were set and nothing is claimed of new data: each part of the rows that cross-validation leaves "
        f"out must leave rows of every group and class, which failed: {reason} Merge small groups, or pass more rows."
    )
    return None


def rows_of(task: Task) -> int:
    """Rows of the largest set that is stated."""
    stated = (inputs_of(measured(item)) for item in (task.goal, *task.constraints))
    return max((len(inputs) for inputs in stated if inputs is not None), default=0)


def is_spent(*tasks: Task) -> bool:
    """Whether a repair of the fewest rows, or its parts, have cost their due: more effort would only fit the noise."""
    each = DEAR if isinstance(tasks[0].goal, Attacked | Certified) else 1
    return rows_of(tasks[0]) < TINIEST and each * sum(task.judge.count for task in tasks) > EFFORT
