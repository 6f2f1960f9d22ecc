"""What must stay as it is while regions are repaired: points on which outputs are kept, and rows of constraints."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from repairopt.methods.task import Task
from repairopt.network import LastLayer, NetworkSteps
from repairopt.specify import SampleConstraint, price_of, samples_in, tolerance_of

from .least_change import LeastChange

POINTS = 5000  # in the metric
WIDER = 1.0  # by how many of its widths the box around the regions grows on each side, where no data are given
ROWS = 300  # of a constraint, added at a time
SOFT = 400.0  # price of soft rows at the usual price
ROOM = 0.02  # lead that wishes for answers ask for, in deviations of the outputs, where it was as large
KEEP = 2  # label of these rows


def keep_inputs(task: Task, lower: Tensor, upper: Tensor, size: int) -> tuple[Tensor, bool]:
    """Inputs ``(N, d)`` on which outputs are kept, and whether they were given.

    They are those of data and constraints; without any, points drawn from a box around the regions.
    """
    own = getattr(task.goal, "keep", None)
    given = [] if own is None else [own]
    given += [x for x, _ in task.data] + [c.inputs for c in task.constraints if isinstance(c, SampleConstraint)]
    draw = torch.Generator().manual_seed(task.seed)
    given = [x.detach().cpu().double().flatten(1) for x in given]
    if given:
        every = torch.cat([x for x in given if x.shape[1] == size])
        return every[torch.randperm(len(every), generator=draw)[:POINTS]], True
    low, high = lower.amin(0), upper.amax(0)
    low, high = low - WIDER * (high - low), high + WIDER * (high - low)
    return low + (high - low) * torch.rand(POINTS, size, generator=draw, dtype=torch.float64), False


@dataclass(eq=False)
class KeepRows:
    """Rows of constraints by sample, added where a change of the last layer breaks them.

    Attributes:
        constraint: Anchored.
        required: Smallest margin of each row, ``(N, p)``.
        features: What the last layer reads on the samples, with a 1 behind it, ``(N, h + 1)``.
        original: The last layer before.
        matrix: From the last layer's results to the outputs, ``(k, m)``.
        offset: ``(k,)``.
    """

    constraint: Any
    required: Tensor
    features: Tensor
    original: LastLayer
    matrix: Tensor
    offset: Tensor
    added: Tensor = field(init=False)

    def __post_init__(self) -> None:
        self.added = torch.zeros(self.required.shape, dtype=torch.bool)

    @property
    def price(self) -> float:
        """Price of half of a row's squared slack; infinite where every sample has to hold."""
        price = price_of(self.constraint)
        if price is None:
            return SOFT if tolerance_of(self.constraint) > 0 or getattr(self.constraint, "allowed", None) else np.inf
        return SOFT * price / 0.1

    def add_broken(self, program: LeastChange, change: Tensor) -> int:
        """Rows that the change breaks, the worst ones; how many."""
        base = self.original(self.features[:, :-1])
        moved = self.features @ change.T
        samples = samples_in(self.constraint)
        with torch.enable_grad():
            outputs = ((base + moved) @ self.matrix.T + self.offset).requires_grad_()
            margins = self.constraint.margins_of(outputs, samples)
            lacks = (self.required - margins.detach()).masked_fill(self.added, -torch.inf)
            bad = torch.nonzero(lacks > 1e-9)
            if not len(bad):
                return 0
            bad = bad[lacks[bad[:, 0], bad[:, 1]].argsort(descending=True)[:ROWS]]
            slopes = {
                int(j): torch.autograd.grad(margins[:, j].sum(), outputs, retain_graph=True)[0]
                for j in bad[:, 1].unique()
            }
        i, j = bad.T
        slope = torch.stack([slopes[int(b)][a] for a, b in bad]) @ self.matrix
        need = lacks[i, j] + (slope * moved[i]).sum(1)
        program.add(slope, self.features[i], need, price=self.price, label=KEEP)
        self.added[i, j] = True
        return len(bad)


def keep_rows(task: Task, network: NetworkSteps, original: LastLayer, matrix: Tensor, offset: Tensor) -> list[KeepRows]:
    """Rows of all constraints by sample of a task."""
    found = []
    for constraint, required in zip(task.constraints, task.required, strict=True):
        if isinstance(constraint, SampleConstraint) and len(samples_in(constraint)):
            samples = samples_in(constraint)
            inputs = constraint.inputs[samples.to(constraint.inputs.device)].detach().cpu().double().flatten(1)
            features = network.forward(inputs, network.features_at)
            full = torch.cat([features, features.new_ones(len(features), 1)], 1)
            least = torch.as_tensor(required).reshape(len(samples), -1)
            rows = KeepRows(constraint, least, full, original, matrix, offset)
            if np.isfinite(rows.price) and getattr(constraint, "answers_only", False):
                outputs = original(features) @ matrix.T + offset
                lead = constraint.margins_of(outputs, samples).clamp(max=ROOM * float(outputs.std(0).mean()))
                rows = replace(rows, required=torch.maximum(least, lead))
            found.append(rows)
    return found


def keeper(rows: list[KeepRows], program: LeastChange) -> Callable[[Tensor], int] | None:
    """What adds rows that a change breaks to a program, and says how many; None without rows."""
    if not rows:
        return None
    return lambda change: sum(one.add_broken(program, change) for one in rows)


def spread_of(outputs: Tensor) -> float:
    """Mean deviation of outputs, the unit of margins; 1 where they are constant."""
    return float(outputs.std(0).mean()) or 1.0
