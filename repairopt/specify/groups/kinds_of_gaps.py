"""The other kinds of gaps between the groups of a goal: closing one can widen another, so that all are watched."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from repairopt.errors import SpecificationError
from repairopt.specify.contracts import Grouped, GroupRates, Labelled, Property

from .gaps import GroupGap
from .odds import OddsGap
from .samples import GroupSamples

MOST_DRAWN = 2_000  # inputs of a group, of a gap on drawn inputs that is watched
Pairs = Sequence[tuple[Tensor, Tensor]]


def other_kinds(stated: Sequence[Any], labelled: Pairs) -> tuple[Property, ...]:
    """Gaps of the kinds that nobody stated, between the groups of the first gap, as far as the rows at hand tell them.

    Args:
        stated: All properties that are bounded or watched, the goal first.
        labelled: Inputs and labels, ``(N, ...)`` and ``(N,)`` each.

    Returns:
        Parity, odds, and the gap on inputs that differ in the protected column alone.
    """
    gaps = [one for one in stated if isinstance(one, Grouped) and isinstance(one, GroupRates)]
    gaps = [gap for gap in gaps if isinstance(gap.samples, GroupSamples)]
    if not gaps:
        return ()
    known, taken, found = {_kind(gap) for gap in gaps}, {one.name for one in stated}, []
    for kind, make in _makers(gaps[0], labelled):
        if kind in known:
            continue
        name = kind if kind not in taken else f"{kind}, watched"
        try:
            found.append(make(name))
        except SpecificationError:  # a group without rows of some label, or too many groups: that kind is not defined
            continue
    return tuple(found)


def _kind(gap: Grouped) -> str:
    if isinstance(gap, Labelled):
        return "odds gap"
    return "parity gap" if gap.samples.rows is not None else "sampled gap"


def _makers(goal: Grouped, labelled: Pairs) -> Iterator[tuple[str, Any]]:
    options: dict[str, Any] = {"favorable": goal.favorable}
    samples: GroupSamples = goal.samples
    if samples.rows is None:  # drawn inputs: real rows are divided by the column in which those of a pair differ
        column = _set_column(samples)
        rows = next(((x, y) for x, y in labelled if x.shape[1:] == samples.inputs.shape[1:]), None)
        if column is None or rows is None:
            return
        values = [float(samples.inputs[samples.member == a][0, column]) for a in range(samples.q)]
        yield "parity gap", lambda name: GroupGap.observed(rows[0], column, values, name=name, **options)
        yield "odds gap", lambda name: OddsGap.observed(*rows, column, values, name=name, **options)
        return
    if isinstance(goal, Labelled):
        yield "parity gap", lambda name: GroupGap(samples, name=name, **options)
    else:
        labels = _labels_of(samples, labelled)
        if labels is not None:
            given = tuple(int(label) for label in torch.unique(labels))
            yield "odds gap", lambda name: OddsGap(samples, labels, given=given, name=name, **options)
    column = _own_column(samples)
    if column is not None and samples.weights is None:  # drawn inputs have no weights
        count = min(MOST_DRAWN, len(samples.inputs))
        values = [float(samples.inputs[samples.member == a][0, column]) for a in range(samples.q)]
        drawn: dict[str, Any] = {"count": count, **options}
        yield "sampled gap", lambda name: GroupGap.sampled(samples.inputs, column, values, name=name, **drawn)


def _labels_of(samples: GroupSamples, labelled: Pairs) -> Tensor | None:
    """Labels of the rows that groups were made from, where some labelled data hold just these rows."""
    rows: Any = samples.rows
    for inputs, labels in labelled:
        if inputs.shape[1:] == samples.inputs.shape[1:] and int(rows.max()) < len(inputs):
            own = inputs[rows.to(inputs.device)]
            if torch.equal(own.to(samples.inputs), samples.inputs):
                return labels[rows.to(labels.device)].cpu()
    return None


def _set_column(samples: GroupSamples) -> int | None:
    """The only column in which paired inputs differ, None where there is none."""
    if not samples.paired or samples.inputs.ndim != 2:
        return None
    parts = samples.inputs.reshape(samples.q, -1, samples.inputs.shape[1])
    differs = (parts != parts[:1]).flatten(0, 1).any(0).nonzero()[:, 0].tolist()
    return differs[0] if len(differs) == 1 else None


def _own_column(samples: GroupSamples) -> int | None:
    """The only column that is one number in each group, another one in each: a column that tells the group."""
    x = samples.inputs
    if x.ndim != 2 or not x.is_floating_point():
        return None
    parts = [x[samples.member == a] for a in range(samples.q)]
    still = torch.stack([(part == part[:1]).all(0) for part in parts]).all(0)
    firsts = torch.stack([part[0] for part in parts])
    found = [k for k in still.nonzero()[:, 0].tolist() if len(torch.unique(firsts[:, k])) == samples.q]
    return found[0] if len(found) == 1 and int(still.sum()) == 1 else None
