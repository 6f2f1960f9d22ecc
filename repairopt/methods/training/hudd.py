"""HUDD: clusters of relevance heat maps of failures are root causes; rows like them are selected for retraining."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from repairopt.methods.outcome import Outcome
from repairopt.methods.settings import Expected
from repairopt.methods.task import Task

from .fit import Pair, Training, by_error, cross_entropy, fit_weights, joined
from .pool import labelled_pool
from .trainee import ROWS, Hidden, Trainee


@dataclass(frozen=True, eq=False)
class RootCauses:
    """Clusters of failing rows.

    Attributes:
        layer: The layer whose heat maps form the tightest clusters.
        clusters: Cluster of each failing row, ``(F,)``, from 0.
        maps: Heat maps of the failing rows in that layer, ``(F, d)``.
        medoids: For each cluster the position of the row nearest to all others of it.
        radii: For each cluster the largest distance of a row of it to the medoid.
    """

    layer: Hidden
    clusters: Tensor
    maps: Tensor
    medoids: Tensor
    radii: Tensor


@dataclass(frozen=True, kw_only=True)
class HUDD(Training):
    """HUDD: heat-map based unsupervised debugging, then retraining on rows that are like the failures.

    The heat map of a row in a hidden layer is the relevance of its units for the answer: activation times derivative
    of the largest output, which is layer-wise relevance propagation (rule LRP-0) for piecewise linear networks. Heat
    maps of failing rows are clustered by Ward's method; the number of clusters is at the knee of the weighted distance
    within them, and the layer that with the tightest clusters. Each cluster is a root cause. Of the pool, rows within
    the radius of a cluster around its medoid are selected, the nearest first, up to a quota in proportion to its size;
    few are repeated up to the quota. The network is trained further on the training rows and these; the best epoch on
    the validation rows is taken.

    Attributes:
        pool: Inputs and labels that are selected from; None for the rows of goal and constraints.
        share: Selected rows, as a share of the training rows.
        causes: Clusters at most.

    References:
        Fahmy, Pastore, Bagherzadeh and Briand, Supporting deep neural network safety analysis and retraining through
        heatmap-based unsupervised learning, IEEE Transactions on Reliability 2021. The share and the rate are ours;
        with more failing rows than 1,000 the first 1,000 are clustered.

    Example:
        >>> HUDD().causes
        10
    """

    systems: ClassVar[Mapping[str, Mapping[str, Any]]] = {"HUDD": {}}

    pool: tuple[Tensor, Tensor] | Tensor | None = field(default=None, repr=False)
    share: float = 0.2
    causes: int = 10

    def expected(self) -> dict[str, Expected]:
        """What the settings may be."""
        return {"share": Expected(high=1, above=True), "causes": Expected(low=1, whole=True)}

    def run(self, task: Task) -> Outcome:
        """Cluster, select, retrain."""
        rows = self.material(task)
        net = Trainee(task, rows.training[0])
        pool = labelled_pool(self, task, rows)
        found = root_causes(net, rows.failing[0], self.causes)
        chosen = self.selected(net, found, pool, round(self.share * len(rows.training[0])))
        task.log.note(f"HUDD found {len(found.medoids)} root causes in layer '{found.layer.name}'.")
        learned = joined(rows.training, (pool[0][chosen], pool[1][chosen]))
        fit_weights(net, cross_entropy(net, learned), len(learned[0]), self, score=by_error(rows.validation))
        return net.outcome()

    def selected(self, net: Trainee, found: RootCauses, pool: Pair, count: int) -> Tensor:
        """Positions of rows of the pool that are like a cluster; some may be there several times."""
        maps = heat_maps(net, pool[0], [found.layer])[0]
        parts = []
        for cluster, (medoid, radius) in enumerate(zip(found.medoids.tolist(), found.radii.tolist(), strict=True)):
            apart = (maps - found.maps[medoid]).norm(dim=1)
            quota = max(1, round(count * float((found.clusters == cluster).double().mean())))
            order = apart.argsort(stable=True)
            inside = order[apart[order] <= radius][:quota]
            if len(inside):
                parts.append(inside.repeat(-(-quota // len(inside)))[:quota])
        return torch.cat(parts) if parts else torch.zeros(0, dtype=torch.long, device=maps.device)


def heat_maps(net: Trainee, inputs: Tensor, layers: list[Hidden]) -> list[Tensor]:
    """Relevance of the units of some layers for the answer of each row, ``(N, d)`` each."""
    nodes = [layer.node for layer in layers]
    found: list[list[Tensor]] = []
    for part in inputs.split(ROWS):
        net.task.judge.check_time()
        outputs, values = net.run(part, nodes)
        slopes = torch.autograd.grad(outputs.amax(1).sum(), values, allow_unused=True)
        pairs = zip(values, slopes, strict=True)
        found.append([torch.zeros_like(v) if s is None else (v * s).detach() for v, s in pairs])
    return [torch.cat(own).flatten(1).double() for own in zip(*found, strict=True)]


def root_causes(net: Trainee, failing: Tensor, most: int) -> RootCauses:
    """Clusters of failing rows, in the layer where they are the tightest."""
    failing = failing[:ROWS]
    layers = net.hidden()
    best: tuple[float, RootCauses] | None = None
    for layer, maps in zip(layers, heat_maps(net, failing, layers), strict=True):
        clusters = _clusters(maps, most)
        medoids, radii, within = [], [], 0.0
        for cluster in range(int(clusters.max()) + 1):
            own = (clusters == cluster).nonzero().flatten()
            apart = torch.cdist(maps[own], maps[own])
            nearest = int(apart.sum(1).argmin())
            medoids.append(int(own[nearest]))
            radii.append(float(apart[nearest].max()))
            within += len(own) / len(failing) * float(apart.mean())
        spread = float(torch.cdist(maps, maps).mean())
        tight = within / spread if spread > 0 else 1.0
        if best is None or tight < best[0]:
            where: Any = {"device": maps.device}
            found = RootCauses(layer, clusters, maps, torch.tensor(medoids, **where), torch.tensor(radii, **where))
            best = tight, found
    assert best is not None
    return best[1]


def _clusters(maps: Tensor, most: int) -> Tensor:
    """Cluster of each row by Ward's method, their number at the knee of the weighted distance within clusters."""
    from scipy.cluster.hierarchy import fcluster, linkage

    if len(maps) < 3:
        return torch.zeros(len(maps), dtype=torch.long, device=maps.device)
    tree = linkage(maps.double().cpu().numpy(), method="ward")
    apart = torch.cdist(maps.double(), maps.double()).cpu().numpy()
    counts = list(range(1, min(most, len(maps) - 1) + 1))
    cuts = [fcluster(tree, count, criterion="maxclust") for count in counts]
    within = []
    for cut in cuts:
        own = [np.flatnonzero(cut == cluster) for cluster in np.unique(cut)]
        within.append(sum(len(one) / len(maps) * float(apart[np.ix_(one, one)].mean()) for one in own))
    chosen = cuts[_knee(np.array(counts, float), np.array(within))]
    return torch.as_tensor(np.unique(chosen, return_inverse=True)[1], device=maps.device)


def _knee(x: np.ndarray[Any, Any], y: np.ndarray[Any, Any]) -> int:
    """The point farthest below the line from the first to the last one."""
    if len(x) < 3 or y[0] == y[-1]:
        return 0
    line = y[0] + (y[-1] - y[0]) * (x - x[0]) / (x[-1] - x[0])
    return int(np.argmax(line - y))
