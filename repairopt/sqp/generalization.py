"""Whether the repair of given points says anything about others: each point judged by a repair that has not seen it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import torch

from repairopt.intervals import rate_interval
from repairopt.judge import Stop
from repairopt.linearize import Array
from repairopt.methods.task import Outcome, Task

LEAST_POINTS = 8
CONFIDENCE = 0.9


def judge_generalization(task: Task, repair: Callable[[Task], Outcome], *, folds: int) -> str:
    """A sentence about similar inputs, from repairs that leave out a part of the points each.

    Args:
        task: A repair whose goal is an error rate of given points.
        repair: Proposes a change for such a task.
        folds: Number of parts.

    Returns:
        The share of points repaired unseen, and whether that is better than guessing; empty for fewer than 8 points.
    """
    goal = task.goal
    predict = task.engine.predict()
    inputs, labels = goal.inputs, goal.labels  # type: ignore[attr-defined]
    with torch.no_grad():
        outputs = predict(inputs)
    wrong = (outputs.argmax(-1).cpu() != labels.cpu()).nonzero()[:, 0]
    if len(wrong) < LEAST_POINTS:
        return ""
    part = torch.randperm(len(wrong), generator=torch.Generator().manual_seed(task.seed)) % folds
    fixed = 0
    for fold in range(folds):
        left_out = wrong[part == fold]
        seen = torch.ones(len(labels), dtype=torch.bool)
        seen[left_out] = False
        own = replace(goal, inputs=inputs[seen.to(inputs.device)], labels=labels[seen.to(labels.device)])  # type: ignore[type-var]
        try:
            delta: Array = repair(replace(task, goal=own, rounds=[], progress=None, checkpoint=None)).delta
        except Stop:
            return ""
        with torch.no_grad():
            answers = task.engine.predict(delta)(inputs[left_out.to(inputs.device)]).argmax(-1).cpu()
        fixed += int((answers == labels[left_out].cpu()).sum())
    guessing = 1.0 / outputs.shape[1]
    share, least = fixed / len(wrong), rate_interval(fixed, len(wrong), CONFIDENCE).low
    text = f"Of {len(wrong)} wrong points {100 * share:.0f} % were right in repairs that had not seen them"
    if least <= guessing:
        return (
            f"{text}, not shown to be better than guessing ({100 * guessing:.0f} %): the mistakes look like noise. "
            f"Expect the repair to fix these points, and nothing on similar inputs."
        )
    return f"{text}: expect about as much on similar inputs."
