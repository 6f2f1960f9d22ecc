"""Gaps between the rates of groups (demographic parity), by count and in a differentiable form."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import combinations
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor, stack, where

from repairopt.errors import SpecificationError, public
from repairopt.network import Predict, check_inputs, outputs_of
from repairopt.specify.contracts import Unstated
from repairopt.specify.expected import is_one_of
from repairopt.specify.intervals import Interval, bootstrap_rates, gap_interval, ratio_interval
from repairopt.specify.measures import DOWN, GROUPS, Given, Measure
from repairopt.specify.sample_weights import WeightedGroups

from .samples import GroupSamples, observed_groups, rows_options, sampled_groups

LOGISTIC = 3**0.5 / 3.141592653589793  # scale of the logistic kernel with standard deviation 1
SCORES = ("max_difference", "difference", "ratio", "kl", "jensen_shannon")


def pairwise_differences(rates: Tensor) -> Tensor:
    """``rates[a] - rates[b]`` for all pairs ``a < b``, ``(q (q-1) / 2,)``."""
    return stack([rates[a] - rates[b] for a, b in combinations(range(len(rates)), 2)])


def spread_of(rates: Tensor, counts: Tensor, combine: str, below: Tensor | None = None) -> Tensor:
    """Standard error of differences of rates, times the root of the number of rows; differentiable in the rates.

    ``rates`` and ``counts``, the rows behind each, are ``(labels, q)``; groups are compared within a row. ``combine``
    is ``"max"`` for the largest difference, else the mean. ``below (labels,)`` says whether the rates of a label are to
    lie below one half: on the other side the spread goes on growing, so that the way to a small one leads back.
    """
    variance = rates * (1 - rates)
    if below is not None:
        beyond = where(below.to(rates.device)[:, None], rates > 0.5, rates < 0.5)
        variance = where(beyond, 0.5 - variance, variance)
    variance = variance * (counts.sum() / counts).to(rates)
    variance = variance.clamp(min=0.0) + 1e-12  # a mean of ones may be above 1, and the root has no slope at 0
    pairs = list(combinations(range(rates.shape[1]), 2))
    errors = stack([(variance[:, a] + variance[:, b]).sqrt() for a, b in pairs])
    return errors.amax() if combine == "max" else errors.mean()


def kernel_temperature(outputs: Tensor, favorable: int) -> Tensor:
    """Temperature with which the softmax is a kernel estimate: twice Silverman's bandwidth for the lead."""
    lead = outputs.detach()[..., favorable] - outputs.detach().mean(-1)
    bandwidth = 2 * 1.06 * lead.std() * outputs.shape[0] ** -0.2  # Silverman, Density Estimation, 1986
    return (bandwidth * outputs.shape[-1] / (outputs.shape[-1] - 1) * LOGISTIC).clamp(min=1e-6)


def _make_parity(kind: Any, given: Given, score: str = "max_difference") -> Any:
    options = {"favorable": given.favorable(), "target": given.limit(), "name": given.name, "score": score}
    return kind.observed(given.rows(labels=False).inputs, **given.groups(), **options)


class FirstOfTwo(int):
    """The favorable class where nobody stated one: 1, for networks with two outputs alone."""


def check_favorable(name: str, favorable: Any, classes: int) -> None:
    """A SpecificationError unless the favorable class is one of the model's, and stated where there are over two."""
    whole = isinstance(favorable, int | np.integer) and not isinstance(favorable, bool)
    if not whole or not 0 <= favorable < classes:
        raise SpecificationError(
            f"'{name}': favorable label {favorable!r} is out of range; expected one class, 0 to {classes - 1}, for a "
            f"model with {classes} outputs."
        )
    if isinstance(favorable, FirstOfTwo) and classes > 2:
        raise SpecificationError(
            f"'{name}': no favorable class is stated, for a model with {classes} outputs. Pass favorable=, 0 to "
            f"{classes - 1}."
        )


