"""The point that comes closest to satisfying all rows, by elastic programming.

Each row may be violated, and the violation is minimized; bounds stay hard. The linear program is solved with a growing
set of rows: those that the last point violates most are added until none is left, so that large programs stay small.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np

from repairopt.errors import SolverError
from repairopt.program.attempt import run_solver
from repairopt.program.backends import find_solver, with_options
from repairopt.program.program import Array, Program
from repairopt.program.rechecking import row_norms
from repairopt.program.rows import Source
from repairopt.program.solution import Solution, Solver, Status

PHASE_ONE = "highs"  # simplex: its multipliers are vertices, and pass an exact check at every depth (measured)
PHASE_ONE_TOL = 1e-10  # the tightest that it takes
ALL_AT_ONCE = 200_000  # entries of A up to which all rows are taken from the start
ADDED = 300  # rows a round, at least
DEPTH = 1.0  # how far inside the rows to look for a point: one deep inside needs fewer rounds
TOL = 1e-9  # violation beyond the optimum's that adds a row

Measure = Literal["sum", "max"]


@dataclass(frozen=True, eq=False)
class LeastViolation:
    """A point ``(n,)`` within its bounds that violates the rows as little as possible.

    ``violations`` says how far each row is violated, ``(m,)``, in its own units; ``sources`` where the violated rows
    come from, the most violated first; ``measure`` what was minimized: the sum of the violations or the largest.
    """

    delta: Array
    violations: Array
    sources: tuple[Source, ...]
    measure: Measure

    @property
    def value(self) -> float:
        """The sum of the violations, or the largest, whichever was minimized."""
        return float(self.violations.sum() if self.measure == "sum" else self.violations.max(initial=0.0))

    def __str__(self) -> str:
        count = int(np.count_nonzero(self.violations))
        if not count:
            return "All rows can hold together."
        what = "in sum" if self.measure == "sum" else "at most"
        rows = f"{count} of {len(self.violations)} rows"
        lines = [f"At least {self.value:.6g} of violation {what} remains; here in {rows}."]
        order = np.argsort(-self.violations, kind="stable")
        lines += [f"  {self.violations[i]:.6g}  {s}" for i, s in zip(order, self.sources[:10], strict=False)]
        return "\n".join(lines)


def least_violation(
    program: Program, *, measure: Measure = "sum", solver: str | Solver | None = None, time_limit: float | None = None
) -> LeastViolation:
    """Find the point within the bounds that violates the rows least. The objective plays no part.

    ``"sum"`` violates few rows, ``"max"`` spreads the violation over many; those up to 1e-9 times the size of the row's
    side count as 0. Integer variables stay integer. ``time_limit`` is for each of the linear programs. A SolverError
    where the back end, HiGHS unless given, did not solve the elastic program, which always has a solution.
    """
    point = None
    for point in elastic_points(program, measure=measure, solver=solver, time_limit=time_limit):
        if point.status is not Status.OPTIMAL:
            raise SolverError(
                f"'{point.solver}' ended the elastic program with status {point.status} ({point.message}); it always "
                f"has a solution. Raise time_limit or try another solver."
            )
    assert point is not None
    assert point.delta is not None
    violations = row_violations(program, point.delta)
    sides = np.where(program.matrix @ point.delta > program.upper, program.upper, program.lower)
    violations[violations <= TOL * (1.0 + np.abs(sides))] = 0.0
    order = [int(i) for i in np.argsort(-violations, kind="stable") if violations[i] > 0]
    return LeastViolation(point.delta, violations, tuple(program.sources[i] for i in order if program.sources), measure)


def elastic_points(
    program: Program,
    *,
    measure: Measure,
    scaled: bool = False,
    solver: str | Solver | None = None,
    time_limit: float | None = None,
) -> Iterator[Solution]:
    """Solve the elastic program round by round; the last solution minimizes the violation over all rows.

    Violations are distances, over the norm of the row, where ``scaled``. Yields solutions with ``delta (n,)`` and
    ``row_duals (m,)`` of this program; the objective is the least violation of the rows taken so far, negative where
    they can hold with room to spare and the largest violation is minimized. Ends early after one that is not optimal.
    """
    low, high = program.bounds()
    lengths = row_norms(program) if scaled else np.ones(program.m)
    lengths[lengths == 0] = 1.0
    taken = np.zeros(program.m, dtype=bool)
    start = np.clip(np.zeros(program.n), low, high)
    if program.violation(start) == 0:
        yield Solution(Status.OPTIMAL, start, objective=0.0, message="the origin holds all rows")
        return
    excess = row_violations(program, start) / lengths
    few = program.m * program.n <= ALL_AT_ONCE
    taken[np.arange(program.m) if few else _worst(excess, max(ADDED, program.n))] = True
    while True:
        rows = np.flatnonzero(taken)
        solution = _solve_elastic(program, rows, lengths[rows], measure, solver, time_limit)
        yield solution
        if solution.status is not Status.OPTIMAL or solution.delta is None:
            return
        excess = row_violations(program, solution.delta) / lengths
        allowed = TOL + (max(0.0, solution.objective) if measure == "max" else 0.0)
        excess[taken | (excess <= allowed)] = 0.0
        new = _worst(excess, max(ADDED, program.n))
        if not len(new):
            return
        taken[new] = True


def row_violations(program: Program, delta: Array) -> Array:
    """How far each row is violated at ``delta``, ``(m,)``; 0 where it holds."""
    values = np.asarray(program.matrix @ delta)
    violations: Array = np.maximum(0.0, np.maximum(program.lower - values, values - program.upper))
    return violations


def _worst(excess: Array, count: int) -> Any:
    order = np.argsort(-excess, kind="stable")[:count]
    return order[excess[order] > 0]


def _solve_elastic(
    program: Program, rows: Any, lengths: Array, measure: Measure, solver: str | Solver | None, time_limit: float | None
) -> Solution:
    elastic, owners = _elastic_program(program, rows, lengths, measure)
    backend: Any = find_solver(elastic, PHASE_ONE if solver is None else solver)
    backend = with_options(backend, feasibility_tol=min(getattr(backend, "feasibility_tol", 1.0), PHASE_ONE_TOL))
    started = time.perf_counter()
    found = run_solver(elastic, backend, time_limit=time_limit)
    duals: Any = None
    if found.row_duals is not None:
        duals = np.bincount(rows[owners], found.row_duals / lengths[owners], program.m)
    delta = None if found.delta is None else np.clip(found.delta[: program.n], *program.bounds())
    seconds = time.perf_counter() - started
    return replace(found, delta=delta, row_duals=duals, bound_duals=None, ray=None, seconds=seconds)


def _elastic_program(program: Program, rows: Any, lengths: Array, measure: Measure) -> tuple[Program, Any]:
    """The elastic program over some rows, and which of these rows each of its own rows belongs to."""
    from scipy import sparse

    matrix = sparse.diags(1.0 / lengths) @ sparse.csr_matrix(program.matrix[rows])
    lower, upper = program.lower[rows] / lengths, program.upper[rows] / lengths
    k, (low, high) = len(rows), program.bounds()
    if measure == "max":
        above, below = np.flatnonzero(np.isfinite(upper)), np.flatnonzero(np.isfinite(lower))
        owners = np.concatenate([above, below])
        slack = sparse.csr_matrix(np.concatenate([-np.ones(len(above)), np.ones(len(below))])[:, None])
        lower = np.concatenate([np.full(len(above), -np.inf), lower[below]])
        upper = np.concatenate([upper[above], np.full(len(below), np.inf)])
        blocks, extra = [matrix[owners], slack], 1
    else:
        owners, blocks, extra = np.arange(k), [matrix, sparse.identity(k), -sparse.identity(k)], 2 * k
    mask = program.integer
    elastic = Program(
        gradient=np.concatenate([np.zeros(program.n), np.ones(extra)]),
        matrix=sparse.hstack(blocks, format="csr"),
        lower=lower,
        upper=upper,
        delta_lower=np.concatenate([low, np.full(extra, -DEPTH if measure == "max" else 0.0)]),
        delta_upper=np.concatenate([high, np.full(extra, np.inf)]),
        integer=None if mask is None else np.concatenate([mask, np.zeros(extra, dtype=bool)]),
    )
    return elastic, owners
