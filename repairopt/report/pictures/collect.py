"""Collect what the pictures show: both networks run over the data of goal, constraints and held-out twins."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from repairopt import specify
from repairopt.network import ForwardFunction, Remembering, identity
from repairopt.program import ProofVerdict, RegionProof
from repairopt.verify import Verification, both_networks, runner_of

from .evidence import RATE, AffectedInputs, Evidence, GroupTable, LayerChange, Margins, Progress, Rates, RegionMap
from .region_maps import map_region

CELLS = 64  # rows and columns of a heat map
CLASSES = 20  # up to which the recall of each is shown
AFFECTED, SETS = 12, 4  # inputs of a set, sets
FEW, MOST_NUMBERS = 100, 2**22  # inputs that are kept of any size, and numbers of all that are kept
MAPS, FEW_INPUTS = 3, 20  # slices of regions, and inputs up to which one tells something
DISPARITIES = ("demographic_parity_difference", "equalized_odds_difference", "equal_opportunity_difference")
Items = Sequence[tuple[Any, bool]]  # anchored properties and constraints, and whether each is held out
Both = tuple[Remembering, Remembering]  # the networks before and after


@dataclass(frozen=True, eq=False)
class ReportSources:
    """The networks, the change of each parameter and the specification that a report is about; nothing is copied."""

    original: nn.Module
    repaired: nn.Module
    delta: dict[str, Tensor]
    specification: specify.Specification
    forward_fn: ForwardFunction | None = None
    memory_limit: int = 2**30


def collect_evidence(
    sources: ReportSources, verification: Verification, plain: dict[str, Any], *, affected: int = AFFECTED
) -> Evidence:
    """Run both networks and note what the pictures show.

    ``plain`` is the report as a dict, ``affected`` how many inputs of a set are kept.
    """
    options: Any = {"forward_fn": sources.forward_fn, "memory_limit": sources.memory_limit}
    both = both_networks(sources.original, sources.repaired, **options)
    items = _anchored_items(sources.specification, both[0])
    known = evidence_from_dict(plain)
    return Evidence(
        rates=_distinct([*_group_rates(items, both), *(one for one in known.rates if one.quantity == "recall")]),
        margins=_distinct([*_label_margins(items, both), *_robustness(items, both)]),
        slacks=_distinct(_slacks(verification)),
        layers=tuple(_layer(name, change, sources.original) for name, change in sources.delta.items()),
        affected=_most_affected(items, both, affected),
        tables=_group_tables(items, both),
        progress=known.progress,
        bounded=_bounded(items, both),
    )


def map_regions(sources: ReportSources, proof: RegionProof, verdict: ProofVerdict) -> tuple[RegionMap, ...]:
    """Slices of the first regions of a proof of boxes, where inputs are few and at least two of them vary."""
    varied = [int((upper > lower).sum()) for lower, upper in zip(proof.lower, proof.upper, strict=True)]
    shown = [box for box, count in enumerate(varied) if 2 <= count <= FEW_INPUTS][:MAPS]
    if not shown or sources.forward_fn is not None or proof.vertices is not None:
        return ()
    before, after = (runner_of(one, proof.shape) for one in (sources.original, sources.repaired))
    return tuple(map_region(before, after, proof, verdict, box=box) for box in shown)


def evidence_from_dict(plain: dict[str, Any]) -> Evidence:
    """The part of the evidence that a report as a dict holds, without samples, weights and inputs."""
    rates = []
    for one in plain["measures"]:
        pairs = {key.removeprefix(RATE): pair for key, pair in one["details"].items() if key.startswith(RATE)}
        rates += [_plain_rates(one, "favorable rate", pairs)] if pairs else []
    for one in plain["labels"]:
        pairs = {f"class {label}": pair for label, pair in one["recall"].items()}
        rates += [_plain_rates(one, "recall", pairs)] if 1 < len(pairs) <= CLASSES else []
    return Evidence(rates=tuple(rates), progress=_progress(plain["measures"][0], plain["rounds"]))


def _plain_rates(of: dict[str, Any], quantity: str, pairs: dict[str, Any]) -> Rates:
    before, after = (np.array([pair[k] for pair in pairs.values()], dtype=np.float64) for k in (0, 1))
    none = np.full(len(pairs), math.nan)
    return Rates(of["name"], of["held_out"], quantity, tuple(pairs), before, after, none, none)


def _progress(goal: dict[str, Any], rounds: Sequence[dict[str, Any]]) -> Progress | None:
    if not rounds:
        return None
    values = [goal["before"], *(one["goal"] for one in rounds), goal["target"]]
    *shown, target = (math.nan if value is None else value for value in values)
    broken, accepted = [-1, *(one["broken"] for one in rounds)], [True, *(one["accepted"] for one in rounds)]
    return Progress(np.array(shown, dtype=np.float64), np.array(broken), np.array(accepted), target, goal["name"])


def _anchored_items(specification: specify.Specification, before: Remembering) -> Items:
    """Goal, what is watched, constraints on outputs and held-out twins, anchored; and whether each is held out."""
    here = [specification.goal, *specification.watch, *specification.on_outputs]
    items = [(item, False) for item in here] + [(item, True) for item in specification.held_out]
    return [(specify.anchor(item, before), held_out) for item, held_out in items]


def _distinct(found: Sequence[Any]) -> tuple[Any, ...]:
    """Without those that show the same numbers under another name; repair data and held-out data of a name together."""
    kept: dict[Any, Any] = {}
    for one in found:
        kept.setdefault((one.held_out, one.quantity, one.before.tobytes(), one.after.tobytes()), one)
    names = list(dict.fromkeys((one.name, one.quantity) for one in kept.values()))
    return tuple(sorted(kept.values(), key=lambda one: names.index((one.name, one.quantity))))


def _group_rates(items: Items, both: Both) -> list[Rates]:
    """Favorable rate of each group, of everything that compares groups."""
    found: list[Rates] = []
    for item, held_out in items:
        compared: Any = specify.measured(item)
        if isinstance(compared, specify.GroupRates) and isinstance(compared, specify.Detailed):
            details = [compared.details(predict) for predict in both]
            names = [key for key in details[0] if key.startswith(RATE)]
            before, after = (np.array([one[name] for name in names]) for one in details)
            counts = compared.compared(both[1])[1].flatten().tolist()
            ends = [specify.rate_interval(round(r * n), n, 0.95) for r, n in zip(after, counts, strict=True)]
            low, high = np.array([(end.low, end.high) for end in ends]).T
            groups = tuple(name.removeprefix(RATE) for name in names)
            found.append(Rates(compared.name, held_out, "favorable rate", groups, before, after, low, high))
    return found


def _label_margins(items: Items, both: Both) -> list[Margins]:
    """Lead of the true label over the best rival, of every labelled set."""
    found: dict[Any, Margins] = {}
    for item, held_out in items:
        for inputs, labels in specify.labelled_data([specify.measured(item)]):
            if identity(inputs) not in found:
                leads = [_lead(predict(inputs), labels) for predict in both]
                found[identity(inputs)] = Margins(item.name, held_out, "lead of the true label, logits", *leads)
    return list(found.values())


def _lead(outputs: Tensor, labels: Tensor) -> Any:
    own = labels.to(outputs.device)[:, None]
    rivals = outputs.scatter(1, own, -math.inf).amax(1)
    return (outputs.gather(1, own)[:, 0] - rivals).double().cpu().numpy()


def _robustness(items: Items, both: Both) -> list[Margins]:
    found = []
    for item, held_out in items:
        prop: Any = specify.measured(item)
        if isinstance(prop, specify.Certified):
            old, new = (prop.radii(predict).double().cpu().numpy() for predict in both)
            found.append(Margins(prop.name, held_out, "certified radius", old, new, threshold=1 / prop.target))
        elif isinstance(prop, specify.Attacked):
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


def _group_tables(items: Items, both: Both) -> tuple[GroupTable, ...]:
    """Metrics in each group for every gap whose rows have true labels, each division into groups once."""
    labelled = specify.labelled_data([specify.measured(item) for item, _ in items])
    found: dict[Any, GroupTable] = {}
    for item, held_out in items:
        gap: Any = specify.measured(item)
        if not isinstance(gap, specify.Grouped) or gap.samples.rows is None:
            continue
        samples, favorable = gap.samples, gap.favorable
        labels = _labels(gap, labelled)
        key = (held_out, samples.names, favorable, tuple(samples.rows[:50].tolist()), len(samples.rows))
        if labels is None or key in found or not bool((labels == favorable).any()):
            continue
        member = samples.member.cpu().numpy()
        answers = [predict(samples.inputs).argmax(1).cpu().numpy() for predict in both]
        own: Any = {"pos_label": favorable, "sample_weight": getattr(gap, "sample_weight", None)}
        sides = [specify.GroupMetrics(labels.cpu().numpy(), answer, member, **own) for answer in answers]
        before, after = (np.array([list(values.values()) for values in one.by_group.values()]).T for one in sides)
        disparities = [[float(getattr(one, name)()) for name in DISPARITIES] for one in sides]
        gaps = dict(zip((name.replace("_", " ") for name in DISPARITIES), zip(*disparities, strict=True), strict=True))
        groups = tuple(samples.names[group] for group in sides[0].groups)
        metrics = tuple(sides[0].metrics)
        found[key] = GroupTable(gap.name, held_out, favorable, groups, metrics, before, after, gaps)
    return tuple(found.values())


def _labels(gap: Any, labelled: Sequence[tuple[Tensor, Tensor]]) -> Tensor | None:
    """True labels of the rows of a gap: its own, or those that stand beside the same rows elsewhere."""
    own = specify.labels_of(gap)
    if own is not None:
        return own[1]
    rows = gap.samples.rows
    for inputs, labels in labelled:
        if inputs.shape[1:] == gap.samples.inputs.shape[1:] and int(rows.max()) < len(inputs):
            same = inputs[rows.to(inputs.device)]
            if same.device == gap.samples.inputs.device and torch.equal(same, gap.samples.inputs):
                return labels[rows.to(labels.device)]
    return None


def _most_affected(items: Items, both: Both, most: int) -> tuple[AffectedInputs, ...]:
    """For each set of inputs those whose probabilities moved most, changed answers first."""
    found: list[AffectedInputs] = []
    seen: set[Any] = set()
    for name, held_out, inputs, labels in _sets(items):
        if identity(inputs) in seen or len(found) == SETS:
            continue
        seen.add(identity(inputs))
        before, after = (torch.softmax(predict(inputs).double(), dim=1).cpu() for predict in both)
        shift = (after - before).abs().sum(1) / 2
        answers = before.argmax(1), after.argmax(1)
        rank = shift + 2.0 * (answers[0] != answers[1])
        fits = max(FEW, MOST_NUMBERS // max(1, inputs[:1].numel()))
        rows = rank.argsort(descending=True, stable=True)[: min(most, fits)]
        rows = rows[shift[rows] > 1e-6]
        chosen = inputs[rows.to(inputs.device)].detach().cpu().numpy()
        key = (held_out, rows.numpy().tobytes(), chosen.tobytes())
        if len(rows) and key not in seen:
            seen.add(key)
            known = np.full(len(rows), -1) if labels is None else labels.cpu()[rows].numpy()
            old, new = (answer[rows].numpy() for answer in answers)
            found.append(AffectedInputs(name, held_out, rows.numpy(), chosen, known, old, new, shift[rows].numpy()))
    return tuple(found)


def _sets(items: Items) -> list[tuple[str, bool, Tensor, Tensor | None]]:
    """Name, whether held out, inputs and labels of the labelled sets, or where there are none of all inputs."""
    found: list[tuple[str, bool, Tensor, Tensor | None]] = []
    for item, held_out in items:
        found += [(item.name, held_out, *pair) for pair in specify.labelled_data([specify.measured(item)])]
    plain = [(item.name, held_out, specify.inputs_of(item)) for item, held_out in items]
    return found or [(name, held_out, inputs, None) for name, held_out, inputs in plain if inputs is not None]


def _layer(name: str, change: Tensor, original: nn.Module) -> LayerChange:
    """The change of a parameter over its rms, at most 64 x 64 cells."""
    moved, size = (
        change.detach().double().cpu(),
        float(dict(original.named_parameters())[name].detach().double().norm()),
    )
    cells = moved / (size / math.sqrt(moved.numel()) or 1.0)
    matrix = cells.reshape(len(cells) if cells.ndim > 1 else 1, -1)
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


def _bounded(items: Items, both: Both) -> tuple[tuple[str, bool, float, float, float], ...]:
    found = []
    for item, held_out in items:
        if isinstance(item, specify.PropertyBound) and item.limit is not None:
            with torch.no_grad():
                before, after = (float(item.property.value(predict)) for predict in both)
            found.append((item.name, held_out, before, after, float(item.limit)))
    return tuple(found)
