"""The least change of the outputs that satisfies rows on the last layer: a quadratic program whose rows come as needed.

The change ``D (k, h + 1)`` of weights and bias is measured by the mean squared change of the outputs on keep points,
``tr(D H D')`` with ``H`` the second moment of features and 1. In whitened coordinates this is a problem of least norm.
A row asks for ``c' D phi >= need`` at a feature vector ``phi``, of a true input or of a relaxed one; a soft row pays
for what it misses.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from repairopt.errors import SolverError
from repairopt.program import Array, Program, Solution, available_solvers, run_solver, solve

RIDGE = 1e-4  # of the mean second moment of a feature, so that directions without keep points cost something
BATCH = 150  # rows that a solve gets more of, at most
ROUNDS = 100
SECONDS = 10.0  # of a program that the first back end does not solve
NEWTON = 30  # sets of missed soft rows
TOLERANCE = 1e-7  # of the largest need, by which a row may be missed
ROW_FIELDS = ("rows", "base", "share", "price", "label")
CONFLICT = 1e-3  # of the largest need: rows that are missed by more contradict each other
NEARLY_HARD = 1e8  # price of hard rows, so that the dual has a solution


@dataclass(frozen=True, eq=False)
class Change:
    """A change of the last layer.

    Attributes:
        matrix: New minus old weights, the bias last, ``(k, h + 1)``.
        objective: Mean squared change of the outputs on keep points, and what soft rows cost.
        multipliers: Of each row, ``(m,)``.
        conflict: Whether hard rows contradict each other; the change then misses them by least squares.
        settled: Whether the set of missed soft rows settled, so that no change costs less.
    """

    matrix: Tensor
    objective: float
    multipliers: Array
    conflict: bool
    settled: bool = True


@dataclass(eq=False)
class LeastChange:
    """Rows at hand, and the least change that satisfies them.

    Attributes:
        root: Cholesky factor of the metric, ``(p, p)``.
        outputs: Numbers that the last layer gives, ``k``.
        solver: Back end, or None.
        margin: What rows ask for beyond their base, times their share of it.
        rows: Whitened rows of norm 1, ``(m, k p)``.
        base: Right sides at margin 0, ``(m,)``.
        share: ``(m,)``.
        price: Price of half of a row's squared slack, infinite for hard rows, ``(m,)``.
        label: A number that the caller gave each row, ``(m,)``.
        active: Rows that the last solution needed.
        missed: Soft rows that it missed.
    """

    root: Tensor
    outputs: int
    solver: Any = None
    margin: float = 0.0
    rows: Array = field(init=False)
    base: Array = field(default_factory=lambda: np.zeros(0))
    share: Array = field(default_factory=lambda: np.zeros(0))
    price: Array = field(default_factory=lambda: np.zeros(0))
    label: Any = field(default_factory=lambda: np.zeros(0, dtype=np.int64))
    active: Any = field(default_factory=lambda: np.zeros(0, dtype=np.int64))
    missed: Any = field(default_factory=lambda: np.zeros(0, dtype=np.int64))

    def __post_init__(self) -> None:
        self.rows = np.zeros((0, self.outputs * len(self.root)))

    def __len__(self) -> int:
        return len(self.base)

    @property
    def needs(self) -> Array:
        """Right sides at the margin of today, ``(m,)``."""
        return self.base + self.margin * self.share

    @classmethod
    def on(cls, features: Tensor, outputs: int, solver: Any = None) -> LeastChange:
        """With the metric of keep points whose features, with a 1 behind them, are ``(N, h + 1)``."""
        moment = features.T @ features / len(features)
        moment += RIDGE * moment.diagonal().mean() * torch.eye(len(moment), dtype=moment.dtype)
        return cls(torch.linalg.cholesky(moment), outputs, solver)

    def add(
        self,
        coefficients: Tensor,
        features: Tensor,
        base: Tensor,
        share: float = 0.0,
        *,
        price: float = np.inf,
        label: Any = 0,
    ) -> None:
        """Rows ``coefficients' D feature >= base + share * margin``: ``(m, k)``, ``(m, h + 1)``, ``(m,)``."""
        if not len(base):
            return
        white = torch.linalg.solve_triangular(self.root, features.T, upper=False).T
        rows = (coefficients[:, :, None] * white[:, None]).flatten(1)
        size = rows.norm(dim=1)
        new = {
            "rows": rows / size[:, None],
            "base": base / size,
            "share": share / size,
            "price": np.full(len(base), price),
            "label": np.broadcast_to(np.asarray(label), len(base)),
        }
        for name, values in new.items():
            setattr(self, name, np.concatenate([getattr(self, name), np.asarray(values)]))

    def keep_only(self, keep: Any) -> None:
        """Forget rows, given a mask ``(m,)`` of those that stay."""
        places = np.cumsum(keep) - 1
        self.active, self.missed = (places[own[keep[own]]] for own in (self.active, self.missed))
        for name in ROW_FIELDS:
            setattr(self, name, getattr(self, name)[keep])

    def part(self, keep: Any) -> LeastChange:
        """The same metric with some of the rows."""
        found = LeastChange(self.root, self.outputs, self.solver, self.margin)
        for name in ROW_FIELDS:
            setattr(found, name, getattr(self, name)[keep])
        return found

    def cost(self, change: Tensor) -> float:
        """Objective of a change ``(k, h + 1)``, with what the soft rows at hand cost."""
        return self._cost((change @ self.root).flatten().numpy())

    def slack(self, change: Tensor) -> Array:
        """By how much a change ``(k, h + 1)`` exceeds what rows of norm 1 ask for, ``(m,)``."""
        found: Array = self.rows @ (change @ self.root).flatten().numpy() - self.needs
        return found

    def solve(self) -> Change:
        """The least change that satisfies all hard rows; where these are in conflict, it misses them by least squares.

        Soft rows that are missed count with their squares, so that between two sets of these the objective is
        quadratic: for each set the hard rows are a program of their own, and a step that does not lower the objective
        is shortened (semismooth Newton).

        Raises:
            SolverError: No back end solves the program.
        """
        needs, hard = self.needs, np.flatnonzero(~np.isfinite(self.price))
        soft = np.flatnonzero(np.isfinite(self.price))
        x, multipliers = np.zeros(self.rows.shape[1]), np.zeros(len(needs))
        feasible = not bool((needs[hard] > 0).any())
        missed = self.missed if len(self.missed) else soft[needs[soft] > 0]
        for _ in range(NEWTON):
            full, multipliers, conflict = self._given(missed, hard, needs)
            step, start = 1.0, self._cost(x) if feasible else np.inf
            while step > 1e-3 and self._cost(x + step * (full - x)) > start * (1 + 1e-9):
                step /= 2
            x, feasible = x + step * (full - x), True
            now = soft[needs[soft] - self.rows[soft] @ x > 0]
            settled = step == 1.0 and np.array_equal(now, missed)
            if settled:
                break
            missed = now
        self.active, self.missed = np.flatnonzero(multipliers), missed
        matrix = torch.as_tensor(x).reshape(self.outputs, -1)
        change = torch.linalg.solve_triangular(self.root.T, matrix.T, upper=True).T
        return Change(change, self._cost(x), multipliers, conflict, settled)

    def _cost(self, x: Array) -> float:
        soft = np.isfinite(self.price)
        slack = np.maximum(self.needs[soft] - self.rows[soft] @ x, 0.0)
        return float(x @ x + (self.price[soft] * slack**2).sum())

    def _given(self, missed: Any, hard: Any, needs: Array) -> tuple[Array, Array, bool]:
        """The best point where just these soft rows are missed, multipliers, whether hard rows are in conflict."""
        rows, scale = self.rows, max(float(np.abs(needs[hard]).max(initial=0.0)), 1e-300)
        own = rows[missed] * self.price[missed][:, None]
        curved = _Curved(np.eye(rows.shape[1]) + rows[missed].T @ own, own.T @ needs[missed])
        free, work = curved.free, np.intersect1d(self.active, hard)
        lacks = needs[hard] - rows[hard] @ free
        if not len(work):
            work = hard[np.argsort(-lacks)[:BATCH]]
        x, multipliers, conflict = free, np.zeros(0), False
        for _ in range(ROUNDS):
            x, multipliers, conflict = self._solve(work, needs[work] - rows[work] @ free, curved, scale)
            used = multipliers > 1e-12 * multipliers.max(initial=0.0)
            work, multipliers = work[used], multipliers[used]
            lacks = needs[hard] - rows[hard] @ x
            lacks[np.isin(hard, work)] = 0.0
            new = hard[lacks > TOLERANCE * scale]
            if not len(new) or conflict:
                break
            work = np.concatenate([work, hard[np.argsort(-lacks)[: min(BATCH, len(new))]]])
        else:
            raise SolverError("regions: the quadratic program of the last layer did not settle.")
        full = np.zeros(len(needs))
        full[work] = multipliers
        return x, full, conflict

    def _solve(self, work: Any, needs: Array, curved: _Curved, scale: float) -> tuple[Array, Array, bool]:
        """The point for some hard rows, multipliers, whether these rows are in conflict; by the dual program."""
        if not len(work):
            return curved.free, np.zeros(0), False
        white = curved.whitened(self.rows[work])
        gram = white.T @ white
        size = np.sqrt(np.maximum(np.diag(gram), 1e-300))
        gram = gram / size[:, None] / size + np.diag(np.full(len(work), 1 / NEARLY_HARD))
        program = Program(-needs / size / scale, gram, delta_lower=np.zeros(len(work)))
        found = self._minimum(program)
        if found.delta is None:
            raise SolverError(f"regions: the quadratic program of the last layer was not solved ({found.message}).")
        multipliers = scale * np.maximum(found.delta, 0.0) / size
        conflict = bool(found.delta.max() > CONFLICT * NEARLY_HARD)
        return curved.free + curved.back(white @ multipliers), multipliers, conflict

    def _minimum(self, program: Program) -> Solution:
        name = self.solver or ("daqp" if "daqp" in available_solvers(program.kind) else None)
        try:
            found = run_solver(program, name, checked=True)
        except SolverError:
            return solve(program, time_limit=SECONDS)
        return found if found.delta is not None else solve(program, time_limit=SECONDS)


class _Curved:
    """The objective ``1/2 x' H x - g' x`` of a set of missed soft rows, by the Cholesky factor of ``H``."""

    def __init__(self, hessian: Array, gradient: Array) -> None:
        self.factor = torch.linalg.cholesky(torch.as_tensor(hessian))
        self.free = self.back(self.whitened(gradient[None])[:, 0])

    def whitened(self, rows: Array) -> Array:
        """``L^-1 rows'``, ``(n, m)``."""
        found: Array = torch.linalg.solve_triangular(self.factor, torch.as_tensor(rows).T, upper=False).numpy()
        return found

    def back(self, x: Array) -> Array:
        """``L'^-1 x``."""
        side = torch.as_tensor(x)[:, None]
        found: Array = torch.linalg.solve_triangular(self.factor.T, side, upper=True)[:, 0].numpy()
        return found
