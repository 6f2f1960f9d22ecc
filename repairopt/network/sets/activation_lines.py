"""Linear lower and upper bounds of activations on intervals, as CROWN substitutes them.

Bounds of an activation come from the relaxation that is registered for it, whose band is a pair of parallel lines;
where other lines are tighter, as for ReLU, ``@lines(nn.ReLU)`` registers them. Every line that is given is sound, so
several alternatives may be tried and the best bound be taken.

References:
    Zhang, Weng, Chen, Hsieh, Daniel, Efficient Neural Network Robustness Certification with General Activation
    Functions, NeurIPS 2018 (CROWN).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .zonotope_layers import Call, Zonotope, relaxation_of


@dataclass(frozen=True, eq=False)
class Lines:
    """``lower_slope z + lower_shift <= f(z) <= upper_slope z + upper_shift`` on an interval; each ``(B, n)``."""

    lower_slope: Tensor
    lower_shift: Tensor
    upper_slope: Tensor
    upper_shift: Tensor


@dataclass(frozen=True, eq=False)
class _Band(Call):
    """A call that keeps the band of a relaxation, in place of a set with a new symbol for each entry."""

    def band(self, slope: Tensor, shift: Tensor, radius: Tensor) -> Any:
        return Lines(slope, shift - radius, slope, shift + radius)


Maker = Callable[[Call, Tensor, Tensor], list[Lines]]
_MAKERS: dict[Any, Maker] = {}


def lines(*targets: Any) -> Callable[[Maker], Maker]:
    """Register a function ``(call, low, high) -> alternatives`` for modules, functions and names of methods."""

    def register(function: Maker) -> Maker:
        _MAKERS.update(dict.fromkeys(targets, function))
        return function

    return register


def lines_of(call: Call, low: Tensor, high: Tensor) -> list[Lines] | None:
    """Alternative lines of an activation between ``low`` and ``high``, ``(B, ...)`` each, the usual one first.

    None where the activation is not one that acts on each entry by itself.
    """
    kinds = (call.target,) if call.module is None else type(call.module).__mro__
    maker = next((_MAKERS[kind] for kind in kinds if kind in _MAKERS), None)
    if maker is not None:
        return maker(call, low, high)
    found = relaxation_of(call.target, call.module)
    assert found is not None, "the network was checked when it was traced"
    middle, half = (low + high) / 2, (high - low) / 2
    z = Zonotope(middle, half[:, None])
    made: Any = found.function(_Band(**{**vars(call), "args": (z, *call.args[1:])}))
    return [made] if isinstance(made, Lines) else None


@lines(nn.ReLU, F.relu, torch.relu, "relu")
def _relu(call: Call, low: Tensor, high: Tensor) -> list[Lines]:
    """The chord above; below the slope 1 or 0 that leaves less area, the slope of the chord, 0, and 1."""
    above, below = high.clamp_min(0), (-low).clamp_min(0)
    chord = above / (above + below).clamp_min(torch.finfo(low.dtype).tiny)
    zero = torch.zeros_like(low)
    adaptive = Lines((above > below).to(low), zero, chord, chord * below)
    return [
        adaptive,
        replace(adaptive, lower_slope=chord),
        replace(adaptive, lower_slope=(low >= 0).to(low)),
        replace(adaptive, lower_slope=(high > 0).to(low)),
    ]


@dataclass(frozen=True, eq=False)
class LowerLines:
    """The usual lines of an activation, and how its lower one goes from the flattest to the steepest alternative."""

    usual: Lines
    slope: Tensor
    shift: Tensor
    slopes: Tensor
    shifts: Tensor

    @classmethod
    def of(cls, alternatives: list[Lines]) -> LowerLines:
        """Of the lines that :func:`lines_of` has for an activation."""
        first, *others = alternatives
        flat, flat_shift = steep, steep_shift = first.lower_slope, first.lower_shift
        for one in others:
            less, more = one.lower_slope < flat, one.lower_slope > steep
            flat, flat_shift = torch.where(less, one.lower_slope, flat), torch.where(less, one.lower_shift, flat_shift)
            steep = torch.where(more, one.lower_slope, steep)
            steep_shift = torch.where(more, one.lower_shift, steep_shift)
        return cls(first, flat, flat_shift, steep - flat, steep_shift - flat_shift)

    def at(self, share: Tensor) -> Lines:
        """The usual lines, but below a mean of both, ``share`` of it of the steepest.

        Lines below a function are so in every convex combination.
        """
        slope, shift = self.slope + share * self.slopes, self.shift + share * self.shifts
        return replace(self.usual, lower_slope=slope, lower_shift=shift)


def usual_share(alternatives: list[Lines]) -> Tensor:
    """The share at which :meth:`LowerLines.at` gives the usual lower line, ``(B, n)``; 1/2 where all are one."""
    slopes = torch.stack([one.lower_slope for one in alternatives])
    low, high = slopes.amin(0), slopes.amax(0)
    same = high <= low
    return torch.where(same, 0.5, (slopes[0] - low) / torch.where(same, 1.0, high - low))
