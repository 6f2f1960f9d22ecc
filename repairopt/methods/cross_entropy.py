"""Cross-entropy of labelled samples as a quadratic model: exact gradient, Gauss-Newton curvature."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from repairopt.network import Engine, pull_back, sample_rows
from repairopt.specify import loss_by_weight, scaled_weights
from repairopt.surrogate import Surrogate

Array = npt.NDArray[np.float64]
CURVATURE_NUMBERS = 8_000_000  # in the derivatives for the Gauss-Newton matrix; above, a part of the samples
NEGLIGIBLE = 1e-4  # p (1 - p) below this share of 1/4 adds no curvature worth a row


def cross_entropy_model(
    engine: Engine, data: Sequence[tuple[Tensor, Tensor]], delta: Array, seed: int = 0
) -> Surrogate:
    """Quadratic model of the mean cross-entropy over all samples, in the step from ``delta``.

    Args:
        engine: The network and the ``n`` weights.
        data: Pairs of inputs ``(N, ...)`` and labels ``(N,)``, perhaps with weights.
        delta: Where, ``(n,)``.
        seed: Chooses the samples for the curvature where all would be too many.

    Returns:
        Surrogate with a positive semidefinite ``(n, n)`` Hessian.
    """
    total = sum(len(labels) for _, labels in data)
    gradient = np.zeros(engine.n)
    hessian = torch.zeros(engine.n, engine.n, dtype=torch.float64, device=engine.device)
    loss = 0.0
    for pair in data:
        inputs, labels = pair
        outputs = engine.predict(delta)(inputs)
        own, weights = labels.to(outputs.device), scaled_weights(pair, outputs)
        loss += loss_by_weight(outputs, own, pair) / total
        chance = torch.softmax(outputs, dim=1)
        error = chance.clone()
        error[torch.arange(len(own), device=own.device), own] -= 1
        error = error if weights is None else error * weights[:, None]
        gradient += pull_back(engine, inputs, error / total, delta).cpu().numpy()
        hessian += softmax_curvature(engine, inputs, chance, delta, seed, weights) / total
    scale = engine.scale.cpu().numpy()
    return Surrogate(gradient, hessian.cpu().numpy(), loss, scale, kind="cross_entropy")


def softmax_curvature(
    engine: Engine, inputs: Tensor, chance: Tensor, delta: Array, seed: int = 0, weights: Tensor | None = None
) -> Tensor:
    """Gauss-Newton curvature of cross-entropies: sum over samples of ``J' (diag(p) - p p') J``.

    The same whatever probabilities the cross-entropy is taken against. Built from its square root, a few samples at a
    time; from a part of the samples where all would be too many.

    Args:
        engine: The network and the ``n`` weights.
        inputs: Samples ``(N, ...)``.
        chance: Their probabilities ``p`` at ``delta``, ``(N, k)``.
        delta: Where, ``(n,)``.
        seed: Chooses the samples where all would be too many.
        weights: How much each sample counts ``(N,)``; None for 1 each.

    Returns:
        ``(n, n)`` in float64, symmetric positive semidefinite.
    """
    result = torch.zeros(engine.n, engine.n, dtype=torch.float64, device=engine.device)
    samples, classes = _roots(chance)
    still = None if engine.exact else engine.still(inputs)
    if still is not None:  # rows of the others are zero
        moves = still.place[samples] >= 0
        samples, classes = samples[moves], classes[moves]
    if not len(samples):
        return result
    most = max(4 * engine.n, CURVATURE_NUMBERS // (engine.n_changed + engine.floats(inputs)))
    share = 1.0
    if len(samples) > most:
        draw = torch.Generator().manual_seed(seed)
        pick = torch.randperm(len(samples), generator=draw)[:most].sort().values.to(samples.device)
        share, samples, classes = most / len(samples), samples[pick], classes[pick]
    step = max(1, engine.memory_limit // (32 * max(engine.n, chance.shape[1])))
    for start in range(0, len(samples), step):
        span = slice(start, start + step)
        cotangents = _cotangents(chance, samples[span], classes[span])
        if weights is not None:
            cotangents = cotangents * weights[samples[span]].sqrt()[:, None]
        rows = sample_rows(engine, inputs, samples[span], cotangents, delta)
        rows = rows.double()  # a product in float32 is neither symmetric nor semidefinite to the rounding of float64
        if rows.device.type == "cpu":  # numpy knows that such a product is symmetric: half the work
            known = rows.numpy()
            result += torch.from_numpy(known.T @ known)
        else:
            result += rows.T @ rows
    return (result + result.T) / (2 * share)


def root_rows(engine: Engine, inputs: Tensor, chance: Tensor, delta: Array, *, most: int, seed: int = 0) -> Tensor:
    """Rows ``R`` with ``R'R`` the curvature of :func:`softmax_curvature`, from some of them where they are too many.

    Args:
        engine: The network and the ``n`` weights.
        inputs: Samples ``(N, ...)``.
        chance: Their probabilities at ``delta``, ``(N, k)``.
        delta: Where, ``(n,)``.
        most: Rows.
        seed: Chooses among them.

    Returns:
        ``(m, n)``, ``m <= most``, in the network's precision.
    """
    samples, classes = _roots(chance)
    share = 1.0
    if len(samples) > most:
        pick = torch.randperm(len(samples), generator=torch.Generator().manual_seed(seed))[:most].sort().values
        share, samples, classes = most / len(samples), samples[pick], classes[pick]
    return sample_rows(engine, inputs, samples, _cotangents(chance, samples, classes), delta) / share**0.5


def _roots(chance: Tensor) -> tuple[Tensor, Tensor]:
    """Samples and classes of rows ``c`` with ``sum c c' = diag(p) - p p'`` for each sample: one a class, of two one.

    Rows that add no curvature worth it are left out, before any is made: there may be thousands of classes.
    """
    count, classes = chance.shape
    if classes == 2:
        samples = (chance[:, 0] * chance[:, 1] > NEGLIGIBLE / 4).nonzero()[:, 0]
        return samples, torch.zeros_like(samples)
    keep = (chance * (1 - chance) > NEGLIGIBLE / 4).nonzero()
    return keep[:, 0], keep[:, 1]


def _cotangents(chance: Tensor, samples: Tensor, classes: Tensor) -> Tensor:
    """The rows ``c`` of some samples and classes, ``(B, k)``."""
    own = chance[samples]
    if chance.shape[1] == 2:
        root = (own[:, 0] * own[:, 1]).sqrt()
        return torch.stack([root, -root], dim=1)
    at = classes[:, None]
    rows = -own
    rows.scatter_add_(1, at, torch.ones_like(at, dtype=own.dtype))
    return own.gather(1, at).sqrt() * rows
