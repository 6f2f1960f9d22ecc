"""fairlearn's metrics in each group, before and after, for every gap whose rows have true labels."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from repairopt.network import Remembering
from repairopt.specify import Grouped, GroupMetrics, labelled_data, labels_of, measured

from .evidence import GroupTable

DISPARITIES = ("demographic_parity_difference", "equalized_odds_difference", "equal_opportunity_difference")


def group_tables(items: Sequence[tuple[Any, bool]], both: tuple[Remembering, Remembering]) -> tuple[GroupTable, ...]:
    """Tables of the gaps on real rows, each division into groups once.

    Args:
        items: Anchored properties and constraints, and whether each is held out.
        both: The networks before and after.

    Returns:
        One table for each; those of rows whose labels nobody gave are left out.
    """
    labelled = labelled_data([measured(item) for item, _ in items])
    found, seen = [], set()
    for item, held_out in items:
        gap: Any = measured(item)
        if not isinstance(gap, Grouped) or gap.samples.rows is None:
            continue
        samples, favorable = gap.samples, gap.favorable
        labels = _labels(gap, labelled)
        key = (held_out, samples.names, favorable, tuple(samples.rows[:50].tolist()), len(samples.rows))
        if labels is None or key in seen:
            continue
        seen.add(key)
        answers = [predict(samples.inputs).argmax(1).cpu().numpy() for predict in both]
        found.append(_table(gap.name, held_out, favorable, samples, labels.cpu().numpy(), answers))
    return tuple(found)


def _labels(gap: Any, labelled: Sequence[tuple[Tensor, Tensor]]) -> Tensor | None:
    """True labels of the rows of a gap: its own, or those that stand beside the same rows elsewhere."""
    own = labels_of(gap)
    if own is not None:
        return own[1]
    rows = gap.samples.rows
    for inputs, labels in labelled:
        if inputs.shape[1:] == gap.samples.inputs.shape[1:] and int(rows.max()) < len(inputs):
            same = inputs[rows.to(inputs.device)]
            if same.device == gap.samples.inputs.device and torch.equal(same, gap.samples.inputs):
                return labels[rows.to(labels.device)]
    return None


def _table(name: str, held_out: bool, favorable: int, samples: Any, labels: Any, answers: Sequence[Any]) -> GroupTable:
    member = samples.member.cpu().numpy()
    before, after = (GroupMetrics(labels, answer, member, pos_label=favorable) for answer in answers)
    metrics = tuple(before.metrics)
    cells = [
        np.array([[one.by_group[metric][group] for metric in metrics] for group in one.groups])
        for one in (before, after)
    ]
    gaps = {
        name.replace("_", " "): (float(getattr(before, name)()), float(getattr(after, name)())) for name in DISPARITIES
    }
    groups = tuple(samples.names[group] for group in before.groups)
    return GroupTable(name, held_out, favorable, groups, metrics, cells[0], cells[1], gaps)
