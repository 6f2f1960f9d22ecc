"""Means of methods over the same cells: a linear model of methods and cells, where some cells are missing."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

SAME = 1e-9  # difference, relative to the largest value, up to which values count as the same
Cells = Mapping[Any, float]  # values by cell: subject and repetition
Floats = npt.NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class AdjustedMeans:
    """What :func:`adjust_means` gives.

    Attributes:
        means: By method its mean over all cells, those that it lacks as the model has them.
        freedom: Degrees of freedom of the error variance; 0 where there are no more values than unknowns.
    """

    means: Mapping[str, float]
    freedom: int
    errors: Floats = field(repr=False)  # standard errors of differences, (m, m)
    parts: Sequence[int] = field(repr=False)  # methods of different parts have no cells in common, even by others
    size: float = field(repr=False)  # largest value

    def p_value(self, first: str, second: str) -> float:
        """Of the hypothesis that two methods have the same mean; 1 where their difference is not determined."""
        from scipy import stats

        a, b = (list(self.means).index(name) for name in (first, second))
        if self.parts[a] != self.parts[b] or not self.freedom:
            return 1.0
        difference = abs(self.means[first] - self.means[second])
        if difference <= SAME * self.size:
            return 1.0
        error = float(self.errors[a, b])
        return float(2 * stats.t.sf(difference / error, self.freedom)) if error > SAME * self.size else 0.0


def adjust_means(values: Mapping[str, Cells]) -> AdjustedMeans:
    """Means of methods, adjusted for cells that some of them lack.

    The model is ``value = method + cell + error`` with one error variance, fitted by least squares. Where no cell is
    missing the means are plain means; else a method that was measured on easy networks alone does not gain by that.
    Every method is compared with the same error variance, so that some common cells suffice.

    Args:
        values: For each method its values by cell, at least one, all finite.

    References:
        Searle, Speed and Milliken, Population Marginal Means in the Linear Model, The American Statistician 34, 1980.
    """
    from scipy.sparse.csgraph import connected_components

    cells = list(dict.fromkeys(cell for own in values.values() for cell in own))
    at = {cell: len(values) + k for k, cell in enumerate(cells)}
    known = [(k, at[cell], value) for k, own in enumerate(values.values()) for cell, value in own.items()]
    count, unknowns = len(known), len(values) + len(cells)
    design, y = np.zeros((count, unknowns)), np.array([value for _, _, value in known])
    for row, (method, cell, _) in enumerate(known):
        design[row, [method, cell]] = 1.0
    normal = design.T @ design
    inverse = np.linalg.pinv(normal, hermitian=True)
    fitted = inverse @ design.T @ y
    parts = connected_components(normal, directed=False)[1]
    freedom = count - unknowns + int(parts.max(initial=-1)) + 1  # each part leaves a constant free
    variance = float(((y - design @ fitted) ** 2).sum()) / freedom if freedom else 0.0
    own = inverse[: len(values), : len(values)]
    spread = np.add.outer(np.diag(own), np.diag(own)) - 2 * own
    level = [float(fitted[len(values) :][parts[len(values) :] == parts[k]].mean()) for k in range(len(values))]
    means = {name: float(fitted[k]) + level[k] for k, name in enumerate(values)}
    errors = np.sqrt(variance * np.maximum(spread, 0.0))
    return AdjustedMeans(means, freedom, errors, parts[: len(values)].tolist(), float(np.abs(y).max(initial=0.0)))
