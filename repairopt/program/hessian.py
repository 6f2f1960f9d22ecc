"""Hessians of the form diagonal plus low rank."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from repairopt.errors import ProgramError

Array = npt.NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class LowRankHessian:
    """``diag(diagonal) + factor factor'``, never formed unless asked; diagonal ``(n,)``, factor ``(n, r)``."""

    diagonal: Array
    factor: Array

    def __post_init__(self) -> None:
        object.__setattr__(self, "diagonal", numbers("LowRankHessian: diagonal", self.diagonal, 1))
        object.__setattr__(self, "factor", numbers("LowRankHessian: factor", self.factor, 2))
        if len(self.factor) != len(self.diagonal):
            raise ProgramError(
                f"LowRankHessian: factor has shape {self.factor.shape}, expected ({len(self.diagonal)}, r)."
            )

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


def numbers(name: str, value: Any, dimensions: int | None) -> Array:
    """An array of real numbers as float64, of so many dimensions where given; a ProgramError for anything else."""
    try:
        array = np.asarray(value)
    except (TypeError, ValueError, RuntimeError) as error:
        raise ProgramError(f"{name} cannot be read as an array: {error}.") from error
    if array.dtype.kind not in "biuf":
        what = f"entries of type {array.dtype}" if array.shape else f"{type(value).__name__}"
        raise ProgramError(f"{name} holds {what}; expected real numbers.")
    if dimensions is not None and array.ndim != dimensions:
        raise ProgramError(f"{name} has shape {array.shape}; expected {dimensions} dimensions.")
    return np.asarray(array, dtype=np.float64)
