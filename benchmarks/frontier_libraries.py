"""What users would pick instead: thresholds by group, fairlearn's post-processing and reduction, AIF360's reweighing.

Those that set thresholds by group, or draw their answers at random, are measured through a predictor that reads the
group from the rows; all of them need it at run time. The reduction and the reweighing fine-tune the same network.

References:
    Hardt, Price and Srebro, Equality of Opportunity in Supervised Learning, NeurIPS 2016 (thresholds).
    Agarwal, Beygelzimer, Dudik, Langford and Wallach, A Reductions Approach to Fair Classification, ICML 2018.
    Kamiran and Calders, Data Preprocessing Techniques for Classification without Discrimination, 2012 (reweighing).
"""

from __future__ import annotations

import copy
import logging
import warnings
from collections.abc import Callable, Sequence
from itertools import combinations
from typing import Any

import numpy as np
import torch
from frontier_cases import Case, Part, Predictor
from protocol import FAVORABLE
from sklearn.base import BaseEstimator, ClassifierMixin
from torch import Tensor, nn

CELLS = {2: 400, 3: 120, 4: 48}  # cells of the favorable rate in the search for thresholds, by number of groups
HIGHEST = 0.6  # favorable rate that the search looks at; all rates where more than half of the labels are favorable


def lead(network: nn.Module, rows: Tensor) -> np.ndarray:
    """The score of each row: how far the favorable output leads."""
    with torch.no_grad():
        outputs = network(rows)
    return (outputs[:, FAVORABLE] - outputs[:, 1 - FAVORABLE]).double().numpy()


def answers(favorable: Any) -> Tensor:
    """Outputs ``(N, 2)`` for a yes or no to each row."""
    column = torch.as_tensor(np.asarray(favorable)).float()
    outputs = torch.stack([column, 1 - column], 1)
    return outputs if FAVORABLE == 0 else outputs.flip(1)


def by_thresholds(case: Case, part: Part, targets: list[float]) -> list[Predictor]:
    """One threshold of the original score for each group: the most accurate with a gap at most each of the targets."""
    score, right = lead(case.task.network, part.rows), (part.labels == FAVORABLE).numpy()
    return [_cutting(case, cuts) for cuts in best_rates(score, right, part.groups.numpy(), targets)]


def best_rates(
    score: np.ndarray, right: np.ndarray, groups: np.ndarray, targets: Sequence[float]
) -> list[dict[int, float]]:
    """Thresholds by group for each target; the gap is the mean over pairs of groups.

    Found by trying all combinations of cells of the groups' favorable rates, each with the best threshold in it, so
    exact up to the width of a cell.
    """
    names = np.unique(groups).tolist()
    count = CELLS[len(names)]
    highest = HIGHEST if right.mean() <= 0.5 else 1.0
    curves = [_curve(score[groups == a], right[groups == a], count, highest) for a in names]
    grid = np.meshgrid(*[np.arange(count)] * len(names), indexing="ij", sparse=True)
    total = sum(curve["gain"][i] for curve, i in zip(curves, grid, strict=True))
    pairs = list(combinations(range(len(names)), 2))
    gap = sum(np.abs(curves[a]["rate"][grid[a]] - curves[b]["rate"][grid[b]]) for a, b in pairs) / len(pairs)
    found = []
    for target in targets:
        best = np.unravel_index(np.where(gap <= target, total, -np.inf).argmax(), total.shape)
        found.append({a: float(curve["cut"][i]) for a, curve, i in zip(names, curves, best, strict=True)})
    return found


def _curve(score: np.ndarray, right: np.ndarray, count: int, highest: float) -> dict[str, np.ndarray]:
    """For each cell of the favorable rate the threshold with the most right answers, their rate and their number."""
    order = np.argsort(-score, kind="stable")
    gains = np.concatenate([[0], np.cumsum(np.where(right[order], 1, -1))]).astype(float)
    rates = np.arange(len(score) + 1) / len(score)
    ranked = score[order]
    cuts = np.concatenate([[ranked[0] + 1.0], (ranked[1:] + ranked[:-1]) / 2, [ranked[-1] - 1.0]])
    tied = np.concatenate([[False], ranked[1:] == ranked[:-1], [False]])
    gains[tied] = -np.inf  # rows with the same score cannot be told apart
    cell = np.where(rates <= highest, np.minimum((rates / highest * count).astype(int), count - 1), count)
    out = {"gain": np.full(count, -np.inf), "rate": np.zeros(count), "cut": np.zeros(count)}
    for k in range(count):
        own = np.flatnonzero(cell == k)
        if len(own):
            best = own[gains[own].argmax()]
            out["gain"][k], out["rate"][k], out["cut"][k] = gains[best], rates[best], cuts[best]
    return out


def _cutting(case: Case, cuts: dict[int, float]) -> Predictor:
    def predict(rows: Tensor) -> Tensor:
        limits = np.array([cuts[a] for a in case.task.observed_groups(rows)])
        return answers(lead(case.task.network, rows) >= limits)

    return predict


