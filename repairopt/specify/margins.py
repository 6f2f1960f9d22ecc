"""Margins of constraints on a network, by sample, and how many samples fail."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from repairopt.errors import SpecificationError
from repairopt.network import Predict, identity

from .contracts import Anchored, Constraint, Property, SampleConstraint, labels_of, measured, tolerance_of
from .sample_weights import LabelledPair

Array = npt.NDArray[np.float64]

# Relative to 1 + the size of a side: by so much a row may be passed in a program, and its sample in a verdict, so that
# the exact solution of a program is not called a violation for the rounding of float32. Counts have no such room.
ROUNDING = 1e-6
SHARE_ROUNDING = 1e-12  # of a share, or a difference of shares, in float64: 13/20 - 12/20 is above 0.05 by 4e-17


class LabelLeads:
    """Margins of labelled samples: the lead of a sample's label over each rival class, in logits."""

    labels: Any

    def margins_of(self, outputs: Tensor, samples: Tensor) -> Tensor:
        """Lead of the label over each rival, ``(B, k - 1)``, rivals in ascending order."""
        own = self.labels.to(outputs.device)[samples.to(outputs.device)][:, None]
        rivals = torch.arange(outputs.shape[1] - 1, device=outputs.device)[None]
        return outputs.gather(1, own) - outputs.gather(1, rivals + (rivals >= own))

    def describe(self, sample: int, index: int) -> str:
        """What margin ``index`` of a sample compares."""
        own = int(self.labels[sample])
        return f"class {own} over class {index + (index >= own)}"


def labelled_data(items: Sequence[Any]) -> list[tuple[Tensor, Tensor]]:
    """Inputs and labels of the constraints and properties that have them, each data set once, with its weights."""
    found: dict[tuple[object, ...], LabelledPair] = {}
    for item in items:
        known = labels_of(item)
        if known is not None:
            pair = found.get(identity(known[0]), LabelledPair(*known))
            weight = pair.weight if pair.weight is not None else getattr(measured(item), "sample_weight", None)
            found[identity(known[0])] = LabelledPair(*pair, weight)
    return [*found.values()]


def goal_value(goal: Property, predict: Any) -> float:
    """The goal as a float; a SpecificationError where it is no finite scalar."""
    with torch.no_grad():
        value = torch.as_tensor(goal.value(predict))
    if value.numel() != 1:
        raise SpecificationError(
            f"goal '{goal.name}' returned shape {tuple(value.shape)}; expected one number. Take a mean or a maximum."
        )
    number = float(value)
    if not np.isfinite(number):
        raise SpecificationError(f"goal '{goal.name}' is {number}; expected a finite number. Look for empty groups.")
    return number


def beyond(value: float, limit: float) -> float:
    """How far a value is above a limit; 0 where it is not, or by the rounding of float64 alone."""
    excess = value - limit
    return excess if not excess <= SHARE_ROUNDING * max(1.0, abs(limit)) else 0.0


def broken_samples(constraint: Any, margins: Array) -> int:
    """How many samples have a negative margin; margins where the constraint is not by sample."""
    fails = margins < 0
    return int((fails_by_sample(constraint, fails) if isinstance(constraint, SampleConstraint) else fails).sum())


def fails_by_sample(constraint: Any, fails: npt.NDArray[np.bool_]) -> npt.NDArray[np.bool_]:
    """For each sample whether any of its margins fails."""
    count = sample_count(constraint)
    return np.asarray(fails.reshape(count, -1).any(axis=1)) if count else np.zeros(0, dtype=bool)


def sample_count(constraint: Any) -> int:
    """Samples that an anchored constraint speaks of."""
    return len(samples_in(constraint))


def allowed_samples(constraint: Any, margins: Array) -> int:
    """How many samples may fail: so many as the constraint states, or a share of the samples that it speaks of."""
    count = sample_count(constraint) if isinstance(constraint, SampleConstraint) else len(margins)
    stated = getattr(constraint, "allowed", None)
    return int(np.floor(tolerance_of(constraint) * count + 1e-9)) if stated is None else min(int(stated), count)


def holds_change(rows: tuple[Any, Array, Array], delta: Array, tol: float = ROUNDING) -> bool:
    """Whether ``lower <= A delta <= upper`` within ``tol`` relative to ``1 + |side|``."""
    matrix, lower, upper = rows
    value = matrix @ delta
    size = np.maximum(*(np.where(np.isfinite(side), np.abs(side), 0) for side in (lower, upper)))
    slack = tol * (1 + size)
    return bool(np.all(value >= lower - slack) and np.all(value <= upper + slack))


def margins_at(predict: Predict, constraints: Sequence[Constraint]) -> tuple[Array, ...]:
    """True margins ``(m_c,)`` of each of some anchored constraints, finite, in float64."""
    return tuple(
        margins_of_samples(constraint, predict(constraint.inputs))
        if isinstance(constraint, SampleConstraint)
        else _checked(constraint, constraint.margins(predict))
        for constraint in constraints
    )


def required_margins(constraint: Constraint, margins: Array) -> Array:
    """Smallest margin that the rows of a constraint ask for, given its margins on the original network."""
    rule: Any = getattr(constraint, "required", None)
    return np.zeros(len(margins)) if rule is None else np.asarray(rule(torch.as_tensor(margins)), dtype=np.float64)


def anchor(constraint: Any, predict: Predict) -> Any:
    """The constraint with everything fixed that it takes from the original network ``predict``."""
    return constraint.anchor(predict) if isinstance(constraint, Anchored) else constraint


def samples_in(constraint: Any) -> Tensor:
    """Indices of the samples that an anchored constraint speaks of."""
    samples = getattr(constraint, "samples", None)
    return torch.arange(constraint.inputs.shape[0]) if samples is None else samples.cpu()


def margins_of_samples(constraint: SampleConstraint, outputs: Tensor) -> Array:
    """Margins of a constraint's samples, flattened, given the outputs ``(N, k)`` of all its inputs."""
    samples = samples_in(constraint)
    margins = constraint.margins_of(outputs[samples.to(outputs.device)], samples)
    if margins.ndim != 2 or margins.shape[0] != len(samples):
        raise SpecificationError(
            f"constraint '{constraint.name}': margins_of returned shape {tuple(margins.shape)} for {len(samples)} "
            f"samples; expected ({len(samples)}, p)."
        )
    found = _checked(constraint, margins.flatten())
    sides: Any = getattr(constraint, "sides", None)
    if sides is None:
        return found
    sizes = sides(samples).detach().cpu().to(torch.float64).expand(margins.shape).flatten().numpy()
    return np.where((found < 0) & (found >= -ROUNDING * (1.0 + sizes)), 0.0, found)


def _checked(constraint: Constraint, margins: Any) -> Array:
    values = torch.as_tensor(margins).detach().cpu().to(torch.float64)
    if values.ndim != 1:
        raise SpecificationError(
            f"constraint '{constraint.name}' returned margins of shape {tuple(values.shape)}; expected (m,), one "
            f"number each. Take the margin to the runner-up class, or flatten."
        )
    array: Array = values.numpy()
    if np.isnan(array).any():
        raise SpecificationError(
            f"constraint '{constraint.name}': margin {int(np.isnan(array).argmax())} is NaN. Look for NaN in its data."
        )
    return array
