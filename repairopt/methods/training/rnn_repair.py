"""RnnRepair: training rows whose hidden states go the same way as those of failing rows are found and relabelled."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from repairopt.errors import SpecificationError
from repairopt.methods.material import Material
from repairopt.methods.outcome import Outcome
from repairopt.methods.settings import Expected
from repairopt.methods.task import Task

from .fit import Training, by_error, cross_entropy, fit_weights, joined
from .trainee import ROWS, Seen, Trainee


@dataclass(frozen=True, kw_only=True)
class RnnRepair(Training):
    """RNNRepair: an influence model over abstract states finds the training rows responsible for failures.

    The hidden states of the first recurrent layer on the training rows are clustered by a Gaussian mixture; a row then
    visits a sequence of clusters. The influence of a training row on another row is the cosine of their counts of
    transitions, where the training row has the label that the other row is given, else 0. A training row is harmful by
    the sum of its influences on failing rows (on the answers that they are given) minus that on right ones. The most
    harmful ones, those above 0, take the label of the failing rows that they influence most
    (``remedy="relabel"``), or are left out and as many copies of the training rows with the greatest influence on the
    right answers join (``"augment"``). The network is tuned on the training rows so changed and the failing rows; the
    best epoch on the validation rows is taken.

    Attributes:
        states: Clusters of the mixture.
        share: Share of the training rows that may be remedied.
        remedy: ``"relabel"`` or ``"augment"``.

    References:
        Xie, Guo, Ma, Le, Liu, Li, Chen and others, RNNRepair: automatic RNN repair via model-based analysis, ICML 2021.
        Its influence compares whole traces; the cosine of transitions, the share and the rate are ours.

    Example:
        >>> RnnRepair().remedy
        'relabel'
    """

    systems: ClassVar[Mapping[str, Mapping[str, Any]]] = {"RNNRepair": {}}

    states: int = 10
    share: float = 0.05
    remedy: str = "relabel"

    def __post_init__(self) -> None:
        super().__post_init__()
        self.chosen("remedy", ("relabel", "augment"))

    def expected(self) -> dict[str, Expected]:
        """What the settings may be."""
        return {"states": Expected(low=2, whole=True), "share": Expected(high=1)}

    def run(self, task: Task) -> Outcome:
        """Find harmful rows, remedy them, tune."""
        rows = self.material(task)
        net = Trainee(task, rows.training[0])
        harmful, labels, helpful = self.influential(net, rows)
        task.log.note(f"RNNRepair found {len(harmful)} harmful training rows.")
        inputs, own = rows.training
        if self.remedy == "relabel":
            changed = own.clone()
            changed[harmful] = labels
            learned = (inputs, changed)
        else:
            kept = torch.ones(len(own), dtype=torch.bool, device=own.device)
            kept[harmful] = False
            learned = joined((inputs[kept], own[kept]), (inputs[helpful], own[helpful]))
        learned = joined(learned, rows.failing)
        fit_weights(net, cross_entropy(net, learned), len(learned[0]), self, score=by_error(rows.validation))
        return net.outcome()

    def influential(self, net: Trainee, rows: Material) -> tuple[Tensor, Tensor, Tensor]:
        """Harmful training rows, the worst first, the labels that they shall have, and as many helpful rows."""
        inputs, labels = rows.training
        mixture = fit_states(hidden_states(net, inputs), self.states, net.task.seed)
        train, fails, rights = (
            transitions(mixture, hidden_states(net, x), self.states)
            for x in (inputs, rows.failing[0], rows.passing[0][:ROWS])
        )
        given = net.predict(rows.failing[0]).argmax(1)
        blamed = (train @ fails.T) * (labels[:, None] == given[None, :])
        wanted = (train @ fails.T) * (labels[:, None] == rows.failing[1][None, :])
        praised = (train @ rights.T) * (labels[:, None] == rows.passing[1][:ROWS][None, :])
        harm = blamed.sum(1) / max(1, len(given)) - praised.sum(1) / max(1, rights.shape[0])
        count = round(self.share * len(labels))
        order = harm.argsort(descending=True, stable=True)[:count]
        order = order[harm[order] > 0]
        votes = blamed[order] @ F.one_hot(rows.failing[1], net.classes).to(blamed)
        helpful = wanted.sum(1).argsort(descending=True, stable=True)[: len(order)]
        return order, votes.argmax(1), helpful


def hidden_states(net: Trainee, inputs: Tensor) -> Tensor:
    """Hidden states of the first recurrent layer, ``(N, steps, units)``.

    Raises:
        SpecificationError: The network has no recurrent layer.
    """
    layer = next((one for one in net.graph.layers if one.kind == "recurrent"), None)
    if layer is None:
        raise SpecificationError("method RnnRepair: the network has no recurrent layer whose states could be followed.")
    module: Any = net.network.get_submodule(f"model.{layer.name}".rstrip("."))
    assert isinstance(module, nn.RNNBase)
    found = []
    with torch.no_grad():
        for part in inputs.split(ROWS):
            net.task.judge.check_time()
            states = net.run(part, [Seen(layer.name, returned=True)])[1][0]
            found.append(states if module.batch_first else states.transpose(0, 1))
    return torch.cat(found)


def fit_states(states: Tensor, count: int, seed: int) -> Any:
    """A Gaussian mixture of hidden states ``(N, steps, units)``.

    Raises:
        SpecificationError: scikit-learn is not installed.
    """
    try:
        from sklearn.mixture import GaussianMixture
    except ImportError as error:
        raise SpecificationError("method RnnRepair: needs scikit-learn; pip install repairopt[sklearn].") from error
    flat = states.flatten(0, 1).double().cpu().numpy()
    chosen = np.random.default_rng(seed).permutation(len(flat))[:20_000]
    return GaussianMixture(count, covariance_type="diag", random_state=seed, reg_covar=1e-4).fit(flat[chosen])


def transitions(mixture: Any, states: Tensor, count: int) -> Tensor:
    """Normalized counts of transitions between clusters of each row, ``(N, count * count)``."""
    flat = states.flatten(0, 1).double().cpu().numpy()
    visited = torch.as_tensor(mixture.predict(flat)).view(states.shape[:2]).long()
    pairs = visited[:, :-1] * count + visited[:, 1:] if states.shape[1] > 1 else visited * (count + 1)
    table = torch.zeros(len(states), count * count, dtype=states.dtype)
    table.scatter_add_(1, pairs, torch.ones(pairs.shape, dtype=states.dtype))
    return F.normalize(table, dim=1).to(states.device)
