"""Rates of groups: how soft a count is to be, and how far chance moves differences between rates."""

from __future__ import annotations

from itertools import combinations

from torch import Tensor, stack, where

LOGISTIC = 3**0.5 / 3.141592653589793  # scale of the logistic kernel with standard deviation 1


def pairwise_differences(rates: Tensor) -> Tensor:
    """``rates[a] - rates[b]`` for all pairs ``a < b``, ``(q (q-1) / 2,)``."""
    return stack([rates[a] - rates[b] for a, b in combinations(range(len(rates)), 2)])


def spread_of(rates: Tensor, counts: Tensor, combine: str, below: Tensor | None = None) -> Tensor:
    """Standard error of differences of rates, times the root of the number of rows; differentiable in the rates.

    ``rates`` and ``counts``, the rows behind each, are ``(labels, q)``; groups are compared within a row. ``combine``
    is ``"max"`` for the largest difference, else the mean. ``below (labels,)`` says whether the rates of a label are to
    lie below one half: on the other side the spread goes on growing, so that the way to a small one leads back.
    """
    variance = rates * (1 - rates)
    if below is not None:
        beyond = where(below.to(rates.device)[:, None], rates > 0.5, rates < 0.5)
        variance = where(beyond, 0.5 - variance, variance)
    variance = variance * (counts.sum() / counts).to(rates)
    variance = variance.clamp(min=0.0) + 1e-12  # a mean of ones may be above 1, and the root has no slope at 0
    pairs = list(combinations(range(rates.shape[1]), 2))
    errors = stack([(variance[:, a] + variance[:, b]).sqrt() for a, b in pairs])
    return errors.amax() if combine == "max" else errors.mean()


def kernel_temperature(outputs: Tensor, favorable: int) -> Tensor:
    """Temperature with which the softmax is a kernel estimate: twice Silverman's bandwidth for the lead."""
    lead = outputs.detach()[..., favorable] - outputs.detach().mean(-1)
    bandwidth = 2 * 1.06 * lead.std() * outputs.shape[0] ** -0.2  # Silverman, Density Estimation, 1986
    return (bandwidth * outputs.shape[-1] / (outputs.shape[-1] - 1) * LOGISTIC).clamp(min=1e-6)
