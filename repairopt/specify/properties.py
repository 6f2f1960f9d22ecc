"""Ready-made properties: error on given points, recall, changes against the original network."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar, cast

import numpy as np
import torch
from torch import Tensor

from repairopt.errors import SpecificationError
from repairopt.network import Predict, check_labelled, check_labels, outputs_of

from .contracts import Keep, Unstated
from .intervals import Interval, matched_interval, rate_interval
from .margins import LabelLeads
from .measures import DOWN, LABEL, ROWS, Argument, Measure
from .sample_weights import WeightedRows, effective_count, row_weights, weighted_mean

RIGHT = "Share of the rows with the class of their label."
RECALL = "Share of the rows of a class that are given it."
DROP = "Accuracy of the original network minus accuracy now, on the same rows."
FLIPS = "Share of all rows that the original network gets right and this one does not."


class LabelledPoints(WeightedRows):
    """What properties of labelled points share: both are checked, and can be restricted and replaced.

    ``sample_weight (N,)`` says how much each row counts, None for all the same.
    """

    inputs: Any
    labels: Any
    name: str
    answers_only: ClassVar[bool] = True
    is_share: ClassVar[bool] = True

    def __post_init__(self) -> None:
        x, y = check_labelled(f"'{self.name}'", self.inputs, self.labels, integers=True)
        weights = row_weights(f"'{self.name}'", self.sample_weight, self.inputs, len(x))
        object.__setattr__(self, "sample_weight", weights)
        object.__setattr__(self, "inputs", x)
        object.__setattr__(self, "labels", y)

    def on(self, inputs: Any, labels: Any) -> Any:
        """The same property on other points, which all count the same."""
        return replace(cast(Any, self), inputs=inputs, labels=labels, sample_weight=None)

    def weighted(self, sample_weight: Any) -> Any:
        """The same with a weight for each point ``(N,)``."""
        return replace(self, sample_weight=sample_weight)

    def where(self, keep: Keep) -> Any:
        """The same property on the points that ``keep`` chooses, a mask ``(N,)`` from inputs ``(N, ...)``."""
        mask = keep(self.inputs)
        weights = None if self.sample_weight is None else self.sample_weight[mask.cpu()]
        return replace(cast(Any, self), inputs=self.inputs[mask], labels=self.labels[mask.cpu()], sample_weight=weights)

    def _counting(self, among: Tensor | None = None) -> Tensor | None:
        """Indices of the points of a mask ``(N,)`` whose weight is not 0; None for all points."""
        if self.sample_weight is None or bool((self.sample_weight > 0).all()):
            return None if among is None else among.nonzero()[:, 0]
        heavy = self.sample_weight > 0
        return (heavy if among is None else heavy.to(among.device) & among).nonzero()[:, 0]

    def _rate_interval(self, hits: Tensor, own: Tensor | None, confidence: float) -> Interval:
        """Interval of the share of hits ``(C,)`` among the points with indices ``own (C,)``; exact."""
        hits = hits.cpu()
        if self.sample_weight is None:
            return rate_interval(int(hits.sum()), len(hits), confidence)
        weights = self.sample_weight if own is None else self.sample_weight[own.cpu()]
        count = effective_count(hits.double().numpy(), weights.numpy())
        return rate_interval(float(weighted_mean(hits.double(), weights)) * count, count, confidence)

    def _outputs(self, predict: Predict) -> Tensor:
        outputs = outputs_of(predict, self.inputs)
        check_labels(f"'{self.name}'", self.labels, outputs.shape[-1])
        return outputs

    def _wrong(self, predict: Predict) -> Tensor:
        """Mask ``(N,)`` of the points with another answer than their label."""
        outputs = self._outputs(predict)
        return outputs.argmax(-1) != self.labels.to(outputs.device)

    def _chance(self, outputs: Tensor) -> Tensor:
        """Probability ``(N,)`` of the label of each point."""
        return torch.softmax(outputs, dim=-1).gather(-1, self.labels.to(outputs.device)[:, None])[:, 0]


@dataclass(frozen=True, eq=False)
class ErrorRate(LabelledPoints, LabelLeads):
    """Share of given points that the network gets wrong.

    The soft value is one minus the mean probability of the true label.

    Attributes:
        inputs: Points ``(N, ...)``.
        labels: Their classes ``(N,)``; None where ``inputs`` is a dataset or loader of pairs.
        target: The share to reach; 0 asks for every point.
        name: What the report calls it.
        sample_weight: How much each point counts ``(N,)``, None for all the same; as in scikit-learn.
    """

    inputs: Any
    labels: Any = None
    target: float = Unstated(0.0)
    name: str = "error rate"

    measures = (
        Measure("error_rate", "Share of the rows with another class than their label.", "error_rate(reported) <= 0"),
        Measure("accuracy", RIGHT, "accuracy >= 0.9", relations=DOWN, way="1 - "),
    )

    @property
    def counted(self) -> Tensor | None:
        """Indices of the points that count; None for all."""
        return self._counting()

    @property
    def statistical(self) -> bool:
        """Whether the points stand for a population: then the share is to hold on new ones; not for a target of 0."""
        return self.target > 0

    def value(self, predict: Predict) -> Tensor:
        """Share of wrong points."""
        wrong = self._wrong(predict).double()  # float32 is off by more than a limit may be near
        return weighted_mean(wrong, self.sample_weight)

    def soft_value(self, predict: Predict) -> Tensor:
        """One minus the mean probability of the true label."""
        return 1 - weighted_mean(self._chance(self._outputs(predict)), self.sample_weight)

    def details(self, predict: Predict) -> dict[str, float]:
        """Number of wrong points."""
        return {"wrong points": float(self._wrong(predict).sum())}

    def interval(self, predict: Predict, confidence: float = 0.95) -> Interval:
        """Where the share on new points lies; exact."""
        return self._rate_interval(self._wrong(predict), None, confidence)


@dataclass(frozen=True, eq=False)
class MissRate(LabelledPoints, LabelLeads):
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
    target: float = Unstated(0.0)
    name: str = "miss rate"

    measures: ClassVar[Any] = (
        Measure("recall", RECALL, 'recall(">50K") >= 0.55', relations=DOWN, arguments=(LABEL, *ROWS), way="1 - "),
        Measure("miss_rate", "One minus recall.", 'miss_rate(">50K") <= 0.45', arguments=(LABEL, *ROWS)),
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        for what in ("label", "answer"):
            value = getattr(self, what, 0)
            if isinstance(value, bool) or not isinstance(value, int | np.integer) or not 0 <= value < 2**31:
                raise SpecificationError(f"'{self.name}': {what} is {value!r}; expected the index of a class, from 0.")
        if not len(self.counted):
            shown = self.name.removeprefix("1 - ")  # of a recall, as the language writes it
            raise SpecificationError(f"'{shown}': no row has label {self.label}; its recall is not defined.")

    @property
    def counted(self) -> Tensor:
        """Indices of the class's points."""
        found = self._counting(self.labels == self.label)
        assert found is not None
        return found

    def value(self, predict: Predict) -> Tensor:
        """Share of the class's points that get another label."""
        outputs = self._outputs(predict)
        return self._mean_of_own((outputs.argmax(-1) != self.label).double())

    def soft_value(self, predict: Predict) -> Tensor:
        """One minus the mean probability of the class over its points."""
        outputs = outputs_of(predict, self.inputs)
        return 1 - (torch.softmax(outputs, dim=-1)[:, self.label] * self._weight(outputs)).sum()

    def interval(self, predict: Predict, confidence: float = 0.95) -> Interval:
        """Where the share on new points of the class lies; exact."""
        own = self.counted
        found = outputs_of(predict, self.inputs).argmax(-1).cpu()[own.cpu()]
        return self._rate_interval(found != self.label, own, confidence)

    def _mean_of_own(self, values: Tensor) -> Tensor:
        """Mean over the class's points of ``values (N,)``."""
        own = self.counted
        weights = None if self.sample_weight is None else self.sample_weight[own.cpu()]
        return weighted_mean(values[own.to(values.device)], weights)

    def _weight(self, outputs: Tensor) -> Tensor:
        own = (self.labels == self.label).to(outputs)
        own = own if self.sample_weight is None else own * self.sample_weight.to(outputs)
        return own / own.sum()


