"""LocalRepair: one layer changes by a mixed-integer quadratic program that keeps the loss small and fixes points."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import numpy as np
import torch

from repairopt.errors import SpecificationError
from repairopt.methods.outcome import Outcome
from repairopt.methods.settings import Expected, check_settings
from repairopt.methods.task import Task

from .integer_encoding import Encoding
from .least_norm import LeastNorm, norm_program, one_layer, points_of


@dataclass(frozen=True, kw_only=True)
class LocalRepair(LeastNorm):
    """Repair of one layer with the least mean squared change of the outputs on data, for small networks.

    ``min mean |y - t|^2 + weight max |d|`` over the change ``d`` of one layer, where the rows of all points hold: ReLUs
    after the layer are encoded exactly, at points and at data, by binary variables, so the program is mixed-integer and
    quadratic. ``t`` are the outputs of the original network on the labelled data, of which few are taken.

    Attributes:
        weight: Price of the largest change.
        most: Points of the data at most.

    References:
        Majd, Zhou, Ben Amor, Fainekos, Sankaranarayanan, Local Repair of Neural Networks Using Optimization, 2021.
        Deviation: targets are the original outputs, not those of the training set.

    Example:
        >>> LocalRepair(weight=0.1).norm
        'linf'
    """

    uses: ClassVar[frozenset[str]] = frozenset({"weights", "solver", "tolerance"})
    default_weights: ClassVar[str] = "last"
    systems: ClassVar[Mapping[str, Mapping[str, Any]]] = {"LocalRepair (LRNN)": {}}

    norm: str = "linf"
    limit: float = 1.0
    buffer: float = 0.0
    weight: float = 0.01
    most: int = 12

    def __post_init__(self) -> None:
        super().__post_init__()
        check_settings(self, {"weight": Expected(), "most": Expected(1, whole=True)})
        if self.norm != "linf":
            raise SpecificationError(f"method LocalRepair: norm={self.norm!r}; expected linf.")

    def run(self, task: Task) -> Outcome:
        """Solve one program, judge the network."""
        points = points_of(task, self)
        name = one_layer(task.engine, self)
        encoding = Encoding(task.engine, points, self, name)
        if not task.data:
            raise SpecificationError("method LocalRepair: keeps outputs on labelled data; give data=(inputs, labels).")
        every = torch.cat([x for x, _ in task.data])
        draw = torch.Generator().manual_seed(task.seed)
        few = every[torch.randperm(len(every), generator=draw)[: self.most].to(every.device)]
        outputs = task.engine.predict()(few).detach().cpu().double().numpy()
        read = encoding.read(few.detach().cpu().double().flatten(1).numpy())
        head = norm_program(task, self)
        program = encoding.program(replace(head, gradient=self.weight * head.gradient), self.limit, (read, outputs))
        solution = task.solve_program(program)
        if solution.delta is None:
            task.record("one layer", accepted=False, note=str(solution.status))
            return Outcome(np.zeros(task.engine.n), solution.status)
        delta = solution.delta[: task.engine.n]
        task.record("one layer", task.judge.keep(delta))
        return Outcome(delta, solution.status, indivisible=True)
