"""A program as torch tensors on one device, for ``matrix_free.py``."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from repairopt.errors import ProgramError
from repairopt.program import Array, Program

LARGEST_DENSE = 5000  # variables up to which a dense Hessian is taken apart
CHUNK = 256  # rows copied at a time
BLOCK = 8192  # columns scaled at a time
TRIANGLE = 256  # rows of a block of the Gram matrix
NARROW = 1.25  # rows for each variable from which on the normal equations are the smaller system


@dataclass(frozen=True, eq=False)
class Data:
    """The program above as float64 tensors on one device; ``low < high`` and ``lower <= upper`` everywhere.

    ``rows`` is ``A``, ``(k, n)``, with sides ``(k,)``; ``factor`` is ``F``, ``(r, n)``; ``curvature`` is not negative.
    """

    rows: Tensor
    factor: Tensor
    curvature: Tensor
    gradient: Tensor
    lower: Tensor
    upper: Tensor
    low: Tensor
    high: Tensor

    def curved(self, delta: Tensor) -> Tensor:
        """Hessian times a vector."""
        return self.curvature * delta + self.factor.T @ (self.factor @ delta)

    def times(self, delta: Tensor) -> Tensor:
        """``[A; F] delta``."""
        return torch.cat([self.rows @ delta, self.factor @ delta])

    def transposed(self, duals: Tensor) -> Tensor:
        """``[A; F]' duals``."""
        k = len(self.rows)
        return self.rows.T @ duals[:k] + self.factor.T @ duals[k:]

    def gram(self, inverse: Tensor) -> Tensor:
        """``[A; F] diag(inverse) [A; F]'``, a block of columns at a time, one triangle computed."""
        k, n = len(self.rows) + len(self.factor), len(inverse)
        root = inverse.sqrt()
        spans = (slice(j, j + BLOCK) for j in range(0, n, BLOCK))
        parts = (torch.cat([self.rows[:, span], self.factor[:, span]]).mul_(root[span]) for span in spans)
        return _products(k, parts, root)

    def normal(self, weight: Tensor) -> Tensor:
        """``[A; F]' diag(weight) [A; F]``, a block of rows at a time, one triangle computed."""
        root, n = weight.sqrt(), self.rows.shape[1]
        sizes = (len(self.rows), len(self.factor))
        pieces = zip((self.rows, self.factor), root.split(sizes), strict=True)
        parts = (
            (rows[i : i + BLOCK].T * own[i : i + BLOCK]) for rows, own in pieces for i in range(0, len(rows), BLOCK)
        )
        return _products(n, parts, root)

    def products(self, index: Tensor, inverse: Tensor) -> Tensor:
        """``A[index] diag(inverse) [A; F]'``."""
        found = inverse.new_zeros((len(index), len(self.rows) + len(self.factor)))
        for j in range(0, len(inverse), BLOCK):
            span = slice(j, j + BLOCK)
            part = torch.cat([self.rows[:, span], self.factor[:, span]])
            found.addmm_(part[index] * inverse[span], part.T)
        return found

    def columns(self, index: Tensor) -> Tensor:
        """Some columns of ``[A; F]``."""
        return torch.cat([self.rows[:, index], self.factor[:, index]])


def _products(size: int, parts: Iterator[Tensor], like: Tensor) -> Tensor:
    """Sum of ``part part'`` over parts ``(size, ...)``."""
    found = torch.zeros((size, size), dtype=like.dtype, device=like.device)
    for part in parts:
        for i in range(0, size, TRIANGLE):
            found[i:, i : i + TRIANGLE].addmm_(part[i:], part[i : i + TRIANGLE].T)
    return torch.tril(found) + torch.tril(found, -1).T


