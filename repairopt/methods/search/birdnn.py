"""BIRDNN by fine-tuning: neurons that behave differently on violating samples are scaled."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from repairopt.localize import Question, best_neurons
from repairopt.methods.material import material_of
from repairopt.methods.outcome import Outcome
from repairopt.methods.settings import Expected, check_settings
from repairopt.methods.task import Task
from repairopt.network import Predict

from .care import swarm_of_multipliers
from .part import Multipliers, wrong_share


@dataclass(frozen=True, kw_only=True)
class BirdnnFT:
    """Neurons are ranked by how far their means on violating and on other samples are apart; a swarm scales the best.

    The swarm is that of CARE; its cost is ``price`` times the share of violating samples that still violate, plus
    ``1 - price`` times the error rate on the labelled data.

    Attributes:
        neurons: At most so many.
        price: Weight of violation, from 0 to 1.
        particles: Size of the swarm.
        iterations: At most so many moves.

    References:
        Liang et al., Repairing Deep Neural Networks Based on Behavior Imitation, 2023 (BIRDNN-FT), after the
        description in A Comprehensive Study of Deep Learning Model Fixing Approaches; constants of the swarm and the
        price of errors are those of CARE.
    """

    uses: ClassVar[frozenset[str]] = frozenset({"weights"})
    default_weights: ClassVar[str] = "all"
    systems: ClassVar[Mapping[str, Mapping[str, Any]]] = {"BIRDNN-FT": {}}

    neurons: int = 13
    price: float = 0.7
    particles: int = 20
    iterations: int = 100

    def __post_init__(self) -> None:
        counts = dict.fromkeys(("neurons", "iterations"), Expected(low=1, whole=True))
        check_settings(self, {**counts, "particles": Expected(low=2, whole=True), "price": Expected(high=1)})

    def run(self, task: Task) -> Outcome:
        """Rank, then move the swarm."""
        rows = material_of(task)
        question = Question.of(task.engine, rows.failing, rows.passing, goal=task.goal, seed=task.seed)
        with task.timed("localize"):
            scores = behavior_gap(question)
        found = best_neurons(scores, self.neurons)
        scaled = Multipliers.of(task, question, found, "method BirdnnFT")

        def cost(predict: Predict) -> Tensor:
            errors = wrong_share(predict, rows.training)
            return self.price * wrong_share(predict, rows.failing) + (1 - self.price) * errors

        return swarm_of_multipliers(task, scaled, cost, (self.particles, self.iterations), "BIRDNN")


def behavior_gap(question: Question) -> dict[str, Tensor]:
    """For each neuron ``|mean value on failing rows - mean on passing rows|``, by layer."""
    bad = question.activations(question.failing[0], question.hidden)
    if not len(question.passing[0]):
        return {name: one.double().mean(0).abs().cpu() for name, one in bad.items()}
    good = question.activations(question.passing[0], question.hidden)
    return {name: torch.abs(bad[name].double().mean(0) - good[name].double().mean(0)).cpu() for name in bad}
