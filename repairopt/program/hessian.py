"""Hessians of the form diagonal plus low rank."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class LowRankHessian:
    """``diag(diagonal) + factor factor'``, never formed unless asked; diagonal ``(n,)``, factor ``(n, r)``."""

    diagonal: Array
    factor: Array

    @property
    def shape(self) -> tuple[int, int]:
        """The shape of the matrix that this object stands for."""
        return (len(self.diagonal), len(self.diagonal))

    def __matmul__(self, vector: Array) -> Array:
        return (self.diagonal * vector.T).T + self.factor @ (self.factor.T @ vector)

    def dense(self) -> Array:
        """The ``(n, n)`` matrix itself."""
        return np.diag(self.diagonal) + self.factor @ self.factor.T


Hessian = Array | LowRankHessian


def padded(hessian: Hessian | None, count: int) -> Hessian | None:
    """The Hessian with ``count`` more variables behind its own, without curvature."""
    if isinstance(hessian, LowRankHessian):
        return LowRankHessian(np.pad(hessian.diagonal, (0, count)), np.pad(hessian.factor, ((0, count), (0, 0))))
    return None if hessian is None else np.pad(hessian, (0, count))
