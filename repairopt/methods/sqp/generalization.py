"""Whether the repair of given points says anything about others: each point judged by a repair that has not seen it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor

from repairopt.methods.outcome import Outcome
from repairopt.methods.task import Log, Task
from repairopt.program import Array
from repairopt.specify import Transferable, labelled_data, labels_of, rate_interval
from repairopt.verify import Stop

LEAST_POINTS = 8
CONFIDENCE = 0.9


def judge_generalization(task: Task, repair: Callable[[Task], Outcome], *, folds: int) -> str:
    """A sentence about similar inputs, from repairs that leave out a part of the points each.

    Args:
        task: A repair whose goal is an error rate of given points.
        repair: Proposes a change for such a task.
        folds: Number of parts.

    Returns:
        The share of points repaired unseen, and whether that is better than chance; empty for fewer than 8 points,
        and for goals without labels.
    """
    goal, known = task.goal, labels_of(task.goal)
    if known is None or not isinstance(goal, Transferable):
        return ""
    predict, (inputs, labels) = task.engine.predict(), known
    with torch.no_grad():
        outputs = predict(inputs)
    wrong = (outputs.argmax(-1).cpu() != labels.cpu()).nonzero()[:, 0]
    if len(wrong) < LEAST_POINTS:
        return ""
    others = _right_ones(task)
    changed, total = 0, 0
    part = torch.randperm(len(wrong), generator=torch.Generator().manual_seed(task.seed)) % folds
    fixed = 0
    for fold in range(folds):
        left_out = wrong[part == fold]
        seen = torch.ones(len(labels), dtype=torch.bool)
        seen[left_out] = False
        own = goal.on(inputs[seen.to(inputs.device)], labels[seen.to(labels.device)])
        try:
            delta: Array = repair(
                replace(task, spec=replace(task.spec, goal=own), log=Log(), progress=None, checkpoint=None)
            ).delta
        except Stop:
            return ""
        with torch.no_grad():
            now = task.engine.predict(delta)
            answers = now(inputs[left_out.to(inputs.device)]).argmax(-1).cpu()
            for x, old in others:
                changed += int((now(x).argmax(-1).cpu() != old).sum())
                total += len(old)
        fixed += int((answers == labels[left_out].cpu()).sum())
    chance = changed / max(1, total) / max(1, outputs.shape[1] - 1)
    share, least = fixed / len(wrong), rate_interval(fixed, len(wrong), CONFIDENCE).low
    text = (
        f"Of {len(wrong)} wrong points {100 * share:.0f} % were right in repairs that had not seen them; by chance, as "
        f"often as such repairs give a right input another given label, {100 * chance:.1f} % would be"
    )
    if least <= chance:
        return (
            f"{text}. That is not shown to be better: either the mistakes have no pattern, or the weights that may "
            f"change cannot express it (more layers may). Expect the repair to fix these points, and nothing on "
            f"similar inputs."
        )
    return f"{text}. Expect about as much on similar inputs."


def _right_ones(task: Task) -> list[tuple[Tensor, Tensor]]:
    """Inputs of the constraints that the original gets right, with what it says; the points to fix are none of them."""
    found = []
    with torch.no_grad():
        for inputs, labels in labelled_data(task.constraints):
            answers = task.engine.predict()(inputs).argmax(-1).cpu()
            right = answers == labels.cpu()
            if bool(right.any()):
                found.append((inputs[right.to(inputs.device)], answers[right]))
    return found
