"""Rows for working sets that tests and benchmarks compare: screened in float32, and as features times signals."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from repairopt.errors import ProgramError
from repairopt.program import Array, Index
from repairopt.program.working_sets.row_oracles import DenseRows, checked_side, excess

BLOCK = 2**20  # entries that are held at a time
UNIT32 = 2.0**-24  # relative error of one operation in float32
LARGEST32 = 1e30  # entries up to which float32 is tried


class ScreenedRows(DenseRows):
    """Dense rows with a float32 copy, through which they are looked at.

    The copy halves the cost of a pass but takes as long to make as about seven passes save, and half as much memory
    again: it pays where the same rows serve several solves. Signs of violations stay right: rows whose sign is in
    doubt by a bound on the rounding error are looked at again in float64.
    """

    def __init__(self, matrix: Array, lower: Array | None = None, upper: Array | None = None) -> None:
        super().__init__(matrix, lower, upper)
        self._copy, self._lengths = _float32(matrix)

    def screen(self, delta: Array) -> Array:
        """One float32 pass, and float64 where the sign is in doubt."""
        if np.abs(delta).max(initial=0.0) > LARGEST32:
            return self.violations(delta)
        products = (self._copy @ delta.astype(np.float32)).astype(np.float64)
        found = excess(products, self.lower, self.upper)
        doubt = (len(delta) + 4) * UNIT32 * float(np.linalg.norm(delta)) * self._lengths + 1e-30
        index = np.flatnonzero(np.abs(found) <= doubt)
        matrix, lower, upper = self.rows(index)
        found[index] = excess(matrix @ delta, lower, upper)
        return found


class FeatureRows:
    """Rows of a linear layer, kept as features times signals; the matrix of Kronecker products is never built.

    The weight change is that of a layer ``features -> weight @ features + bias``, weight first, row by row as torch
    stores it, then the bias. Row ``i`` asks for ``lower_i <= signal_i . (change of the outputs at its sample)``.
    For a last layer the signal is a pair of classes; for an inner one it is the gradient of the margin there.

    Args:
        features: Inputs of the layer, ``(N, h)``.
        signals: ``(m, 2)`` integers, wanted class and rival; or ``(m, o)`` floats.
        lower: ``(m,)``, or None for none.
        upper: ``(m,)``, or None for none.
        samples: Which sample each row speaks of, ``(m,)``; None where row ``i`` speaks of sample ``i``.
        outputs: Outputs ``o`` of the layer; needed for pairs only.
        bias: Whether the bias may change too.
        columns: Which of the layer's parameters may change, in the order of the step, ``(n,)``; None for all.

    Raises:
        ProgramError: Sizes disagree.
    """

    def __init__(
        self,
        features: Array,
        signals: Any,
        lower: Array | None = None,
        upper: Array | None = None,
        *,
        samples: Index | None = None,
        outputs: int | None = None,
        bias: bool = False,
        columns: Index | None = None,
    ) -> None:
        self.features, self.signals, self.bias, self.columns = features, np.asarray(signals), bias, columns
        self.m = len(self.signals)
        self.pairs = self.signals.dtype.kind in "iu"
        if self.pairs and (
            outputs is None or self.signals.shape != (self.m, 2) or self.signals.max(initial=0) >= outputs
        ):
            raise ProgramError(f"rows: pairs of shape {self.signals.shape} need outputs above the largest class.")
        self.outputs = int(outputs or 0) if self.pairs else int(self.signals.shape[1])
        self.samples = np.arange(self.m) if samples is None else np.asarray(samples)
        if self.samples.shape != (self.m,) or self.samples.max(initial=-1) >= len(features):
            raise ProgramError(f"rows: {self.m} signals need as many samples, each below {len(features)}.")
        self.lower, self.upper = checked_side(lower, self.m, -np.inf), checked_side(upper, self.m, np.inf)

    @property
    def n(self) -> int:
        """Number of weights that may change."""
        full = self.outputs * (self.features.shape[1] + self.bias)
        return full if self.columns is None else len(self.columns)

    def violations(self, delta: Array) -> Array:
        """The layer's change of outputs at all samples, then one product for each row."""
        step = delta
        if self.columns is not None:
            step = np.zeros(self.outputs * (self.features.shape[1] + self.bias))
            step[self.columns] = delta
        cut = self.outputs * self.features.shape[1]
        moved = self.features @ step[:cut].reshape(self.outputs, -1).T
        if self.bias:
            moved += step[cut:]
        if self.pairs:
            values = moved[self.samples, self.signals[:, 0]] - moved[self.samples, self.signals[:, 1]]
            return excess(values, self.lower, self.upper)
        values = np.empty(self.m)
        step_rows = max(1, BLOCK // max(1, self.outputs))
        for i in range(0, self.m, step_rows):
            part = slice(i, i + step_rows)
            values[part] = np.einsum("ij,ij->i", moved[self.samples[part]], self.signals[part])
        return excess(values, self.lower, self.upper)

    def rows(self, index: Index) -> tuple[Array, Array, Array]:
        """The chosen rows as a dense matrix."""
        features, count = self.features[self.samples[index]], len(index)
        if self.pairs:
            signals = np.zeros((count, self.outputs))
            np.add.at(signals, (np.arange(count), self.signals[index, 0]), 1.0)
            np.add.at(signals, (np.arange(count), self.signals[index, 1]), -1.0)
        else:
            signals = self.signals[index]
        matrix = (signals[:, :, None] * features[:, None, :]).reshape(count, -1)
        if self.bias:
            matrix = np.hstack([matrix, signals])
        if self.columns is not None:
            matrix = matrix[:, self.columns]
        return matrix, self.lower[index], self.upper[index]


def _float32(matrix: Array) -> tuple[npt.NDArray[np.float32], Array]:
    """A float32 copy and the length of each row, by one sweep."""
    copy, lengths = np.empty(matrix.shape, dtype=np.float32), np.empty(len(matrix))
    step = max(1, BLOCK // (8 * max(1, matrix.shape[1])))
    for i in range(0, len(matrix), step):
        part = slice(i, i + step)
        copy[part] = matrix[part]
        lengths[part] = np.sqrt(np.einsum("ij,ij->i", matrix[part], matrix[part]))
    if not lengths.max(initial=0.0) < LARGEST32:
        raise ProgramError("rows: an entry is not finite, or too large for a float32 copy; pass screening=False.")
    return copy, lengths
