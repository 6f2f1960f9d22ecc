"""GenMuNN: a genetic algorithm mutates the weights that spectrum analysis finds suspicious."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from repairopt.errors import ModelError, SpecificationError
from repairopt.localize import weight_spectrum
from repairopt.methods.material import Material, material_of
from repairopt.methods.outcome import Outcome
from repairopt.methods.settings import Expected, check_settings, is_one_of
from repairopt.methods.task import Task
from repairopt.network import Array
from repairopt.program import Status

from .evolution import Siblings
from .part import Pair, Part, question_of, wrong_share

MOST_WEIGHTS = 5_000  # whose effects are measured one by one


@dataclass(frozen=True, kw_only=True)
class GenMuNN:
    """Suspicious weights are ranked; a genetic algorithm mutates them by their rank.

    Either each weight is set to 0 in turn, and in each layer weights are ranked by how the accuracy on the failing and
    the passing rows changes, a gain first; or they are ranked by Tarantula's score of being active (of adding to what
    their unit reads) on failing rows. A mutant adds normal noise of a small share of the layer's spread to
    weights that are drawn with probabilities by rank. Half of the population, by accuracy, are parents; children cross
    uniformly and mutate; the best one stays as it is, and the original is in the first population.

    Attributes:
        population: Mutants in a generation.
        generations: At most so many.
        patience: Stop after so many generations without a better one.
        degree: Standard deviation of a mutation, in units of that of the layer's weights.
        share: Expected share of the weights that a mutation changes.
        ranking: ``"effect"`` on the accuracy, ``"spectrum"`` of activity, or ``"auto"``: the effect for up to 5,000
            weights, beyond which it takes too long.
        samples: At most so many rows in the ranking.

    References:
        Wu et al., GenMuNN: A mutation-based approach to repair deep neural network models, 2022, as described in A
        Comprehensive Study of Deep Learning Model Fixing Approaches; the sources at hand give no ``share`` and no
        details of the ranking, which are a completion.
    """

    uses: ClassVar[frozenset[str]] = frozenset({"weights"})
    default_weights: ClassVar[str] = "all"
    systems: ClassVar[Mapping[str, Mapping[str, Any]]] = {"GenMuNN (GM)": {}}

    population: int = 20
    generations: int = 50
    patience: int = 10
    degree: float = 0.05
    share: float = 0.05
    ranking: str = "auto"
    samples: int = 500

    def __post_init__(self) -> None:
        counts = dict.fromkeys(("generations", "patience", "samples"), Expected(low=1, whole=True))
        numbers = {"degree": Expected(above=True), "share": Expected(high=1, above=True)}
        check_settings(self, {**counts, **numbers, "population": Expected(low=4, whole=True)})
        if not is_one_of(self.ranking, ("auto", "effect", "spectrum")):
            raise SpecificationError(f"method GenMuNN: ranking={self.ranking!r}; choose auto, effect or spectrum.")

    def run(self, task: Task) -> Outcome:
        """Rank, then breed; the best mutant of all generations is returned."""
        rows = material_of(task)
        every = (torch.cat([rows.failing[0], rows.passing[0]]), torch.cat([rows.failing[1], rows.passing[1]]))
        part = Part.of(task, task.location.indices, "method GenMuNN")
        with task.timed("localize"):
            by_effect = self.ranking == "effect" or (self.ranking == "auto" and len(part.places) <= MOST_WEIGHTS)
            suspicion = self._effects(part, every, task.seed) if by_effect else self._spectrum(task, part, rows)
            chance = self._by_rank(part, suspicion)
        draw, spread = np.random.default_rng(task.seed), Siblings.of(part).spread

        def mutated(parents: Array) -> Array:
            hit = draw.random(parents.shape) < chance
            found: Array = parents + hit * draw.normal(0, self.degree, parents.shape) * spread
            return found

        def rate(changes: Array) -> Array:
            return part.rate(lambda predict: wrong_share(predict, every), changes)

        mutants = mutated(np.zeros((self.population, len(chance))))
        mutants[0] = 0.0
        wrong = rate(mutants)
        best, least, still = np.zeros(len(chance)), float(wrong[0]), 0
        for generation in range(self.generations):
            task.judge.check_time()
            order = np.argsort(wrong, kind="stable")
            better = bool(wrong[order[0]] < least)
            still = 0 if better else still + 1
            if better:
                best, least = mutants[order[0]].copy(), float(wrong[order[0]])
            task.log.last = (0, len(chance), None)
            task.record(f"GenMuNN, generation {generation}", task.judge.keep(part.widen(best)), accepted=better)
            if still >= self.patience:
                break
            parents = mutants[order[: self.population // 2]]
            pairs = draw.integers(len(parents), size=(2, self.population - 1))
            first = draw.random((self.population - 1, len(chance))) < 0.5
            crossed = np.where(first, parents[pairs[0]], parents[pairs[1]])
            mutants = np.concatenate([best[None], mutated(crossed)])
            wrong = rate(mutants)
        return Outcome(part.widen(best), Status.FEASIBLE, on_target=True, indivisible=True)

    def _spectrum(self, task: Task, part: Part, rows: Material) -> Tensor:
        """Minus Tarantula's score of each weight; 0 for biases and weights of other kinds of layers."""
        question = question_of(task, rows)
        scores: dict[str, Tensor] = {}
        for layer in question.graph.affine:
            if layer.weights[0] in part.engine.indices and layer.weights[0] not in scores:
                with suppress(ModelError):
                    scores[layer.weights[0]] = -weight_spectrum(question, layer).tarantula.flatten()
        own = part.engine.indices
        pieces = [
            scores[name][ix.cpu()] if name in scores else torch.zeros(len(ix)).double() for name, ix in own.items()
        ]
        return torch.cat(pieces)

    def _effects(self, part: Part, rows: Pair, seed: int) -> Tensor:
        """Share of rows that are wrong without each weight."""
        some = torch.randperm(len(rows[0]), generator=torch.Generator().manual_seed(seed))[: self.samples]
        chosen = (rows[0][some.to(rows[0].device)], rows[1][some.to(rows[1].device)])
        initial = part.initial
        effect = np.empty(len(initial))
        step = 256
        for start in range(0, len(initial), step):
            places = np.arange(start, min(start + step, len(initial)))
            changes = np.zeros((len(places), len(initial)))
            changes[np.arange(len(places)), places] = -initial[places]
            effect[places] = part.rate(lambda predict: wrong_share(predict, chosen), changes)
        return torch.as_tensor(effect)

    def _by_rank(self, part: Part, wrong: Tensor) -> Array:
        """Probability that a mutation changes each weight: falls with its rank in its parameter, the least first."""
        found = []
        for own in wrong.split([len(indices) for indices in part.engine.indices.values()]):
            rank = own.argsort(stable=True).argsort().double()
            weight = (len(own) - rank) / ((len(own) + 1) / 2)  # of mean 1
            found.append((self.share * weight).clamp(max=1.0))
        return torch.cat(found).numpy()
