"""NNRepair: one expert for each class that is missed, by linear programs on few weights, merged by confidence."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor, nn

from repairopt.errors import SpecificationError
from repairopt.localize import Wrapped
from repairopt.methods.outcome import Outcome
from repairopt.methods.postprocess.two_networks import network_of_logits
from repairopt.methods.settings import Expected, check_settings, is_one_of
from repairopt.methods.task import Task
from repairopt.patches import AsLogits
from repairopt.program import Array, Program, Status
from repairopt.specify import labelled_data

FIXED = 1e4  # price of a lack of one failing sample, over the mean change of a weight


@dataclass(frozen=True, kw_only=True)
class NNRepair:
    """Repair of a classifier by an expert for each class that some points of it miss.

    ``layer="last"``: the expert for class ``c`` changes row ``c`` of the last layer, so that failing points of ``c``
    lead over every other class, and passing points of other classes keep their lead over ``c``; exact. Another layer:
    for the points of ``c`` that are right, a unit that is nearly always on, or off, is typical; units that failing
    points contradict most change their incoming weights so that these points get the typical sign, and passing points
    keep the sign that they have. Both are linear programs, hard for passing points, soft for failing ones. Experts are
    merged: of those that claim an input for their class the most confident one answers, without any the original
    network.

    Attributes:
        layer: ``"last"``, ``"intermediate"`` for the linear layer before it, or the name of a linear layer that a ReLU
            follows.
        share: Share of the right points of a class that makes a sign typical.
        units: Units at most that an expert of an intermediate layer changes.
        margin: Lead, or distance of what a unit reads from 0, that failing points are to get.
        norm: What is least of the change: ``"l1"`` or ``"linf"``.

    References:
        Usman, Gopinath, Sun, Noller, Pasareanu, NNrepair: Constraint-Based Repair of Neural Network Classifiers,
        CAV 2021. Deviations: there typical patterns are decision rules over several units, and constraints go to an
        SMT solver; here each unit has a typical sign of its own, and programs are linear with the least change.

    Example:
        >>> NNRepair(layer="4").units
        10
    """

    uses: ClassVar[frozenset[str]] = frozenset({"solver"})
    converts_outputs: ClassVar[bool] = True  # probabilities become logarithms
    systems: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "NNRepair last layer": {},
        "NNRepair intermediate layer": {"layer": "intermediate"},
    }

    layer: str = "last"
    share: float = 0.95
    units: int = 10
    margin: float = 0.05
    norm: str = "l1"

    def __post_init__(self) -> None:
        expected = {"units": Expected(1, whole=True), "margin": Expected(), "share": Expected(0.5, 1.0, above=True)}
        check_settings(self, expected)
        if not is_one_of(self.norm, ("l1", "linf")):
            raise SpecificationError(f"method NNRepair: norm={self.norm!r}; choose l1 or linf.")

    def run(self, task: Task) -> Outcome:
        """One expert after another, then judge the merged network."""
        network, read = self._network(task)
        points = _Points(task, network, self.layer)
        experts: dict[str, Tensor] = {}
        for number in points.missed:
            found = self._last(task, points, number) if points.is_last else self._inner(task, points, number)
            if found is not None:
                experts |= {f"{number}:{name}": value for name, value in found.items()}
            task.record(f"expert for class {number}", accepted=found is not None)
        if not experts:
            return Outcome(np.zeros(task.engine.n), Status.INFEASIBLE)
        candidate = Wrapped("experts", read, experts)
        task.log.last = (0, 0, None)
        task.record(f"{len(points.missed)} experts", task.judge.keep(candidate))
        return Outcome(candidate, Status.FEASIBLE, indivisible=True)

    def _network(self, task: Task) -> tuple[nn.Module, dict[str, Any]]:
        """The network, whose last layer has a row for each class, as a module that gives logits."""
        network, read = network_of_logits(task, self)
        if read.get("network_outputs", "probabilities") != "probabilities":
            raise SpecificationError(
                "method NNRepair: changes the row of a class in the last layer, and the network gives one number for "
                "two classes. Choose another method, such as prdnn."
            )
        return network, read

    def _last(self, task: Task, points: _Points, number: int) -> dict[str, Tensor] | None:
        """The row of a class in the last layer."""
        read, outputs, labels = points.read, points.outputs, points.labels
        failing, passing = points.wrong & (labels == number), ~points.wrong & (labels != number)
        rivals = np.delete(outputs[failing], number, axis=1)
        lacks = self.margin + rivals.max(1) - outputs[failing, number]  # the row moves the class alone
        room = outputs[passing, labels[passing]] - outputs[passing, number]
        rows = np.concatenate([read[failing], -read[passing]])
        least = np.concatenate([lacks, np.minimum(self.margin, room) - room])
        change = self._solve(task, rows, least, int(failing.sum()))
        return None if change is None else points.changed({number: change})

    def _inner(self, task: Task, points: _Points, number: int) -> dict[str, Tensor] | None:
        """Incoming weights of the units that contradict the class's typical signs most."""
        own = points.labels == number
        failing, right = points.wrong & own, ~points.wrong & own
        if not right.any():
            return None
        on = (points.inner > 0)[right].mean(0)
        typical = np.where(on >= self.share, 1.0, np.where(on <= 1 - self.share, -1.0, 0.0))
        contradict = (np.sign(points.inner) * typical < 0) & (typical != 0)
        score = contradict[failing].mean(0) - contradict[right].mean(0)
        changes: dict[int, Array] = {}
        for unit in np.argsort(-score, kind="stable")[: self.units]:
            if score[unit] <= 0:
                break
            wrong, passing = failing & contradict[:, unit], ~points.wrong
            sign = np.sign(points.inner[passing, unit])
            rows = np.concatenate([typical[unit] * points.read[wrong], sign[:, None] * points.read[passing]])
            value = np.concatenate([typical[unit] * points.inner[wrong, unit], np.abs(points.inner[passing, unit])])
            wanted = np.where(np.arange(len(value)) < wrong.sum(), self.margin, np.minimum(self.margin, value))
            change = self._solve(task, rows, wanted - value, int(wrong.sum()))
            if change is not None:
                changes[int(unit)] = change
        return points.changed(changes) if changes else None

    def _solve(self, task: Task, rows: Array, least: Array, soft: int) -> Array | None:
        """Least change ``d`` with ``rows @ d >= least``, of which the first ``soft`` ones may lack something."""
        from scipy import sparse

        (m, n), wide = rows.shape, self.norm == "l1"
        sizes = n if wide else 1
        eye, size = sparse.identity(n), sparse.identity(n) if wide else sparse.csr_matrix(np.ones((n, 1)))
        slack = sparse.csr_matrix((np.ones(soft), (np.arange(soft), np.arange(soft))), shape=(m, soft))
        none = sparse.csr_matrix((n, soft))
        matrix = sparse.bmat(
            [[sparse.csr_matrix(rows), sparse.csr_matrix((m, sizes)), slack], [-eye, size, none], [eye, size, none]]
        )
        cost = np.concatenate([np.zeros(n), np.full(sizes, 1 / sizes), np.full(soft, FIXED / max(1, soft))])
        program = Program(
            gradient=cost,
            matrix=matrix.tocsr(),
            lower=np.concatenate([least, np.zeros(2 * n)]),
            upper=np.full(m + 2 * n, np.inf),
            delta_lower=np.concatenate([np.full(n, -np.inf), np.zeros(sizes + soft)]),
            n_delta=n,
        )
        found = task.solve_program(program).delta
        return None if found is None else found[:n]


