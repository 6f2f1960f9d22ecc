"""The same repair on a part of its rows, for cross-validation, or by another method."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from repairopt.errors import SpecificationError
from repairopt.network import Remembering
from repairopt.specify import (
    Keep,
    LabelledPair,
    SampleShare,
    ShareRows,
    anchor,
    restricted,
    stands_for_population,
    weight_of,
)
from repairopt.verify import Judge

from .method import Method
from .outcome import Outcome
from .settings import TrustRegion
from .task import Log, Task

MOST_POINTS = 1_000  # to be fixed one by one


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
    try:
        return part_of(task, keep)
    except SpecificationError:
        return None


def part_of(task: Task, keep: Keep) -> Task:
    """The same as :func:`task_on`; a SpecificationError where the part lacks rows of some group or class."""
    predict = Remembering(task.engine)
    constraints = (*(anchor(restricted(one, keep), predict) for one in task.constraints), *task.change)
    spec = replace(task.spec, goal=restricted(task.goal, keep), constraints=constraints)
    judge = Judge(task.engine, spec, task.judge.deadline)
    data = tuple(
        LabelledPair(*pair, weight_of(pair)).where(mask) for pair in task.data if bool((mask := keep(pair[0])).any())
    )
    return replace(
        task,
        spec=spec,
        judge=judge,
        data=data,
        log=Log(seconds=task.log.seconds, notes=task.log.notes),
        progress=None,
        start=None,
        checkpoint=None,
    )


def run_with(task: Task, method: Method) -> Outcome:
    """Run another method on a repair, with its own trust region."""
    if isinstance(method, TrustRegion):
        method.check_model()
        task = replace(task, model=method)
    return method.run(task)


def with_rows_of_goal(task: Task) -> Task:
    """The same repair with a row for each point, where the goal is that no given point is wrong.

    A count of given points has no slope where the network is sure of its mistakes; their margins have. Points by the
    thousand stand for a population, of which some will stay wrong: they get no rows.
    """
    goal = task.goal
    if not isinstance(goal, SampleShare) or goal.target > 0 or stands_for_population(goal):
        return task
    taken = any(one.name == goal.name for one in task.spec.constraints)
    rows: Any = ShareRows(goal, name=f"{goal.name}, sample by sample" if taken else "")
    if len(rows.samples) > MOST_POINTS:
        return task
    spec = replace(task.spec, constraints=(*task.spec.constraints, rows))
    return replace(task, spec=spec, judge=Judge(task.engine, spec, task.judge.deadline))
