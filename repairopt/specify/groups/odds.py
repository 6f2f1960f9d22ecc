"""Gaps between groups within true labels (equalized odds), by count and in a differentiable form."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from repairopt.errors import SpecificationError, public
from repairopt.network import Predict, check_labelled
from repairopt.specify.contracts import Unstated
from repairopt.specify.expected import is_one_of
from repairopt.specify.measures import COLUMN, FAVORABLE, GROUPS, MIN_ROWS, ROWS, VALUES, Argument, Given, Measure
from repairopt.specify.sample_weights import kish_counts

from .gaps import SCORES, FirstOfTwo, GroupGap, RateGap
from .samples import GroupSamples, labelled_groups

RESTS = ("joint", "marginals", "conditional")
GAP_ARGUMENTS = (
    COLUMN,
    FAVORABLE,
    Argument("kind", "choice", "what is compared", "parity", ("parity", "opportunity", "odds", "sampled")),
    Argument(
        "score",
        "choice",
        "largest or mean difference over pairs of groups, 1 - ratio of the rates, divergence",
        "max_difference",
        SCORES,
    ),
    VALUES,
    Argument("given", "labels", "true classes within which odds are compared; all by default", None),
    Argument("rest", "choice", "how sampled draws the other columns", "joint", RESTS),
    Argument("count", "count", "rows that sampled draws for each group", 10_000),
    *ROWS,
    MIN_ROWS,
)


def _make_gap(kind: Any, given: Given) -> Any:
    which, score = given.arguments["kind"], given.arguments["score"]
    for name, kinds in (("count", ("sampled",)), ("rest", ("sampled",)), ("given", ("odds",))):
        if given.stated(name) and which not in kinds:
            raise given.fail(name, f"kind={which} makes no use of {name}; leave it out, or write kind={kinds[0]}")
    if which == "sampled" and given.stated("min_rows"):
        raise given.fail("min_rows", "kind=sampled draws as many rows for each group; leave min_rows out")
    if which in ("opportunity", "odds"):
        if score not in ("max_difference", "difference"):
            raise given.fail("score", f"kind={which} has the scores max_difference and difference")
        return _make_odds(kind, given, opportunity=which == "opportunity", score=score)
    options = {"favorable": given.favorable(), "target": given.limit(), "name": given.name, "score": score}
    rows = given.rows(labels=False)
    if which == "parity":
        return GroupGap.observed(rows.inputs, **given.groups(), **options)
    values = given.arguments["values"]
    if values is not None and not all(isinstance(value, int | float) for value in values):
        raise given.fail("values", "kind=sampled sets inputs; its values are numbers as the network reads them")
    draw = {key: given.arguments[key] for key in ("count", "rest")}
    return GroupGap.sampled(rows.inputs, given.column(), values, **draw, **options)


def _make_odds(kind: Any, given: Given, opportunity: bool = False, score: str = "max_difference") -> Any:
    rows, favorable = given.rows(), given.favorable()
    options: dict[str, Any] = {"favorable": favorable, "target": given.limit(), "name": given.name, "score": score}
    if opportunity:
        options["given"] = (favorable,)
    elif given.arguments.get("given") is not None:
        options["given"] = tuple(given.label("given", value) for value in given.arguments["given"])
    return kind.observed(rows.inputs, rows.labels, **given.groups(), **options)


def _as_in_fairlearn(name: str, what: str, kind: str) -> Measure:
    return Measure(
        f"{name}_difference",
        f"Largest difference of {what}; defined as in fairlearn, the same as gap(..., kind={kind}).",
        f"{name}_difference(sex) <= 0.05",
        "difference of rates, 0 to 1",
        arguments=GROUPS,
        make=partial(_make_odds, opportunity=kind == "opportunity"),
    )


@public
@dataclass(frozen=True, eq=False)
class OddsGap(RateGap):
    """How differently a network treats people of different groups with the same true label (equalized odds).

    With ``score="max_difference"`` the largest difference between two groups of the rate with which rows of one true
    label get the favorable label: fairlearn's ``equalized_odds_difference``; of the favorable true label alone
    (``given=[favorable]``) the equal opportunity difference. With ``score="difference"`` the mean over true labels and
    pairs of groups: of two groups and two labels the average absolute odds difference.

    Build it with :meth:`observed`.

    Attributes:
        samples: Inputs and the group of each.
        labels: True labels, ``(M,)``.
        favorable: The favorable label; as of :class:`GroupGap`.
        given: True labels within which groups are compared.
        target: The gap to reach.
        score: ``"max_difference"`` or ``"difference"``.
        temperature: Temperature of the softmax in the soft value; None as for :class:`GroupGap`.
        name: What the report calls it.

    References:
        Hardt, Price and Srebro, Equality of Opportunity in Supervised Learning, NeurIPS 2016.
    """

    samples: GroupSamples
    labels: Tensor
    favorable: int = FirstOfTwo(1)
    given: tuple[int, ...] = (0, 1)
    target: float = Unstated(0.05)
    score: str = "max_difference"
    temperature: float | None = None
    name: str = "odds gap"

    measures = (
        Measure(
            "gap",
            "How differently groups are treated: parity: rates of the favorable class; opportunity: the same among "
            "rows whose true class is the favorable one; odds: the larger gap within the true classes; sampled: rates "
            "on rows that differ in the group's column alone, drawn from the data.",
            'gap(sex, favorable=">50K", kind=parity) <= 0.05',
            "difference of rates, 0 to 1 (kl, jensen_shannon: nats)",
            arguments=GAP_ARGUMENTS,
            make=_make_gap,
            makes="GroupGap, OddsGap",
        ),
        _as_in_fairlearn("equal_opportunity", "the true positive rate", "opportunity"),
        _as_in_fairlearn("equalized_odds", "true and false positive rates", "odds"),
        Measure(
            "average_abs_odds_difference",
            "Mean of the absolute differences of true and false positive rates, over pairs of groups; defined as in "
            "AIF360.",
            "average_abs_odds_difference(sex) <= 0.05",
            "difference of rates, 0 to 1",
            arguments=GROUPS,
            make=partial(_make_odds, score="difference"),
        ),
    )

    def __post_init__(self) -> None:
        if not is_one_of(self.score, ("max_difference", "difference")):
            raise SpecificationError(f"'{self.name}': score {self.score!r}; choose max_difference or difference.")
        for label in self.given:
            for a, group in enumerate(self.samples.names):
                if not bool(((self.labels == label) & (self.samples.cells[a] > 0)).any()):
                    raise SpecificationError(
                        f"'{self.name}': no row of group {group} has true label {label}, so its rate is not defined. "
                        f"Leave the group out of values, or the label out of given."
                    )

    @classmethod
    @public
    def observed(
        cls, inputs: Any, labels: Any = None, column: Any = None, values: Any = None, **options: Any
    ) -> OddsGap:
        """Gap on real labelled rows.

        Args:
            inputs: Rows ``(N, ...)``.
            labels: True labels ``(N,)``; None where ``inputs`` is a dataset or loader of pairs.
            column: Column that tells the group, by position or by a frame's name, or several whose values are crossed;
                None with ``sensitive_features``.
            values: The groups' values in it; rows with other values are left out. None for all values found.
            **options: ``sensitive_features`` ``(N,)`` in place of a column, ``min_rows``, ``sample_weight`` ``(N,)``,
                and the attributes of the class.

        Returns:
            The property; compares within all labels that occur unless ``given`` says which.
        """
        samples, own = labelled_groups(options.get("name", "odds gap"), inputs, labels, column, values, options)
        options.setdefault("given", tuple(sorted(int(label) for label in torch.unique(own))))
        return cls(samples, own, **{**options, "given": tuple(options["given"])})

    @property
    def combine(self) -> str:
        """How the signed differences make the score."""
        return "mean" if self.score == "difference" else "max"

    @property
    def inputs(self) -> Tensor:
        """The rows, ``(M, ...)``."""
        return self.samples.inputs

    def details(self, predict: Predict) -> dict[str, float]:
        """Favorable rate of each group within each true label."""
        rates = self._means(self._favored(predict))
        return {
            f"favorable rate, {group}, label {label}": float(rates[i, a])
            for i, label in enumerate(self.given)
            for a, group in enumerate(self.samples.names)
        } | self.samples.details()

    def on(self, inputs: Any, labels: Any) -> OddsGap:
        """The same gap on other rows."""
        x, y = check_labelled(f"'{self.name}'", inputs, labels, integers=True)
        samples = self.samples.again(x)
        return replace(self, samples=samples, labels=y[samples.known])

    def where(self, keep: Callable[[Tensor], Tensor]) -> OddsGap:
        """The same gap on the inputs that ``keep`` chooses."""
        mask = keep(self.samples.inputs)
        return replace(self, samples=self.samples.where(mask), labels=self.labels[mask.cpu()])

    def _means(self, values: Tensor) -> Tensor:
        rows = self._cells()
        return (rows / rows.sum(-1, keepdim=True)).to(values) @ values

    def _cells(self) -> Tensor:
        return torch.stack([self.samples.cells * (self.labels == label)[None] for label in self.given])

    def _counts(self) -> Tensor:
        member, q = self.samples.member, self.samples.q
        if self.samples.weights is not None:
            return kish_counts(self.samples.weights, self._cells() > 0)
        return torch.stack([torch.bincount(member[self.labels == label], minlength=q) for label in self.given])
