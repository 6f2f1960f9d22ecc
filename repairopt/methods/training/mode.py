"""MODE: differences between heat maps of hidden features say which rows the network shall learn more of."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from repairopt.localize import by_unit, train_probe
from repairopt.methods.material import Material
from repairopt.methods.outcome import Outcome
from repairopt.methods.settings import Expected
from repairopt.methods.task import Task

from .fit import Pair, Training, by_error, cross_entropy, fit_weights, joined
from .pool import labelled_pool
from .trainee import Trainee


@dataclass(frozen=True, kw_only=True)
class MODE(Training):
    """MODE: state-differential analysis of a hidden layer selects rows for further training.

    The layer is the first hidden one whose linear read-out is not less accurate on the validation rows than that of
    the next. The heat map of class c is the mean, over rows of c that are right, of the activations times the weights
    of the read-out for c, normalized. For each class that fails, the differential map is that of the failing rows of c
    minus that of the right ones. Where c is less accurate than the average on the training rows too (under-fitting),
    rows of c most similar to the heat map are selected; else (over-fitting) rows of any class most similar to the
    differential map. As many rows are drawn at random, and the network is tuned on all; the best epoch on the
    validation rows is taken.

    Attributes:
        pool: Inputs and labels that are selected from; None for the rows of goal and constraints.
        share: Selected rows, as a share of the pool, over all failing classes.
        mixed: Random rows of the training data for each selected one.

    References:
        Ma, Liu, Lee, Zhang and Grama, MODE: automated neural network model debugging via state differential analysis
        and input selection, ESEC/FSE 2018. Its criteria are described by examples; shares, rate and the similarity
        (cosine of activations times weights with the map) are ours.

    Example:
        >>> MODE(share=0.2).mixed
        1.0
    """

    systems: ClassVar[Mapping[str, Mapping[str, Any]]] = {"MODE": {}}

    pool: tuple[Tensor, Tensor] | Tensor | None = field(default=None, repr=False)
    share: float = 0.3
    mixed: float = 1.0

    def expected(self) -> dict[str, Expected]:
        """What the settings may be."""
        return {"share": Expected(high=1, above=True), "mixed": Expected()}

    def run(self, task: Task) -> Outcome:
        """Select, then tune."""
        rows = self.material(task)
        net = Trainee(task, rows.training[0])
        pool = labelled_pool(self, task, rows)
        chosen = self.selected(net, rows, pool)
        draw = torch.Generator().manual_seed(task.seed)
        count = round(self.mixed * len(chosen))
        some = torch.randint(len(rows.training[0]), (count,), generator=draw).to(chosen.device)
        learned = joined((pool[0][chosen], pool[1][chosen]), (rows.training[0][some], rows.training[1][some]))
        task.log.note(f"MODE selected {len(chosen)} rows.")
        fit_weights(net, cross_entropy(net, learned), len(learned[0]), self, score=by_error(rows.validation))
        return net.outcome()

    def selected(self, net: Trainee, rows: Material, pool: Pair) -> Tensor:
        """Positions of the selected rows of the pool, the most similar ones first for each class."""
        features, probe, node, axis = self._read_out(net, rows)
        outputs, (value,) = net.activations(pool[0], [node])
        mine = by_unit(value, axis)
        wrong = by_unit(net.activations(rows.failing[0], [node])[1][0], axis)
        right = net.predict(rows.training[0]).argmax(1) == rows.training[1]
        labels = rows.training[1]
        classes = torch.unique(rows.failing[1]).tolist()
        found = []
        for label in classes:
            fails = rows.failing[1] == label
            heat = _map(features[right & (labels == label)], probe[label])
            apart = _map(wrong[fails], probe[label]) - heat
            own = right[labels == label].double().mean() if bool((labels == label).any()) else torch.tensor(0.0)
            under = bool(own < right.double().mean())
            shown = F.normalize(mine * probe[label], dim=1)
            similar = shown @ F.normalize(heat if under else apart, dim=0)
            if under:
                similar = similar.masked_fill(pool[1] != label, -2.0)
            quota = max(1, round(self.share * len(pool[1]) * float(fails.double().mean())))
            order = similar.argsort(descending=True, stable=True)[:quota]
            found.append(order[similar[order] > -2])
        return torch.unique(torch.cat(found))

    def _read_out(self, net: Trainee, rows: Material) -> tuple[Tensor, Tensor, Any, int]:
        """Features of the chosen layer on the training rows, weights of its read-out, its node and axis."""
        layers = net.hidden()
        nodes = [layer.node for layer in layers]
        learned, tested = (net.activations(x, nodes)[1] for x in (rows.training[0], rows.validation[0]))
        found = []
        for layer, one, other in zip(layers, learned, tested, strict=True):
            features, test = by_unit(one, layer.axis), by_unit(other, layer.axis).double().cpu()
            spread = features.std(0, correction=0).double().cpu().clamp(min=1e-9)
            weight, bias = train_probe((features.double().cpu() / spread, rows.training[1].cpu()), net.classes)
            right = float(((test / spread @ weight.T + bias).argmax(1) == rows.validation[1].cpu()).double().mean())
            found.append((right, features, (weight / spread).to(features), layer.node, layer.axis))
        best = next((i for i in range(len(found) - 1) if found[i][0] >= found[i + 1][0]), len(found) - 1)
        return found[best][1:]


def _map(features: Tensor, weights: Tensor) -> Tensor:
    """Normalized mean of activations times weights of the read-out, ``(units,)``."""
    return F.normalize((features * weights).mean(0), dim=0) if len(features) else torch.zeros_like(weights)
