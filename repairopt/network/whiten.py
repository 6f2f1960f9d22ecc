"""Coordinates of a last linear layer in which its features are white."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from .candidate import Array
from .engine import Engine

MOST = 20_000  # samples whose features are looked at
RIDGE = 1e-3  # of the mean variance, added to all


@dataclass(frozen=True, eq=False)
class Whitening:
    """``delta = [weight, bias]`` row by row as ``u @ root`` with the features' second moment ``root' root`` inverted.

    ``root (f, f)`` takes features, with the 1 for the bias behind them, to ones with the unit second moment;
    ``outputs`` are the rows of the layer, ``bias`` says whether the bias changes too.
    """

    root: Array
    inverse: Array
    outputs: int
    bias: bool

    def colored(self, u: Array) -> Array:
        """From white coordinates to a weight change, ``(n,)``."""
        rows = u.reshape(self.outputs, -1) @ self.root
        return np.concatenate([rows[:, :-1].ravel(), rows[:, -1]]) if self.bias else np.asarray(rows.ravel())

    def whitened(self, delta: Array) -> Array:
        """From a weight change to white coordinates."""
        return np.asarray((self._rows(delta) @ self.inverse).ravel())

    def pulled(self, slope: Array) -> Array:
        """From a gradient in the weights to one in white coordinates."""
        return np.asarray((self._rows(slope) @ self.root.T).ravel())

    def _rows(self, delta: Array) -> Array:
        """One row for each output: its weights, then its bias."""
        if not self.bias:
            return delta.reshape(self.outputs, -1)
        cut = len(delta) - self.outputs
        return np.hstack([delta[:cut].reshape(self.outputs, -1), delta[cut:, None]])


def whitening(engine: Engine, inputs: Sequence[Tensor]) -> Whitening | None:
    """White coordinates of the features of all ``inputs`` together; None unless the whole last layer may change.

    None as well where the matrices would not fit into the memory limit of the engine.
    """
    if not inputs:
        return None
    parts = []
    for one in inputs:
        for _, part in engine.batches(one, None, 4):
            if not engine.exact or part[0].ndim != 2:
                return None
            step = max(1, -(-len(one) * len(inputs) // MOST))
            parts.append(part[0][::step].double())
    features = torch.cat(parts).cpu().numpy()
    width, names = features.shape[1], list(engine.indices)
    weights = [name for name in names if not name.endswith("bias")]
    bias = len(names) == 2
    whole = len(weights) == 1 and names[0] == weights[0] and len(engine.indices[weights[0]]) == engine.classes * width
    if not whole or (bias and len(engine.indices[names[1]]) != engine.classes):
        return None
    if 4 * 8 * (width + bias) ** 2 > engine.memory_limit:  # moment, axes, root and inverse
        return None
    if bias:
        features = np.hstack([features, np.ones((len(features), 1))])
    moment = features.T @ features / len(features)
    moment[np.diag_indices(len(moment))] += RIDGE * float(np.trace(moment)) / len(moment)
    values, axes = np.linalg.eigh(moment)
    root = (axes / np.sqrt(values)) @ axes.T
    return Whitening(root, (axes * np.sqrt(values)) @ axes.T, engine.classes, bias)
