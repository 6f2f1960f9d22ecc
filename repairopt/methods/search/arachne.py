"""Arachne: weights are localized in both directions, and their values are searched for."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from repairopt.errors import SpecificationError
from repairopt.localize import Bidirectional, by_class, locate
from repairopt.methods.material import Material, material_of
from repairopt.methods.outcome import Outcome
from repairopt.methods.settings import Expected, check_settings
from repairopt.methods.task import Task
from repairopt.network import Array, Predict
from repairopt.program import Status

from .evolution import Siblings, evolve, swarm_of_values
from .part import Pair, Part, losses, question_of

CANDIDATES = 20  # of version 1, for each row that fails
POSITIVES = 200  # of version 1


@dataclass(frozen=True, kw_only=True)
class Arachne:
    """The weights that matter for failing rows and little for others are localized, then their values are searched for.

    Version 2 takes the Pareto front of gradient loss and forward impact on failing rows, each over one plus that on as
    many passing rows, and searches by differential evolution for values that make ``alpha`` times the score of failing
    rows plus the score of passing rows large; a row scores 1 where it is right, else ``1 / (loss + 1)``. Version 1
    takes the front of the 20 weights for each failing row with the largest gradient loss, and searches with a particle
    swarm for ``(patched + 1) / (loss + 1)`` on failing rows plus ``(intact + 1) / (loss + 1)`` on passing rows.

    Attributes:
        version: 2 or 1.
        layer: The layer whose weights are localized; None for the last.
        alpha: Weight of failing rows in version 2.
        population: Candidates in a generation, or particles.
        iterations: At most so many generations, or moves.
        positives: At most so many passing rows, drawn by class; None for all in version 2 and 200 in version 1.

    References:
        Sohn, Kang and Yoo, Arachne: Search-Based Repair of Deep Neural Networks, TOSEM 2023 (version 2); the same,
        Search Based Repair of Deep Neural Networks, 2019 (version 1). Constants are theirs. Deviation: values beyond
        twice the range of the layer are drawn anew by SciPy's differential evolution; the published code cuts them to
        the range.

    Example:
        >>> Arachne(version=1).population
        100
    """

    uses: ClassVar[frozenset[str]] = frozenset({"weights"})
    default_weights: ClassVar[str] = "all"
    systems: ClassVar[Mapping[str, Mapping[str, Any]]] = {"Arachne (AR)": {}}

    version: int = 2
    layer: str | None = None
    alpha: float = 10.0
    population: int = 100
    iterations: int = 100
    positives: int | None = None

    def __post_init__(self) -> None:
        check_settings(
            self,
            {
                "alpha": Expected(),
                "population": Expected(low=5, whole=True),
                "iterations": Expected(low=1, whole=True),
                "positives": Expected(low=1, whole=True, none=True),
            },
        )
        if not isinstance(self.version, int) or self.version not in (1, 2):
            raise SpecificationError(f"method Arachne: version={self.version!r}; choose 1 or 2.")

    def run(self, task: Task) -> Outcome:
        """Localize, then search; each better candidate is shown to the judge."""
        rows = material_of(task)
        found = self.search(task, rows, "")
        return Outcome(found[0].widen(found[1]), Status.FEASIBLE, on_target=True, indivisible=True)

    def search(self, task: Task, rows: Material, of: str) -> tuple[Part, Array]:
        """The localized weights and the best change ``(m,)`` of their values; ``of`` is a word for the log."""
        with task.timed("localize"):
            how = Bidirectional(layer=self.layer, candidates=CANDIDATES if self.version == 1 else None)
            part = Part.of(task, locate(how, question_of(task, rows)).indices, "method Arachne")
        most = self.positives or (POSITIVES if self.version == 1 else len(rows.passing[0]))
        kept = by_class(rows.passing, most, task.seed)
        return part, self.values(task, part, rows.failing, kept, of)

    def values(self, task: Task, part: Part, failing: Pair, passing: Pair, of: str) -> Array:
        """Search for values of the weights of a part; the best change ``(m,)``."""
        initial = part.initial

        def found(step: int, values: Array, fitness: float) -> None:
            judged = task.judge.keep(part.widen(values - initial))
            task.log.last = (0, len(initial), None)
            task.record(f"Arachne{of}, generation {step}", judged, note=f"fitness {fitness:.4g}")

        def fitness(values: Array) -> Array:
            return -part.rate(self._cost(failing, passing), values - initial)

        siblings = Siblings.of(part)
        if self.version == 1:
            sizes = {"particles": self.population, "iterations": self.iterations}
            best, _ = swarm_of_values(siblings, fitness, **sizes, seed=task.seed, found=found)
        else:
            sizes = {"population": self.population, "generations": self.iterations}
            best, _ = evolve(siblings, fitness, **sizes, seed=task.seed, found=found)
        return best - initial

    def _cost(self, failing: Pair, passing: Pair) -> Any:
        """The negative fitness of a network, a function of ``predict``."""
        if self.version == 1:
            return lambda predict: -sum(swarm_fitness(predict, rows) for rows in (failing, passing) if len(rows[0]))

        def cost(predict: Predict) -> Tensor:
            parts = [self.alpha * _score(predict, failing)]
            return -torch.stack([*parts, *([_score(predict, passing)] if len(passing[0]) else [])]).sum()

        return cost


def swarm_fitness(predict: Predict, rows: Pair, share: bool = False) -> Tensor:
    """``(right + 1) / (mean loss + 1)``, where right is a number of rows or their share."""
    right, loss = losses(predict, rows)
    return ((right.mean() if share else right.sum()) + 1) / (loss.mean() + 1)


def _score(predict: Predict, rows: Pair) -> Tensor:
    right, loss = losses(predict, rows)
    return torch.where(right > 0, 1.0, 1 / (loss + 1)).sum()
