"""Ready-made properties: error on given points, recall, changes against the original network.

Gaps stand in :mod:`repairopt.specify.groups`, robustness properties in :mod:`repairopt.specify.robustness`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar

import torch
from torch import Tensor

from repairopt.errors import SpecificationError
from repairopt.network import Predict, check_labelled, check_labels

from .intervals import Interval, matched_interval, rate_interval
from .margins import LabelLeads
from .measures import DOWN, LABEL, ROWS, UP, Measure

SHARE = "share, 0 to 1"


@dataclass(frozen=True, eq=False)
class ErrorRate(LabelLeads):
    """Share of given points that the network gets wrong.

    The soft value is one minus the mean probability of the true label.

    Attributes:
        inputs: Points ``(N, ...)``.
        labels: Their classes ``(N,)``; None where ``inputs`` is a dataset or loader of pairs.
        target: The share to reach; 0 asks for every point.
        name: What the report calls it.
    """

    inputs: Any
    labels: Any = None
    target: float = 0.0
    name: str = "error rate"

    counted: ClassVar[Tensor | None] = None
    measures = (
        Measure(
            "error_rate",
            "Share of the rows with another class than their label.",
            SHARE,
            UP,
            ROWS,
            "error_rate(reported) <= 0",
        ),
        Measure(
            "accuracy",
            "Share of the rows with the class of their label.",
            SHARE,
            DOWN,
            ROWS,
            "accuracy >= 0.9",
            way="1 - ",
        ),
    )

    def __post_init__(self) -> None:
        x, y = check_labelled(f"'{self.name}'", self.inputs, self.labels, integers=True)
        object.__setattr__(self, "inputs", x)
        object.__setattr__(self, "labels", y)

    @property
    def statistical(self) -> bool:
        """Whether the points stand for a population: then the share is to hold on new ones; not for a target of 0."""
        return self.target > 0

    def value(self, predict: Predict) -> Tensor:
        """Share of wrong points."""
        outputs = self._outputs(predict)
        return (outputs.argmax(-1) != self.labels.to(outputs.device)).float().mean()

    def soft_value(self, predict: Predict) -> Tensor:
        """One minus the mean probability of the true label."""
        outputs = self._outputs(predict)
        own = torch.softmax(outputs, dim=-1).gather(1, self.labels.to(outputs.device)[:, None])
        return 1 - own.mean()

    def details(self, predict: Predict) -> dict[str, float]:
        """Number of wrong points."""
        return {"wrong points": float(self.value(predict)) * len(self.labels)}

    def interval(self, predict: Predict, confidence: float = 0.95) -> Interval:
        """Where the share on new points lies; exact."""
        outputs = self._outputs(predict)
        wrong = int((outputs.argmax(-1) != self.labels.to(outputs.device)).sum())
        return rate_interval(wrong, len(self.labels), confidence)

    def on(self, inputs: Any, labels: Any) -> ErrorRate:
        """The same property on other points."""
        return replace(self, inputs=inputs, labels=labels)

    def where(self, keep: Callable[[Tensor], Tensor]) -> ErrorRate:
        """The same property on the points that ``keep`` chooses, a mask ``(N,)`` from inputs ``(N, ...)``."""
        mask = keep(self.inputs)
        return replace(self, inputs=self.inputs[mask], labels=self.labels[mask.cpu()])

    def _outputs(self, predict: Predict) -> Tensor:
        outputs = predict(self.inputs)
        check_labels(f"'{self.name}'", self.labels, outputs.shape[-1])
        return outputs


@dataclass(frozen=True, eq=False)
class MissRate(LabelLeads):
    """One minus the recall of a class: share of its points that are given another label.

    Attributes:
        inputs: Points ``(N, ...)``; those of other classes are ignored.
        labels: Their classes ``(N,)``; None where ``inputs`` is a dataset or loader of pairs.
        label: The class.
        target: The share to reach.
        name: What the report calls it.
    """

    inputs: Any
    labels: Any = None
    label: int = 1
    target: float = 0.0
    name: str = "miss rate"

    measures = (
        Measure(
            "recall",
            "Share of the rows of a class that are given it.",
            SHARE,
            DOWN,
            (LABEL, *ROWS),
            'recall(">50K") >= 0.55',
            way="1 - ",
        ),
        Measure("miss_rate", "One minus recall.", SHARE, UP, (LABEL, *ROWS), 'miss_rate(">50K") <= 0.45'),
    )

    def __post_init__(self) -> None:
        x, y = check_labelled(f"'{self.name}'", self.inputs, self.labels, integers=True)
        if not bool((y == self.label).any()):
            raise SpecificationError(f"'{self.name}': no row has label {self.label}; its recall is not defined.")
        object.__setattr__(self, "inputs", x)
        object.__setattr__(self, "labels", y)

    @property
    def counted(self) -> Tensor:
        """Indices of the class's points."""
        return (self.labels == self.label).nonzero()[:, 0]

    def value(self, predict: Predict) -> Tensor:
        """Share of the class's points that get another label."""
        outputs = predict(self.inputs)
        weight = self._weight(outputs)
        return ((outputs.argmax(-1) != self.label).to(weight.dtype) * weight).sum()

    def soft_value(self, predict: Predict) -> Tensor:
        """One minus the mean probability of the class over its points."""
        outputs = predict(self.inputs)
        return 1 - (torch.softmax(outputs, dim=-1)[:, self.label] * self._weight(outputs)).sum()

    def interval(self, predict: Predict, confidence: float = 0.95) -> Interval:
        """Where the share on new points of the class lies; exact."""
        own = self.counted
        found = predict(self.inputs).argmax(-1).cpu()[own.cpu()]
        return rate_interval(int((found != self.label).sum()), len(own), confidence)

    def on(self, inputs: Any, labels: Any) -> MissRate:
        """The same property on other points."""
        return replace(self, inputs=inputs, labels=labels)

    def where(self, keep: Callable[[Tensor], Tensor]) -> MissRate:
        """The same property on the points that ``keep`` chooses."""
        mask = keep(self.inputs)
        return replace(self, inputs=self.inputs[mask], labels=self.labels[mask.cpu()])

    def _weight(self, outputs: Tensor) -> Tensor:
        own = (self.labels == self.label).to(outputs)
        return own / own.sum()


