"""The program of one step: model of the objective, rows of the limits, rows of the samples, a box.

Variables, in this order: the step ``d (n,)``; one slack for each limit, at a price, so that a limit out of reach still
gives a step; for each limit that is a mean of sizes one variable for each size; for norms of the change their own.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from repairopt.program import Array, Program, Rows, Source

from .limits import Lines
from .objectives import ObjectiveModel

Index = npt.NDArray[np.int64]


@dataclass(eq=False)
class StepProgram:
    """A program in parts, put together by :meth:`program`.

    Attributes:
        model: Model of the objective.
        scale: Natural size of each weight, ``(n,)``.
        delta: The weight change so far, ``(n,)``; norms speak of the whole change.
        damping: Weight of ``1/2 |d / scale|^2``.
        box: Bounds of ``d``.
    """

    model: ObjectiveModel
    scale: Array
    delta: Array
    damping: float
    box: tuple[Array, Array]
    _blocks: list[Any] = field(default_factory=list)
    _costs: list[Array] = field(default_factory=list)
    _bounds: list[tuple[Array, Array]] = field(default_factory=list)
    _extra: int = 0

    def __post_init__(self) -> None:
        if self.model.norm:
            self._add_norm(self.model.norm)

    @property
    def n(self) -> int:
        """Number of weights."""
        return len(self.scale)

    def add_limit(self, name: str, lines: Lines, aim: float, price: float) -> int:
        """``lines <= aim + slack``, the slack at a price.

        Returns:
            Which of the auxiliary variables the slack is.
        """
        slack = self._variables(np.array([price]), 0.0)
        p = len(lines.values)
        if lines.combine == "mean_abs" and p > 1:
            size = self._variables(np.zeros(p), 0.0)
            for sign in (1.0, -1.0):
                self._rows(-sign * lines.slopes, {size: np.eye(p)}, sign * lines.values, f"{name}, a part")
            self._rows(np.zeros((1, self.n)), {size: np.full((1, p), -1.0 / p), slack: np.ones((1, 1))}, [-aim], name)
            return slack
        signs = (1.0, -1.0) if lines.combine.endswith("_abs") else (1.0,)
        for sign in signs:
            self._rows(-sign * lines.slopes, {slack: np.ones((p, 1))}, sign * lines.values - aim, name)
        return slack

    def add_rows(self, rows: Rows) -> None:
        """Rows on the step; those with a price get slacks."""
        soft = np.isfinite(rows.price)
        extra: dict[int, Array] = {}
        if soft.any():
            columns = np.zeros((len(rows), int(soft.sum())))
            columns[np.flatnonzero(soft), np.arange(int(soft.sum()))] = 1.0
            extra = {self._variables(rows.price[soft], 0.0): columns}
        self._blocks.append((rows.matrix, extra, rows.lower, rows.upper, rows.sources))

    def slack(self, which: int, solution: Array) -> float:
        """A slack variable's value."""
        return float(solution[self.n + which])

    def program(self) -> Program:
        """All together."""
        n, k = self.n, self._extra
        hessian = np.zeros((n + k, n + k))
        if self.model.hessian is not None:
            hessian[:n, :n] = self.model.hessian
        hessian[np.arange(n), np.arange(n)] += self.damping / self.scale**2
        costs = [np.zeros(0), *self._costs]
        bounds = list(zip(*self._bounds, strict=True)) if self._bounds else [(), ()]
        parts, lower, upper, sources = [np.zeros((0, n + k))], [], [], []
        for matrix, extra, low, high, names in self._blocks:
            block = np.zeros((len(low), n + k))
            block[:, :n] = matrix.toarray() if hasattr(matrix, "tocsr") else matrix
            for start, columns in extra.items():
                block[:, n + start : n + start + columns.shape[1]] = columns
            parts.append(block)
            lower.append(low)
            upper.append(high)
            sources += list(names)
        flat = self.damping == 0 and self.model.hessian is None
        return Program(
            gradient=np.concatenate([self.model.gradient, *costs]),
            hessian=None if flat else hessian,
            constant=self.model.constant if not self.model.norm else 0.0,
            matrix=np.vstack(parts),
            lower=np.concatenate([np.zeros(0), *lower]),
            upper=np.concatenate([np.zeros(0), *upper]),
            delta_lower=np.concatenate([self.box[0], *bounds[0]]),
            delta_upper=np.concatenate([self.box[1], *bounds[1]]),
            sources=tuple(sources),
            n_delta=n,
        )

    def _add_norm(self, norm: str) -> None:
        """Variables ``u >= |delta + d| / scale``, one for each weight or one for all."""
        n = self.n
        if norm == "l1":
            start, columns = self._variables(np.full(n, 1.0 / n), 0.0), np.eye(n)
        else:
            start, columns = self._variables(np.ones(1), 0.0), np.ones((n, 1))
        for sign in (1.0, -1.0):
            matrix = np.diag(-sign / self.scale)
            self._rows(matrix, {start: columns}, sign * self.delta / self.scale, "size of the change")

    def _variables(self, cost: Array, low: float) -> int:
        start = self._extra
        self._extra += len(cost)
        self._costs.append(cost)
        self._bounds.append((np.full(len(cost), low), np.full(len(cost), np.inf)))
        return start

    def _rows(self, matrix: Array, extra: dict[int, Array], lower: Any, name: str) -> None:
        low = np.asarray(lower, dtype=np.float64)
        self._blocks.append((matrix, extra, low, np.full(len(low), np.inf), (Source(name),) * len(low)))


def limit_prices(program: Program, row_duals: Array | None, names: Sequence[str]) -> dict[str, float]:
    """By how much the objective falls for each unit by which a limit is loosened, by its name.

    Args:
        program: A step's program.
        row_duals: Its multipliers.
        names: Names of the limits.

    Returns:
        Prices, not negative; those of the sign rows of a limit taken together.
    """
    prices = dict.fromkeys(names, 0.0)
    if row_duals is None:
        return prices
    for source, dual in zip(program.sources, row_duals, strict=False):  # those of a working set come after them
        if source.sample < 0 and source.constraint in prices:
            prices[source.constraint] += max(0.0, -float(dual))
    return prices
