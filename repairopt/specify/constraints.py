"""Ready-made constraints: on labels, on outputs and on properties."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from math import inf
from typing import Any, ClassVar

import torch
from torch import Tensor

from repairopt.errors import SpecificationError
from repairopt.network import Predict, as_tensor, check_inputs, check_labelled, check_labels, outputs_of

from .contracts import Keep, Unstated, restricted
from .expected import Expected, is_one_of, keep_plain
from .margins import LabelLeads, samples_in
from .measures import DATA, MARGIN, PRICE, SHARE, WHERE, Argument, Given, Measure

REFERENCES = ("label", "original")
COUNTED = ("rows", ("<=", "=="))  # unit and relations


def _make_rows(kind: Any, given: Given) -> Any:
    rows, options = given.rows(), given.options()
    price = options.pop("price")
    if price is not None and given.bounds and given.limit():
        raise given.fail("price", "makes it a wish, in which no number of rows counts; write == 0, or leave price out")
    allowed: Any = {"allowed": given.count()} if price is None else {"tolerance": 1.0}
    return kind(rows.inputs, rows.labels, **allowed, weight=price, name=given.name, **options)


def _make_kept_outputs(kind: Any, given: Given) -> Any:
    share = given.options()["share"]
    return kind(given.rows(labels=False).inputs, given.limit(), tolerance=share, name=given.name)


def _make_output_bounds(kind: Any, given: Given) -> Any:
    rows, of = given.rows(labels=False), given.arguments["of"]
    if isinstance(of, list):
        if not of or not all(isinstance(factor, int | float) for factor in of):
            raise given.fail("of", "expected one number for each output of the network")
        factors = torch.tensor([float(factor) for factor in of])
    else:
        label, count = given.label("of", of), len(given.classes)
        if not count:
            raise given.fail("of", "classes have no names here; write a [list] of one factor for each output")
        factors = torch.eye(count)[label]
    if not given.bounds:
        raise given.fail("", "compare it with a number")
    signs = [1.0 if relation == "<=" else -1.0 for relation, _ in given.bounds]
    matrix = torch.stack([sign * factors for sign in signs])
    bound = torch.tensor([sign * number for sign, (_, number) in zip(signs, given.bounds, strict=True)])
    return kind(rows.inputs, matrix, bound, tolerance=given.options()["share"], name=given.name)


class BySample:
    """Margins of the samples that a constraint speaks of."""

    inputs: Any

    def margins(self, predict: Predict) -> Tensor:
        """Margins of all samples, flattened ``(m,)``."""
        samples = samples_in(self)
        own: Any = self
        return own.margins_of(outputs_of(predict, self.inputs)[samples], samples).flatten()

    def check_allowance(self) -> None:
        """Refuse a tolerance that is no share, and a price that is not above 0."""
        own: Any = self
        if not Expected(high=1).fits(own.tolerance):
            raise SpecificationError(
                f"constraint '{own.name}': tolerance {own.tolerance!r} is not a share of the samples, 0 to 1."
            )
        if not Expected(above=True, none=True).fits(own.weight):
            raise SpecificationError(
                f"constraint '{own.name}': weight {own.weight!r} must be above 0 and finite, or None for hard."
            )
        keep_plain(self, "tolerance", "weight")


@dataclass(frozen=True, eq=False)
class _Labels(BySample, LabelLeads):
    """What :class:`KeepLabels` and :class:`FixLabels` share; ``samples`` are set by ``anchor``."""

    answers_only: ClassVar[bool] = True
    inputs: Any
    labels: Any = None
    margin: float = 1e-3
    tolerance: float = Unstated(0.0)
    weight: float | None = None
    name: str = "labels"
    samples: Tensor | None = field(default=None, repr=False)
    allowed: int | None = None

    def __post_init__(self) -> None:
        x, y = check_labelled(f"constraint '{self.name}'", self.inputs, self.labels, integers=True)
        object.__setattr__(self, "inputs", x)
        object.__setattr__(self, "labels", y)
        self.check_allowance()
        if self.allowed is not None:
            whole = Expected().fits(self.allowed) and float(self.allowed).is_integer()
            if not whole or not isinstance(self.tolerance, Unstated):
                raise SpecificationError(
                    f"constraint '{self.name}': allowed={self.allowed!r}, tolerance={self.tolerance}; expected a whole "
                    f"number of samples from 0, or a share of them, not both."
                )
            object.__setattr__(self, "tolerance", Unstated(0.0))
        if not Expected(-inf).fits(self.margin):
            raise SpecificationError(f"constraint '{self.name}': margin {self.margin!r} is not a finite number.")
        keep_plain(self, "margin", "allowed")

    def on(self, inputs: Any, labels: Any) -> Any:
        """The same constraint on other data."""
        return replace(self, inputs=inputs, labels=labels, samples=None)

    def _correct(self, predict: Predict) -> tuple[Tensor, Tensor]:
        outputs = outputs_of(predict, self.inputs)
        check_labels(f"constraint '{self.name}'", self.labels, outputs.shape[1])
        found = outputs.argmax(1).cpu()
        return found, found == self.labels.cpu()


@dataclass(frozen=True, eq=False)
class KeepLabels(_Labels):
    """Samples that the original network gets right must stay right (AutoRIC's positive constraints).

    A row never asks for a larger margin than the sample had before, so no change at all always satisfies it.

    Attributes:
        inputs: Samples ``(N, ...)``.
        labels: Their classes ``(N,)``; None where ``inputs`` is a dataset or loader of pairs.
        margin: Required lead of the label over each rival in the rows, in logits; absorbs linearization error.
        tolerance: Share of these samples, the answers that are right today, that may fail all the same.
        weight: None for hard rows, or the price of a mean violation of one logit over the samples.
        name: What rows and report call it.
        samples: Indices of the samples that the constraint speaks of; set by ``anchor``.
        allowed: Number of samples that may fail, in place of ``tolerance``.
        reference: ``"label"``: the true label, of the samples that the original gets right; ``"original"``: the
            original prediction, of all samples.
    """

    tolerance: float = Unstated(0.01)
    name: str = "keep labels"
    reference: str = "label"

    measures = (
        Measure(
            "flips",
            "Number of rows that were right and are wrong now; with reference=original of all that get another class. "
            "A hard bound for each row.",
            "flips(guard) == 0",
            *COUNTED,
            (DATA, MARGIN, Argument("reference", "choice", "what must stay", "label", REFERENCES), PRICE, WHERE),
            _make_rows,
        ),
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if not is_one_of(self.reference, REFERENCES):
            raise SpecificationError(
                f"constraint '{self.name}': reference {self.reference!r}; choose from {', '.join(REFERENCES)}."
            )

    def anchor(self, predict: Predict) -> KeepLabels:
        """Fix the samples and labels that the original network ``predict`` decides."""
        found, correct = self._correct(predict)
        if self.reference == "original":
            return replace(self, labels=found, samples=torch.arange(len(found)))
        return replace(self, samples=correct.nonzero()[:, 0])

    def required(self, margins: Tensor) -> Tensor:
        """Smallest margin that a linearized row asks for, given the original margins."""
        return margins.clamp(max=self.margin)


@dataclass(frozen=True, eq=False)
class FixLabels(_Labels):
    """Samples that the original network gets wrong must get their true label (AutoRIC's negative constraints).

    Soft by default, because the worst mistakes of a network seldom have a common correction. The attributes are those
    of :class:`KeepLabels`, without ``reference``; ``tolerance`` is a share of the answers that are wrong today.
    """

    weight: float | None = 0.1
    tolerance: float = Unstated(1.0)
    name: str = "fix labels"

    measures = (
        Measure(
            "unfixed",
            "Number of rows that the original network gets wrong and that are wrong still.",
            "unfixed(reported, margin=1) == 0",
            *COUNTED,
            (DATA, MARGIN, PRICE, WHERE),
            _make_rows,
        ),
        Measure(
            "fix",
            "A wish, no bound: rows that the original network gets wrong are to get their label, at a price.",
            "fix(reported, margin=1)",
            "none",
            (),
            (DATA, MARGIN, Argument("price", "number", "of a mean violation of one logit", 0.1), WHERE),
            _make_rows,
            goal=False,
        ),
    )

    def anchor(self, predict: Predict) -> FixLabels:
        """Fix the samples that the original network ``predict`` gets wrong."""
        _, correct = self._correct(predict)
        return replace(self, samples=(~correct).nonzero()[:, 0])

    def required(self, margins: Tensor) -> Tensor:
        """Smallest margin that a linearized row asks for."""
        return torch.full_like(margins, self.margin)


@dataclass(frozen=True, eq=False)
class ShareRows(BySample):
    """No counted sample of a :class:`SampleShare` may have less than a margin: a hard row for each, under its name."""

    share: Any
    margin: float = 1e-3
    name: str = ""
    inputs: Any = field(default=None, init=False, repr=False)
    samples: Any = field(default=None, init=False, repr=False)

    def __post_init__(self) -> None:
        counted = torch.arange(len(self.share.inputs)) if self.share.counted is None else self.share.counted
        vars(self).update(name=self.name or self.share.name, inputs=self.share.inputs, samples=counted)

    def margins_of(self, outputs: Tensor, samples: Tensor) -> Tensor:
        """The share's margins, ``(B, p)``."""
        return self.share.margins_of(outputs, samples)

    def required(self, margins: Tensor) -> Tensor:
        """Smallest margin that a linearized row asks for."""
        return torch.full_like(margins, self.margin)

    def describe(self, sample: int, index: int) -> str:
        """What margin ``index`` of a sample says, where the share tells it."""
        return getattr(self.share, "describe", lambda sample, index: f"margin {index}")(sample, index)

    def where(self, keep: Keep) -> ShareRows:
        """The same on the samples that ``keep`` chooses."""
        return ShareRows(restricted(self.share, keep), self.margin)


@dataclass(frozen=True, eq=False)
class KeepOutputs(BySample):
    """Every output of every sample stays within a distance of what the original network gave.

    Attributes:
        inputs: Samples ``(N, ...)``.
        distance: Allowed change of each logit.
        weight: None for hard rows, or the price of a violation.
        tolerance: Share of the samples that may fail.
        name: What rows and report call it.
        original: Outputs of the original network, ``(N, k)``; set by ``anchor``.
    """

    inputs: Any
    distance: float
    weight: float | None = None
    tolerance: float = 0.0
    name: str = "keep outputs"
    original: Tensor | None = field(default=None, repr=False)

    measures = (
        Measure(
            "output_change",
            "Largest change of any output of any row.",
            "output_change(guard) <= 0.5",
            "logits",
            arguments=(DATA, SHARE, WHERE),
            make=_make_kept_outputs,
        ),
    )

    def __post_init__(self) -> None:
        object.__setattr__(self, "inputs", check_inputs(f"constraint '{self.name}'", self.inputs, integers=True)[0])
        self.check_allowance()
        if not Expected().fits(self.distance):
            raise SpecificationError(
                f"constraint '{self.name}': distance {self.distance!r} must not be negative, nor infinite."
            )
        keep_plain(self, "distance")

    def anchor(self, predict: Predict) -> KeepOutputs:
        """Remember the outputs of the original network ``predict``."""
        return replace(self, original=outputs_of(predict, self.inputs).detach())

    def margins_of(self, outputs: Tensor, samples: Tensor) -> Tensor:
        """Room below and above each logit, ``(B, 2 k)``."""
        assert self.original is not None, "anchor() first"
        change = outputs - self.original[samples.to(self.original.device)]
        return torch.cat([self.distance + change, self.distance - change], dim=1)

    def sides(self, samples: Tensor) -> Tensor:
        """Sizes of what the logits are compared with, ``(B, 2 k)``."""
        assert self.original is not None, "anchor() first"
        return (self.original[samples.to(self.original.device)].abs() + self.distance).repeat(1, 2)

    def describe(self, sample: int, index: int) -> str:
        """Which logit and side."""
        k = 1 if self.original is None else self.original.shape[1]
        return f"logit {index % k} {'not below' if index < k else 'not above'} its old value by {self.distance:g}"

    def on(self, inputs: Any, labels: Any = None) -> KeepOutputs:
        """The same constraint on other data."""
        return replace(self, inputs=inputs, original=None)


@dataclass(frozen=True, eq=False)
class OutputBounds(BySample):
    """Linear inequalities on the outputs of each sample: ``matrix @ outputs <= bound``.

    Attributes:
        inputs: Samples ``(N, ...)``.
        matrix: ``(p, k)``.
        bound: ``(p,)``.
        weight: None for hard rows, or the price of a violation.
        tolerance: Share of the samples that may fail.
        name: What rows and report call it.
    """

    inputs: Any
    matrix: Any
    bound: Any
    weight: float | None = None
    tolerance: float = 0.0
    name: str = "output bounds"

    measures = (
        Measure(
            "output",
            "One output of the network, or a combination of all, on each row: output([1, -1]) is the lead of the first "
            "class.",
            "output([1, -1], guard) >= 0",
            "logits",
            ("<=", ">="),
            (Argument("of", "output", "which"), DATA, SHARE, WHERE),
            _make_output_bounds,
            both=True,
        ),
    )

    def __post_init__(self) -> None:
        object.__setattr__(self, "inputs", check_inputs(f"constraint '{self.name}'", self.inputs, integers=True)[0])
        self.check_allowance()
        matrix, bound = (as_tensor(f"constraint '{self.name}'", value) for value in (self.matrix, self.bound))
        if matrix.ndim != 2 or bound.shape != matrix.shape[:1]:
            raise SpecificationError(
                f"constraint '{self.name}': matrix {tuple(matrix.shape)} and bound {tuple(bound.shape)} do not fit; "
                f"expected (p, k) and (p,) for matrix @ outputs <= bound."
            )
        object.__setattr__(self, "matrix", matrix)
        object.__setattr__(self, "bound", bound)

    def margins_of(self, outputs: Tensor, samples: Tensor) -> Tensor:
        """``bound - matrix @ outputs``, ``(B, p)``."""
        if self.matrix.shape[1] != outputs.shape[-1]:
            raise SpecificationError(
                f"constraint '{self.name}': matrix has {self.matrix.shape[1]} columns; expected one for each of the "
                f"model's {outputs.shape[-1]} outputs."
            )
        return self.bound.to(outputs) - outputs @ self.matrix.to(outputs).T

    def sides(self, samples: Tensor) -> Tensor:
        """Sizes of the bounds, ``(1, p)``."""
        return self.bound.abs()[None]

    def on(self, inputs: Any, labels: Any = None) -> OutputBounds:
        """The same constraint on other data."""
        return replace(self, inputs=inputs)
