"""Several labels at once: each output is the logit of a label of its own, which holds or does not."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any, ClassVar

import torch
from torch import Tensor

from repairopt.errors import SpecificationError
from repairopt.network import Predict, check_inputs, outputs_of

from .constraints import BySample
from .contracts import Keep, Unstated
from .intervals import Interval, rate_interval


def _checked(owner: str, inputs: Any, label_sets: Any) -> tuple[Tensor, Tensor]:
    """Inputs ``(N, ...)`` and label sets ``(N, L)`` of zeros and ones, int64."""
    x, _ = check_inputs(owner, inputs, integers=True)
    found = torch.as_tensor(label_sets)
    if found.ndim != 2 or len(found) != len(x) or not bool(((found == 0) | (found == 1)).all()):
        raise SpecificationError(
            f"{owner}: label_sets of shape {tuple(found.shape)} for {len(x)} inputs; expected zeros and ones, one "
            f"row for each input and one column for each label, (N, L)."
        )
    return x, found.to(torch.int64)


def _signed(owner: str, outputs: Tensor, signs: Tensor) -> Tensor:
    """Logits ``(B, L)`` with the sign by which they are right."""
    if outputs.shape[-1] != signs.shape[1]:
        raise SpecificationError(
            f"{owner}: label_sets have {signs.shape[1]} columns, the model {outputs.shape[-1]} outputs; expected one "
            f"output for each label."
        )
    return outputs * signs.to(outputs)


@dataclass(frozen=True, eq=False)
class LabelSetErrors:
    """Share of the rows with a wrong label, where several labels may hold at once.

    A label is given where its output is above 0: outputs are logits, see ``Classifier(outputs="several logits")``, and
    ``"several probabilities"`` for networks that end in a sigmoid. The soft value counts a row by the probability that
    not all of its labels are right.

    Attributes:
        inputs: Rows ``(N, ...)``.
        label_sets: Zeros and ones ``(N, L)``: which labels hold.
        label: The one label that is looked at; None for all.
        target: The share to reach; 0 asks for every row.
        name: What the report calls it.

    Example:
        >>> errors = LabelSetErrors(torch.zeros(3, 2), [[1, 0], [0, 0], [1, 1]])
        >>> float(errors.value(lambda x: torch.tensor([[2.0, -1.0], [1.0, -1.0], [3.0, 3.0]])))
        0.3333333333333333
    """

    inputs: Any
    label_sets: Any
    label: int | None = None
    target: float = Unstated(0.0)
    name: str = "label set errors"

    is_share: ClassVar[bool] = True
    counted: ClassVar[Tensor | None] = None

    def __post_init__(self) -> None:
        x, sets = _checked(f"'{self.name}'", self.inputs, self.label_sets)
        object.__setattr__(self, "inputs", x)
        object.__setattr__(self, "label_sets", sets)
        known = self.label is None or (isinstance(self.label, int) and 0 <= self.label < sets.shape[1])
        if not known or isinstance(self.label, bool):
            raise SpecificationError(f"'{self.name}': label={self.label!r}; expected 0 to {sets.shape[1] - 1} or None.")

    @property
    def statistical(self) -> bool:
        """Whether the rows stand for a population; not for a target of 0."""
        return self.target > 0

    def margins_of(self, outputs: Tensor, samples: Tensor) -> Tensor:
        """By how much each label that is looked at is right, logits, ``(B, L)`` or ``(B, 1)``."""
        signed = _signed(f"'{self.name}'", outputs, 2 * self.label_sets[samples.cpu()] - 1)
        return signed if self.label is None else signed[:, self.label : self.label + 1]

    def describe(self, sample: int, index: int) -> str:
        """What a margin says."""
        return f"label {index if self.label is None else self.label} as stated"

    def value(self, predict: Predict) -> Tensor:
        """Share of the rows with a wrong label."""
        return (self._all(predict) < 0).any(1).double().mean()

    def soft_value(self, predict: Predict) -> Tensor:
        """Mean probability that some label of a row is wrong; differentiable."""
        return (1 - torch.nn.functional.logsigmoid(self._all(predict)).sum(1).exp()).mean()

    def details(self, predict: Predict) -> dict[str, float]:
        """Rows in which each label is wrong."""
        wrong = (self._all(predict) < 0).sum(0).tolist()
        first = self.label or 0
        return {f"rows with label {first + j} wrong": float(count) for j, count in enumerate(wrong)}

    def interval(self, predict: Predict, confidence: float = 0.95) -> Interval:
        """Where the share on new rows lies; exact."""
        return rate_interval(int((self._all(predict) < 0).any(1).sum()), len(self.inputs), confidence)

    def where(self, keep: Keep) -> LabelSetErrors:
        """The same on the rows that ``keep`` chooses, a mask ``(N,)`` from inputs ``(N, ...)``."""
        mask = keep(self.inputs)
        return replace(self, inputs=self.inputs[mask], label_sets=self.label_sets[mask.cpu()])

    def _all(self, predict: Predict) -> Tensor:
        return self.margins_of(outputs_of(predict, self.inputs), torch.arange(len(self.inputs)))


@dataclass(frozen=True, eq=False)
class KeepLabelSets(BySample):
    """Every label that the original network decides rightly stays so, where several labels may hold at once.

    Attributes:
        inputs: Rows ``(N, ...)``.
        label_sets: Zeros and ones ``(N, L)``; None keeps the original's own decisions.
        margin: Logits that linearized rows ask for.
        tolerance: Share of the rows that may fail.
        weight: None for hard rows, or the price of a violation.
        name: What rows and report call it.
        signs: 1 and -1 for labels that are kept, 0 for those that were wrong, ``(N, L)``; set by ``anchor``.
    """

    inputs: Any
    label_sets: Any = None
    margin: float = 1e-3
    tolerance: float = 0.0
    weight: float | None = None
    name: str = "keep label sets"
    signs: Tensor | None = field(default=None, repr=False)

    def __post_init__(self) -> None:
        owner = f"constraint '{self.name}'"
        if self.label_sets is None:
            object.__setattr__(self, "inputs", check_inputs(owner, self.inputs, integers=True)[0])
        else:
            x, sets = _checked(owner, self.inputs, self.label_sets)
            object.__setattr__(self, "inputs", x)
            object.__setattr__(self, "label_sets", sets)
        self.check_allowance()

    def anchor(self, predict: Predict) -> KeepLabelSets:
        """Remember which labels the original network ``predict`` decides rightly."""
        outputs = outputs_of(predict, self.inputs).detach().cpu()
        own = torch.where(outputs > 0, 1, -1)
        if self.label_sets is not None:
            stated = 2 * self.label_sets - 1
            _signed(f"constraint '{self.name}'", outputs, stated)
            own = torch.where(own == stated, own, 0)
        return replace(self, signs=own)

    def margins_of(self, outputs: Tensor, samples: Tensor) -> Tensor:
        """By how much each kept label is right, logits, ``(B, L)``; 1 for labels that were wrong."""
        if self.signs is None:
            raise SpecificationError(f"constraint '{self.name}': is compared with the original; call anchor() first.")
        signs = self.signs[samples.cpu()]
        return _signed(f"constraint '{self.name}'", outputs, signs) + (signs == 0).to(outputs)

    def required(self, margins: Tensor) -> Tensor:
        """Smallest margin that a linearized row asks for, given the original margins."""
        return margins.clamp(max=self.margin)

    def describe(self, sample: int, index: int) -> str:
        """What margin ``index`` of a row says."""
        return f"label {index} as it was"

    def where(self, keep: Keep) -> KeepLabelSets:
        """The same on the rows that ``keep`` chooses."""
        mask = keep(self.inputs)
        sets = None if self.label_sets is None else self.label_sets[mask.cpu()]
        signs = None if self.signs is None else self.signs[mask.cpu()]
        return replace(self, inputs=self.inputs[mask], label_sets=sets, signs=signs)