class Scored(ClassifierMixin, BaseEstimator):
    """The original network as scikit-learn sees it."""

    def __init__(self, network: nn.Module | None = None) -> None:
        self.network = network
        self.classes_ = np.array([0, 1])

    def fit(self, x: Any, y: Any) -> Scored:
        """Nothing; it is fitted already."""
        return self

    def predict_proba(self, x: Any) -> np.ndarray:
        """Probabilities ``(N, 2)``, of the favorable label second."""
        assert self.network is not None
        chance = 1 / (1 + np.exp(-lead(self.network, torch.as_tensor(np.asarray(x)).float())))
        return np.stack([1 - chance, chance], 1)

    def predict(self, x: Any) -> np.ndarray:
        """1 where the favorable label leads."""
        return self.predict_proba(x).argmax(1)


def threshold_optimizer(case: Case, part: Part, target: float | None, constraints: str, seed: int) -> Predictor:
    """Fairlearn's ThresholdOptimizer on the network's score; with parity within the target."""
    from fairlearn.postprocessing import ThresholdOptimizer

    options = {"constraints": constraints, "prefit": True, "predict_method": "predict_proba", "tol": target}
    optimizer = ThresholdOptimizer(estimator=Scored(case.task.network), **options)
    favorable = (part.labels == FAVORABLE).long().numpy()
    optimizer.fit(part.rows.numpy(), favorable, sensitive_features=part.groups.numpy())

    def predict(rows: Tensor) -> Tensor:
        groups = np.array(case.task.observed_groups(rows))
        return answers(optimizer.predict(rows.numpy(), sensitive_features=groups, random_state=seed))

    return predict


class Tunable(ClassifierMixin, BaseEstimator):
    """Fine-tunes a copy of the network on weighted rows; the learner that the reduction calls."""

    def __init__(self, network: nn.Module | None = None, steps: int = 100, rate: float = 1e-3) -> None:
        self.network, self.steps, self.rate = network, steps, rate

    def fit(self, x: Any, y: Any, sample_weight: Any = None) -> Tunable:
        """Tune a copy; labels are 1 where favorable."""
        self.classes_ = np.array([0, 1])
        rows = torch.as_tensor(np.asarray(x)).float()
        labels = torch.as_tensor(np.asarray(y)).long()
        labels = 1 - labels if FAVORABLE == 0 else labels
        weight = torch.ones(len(rows)) if sample_weight is None else torch.as_tensor(np.asarray(sample_weight)).float()
        assert self.network is not None
        self.tuned_ = fine_tune(self.network, rows, labels, weight, steps=self.steps, rate=self.rate)
        return self

    def predict(self, x: Any) -> np.ndarray:
        """1 where the favorable label leads."""
        return (lead(self.tuned_, torch.as_tensor(np.asarray(x)).float()) > 0).astype(int)


def fine_tune(
    network: nn.Module, rows: Tensor, labels: Tensor, weight: Tensor, *, steps: int, rate: float, batch: int = 512
) -> nn.Module:
    """Adam on weighted cross-entropy, all weights."""
    tuned = copy.deepcopy(network)
    optimizer = torch.optim.Adam(tuned.parameters(), lr=rate)
    draw = torch.Generator().manual_seed(0)
    for _ in range(steps):
        pick = torch.randint(len(rows), (batch,), generator=draw)
        losses = nn.functional.cross_entropy(tuned(rows[pick]), labels[pick], reduction="none")
        optimizer.zero_grad()
        ((losses * weight[pick]).sum() / weight[pick].sum()).backward()
        optimizer.step()
    return tuned


def exponentiated_gradient(
    case: Case, part: Part, target: float, learner: str, seed: int, rounds: int = 50
) -> Predictor:
    """Fairlearn's ExponentiatedGradient, with this network fine-tuned or gradient boosting as its learner."""
    from fairlearn.reductions import DemographicParity, ExponentiatedGradient
    from sklearn.ensemble import HistGradientBoostingClassifier

    base = Tunable(case.task.network) if learner == "network" else HistGradientBoostingClassifier(random_state=0)
    favorable = (part.labels == FAVORABLE).long().numpy()
    share = float(part.groups.bincount().min()) / len(part.groups)  # the bound is on a group's distance from all rows
    reduction = ExponentiatedGradient(base, DemographicParity(difference_bound=target * (1 - share)), max_iter=rounds)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        reduction.fit(part.rows.numpy(), favorable, sensitive_features=part.groups.numpy())

    def predict(rows: Tensor) -> Tensor:
        return answers(reduction.predict(rows.numpy(), random_state=seed))

    return predict


def reweighing(steps: int) -> Callable[[Case, Part], Predictor]:
    """AIF360's Reweighing, then Adam on the weighted rows; the import, which is slow, is not part of its time."""
    logging.disable(logging.WARNING)  # says of every optional library that it is missing
    from aif360.sklearn.preprocessing import Reweighing

    logging.disable(logging.NOTSET)
    import pandas as pd

    def run(case: Case, part: Part) -> Predictor:
        index = pd.MultiIndex.from_arrays([part.groups.numpy(), np.arange(len(part.rows))], names=["group", "row"])
        frame = pd.DataFrame(part.rows.numpy(), index=index)
        labels = pd.Series(part.labels.numpy(), index=index)
        _, weight = Reweighing("group").fit_transform(frame, labels)
        weights = torch.as_tensor(np.asarray(weight)).float()
        return fine_tune(case.task.network, part.rows, part.labels, weights, steps=steps, rate=1e-3)

    return run
