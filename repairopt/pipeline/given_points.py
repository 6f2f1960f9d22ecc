"""Which layers change where given points are to become right."""

from __future__ import annotations

import copy
from math import inf
from typing import Any

from torch import nn

from repairopt.localize import LARGE
from repairopt.methods import operations
from repairopt.network import Classifier, split_model
from repairopt.specify import SampleShare, Specification, inputs_of, measured, stands_for_population

MOST_OPERATIONS = 4e10  # of a pass over the rows of a large network, whose training takes about a minute of a core
LEAST_TIME = 120.0  # seconds of a time limit, below which the last layer of a large network is the first choice
ALL_FOR_POINTS = 10_000  # weights of a network, all of which SQP by name changes for given points
PROBED = 4  # rows by which they are counted


def layers_for_points(
    spec: Specification, model: nn.Module | Classifier, data: Any, time_limit: float | None = None
) -> int:
    """How many layers there are to change where given points are to become right; 0 of other goals, or where too dear.

    Measured on a CNN of digits and LeNet5, whose failures share no cause: the weights of the steepest slopes fix fewer
    points at more cost than all layers do, whose last one is then corrected until every row holds. Where failures share
    a cause, as rotated digits do, all layers carry over to more of them than the last alone (``docs/figures.md``). Of a
    single layer, such as what follows the cut of an ONNX file, all weights fix points that some of them cannot. Of
    large networks all layers are trained where that takes about a minute at most: on other divisions of the digits of
    M4 of the AutoRIC paper (358,186 weights), the last alone loses twice the right answers (``benchmarks/study.py``).
    """
    goal, network = spec.goal, split_model(model)[0]
    weights = [parameter for parameter in network.parameters() if parameter.ndim > 1]
    if not isinstance(goal, SampleShare) or goal.target > 0 or stands_for_population(goal):
        return 0
    if sum(weight.numel() for weight in weights) <= LARGE:
        return len(weights)
    if time_limit is not None and time_limit < LEAST_TIME:
        return 0
    return len(weights) if _operations_of_pass(spec, model, data) <= MOST_OPERATIONS else 0


def weights_for_points(spec: Specification, model: nn.Module | Classifier) -> str:
    """What SQP by name changes where given points of images or sequences are to become right; empty for its own choice.

    (Measured in ``benchmarks/results/study.md``; tables have columns, which are tried.)
    """
    goal, network = spec.goal, split_model(model)[0]
    if not isinstance(goal, SampleShare) or goal.target > 0 or stands_for_population(goal):
        return ""
    inputs = inputs_of(goal)
    if inputs is None or inputs.ndim < 3 or not inputs.is_floating_point():
        return ""
    return "all" if sum(parameter.numel() for parameter in network.parameters()) <= ALL_FOR_POINTS else "last"


def _operations_of_pass(spec: Specification, model: nn.Module | Classifier, data: Any) -> float:
    """Floating-point operations of a pass over all rows, about; infinite where some inputs are of another kind.

    They are counted on a copy that does not learn: a pass of the user's network would move its running means.
    """
    network, forward_fn = split_model(model)
    inputs = [inputs_of(measured(item)) for item in (spec.goal, *spec.constraints)]
    known = [x for x in inputs if x is not None]
    if len(known) < len(inputs):
        return inf
    rows, probe = sum(len(x) for x in known) + sum(len(x) for x, _ in data), known[0][:PROBED]
    weight = next(network.parameters())
    probe = probe.to(weight) if probe.is_floating_point() else probe.to(weight.device)
    try:
        copied = copy.deepcopy(network).eval()
        run = None if forward_fn is None else lambda x: forward_fn(copied, x)
        return rows * operations(copied, probe, run) / len(probe)
    except Exception:  # what is wrong with network or inputs is said when the repair is prepared
        return inf