class _Points:
    """Labelled points, what a layer reads and gives on them, and which are wrong."""

    def __init__(self, task: Task, network: nn.Module, layer: str) -> None:
        model: Any = network.network if isinstance(network, AsLogits) else network
        pairs = labelled_data([*task.constraints, task.goal]) + [(x, y) for x, y in task.data]
        linear = [name for name, module in model.named_modules() if type(module) is nn.Linear]
        if not pairs or not linear:
            raise SpecificationError(
                "method NNRepair: expects points with labels, such as a goal ErrorRate(inputs, labels, target=0), and "
                "a network with linear layers."
            )
        known = {"last": linear[-1], "intermediate": linear[max(0, len(linear) - 2)]}
        self.name = known.get(layer, layer)
        self.is_last = self.name == linear[-1]
        if self.name not in linear:
            raise SpecificationError(f"method NNRepair: layer={layer!r}; choose 'last' or one of {', '.join(linear)}.")
        self.module: Any = model.get_submodule(self.name)
        inputs, labels = (torch.cat([pair[k].cpu() for pair in pairs]) for k in (0, 1))
        seen: list[Tensor] = []
        handle = self.module.register_forward_pre_hook(lambda _, given: seen.append(given[0].detach()))
        with torch.no_grad():
            outputs = network(task.engine.converted(inputs))
        handle.remove()
        if len(seen) != 1 or seen[0].ndim != 2 or len(seen[0]) != len(inputs):
            raise SpecificationError(f"method NNRepair: layer '{self.name}' is not run on one vector for each input.")
        bias = () if self.module.bias is None else (np.ones((len(inputs), 1)),)
        vectors = seen[0].to(self.module.weight.dtype)
        read = vectors.double().numpy()
        self.inner = (vectors @ self.module.weight.detach().T).double().numpy()
        self.inner = self.inner + (0 if self.module.bias is None else self.module.bias.detach().double().numpy())
        self.read = np.concatenate([read, *bias], axis=1)
        self.outputs, self.labels = outputs.double().numpy(), labels.numpy().astype(int)
        self.wrong = self.outputs.argmax(1) != self.labels

    @property
    def missed(self) -> list[int]:
        """Classes of wrong points."""
        return sorted(set(self.labels[self.wrong].tolist()))

    def changed(self, rows: dict[int, Array]) -> dict[str, Tensor]:
        """The layer's parameters with changes of some rows, whose last entry is that of the bias if there is one."""
        weight = self.module.weight.detach().clone()
        found = {f"{self.name}.weight": weight}
        if self.module.bias is not None:
            found[f"{self.name}.bias"] = self.module.bias.detach().clone()
        for row, change in rows.items():
            own = torch.from_numpy(change).to(weight)
            weight[row] += own[: weight.shape[1]]
            if self.module.bias is not None:
                found[f"{self.name}.bias"][row] += own[-1]
        return found