@dataclass(frozen=True, eq=False)
class AccuracyDrop:
    """By how much accuracy fell, against the original network on the same samples; negative where it rose.

    Attributes:
        inputs: Samples ``(N, ...)``.
        labels: Their classes ``(N,)``; None where ``inputs`` is a dataset or loader of pairs.
        target: The largest drop, 0.01 for one point.
        name: What the report calls it.
        right: Which samples the original network gets right; set by ``anchor``.
    """

    inputs: Any
    labels: Any = None
    target: float = 0.01
    name: str = "accuracy drop"
    right: Tensor | None = field(default=None, repr=False)

    measures = (
        Measure(
            "accuracy_drop",
            "Accuracy of the original network minus accuracy now, on the same rows.",
            "share, 0.01 is one point",
            UP,
            ROWS,
            "accuracy_drop <= 0.01",
        ),
    )

    def __post_init__(self) -> None:
        x, y = check_labelled(f"'{self.name}'", self.inputs, self.labels, integers=True)
        object.__setattr__(self, "inputs", x)
        object.__setattr__(self, "labels", y)

    def anchor(self, predict: Predict) -> AccuracyDrop:
        """Remember what the original network ``predict`` gets right."""
        return replace(self, right=self._right(predict))

    def value(self, predict: Predict) -> Tensor:
        """Accuracy before minus accuracy now."""
        return self._before().float().mean() - self._right(predict).float().mean()

    def soft_value(self, predict: Predict) -> Tensor:
        """Accuracy before minus the mean probability of the true label."""
        outputs = predict(self.inputs)
        chance = torch.softmax(outputs, dim=-1).gather(-1, self.labels.to(outputs.device)[:, None])
        return self._before().float().mean().to(outputs.device) - chance.mean()

    def details(self, predict: Predict) -> dict[str, float]:
        """Samples that became wrong, and right."""
        before, now = self._before(), self._right(predict)
        return {"newly wrong": float((before & ~now).sum()), "newly right": float((~before & now).sum())}

    def interval(self, predict: Predict, confidence: float = 0.95) -> Interval:
        """Where the drop on new data lies, from the samples that changed."""
        before, now = self._before(), self._right(predict)
        return matched_interval(int((before & ~now).sum()), int((~before & now).sum()), len(now), confidence)

    def on(self, inputs: Any, labels: Any) -> AccuracyDrop:
        """The same property on other samples."""
        return replace(self, inputs=inputs, labels=labels, right=None)

    def where(self, keep: Callable[[Tensor], Tensor]) -> AccuracyDrop:
        """The same property on the samples that ``keep`` chooses."""
        mask = keep(self.inputs)
        right = None if self.right is None else self.right[mask.cpu()]
        return replace(self, inputs=self.inputs[mask], labels=self.labels[mask.cpu()], right=right)

    def _right(self, predict: Predict) -> Tensor:
        outputs = predict(self.inputs)
        check_labels(f"'{self.name}'", self.labels, outputs.shape[-1])
        return outputs.argmax(-1).cpu() == self.labels.cpu()

    def _before(self) -> Tensor:
        if self.right is None:
            raise SpecificationError(
                f"'{self.name}': compares with the original network, which is not known here. Use it as a goal or in a "
                f"Bound of solve_repair, or call anchor(original) first."
            )
        return self.right


@dataclass(frozen=True, eq=False)
class FlipRate(AccuracyDrop, LabelLeads):
    """Share of the samples that the original network gets right and this one does not (negative flip rate).

    Attributes:
        inputs: Samples ``(N, ...)``.
        labels: Their classes ``(N,)``; None where ``inputs`` is a dataset or loader of pairs.
        target: The largest share of all samples.
        name: What the report calls it.
        right: Which samples the original network gets right; set by ``anchor``.

    References:
        Yan, Xiong, Kundu, Yang, Deng, Wang, Xia and Soatto, Positive-Congruent Training, CVPR 2021.
    """

    target: float = 0.005
    name: str = "flip rate"

    measures = (
        Measure(
            "flip_rate",
            "Share of all rows that the original network gets right and this one does not.",
            SHARE,
            UP,
            ROWS,
            "flip_rate <= 0.005",
        ),
    )

    @property
    def counted(self) -> Tensor | None:
        """Indices of the samples that the original network gets right; None before ``anchor``."""
        return None if self.right is None else self.right.nonzero()[:, 0]

    def value(self, predict: Predict) -> Tensor:
        """Samples that became wrong, over all."""
        return (self._before() & ~self._right(predict)).float().mean()

    def soft_value(self, predict: Predict) -> Tensor:
        """One minus the mean probability of the true label, over the samples that were right, times their share."""
        outputs = predict(self.inputs)
        chance = torch.softmax(outputs, dim=-1).gather(-1, self.labels.to(outputs.device)[:, None])[:, 0]
        before = self._before().to(outputs)
        return ((1 - chance) * before).mean()

    def interval(self, predict: Predict, confidence: float = 0.95) -> Interval:
        """Where the share on new data lies; exact."""
        flipped = int((self._before() & ~self._right(predict)).sum())
        return rate_interval(flipped, len(self.labels), confidence)
