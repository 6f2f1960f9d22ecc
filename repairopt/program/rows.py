"""Rows ``lower <= A delta <= upper`` of a program, with the sources that they come from."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from .hessian import Array

Matrix = Any  # a dense float64 array or a scipy.sparse matrix


@dataclass(frozen=True, eq=False)
class Rows:
    """Linear inequalities on the step ``d``: ``lower <= matrix @ d <= upper``, dense or ``scipy.sparse``.

    ``price`` is the cost of each unit of violation, ``(m,)``; infinite for hard rows.
    """

    matrix: Any
    lower: Array
    upper: Array
    price: Array
    sources: tuple[Source, ...]

    def __len__(self) -> int:
        return len(self.lower)

    @staticmethod
    def empty(n: int) -> Rows:
        """No rows over ``n`` weights."""
        none = np.zeros(0)
        return Rows(np.zeros((0, n)), none, none, none, ())


def stack_rows(first: Rows, second: Rows) -> Rows:
    """Both sets of rows, one below the other."""
    both = {name: np.concatenate([vars(first)[name], vars(second)[name]]) for name in ("lower", "upper", "price")}
    return Rows(below(first.matrix, second.matrix), sources=first.sources + second.sources, **both)


def below(first: Matrix, second: Matrix) -> Matrix:
    """One matrix below the other, sparse where one of them is."""
    if not (hasattr(first, "tocsr") or hasattr(second, "tocsr")):
        return np.vstack([first, second])
    from scipy import sparse

    return sparse.vstack([sparse.csr_matrix(first), sparse.csr_matrix(second)], format="csr")


@dataclass(frozen=True)
class Source:
    """Where a row comes from, in the user's words; ``sample`` is -1 where no single sample is meant."""

    constraint: str
    sample: int = -1
    detail: str = ""

    def __str__(self) -> str:
        where = f", sample {self.sample}" if self.sample >= 0 else ""
        what = f": {self.detail}" if self.detail else ""
        return f"'{self.constraint}'{where}{what}"
