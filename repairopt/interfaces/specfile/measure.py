"""Measure claims on the true networks, run as plain torch modules, without any of the code that solves."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from repairopt.errors import ModelError, RepairError, public
from repairopt.interfaces.specfile.language.bind import BoundStatement
from repairopt.network import Reading
from repairopt.specify import (
    ROUNDING,
    SHARE_ROUNDING,
    Constraint,
    Statistical,
    anchor,
    is_weighted,
    labels_of,
    rows_left_out,
    sample_count,
    tolerance_of,
)

from .claim_rows import ClaimRow
from .opened import OpenSpec

BATCH = 4096

Weights = Mapping[str, Tensor]


class PlainNetwork:
    """A network as a function of its inputs; it is copied, and each set of inputs is run once."""

    def __init__(self, model: nn.Module, outputs: str = "auto") -> None:
        self.network, self.read = copy.deepcopy(model).eval(), Reading(None, outputs)
        self.parameters: dict[str, Tensor] = {}
        self._known: dict[tuple[Any, ...], tuple[Tensor, Tensor]] = {}

    def __call__(self, inputs: Tensor) -> Tensor:
        """Outputs ``(N, k)``."""
        key = (inputs.data_ptr(), inputs.shape, inputs.stride(), inputs.dtype)
        if key not in self._known:
            self._known[key] = (inputs, self._run(inputs))  # the inputs too, so that their memory is not used again
        return self._known[key][1]

    def _run(self, inputs: Tensor) -> Tensor:
        device = next((p.device for p in self.network.parameters()), torch.device("cpu"))
        try:
            with torch.no_grad():
                parts = [self.read(self.network, part.to(device, copy=True)).cpu() for part in inputs.split(BATCH)]
        except RepairError:
            raise
        except Exception as error:  # forward is the user's; a program of torch.export asserts the shape of its inputs
            raise ModelError(
                f"model {type(self.network).__name__}: cannot take inputs of shape {tuple(inputs.shape)} ({error}). "
                f"Look at inputs or array in the spec."
            ) from error
        outputs = torch.cat(parts)
        if outputs.ndim != 2 or not bool(torch.isfinite(outputs).all()):
            raise ModelError(
                f"model {type(self.network).__name__}: gave outputs of shape {tuple(outputs.shape)}, or NaN; expected "
                f"finite logits (N, k)."
            )
        return outputs


@public
def measure_claims(
    spec: OpenSpec,
    model: nn.Module | None = None,
    *,
    location: Mapping[str, list[int]] | None = None,
    network: PlainNetwork | None = None,
    tell: Callable[[str, float], None] = lambda text, share: None,
) -> list[ClaimRow]:
    """Every goal, bound and watched measure of a spec, on the rows of the repair and on held-out ones.

    ``model`` is judged, the spec's where it is None. ``location`` has the positions of the weights that could change,
    by parameter: for bounds by ``linear_rows``. ``network`` is that of ``model``, where it has run on rows already.
    ``tell`` is called after each claim with its name, and the share of the claims that are measured.
    """
    outputs = spec.file.spec.model.outputs
    before = PlainNetwork(spec.model, outputs)
    after = network or (before if model is None else PlainNetwork(model, outputs))
    changed = (spec.model, spec.model if model is None else _unwrapped(model, spec.model))
    found, bounds = [], [bound.statement for bound in spec.bounds]
    for item in spec.statements:
        role = "wish" if item.wish else "bound" if item.statement in bounds else "watch"
        role = "goal" if spec.goal is not None and item.statement is spec.goal.statement else role
        found.append(_claim(item, role, (before, after), changed, location, spec.file.spec.confidence))
        tell(item.statement.name, len(found) / len(spec.statements))
    found.sort(key=lambda claim: claim.role == "watch")
    return found


def measure_accuracy(spec: OpenSpec, predict: PlainNetwork) -> dict[str, tuple[float, float]]:
    """Of each set with labels the share that a network gets right, and that of the most frequent label alone."""
    found = {}
    for name, rows in spec.data.sets.items():
        if rows.labels is None or not len(rows):
            continue
        outputs = predict(rows.inputs)
        if outputs.shape[1] > 1:
            if int(rows.labels.max()) >= outputs.shape[1]:
                reason = (
                    f"label {int(rows.labels.max())} of '{name}' is none of the network's {outputs.shape[1]} classes"
                )
                raise spec.file.fail(("label",), f"{reason}, which count from 0")
            weight = torch.ones(len(rows), dtype=torch.float64) if rows.weights is None else rows.weights.double()
            right = float((weight * (outputs.argmax(1) == rows.labels)).sum() / weight.sum())
            found[name] = right, float(torch.bincount(rows.labels, weight).max() / weight.sum())
    return found


def became_constant(spec: OpenSpec, model: nn.Module) -> bool:
    """Whether a network gives all rows one class, which is not the label of all, and that of the spec does not."""
    return model is not spec.model and _gives_one_class(spec, model) and not _gives_one_class(spec, spec.model)


def _gives_one_class(spec: OpenSpec, model: nn.Module) -> bool:
    predict = PlainNetwork(model, spec.file.spec.model.outputs)
    sets = [rows for rows in spec.data.sets.values() if len(rows)]
    outputs = [predict(rows.inputs) for rows in sets]
    if not outputs or any(found.shape[1] < 2 for found in outputs):
        return False
    given = {int(answer) for found in outputs for answer in found.argmax(1).unique()}
    wanted = {int(label) for rows in sets if rows.labels is not None for label in rows.labels.unique()}
    return len(given) == 1 and wanted != given


def _unwrapped(model: nn.Module, original: nn.Module) -> nn.Module:
    """The network whose weights are compared with the original's: of a wrapped one the network inside."""
    names = {name for name, _ in original.named_parameters()}
    inside = getattr(model, "network", None)
    if isinstance(inside, nn.Module) and {name for name, _ in model.named_parameters()} != names:
        return _unwrapped(inside, original)
    return model


