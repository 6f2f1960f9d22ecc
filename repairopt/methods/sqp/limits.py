"""Limits: every typed bound of a repair, with its hard value and linear rows from soft derivatives.

``gap <= t``, ``recall >= r``, ``accuracy drop <= a``: the goal with its target, every :class:`repairopt.Bound`, and
every other constraint that is not by sample. At each point a limit gives its value *by count*, which is what the user
typed, and rows whose constants are that value and whose slopes come from the soft, differentiable stand-in. The soft
value alone converges to the wrong place, and a count has no slope (measured).
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from repairopt.errors import SpecificationError
from repairopt.network import Engine, Predict, jacobian
from repairopt.program import Array
from repairopt.specify import (
    CallableProperty,
    Constraint,
    Differentiable,
    Property,
    PropertyBound,
    SampleConstraint,
    SampleShare,
    goal_value,
    has_signed_parts,
    labels_of,
    soft_margins,
    soft_value,
)
from repairopt.surrogate import SurrogateSettings, fit_surrogate

SAMPLES_EACH, LEAST_SAMPLES = 4, 64  # of a property without derivatives, for each weight and at least
BAND, WIDEST = 0.5, 0.004  # share of the buffer that a point may use up, and the most; rows aim at all of it


@dataclass(frozen=True, eq=False)
class Lines:
    """A limit in the step ``d`` from some point: the size of ``values + slopes @ d``, put together, must not exceed it.

    Attributes:
        values: By count, ``(p,)``.
        slopes: ``(p, n)``.
        combine: ``"max"``: the largest entry; ``"max_abs"``, ``"mean_abs"``: largest or mean absolute entry.
    """

    values: Array
    slopes: Array
    combine: str = "max"

    def at(self, step: Array) -> float:
        """The value that the lines promise at a step."""
        moved = self.values + self.slopes @ step
        if self.combine == "mean_abs":
            return float(np.abs(moved).mean())
        return float((np.abs(moved) if self.combine == "max_abs" else moved).max())

    def shifted(self, step: Array, value: Array) -> Lines:
        """The same slopes with constants that make the lines exact at a step, for second-order corrections."""
        return Lines(value - self.slopes @ step, self.slopes, self.combine)


@dataclass(frozen=True, eq=False)
class Limit:
    """One typed bound.

    Attributes:
        name: What rows, prices and the report call it.
        property: What is bounded.
        limit: Its largest value.
        buffer: Taken off the limit in the rows.
        margin: Logits by which labelled points must lead to count as right, in values and slopes.
        relative: Whether the limit is the original network's value, which is another one on other samples.
        smooth: Whether values are those of the differentiable stand-in, not by count.
    """

    name: str
    property: Any
    limit: float
    buffer: float = 0.0
    margin: float = 0.0
    relative: bool = False
    smooth: bool = False

    @functools.cached_property
    def aim(self) -> float:
        """What rows ask for."""
        return self.limit - self.buffer

    @functools.cached_property
    def accepted(self) -> float:
        """The largest value that counts as meeting the limit: a little above the aim, for the noise of counts."""
        return self.aim + min(BAND * self.buffer, WIDEST)

    @functools.cached_property
    def takes_margin(self) -> bool:
        """Whether a lead of its points is defined: it counts labelled points that are wrong."""
        return isinstance(self.property, SampleShare) and labels_of(self.property) is not None

    def value(self, predict: Predict) -> float:
        """By count, or that of the stand-in."""
        return float(self.soft(predict)) if self.smooth else goal_value(self.property, self._with_lead(predict))

    def soft(self, predict: Predict) -> Tensor:
        """The differentiable stand-in; the value itself where there is none."""
        return torch.as_tensor(soft_value(self.property)(self._with_lead(predict)))

    def _with_lead(self, predict: Predict) -> Predict:
        """The network with the logit of each point's own label lowered by the margin."""
        if not self.margin:
            return predict
        labels: Tensor = self.property.labels

        def lowered(inputs: Tensor) -> Tensor:
            outputs = predict(inputs)
            own = labels.to(outputs.device)[:, None]
            return outputs.scatter_add(1, own, outputs.new_full(own.shape, -self.margin))

        return lowered

    def parts(self, predict: Predict) -> Array:
        """What the lines speak of, by count: the signed parts of the property, or its value alone."""
        prop = self.property
        if has_signed_parts(prop):
            signed = prop.residuals if self.smooth else prop.signed_hard
            return np.atleast_1d(signed(predict).detach().double().cpu().numpy())
        return np.array([self.value(predict)])

    def lines(self, engine: Engine, delta: Array, sampled: SurrogateSettings) -> Lines:
        """Values by count and slopes around a weight change ``(n,)``.

        Args:
            engine: The network and the ``n`` weights.
            delta: The point.
            sampled: How to sample a property without derivatives; its slopes are then those of a fitted linear model.

        Returns:
            Slopes of the soft stand-in, or of the property itself where its value can be differentiated.
        """
        prop: Any = self.property
        predict = engine.predict(delta)
        signed = has_signed_parts(prop)
        if signed:
            rows = jacobian(engine, prop.residuals, delta)[1].cpu().numpy()
            if np.any(rows):
                return Lines(self.parts(predict), rows, f"{prop.combine}_abs")
        slopes = None if signed else self._slopes(engine, delta)
        if slopes is None:
            samples = sampled.samples or min(sampled.budget, max(LEAST_SAMPLES, SAMPLES_EACH * engine.n))
            settings = replace(sampled, kind="linear", samples=samples, value="hard")
            count: Any = CallableProperty(
                prop.value, self.limit, self.name
            )  # without a soft value, whose slopes are zero
            slopes = fit_surrogate(engine, count, settings, delta).gradient[None, :]
        return Lines(np.array([self.value(predict)]), slopes)

    def _slopes(self, engine: Engine, delta: Array) -> Array | None:
        """From derivatives, ``(1, n)``; None where there are none, or none but zeros (counts, step activations)."""
        try:
            slopes: Array = jacobian(engine, self.soft, delta)[1].cpu().numpy()
        except (SpecificationError, RuntimeError, TypeError, AttributeError):
            if isinstance(self.property, Differentiable):
                raise
            return None  # a number out of a black box
        return slopes if np.any(slopes) else None


