"""Verify: both true networks, run anew and whole, on the true specification, repair data and held-out data."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from repairopt import specify
from repairopt.errors import public
from repairopt.network import Engine, ForwardFunction, Remembering, Stop, identity, limited

from .claims import paired_error
from .judge import is_constant

Array = npt.NDArray[np.float64]
CHANCE = 0.9  # two-sided confidence beyond which what is watched has changed
LEAST_RISE = 0.01  # of what is watched, from which it counts as worse


@dataclass(frozen=True, eq=False)
class Measure:
    """A property before and after.

    Attributes:
        target: That of the goal; None for what is only watched.
        details: Further figures, before and after.
        brief: Whether nobody stated it; reports show it in one line.
        worse: Whether something that is watched is worse than before by more than chance explains, and by a point.
        reversed: Whether the largest difference of a gap that is watched has the other sign now, and more than chance
            explains.
    """

    name: str
    held_out: bool
    before: float
    after: float
    target: float | None = None
    details: dict[str, tuple[float, float]] = field(default_factory=dict)
    brief: bool = False
    worse: bool = False
    reversed: bool = False


@dataclass(frozen=True, eq=False)
class Check:
    """A constraint, with its margins on the original and the repaired network, ``(m,)`` each.

    Attributes:
        applied: Inputs that the constraint spoke of; 0 reads "vacuous", not "held".
        failed: Samples (or margins) that fail after; ``allowed`` is how many may.
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
    def failed_before(self) -> int:
        """Samples (or margins) that failed on the original network."""
        fails = self.before < 0
        by_sample = self.unit == "samples" and self.applied > 0
        return int((fails.reshape(self.applied, -1).any(axis=1) if by_sample else fails).sum())

    @property
    def holds(self) -> bool:
        """Whether no more fail than allowed."""
        return self.failed <= self.allowed