def _claim(
    item: BoundStatement,
    role: str,
    both: tuple[PlainNetwork, PlainNetwork],
    changed: tuple[nn.Module, nn.Module],
    location: Mapping[str, list[int]] | None,
    confidence: float,
) -> ClaimRow:
    statement = item.statement
    entry: dict[str, Any] = {"before": None, "value": None, "basis": "counted on the true network"}
    if item.is_property:
        prop = anchor(item.item, both[0])
        entry["before"], entry["value"] = (item.shown(float(prop.value(network))) for network in both)
        entry |= _interval(item, prop, both[1], confidence)
    elif isinstance(item.item, Constraint):
        constraint = anchor(item.item, both[0])
        entry["before"], entry["value"] = (_of_rows(item, constraint, network) for network in both)
    else:
        entry |= _of_change(item, changed, location)
    bounds = statement.bounds
    counted = item.is_property or labels_of(item.item) is not None
    close = SHARE_ROUNDING if item.data and counted else ROUNDING
    met = None
    if bounds and role in ("goal", "bound") and entry["value"] is not None:
        met = all(_holds(entry["value"], relation, limit, close) for relation, limit in bounds)
    elif not statement.measure.relations and not item.is_property and not item.wish and entry["value"] is not None:
        met = entry["value"] <= ROUNDING
    for key, value in entry.items():
        entry[key] = None if isinstance(value, float) and not math.isfinite(value) else value
    shown = None
    if entry.get("low") is not None and bounds:
        relation, limit = bounds[0]
        shown = bool(entry["low"] >= limit if relation == ">=" else entry["high"] <= limit)
    left_out = rows_left_out(item.item)
    return ClaimRow(
        text=statement.text,
        name=statement.name,
        role=role,  # type: ignore[arg-type]
        data=item.data,
        bound=", ".join(f"{relation} {limit:g}" for relation, limit in bounds) or None,
        unit=statement.measure.unit,
        met=met,
        rows=None if item.rows is None else len(item.rows) - left_out,
        left_out=left_out,
        **entry,
        shown=shown,
    )


def _holds(value: float, relation: str, limit: float, close: float) -> bool:
    room = close * (1 + abs(limit))
    return value >= limit - room if relation == ">=" else value <= limit + room


def _interval(item: BoundStatement, prop: Any, network: PlainNetwork, confidence: float) -> dict[str, Any]:
    if not isinstance(prop, Statistical):
        return {}
    found = prop.interval(network, 2.0 * confidence - 1.0)
    ends = sorted((item.shown(float(found.low)), item.shown(float(found.high))))
    basis = f"counted on the true network; interval: {found.method}"
    if is_weighted(prop):
        basis = f"counted by weight on the true network; interval: {found.method} of {found.count} effective rows"
    return {"low": ends[0], "high": ends[1], "confidence": confidence, "basis": basis}


def _of_rows(item: BoundStatement, constraint: Any, network: PlainNetwork) -> float:
    """For labels the number of rows that fail; for outputs the value of the row that decides."""
    margins = constraint.margins(network).detach().double().cpu().numpy()
    count = sample_count(constraint)
    by_row = margins.reshape(count, -1) if count else np.zeros((0, 1))
    if labels_of(constraint) is not None or not item.statement.bounds:
        return float((by_row < 0).any(axis=1).sum())
    allowed = int(math.floor(tolerance_of(constraint) * count + 1e-9))
    worst = by_row.min(axis=1)
    row = np.argsort(worst, kind="stable")[allowed] if allowed < count else worst.argmax()
    bounds = item.statement.bounds
    relation, limit = bounds[0]
    margin = by_row[row, 0] if len(bounds) == by_row.shape[1] else worst[row]
    return float(limit - margin if relation == "<=" else limit + margin)


def _of_change(
    item: BoundStatement, changed: tuple[nn.Module, nn.Module], location: Mapping[str, list[int]] | None
) -> dict[str, Any]:
    """Largest change, absolute or relative, or by how much the user's own rows are missed."""
    old, new = (dict(model.named_parameters()) for model in changed)
    if item.by_location and location is None:
        return {"basis": "not measured: the order of the weights is known to the repair alone"}
    chosen = location if item.by_location and location is not None else dict.fromkeys(old)
    sides = []
    for side in (old, new):
        flat = {name: side[name].detach().double().cpu().flatten() for name in chosen}
        parts = [flat[name] if ix is None else flat[name][torch.as_tensor(ix)] for name, ix in chosen.items()]
        sides.append(torch.cat(parts).numpy())
    read = item.statement.measure.read
    value = None if read is None else read(item.item, sides[0], sides[1] - sides[0])
    if item.by_location:
        return {"before": None, "value": value, "basis": "largest violation of a row, recomputed"}
    return {"before": 0.0, "value": value, "basis": "from the weights"}
