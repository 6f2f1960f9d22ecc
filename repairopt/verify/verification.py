"""Verify: the true repaired network on the true specification, on repair data and on held-out data.

Runs both networks anew, whole, from the repaired copy of the model; nothing that the repair computed is used.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from repairopt.network import Engine, ForwardFunction, Remembering, identity
from repairopt.specify import (
    Constraint,
    Detailed,
    Property,
    SampleConstraint,
    Specification,
    allowed_samples,
    anchor,
    broken_samples,
    goal_value,
    holds_change,
    labelled_data,
    labels_of,
    margins_at,
    price_of,
    sample_count,
    tolerance_of,
)

from .judge import is_constant

Array = npt.NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Measure:
    """A property before and after.

    Attributes:
        name: The property's name.
        held_out: Whether its data were held out.
        before: Value on the original network.
        after: Value on the repaired network.
        target: Its target, for the goal; None for what is only watched.
        details: For each further figure its value before and after.
    """

    name: str
    held_out: bool
    before: float
    after: float
    target: float | None = None
    details: dict[str, tuple[float, float]] = field(default_factory=dict)


@dataclass(frozen=True, eq=False)
class Check:
    """A constraint before and after.

    Attributes:
        constraint: Its name.
        held_out: Whether its data were held out.
        before: Margins on the original network, ``(m,)``.
        after: Margins on the repaired network, ``(m,)``.
        applied: Inputs that the constraint spoke of; 0 reads "vacuous", not "held".
        failed: Samples (or margins) that fail after.
        allowed: How many may.
        unit: What is counted, ``"samples"`` or ``"rows"``.
        soft: Whether its rows were soft wishes, so that failing is not a violation.
    """

    constraint: str
    held_out: bool
    before: Array
    after: Array
    applied: int
    failed: int
    allowed: int
    unit: str = "samples"
    soft: bool = False

    @property
    def holds(self) -> bool:
        """Whether no more fail than allowed."""
        return self.failed <= self.allowed


@dataclass(frozen=True, eq=False)
class LabelCounts:
    """Predictions against labels, before and after, on one set of labelled inputs.

    Attributes:
        name: Which data.
        held_out: Whether they were held out.
        count: Number of inputs.
        accuracy: Share right, before and after.
        balanced_accuracy: Mean recall of the classes that occur, before and after.
        recall: For each class its recall before and after.
        rate: For each class the share of inputs that are given it, before and after.
        newly_wrong: Right before, wrong after.
        newly_right: Wrong before, right after.
    """

    name: str
    held_out: bool
    count: int
    accuracy: tuple[float, float]
    balanced_accuracy: tuple[float, float]
    recall: dict[int, tuple[float, float]]
    rate: dict[int, tuple[float, float]]
    newly_wrong: int
    newly_right: int


@dataclass(frozen=True, eq=False)
class Verification:
    """What the true networks do.

    Attributes:
        measures: The goal first, then what is watched, repair data and held-out data.
        checks: The constraints.
        labels: Counts for every labelled set of inputs.
        constant: Whether the repaired network gives every input the same label, though not all labels are that one.
        constant_before: Whether the original network does.
    """

    measures: tuple[Measure, ...]
    checks: tuple[Check, ...]
    labels: tuple[LabelCounts, ...]
    constant: bool
    constant_before: bool = False

    @property
    def goal_before(self) -> float:
        """Value of the goal on the repair data before."""
        return self.measures[0].before

    @property
    def goal_after(self) -> float:
        """Value of the goal on the repair data after."""
        return self.measures[0].after


def both_networks(
    original: nn.Module, repaired: nn.Module, *, forward_fn: ForwardFunction | None = None, memory_limit: int = 2**30
) -> tuple[Remembering, Remembering]:
    """Both networks as functions that run each set of inputs once, on engines of their own.

    Args:
        original: The network before.
        repaired: The network after.
        forward_fn: As given to the repair.
        memory_limit: Bytes for activations.
    """
    options: Any = {"forward_fn": forward_fn, "memory_limit": memory_limit}
    return Remembering(Engine(original, **options)), Remembering(Engine(repaired, **options))


def verify(
    original: nn.Module,
    repaired: nn.Module,
    specification: Specification,
    *,
    change: tuple[Array, Array] | None = None,
    forward_fn: ForwardFunction | None = None,
    memory_limit: int = 2**30,
    both: tuple[Remembering, Remembering] | None = None,
) -> Verification:
    """Measure both networks on the whole specification.

    Args:
        original: The network before.
        repaired: The network after.
        specification: Goal, constraints and held-out twins; not anchored.
        change: ``(initial weights, delta)``, ``(n,)`` each, for the constraints on the change.
        forward_fn: As given to the repair.
        memory_limit: Bytes for activations.
        both: The networks as functions, from :func:`both_networks`, where others use what they remember too.

    Returns:
        Measures, checks and counts. "Checked on N inputs" is not "proved".
    """
    both = both or both_networks(original, repaired, forward_fn=forward_fn, memory_limit=memory_limit)
    before, after = both
    spec = specification
    measures = [_measure(both, spec.goal, False, float(spec.goal.target))]
    measures += [_measure(both, watched, False, None) for watched in spec.watch]
    checks = [_check(both, constraint, False) for constraint in spec.on_outputs]
    for item in spec.held_out:
        if isinstance(item, Constraint):
            checks.append(_check(both, item, True))
        else:
            target = float(spec.goal.target) if item.name == spec.goal.name else None
            measures.append(_measure(both, item, True, target))
    if change is not None:
        checks += [_check_change(c, *change) for c in spec.on_change]
    sources = [(item, False) for item in (spec.goal, *spec.watch, *spec.constraints)]
    sources += [(item, True) for item in spec.held_out]
    labels = tuple(_label_counts(both, sources))
    labelled = labelled_data([item for item, _ in sources])
    constants = (is_constant(after, labelled), is_constant(before, labelled))
    return Verification(tuple(measures), tuple(checks), labels, *constants)


def _measure(both: tuple[Remembering, Remembering], item: Property, held_out: bool, target: float | None) -> Measure:
    item = anchor(item, both[0])
    before, after = (goal_value(item, predict) for predict in both)
    details: dict[str, tuple[float, float]] = {}
    if isinstance(item, Detailed):
        first, second = (item.details(predict) for predict in both)
        details = {key: (float(first[key]), float(second[key])) for key in first}
    return Measure(item.name, held_out, before, after, target, details)


def _check(both: tuple[Remembering, Remembering], constraint: Constraint, held_out: bool) -> Check:
    anchored = anchor(constraint, both[0])
    before, after = (margins_at(predict, [anchored])[0] for predict in both)
    by_sample = isinstance(anchored, SampleConstraint)
    return Check(
        constraint=constraint.name,
        held_out=held_out,
        before=before,
        after=after,
        applied=sample_count(anchored) if by_sample else len(after),
        failed=broken_samples(anchored, after),
        allowed=allowed_samples(anchored, after),
        unit="samples" if by_sample else "rows",
        soft=price_of(anchored) is not None and tolerance_of(anchored) >= 1,
    )


def _check_change(constraint: Any, initial: Array, delta: Array) -> Check:
    matrix, lower, upper = constraint.rows(initial)
    margins = [np.minimum(matrix @ d - lower, upper - matrix @ d) for d in (np.zeros_like(delta), delta)]
    holds = holds_change((matrix, lower, upper), delta)
    count = len(margins[1])
    return Check(
        constraint.name, False, margins[0], margins[1], count, 0 if holds else int((margins[1] < 0).sum()), 0, "rows"
    )


def _label_counts(both: tuple[Remembering, Remembering], items: Sequence[tuple[Any, bool]]) -> list[LabelCounts]:
    found, seen = [], set()
    for item, held_out in items:
        known = labels_of(item)
        if known is None or identity(known[0]) in seen:
            continue
        inputs, labels = known
        seen.add(identity(inputs))
        predictions = [predict(inputs).argmax(1).cpu() for predict in both]
        found.append(_counts(item.name, held_out, labels.cpu(), predictions[0], predictions[1]))
    return found


def _counts(name: str, held_out: bool, labels: Tensor, before: Tensor, after: Tensor) -> LabelCounts:
    classes = sorted({int(c) for c in torch.unique(torch.cat([labels, before, after]))})
    right = (before == labels, after == labels)
    recall = {
        c: (float(right[0][labels == c].float().mean()), float(right[1][labels == c].float().mean()))
        for c in classes
        if bool((labels == c).any())
    }
    rate = {c: (float((before == c).float().mean()), float((after == c).float().mean())) for c in classes}
    return LabelCounts(
        name=name,
        held_out=held_out,
        count=len(labels),
        accuracy=(float(right[0].float().mean()), float(right[1].float().mean())),
        balanced_accuracy=(
            float(np.mean([r[0] for r in recall.values()])),
            float(np.mean([r[1] for r in recall.values()])),
        ),
        recall=recall,
        rate=rate,
        newly_wrong=int((right[0] & ~right[1]).sum()),
        newly_right=int((~right[0] & right[1]).sum()),
    )