@dataclass(frozen=True, eq=False)
class LabelCounts:
    """Predictions against labels on one set of labelled inputs; pairs are before and after.

    Attributes:
        accuracy: Share right.
        balanced_accuracy: Mean recall of the classes that occur.
        recall: Recall of each class.
        rate: Share of the inputs that are given each class.
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
    """What the true networks do: measures, the goal first, checks, label counts, whether all get one wrong label."""

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
    """Both networks as functions that run each set of inputs once, on engines of their own."""
    options: Any = {"forward_fn": forward_fn, "memory_limit": memory_limit}
    return Remembering(Engine(original, **options)), Remembering(Engine(repaired, **options))


@public
def verify(
    original: nn.Module,
    repaired: nn.Module,
    spec: specify.Specification,
    *,
    change: tuple[Array, Array] | None = None,
    forward_fn: ForwardFunction | None = None,
    memory_limit: int = 2**30,
    both: tuple[Remembering, Remembering] | None = None,
    deadline: float | None = None,
) -> Verification:
    """Measure both networks on a specification; ``change`` is ``(initial weights, delta)``, ``(n,)`` each.

    Details that are not known at a ``deadline``, in seconds of ``time.perf_counter()``, are left out: they tell of
    attacks and the like, and no verdict needs them.
    """
    both = both or both_networks(original, repaired, forward_fn=forward_fn, memory_limit=memory_limit)
    measure = partial(_measure, both, deadline)
    measures = [measure(spec.goal, False, float(spec.goal.target))]
    watched = {item.name for item in spec.watch}
    measures += [_compared(both, item, measure(item, False, None)) for item in spec.watch]
    checks = [_check(both, constraint, False) for constraint in spec.on_outputs]
    for item in spec.held_out:
        if isinstance(item, specify.Constraint):
            checks.append(_check(both, item, True))
        else:
            target = float(spec.goal.target) if item.name == spec.goal.name else None
            unseen = measure(item, True, target)
            measures.append(_compared(both, item, unseen) if item.name in watched else unseen)
    if change is not None:
        checks += [_check_change(c, *change) for c in spec.on_change]
    sources = [(item, False) for item in (spec.goal, *spec.watch, *spec.constraints)]
    sources += [(item, True) for item in spec.held_out]
    labels = _label_counts(both, sources)
    labelled = specify.labelled_data([item for item, _ in sources])
    constant_before, constant = (is_constant(predict, labelled) for predict in both)
    others = [(item, False) for item in spec.others] + [(item, True) for item in spec.others_held_out]
    measures += [replace(_compared(both, item, measure(item, part, None)), brief=True) for item, part in others]
    known = [(found, part) for item, part in sources if (found := specify.labels_of(item)) is not None]
    labels += _label_counts(both, [(one, one.held_out) for one in spec.labelled if not _stands_in(one, known)])
    return Verification(tuple(measures), tuple(checks), tuple(labels), constant, constant_before)


def _stands_in(rows: Any, known: Sequence[tuple[tuple[Tensor, Tensor], bool]]) -> bool:
    """Whether the same rows with the same labels are counted for something else of the same half."""
    return any(
        part == rows.held_out
        and x.shape == rows.inputs.shape
        and torch.equal(x.to(rows.inputs), rows.inputs)
        and torch.equal(y.to(rows.labels), rows.labels)
        for (x, y), part in known
    )


def _compared(both: tuple[Remembering, Remembering], item: Any, measure: Measure) -> Measure:
    """The measure of something that is watched, with whether it got worse, or turned round, beyond chance."""
    original, now = both
    own = specify.anchor(item, original)
    rose, before, after = measure.after - measure.before, _largest(own, original), _largest(own, now)
    turned = before * after < 0 and abs(after) > LEAST_RISE
    if isinstance(own, specify.Statistical) and turned:
        turned = own.interval(now, CHANCE).low > 0
    worse = rose > LEAST_RISE
    if worse:
        error = paired_error(own, now, original)
        worse = error is not None and rose > specify.normal_quantile((1 + CHANCE) / 2) * error
    return replace(measure, worse=worse, reversed=turned)


def _largest(prop: Any, predict: Remembering) -> float:
    """The largest signed difference of a gap; 0 of what has none."""
    if not specify.has_signed_parts(prop):
        return 0.0
    with torch.no_grad():
        parts = prop.signed_hard(predict)
    return float(parts[parts.abs().argmax()])


def _measure(
    both: tuple[Remembering, Remembering],
    deadline: float | None,
    item: specify.Property,
    held_out: bool,
    target: float | None,
) -> Measure:
    item = specify.anchor(item, both[0])
    before, after = (specify.goal_value(item, predict) for predict in both)
    details: dict[str, tuple[float, float]] = {}
    if isinstance(item, specify.Detailed):
        with contextlib.suppress(Stop), limited(deadline):
            first, second = (item.details(predict) for predict in both)
            keys = dict.fromkeys([*first, *second])  # a figure that one of the two lacks is not known
            details = {key: (float(first.get(key, np.nan)), float(second.get(key, np.nan))) for key in keys}
    return Measure(item.name, held_out, before, after, target, details)


def _check(both: tuple[Remembering, Remembering], constraint: specify.Constraint, held_out: bool) -> Check:
    anchored = specify.anchor(constraint, both[0])
    before, after = (specify.margins_at(predict, [anchored])[0] for predict in both)
    by_sample = isinstance(anchored, specify.SampleConstraint)
    return Check(
        constraint=constraint.name,
        held_out=held_out,
        before=before,
        after=after,
        applied=specify.sample_count(anchored) if by_sample else len(after),
        failed=specify.broken_samples(anchored, after),
        allowed=specify.allowed_samples(anchored, after),
        unit="samples" if by_sample else "rows",
        soft=specify.price_of(anchored) is not None and specify.tolerance_of(anchored) >= 1,
    )


def _check_change(constraint: Any, initial: Array, delta: Array) -> Check:
    matrix, lower, upper = constraint.rows(initial)
    before, after = (np.minimum(matrix @ d - lower, upper - matrix @ d) for d in (np.zeros_like(delta), delta))
    failed = 0 if specify.holds_change((matrix, lower, upper), delta) else int((after < 0).sum())
    return Check(constraint.name, False, before, after, len(after), failed, 0, "rows")


def _label_counts(both: tuple[Remembering, Remembering], items: Sequence[tuple[Any, bool]]) -> list[LabelCounts]:
    found: dict[Any, LabelCounts] = {}
    for item, held_out in items if not both[0].regression else ():
        known = specify.labels_of(item)
        if known is not None and identity(known[0]) not in found:
            before, after = (predict(known[0]).argmax(1).cpu() for predict in both)
            found[identity(known[0])] = _counts(item.name, held_out, known[1].cpu(), before, after)
    return list(found.values())


def _counts(name: str, held_out: bool, labels: Tensor, before: Tensor, after: Tensor) -> LabelCounts:
    def shares(first: Tensor, second: Tensor) -> tuple[float, float]:
        return float(first.float().mean()), float(second.float().mean())

    classes = torch.unique(torch.cat([labels, before, after])).tolist()
    old, new = before == labels, after == labels
    own = {c: labels == c for c in classes}
    recall = {c: shares(old[at], new[at]) for c, at in own.items() if bool(at.any())}
    balanced = np.mean(list(recall.values()), axis=0)
    return LabelCounts(
        name=name,
        held_out=held_out,
        count=len(labels),
        accuracy=shares(old, new),
        balanced_accuracy=(float(balanced[0]), float(balanced[1])),
        recall=recall,
        rate={c: shares(before == c, after == c) for c in classes},
        newly_wrong=int((old & ~new).sum()),
        newly_right=int((~old & new).sum()),
    )
