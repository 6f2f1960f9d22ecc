"""The reference for group fairness: the best threshold of its own for each group, on the original scores."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from repairopt.specify import Grouped

Array = npt.NDArray[np.float64]
WINDOWS = 4_000  # most places tried for the interval that the favorable rates of all groups must lie in


@dataclass(frozen=True)
class ThresholdPoint:
    """Thresholds by group for one bound.

    Attributes:
        target: Largest difference of favorable rates.
        value: On the rows that chose the thresholds.
        accuracy: There.
        held_out_value: On held-out rows, or NaN.
        held_out_accuracy: There, or NaN.
        thresholds: Threshold of each group, on ``logit(favorable) - logit(other)``.
    """

    target: float
    value: float
    accuracy: float
    held_out_value: float
    held_out_accuracy: float
    thresholds: tuple[float, ...]


@dataclass(frozen=True, eq=False)
class Scored:
    """Rows of which the favorable label is or is not right.

    Attributes:
        score: ``logit(favorable) - logit(other)``, ``(N,)``.
        group: Index of the group of each row, ``(N,)``.
        wanted: Whether favorable is right, ``(N,)``.
    """

    score: Array
    group: npt.NDArray[np.int64]
    wanted: npt.NDArray[np.bool_]


def threshold_frontier(
    predict: Any,
    goal: Any,
    targets: Sequence[float],
    data: tuple[Tensor, Tensor] | None,
    held_out: tuple[Tensor, Tensor] | None,
    held_out_goal: Any = None,
) -> tuple[ThresholdPoint, ...]:
    """The most accurate thresholds by group whose favorable rates differ by at most each target.

    Rates of all groups have to lie in one interval as wide as the target, which begins at the rate of some group; for
    each such place the best threshold of a group is found from sorted scores, so the result is the optimum on the rows,
    or nearly where there are more than some thousand rates.

    Args:
        predict: The original network.
        goal: A gap between observed groups; for any other property there is no such reference.
        targets: Bounds.
        data: Labelled rows that choose the thresholds.
        held_out: Labelled rows that only judge them.
        held_out_goal: The gap on them, where it cannot be made from ``goal``.

    Returns:
        One point for each target; none where the goal is another property, has more classes, or there are no labels.

    References:
        Hardt, Price and Srebro, Equality of opportunity in supervised learning, 2016.
    """
    if data is None or not isinstance(goal, Grouped) or goal.samples.rows is None:
        return ()
    own = _scored(predict, goal, data)
    new = None if held_out is None or own is None else _scored(predict, held_out_goal or goal, held_out)
    if own is None:
        return ()
    found = []
    for target in targets:
        thresholds = best_thresholds(own.score, own.group, own, float(target))
        value, right = _judged(own, thresholds)
        there = (float("nan"), float("nan")) if new is None else _judged(new, thresholds)
        found.append(ThresholdPoint(float(target), value, right, *there, tuple(thresholds)))
    return tuple(found)


def _scored(predict: Any, goal: Any, data: tuple[Tensor, Tensor]) -> Scored | None:
    inputs, labels = data
    samples = goal.samples
    own = samples.rows is not None and len(inputs) > int(samples.rows.max())
    if not own or not torch.equal(samples.inputs, inputs[samples.rows.to(inputs.device)]):
        samples = goal.on(inputs, labels).samples
    with torch.no_grad():
        outputs = predict(samples.inputs).double().cpu()
    if outputs.shape[1] != 2:
        return None
    score = outputs[:, goal.favorable] - outputs[:, 1 - goal.favorable]
    wanted = torch.as_tensor(labels).cpu()[samples.rows.cpu()] == goal.favorable
    return Scored(score.numpy(), samples.member.cpu().numpy(), wanted.numpy())


def best_thresholds(score: Array, group: npt.NDArray[np.int64], labelled: Scored, target: float) -> list[float]:
    """The most accurate threshold of each group whose favorable rates differ by at most a target.

    Args:
        score: Scores of the rows on which rates are measured, ``(M,)``.
        group: Groups of these rows, ``(M,)``; each group has some.
        labelled: Rows on which accuracy is measured; may be the same.
        target: Largest difference of the rates.

    Returns:
        For each group its threshold, infinite where no row of it or all get the favorable label.
    """
    curves = []
    for one in range(int(group.max()) + 1):
        known = labelled.group == one
        curves.append(_curve(score[group == one], labelled.score[known], labelled.wanted[known]))
    return _best(curves, target)


def _curve(score: Array, known: Array, wanted: npt.NDArray[np.bool_]) -> tuple[Array, Array, Array]:
    """For each number of favorable decisions of a group: its rate, how many labelled rows are right, the threshold."""
    score, order = -np.sort(-score), np.argsort(-known, kind="stable")
    between = np.concatenate([[np.inf], (score[:-1] + score[1:]) / 2, [-np.inf]])
    allowed = np.concatenate([[True], score[:-1] != score[1:], [True]])  # equal scores get equal decisions
    rate, threshold = (np.arange(len(score) + 1) / len(score))[allowed], between[allowed]
    right = np.concatenate([[0], np.cumsum(np.where(wanted[order], 1, -1))]) + np.sum(~wanted)
    return rate, right[np.searchsorted(-known[order], -threshold)].astype(np.float64), threshold


def _best(curves: Sequence[tuple[Array, Array, Array]], target: float) -> list[float]:
    best, found = -np.inf, [float("inf")] * len(curves)
    places = np.unique(np.concatenate([rate for rate, _, _ in curves]))
    for low in places[:: -(-len(places) // WINDOWS)]:
        total, thresholds = 0.0, []
        for rate, right, between in curves:
            first, last = np.searchsorted(rate, [low - 1e-12, low + target + 1e-12])
            if first == last:
                break
            k = int(first + np.argmax(right[first:last]))
            total += right[k]
            thresholds.append(float(between[k]))
        if len(thresholds) == len(curves) and total > best:
            best, found = total, thresholds
    return found


def _judged(rows: Scored, thresholds: Sequence[float]) -> tuple[float, float]:
    """Largest difference of rates, and accuracy."""
    favorable = rows.score > np.asarray(thresholds)[rows.group]
    rates = [favorable[rows.group == group].mean() for group in range(len(thresholds))]
    return float(max(rates) - min(rates)), float((favorable == rows.wanted).mean())
