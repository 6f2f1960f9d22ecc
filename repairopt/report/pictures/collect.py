"""Collect what the pictures show: both networks run over the data of goal, constraints and held-out twins."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from repairopt.network import Engine, ForwardFunction, Remembering, identity
from repairopt.specify import (
    Attacked,
    Certified,
    Detailed,
    GroupRates,
    PropertyBound,
    Specification,
    anchor,
    labelled_data,
    measured,
    rate_interval,
)
from repairopt.verify import Verification

from .affected import most_affected
from .by_group import group_tables
from .evidence import RATE, Evidence, LayerChange, Margins, Progress, Rates

CELLS = 64  # rows and columns of a heat map
CLASSES = 20  # up to which the recall of each is shown
Both = tuple[Remembering, Remembering]


@dataclass(frozen=True, eq=False)
class Subjects:
    """What a report is about: references to what the user passed and got, nothing is copied.

    Attributes:
        original: The network before.
        repaired: The network after.
        delta: Change of each parameter that could change.
        specification: Goal, constraints, what is watched and held out; not anchored.
        forward_fn: As given to the repair.
        memory_limit: Bytes for activations.
    """

    original: nn.Module
    repaired: nn.Module
    delta: dict[str, Tensor]
    specification: Specification
    forward_fn: ForwardFunction | None = None
    memory_limit: int = 2**30


def collect_evidence(subjects: Subjects, verification: Verification, rounds: Sequence[Any] = ()) -> Evidence:
    """Run both networks and note what the pictures show.

    Args:
        subjects: The networks and the specification.
        verification: Of the same, from :func:`repairopt.verify.verify`.
        rounds: Of the repair.

    Returns:
        The evidence; a few hundred kilobytes.
    """
    options: Any = {"forward_fn": subjects.forward_fn, "memory_limit": subjects.memory_limit}
    both = (Remembering(Engine(subjects.original, **options)), Remembering(Engine(subjects.repaired, **options)))
    items = _anchored_items(subjects.specification, both[0])
    return Evidence(
        rates=_distinct([*_group_rates(items, both), *_recalls(verification)]),
        margins=_distinct([*_label_margins(items, both), *_robustness(items, both)]),
        slacks=_distinct(_slacks(verification)),
        layers=tuple(_layer(name, change, subjects.original) for name, change in subjects.delta.items()),
        affected=most_affected(items, both),
        tables=group_tables(items, both),
        progress=_progress(verification, rounds),
        bounded=_bounded(items, both),
    )


def _anchored_items(specification: Specification, before: Remembering) -> list[tuple[Any, bool]]:
    """Goal, what is watched, constraints on outputs and held-out twins, anchored; and whether each is held out."""
    here = [specification.goal, *specification.watch, *specification.on_outputs]
    items = [(item, False) for item in here] + [(item, True) for item in specification.held_out]
    return [(anchor(item, before), held_out) for item, held_out in items]


def _distinct(found: Sequence[Any]) -> tuple[Any, ...]:
    """Without those that show the same numbers under another name; repair data and held-out data of a name together."""
    kept: dict[Any, Any] = {}
    for one in found:
        kept.setdefault((one.held_out, one.quantity, one.before.tobytes(), one.after.tobytes()), one)
    names = list(dict.fromkeys((one.name, one.quantity) for one in kept.values()))
    return tuple(sorted(kept.values(), key=lambda one: names.index((one.name, one.quantity))))


def _group_rates(items: Sequence[tuple[Any, bool]], both: Both) -> list[Rates]:
    """Favorable rate of each group, of everything that compares groups."""
    found: list[Rates] = []
    for item, held_out in items:
        compared: Any = measured(item)
        if not isinstance(compared, GroupRates) or not isinstance(compared, Detailed):
            continue
        details = [compared.details(predict) for predict in both]
        names = [key for key in details[0] if key.startswith(RATE)]
        before, after = (np.array([one[name] for name in names]) for one in details)
        counts = compared.compared(both[1])[1].flatten().tolist()
        ends = [rate_interval(round(r * n), n, 0.95) for r, n in zip(after, counts, strict=True)]
        low, high = np.array([end.low for end in ends]), np.array([end.high for end in ends])
        groups = tuple(name.removeprefix(RATE) for name in names)
        found.append(Rates(compared.name, held_out, "favorable rate", groups, before, after, low, high))
    return found


def _recalls(verification: Verification) -> list[Rates]:
    """Recall of each class, of every labelled set."""
    found = []
    for counts in verification.labels:
        if not 1 < len(counts.recall) <= CLASSES:
            continue
        before, after = (np.array([pair[k] for pair in counts.recall.values()]) for k in (0, 1))
        none = np.full(len(before), math.nan)
        groups = tuple(f"class {label}" for label in counts.recall)
        found.append(Rates(counts.name, counts.held_out, "recall", groups, before, after, none, none))
    return found


def _label_margins(items: Sequence[tuple[Any, bool]], both: Both) -> list[Margins]:
    """Lead of the true label over the best rival, of every labelled set."""
    found, seen = [], set()
    for item, held_out in items:
        for inputs, labels in labelled_data([measured(item)]):
            if identity(inputs) in seen:
                continue
            seen.add(identity(inputs))
            leads = [_lead(predict(inputs), labels) for predict in both]
            found.append(Margins(item.name, held_out, "lead of the true label, logits", *leads))
    return found


def _lead(outputs: Tensor, labels: Tensor) -> Any:
    own = labels.to(outputs.device)[:, None]
    rivals = outputs.scatter(1, own, -math.inf).amax(1)
    return (outputs.gather(1, own)[:, 0] - rivals).double().cpu().numpy()


def _robustness(items: Sequence[tuple[Any, bool]], both: Both) -> list[Margins]:
    """Certified radii, and leads under attack."""
    found = []
    for item, held_out in items:
        prop: Any = measured(item)
        if isinstance(prop, Certified):
            old, new = (prop.radii(predict).double().cpu().numpy() for predict in both)
            found.append(Margins(prop.name, held_out, "certified radius", old, new, threshold=1 / prop.target))
        elif isinstance(prop, Attacked):
            old, new = (prop.attacked(predict)[1].double().cpu().numpy() for predict in both)
            found.append(Margins(prop.name, held_out, "lead under attack, logits", old, new))
    return found


def _slacks(verification: Verification) -> list[Margins]:
    """Room of each constraint, its least for each sample."""
    found = []
    for check in verification.checks:
        if len(check.after) < 2 or not check.applied:
            continue
        rows = check.applied if check.unit == "samples" else len(check.after)
        before, after = (side.reshape(rows, -1).min(axis=1) for side in (check.before, check.after))
        quantity = "room to the constraint, logits" if check.unit == "samples" else "room to the constraint"
        allowed = -1 if check.soft else check.allowed
        found.append(Margins(check.constraint, check.held_out, quantity, before, after, allowed=allowed))
    return found


def _layer(name: str, change: Tensor, original: nn.Module) -> LayerChange:
    """The change of a parameter over its rms, at most 64 x 64 cells."""
    base = dict(original.named_parameters())[name].detach().double().cpu()
    moved = change.detach().double().cpu()
    size = float(base.norm())
    rms = size / math.sqrt(base.numel()) or 1.0
    matrix = (moved / rms).reshape(moved.shape[0], -1) if moved.ndim > 1 else (moved / rms).reshape(1, -1)
    relative = float(moved.norm()) / size if size else math.inf * float(moved.norm() > 0)
    return LayerChange(name, tuple(change.shape), int((moved != 0).sum()), relative, _coarse(matrix.numpy()))


def _coarse(matrix: Any) -> Any:
    """At most 64 x 64 cells; each shows the entry of largest size among those that it stands for."""
    for axis in (0, 1):
        count = matrix.shape[axis]
        if count > CELLS:
            parts = np.array_split(matrix, CELLS, axis=axis)
            largest = [np.abs(part).argmax(axis=axis, keepdims=True) for part in parts]
            kept = [np.take_along_axis(part, ix, axis=axis) for part, ix in zip(parts, largest, strict=True)]
            matrix = np.concatenate(kept, axis=axis)
    return matrix


def _progress(verification: Verification, rounds: Sequence[Any]) -> Progress | None:
    goal = verification.measures[0]
    if not rounds:
        return None
    values = np.array([goal.before, *(one.goal for one in rounds)], dtype=np.float64)
    broken = np.array([-1, *(one.broken for one in rounds)])
    accepted = np.array([True, *(one.accepted for one in rounds)])
    return Progress(values, broken, accepted, math.nan if goal.target is None else goal.target, goal.name)


def _bounded(items: Sequence[tuple[Any, bool]], both: Both) -> tuple[tuple[str, bool, float, float, float], ...]:
    found = []
    for item, held_out in items:
        if isinstance(item, PropertyBound) and item.limit is not None:
            with torch.no_grad():
                before, after = (float(item.property.value(predict)) for predict in both)
            found.append((item.name, held_out, before, after, float(item.limit)))
    return tuple(found)
