"""Distill: a student of the same architecture learns the soft labels of a teacher (defensive distillation)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from repairopt.methods.outcome import Outcome
from repairopt.methods.settings import Expected
from repairopt.methods.task import Task

from .fit import Pair, Score, Training, fit_weights
from .trainee import Trainee


@dataclass(frozen=True, kw_only=True)
class Distill(Training):
    """Defensive distillation: a student learns a teacher's probabilities at a high temperature.

    A teacher of the same architecture is trained from new random weights with outputs divided by the temperature, then
    a student, from other random weights, on the teacher's probabilities at that temperature. The student is used at
    temperature 1. Of both the best epoch on the validation rows is taken.

    Running statistics of batch normalization stay those of the original.

    Attributes:
        epochs: Passes over the data of teacher and student each, at most.
        patience: Epochs without a better score on the validation rows after which training stops.
        temperature: What outputs are divided by in training.

    References:
        Papernot, McDaniel, Wu, Jha and Swami, Distillation as a defense to adversarial perturbations against deep
        neural networks, S&P 2016; temperature 10 as in A Post-Training Framework for Improving the Performance of Deep
        Learning Models via Model Transformation, TOSEM 2024. Epochs, batch and rate are ours.

    Example:
        >>> Distill().temperature
        10.0
    """

    systems: ClassVar[Mapping[str, Mapping[str, Any]]] = {"Defensive (knowledge) distillation": {}}

    epochs: int = 200
    patience: int = 10
    temperature: float = 10.0

    def expected(self) -> dict[str, Expected]:
        """What the settings may be."""
        return {"temperature": Expected(above=True), "patience": Expected(low=1, whole=True)}

    def run(self, task: Task) -> Outcome:
        """Train the teacher, then the student."""
        rows = self.material(task, failing=False)
        inputs, labels = rows.training
        net = Trainee(task, inputs)
        hard = F.one_hot(labels, net.classes).to(task.engine.dtype)
        self._learn(net, (inputs, hard), rows.validation, "teacher, epoch", task.seed)
        soft = torch.softmax(net.predict(inputs) / self.temperature, dim=1)
        self._learn(net, (inputs, soft), rows.validation, "student, epoch", task.seed + 1)
        return net.outcome()

    def _learn(self, net: Trainee, rows: Pair, validation: Pair, step: str, seed: int) -> None:
        """Train anew on probabilities ``(N, k)`` at the temperature."""
        net.draw(seed)

        def loss(chosen: Tensor) -> Tensor:
            return F.cross_entropy(net(rows[0][chosen]) / self.temperature, rows[1][chosen])

        def score(net: Trainee) -> Score:
            outputs = net.predict(validation[0])
            wrong = float((outputs.argmax(1) != validation[1]).float().mean())
            return wrong, float(F.cross_entropy(outputs / self.temperature, validation[1]))

        fit_weights(net, loss, len(rows[0]), self, score=score, patience=self.patience, step=step, seed=seed)
