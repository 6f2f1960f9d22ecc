"""Thresholds: the most accurate threshold for each group on the scores of the original network; no weight changes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from repairopt.errors import SpecificationError
from repairopt.localize import Wrapped
from repairopt.methods.outcome import Outcome
from repairopt.methods.task import Task
from repairopt.program import Status
from repairopt.specify import Grouped, GroupRates, labelled_data, labels_of
from repairopt.verify import Judgement

from .group_columns import with_offsets
from .group_offsets import GroupOffsets
from .thresholds import Scored, best_thresholds

SHARES = (1.0, 0.9, 0.75, 0.5, 0.25, 0.0)  # of the target: a closer gap may be what the other bounds allow


@dataclass(frozen=True, kw_only=True)
class Thresholds:
    """The most accurate threshold of its own for each group, with favorable rates that differ by at most the target.

    For two classes and a gap of favorable rates. The optimum on the rows of the repair without the other bounds; of
    those for some targets below the goal's the judge keeps the best. A threshold is an offset of the favorable logit,
    so the candidate is :class:`GroupOffsets` around the network, which must read the group.

    Attributes:
        column: Input column that tells the group, by position, or several one-hot ones; None to find those of the
            groups that the goal compares.
        values: As for :class:`GroupOffsets`.
        cuts: As there.

    References:
        Hardt, Price and Srebro, Equality of Opportunity in Supervised Learning, NeurIPS 2016.
    """

    uses: ClassVar[frozenset[str]] = frozenset()

    column: int | Sequence[int] | None = None
    values: Sequence[Any] | None = None
    cuts: Sequence[float] | None = None

    def run(self, task: Task) -> Outcome:
        """Sort the scores of each group and choose thresholds."""
        goal: Any = task.goal
        compares = isinstance(goal, GroupRates) and isinstance(goal, Grouped)
        if not compares or not goal.combine or labels_of(goal) is not None:
            raise SpecificationError(
                f"method Thresholds: goal '{goal.name}' is no difference of favorable rates between groups. Give a "
                f"GroupGap with score difference or max_difference, or choose method offsets."
            )
        data = list(task.data) or labelled_data([*task.constraints, goal])
        if not data:
            raise SpecificationError("method Thresholds: there are no labelled samples. Pass data=(inputs, labels).")
        module, read = with_offsets(task, self)
        score, group = _scores(task, module, goal.samples.inputs)
        labelled = [(*_scores(task, module, x), (y == goal.favorable).cpu().numpy()) for x, y in data]
        rows = Scored(*(np.concatenate([part[k] for part in labelled]) for k in range(3)))
        largest = float(np.abs(np.concatenate([score, rows.score])).max()) + 1
        best: Judgement | None = None
        for share in SHARES:
            task.judge.check_time()
            chosen = best_thresholds(score[group >= 0], group[group >= 0], rows, share * float(goal.target))
            with torch.no_grad():
                module.offsets.zero_()
                shift = -torch.tensor(chosen).clamp(-largest, largest)
                module.offsets[:, goal.favorable] = shift.to(module.offsets)
            settings, tensors = module.parts()
            candidate = Wrapped(
                "group_offsets", {**settings, **read}, {name: one.clone() for name, one in tensors.items()}
            )
            judged = task.judge.keep(candidate)
            task.log.last = (0, len(chosen), None)
            better = best is None or judged.better_than(best)
            task.record(f"thresholds for {share:g} of the target", judged, accepted=better)
            best = judged if better else best
        assert best is not None
        return Outcome(best.candidate, Status.FEASIBLE)


def _scores(task: Task, module: GroupOffsets, inputs: Tensor) -> tuple[Any, Any]:
    """Lead of the favorable label on the original network, and group of each input, -1 where it has none."""
    goal: Any = task.goal
    outputs = task.engine.predict()(inputs).double().cpu()
    if outputs.shape[1] != 2:
        raise SpecificationError(
            f"method Thresholds: the network has {outputs.shape[1]} classes; expected 2. Choose method offsets."
        )
    member = module.membership(inputs.to(module.offsets)).cpu()
    group = torch.where(member.sum(1) > 0, member.argmax(1), -1)
    return (outputs[:, goal.favorable] - outputs[:, 1 - goal.favorable]).numpy(), group.numpy()
