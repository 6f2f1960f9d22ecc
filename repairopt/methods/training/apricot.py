"""Apricot: weights move towards sub-models that are right on a failing row and away from those that are wrong."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
from torch import Tensor

from repairopt.methods.outcome import Outcome
from repairopt.methods.settings import Expected
from repairopt.methods.task import Task

from .fit import Pair, Training, accuracy, by_error, cross_entropy, fit_weights, shuffled
from .trainee import Trainee


@dataclass(frozen=True, kw_only=True)
class Apricot(Training):
    """Apricot: sub-models trained on parts of the data say where the weights shall go.

    Sub-models of the same architecture are trained from new random weights, each on its own random rows of every
    class. For batches of ``group`` rows of the training data: for each row that the network gets wrong, and that some
    sub-models get right and some wrong, the weights w become
    ``w - step (p_right (w - mean of right ones) - p_wrong (w - mean of wrong ones))``, where p are their shares.
    After each batch the change is kept where the accuracy on the validation rows rises, else it is taken back. After
    the batches, ordinary training follows; its best epoch counts where it is better.

    Running statistics of batch normalization stay those of the original.

    Attributes:
        epochs: Passes of the ordinary training at the end.
        rate: Learning rate of Adam, of sub-models too.
        submodels: How many are trained.
        rows: Rows of each class in the data of a sub-model, at most.
        subepochs: Passes over them.
        group: Rows of a batch of the main loop.
        step: Size of a move.
        patience: Batches with moves and without gain after which the main loop ends.

    References:
        Zhang and Chan, Apricot: a weight-adaptation approach to fixing deep learning models, ASE 2019; constants of its
        published re-implementation: 20 sub-models on 1,000 rows of each class, Adam at 2e-4, 60 epochs of 128 rows,
        batches of 20 rows, steps of 1e-3, 5 epochs at the end, 100 batches. That code's default moves the other way;
        the signs here follow the description.

    Example:
        >>> Apricot(submodels=4).step
        0.001
    """

    systems: ClassVar[Mapping[str, Mapping[str, Any]]] = {"Apricot (AP)": {}}

    epochs: int = 5
    rate: float = 2e-4
    submodels: int = 20
    rows: int = 1000
    subepochs: int = 60
    group: int = 20
    step: float = 1e-3
    patience: int = 100

    def expected(self) -> dict[str, Expected]:
        """What the settings may be."""
        counts = dict.fromkeys(("rows", "subepochs", "group", "patience"), Expected(low=1, whole=True))
        return {**counts, "submodels": Expected(low=2, whole=True), "step": Expected(above=True)}

    def run(self, task: Task) -> Outcome:
        """Train sub-models, adapt the weights, train on."""
        rows = self.material(task, failing=False)
        net = Trainee(task, rows.training[0])
        start = net.state()
        vectors, right = self._submodels(net, rows.training, task.seed)
        net.load(start)
        self._adapt(net, rows.training, rows.validation, vectors, right)
        best, score = net.state(), by_error(rows.validation)
        before = score(net)
        loss = cross_entropy(net, rows.training)
        fit_weights(net, loss, len(rows.training[0]), self, score=score, step="training, epoch")
        if score(net) > before:
            net.load(best)
        return net.outcome()

    def _submodels(self, net: Trainee, rows: Pair, seed: int) -> tuple[Tensor, Tensor]:
        """Weights ``(submodels, n)``, and which rows of the data each gets right, ``(submodels, N)``."""
        vectors, right = [], []
        recipe = replace(self, epochs=self.subepochs)
        for number in range(self.submodels):
            draw = torch.Generator().manual_seed(seed + number)
            order = torch.randperm(len(rows[1]), generator=draw).to(rows[1].device)
            classes = rows[1][order]
            own = torch.cat([order[classes == label][: self.rows] for label in classes.unique()])
            part = (rows[0][own], rows[1][own])
            net.draw(seed + number)
            fit_weights(net, cross_entropy(net, part), len(own), recipe, seed=seed + number, told=False)
            vectors.append(net.vector())
            right.append(net.predict(rows[0]).argmax(1) == rows[1])
        return torch.stack(vectors), torch.stack(right)

    def _adapt(self, net: Trainee, rows: Pair, validation: Pair, vectors: Tensor, right: Tensor) -> None:
        best, most, still = net.vector(), accuracy(net, validation), 0
        draw = torch.Generator().manual_seed(net.task.seed)
        for number, chosen in enumerate(shuffled(len(rows[1]), self.group, draw)):
            net.task.judge.check_time()
            here = chosen.to(rows[1].device)
            fails = here[net.predict(rows[0][here]).argmax(1) != rows[1][here]]
            told = [row for row in fails.tolist() if bool(right[:, row].any()) and not bool(right[:, row].all())]
            if not told:
                continue
            weights = best
            for row in told:
                weights = adapted(weights, vectors, right[:, row], self.step)
            net.load_vector(weights)
            now = accuracy(net, validation)
            still = 0 if now > most else still + 1
            if now > most:
                best, most = net.vector(), now
                net.record(f"batch {number + 1}")
            if still >= self.patience:
                break
        net.load_vector(best)


def adapted(weights: Tensor, vectors: Tensor, right: Tensor, step: float) -> Tensor:
    """Weights ``(n,)`` after one move, by sub-models ``(m, n)`` and whether each is right ``(m,)``."""
    share = right.double().mean().to(weights)
    towards, away = vectors[right].mean(0), vectors[~right].mean(0)
    return weights - step * (share * (weights - towards) - (1 - share) * (weights - away))
