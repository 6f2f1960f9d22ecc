"""How likely each label is at each row, from the original network's outputs and the labels that are known."""

from __future__ import annotations

from typing import Any

import numpy as np

from repairopt.program import Array

PRIOR = 1.0  # precision of each weight; keeps what rows do not tell where the network has it
MOST_STEPS = 100


def chances_of_labels(logits: Array, labels: Any, features: Array) -> Array:
    """Probabilities ``(N, k)`` of the labels, by scaling the outputs, and a linear correction for each class.

    An expectation under these chances counts all rows whose label could have been another one, so it is far less noisy
    than a count of the labels that were drawn. The correction finds what the network has wrong about whole groups, such
    as a bias that labels contradict. The fit, by the largest posterior probability, is convex.

    Args:
        logits: Outputs of the network, ``(N, k)``.
        labels: ``(N,)``, 0 to k - 1.
        features: Of each row, such as its groups, of size about 1, ``(N, f)``.

    References:
        Guo, Pleiss, Sun and Weinberger, On calibration of modern neural networks, ICML 2017 (scaling of outputs).
    """
    from scipy.optimize import minimize

    logits = logits - logits.max(1, keepdims=True)
    count, classes = logits.shape
    features = np.column_stack([np.ones(count), features])
    told = np.eye(classes)[labels]

    def chances(weights: Array) -> Array:
        raised = weights[0] * logits + features @ weights[1:].reshape(-1, classes)
        raised = np.exp(raised - raised.max(1, keepdims=True))
        return np.asarray(raised / raised.sum(1, keepdims=True))

    def loss(weights: Array) -> tuple[float, Array]:
        found, pull = chances(weights), weights - start
        value = -np.log(np.maximum(found[np.arange(count), labels], 1e-300)).sum() + 0.5 * PRIOR * pull @ pull
        off = found - told
        slopes = np.concatenate([[(off * logits).sum()], (features.T @ off).ravel()])
        return float(value), slopes + PRIOR * pull

    start = np.concatenate([[1.0], np.zeros(features.shape[1] * classes)])
    return chances(minimize(loss, start, jac=True, method="L-BFGS-B", options={"maxiter": MOST_STEPS}).x)
