"""What a set of weights can be expected to do: the loss that meeting the limits costs, from one model of all weights.

Around the original network each limit is linear and the objective is quadratic, with Gauss-Newton curvature. The least
rise of the objective that meets all limits with some of the weights is then a small quadratic program in the
multipliers of the limits, so that hundreds of sets can be compared without a repair.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from repairopt.network import check_time
from repairopt.program import Array

from .limits import Lines

Positions = npt.NDArray[np.int64]
DAMPING = 1e-2  # as of the first step of a repair, relative to the mean curvature
TINY = 1e-12


@dataclass(frozen=True, eq=False)
class GainModel:
    """The model of all weights, each over its natural size.

    Attributes:
        rows: ``R (m, n)`` with ``R'R`` the curvature of the objective; no rows stand for equal curvature.
        slopes: Slopes of the limits, ``(L, n)``.
        needs: By how much each limit has to fall, negative where it has slack, ``(L,)``.
    """

    rows: Array
    slopes: Array
    needs: Array

    def cost(self, chosen: Positions) -> float:
        """The least rise of the objective with these weights; infinite where they cannot move a missed limit."""
        check_time()
        if not np.any(self.needs > 0):
            return 0.0
        part, slopes = self.rows[:, chosen], self.slopes[:, chosen]
        curvature = (part.T @ part).astype(np.float64) if len(part) else np.eye(len(chosen)) / len(chosen)
        curvature[np.diag_indices(len(chosen))] += max(TINY, DAMPING * float(np.trace(curvature)) / len(chosen))
        moved = slopes @ np.linalg.solve(curvature, slopes.T)
        width = np.maximum(np.diag(moved), 0.0)
        if np.any((width < TINY) & (self.needs > 0)):
            return float("inf")
        if len(self.needs) == 1:
            return float(0.5 * self.needs[0] ** 2 / width[0])
        from scipy.optimize import nnls  # a third of a second of a first call, which one limit does without

        moved = (moved + moved.T) / 2 + np.diag(1e-9 * np.maximum(width, TINY))
        root = np.linalg.cholesky(moved)
        prices, _ = nnls(root.T, np.linalg.solve(root, self.needs), maxiter=100 * len(self.needs))
        return float(self.needs @ prices - 0.5 * prices @ moved @ prices)

    def ranked(self, groups: Sequence[Positions], price: float) -> list[int]:
        """Groups by their cost alone and the price of their weights, cheapest first; those of no use left out."""
        costs = np.array([self.cost(g) + price * len(g) if len(g) else np.inf for g in groups])
        return [int(g) for g in np.argsort(costs, kind="stable") if np.isfinite(costs[g])]


def steepest_sides(lines: Sequence[Lines], aims: Array) -> tuple[Array, Array]:
    """One row for each part of each limit, by the side on which it is larger now.

    Args:
        lines: Linearizations of the limits at the original network.
        aims: Aims of the limits.

    Returns:
        Slopes ``(L, n)`` of the values, and by how much each has to fall ``(L,)``.
    """
    slopes, needs = [], []
    for line, aim in zip(lines, aims, strict=True):
        signs = np.sign(line.values) if line.combine.endswith("_abs") else np.ones(len(line.values))
        values, turned = signs * line.values, signs[:, None] * line.slopes
        if line.combine == "mean_abs":
            values, turned = values.mean(keepdims=True), turned.mean(axis=0, keepdims=True)
        slopes.append(turned)
        needs.append(values - aim)
    return np.concatenate(slopes), np.concatenate(needs)