class RateGap(WeightedGroups):
    """What gaps between rates of groups share: the favorable answers of each group, and the size of differences."""

    samples: GroupSamples
    favorable: int
    temperature: float | None
    name: str
    answers_only: ClassVar[bool] = True

    @property
    def is_share(self) -> bool:
        """Whether values are shares, 0 to 1."""
        return getattr(self, "score", "") not in ("kl", "jensen_shannon")

    @property
    def combine(self) -> str:
        """How the signed differences make the score: ``"mean"`` or ``"max"`` of their sizes; empty for others."""
        raise NotImplementedError

    def value(self, predict: Predict) -> Tensor:
        """The score by count."""
        return self._size(self.signed_hard(predict))

    def soft_value(self, predict: Predict) -> Tensor:
        """The score with probabilities in place of counts; differentiable where no difference is exactly 0."""
        return self._size(self.residuals(predict))

    def signed_hard(self, predict: Predict) -> Tensor:
        """Signed differences of the favorable rate by count, over the pairs of groups within each row of rates."""
        return self._differences(self._favored(predict))

    def residuals(self, predict: Predict) -> Tensor:
        """The same from probabilities; differentiable."""
        return self._differences(self._favored(predict, soft=True))

    def compared(self, predict: Predict, soft: bool = False) -> tuple[Tensor, Tensor]:
        """Favorable rates, by count or by probabilities, and the inputs behind each, ``(c, q)`` each."""
        return self._means(self._favored(predict, soft)), self._counts()

    def interval(self, predict: Predict, confidence: float = 0.95) -> Interval:
        """Where the gap on new data lies: score intervals of differences, a bootstrap for their mean."""
        favored = self._favored(predict).double()
        hits, counts = self.samples.hits(self._means(favored), self._counts(), self._cells, favored)
        rows = np.repeat(np.arange(len(counts), dtype=np.float64), self.samples.q)
        return gap_interval(hits.flatten(), counts.flatten(), confidence, combine=self.combine, labels=rows)

    def _means(self, values: Tensor) -> Tensor:
        """Means ``(c, q)`` of ``values (M,)`` over each group; compared within a row."""
        raise NotImplementedError

    def _counts(self) -> Tensor:
        """Inputs behind each of the means, ``(c, q)``; effective numbers of weighted rows."""
        raise NotImplementedError

    def _cells(self) -> Tensor:
        """How much each input counts in each of the means, ``(c, q, M)``."""
        raise NotImplementedError

    def _outputs(self, predict: Predict) -> Tensor:
        outputs = outputs_of(predict, self.samples.inputs)
        check_favorable(self.name, self.favorable, outputs.shape[-1])
        return outputs

    def _soft(self, outputs: Tensor) -> Tensor:
        """Soft count of each label, ``(M, k)``."""
        temperature = kernel_temperature(outputs, self.favorable) if self.temperature is None else self.temperature
        return torch.softmax(outputs / temperature, dim=-1)

    def _favored(self, predict: Predict, soft: bool = False) -> Tensor:
        """Count, or soft count, of the favorable label for each input, ``(M,)``."""
        outputs = self._outputs(predict)
        if soft:
            return self._soft(outputs)[..., self.favorable]
        return (outputs.argmax(-1) == self.favorable).double()  # a limit may be next to a share

    def _differences(self, values: Tensor) -> Tensor:
        return torch.cat([pairwise_differences(rates) for rates in self._means(values)])

    def _size(self, differences: Tensor) -> Tensor:
        return differences.abs().mean() if self.combine == "mean" else differences.abs().amax()


