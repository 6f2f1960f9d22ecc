"""Ready-made properties: gap between groups, error on given points, recall.

Robustness properties stand in :mod:`repairopt.robustness`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from typing import Any

import torch
from torch import Tensor

from .errors import SpecificationError
from .sample_groups import GroupSamples, observed_groups, sampled_groups
from .specify import Predict, check_inputs, check_labels

LOGISTIC = 3**0.5 / 3.141592653589793  # scale of the logistic kernel with standard deviation 1
SCORES = ("difference", "max_difference", "kl", "jensen_shannon")


@dataclass(frozen=True, eq=False)
class GroupGap:
    """How differently a network treats groups (demographic parity), by count and in a differentiable form.

    Build it with :meth:`sampled` (inputs made by setting the protected feature: the network's own dependence on it),
    :meth:`observed` (real rows by group: what people experience) or :meth:`given` (one array of inputs for each group).
    The two kinds differ: closing one can widen the other, so report both.

    Scores, over the rates ``theta_a`` with which group ``a`` gets each label:

    * ``difference``: mean over pairs of groups of ``|theta_a(favorable) - theta_b(favorable)|``;
    * ``max_difference``: the largest of these, fairlearn's ``demographic_parity_difference``;
    * ``kl``: mean over ordered pairs of the Kullback-Leibler divergence, counts smoothed by ``smoothing``;
    * ``jensen_shannon``: mean divergence from the average group; symmetric, at most ``ln q``.

    Attributes:
        samples: Inputs and the group of each.
        favorable: The favorable label.
        target: The gap to reach.
        score: One of the scores above.
        temperature: Of the softmax in the soft value; towards 0 it becomes the count. None takes twice Silverman's
            bandwidth for the spread of the outputs, so that the soft value's slope estimates the slope of the count
            over a step (measured: better than a fixed temperature on the census network).
        smoothing: Added to each count in the divergences.
        name: What the report calls it.

    References:
        AutoRIC: Automated Neural Network Repairing Based on Constrained Optimization, TOSEM 2024.
    """

    samples: GroupSamples
    favorable: int = 1
    target: float = 0.05
    score: str = "difference"
    temperature: float | None = None
    smoothing: float = 0.5
    name: str = "group gap"

    def __post_init__(self) -> None:
        if self.score not in SCORES:
            raise SpecificationError(
                f"'{self.name}': score {self.score!r} is unknown; choose from {', '.join(SCORES)}."
            )
        if (self.temperature is not None and self.temperature <= 0) or self.smoothing <= 0:
            raise SpecificationError(f"'{self.name}': temperature and smoothing must be above 0.")

    @classmethod
    def sampled(cls, inputs: Any, column: int, values: Sequence[float] | None = None, **options: Any) -> GroupGap:
        """Gap on inputs made from ``inputs`` by setting one column to each group's value.

        Args:
            inputs: Rows ``(N, d)`` to draw the other columns from.
            column: The protected column.
            values: The groups' values in it; None for all values found.
            **options: ``count`` (10,000 for each group), ``rest`` (``"joint"``: same rows for each group;
                ``"marginals"``: each other column drawn on its own; ``"conditional"``: rows of that group only),
                ``seed``, and the attributes of the class.

        Returns:
            The property, with its inputs drawn once.
        """
        split = {key: options.pop(key) for key in ("count", "rest", "seed") if key in options}
        return cls(sampled_groups(options.get("name", "group gap"), inputs, column, values, **split), **options)

    @classmethod
    def observed(cls, inputs: Any, column: int | None = None, values: Any = None, **options: Any) -> GroupGap:
        """Gap on real rows, each in the group that its own data say.

        Args:
            inputs: Rows ``(N, ...)``.
            column: Column that tells the group, or None with ``sensitive_features``.
            values: The groups' values in it; rows with other values are left out. None for all values found.
            **options: ``sensitive_features`` ``(N,)`` in place of a column, and the attributes of the class.

        Returns:
            The property.
        """
        features = options.pop("sensitive_features", None)
        name = options.get("name", "group gap")
        return cls(observed_groups(name, inputs, column, values, sensitive_features=features), **options)

    @classmethod
    def given(cls, groups: Sequence[Any], **options: Any) -> GroupGap:
        """Gap on one array of inputs for each group.

        Args:
            groups: Two or more arrays ``(N_a, ...)``.
            **options: The attributes of the class.

        Returns:
            The property.

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
        """How the signed differences make the score: ``"mean"`` or ``"max"`` of their sizes; empty for divergences."""
        return {"difference": "mean", "max_difference": "max"}.get(self.score, "")

    def rates(self, predict: Predict, soft: bool = False) -> Tensor:
        """Rate of each label in each group, ``(q, k)``."""
        outputs = self._outputs(predict)
        if soft:
            labels = torch.softmax(outputs / self._temperature(outputs), dim=-1)
        else:
            labels = torch.nn.functional.one_hot(outputs.argmax(-1), outputs.shape[-1]).to(outputs.dtype)
        return self.samples.mean_by_group(labels)

    def value(self, predict: Predict) -> Tensor:
        """The score by count."""
        if self.score in ("kl", "jensen_shannon"):
            return self._score(self.rates(predict))
        return self._from_differences(self.signed_hard(predict))

    def soft_value(self, predict: Predict) -> Tensor:
        """The score with probabilities in place of counts; differentiable where no difference is exactly 0."""
        return self._score(self.rates(predict, soft=True))

    def residuals(self, predict: Predict) -> Tensor:
        """Signed soft differences of the favorable rate over the pairs of groups, ``(q (q-1) / 2,)``."""
        outputs = self._outputs(predict)
        chance = torch.softmax(outputs / self._temperature(outputs), dim=-1)[..., self.favorable]
        return self._differences(self.samples.mean_by_group(chance[:, None])[:, 0])

    def signed_hard(self, predict: Predict) -> Tensor:
        """Signed differences of the favorable rate by count, ``(q (q-1) / 2,)``."""
        hit = self._outputs(predict).argmax(-1) == self.favorable
        return self._differences(self.samples.mean_by_group(hit.to(torch.float32)[:, None])[:, 0])

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
        variance = rates * (1 - rates) / self.samples.counts.to(rates.device)
        out["standard error"] = float(variance.topk(2).values.sum().sqrt())
        return out

    def on(self, inputs: Any, labels: Any = None) -> GroupGap:
        """The same gap on other data; ``labels`` are not used."""
        return replace(self, samples=self.samples.again(inputs))

    def subsample(self, count: int, seed: int = 0) -> GroupGap:
        """The same gap on at most ``count`` inputs of each group, for quick looks such as fault localization."""
        return replace(self, samples=self.samples.subsample(count, seed))

    def _outputs(self, predict: Predict) -> Tensor:
        outputs = predict(self.samples.inputs)
        if not 0 <= self.favorable < outputs.shape[-1]:
            raise SpecificationError(
                f"'{self.name}': favorable label {self.favorable} is out of range; expected 0 to "
                f"{outputs.shape[-1] - 1}, for a model with {outputs.shape[-1]} outputs."
            )
        return outputs

    def _temperature(self, outputs: Tensor) -> Tensor | float:
        if self.temperature is not None:
            return self.temperature
        lead = outputs.detach()[..., self.favorable] - outputs.detach().mean(-1)
        bandwidth = 2 * 1.06 * lead.std() * outputs.shape[0] ** -0.2  # Silverman, Density Estimation, 1986
        return (bandwidth * outputs.shape[-1] / (outputs.shape[-1] - 1) * LOGISTIC).clamp(min=1e-6)

    def _differences(self, rates: Tensor) -> Tensor:
        pairs = list(combinations(range(self.samples.q), 2))
        return torch.stack([rates[a] - rates[b] for a, b in pairs])

    def _from_differences(self, differences: Tensor) -> Tensor:
        return differences.abs().amax() if self.score == "max_difference" else differences.abs().mean()

    def _score(self, rates: Tensor) -> Tensor:
        if self.score in ("difference", "max_difference"):
            return self._from_differences(self._differences(rates[:, self.favorable]))
        counts = self.samples.counts.to(rates)[:, None]
        theta = (rates * counts + self.smoothing) / (counts + self.smoothing * rates.shape[1])
        if self.score == "jensen_shannon":
            middle = theta.mean(0, keepdim=True)
            return (theta * (theta / middle).log()).sum(1).mean()
        logs = theta.log()
        pairs = (theta[:, None] * (logs[:, None] - logs[None])).sum(2)
        return pairs.sum() / (self.samples.q * (self.samples.q - 1))


@dataclass(frozen=True, eq=False)
class ErrorRate:
    """Share of given points that the network gets wrong.

    The soft value is one minus the mean probability of the true label.

    Attributes:
        inputs: Points ``(N, ...)``.
        labels: Their classes ``(N,)``.
        target: The share to reach; 0 asks for every point.
        name: What the report calls it.
    """

    inputs: Any
    labels: Any
    target: float = 0.0
    name: str = "error rate"

    def __post_init__(self) -> None:
        x, y = check_inputs(f"'{self.name}'", self.inputs, self.labels, integers=True)
        object.__setattr__(self, "inputs", x)
        object.__setattr__(self, "labels", y)

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

    def on(self, inputs: Any, labels: Any) -> ErrorRate:
        """The same property on other points."""
        return replace(self, inputs=inputs, labels=labels)

    def _outputs(self, predict: Predict) -> Tensor:
        outputs = predict(self.inputs)
        check_labels(f"'{self.name}'", self.labels, outputs.shape[-1])
        return outputs


@dataclass(frozen=True, eq=False)
class MissRate:
    """One minus the recall of a class: share of its points that are given another label.

    Attributes:
        inputs: Points ``(N, ...)``; those of other classes are ignored.
        labels: Their classes ``(N,)``.
        label: The class.
        target: The share to reach.
        name: What the report calls it.
    """

    inputs: Any
    labels: Any
    label: int = 1
    target: float = 0.0
    name: str = "miss rate"

    def __post_init__(self) -> None:
        x, y = check_inputs(f"'{self.name}'", self.inputs, self.labels, integers=True)
        if not bool((y == self.label).any()):
            raise SpecificationError(f"'{self.name}': no row has label {self.label}; its recall is not defined.")
        object.__setattr__(self, "inputs", x)
        object.__setattr__(self, "labels", y)

    def value(self, predict: Predict) -> Tensor:
        """Share of the class's points that get another label."""
        outputs = predict(self.inputs)
        weight = self._weight(outputs)
        return ((outputs.argmax(-1) != self.label).to(weight.dtype) * weight).sum()

    def soft_value(self, predict: Predict) -> Tensor:
        """One minus the mean probability of the class over its points."""
        outputs = predict(self.inputs)
        return 1 - (torch.softmax(outputs, dim=-1)[:, self.label] * self._weight(outputs)).sum()

    def on(self, inputs: Any, labels: Any) -> MissRate:
        """The same property on other points."""
        return replace(self, inputs=inputs, labels=labels)

    def _weight(self, outputs: Tensor) -> Tensor:
        own = (self.labels == self.label).to(outputs)
        return own / own.sum()
