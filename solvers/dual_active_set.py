"""Primal-dual active set in torch, for programs with a positive diagonal and a good guess, the last round's solution.

Guess which rows hold with equality and which variables lie on bounds; solve the linear system that follows; correct the
guess by the signs and violations that come out; stop when it repeats. Exact to rounding where it ends, and it ends in
a few steps from a good guess, but it may cycle: then there is no answer, and an interior point takes over.

The system has the size of the active rows plus the rank. Its matrix changes only by the columns of those variables that
reached or left a bound, which makes a step far cheaper than one of an interior point.

References:
    Hintermueller, Ito and Kunisch, The primal-dual active set strategy as a semismooth Newton method, 2002.
"""

from __future__ import annotations

import time
from typing import Any

import torch
from torch import Tensor

from .primal_dual import Point
from .program_tensors import Data

TIGHT = 1e-9  # relative distance at which a row or a bound is guessed to hold with equality
EXACT = 1e-10  # relative residual of the active rows
SHARE = 0.2  # of the columns: where more change, the matrix is formed anew


def active_set(
    data: Data, delta: Tensor, steps: int, deadline: float | None = None, system: System | None = None
) -> Point | None:
    """Solve from a guess: rows that hold with equality or are violated at ``delta``, variables on bounds there.

    The curvature must be positive. ``system`` is that of the same program, where another solve has left some of it.
    None where ``steps`` steps did not settle, or the deadline (``time.perf_counter()``) passed.
    """
    system = system or System(data)
    delta = torch.minimum(torch.maximum(delta, data.low), data.high)
    value, equal = data.rows @ delta, data.lower == data.upper
    near = TIGHT * (1.0 + value.abs())
    below = equal | (value <= data.lower + near)
    above = ~below & (value >= data.upper - near)
    at_low, at_high = delta <= data.low, delta >= data.high
    for count in range(1, steps + 1):
        if deadline is not None and time.perf_counter() > deadline:
            return None
        active = (below | above).nonzero().squeeze(1)
        sides = torch.where(below, data.lower, data.upper)[active]
        bounded = torch.where(at_low, data.low, torch.where(at_high, data.high, 0.0))
        y = system.solve(~(at_low | at_high), active, sides, bounded)
        if y is None:
            return None
        duals = torch.zeros_like(data.lower)
        duals[active] = y[: len(active)]
        wanted = -(data.gradient + data.transposed(torch.cat([duals, y[len(active) :]]))) / data.curvature
        delta = torch.where(at_low | at_high, bounded, wanted)
        products = data.times(delta)
        value = products[: len(duals)]
        near = 1e-12 * (1.0 + value.abs())
        new_below = torch.where(below, equal | (duals < 0), ~above & (value < data.lower - near))
        new_above = torch.where(above, duals > 0, ~below & (value > data.upper + near))
        new_low, new_high = wanted <= data.low, wanted >= data.high
        sets = zip((new_below, new_above, new_low, new_high), (below, above, at_low, at_high), strict=True)
        if all(torch.equal(new, old) for new, old in sets):
            meant = torch.cat([sides, y[len(active) :]])
            off = torch.cat([value[active], products[len(duals) :]]) - meant
            settled = not bool((off.abs() > EXACT * (1.0 + meant.abs())).any())
            return Point("solved", delta, duals, data.curvature * (wanted - delta), count) if settled else None
        below, above, at_low, at_high = new_below, new_above, new_low, new_high
    return None


class System:
    """The Gram matrix of the free columns, kept up to date from step to step and from round to round.

    ``names`` has a number for each row by which it is known again; ``previous`` is the system of an earlier round, of
    the same variables, curvature and factor.
    """

    def __init__(self, data: Data, names: Tensor | None = None, previous: System | None = None) -> None:
        self.data: Any = data
        self.k, self.names = len(data.lower), names
        self.free = torch.zeros(0, dtype=torch.bool)
        self.gram = torch.zeros(0)
        if previous is not None and names is not None and previous.names is not None and len(previous.free):
            self._inherit(previous, names, previous.names)

    def release(self) -> System:
        """Let go of the program, whose rows are large; the rest is enough for the next round."""
        self.data = None
        return self

    def _inherit(self, previous: System, names: Tensor, old_names: Tensor) -> None:
        """Take over what belongs to rows that are still there; form what belongs to the new ones."""
        data, device = self.data, names.device
        order = torch.argsort(old_names)
        place = torch.searchsorted(old_names[order], names).clamp(max=max(0, len(order) - 1))
        known = old_names[order][place] == names if len(order) else torch.zeros_like(names, dtype=torch.bool)
        new = (~known).nonzero().squeeze(1)
        if 2 * len(new) > self.k:
            return
        rank = torch.arange(len(data.factor), device=device)
        kept = torch.cat([known.nonzero().squeeze(1), self.k + rank])
        source = torch.cat([order[place[known]], previous.k + rank])
        self.gram = torch.zeros((self.k + len(rank),) * 2, dtype=torch.float64, device=device)
        self.gram[kept.unsqueeze(1), kept] = previous.gram[source.unsqueeze(1), source]
        block = data.products(new, torch.where(previous.free, 1.0 / data.curvature, 0.0))
        self.gram[new], self.gram[:, new] = block, block.T
        self.free = previous.free

    def solve(self, free: Tensor, active: Tensor, sides: Tensor, bounded: Tensor) -> Tensor | None:
        """Multipliers of the active rows, then of the factor; None where the system is singular."""
        data = self.data
        self._update(free)
        rank = len(data.factor)
        chosen = torch.cat([active, torch.arange(self.k, self.k + rank, device=active.device)])
        right = data.times(torch.where(free, -data.gradient / data.curvature, bounded))[chosen]
        right[: len(active)] -= sides
        matrix = self.gram[chosen][:, chosen]
        matrix.diagonal()[len(active) :] += 1.0
        scale = matrix.diagonal().rsqrt()
        if not bool(torch.isfinite(scale).all()):
            return None
        matrix = matrix * scale.unsqueeze(1) * scale
        lower, info = torch.linalg.cholesky_ex(matrix)
        if int(info):
            return None
        right = (right * scale).unsqueeze(1)
        found = torch.cholesky_solve(right, lower)
        found += torch.cholesky_solve(right - matrix @ found, lower)
        return found.squeeze(1) * scale

    def _update(self, free: Tensor) -> None:
        data = self.data
        if len(self.free):
            changed = (free != self.free).nonzero().squeeze(1)
            if len(changed) <= SHARE * len(free):
                part = data.columns(changed)
                sign = torch.where(free[changed], 1.0, -1.0).to(part.dtype)
                self.gram += (part * (sign / data.curvature[changed])) @ part.T
                self.free = free
                return
        self.gram = data.gram(torch.where(free, 1.0 / data.curvature, 0.0))
        self.free = free
