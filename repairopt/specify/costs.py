"""Errors of different cost: a price for each pair of true and predicted class."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from repairopt.errors import SpecificationError
from repairopt.network import Predict

from .contracts import Unstated
from .intervals import Interval, bounded_mean_interval
from .measures import ROWS, Argument, Given, Measure
from .properties import LabelledPoints
from .sample_weights import effective_count, weighted_mean


def _make_cost(kind: Any, given: Given) -> Any:
    rows = given.rows()
    return kind(rows.inputs, rows.labels, given.arguments["costs"], target=given.limit(), name=given.name)


@dataclass(frozen=True, eq=False)
class ExpectedCost(LabelledPoints):
    """Mean cost of the answers, where each pair of true and predicted class has its cost.

    The soft value is the mean cost under the network's probabilities.

    Attributes:
        inputs: Points ``(N, ...)``.
        labels: Their classes ``(N,)``; None where ``inputs`` is a dataset or loader of pairs.
        costs: ``(k, k)``; entry ``[t][p]`` is the cost of answering ``p`` where ``t`` is true, 0 or more.
        target: Mean cost of a row to reach.
        name: What the report calls it.
        sample_weight: How much each point counts ``(N,)``, None for all the same.

    References:
        Elkan, The Foundations of Cost-Sensitive Learning, IJCAI 2001.
    """

    inputs: Any
    labels: Any = None
    costs: Any = ((0.0, 1.0), (1.0, 0.0))
    target: float = Unstated(0.1)
    name: str = "cost"

    is_share: ClassVar[bool] = False
    measures = (
        Measure(
            "cost",
            "Mean cost of the answers; costs has a row for each true class and a number for each answer.",
            "cost([[0, 1], [5, 0]]) <= 0.3",
            "cost of a row",
            arguments=(Argument("costs", "matrix", "rows for true classes, columns for answers"), *ROWS),
            make=_make_cost,
        ),
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        try:
            table = torch.as_tensor(np.asarray(self.costs, dtype=np.float64))
        except (TypeError, ValueError, OverflowError):
            table = torch.empty(0)
        square = table.ndim == 2 and table.shape[0] == table.shape[1] > 1
        if not square or not bool(torch.isfinite(table).all()) or bool((table < 0).any()):
            raise SpecificationError(
                f"'{self.name}': costs are {self.costs!r}; expected one row for each true class with one cost, 0 or "
                f"more, for each answer, such as [[0, 1], [5, 0]]."
            )
        object.__setattr__(self, "costs", table)

    def value(self, predict: Predict) -> Tensor:
        """Mean cost of the answers."""
        outputs = self._known(predict)
        paid = self._rows(outputs).gather(-1, outputs.argmax(-1, keepdim=True))[:, 0]
        return weighted_mean(paid, self.sample_weight)

    def soft_value(self, predict: Predict) -> Tensor:
        """Mean cost under the network's probabilities."""
        outputs = self._known(predict)
        return weighted_mean((self._rows(outputs) * torch.softmax(outputs, dim=-1)).sum(-1), self.sample_weight)

    def details(self, predict: Predict) -> dict[str, float]:
        """Rows of each pair of classes that costs something."""
        answers = self._known(predict).argmax(-1).cpu()
        pairs = [(t, p) for t in range(len(self.costs)) for p in range(len(self.costs)) if self.costs[t, p] > 0]
        counts = [int(((self.labels == t) & (answers == p)).sum()) for t, p in pairs]
        return {f"rows of class {t} given class {p}": float(n) for (t, p), n in zip(pairs, counts, strict=True)}

    def interval(self, predict: Predict, confidence: float = 0.95) -> Interval:
        """Where the mean cost on new rows lies; valid for costs of any kind between the smallest and the largest."""
        outputs = self._known(predict)
        paid = self._rows(outputs).gather(-1, outputs.argmax(-1, keepdim=True))[:, 0].detach().double().cpu().numpy()
        values, counts = np.unique(paid, return_counts=True)
        if self.sample_weight is not None:
            weights = self.sample_weight.numpy()
            shares = np.array([weights[paid == value].sum() for value in values]) / weights.sum()
            values, counts = values[shares > 0], shares[shares > 0] * effective_count(paid, weights)
        ends = float(self.costs.min()), float(self.costs.max())
        return bounded_mean_interval(values, counts.astype(np.float64), *ends, confidence)

    def _known(self, predict: Predict) -> Tensor:
        outputs = self._outputs(predict)
        if outputs.shape[-1] != len(self.costs):
            raise SpecificationError(
                f"'{self.name}': costs are {tuple(self.costs.shape)}, for a model with {outputs.shape[-1]} outputs; "
                f"expected one row and one column for each class."
            )
        return outputs

    def _rows(self, outputs: Tensor) -> Tensor:
        """Cost of each answer to each row, ``(N, k)``."""
        return self.costs.to(outputs)[self.labels.to(outputs.device)]
