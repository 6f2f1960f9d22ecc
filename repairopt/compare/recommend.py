"""Which method to take: the study's table of advice, answered from measured cells."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from repairopt.errors import SpecificationError, public
from repairopt.specify import Divided, Specification, measured

from .cell import CellOutcome
from .comparison import Comparison, find_metric

NEEDS: Mapping[str, str] = {
    "accuracy": "accuracy",
    "repair": "repair_rate",
    "compatibility": "negative_flips",
    "robustness": "attack_success",
    "fairness": "average_odds",
    "time": "cpu_seconds",
}


@dataclass(frozen=True)
class Advice:
    """How well a method serves what is needed.

    Attributes:
        method: Its label.
        letters: By need its letters; a is the best group.
        means: By need its mean, see :meth:`Comparison.means`.
        outcomes: How many of its cells ended in which way.
    """

    method: str
    letters: dict[str, str]
    means: dict[str, float]
    outcomes: dict[str, int]

    @property
    def best_in_all(self) -> bool:
        """Whether it is in the best group of every need, and was measured in every cell."""
        return set(self.outcomes) == {"measured"} and all(letters.startswith("a") for letters in self.letters.values())

    def to_text(self) -> str:
        """One line."""
        told = ", ".join(f"{self._said(need)} (group {letters})" for need, letters in self.letters.items())
        other = ", ".join(f"{count} {name}" for name, count in self.outcomes.items() if name != "measured")
        return f"{self.method}: {told}" + (f"; {other}" if other else "")

    def _said(self, need: str) -> str:
        value = self.means[need]
        return f"{need} {value:{'+' if find_metric(NEEDS[need]).relative else ''}.4g}"


@public
def recommend_methods(comparison: Comparison, *needs: str | Specification) -> list[Advice]:
    """Methods of a comparison, the most advisable first.

    First come those in the best letter group of every need, then by the mean rank over the needs; a method that failed,
    did not fit or corrupted a network anywhere comes after those that did not.

    Args:
        comparison: Measured cells.
        *needs: What counts: ``"accuracy"``, ``"repair"``, ``"compatibility"``, ``"robustness"``, ``"fairness"``,
            ``"time"``, or a specification, whose goal and bounds say it; by default repair and compatibility.

    Raises:
        SpecificationError: A need is unknown, or the comparison has no figures of it.

    References:
        A Comprehensive Study of Deep Learning Model Fixing Approaches, recommendations for practitioners.
    """
    wanted = dict.fromkeys(name for need in needs or ("repair", "compatibility") for name in _named(need))
    letters, means = {}, {}
    for need in wanted:
        metric = find_metric(NEEDS[need])
        letters[need] = comparison.letters(metric.name)
        means[need] = comparison.means(metric.name)
        if not means[need]:
            raise SpecificationError(f"need {need!r}: the comparison has no figures of {metric.title} ({metric.name}).")
    found = []
    for method in comparison.methods:
        ends = [str(cell.outcome) for cell in comparison.cells if cell.method == method]
        counted = {str(one): ends.count(str(one)) for one in CellOutcome if str(one) in ends}
        if all(method in means[need] for need in wanted):
            own = {need: letters[need][method] for need in wanted}
            found.append(Advice(method, own, {need: means[need][method] for need in wanted}, counted))
    ranks = {need: _ranks(means[need], find_metric(NEEDS[need]).better) for need in wanted}

    def order(one: Advice) -> tuple[bool, bool, float]:
        rank = float(np.mean([ranks[need][one.method] for need in wanted]))
        return set(one.outcomes) != {"measured"}, not one.best_in_all, rank

    return sorted(found, key=order)


def _ranks(means: Mapping[str, float], better: int) -> dict[str, int]:
    order = sorted(means, key=lambda name: -better * means[name])
    return {name: k for k, name in enumerate(order)}


def _named(need: Any) -> list[str]:
    """The needs that a name or a specification stands for."""
    if isinstance(need, Specification):
        items = [measured(one) for one in (need.goal, *need.constraints)]
        return [name for item in items for name in _needs_of(item)] or ["repair"]
    if need not in NEEDS:
        raise SpecificationError(f"need {need!r}: choose among {', '.join(NEEDS)}, or pass a Specification.")
    return [need]


def _needs_of(item: Any) -> list[str]:
    names = {measure.name for measure in getattr(type(item), "measures", ())}
    if isinstance(item, Divided):
        return ["fairness"]
    if names & {"attack_error", "attack_success", "certified_radius"}:
        return ["robustness"]
    if names & {"flip_rate", "flips"}:
        return ["compatibility"]
    return ["repair"] if names & {"error_rate", "repair_rate", "unfixed"} else ["accuracy"] if names else []
