"""CARE: causal attribution blames neurons, a particle swarm scales them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from torch import Tensor

from repairopt.localize import CARE as Attribution
from repairopt.methods.material import material_of
from repairopt.methods.outcome import Outcome
from repairopt.methods.settings import Expected, check_settings
from repairopt.methods.task import Task
from repairopt.network import Array, Predict
from repairopt.program import Status

from .part import Multipliers, blamed_by_care, misbehavior, wrong_share
from .particles import Particles


@dataclass(frozen=True, kw_only=True)
class CARERepair:
    """Neurons are ranked by their causal effect on the undesired behavior; a swarm finds multipliers of the best.

    The value of each chosen neuron is multiplied by ``1 + w``, ``w`` from -1 to 1, which is a change of its outgoing
    weights. The cost is ``(1 - alpha)`` times the undesired behavior plus ``alpha`` times the error rate on the
    labelled data. Undesired is, for a gap between groups that differ in the protected feature alone, that an
    individual's label changes with it; for an error rate, that a row which the original network gets wrong stays wrong;
    else the value of the goal.

    Attributes:
        neurons: At most so many.
        alpha: Price of errors, from 0 to 1.
        particles: Size of the swarm.
        iterations: At most so many moves of the swarm.
        values: Interventions for each neuron.
        samples: At most so many samples in the attribution.
        individuals: At most so many in the undesired behavior that the swarm lowers.
        layer: The hidden layer to choose from; None for all.
        protected: Columns of the inputs that tell the group; where they are given, the individuals of a gap between
            groups are its rows with each value that these columns have.

    References:
        Sun, Sun, Pham and Shi, Causality-Based Neural Network Repair, ICSE 2022. Constants are those of its code
        (inertia 0.8, both pulls 0.41, start at 0 with speeds drawn from -1 to 1, end after 10 moves that gain less than
        0.001), and 13 neurons those of AutoRIC's experiments with it.

    Example:
        >>> CARERepair(neurons=3).particles
        20
    """

    uses: ClassVar[frozenset[str]] = frozenset({"weights"})
    default_weights: ClassVar[str] = "all"
    systems: ClassVar[Mapping[str, Mapping[str, Any]]] = {"CARE": {}}

    neurons: int = 13
    alpha: float = 0.3
    particles: int = 20
    iterations: int = 100
    values: int = 16
    samples: int = 1000
    individuals: int = 5000
    layer: str | None = None
    protected: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        counts = dict.fromkeys(
            ("neurons", "iterations", "values", "samples", "individuals"), Expected(low=1, whole=True)
        )
        check_settings(self, {**counts, "particles": Expected(low=2, whole=True), "alpha": Expected(high=1)})

    def run(self, task: Task) -> Outcome:
        """Rank the neurons, then move the swarm."""
        rows = material_of(task, failing=False)
        with task.timed("localize"):
            how = Attribution(count=self.neurons, samples=self.samples, values=self.values, layer=self.layer)
            question, found = blamed_by_care(task, how, self.protected)
        scaled = Multipliers.of(task, question, found, "method CARERepair")
        undesired, data = misbehavior(task, rows.failing, self.protected, self.individuals), rows.training

        def cost(predict: Predict) -> Tensor:
            return (1 - self.alpha) * undesired(predict) + self.alpha * wrong_share(predict, data)

        size = (self.particles, self.iterations)
        return swarm_of_multipliers(task, scaled, cost, size, "CARE")


def swarm_of_multipliers(task: Task, scaled: Multipliers, cost: Any, size: tuple[int, int], what: str) -> Outcome:
    """CARE's swarm over multipliers, with its constants; ``size`` is that of the swarm and how often it moves."""
    draw = np.random.default_rng(task.seed)
    shape = (size[0], len(scaled.matrix))

    def found(step: int, place: Array, score: float) -> None:
        judged = task.judge.keep(scaled.change(place))
        task.log.last = (0, shape[1], None)
        task.record(f"{what}, move {step}", judged, note=f"cost {score:.4g}")

    rules = Particles(iterations=size[1], patience=10, gain=1e-3, inertia=0.8, pull=0.41, stops=False)
    best, _ = rules.move(
        lambda places: scaled.rate(cost, places),
        np.zeros(shape),
        draw,
        (-1.0, 1.0),
        speeds=draw.uniform(-1, 1, shape),
        found=found,
        check=task.judge.check_time,
    )
    return Outcome(scaled.change(best), Status.FEASIBLE, on_target=True, indivisible=True)
