"""KeepLowest: the smallest output stays the smallest, for networks whose outputs are costs."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any, ClassVar

import torch
from torch import Tensor

from repairopt.errors import SpecificationError
from repairopt.network import Predict, check_inputs, outputs_of

from .contracts import Unstated
from .expected import Expected, keep_plain
from .margins import samples_in
from .measures import DATA, MARGIN, WHERE, Argument, Given, Measure


def _make_wish(kind: Any, given: Given) -> Any:
    options = given.options()
    return kind(given.rows(labels=False).inputs, margin=options["margin"], weight=options["price"], name=given.name)


@dataclass(frozen=True, eq=False)
class KeepLowest:
    """The output that is smallest on the original network stays the smallest: for networks that give costs of actions.

    Attributes:
        inputs: Samples ``(N, ...)``.
        margin: Lead of the smallest output over each other one that rows ask for; never more than it had before.
        tolerance: Share of the samples that may fail.
        weight: Price of a violation; None for hard rows.
        name: What rows and report call it.
        lowest: The smallest output of each sample, ``(N,)``; set by ``anchor``.

    Raises:
        SpecificationError: Inputs that are not ``(N, ...)``, a tolerance that is no share.

    Example:
        >>> KeepLowest(torch.rand(10, 5)).margin
        0.0
    """

    answers_only: ClassVar[bool] = True

    inputs: Any
    margin: float = 0.0
    tolerance: float = Unstated(1.0)
    weight: float | None = 0.1
    name: str = "keep the lowest"
    lowest: Any = field(default=None, repr=False)

    measures = (
        Measure(
            "keep_lowest",
            "A wish, no bound: the smallest output of each row stays the smallest; for networks that give costs.",
            "keep_lowest(guard)",
            "none",
            (),
            (DATA, MARGIN, Argument("price", "number", "of a mean violation of one unit", 0.1), WHERE),
            _make_wish,
            goal=False,
        ),
    )

    def __post_init__(self) -> None:
        object.__setattr__(self, "inputs", check_inputs(f"constraint '{self.name}'", self.inputs, integers=True)[0])
        if not Expected(high=1).fits(self.tolerance) or not Expected(above=True, none=True).fits(self.weight):
            raise SpecificationError(
                f"constraint '{self.name}': tolerance {self.tolerance!r}, weight {self.weight!r}; expected a share of "
                f"the samples, and a price above 0 or None."
            )
        keep_plain(self, "tolerance", "weight")

    def anchor(self, predict: Predict) -> KeepLowest:
        """Remember which output the original network ``predict`` gives the smallest value."""
        return replace(self, lowest=outputs_of(predict, self.inputs).argmin(1).cpu())

    def margins_of(self, outputs: Tensor, samples: Tensor) -> Tensor:
        """How far each other output lies above the one that was smallest, ``(B, k - 1)``."""
        assert self.lowest is not None, "anchor() first"
        own = self.lowest.to(outputs.device)[samples.to(outputs.device)][:, None]
        rivals = torch.arange(outputs.shape[1] - 1, device=outputs.device)[None]
        return outputs.gather(1, rivals + (rivals >= own)) - outputs.gather(1, own)

    def margins(self, predict: Predict) -> Tensor:
        """Margins of all samples, flattened ``(m,)``."""
        return self.margins_of(outputs_of(predict, self.inputs), samples_in(self)).flatten()

    def required(self, margins: Tensor) -> Tensor:
        """Smallest margin that a row asks for, given those of the original network."""
        return margins.clamp(max=self.margin)

    def describe(self, sample: int, index: int) -> str:
        """What margin ``index`` of a sample compares."""
        own = int(self.lowest[sample])
        return f"output {own} below output {index + (index >= own)}"

    def on(self, inputs: Any, labels: Any = None) -> KeepLowest:
        """The same constraint on other data."""
        return replace(self, inputs=inputs, lowest=None)
