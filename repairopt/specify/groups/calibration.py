"""Calibration by group: whether a probability means the same for everybody."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from repairopt.errors import SpecificationError, public
from repairopt.network import Predict, check_labelled, outputs_of
from repairopt.specify.contracts import Keep, Unstated
from repairopt.specify.intervals import DRAWS, Interval
from repairopt.specify.measures import GROUPS, Argument, Given, Measure
from repairopt.specify.sample_weights import WeightedGroups

from .gaps import FirstOfTwo, check_favorable
from .samples import GroupSamples, labelled_groups


def _make_calibration(kind: Any, given: Given) -> Any:
    rows, bins = given.rows(), given.arguments["bins"]
    options = {"favorable": given.favorable(), "target": given.limit(), "name": given.name, "bins": bins}
    return kind.observed(rows.inputs, rows.labels, **given.groups(), **options)


@dataclass(frozen=True, eq=False)
class CalibrationError(WeightedGroups):
    """Expected calibration error of the favorable class's probability, in the group where it is largest.

    Probabilities of a group's rows are divided into ``bins`` of equal width; the error is the mean over the rows of
    the distance, in their bin, between the mean probability and the share of rows that have the class. Few rows make
    it too large, never too small, on average. Build it with :meth:`observed`.

    Attributes:
        samples: Inputs and the group of each.
        labels: True labels ``(M,)``.
        favorable: The class whose probability is looked at.
        bins: Number of bins.
        target: The error to reach.
        name: What the report calls it.

    References:
        Naeini, Cooper and Hauskrecht, Obtaining Well Calibrated Probabilities Using Bayesian Binning, AAAI 2015.
        Kleinberg, Mullainathan and Raghavan, Inherent Trade-Offs in the Fair Determination of Risk Scores, ITCS 2017.
    """

    samples: GroupSamples
    labels: Tensor
    favorable: int = FirstOfTwo(1)
    bins: int = 10
    target: float = Unstated(0.05)
    name: str = "calibration error"

    is_share: ClassVar[bool] = True
    measures = (
        Measure(
            "calibration_error",
            "Expected calibration error of the favorable class's probability, in the group where it is largest.",
            "calibration_error(sex) <= 0.05",
            arguments=(*GROUPS[:2], Argument("bins", "count", "bins of equal width", 10), *GROUPS[2:]),
            make=_make_calibration,
        ),
    )

    def __post_init__(self) -> None:
        if isinstance(self.bins, bool) or not isinstance(self.bins, int) or self.bins < 1:
            raise SpecificationError(f"'{self.name}': bins={self.bins!r}; expected a whole number, 1 or more.")

    @classmethod
    @public
    def observed(
        cls, inputs: Any, labels: Any = None, column: Any = None, values: Any = None, **options: Any
    ) -> CalibrationError:
        """The calibration error on real labelled rows.

        Args:
            inputs: Rows ``(N, ...)``.
            labels: True labels ``(N,)``; None where ``inputs`` is a dataset or loader of pairs.
            column: Column that tells the group, by position or by a frame's name, or several whose values are crossed;
                None with ``sensitive_features``.
            values: The groups' values in it; None for all values found.
            **options: ``sensitive_features`` ``(N,)`` in place of a column, ``min_rows``, ``sample_weight`` ``(N,)``,
                and the attributes of the class.
        """
        name = options.get("name", "calibration error")
        return cls(*labelled_groups(name, inputs, labels, column, values, options), **options)

    @property
    def inputs(self) -> Tensor:
        """The rows, ``(M, ...)``."""
        return self.samples.inputs

    def errors(self, predict: Predict) -> Tensor:
        """Calibration error of each group ``(q,)``; differentiable, with the bins as they are."""
        off, cell = self._cells(predict)
        sums = cell.to(off).T @ off
        return sums.reshape(self.samples.q, self.bins).abs().sum(1) / self.samples.cells.sum(1).to(off)

    def value(self, predict: Predict) -> Tensor:
        """The largest error of any group."""
        return self.errors(predict).amax()

    def soft_value(self, predict: Predict) -> Tensor:
        """The same: the error is differentiable as long as no row changes its bin."""
        return self.value(predict)

    def details(self, predict: Predict) -> dict[str, float]:
        """The error of each group, and its mean probability minus the share of rows with the class."""
        off, _ = self._cells(predict)
        lean = self.samples.mean_by_group(off[:, None])[:, 0]
        found = list(zip(self.samples.names, self.errors(predict).tolist(), lean.tolist(), strict=True))
        named = {f"error, {group}": error for group, error, _ in found}
        return named | {f"probability too high by, {group}": high for group, _, high in found} | self.samples.details()

    def interval(self, predict: Predict, confidence: float = 0.95) -> Interval:
        """Where the error on new data lies: sums of the bins are drawn from normal distributions; errs upward."""
        off, cell = (part.detach().double() for part in self._cells(predict))
        sums = (cell.T @ off).cpu().numpy()
        counts = cell.sum(0).cpu().numpy()
        variance = (cell.T @ off**2).cpu().numpy() - sums**2 / np.maximum(counts, 1)
        if self.samples.weights is not None:  # of a sum of weighted deviations from the mean of their bin
            means = torch.as_tensor(sums / np.where(counts > 0, counts, 1.0), device=off.device)
            variance = ((cell**2) * (off[:, None] - means) ** 2).sum(0).cpu().numpy()
        drawn = sums + np.sqrt(np.maximum(variance, 0.0)) * np.random.default_rng(0).normal(size=(DRAWS, len(sums)))
        rows = self.samples.cells.sum(1).numpy()
        errors = np.abs(drawn).reshape(DRAWS, self.samples.q, self.bins).sum(2) / rows
        tail, value = (1.0 - confidence) / 2.0, float(self.value(predict).detach())
        high = max(value, float(np.quantile(errors.max(1), 1.0 - tail)))
        low = max(0.0, 2.0 * value - high)
        count = int(self.samples.effective.min())
        return Interval(value, low, high, confidence, count, f"bootstrap of bins, {DRAWS} draws")

    def on(self, inputs: Any, labels: Any) -> CalibrationError:
        """The same on other rows."""
        x, y = check_labelled(f"'{self.name}'", inputs, labels, integers=True)
        samples = self.samples.again(x)
        return replace(self, samples=samples, labels=y[samples.known])

    def where(self, keep: Keep) -> CalibrationError:
        """The same on the rows that ``keep`` chooses, a mask ``(N,)`` from inputs ``(N, ...)``."""
        mask = keep(self.samples.inputs)
        return replace(self, samples=self.samples.where(mask), labels=self.labels[mask.cpu()])

    def _cells(self, predict: Predict) -> tuple[Tensor, Tensor]:
        """Probability minus outcome of each row ``(M,)``, and how much it counts in each group and bin (M, q bins)."""
        outputs = outputs_of(predict, self.samples.inputs)
        check_favorable(self.name, self.favorable, outputs.shape[-1])
        chance = torch.softmax(outputs, dim=-1)[..., self.favorable]
        place = (chance.detach() * self.bins).long().clamp(0, self.bins - 1)
        cell = self.samples.member.to(place.device) * self.bins + place
        numbers = torch.arange(self.samples.q * self.bins, device=place.device)
        own: Tensor = cell[:, None] == numbers
        if self.samples.weights is not None:
            own = own * self.samples.weights.to(place.device)[:, None]
        return chance - (self.labels == self.favorable).to(chance), own
