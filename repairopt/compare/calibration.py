"""The lead that kept samples need in a repair so that few samples flip that the repair has not seen."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, is_dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from repairopt.errors import SpecificationError, public
from repairopt.methods import SQP, Method
from repairopt.network import Engine, Stop, split_model
from repairopt.pipeline import DEFAULTS, Settings, solve_repair, unless_interrupted, without_former
from repairopt.report import Repair
from repairopt.specify import Folds, KeepLabels, Restrictable, restricted

from .shared_limit import SharedLimit

MARGINS = (0.0, 0.5, 1.0, 2.0, 4.0, 8.0)  # logits


@dataclass(frozen=True)
class TriedMargin:
    """What a margin, in logits, does by cross-validation: share of flips and mean goal (or NaN) on unseen samples."""

    margin: float
    flips: float
    goal: float


@dataclass(frozen=True, eq=False)
class CalibratedMargin:
    """The constraint to repair with, its margin set, and every margin that was tried.

    ``stopped`` is ``"time limit"`` where a repair ended at its share of the time, or a margin was not tried any more.
    """

    keep: KeepLabels
    tried: tuple[TriedMargin, ...]
    stopped: str = ""


@public
def calibrate_margin(
    model: nn.Module,
    goal: Any,
    keep: KeepLabels,
    *,
    limit: float | None = None,
    margins: Sequence[float] = MARGINS,
    folds: int = 3,
    method: str | Method | None = None,
    settings: Settings = DEFAULTS,
    **options: Any,
) -> CalibratedMargin:
    """Set the margin of kept samples by cross-validation.

    For each margin the repair runs on all folds but one and flips are counted on the one.

    Args:
        model: As for :func:`repairopt.solve_repair`.
        goal: As there.
        keep: The samples to keep; its own margin is not read.
        limit: Share of unseen samples that may flip: the smallest margin that stays below is taken. None, and where
            none stays below: the margin with the fewest flips, the smallest of several.
        margins: Margins to try, in logits.
        folds: Number of folds.
        method: As for :func:`repairopt.solve_repair`; None for SQP without buffers.
        settings: As there; the time limit is that of the whole call, whose repairs share what is left evenly. Of a
            margin whose folds were not all repaired nothing is said.
        **options: ``data``, ``held_out``, ``weights`` and former keywords.

    Raises:
        SpecificationError: No margins, fewer than 2 folds, or the time limit ended before one margin was tried.
    """
    if not len(margins) or folds < 2:
        raise SpecificationError(f"calibrate_margin: {len(margins)} margins, {folds} folds; expected 1 and 2 at least.")
    if not is_dataclass(keep) or isinstance(keep, type) or not hasattr(keep, "margin"):
        raise SpecificationError(f"calibrate_margin: keep is a {type(keep).__name__}; expected KeepLabels(...).")
    given = (model, goal, keep, SQP(confidence=None) if method is None else method, settings)
    model, goal, _, chosen, settings, options = without_former(*given, options)
    options |= {"method": chosen}
    shared = SharedLimit(settings)
    division = Folds(folds, settings.seed)
    candidates = [replace(keep, margin=float(margin)) for margin in sorted(set(margins))]
    tried: list[TriedMargin] = []
    for k, candidate in enumerate(candidates):
        try:
            tried.append(_tried(model, goal, candidate, division, options, shared, len(candidates) - k))
        except Stop:
            break
    if not tried:
        raise SpecificationError(
            f"calibrate_margin: its time limit, {settings.time_limit} s, ended before one margin was tried; expected "
            f"time for {folds} repairs at least."
        )
    low = [one for one in tried if limit is not None and one.flips <= limit]
    best = low[0] if low else min(tried, key=lambda one: (one.flips, one.margin))
    return CalibratedMargin(replace(keep, margin=best.margin), tuple(tried), shared.stopped)


def _tried(
    model: nn.Module,
    goal: Any,
    keep: KeepLabels,
    division: Folds,
    options: dict[str, Any],
    shared: SharedLimit,
    to_come: int,
) -> TriedMargin:
    """What a margin does; ``to_come`` margins share the time that is left, this one among them."""
    flipped, right, values = 0, 0, []
    inputs: Tensor = keep.inputs
    module, forward_fn = split_model(model)
    before = Engine(module, forward_fn=forward_fn).predict()
    with torch.no_grad():
        wanted = before(inputs).argmax(-1).cpu()
    kept = wanted == keep.labels.cpu() if keep.reference == "label" else torch.ones(len(wanted), dtype=torch.bool)
    for fold in range(division.count):
        seen = division.outside(fold, inputs)
        own = restricted(goal, partial(division.outside, fold))
        part = keep.on(inputs[seen.to(inputs.device)], keep.labels[seen.to(keep.labels.device)])

        def repair(settings: Settings, own: Any = own, part: Any = part) -> Repair:
            return solve_repair(model, own, [part], settings=settings, **options)

        repaired = unless_interrupted(shared.run(repair, to_come * division.count - fold)).model
        predict = Engine(repaired, forward_fn=forward_fn).predict()
        with torch.no_grad():
            now = predict(inputs).argmax(-1).cpu()
            if isinstance(goal, Restrictable):
                values.append(float(goal.where(lambda x, k=fold: ~division.outside(k, x)).value(predict)))  # type: ignore[misc]
        unseen = kept & ~seen.cpu()
        flipped += int((now != wanted)[unseen].sum())
        right += int(unseen.sum())
    value = sum(values) / len(values) if values else float("nan")
    return TriedMargin(keep.margin, flipped / max(1, right), value)
