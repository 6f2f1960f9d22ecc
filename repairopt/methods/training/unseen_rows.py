"""What the repair of given points does to others: a repair that leaves a fifth of the rows out, counted on these."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import torch

from repairopt.errors import RepairError
from repairopt.methods.corrections import rows_of_goal
from repairopt.methods.subtask import task_on
from repairopt.methods.task import Array, Log, Task
from repairopt.specify import Folds, labelled_data, labels_of, rate_interval
from repairopt.verify import Stop

PARTS = 5  # of the rows; one is left out
LEAST_POINTS, LEAST_KEPT = 10, 50  # given in all, below which nothing is said
CONFIDENCE, MOST_LOST = 0.9, 0.02  # with which a loss of right answers is told from chance, and the share that is told


def said_of_unseen_rows(task: Task, repair: Callable[[Task], Array]) -> str:
    """Sentences about points and right answers that a repair has not seen.

    Args:
        task: A repair whose goal is that no given point is wrong.
        repair: From such a task to a weight change ``(n,)``.

    Returns:
        How many of the points left out are right, and how many of the right answers left out are lost; empty where few
        rows are given, or where the part cannot be repaired.
    """
    known = labels_of(task.goal)
    if known is None or not rows_of_goal(task) or len(known[1]) < LEAST_POINTS:
        return ""
    if sum(len(labels) for _, labels in labelled_data(task.constraints)) < LEAST_KEPT:
        return ""
    division = Folds(PARTS, task.seed)
    part = task_on(task, lambda x: division.outside(0, x))
    if part is None:
        return ""
    part = replace(part, log=Log(), progress=None, checkpoint=None, start=None)
    try:
        change = repair(part)
    except (Stop, RepairError):
        return ""
    if not change.any():
        return ""
    before, after = task.engine.predict(), task.engine.predict(change)
    fixed = points = lost = kept = 0
    with torch.no_grad():
        for pairs, are_points in (([known], True), (labelled_data(task.constraints), False)):
            for x, y in pairs:
                out = ~division.outside(0, x).cpu()
                inputs, labels = x[out.to(x.device)], y[out.to(y.device)].cpu()
                was, now = (network(inputs).argmax(-1).cpu() == labels for network in (before, after))
                if are_points:
                    points, fixed = points + int((~was).sum()), fixed + int((now & ~was).sum())
                else:
                    kept, lost = kept + int(was.sum()), lost + int((was & ~now).sum())
    if not points or kept < LEAST_KEPT / PARTS:
        return ""
    text = (
        f"A repair without a fifth of the rows had {fixed} of its {points} points right, and lost {lost} of its {kept} "
        f"right answers ({100 * lost / kept:.1f} %). Expect about as much on similar inputs."
    )
    if rate_interval(lost, kept, CONFIDENCE).low <= MOST_LOST:
        return text
    worse = ", and fewer of these rows are right than before" if lost > fixed else ""
    return (
        f"{text} That is a high price{worse}: give more right answers to keep, leave out points whose labels are in "
        f"doubt, or try a goal that some may miss (target=)."
    )