@dataclass(frozen=True, eq=False)
class GroupGap(RateGap):
    """How differently a network treats groups (demographic parity), by count and in a differentiable form.

    Build it with :meth:`sampled` (inputs made by setting the protected feature: the network's own dependence on it),
    :meth:`observed` (real rows by group: what people experience) or :meth:`given` (one array of inputs for each group).
    The two kinds differ: closing one can widen the other, so report both.

    Scores, over the rates ``theta_a`` with which group ``a`` gets each label:

    * ``difference``: mean over pairs of groups of ``|theta_a(favorable) - theta_b(favorable)|``;
    * ``max_difference``: the largest of these, fairlearn's ``demographic_parity_difference``;
    * ``ratio``: one minus the smallest rate of the favorable label over the largest; fairlearn has the ratio itself;
      0 where all are 0;
    * ``kl``: mean over ordered pairs of the Kullback-Leibler divergence, counts smoothed by ``smoothing``;
    * ``jensen_shannon``: mean divergence from the average group; symmetric, at most ``ln q``.

    Attributes:
        samples: Inputs and the group of each.
        favorable: The favorable label; may be left out where there are two, and is 1 then.
        target: The gap to reach.
        score: One of the scores above.
        temperature: Temperature of the softmax in the soft value; towards 0 it becomes the count. None takes twice
            Silverman's bandwidth for the spread of the outputs, so that the soft value's slope estimates the slope of
            the count over a step (measured: better than a fixed temperature on the census network).
        smoothing: Added to each count in the divergences.
        name: What the report calls it.

    References:
        AutoRIC: Automated Neural Network Repairing Based on Constrained Optimization, TOSEM 2024.
    """

    samples: GroupSamples
    favorable: int = FirstOfTwo(1)
    target: float = Unstated(0.05)
    score: str = "max_difference"
    temperature: float | None = None
    smoothing: float = Unstated(0.5)
    name: str = "group gap"

    measures = (
        Measure(
            "demographic_parity_difference",
            "Largest difference of the favorable rate; defined as in fairlearn, the same as gap(..., kind=parity).",
            "demographic_parity_difference(sex) <= 0.05",
            "difference of rates, 0 to 1",
            arguments=GROUPS,
            make=_make_parity,
        ),
        Measure(
            "demographic_parity_ratio",
            "Smallest favorable rate over the largest; defined as in fairlearn, 0.8 for the four-fifths rule.",
            "demographic_parity_ratio(sex) >= 0.8",
            "share, 0 to 1, of the largest rate",
            DOWN,
            GROUPS,
            partial(_make_parity, score="ratio"),
            way="1 - ",
        ),
        Measure(
            "ratio",
            "Short for demographic_parity_ratio.",
            "ratio(sex) >= 0.8",
            "share, 0 to 1, of the largest rate",
            DOWN,
            GROUPS,
            partial(_make_parity, score="ratio"),
            way="1 - ",
        ),
    )

    def __post_init__(self) -> None:
        if not is_one_of(self.score, SCORES):
            raise SpecificationError(
                f"'{self.name}': score {self.score!r} is unknown; choose from {', '.join(SCORES)}."
            )
        if (self.temperature is not None and self.temperature <= 0) or self.smoothing <= 0:
            raise SpecificationError(f"'{self.name}': temperature and smoothing must be above 0.")
        if not isinstance(self.smoothing, Unstated) and self.score not in ("kl", "jensen_shannon"):
            name, given = self.name, f"smoothing={self.smoothing:g}"
            raise SpecificationError(f"'{name}': {given} is for the scores kl and jensen_shannon, not {self.score}.")

    @classmethod
    @public
    def sampled(cls, inputs: Any, column: int | str, values: Sequence[float] | None = None, **options: Any) -> GroupGap:
        """Gap on inputs made from ``inputs`` by setting one column to each group's value.

        Args:
            inputs: Rows ``(N, d)`` to draw the other columns from.
            column: The protected column, by position or by a frame's name.
            values: The groups' values in it; None for all values found.
            **options: ``count`` (10,000 for each group), ``rest`` (``"joint"``: same rows for each group;
                ``"marginals"``: each other column drawn on its own; ``"conditional"``: rows of that group only),
                ``seed``, and the attributes of the class.
        """
        split = {key: options.pop(key) for key in ("count", "rest", "seed") if key in options}
        return cls(sampled_groups(options.get("name", "group gap"), inputs, column, values, **split), **options)

    @classmethod
    @public
    def observed(cls, inputs: Any, column: Any = None, values: Any = None, **options: Any) -> GroupGap:
        """Gap on real rows, each in the group that its own data say.

        Args:
            inputs: Rows ``(N, ...)``.
            column: Column that tells the group, by position or by a frame's name, or several whose values are crossed;
                None with ``sensitive_features``.
            values: The groups' values in it; rows with other values are left out. None for all values found.
            **options: ``sensitive_features`` ``(N,)`` in place of a column, ``min_rows`` (smaller groups are left out
                and named), ``sample_weight`` ``(N,)`` (how much each row counts), and the attributes of the class.
        """
        own, name = rows_options(options), options.get("name", "group gap")
        return cls(observed_groups(name, inputs, column, values, **own), **options)

    @classmethod
    @public
    def given(cls, groups: Sequence[Any], **options: Any) -> GroupGap:
        """Gap on one array of inputs for each group.

        Args:
            groups: Two or more arrays ``(N_a, ...)``.
            **options: The attributes of the class.

        Raises:
            SpecificationError: Fewer than two groups, or one without rows.
        """
        name = options.get("name", "group gap")
        if len(groups) < 2:
            raise SpecificationError(f"'{name}': {len(groups)} group given; a gap needs at least two.")
        parts = [check_inputs(f"'{name}', group {a}", group, integers=True)[0] for a, group in enumerate(groups)]
        member = torch.cat([torch.full((len(part),), a) for a, part in enumerate(parts)])
        return cls(GroupSamples(torch.cat(parts), member, tuple(f"group {a}" for a in range(len(parts)))), **options)

    @property
    def combine(self) -> str:
        """How the signed differences make the score: ``"mean"`` or ``"max"`` of their sizes; empty for others."""
        return {"difference": "mean", "max_difference": "max"}.get(self.score, "")

    def rates(self, predict: Predict, soft: bool = False) -> Tensor:
        """Rate of each label in each group, ``(q, k)``."""
        outputs = self._outputs(predict)
        hard = torch.nn.functional.one_hot(outputs.argmax(-1), outputs.shape[-1]).double()
        return self.samples.mean_by_group(self._soft(outputs) if soft else hard)

    def value(self, predict: Predict) -> Tensor:
        """The score by count."""
        return super().value(predict) if self.combine else self._divergence(self.rates(predict))

    def soft_value(self, predict: Predict) -> Tensor:
        """The score with probabilities in place of counts; differentiable where no difference is exactly 0."""
        return super().soft_value(predict) if self.combine else self._divergence(self.rates(predict, soft=True))

    def undesired(self, predict: Predict) -> Tensor:
        """Mean change of the favorable probability when the protected value of an input is changed (CARE's measure).

        Falls back to the soft score where the groups are not paired.
        """
        if not self.samples.paired:
            return self.soft_value(predict)
        outputs = self._outputs(predict)
        chance = torch.softmax(outputs, dim=-1)[..., self.favorable].reshape(self.samples.q, -1)
        gaps = torch.stack([(chance - chance.roll(s, 0)).abs() for s in range(1, self.samples.q)])
        return gaps.amax(0).mean()

    def details(self, predict: Predict) -> dict[str, float]:
        """Favorable rate of each group and the standard error of the largest pairwise difference."""
        rates = self.rates(predict)[:, self.favorable].double()
        out = {f"favorable rate, {group}": float(r) for group, r in zip(self.samples.names, rates, strict=True)}
        variance = rates * (1 - rates) / self.samples.effective.to(rates.device)
        out["standard error"] = float(variance.topk(2).values.sum().sqrt())
        return out | self.samples.details()

    def on(self, inputs: Any, labels: Any = None) -> GroupGap:
        """The same gap on other data; ``labels`` are not used."""
        return replace(self, samples=self.samples.again(inputs))

    def where(self, keep: Callable[[Tensor], Tensor]) -> GroupGap:
        """The same gap on the inputs that ``keep`` chooses, a mask ``(N,)`` from inputs ``(N, ...)``."""
        return replace(self, samples=self.samples.where(keep(self.samples.inputs)))

    def interval(self, predict: Predict, confidence: float = 0.95) -> Interval:
        """Where the gap on new data lies: score intervals of differences and ratios, a bootstrap of the others."""
        if self.combine:
            return super().interval(predict, confidence)
        favored, rates = self._favored(predict), self.rates(predict).double()
        hits, counts = self.samples.hits(rates.T, self._counts(), self._cells, favored)
        hits, counts = hits.T, counts[0]
        if self.score == "ratio":
            return ratio_interval(hits[:, self.favorable], counts, confidence)

        def score(drawn: Any) -> Any:
            return np.array([float(self._divergence(torch.as_tensor(one))) for one in drawn])

        return bootstrap_rates(hits, counts, confidence, score)

    def subsample(self, count: int, seed: int = 0) -> GroupGap:
        """The same gap on at most ``count`` inputs of each group, for quick looks such as fault localization."""
        return replace(self, samples=self.samples.subsample(count, seed))

    def _means(self, values: Tensor) -> Tensor:
        return self.samples.mean_by_group(values[:, None]).T

    def _counts(self) -> Tensor:
        return self.samples.effective[None]

    def _cells(self) -> Tensor:
        return self.samples.cells[None]

    def _divergence(self, rates: Tensor) -> Tensor:
        if self.score == "ratio":
            low, high = rates[:, self.favorable].aminmax()
            return torch.where(high > 0, 1 - low / high.clamp(min=1e-30), 0.0)
        counts = self.samples.counts.to(rates)[:, None]
        theta = (rates * counts + self.smoothing) / (counts + self.smoothing * rates.shape[1])
        if self.score == "jensen_shannon":
            middle = theta.mean(0, keepdim=True)
            return (theta * (theta / middle).log()).sum(1).mean()
        logs = theta.log()
        pairs = (theta[:, None] * (logs[:, None] - logs[None])).sum(2)
        return pairs.sum() / (self.samples.q * (self.samples.q - 1))
