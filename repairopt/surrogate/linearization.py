"""Linearize the constraints: all margins at a weight change without a matrix, rows for chosen margins.

Classification rows follow AutoRIC (TOSEM 2024), section 3.3: the lead of the wanted class over a rival, to first
order in the weights. Exact for weights of the last linear layer; elsewhere while no later ReLU changes sign.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from repairopt.network import Engine, Remembering, identity, jacobian, sample_rows, tangent
from repairopt.program import Array, Rows, Source
from repairopt.specify import (
    Constraint,
    SampleConstraint,
    margins_at,
    margins_of_samples,
    price_of,
    required_margins,
    samples_in,
    soft_margins,
)

UNNAMED = Source("", -1)
KNOWN, MOST_KNOWN = 4, 2**20  # sets of rows that are kept for a step that is tried again, and their entries at most
Picks = dict[int, npt.NDArray[np.int64]]  # for each constraint, by position, the margins chosen


@dataclass(frozen=True, eq=False)
class Linearization:
    """The constraints, anchored, around the weight change ``delta (n,)``.

    ``margins`` are the true ones there and ``required`` the smallest that a row asks for, for each constraint
    ``(m_c,)``; ``outputs`` those of the network there, by the identity of the inputs.
    """

    engine: Engine
    constraints: tuple[Constraint, ...]
    delta: Array
    margins: tuple[Array, ...]
    required: tuple[Array, ...]
    outputs: dict[tuple[object, ...], Tensor] = field(repr=False)
    _slopes_of: dict[int, Array] = field(default_factory=dict, repr=False)  # of constraints that are not by sample
    _known: dict[tuple[int, bytes], Array] = field(default_factory=dict, repr=False)  # the last that were asked for

    def at(self, step: Array) -> tuple[Array, ...]:
        """All linearized margins at ``delta + step``, for each constraint ``(m_c,)``, without building a row."""
        moved: dict[tuple[object, ...], Tensor] = {}
        found = []
        for c, constraint in enumerate(self.constraints):
            if not isinstance(constraint, SampleConstraint):
                slopes = self._slopes(c, np.arange(len(self.margins[c])))
                found.append(self.margins[c] + slopes @ step)
                continue
            key = identity(constraint.inputs)
            if key not in moved:
                moved[key] = self.outputs[key] + tangent(self.engine, constraint.inputs, self.delta, step)
            found.append(margins_of_samples(constraint, moved[key]))
        return tuple(found)

    def rows(self, picks: Picks, named: bool = True) -> Rows:
        """Rows ``required - margin <= a . step`` for the chosen margins; ``named`` says what each comes from."""
        parts, lower, price = [], [], []
        sources: list[Source] = []
        for c, index in sorted(picks.items()):
            if not len(index):
                continue
            constraint = self.constraints[c]
            parts.append(self._slopes(c, index))
            lower.append(self.required[c][index] - self.margins[c][index])
            weight = price_of(constraint)
            share = np.inf if weight is None else weight / max(1, self.samples(c))
            price.append(np.full(len(index), share))
            sources.extend(self._sources(c, index) if named else [UNNAMED] * len(index))
        if not parts:
            return Rows.empty(self.engine.n)
        low = np.concatenate(lower)
        return Rows(np.vstack(parts), low, np.full(len(low), np.inf), np.concatenate(price), tuple(sources))

    def norms(self, c: int, index: npt.NDArray[np.int64]) -> Array:
        """Length of the gradient of chosen margins of constraint ``c``, in scaled coordinates, a few rows at a time."""
        scale = self.engine.scale.cpu().numpy()
        step = max(1, self.engine.memory_limit // (64 * max(1, self.engine.n)))
        spans = [index[i : i + step] for i in range(0, len(index), step)]
        return np.concatenate([np.zeros(0)] + [np.linalg.norm(self._slopes(c, s) * scale, axis=1) for s in spans])

    def _slopes(self, c: int, index: npt.NDArray[np.int64]) -> Array:
        constraint = self.constraints[c]
        if not isinstance(constraint, SampleConstraint):
            if c not in self._slopes_of:
                soft = soft_margins(constraint)
                self._slopes_of[c] = jacobian(self.engine, soft, self.delta)[1].cpu().numpy()
            return self._slopes_of[c][index]
        key = (c, index.tobytes())
        if key not in self._known:
            found = self._slopes_by_sample(constraint, index, self._width(c))
            if found.size > MOST_KNOWN:
                return found
            while len(self._known) >= KNOWN:
                del self._known[next(iter(self._known))]
            self._known[key] = found
        return self._known[key]

    def _slopes_by_sample(self, constraint: SampleConstraint, index: npt.NDArray[np.int64], p: int) -> Array:
        samples = samples_in(constraint)
        chosen = samples[torch.as_tensor(index // p)]
        outputs = self.outputs[identity(constraint.inputs)]
        leaf = outputs[chosen.to(outputs.device)].detach().clone().requires_grad_()
        with torch.enable_grad():
            margins = constraint.margins_of(leaf, chosen)
            picked = margins[torch.arange(len(index)), torch.as_tensor(index % p)].sum()
        cotangents = torch.autograd.grad(picked, leaf)[0]
        rows = sample_rows(self.engine, constraint.inputs, chosen, cotangents, self.delta)
        return rows.detach().cpu().numpy().astype(np.float64)

    def samples(self, c: int) -> int:
        """Number of samples that constraint ``c`` speaks of; its margins where it is not by sample."""
        constraint = self.constraints[c]
        return len(samples_in(constraint)) if isinstance(constraint, SampleConstraint) else len(self.margins[c])

    def _width(self, c: int) -> int:
        """Margins of each sample."""
        constraint = self.constraints[c]
        return len(self.margins[c]) // max(1, len(samples_in(constraint)))

    def _sources(self, c: int, index: npt.NDArray[np.int64]) -> list[Source]:
        constraint = self.constraints[c]
        if not isinstance(constraint, SampleConstraint):
            return [Source(constraint.name, -1, f"margin {i}" if len(self.margins[c]) > 1 else "") for i in index]
        width = self._width(c)
        samples = samples_in(constraint)[torch.as_tensor(index // width)].tolist()
        describe: Any = getattr(constraint, "describe", lambda s, i: f"margin {i}" if width > 1 else "")
        pairs = zip(samples, (index % width).tolist(), strict=True)
        return [Source(constraint.name, sample, describe(sample, which)) for sample, which in pairs]


def linearize(
    engine: Engine, constraints: Sequence[Constraint], delta: Any = None, *, required: Sequence[Array] | None = None
) -> Linearization:
    """Linearize each constraint around a weight change ``(n,)``; the constraints are anchored to the original network.

    ``required`` are the smallest margins that rows ask for, by default from the margins at ``delta``. A
    SpecificationError where a constraint returns other than a vector of finite margins.
    """
    where = np.zeros(engine.n) if delta is None else np.asarray(delta, dtype=np.float64)
    predict = Remembering(engine, where)
    margins = margins_at(predict, constraints)
    if required is None:
        required = [required_margins(c, m) for c, m in zip(constraints, margins, strict=True)]
    return Linearization(engine, tuple(constraints), where, margins, tuple(required), predict.outputs)
