"""The group that a network serves worst, and by how much worse than the best: rates and losses by group."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from repairopt.errors import SpecificationError, public
from repairopt.network import Predict, check_inputs, check_labelled, outputs_of
from repairopt.specify.contracts import Keep, Unstated
from repairopt.specify.expected import is_one_of
from repairopt.specify.intervals import Interval, gap_interval, largest_mean_interval, largest_rate_interval
from repairopt.specify.measures import BY_GROUP, DOWN, GROUPS, LABEL, Given, Measure
from repairopt.specify.sample_weights import WeightedGroups

from .gaps import kernel_temperature, pairwise_differences
from .samples import GroupSamples, labelled_groups, observed_groups, rows_options

HARMS = {
    "error": "wrong answers",
    "miss": "rows of the class that are not given it",
    "rejection": "rows that are not given the class",
    "loss": "cross-entropy, nats",
}
CLASS = ("miss", "rejection")  # harms that speak of one class


def _make(kind: Any, given: Given, harm: str, against: str = "zero") -> Any:
    rows = given.rows(labels=harm != "rejection")
    options: dict[str, Any] = {"target": given.limit(), "name": given.name, "harm": harm, "against": against}
    if harm == "miss":
        options["label"] = given.label("label", given.arguments["label"])
    elif harm == "rejection":
        options["label"] = given.favorable()
    return kind.observed(rows.inputs, None if harm == "rejection" else rows.labels, **given.groups(), **options)


@dataclass(frozen=True, eq=False)
class WorstGroup(WeightedGroups):
    """How badly a network serves the group that it serves worst ("levelling up", minimax and bounded group loss).

    The harm of a group is a share of its rows, or their mean loss:

    * ``error``: rows with another answer than their label;
    * ``miss``: rows of class ``label`` that get another answer, one minus the group's recall;
    * ``rejection``: rows that do not get class ``label``, one minus the group's selection rate;
    * ``loss``: mean cross-entropy, nats.

    The value is the largest harm of any group or, with ``against="best"``, the largest harm minus the smallest. A bound
    on the first asks nothing of groups that are served well, so it gives no reason to serve them worse.

    Build it with :meth:`observed`.

    Attributes:
        samples: Inputs and the group of each.
        labels: True labels ``(M,)``; None for ``rejection``.
        harm: One of the harms above.
        label: The class that ``miss`` and ``rejection`` speak of.
        against: ``"zero"`` or ``"best"``.
        target: The harm, or difference, to reach.
        temperature: Temperature of the softmax in the soft value of ``miss`` and ``rejection``; None as for
            :class:`GroupGap`.
        name: What the report calls it.

    References:
        Agarwal, Dudík and Wu, Fair Regression: Quantitative Definitions and Reduction-Based Algorithms, ICML 2019
        (bounded group loss).
        Mittelstadt, Wachter and Russell, The Unfairness of Fair Machine Learning, 2023 (levelling up).
    """

    samples: GroupSamples
    labels: Tensor | None = None
    harm: str = "error"
    label: int = 1
    against: str = "zero"
    target: float = Unstated(0.1)
    temperature: float | None = None
    name: str = "worst group"

    combine: ClassVar[str] = "max"
    measures = (
        Measure(
            "accuracy_group_min",
            "Accuracy in the group where it is lowest; fairlearn's accuracy_score_group_min.",
            "accuracy_group_min(sex) >= 0.8",
            relations=DOWN,
            arguments=BY_GROUP,
            make=partial(_make, harm="error"),
            way="1 - ",
        ),
        Measure(
            "recall_group_min",
            "Recall of a class in the group where it is lowest; fairlearn's recall_score_group_min.",
            'recall_group_min(sex, ">50K") >= 0.5',
            relations=DOWN,
            arguments=(BY_GROUP[0], LABEL, *BY_GROUP[1:]),
            make=partial(_make, harm="miss"),
            way="1 - ",
        ),
        Measure(
            "selection_rate_group_min",
            "Rate of the favorable class in the group where it is lowest; fairlearn's selection_rate_group_min.",
            "selection_rate_group_min(sex) >= 0.2",
            relations=DOWN,
            arguments=GROUPS,
            make=partial(_make, harm="rejection"),
            way="1 - ",
        ),
        Measure(
            "loss_group_max",
            "Mean cross-entropy in the group where it is largest (bounded group loss).",
            "loss_group_max(sex) <= 0.4",
            "nats",
            arguments=BY_GROUP,
            make=partial(_make, harm="loss"),
        ),
        Measure(
            "accuracy_difference",
            "Largest accuracy of any group minus the smallest; fairlearn's accuracy_score_difference.",
            "accuracy_difference(sex) <= 0.05",
            "difference of rates, 0 to 1",
            arguments=BY_GROUP,
            make=partial(_make, harm="error", against="best"),
        ),
    )

    def __post_init__(self) -> None:
        if not is_one_of(self.harm, HARMS):
            raise SpecificationError(f"'{self.name}': harm {self.harm!r} is unknown; choose from {', '.join(HARMS)}.")
        if not is_one_of(self.against, ("zero", "best")):
            raise SpecificationError(f"'{self.name}': against={self.against!r}; choose zero or best.")
        if self.labels is None and self.harm != "rejection":
            raise SpecificationError(f"'{self.name}': the harm {self.harm} needs the true label of each row.")
        if self.harm in CLASS and (isinstance(self.label, bool) or not isinstance(self.label, int | np.integer)):
            raise SpecificationError(f"'{self.name}': label is {self.label!r}; expected the index of a class, from 0.")
        if self.harm == "miss":
            for group, count in zip(self.samples.names, self._cells.sum(1).tolist(), strict=True):
                if not count:
                    raise SpecificationError(
                        f"'{self.name}': no row of group {group} has label {self.label}, so its recall is not defined. "
                        f"Leave the group out of values."
                    )

    @classmethod
    @public
    def observed(
        cls, inputs: Any, labels: Any = None, column: Any = None, values: Any = None, **options: Any
    ) -> WorstGroup:
        """The worst group among real rows.

        Args:
            inputs: Rows ``(N, ...)``.
            labels: True labels ``(N,)``; None where ``inputs`` is a dataset or loader of pairs, or for ``rejection``.
            column: Column that tells the group, by position or by a frame's name, or several whose values are crossed;
                None with ``sensitive_features``.
            values: The groups' values in it; rows with other values are left out. None for all values found.
            **options: ``sensitive_features`` ``(N,)`` in place of a column, ``min_rows``, ``sample_weight`` ``(N,)``,
                and the attributes of the class.
        """
        name = options.get("name", "worst group")
        if labels is not None or options.get("harm", "error") != "rejection":
            samples, own = labelled_groups(name, inputs, labels, column, values, options)
            return cls(samples, own, **options)
        told = rows_options(options)
        return cls(observed_groups(name, inputs, column, values, **told), **options)

    @property
    def answers_only(self) -> bool:
        """Whether the value depends on the answers alone."""
        return self.harm != "loss"

    @property
    def is_share(self) -> bool:
        """Whether values are shares, 0 to 1."""
        return self.harm != "loss"

    @property
    def inputs(self) -> Tensor:
        """The rows, ``(M, ...)``."""
        return self.samples.inputs

    def harms(self, predict: Predict, soft: bool = False) -> Tensor:
        """Harm of each group ``(q,)``, by count or by probabilities."""
        values = self._each(predict, soft)
        return (self._cells / self._cells.sum(1, keepdim=True)).to(values) @ values

    def value(self, predict: Predict) -> Tensor:
        """The largest harm, or difference of harms, by count."""
        return self.signed_hard(predict).abs().amax()

    def soft_value(self, predict: Predict) -> Tensor:
        """The same with probabilities in place of counts; differentiable."""
        return self.residuals(predict).abs().amax()

    def signed_hard(self, predict: Predict) -> Tensor:
        """Harm of each group, or the difference of each pair, by count."""
        return self._parts(self.harms(predict))

    def residuals(self, predict: Predict) -> Tensor:
        """The same from probabilities; differentiable."""
        return self._parts(self.harms(predict, soft=True))

    def details(self, predict: Predict) -> dict[str, float]:
        """Harm of each group: share of its rows, or mean loss."""
        what = {"error": "error rate", "miss": "miss rate", "rejection": "rejection rate", "loss": "loss"}[self.harm]
        harms = self.harms(predict)
        named = {f"{what}, {group}": float(h) for group, h in zip(self.samples.names, harms, strict=True)}
        return named | self.samples.details()

    def interval(self, predict: Predict, confidence: float = 0.95) -> Interval:
        """Where the value on new data lies: exact for shares, score intervals of differences, Student's t of losses."""
        if self.harm == "loss":
            losses, cells = self._each(predict).detach().double().cpu().numpy(), self._cells.numpy()
            parts, weights = zip(*((losses[own > 0], own[own > 0]) for own in cells), strict=True)
            sizes = None if self.samples.weights is None else weights
            return largest_mean_interval(parts, confidence, difference=self.against == "best", weights=sizes)
        harms, counts = self.harms(predict)[None], (self._cells > 0).sum(1)
        found = self.samples.hits(harms, counts[None], lambda: self._cells[None], self._each(predict))
        hits, counts = found[0][0], found[1][0]
        if self.against == "best":
            return gap_interval(hits, counts, confidence, combine="max")
        return largest_rate_interval(hits, counts, confidence)

    def on(self, inputs: Any, labels: Any = None) -> WorstGroup:
        """The same on other rows."""
        samples = self.samples.again(check_inputs(f"'{self.name}'", inputs, integers=True)[0])
        own = None
        if self.labels is not None:
            own = check_labelled(f"'{self.name}'", inputs, labels, integers=True)[1][samples.known]
        return replace(self, samples=samples, labels=own)

    def where(self, keep: Keep) -> WorstGroup:
        """The same on the rows that ``keep`` chooses, a mask ``(N,)`` from inputs ``(N, ...)``."""
        mask = keep(self.samples.inputs)
        labels = None if self.labels is None else self.labels[mask.cpu()]
        return replace(self, samples=self.samples.where(mask), labels=labels)

    def _parts(self, harms: Tensor) -> Tensor:
        return harms if self.against == "zero" else pairwise_differences(harms)

    @property
    def _cells(self) -> Tensor:
        """How much each row counts in the harm of each group, ``(q, M)``."""
        return self.samples.cells if self.harm != "miss" else self.samples.cells * (self.labels == self.label)

    def _each(self, predict: Predict, soft: bool = False) -> Tensor:
        """Harm of each row ``(M,)``."""
        outputs = outputs_of(predict, self.samples.inputs)
        largest = self.label if self.harm in CLASS else int(self.labels.max())  # type: ignore[union-attr]
        if not 0 <= largest < outputs.shape[-1]:
            raise SpecificationError(
                f"'{self.name}': label {largest} is out of range; expected 0 to {outputs.shape[-1] - 1}, for a model "
                f"with {outputs.shape[-1]} outputs."
            )
        if self.harm in CLASS:
            if not soft:
                return (outputs.argmax(-1) != self.label).double()
            temperature = kernel_temperature(outputs, self.label) if self.temperature is None else self.temperature
            return 1 - torch.softmax(outputs / temperature, dim=-1)[..., self.label]
        own: Any = self.labels.to(outputs.device)  # type: ignore[union-attr]
        if self.harm == "loss":
            return -torch.log_softmax(outputs, dim=-1).gather(-1, own[:, None])[:, 0]
        if not soft:
            return (outputs.argmax(-1) != own).double()
        return 1 - torch.softmax(outputs, dim=-1).gather(-1, own[:, None])[:, 0]
