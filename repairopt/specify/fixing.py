"""Properties of what a repair fixed, and of attacks on right answers: metrics of comparisons, as goals and bounds."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from repairopt.network import Predict, outputs_of

from .contracts import Unstated
from .intervals import Interval, rate_interval
from .margins import LabelLeads
from .measures import BOX, DATA, DOWN, FIRST, WHERE, Argument, Measure
from .properties import AccuracyDrop
from .robustness import AdversarialError


@dataclass(frozen=True, eq=False)
class UnfixedRate(AccuracyDrop, LabelLeads):
    """Share of the samples that the original network gets wrong and that are wrong still: one minus the repair rate.

    The attributes are those of :class:`AccuracyDrop`; ``target`` is a share of the samples that were wrong. Where none
    was wrong, the value is 0.

    References:
        A Comprehensive Study of Deep Learning Model Fixing Approaches (RR, by the denominator of its tables).
    """

    inputs: Any
    labels: Any = None
    target: float = Unstated(0.0)
    name: str = "unfixed rate"
    right: Tensor | None = None

    measures = (
        Measure(
            "repair_rate",
            "Share of the rows that the original network gets wrong and that have their label now.",
            "repair_rate(reported) >= 0.8",
            relations=DOWN,
            way="1 - ",
        ),
    )

    @property
    def counted(self) -> Tensor | None:
        """Indices of the samples that the original network gets wrong; None before ``anchor``."""
        return None if self.right is None else (~self.right).nonzero()[:, 0]

    def value(self, predict: Predict) -> Tensor:
        """Samples that are wrong still, over those that were wrong."""
        was = ~self._before()
        return (was & ~self._right(predict)).double().sum() / was.sum().clamp(min=1)

    def soft_value(self, predict: Predict) -> Tensor:
        """One minus the mean probability of the true label, over the samples that were wrong."""
        outputs = outputs_of(predict, self.inputs)
        was = (~self._before()).to(outputs)
        return ((1 - self._chance(outputs)) * was).sum() / was.sum().clamp(min=1)

    def interval(self, predict: Predict, confidence: float = 0.95) -> Interval:
        """Where the share on new samples that the original gets wrong lies; exact."""
        was = ~self._before()
        return rate_interval(int((was & ~self._right(predict)).sum()), max(1, int(was.sum())), confidence)


@dataclass(frozen=True, eq=False)
class AttackSuccess(AdversarialError):
    """Share of the points that the network gets right for which an attack finds a wrong point in a maximum-norm ball.

    The attributes are those of :class:`AdversarialError`, which counts points that are wrong as they are as well. Where
    no point is right, the value is 0.

    References:
        A Comprehensive Study of Deep Learning Model Fixing Approaches (ASR).
    """

    name: str = "attack success"

    measures = (
        Measure(
            "attack_success",
            "Share of the rows with their label for which gradient steps find a wrong point within a radius, maximum "
            "norm; a lower bound.",
            "attack_success(guard, radius=0.05) <= 0.1",
            arguments=(DATA, Argument("radius", "number", "of the balls, units of the inputs"), *BOX, FIRST, WHERE),
        ),
    )

    def value(self, predict: Predict) -> Tensor:
        """Share of right points with a counterexample."""
        right = self._right(predict)
        broken = (self.attacked(predict)[1] <= 0) & right
        return broken.double().sum() / right.sum().clamp(min=1)

    def soft_value(self, predict: Predict) -> Tensor:
        """One minus the mean probability of the label at the worst points found for the points that are right."""
        right = self._right(predict)
        return self._soft(predict, right) if bool(right.any()) else torch.zeros(())

    def around(self, predict: Predict) -> Any:
        """As :meth:`AdversarialError.around`; points that are wrong as they are do not count."""
        return replace(super().around(predict), counted=self._right(predict))

    def details(self, predict: Predict) -> dict[str, float]:
        """Right points, and those of them with a counterexample."""
        right = int(self._right(predict).sum())
        return {"right points": float(right), "attacked points": float(self.value(predict)) * right}

    def _right(self, predict: Predict) -> Tensor:
        with torch.no_grad():
            outputs = outputs_of(predict, self.inputs)
        return outputs.argmax(1) == self.labels.to(outputs.device)
