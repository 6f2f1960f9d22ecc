"""DISTRREP: each kind of misclassification is patched by itself, and the patches are merged by their risk."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from repairopt.errors import SpecificationError
from repairopt.methods.material import Material, material_of
from repairopt.methods.outcome import Outcome
from repairopt.methods.settings import Expected, check_settings
from repairopt.methods.task import Task
from repairopt.network import Array
from repairopt.program import Status

from .arachne import Arachne
from .part import Pair, Part
from .particles import Particles

Kind = tuple[int, int]  # true class, predicted class
MIDDLE, SPREAD = 0.5, 0.125  # of the coefficients at the start


@dataclass(frozen=True, kw_only=True)
class DistrRep:
    """Each pair of a true and a predicted class is patched by Arachne, then a swarm merges the patches by their risk.

    A coefficient from 0 to 1 for each patch says how far its own weights go from the lesser of patched and original
    value to the greater; a weight that several patches share has a coefficient of its own, between the least and the
    greatest of all its values. The score to be large is the mean precision of the classes minus half the mean rate of
    the patched misclassifications, both weighted.

    Attributes:
        importance: Weight of each class, by number; classes that are not named get 0. None for equal ones.
        risks: Weight of each pair ``(true, predicted)``; only these are patched. None for all pairs that fail, equal.
        pairs: At most so many pairs, those with the largest risk and of these with the most rows.
        patcher: Searches for the patch of a pair.
        particles: Size of the swarm that merges.
        iterations: At most so many of its moves.

    References:
        Calsi, Duran, Laurent, Zhang, Arcaini and Ishikawa, Distributed Repair of Deep Neural Networks, ICST 2023. The
        swarm that merges has the constants of Arachne, version 1, which the search for patches has too where
        ``patcher`` says so; the default is version 2.
    """

    uses: ClassVar[frozenset[str]] = frozenset({"weights"})
    default_weights: ClassVar[str] = "all"
    systems: ClassVar[Mapping[str, Mapping[str, Any]]] = {"DISTRREP (DTR)": {}}

    importance: Mapping[int, float] | None = None
    risks: Mapping[Kind, float] | None = None
    pairs: int | None = None
    patcher: Arachne = field(default_factory=Arachne)
    particles: int = 100
    iterations: int = 100

    def __post_init__(self) -> None:
        counts = {"iterations": Expected(low=1, whole=True), "pairs": Expected(low=1, whole=True, none=True)}
        check_settings(self, {**counts, "particles": Expected(low=2, whole=True)})
        for name, given in (("importance", self.importance), ("risks", self.risks)):
            good = isinstance(given, Mapping) and given and all(map(Expected().fits, given.values()))
            if given is not None and not good:
                raise SpecificationError(f"method DistrRep: {name}={given!r}; expected weights of 0 or more, some.")

    def run(self, task: Task) -> Outcome:
        """Patch each pair, then merge."""
        rows = material_of(task)
        kinds = self._kinds(task, rows)
        places, values = self._patches(task, rows, kinds)
        part, spans, which = _spans(task, places, values)
        every = tuple(torch.cat(parts) for parts in zip(rows.failing, rows.passing, strict=True))
        score = self._score(task, kinds, (every[0], every[1]))

        def change(coefficients: Array) -> Array:
            low, high = spans
            found: Array = low + coefficients[:, which] * (high - low)
            return found

        def rate(coefficients: Array) -> Array:
            cost = -part.rate(score, change(np.clip(coefficients, 0, 1)))
            outside = ((coefficients < 0) | (coefficients > 1)).any(1)
            return np.where(outside, 1.0, cost)  # a score of -1

        def found(step: int, place: Array, cost: float) -> None:
            task.log.last = (0, len(place), None)
            judged = task.judge.keep(part.widen(change(np.clip(place, 0, 1)[None])[0]))
            task.record(f"merge, move {step}", judged, note=f"score {-cost:.4g}")

        draw = np.random.default_rng(task.seed)
        start = draw.normal(MIDDLE, SPREAD, (self.particles, int(which.max()) + 1))
        rules = Particles(iterations=self.iterations, patience=10, slowest=0.2, fastest=5.0, stops=False)
        best, _ = rules.move(rate, start, draw, found=found, check=task.judge.check_time)
        merged = part.widen(change(np.clip(best, 0, 1)[None])[0])
        return Outcome(merged, Status.FEASIBLE, on_target=True, indivisible=True)

    def _kinds(self, task: Task, rows: Material) -> dict[Kind, Tensor]:
        """The pairs to patch, each with which of the failing rows are of it."""
        predicted = task.engine.predict()(rows.failing[0]).argmax(1)
        pairs = torch.stack([rows.failing[1], predicted], 1)
        found: dict[Kind, Tensor] = {
            (int(t), int(p)): (pairs == torch.stack([t, p])).all(1) for t, p in pairs.unique(dim=0)
        }
        if self.risks is not None:
            found = {kind: own for kind, own in found.items() if self.risks.get(kind, 0.0) > 0}
        if not found:
            raise SpecificationError(f"method DistrRep: no failing row is of a pair in risks={self.risks!r}.")
        order = sorted(found, key=lambda kind: (-(self.risks or {}).get(kind, 1.0), -int(found[kind].sum()), kind))
        return {kind: found[kind] for kind in order[: self.pairs]}

    def _patches(self, task: Task, rows: Material, kinds: dict[Kind, Tensor]) -> tuple[list[Any], list[Array]]:
        """For each pair the places of its weights among all, and their changes; a pair without weights is left out."""
        places, values = [], []
        for (true, predicted), own in kinds.items():
            task.judge.check_time()
            failing = (rows.failing[0][own], rows.failing[1][own])
            own_rows, of = replace(rows, failing=failing), f" for {true} taken for {predicted}"
            part, change = self.patcher.search(task, own_rows, of)
            places.append(part.places)
            values.append(change)
        return places, values

    def _score(self, task: Task, kinds: dict[Kind, Tensor], rows: Pair) -> Any:
        classes = int(task.engine.predict()(rows[0][:1]).shape[1])
        labels = torch.nn.functional.one_hot(rows[1].long(), classes).double()
        weight = torch.tensor([1.0 if self.importance is None else self.importance.get(k, 0.0) for k in range(classes)])
        weight = (weight / weight.sum().clamp(min=1e-300)).double().to(labels.device)
        risk = torch.zeros(classes, classes, dtype=torch.float64)
        for kind in kinds:
            risk[kind] = 1.0 if self.risks is None else self.risks[kind]
        risk = (risk / risk.sum()).to(labels.device)

        def score(predict: Any) -> Tensor:
            outputs = predict(rows[0])
            given = (outputs.argmax(1)[:, None] == torch.arange(classes, device=outputs.device)).double()
            counts = labels.T @ given  # true by predicted
            precision = counts.diagonal() / counts.sum(0).clamp(min=1.0)
            rates = counts / counts.sum(1, keepdim=True).clamp(min=1.0)
            return (weight * precision).sum() - 0.5 * (risk * rates).sum()

        return score


def _spans(task: Task, places: list[Any], values: list[Array]) -> tuple[Part, tuple[Array, Array], Any]:
    """All weights that patches change, the least and greatest change of each, and the number of its coefficient."""
    union = np.unique(np.concatenate(places))
    table = np.full((len(places), len(union)), np.nan)
    for k, (place, change) in enumerate(zip(places, values, strict=True)):
        table[k, np.searchsorted(union, place)] = change
    low, high = np.minimum(np.nanmin(table, 0), 0.0), np.maximum(np.nanmax(table, 0), 0.0)
    patched = ~np.isnan(table)
    shared = patched.sum(0) > 1
    which = patched.argmax(0)
    which[shared] = len(places) + np.arange(int(shared.sum()))
    chosen, start = {}, 0
    for name, own in task.engine.indices.items():
        inside = union[(union >= start) & (union < start + len(own))] - start
        if len(inside):
            chosen[name] = own.cpu()[torch.as_tensor(inside)]
        start += len(own)
    return Part.of(task, chosen, "method DistrRep"), (low, high), np.unique(which, return_inverse=True)[1]
