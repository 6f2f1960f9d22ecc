"""The program that a working set has at hand: some of the rows, artificial bounds while the objective needs them."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from functools import lru_cache

import numpy as np

from repairopt.program.program import Array, Matrix, Program
from repairopt.program.rows import Source, below
from repairopt.program.solution import Solution

from .row_oracles import Index, excess

PATIENCE = 2  # rounds for which a row stays though slack
SLACK = 1e-6  # room above which a row counts as slack
REACH, FARTHEST = 1e3, 1e6  # first and last artificial bounds


@dataclass(eq=False)
class WorkingRows:
    """Rows of an oracle at hand. Dense ones stand in one buffer that grows, since they may be long.

    ``index`` says which rows of the oracle, ``slack_rounds`` for how many rounds each was slack; all ``(k,)``.
    """

    index: Index = field(default_factory=lambda: np.zeros(0, dtype=np.int64))
    slack_rounds: Index = field(default_factory=lambda: np.zeros(0, dtype=np.int64))
    lower: Array = field(default_factory=lambda: np.zeros(0))
    upper: Array = field(default_factory=lambda: np.zeros(0))
    _stored: Matrix = None

    @property
    def matrix(self) -> Matrix:
        """``(k, n)``; a view that the next change of the working set overwrites, or a sparse matrix."""
        return self._stored[: len(self.index)]

    def add(self, index: Index, rows: tuple[Matrix, Array, Array]) -> None:
        """Append rows."""
        matrix, lower, upper = rows
        old, new = len(self.index), len(self.index) + len(index)
        if self._stored is None:
            self._stored = matrix
        elif hasattr(matrix, "tocsr") or hasattr(self._stored, "tocsr"):
            self._stored = below(self._stored, matrix)
        else:
            if new > len(self._stored):
                grown = np.empty((new + new // 2, matrix.shape[1]))
                grown[:old] = self.matrix
                self._stored = grown
            self._stored[old:new] = matrix
        join = np.concatenate
        self.lower, self.upper = join([self.lower, lower]), join([self.upper, upper])
        self.index = join([self.index, index])
        self.slack_rounds = join([self.slack_rounds, np.zeros(len(index), dtype=np.int64)])

    def drop(self, excess: Array) -> None:
        """Drop rows that were slack too often; ``excess`` is the violation of each row, negative where it has room."""
        self.slack_rounds = np.where(excess < -SLACK, self.slack_rounds + 1, 0)
        keep = np.flatnonzero((self.slack_rounds < PATIENCE) | (self.lower == self.upper))
        if len(keep) == len(self.index):
            return
        if hasattr(self._stored, "tocsr"):
            self._stored = self._stored[keep]
        else:
            for place in np.flatnonzero(keep != np.arange(len(keep))):
                self._stored[place] = self._stored[keep[place]]
        self.lower, self.upper = self.lower[keep], self.upper[keep]
        self.index, self.slack_rounds = self.index[keep], self.slack_rounds[keep]

    def excess(self, delta: Array) -> Array:
        """Violations of the rows at hand, where those are all, in the order of the oracle ``(m,)``."""
        found = np.empty(len(self.index))
        found[self.index] = excess(self.matrix @ delta, self.lower, self.upper)
        return found

    def spread(self, values: Array | None, own: int, m: int) -> Array | None:
        """Multipliers of the rows at hand, behind those of the head's ``own`` rows, as multipliers of all rows."""
        if values is None:
            return None
        spread = np.zeros(own + m)
        spread[:own] = values[:own]
        spread[own + self.index] = values[own:]
        return spread


def relaxation(head: Program, working: WorkingRows, reach: float) -> Program:
    """The head with the rows at hand, named by their place in the oracle; bounds of ``reach`` where none is nearer."""
    low, high = head.bounds()
    matrix = working.matrix
    if matrix.shape[1] < head.n:
        matrix = _beside(matrix, head.n)
    return replace(
        head,
        matrix=below(head.matrix, matrix) if head.m else matrix,
        lower=np.concatenate([head.lower, working.lower]),
        upper=np.concatenate([head.upper, working.upper]),
        delta_lower=np.maximum(low, np.minimum(-reach, high)),
        delta_upper=np.minimum(high, np.maximum(reach, low)),
        sources=(head.sources or (Source("head", -1),) * head.m) + tuple(map(_named, working.index.tolist())),
    )


@lru_cache(maxsize=100_000)
def _named(row: int) -> Source:
    return Source("row", row)


def at_reach(head: Program, delta: Array, reach: float) -> bool:
    """Whether a point lies on an artificial bound."""
    low, high = head.bounds()
    near = 0.999 * reach
    return bool(np.any(((delta > near) & (high > reach)) | ((delta < -near) & (low < -reach))))


def certified_gap(program: Program, solution: Solution) -> float:
    """Bound on ``objective - optimum`` from the multipliers of the rows alone, of a continuous convex program.

    ``lambda'(b - A d) - sum_j min(r_j (l_j - d_j), r_j (u_j - d_j))`` with ``r = H d + g + A' lambda``, in float64, its
    rounding errors not counted. NaN without multipliers, or where a variable without a bound has nonzero ``r_j``.
    """
    if solution.delta is None or solution.row_duals is None:
        return float("nan")
    delta, duals = solution.delta, solution.row_duals
    sides = np.where(duals > 0, program.upper, np.where(duals < 0, program.lower, 0.0))
    usable = np.isfinite(sides)
    duals, sides = np.where(usable, duals, 0.0), np.where(usable, sides, 0.0)
    slope = program.gradient + (0.0 if program.hessian is None else program.hessian @ delta) + program.matrix.T @ duals
    low, high = program.bounds()
    room = np.where(slope > 0, delta - low, np.where(slope < 0, delta - high, 0.0))
    gap = float(duals @ (sides - program.matrix @ delta) + slope @ room)
    return gap if np.isfinite(gap) else float("nan")


def _beside(matrix: Matrix, n: int) -> Matrix:
    """Zero columns for the variables that the rows do not speak of."""
    if not hasattr(matrix, "tocsr"):
        return np.hstack([matrix, np.zeros((matrix.shape[0], n - matrix.shape[1]))])
    from scipy import sparse

    matrix = matrix.tocsr()
    return sparse.csr_matrix((matrix.data, matrix.indices, matrix.indptr), shape=(matrix.shape[0], n))
