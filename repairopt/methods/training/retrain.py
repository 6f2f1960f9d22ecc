"""Retrain: the same network trained anew from several seeds; the one with the best property is taken."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from repairopt.methods.outcome import Outcome
from repairopt.methods.settings import Expected
from repairopt.methods.task import Task

from .fit import Training, accuracy, by_error, cross_entropy, fit_weights
from .trainee import Trainee


@dataclass(frozen=True, kw_only=True)
class Retrain(Training):
    """Retraining: several networks are trained anew from random weights, and the one with the best goal is taken.

    Each is trained on the cross-entropy of the data; its best epoch on the validation rows counts. Among those whose
    accuracy on the validation rows is at most ``floor`` below the original's, the one with the least value of the goal
    is taken; where none is that accurate, the most accurate one.

    Running statistics of batch normalization stay those of the original.

    Attributes:
        epochs: Passes over the data, at most.
        patience: Epochs without a better score on the validation rows after which training stops.
        seeds: How many networks are trained.
        floor: Accuracy that may be lost on the validation rows.

    References:
        The baseline "Retraining" of AutoRIC: Automated Neural Network Repairing Based on Constrained Optimization,
        TOSEM 2024, whose code trains many networks and looks up their fairness. It gives no number of seeds, no recipe
        and no floor; those here are ours. Its second form, tuning with a penalty, is :class:`FineTune`.

    Example:
        >>> Retrain(seeds=3).floor
        0.02
    """

    systems: ClassVar[Mapping[str, Mapping[str, Any]]] = {"Retraining": {}}

    epochs: int = 200
    patience: int = 10
    seeds: int = 5
    floor: float = 0.02

    def expected(self) -> dict[str, Expected]:
        """What the settings may be."""
        counts = dict.fromkeys(("seeds", "patience"), Expected(low=1, whole=True))
        return {**counts, "floor": Expected(high=1)}

    def run(self, task: Task) -> Outcome:
        """Train; the judge says what the goal is."""
        rows = self.material(task, failing=False)
        net = Trainee(task, rows.training[0])
        needed = accuracy(net, rows.validation) - self.floor
        found: list[tuple[tuple[float, ...], dict[str, Any]]] = []
        for seed in range(self.seeds):
            net.draw(task.seed + seed)
            loss, score = cross_entropy(net, rows.training), by_error(rows.validation)
            ends: Any = {"score": score, "patience": self.patience, "told": False}
            fit_weights(net, loss, len(rows.training[0]), self, seed=task.seed + seed, **ends)
            net.record(f"seed {seed}")
            right, goal = accuracy(net, rows.validation), task.judge(net.candidate()).goal
            found.append(((0.0, goal) if right >= needed else (1.0, -right), net.state()))
        net.load(min(found, key=lambda one: one[0])[1])
        return net.outcome()
