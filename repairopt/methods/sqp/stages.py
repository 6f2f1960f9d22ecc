"""Runs of sequential quadratic programming: the way at once, and by stages where it ends badly."""

from __future__ import annotations

from typing import Any

import numpy as np

from repairopt.methods.outcome import Outcome
from repairopt.methods.task import Task
from repairopt.program import Array, Status

from .division import TINIEST, is_spent, rows_of
from .filter import MET
from .nonlinear_program import NonlinearProgram, Point
from .sequence import Sequence

STAGES = 3  # on the way to the limits in the second run; each further run takes so many more
SHORT = 2  # steps of a stage where the limits are within reach, and only the way to them is dear
STUCK = 0.1  # share of what limits are missed by at first, missed still by a stage, after which the run is given up
SAME = 1e-4  # relative difference of changes, up to which two runs have ended at one point
FLOOR = 0.1  # share of the first objective: below it the rows are fitted, and going on pays on no others
COSTLY_RISE = 0.02  # relative rise of the objective, after which there is a second run, though the limits are met


def run_sequence(
    task: Task, problem: NonlinearProgram, settings: Any, start: Array | None = None, *, warm: bool = False
) -> Outcome:
    """Run the sequence, again by stages where it ends badly; the best end is kept.

    A run by stages goes a part of the way to the limits that the original misses, then from there a further part, and
    so on: from the first point the models see no way to limits that are far off and in each other's way (measured: a
    gap of 0.006 beside a bound on recall that the original just meets; at once it ends at 0.036, by stages at 0.006 and
    a higher accuracy). Where limits that are not even half of the way off stay out of reach, those farther off are not
    tried (of 24 runs by stages that met their limits, each had met those of all stages before). Where stages end at the
    point of the first run, and of the fewest rows where they end at no better one, more stages are not tried either.

    A first run that meets the limits at a cost is left there for a run by short stages, and goes on only where these do
    not arrive. (On 24 repairs of Adult, after both runs to their ends the objective was no lower, in twice the time.)

    Where limits are missed still, their differentiable stand-ins lead the way, and a last run goes on from there:
    counts rise and fall by single samples, so that from afar no step may be better than none.

    Args:
        task: The repair in progress.
        problem: Judges points and makes models.
        settings: The method, whose fields are read.
        start: Where to begin the first run; None for no change.
        warm: Whether that met limits a little easier, so that one more run, by short stages, is all that can pay.

    Returns:
        What the best run proposes.
    """
    tiny, first = rows_of(task) < TINIEST, problem.point(np.zeros(task.engine.n))
    floor = FLOOR * max(abs(first.objective), problem.objective.typical)
    stuck = max(MET, STUCK * float(np.maximum(0.0, first.values - problem.accepted).sum()))

    def is_dear(at: Point) -> bool:
        return at.violation <= MET and at.objective - first.objective > COSTLY_RISE * abs(first.objective)

    def stages(count: int, most: int, *, patient: bool = False) -> tuple[Point, Sequence, Status]:
        at = first
        for stage in range(1, count + 1):
            whole = stage == count
            part = problem if whole else problem.part_of_the_way(first, stage / count)
            sequence = Sequence(task, part, settings, part.point(at.delta), floor)
            sequence.called = f" of stage {stage} of {count}"
            status = sequence.run(settings.max_steps if whole else most)
            begun, at = at, sequence.best
            still = stage > 1 and at.violation > MET and _same(begun, at)
            lost = still or (2 * stage <= count and at.violation > stuck)
            if lost and not patient:
                break
        return at if whole else problem.point(at.delta), sequence, status

    direct = Sequence(task, problem, settings, first if start is None else problem.point(start), floor)
    strict = problem.by_rows and set(problem.strict) == set(problem.by_sample)
    convex = strict and task.engine.exact  # rows and loss of a last layer: no other way ends elsewhere
    again = settings.restarts > 0 and start is None and not convex
    status = direct.run(settings.max_steps, until=is_dear if again else None)
    if again and is_dear(direct.best):
        end, by_stages, ended = stages(STAGES, SHORT, patient=True)
        if end.violation <= MET and end.pair < direct.best.pair:
            return by_stages.outcome(ended)
        status = direct.run(settings.max_steps)
    best, outcome = direct.best, direct.outcome(status)
    for run in range(1, (min(1, settings.restarts) if warm else settings.restarts) + 1):
        if best.violation <= MET or is_spent(task):
            break
        end, by_stages, ended = stages(run * STAGES, SHORT if warm else max(1, settings.max_steps // 2))
        same = _same(direct.best, end)  # the part of the way is out of reach too
        better = end.pair < best.pair
        if better:
            best, outcome = end, by_stages.outcome(ended)
        if direct.best.delta.any() and (same or (tiny and not better)):
            break
    if best.violation > MET and again:
        counts, ended = _after_stand_ins(problem, settings, floor, settings.max_steps // (4 if tiny else 2))
        if counts is not None and counts.best.pair < best.pair:
            outcome = counts.outcome(ended)
    return outcome


def _same(one: Point, other: Point) -> bool:
    """Whether two runs have ended at one point."""
    return float(np.linalg.norm(other.delta - one.delta)) <= SAME * float(np.linalg.norm(one.delta))


def _after_stand_ins(
    problem: NonlinearProgram, settings: Any, floor: float, most: int
) -> tuple[Sequence | None, Status]:
    """A run by count from where at most so many steps without counts lead, if they lead anywhere, and its status."""
    task, smooth = problem.task, problem.smoothed()
    way = Sequence(task, smooth, settings, smooth.point(np.zeros(task.engine.n)), floor)
    way.called = " of the stand-ins"
    ended = way.run(most, until=lambda at: problem.point(at.delta).violation <= MET)
    if not way.at.delta.any():  # from there the first run began
        return None, ended
    counts = Sequence(task, problem, settings, problem.point(way.at.delta), floor)
    counts.called = " after the stand-ins"
    return counts, counts.run(settings.max_steps)
