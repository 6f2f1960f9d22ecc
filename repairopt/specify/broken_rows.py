"""A constraint as a goal: the share of its rows that break it."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from repairopt.errors import SpecificationError
from repairopt.network import Predict, outputs_of

from .contracts import Anchored, Keep, SampleConstraint, Transferable, Unstated, answers_only, labels_of, restricted
from .intervals import Interval, rate_interval
from .margins import samples_in

SLOPE = 0.5  # deviations of the margins, within which the soft value goes from broken to held


@dataclass(frozen=True, eq=False)
class BrokenRows:
    """Share of the rows of a constraint that break it, which is to become what the constraint allows, 0 unless stated.

    ``solve_repair`` makes it of a constraint that is given as the goal, such as :class:`OutputBounds` or
    :class:`FixLabels`.

    Attributes:
        constraint: A constraint by sample, hard.
        target: The share to reach; what the constraint tolerates unless given.
        name: What the report calls it; the constraint's name unless given.
        inputs: Those of the constraint, ``(N, ...)``.
        labels: Those of the constraint, where it has any, ``(N,)``.
    """

    constraint: Any
    target: float = Unstated(0.0)
    name: str = ""
    inputs: Any = field(default=None, init=False, repr=False)
    labels: Any = field(default=None, init=False, repr=False)

    is_share = True

    def __post_init__(self) -> None:
        own = self.constraint
        if not isinstance(own, SampleConstraint) or getattr(own, "weight", None) is not None:
            raise SpecificationError(
                f"goal '{getattr(own, 'name', own)}': got a {type(own).__name__}; expected a constraint on the outputs "
                f"of single rows with weight=None, such as OutputBounds, KeepOutputs or FixLabels(..., weight=None)."
            )
        if isinstance(self.target, Unstated):
            allowed, tolerated = getattr(own, "allowed", None), getattr(own, "tolerance", 0.0)
            share = allowed / max(1, len(samples_in(own))) if allowed is not None else float(tolerated)
            vars(self)["target"] = Unstated(0.0 if isinstance(tolerated, Unstated) and allowed is None else share)
        known = labels_of(own)
        vars(self).update(name=self.name or own.name, inputs=own.inputs, labels=None if known is None else known[1])

    @property
    def answers_only(self) -> bool:
        """Whether the constraint speaks of answers alone."""
        return answers_only(self.constraint)

    @property
    def statistical(self) -> bool:
        """Whether the rows stand for others: where all have to hold, they stand for themselves."""
        return self.target > 0

    @property
    def counted(self) -> Tensor:
        """Indices of the rows that the constraint speaks of."""
        return samples_in(self.constraint)

    def margins_of(self, outputs: Tensor, samples: Tensor) -> Tensor:
        """The constraint's margins, ``(B, p)``."""
        return torch.as_tensor(self.constraint.margins_of(outputs, samples))

    def describe(self, sample: int, index: int) -> str:
        """What margin ``index`` of a row says, where the constraint tells it."""
        return str(getattr(self.constraint, "describe", lambda sample, index: f"margin {index}")(sample, index))

    def value(self, predict: Predict) -> Tensor:
        """Share of the rows with a negative margin."""
        return (self._least(predict) < 0).double().mean() if len(self.counted) else torch.zeros((), dtype=torch.float64)

    def soft_value(self, predict: Predict) -> Tensor:
        """The same with each row counted by a sigmoid of its smallest margin; differentiable."""
        least = self._least(predict)
        width = SLOPE * least.detach().std(correction=0).clamp(min=1e-6)
        return torch.sigmoid(-least / width).mean()

    def details(self, predict: Predict) -> dict[str, float]:
        """How many rows break it, and by how much the worst does."""
        least = self._least(predict).detach().double()
        return {"broken rows": float((least < 0).sum()), "smallest margin": float(least.min()) if len(least) else 0.0}

    def interval(self, predict: Predict, confidence: float = 0.95) -> Interval:
        """Where the share on new rows lies; exact."""
        return rate_interval(int((self._least(predict) < 0).sum()), max(1, len(self.counted)), confidence)

    def anchor(self, predict: Predict) -> BrokenRows:
        """The same with everything fixed that the constraint takes from the original network."""
        own = self.constraint
        return replace(self, constraint=own.anchor(predict)) if isinstance(own, Anchored) else self

    def on(self, inputs: Any, labels: Any = None) -> BrokenRows:
        """The same on other rows."""
        if not isinstance(self.constraint, Transferable):
            raise SpecificationError(f"'{self.name}': cannot be moved to other rows; its constraint has no on().")
        return replace(self, constraint=self.constraint.on(inputs, labels))

    def where(self, keep: Keep) -> BrokenRows:
        """The same on the rows that ``keep`` chooses, a mask ``(N,)`` from inputs ``(N, ...)``."""
        return replace(self, constraint=restricted(self.constraint, keep))

    def _least(self, predict: Predict) -> Tensor:
        """Smallest margin of each counted row."""
        samples = self.counted
        outputs = outputs_of(predict, self.inputs)
        return self.margins_of(outputs[samples.to(outputs.device)], samples).flatten(1).amin(1)