@dataclass(frozen=True, eq=False)
class ConfusionRate(MissRate):
    """Share of the points of one class that are given a certain other class: one entry of the confusion matrix.

    Attributes:
        inputs: Points ``(N, ...)``; those of other classes are ignored.
        labels: Their classes ``(N,)``; None where ``inputs`` is a dataset or loader of pairs.
        label: The class of the points.
        target: The share to reach.
        name: What the report calls it.
        answer: The class that they are not to be given.
    """

    name: str = "confusion rate"
    answer: int = 0

    measures: ClassVar[Any] = (
        Measure(
            "confusion",
            "Share of the rows of a class that are given a certain other class.",
            'confusion(">50K", answer="<=50K") <= 0.4',
            arguments=(LABEL, Argument("answer", "label", "the class that they are given"), *ROWS),
        ),
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.answer == self.label:
            raise SpecificationError(f"'{self.name}': label and answer are both {self.label}; expected two classes.")

    def value(self, predict: Predict) -> Tensor:
        """Share of the class's points that are given the answer."""
        return self._share(predict, lambda outputs: (outputs.argmax(-1) == self.answer).double())

    def soft_value(self, predict: Predict) -> Tensor:
        """Mean probability of the answer over the class's points."""
        return self._share(predict, lambda outputs: torch.softmax(outputs, dim=-1)[:, self.answer])

    def interval(self, predict: Predict, confidence: float = 0.95) -> Interval:
        """Where the share on new points of the class lies; exact."""
        own = self.counted.cpu()
        found = self._outputs(predict).argmax(-1).cpu()[own]
        return self._rate_interval(found == self.answer, own, confidence)

    def margins_of(self, outputs: Tensor, samples: Tensor) -> Tensor:
        """Lead of the best other class over the answer, ``(B, 1)``."""
        others = [label for label in range(outputs.shape[1]) if label != self.answer]
        return (outputs[:, others].amax(1) - outputs[:, self.answer])[:, None]

    def describe(self, sample: int, index: int) -> str:
        """What the margin of a sample compares."""
        return f"another class over class {self.answer}"

    def _share(self, predict: Predict, of: Callable[[Tensor], Tensor]) -> Tensor:
        outputs = self._outputs(predict)
        if not 0 <= self.answer < outputs.shape[-1]:
            raise SpecificationError(
                f"'{self.name}': answer {self.answer} is out of range; expected 0 to {outputs.shape[-1] - 1}, for a "
                f"model with {outputs.shape[-1]} outputs."
            )
        return self._mean_of_own(of(outputs))


@dataclass(frozen=True, eq=False)
class AccuracyDrop(LabelledPoints):
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
    target: float = Unstated(0.01)
    name: str = "accuracy drop"
    right: Tensor | None = field(default=None, repr=False)

    measures = (Measure("accuracy_drop", DROP, "accuracy_drop <= 0.01", "share, 0.01 is one point"),)

    def anchor(self, predict: Predict) -> AccuracyDrop:
        """Remember what the original network ``predict`` gets right."""
        return replace(self, right=self._right(predict))

    def value(self, predict: Predict) -> Tensor:
        """Accuracy before minus accuracy now."""
        before, now = self._before().double(), self._right(predict).double()
        return weighted_mean(before, self.sample_weight) - weighted_mean(now, self.sample_weight)

    def soft_value(self, predict: Predict) -> Tensor:
        """Accuracy before minus the mean probability of the true label."""
        outputs = outputs_of(predict, self.inputs)
        before = weighted_mean(self._before().float(), self.sample_weight).to(outputs.device)
        return before - weighted_mean(self._chance(outputs), self.sample_weight)

    def details(self, predict: Predict) -> dict[str, float]:
        """Samples that became wrong, and right."""
        before, now = self._before(), self._right(predict)
        return {"newly wrong": float((before & ~now).sum()), "newly right": float((~before & now).sum())}

    def interval(self, predict: Predict, confidence: float = 0.95) -> Interval:
        """Where the drop on new data lies, from the samples that changed."""
        before, now = self._before(), self._right(predict)
        worse, better = (before & ~now).double(), (~before & now).double()
        if self.sample_weight is None:
            return matched_interval(int(worse.sum()), int(better.sum()), len(now), confidence)
        count = effective_count((worse - better).numpy(), self.sample_weight.numpy())
        lost, gained = (float(weighted_mean(one, self.sample_weight)) * count for one in (worse, better))
        return matched_interval(lost, gained, count, confidence)

    def on(self, inputs: Any, labels: Any) -> AccuracyDrop:
        """The same property on other samples, which all count the same."""
        return replace(self, inputs=inputs, labels=labels, right=None, sample_weight=None)

    def where(self, keep: Keep) -> AccuracyDrop:
        """The same property on the samples that ``keep`` chooses."""
        right = None if self.right is None else self.right[keep(self.inputs).cpu()]
        return replace(super().where(keep), right=right)

    def _right(self, predict: Predict) -> Tensor:
        return ~self._wrong(predict).cpu()

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

    The attributes are those of :class:`AccuracyDrop`; ``target`` is the largest share of all samples.

    References:
        Yan, Xiong, Kundu, Yang, Deng, Wang, Xia and Soatto, Positive-Congruent Training, CVPR 2021.
    """

    target: float = Unstated(0.005)
    name: str = "flip rate"

    measures = (Measure("flip_rate", FLIPS, "flip_rate <= 0.005"),)

    @property
    def counted(self) -> Tensor | None:
        """Indices of the samples that the original network gets right; None before ``anchor``."""
        return None if self.right is None else self._counting(self.right)

    def value(self, predict: Predict) -> Tensor:
        """Samples that became wrong, over all."""
        return weighted_mean((self._before() & ~self._right(predict)).double(), self.sample_weight)

    def soft_value(self, predict: Predict) -> Tensor:
        """One minus the mean probability of the true label, over the samples that were right, times their share."""
        outputs = outputs_of(predict, self.inputs)
        return weighted_mean((1 - self._chance(outputs)) * self._before().to(outputs), self.sample_weight)

    def interval(self, predict: Predict, confidence: float = 0.95) -> Interval:
        """Where the share on new data lies; exact."""
        return self._rate_interval(self._before() & ~self._right(predict), None, confidence)