class _Margin:
    """A constraint that is not by sample, as a property: minus its smallest margin."""

    def __init__(self, constraint: Any) -> None:
        self.constraint, self.name, self.target = constraint, constraint.name, 0.0

    def value(self, predict: Predict) -> Any:
        return -self.constraint.margins(predict).min()

    def soft_value(self, predict: Predict) -> Any:
        return -soft_margins(self.constraint)(predict).min()


def collect_limits(
    goal: Property,
    constraints: Sequence[Constraint],
    buffers: dict[str, float],
    margins: dict[str, float] | None = None,
) -> list[Limit]:
    """All limits of a repair, the goal first.

    Args:
        goal: With its target.
        constraints: Anchored; those by sample are left out, they are rows of their own.
        buffers: What to take off the limits of that name; ``""`` for all others. A bound's own buffer is added.
        margins: Logits by which the points of the limits of that name must lead.

    Returns:
        The limits.

    Raises:
        SpecificationError: A buffer is for a limit that does not exist.
    """
    every = buffers.get("", 0.0)
    limits = [Limit(goal.name, goal, float(goal.target), buffers.get(goal.name, every))]
    for constraint in constraints:
        if isinstance(constraint, PropertyBound):
            assert constraint.limit is not None
            buffer = buffers.get(constraint.name, every) + constraint.buffer
            options: Any = {"relative": constraint.relative}
            limits.append(Limit(constraint.name, constraint.property, constraint.limit, buffer, **options))
        elif not isinstance(constraint, SampleConstraint):
            limits.append(Limit(constraint.name, _Margin(constraint), 0.0, buffers.get(constraint.name, every)))
    unknown = sorted(set(buffers) - {""} - {limit.name for limit in limits})
    if unknown:
        raise SpecificationError(
            f"buffer: there is no bound called '{unknown[0]}'; expected names among "
            f"{', '.join(repr(limit.name) for limit in limits)}."
        )
    return [replace(limit, margin=(margins or {}).get(limit.name, 0.0)) for limit in limits]


def median_lead(engine: Engine, limit: Limit) -> float:
    """Median lead, in logits, of the limit's points that the original network has right; 0 where there are none."""
    prop: Any = limit.property
    with torch.no_grad():
        outputs = engine.predict()(prop.inputs)
        leads = prop.margins_of(outputs, torch.arange(len(outputs))).amin(1)
    right = leads[leads > 0]
    return float(right.median()) if len(right) else 0.0