class ProgramTensors:
    """A program without its fixed variables and its rows without sides, as tensors."""

    def __init__(self, program: Program, device: torch.device, memory_limit: float) -> None:
        self.program, self.device = program, device
        self.low, self.high = program.bounds()
        self.free = self.low < self.high
        self.used = np.flatnonzero(np.isfinite(program.lower) | np.isfinite(program.upper))
        self.k, self.n = len(self.used), int(self.free.sum())
        curved = program.hessian
        rank = 0 if curved is None else program.n if isinstance(curved, np.ndarray) else curved.factor.shape[1]
        height = self.k + rank
        side = self.n if height > NARROW * self.n else height  # of the matrix that is factorized
        need = 8.0 * (height * self.n + 3 * side**2 + 60 * (self.n + height))
        if need > memory_limit or (isinstance(curved, np.ndarray) and program.n > LARGEST_DENSE):
            raise ProgramError(
                f"'woodbury' needs {need / 2**30:.1f} GiB for {program.n:,} variables with {self.k:,} rows and a "
                f"Hessian of rank {rank:,}; allowed are {memory_limit / 2**30:.1f}. Pass the Hessian as a "
                f"LowRankHessian, solve with a working set of rows, or WoodburyIPM(memory_limit=...)."
            )
        self.square = 24.0 * height**2 <= memory_limit  # whether a matrix of the size of the rows may be made, too
        self.diagonal, self.factor = _taken_apart(program)
        self.fixed = np.where(self.free, 0.0, self.low)

    def data(self, copy: bool = True) -> Data:
        """The program in the free variables; without a copy of its rows where none is needed."""
        program, free = self.program, self.free
        gradient = program.gradient + self.factor @ (self.factor.T @ self.fixed)
        at = program.matrix @ self.fixed if not free.all() else np.zeros(program.m)
        return Data(
            self._rows(copy),
            self.tensor(np.ascontiguousarray(self.factor.T[:, free])),
            *map(self.tensor, (self.diagonal[free], gradient[free])),
            *map(self.tensor, ((program.lower - at)[self.used], (program.upper - at)[self.used])),
            *map(self.tensor, (self.low[free], self.high[free])),
        )

    def spread(self, values: Tensor) -> Array:
        """A point in all variables."""
        found = self.fixed.copy()
        found[self.free] = values.cpu().numpy()
        return found

    def spread_rows(self, values: Tensor) -> Array:
        """Multipliers of all rows."""
        found = np.zeros(self.program.m)
        found[self.used] = values.cpu().numpy()
        return found

    def _rows(self, copy: bool) -> Tensor:
        matrix, whole = self.program.matrix, self.free.all()
        matrix = matrix.tocsr() if hasattr(matrix, "tocsr") else matrix
        if not copy and whole and self.k == self.program.m and isinstance(matrix, np.ndarray):
            return torch.as_tensor(matrix, dtype=torch.float64, device=self.device)
        found = torch.empty((self.k, self.n), dtype=torch.float64, device=self.device)
        for start in range(0, self.k, CHUNK):
            part = matrix[self.used[start : start + CHUNK]]
            part = part.toarray() if hasattr(part, "toarray") else part
            found[start : start + len(part)] = torch.as_tensor(part if whole else part[:, self.free])
        return found

    def tensor(self, values: Array) -> Tensor:
        """A copy on the device."""
        return torch.tensor(values, dtype=torch.float64, device=self.device)


def _taken_apart(program: Program) -> tuple[Array, Array]:
    """Diagonal and factor of the Hessian; as much as possible of a dense one goes to the diagonal."""
    hessian = program.hessian
    if hessian is None:
        return np.zeros(program.n), np.zeros((program.n, 0))
    if not isinstance(hessian, np.ndarray):
        return hessian.diagonal, hessian.factor
    diagonal = hessian.diagonal()
    size = np.sqrt(np.where(diagonal > 0, diagonal, 1.0))
    if np.count_nonzero(hessian) == np.count_nonzero(diagonal):
        return diagonal.copy(), np.zeros((program.n, 0))
    values, vectors = np.linalg.eigh(hessian / np.outer(size, size))
    least = max(0.0, float(values[0]))
    keep = values - least > 1e-14 * values[-1]
    return least * size**2, (vectors[:, keep] * np.sqrt(values[keep] - least)) * size[:, None]
