"""Working sets: programs whose rows are too many to hand to a solver, solved with the few that matter.

Each round solves with the rows of the working set, looks at *all* rows by one pass without a matrix of its own, adds
rows that the solution violates, and drops rows that were slack for some rounds: only while the objective rises, since
else the same rows may come and go forever (seen on a real network). The solution of the last round is optimal for fewer
rows, so its value is a lower bound; that it violates no row proves it optimal for all of them.

Which violated rows to add decides how many passes there are. The loop keeps a point inside (at first the start, where
a repair satisfies most rows) and adds the rows that the way from there to the solution crosses *first*, in place of
the most violated: 8 rounds, not 23, on 500,000 rows of 222 weights; no further pass, violations are convex on the way.

References:
    Ben-Ameur and Neto, Acceleration of cutting-plane and column generation algorithms, Networks 2007 (in-out points).
"""

from __future__ import annotations

import contextlib
import time
from dataclasses import dataclass, field, is_dataclass, replace
from typing import Any, cast

import numpy as np

from repairopt.errors import ProgramError
from repairopt.program.attempt import run_solver
from repairopt.program.backends import find_solver, preferred_solvers
from repairopt.program.program import Array, Program
from repairopt.program.rechecking import objective_scale
from repairopt.program.solution import Solution, Solver, Status

from .relaxed_program import FARTHEST, REACH, Index, WorkingRows, at_reach, certified_gap, relaxation
from .row_oracles import RowOracle

INWARD = 0.5  # share of the feasible part of the way that the inner point moves
RISE = 1e-9  # relative rise of the objective since rows were dropped last, above which rows may be dropped again
NEAR = 1e-4  # relative gap up to which a point that the back end calls feasible only is worked with
FEW = 4_000_000  # entries up to which all rows are given at once, if they are at most 5 for each weight


@dataclass(frozen=True, eq=False)
class WorkingSetSolution(Solution):
    """A solution, and what it took. ``row_duals`` has the head's own rows first, then all rows of the oracle.

    ``distance`` bounds ``objective - optimum`` from the multipliers alone, see ``certified_gap``; ``bound`` is the
    objective minus it, ``gap`` its size over that of the objective's terms. ``passes`` counts how often all rows were
    looked at, ``largest`` the most rows of a solve; seconds are those of the CPU; ``working`` has the rows of the last
    one.
    """

    distance: float = float("nan")
    rounds: int = 0
    passes: int = 0
    largest: int = 0
    pass_seconds: float = 0.0
    solve_seconds: float = 0.0
    working: Index = field(default_factory=lambda: np.zeros(0, dtype=np.int64))


def solve_working_set(
    program_head: Program,
    rows: RowOracle,
    *,
    solver: str | Solver | None = None,
    batch: int | None = None,
    feasibility_tol: float = 1e-9,
    gap_tol: float = 1e-8,
    time_limit: float | None = None,
    max_rounds: int = 500,
    start: Array | None = None,
) -> WorkingSetSolution:
    """Solve a program with many rows that are known through an oracle.

    Where the rows are few (at most 5 for each weight, 4 million entries), they are given to the back end at once.

    Args:
        program_head: Objective, box and the rows that always take part; rows of the oracle speak of its first
            ``n_delta`` variables. Must have no integers.
        rows: The many rows.
        solver: Back end, or None for the default of each round's program; where that fails, the next one is tried.
            One with a ``session()`` updates its model from round to round.
        batch: Rows to add in a round; None for 200, and up to 500 between 400 and 5,000 weights; measured.
        feasibility_tol: Violation of a row of the oracle, absolute, above which it is added.
        gap_tol: Where the gap at the end is larger, relative to ``1 + |objective|``, or a row at hand is violated by
            more than ``feasibility_tol``, the last round is solved again with tolerances a thousand times smaller.
        time_limit: Wall seconds, or None.
        max_rounds: Solves at most.
        start: A point that satisfies most rows, ``(n,)``; None for the point of the box nearest to zero.

    Returns:
        OPTIMAL when the last pass found no row outside of the working set violated. FEASIBLE with the inner point where
        a limit was hit and that point satisfies every row; INFEASIBLE with the ray of the rows at hand; else the status
        of the back end.
    """
    if program_head.integer is not None:
        raise ProgramError("working set: the program has integer variables; solve it with all rows at once.")
    inner = np.clip(np.zeros(program_head.n) if start is None else start, *program_head.bounds())
    batch = batch or (200 if program_head.n > 5000 else min(500, max(200, program_head.n // 2)))
    loop = _Loop(program_head, rows, solver, batch, feasibility_tol, gap_tol, inner)
    deadline = None if time_limit is None else time.perf_counter() + time_limit
    loop.begin()
    while True:
        left = None if deadline is None else max(1e-3, deadline - time.perf_counter())
        loop.solve(left)
        if not loop.usable():
            return loop.give_up()
        new = loop.look()
        limit = loop.rounds >= max_rounds or (deadline is not None and time.perf_counter() > deadline)
        if not len(new) and not loop.widen() and (limit or not loop.tighten()):
            return loop.finish()
        if limit:
            return loop.stop()
        loop.update(new)


@dataclass(eq=False)
class _Loop:
    """The rows at hand, the inner point, and the counts."""

    head: Program
    oracle: RowOracle
    solver: Any
    batch: int
    feasibility_tol: float
    gap_tol: float
    inner: Array
    inside: Array = field(default_factory=lambda: np.zeros(0))  # violations at the inner point, or above them
    excess: Array = field(default_factory=lambda: np.zeros(0))  # violations at the last solution
    working: WorkingRows = field(default_factory=WorkingRows)
    reach: float = float("inf")
    loose: tuple[Program, Solution, Array] | None = None  # the last round's before more accuracy was asked for
    program: Program = None  # type: ignore[assignment]
    solution: Solution = field(default_factory=lambda: Solution(Status.NO_POINT))
    rounds: int = 0
    passes: int = 0
    largest: int = 0
    pass_seconds: float = 0.0
    solve_seconds: float = 0.0
    notes: list[str] = field(default_factory=list)
    sessions: dict[Any, Any] = field(default_factory=dict)
    dropped_at: float = -float("inf")  # objective when rows were dropped last; only above it are rows dropped again

    def begin(self) -> None:
        """All rows where they are few, else those that are tightest at the start."""
        batch, m = self.batch, self.oracle.m
        first = np.arange(m)
        few = m <= 5 * self.head.n and m * self.head.n <= FEW
        if m > batch and not few:
            self.inside = self._pass(self.inner)
            first = np.sort(np.argpartition(-self.inside, batch)[:batch])
        self.working.add(first, self.oracle.rows(first))

    def solve(self, time_limit: float | None) -> None:
        """One solve with the rows at hand; wider where unbounded, another back end where the default one fails."""
        self.rounds, started = self.rounds + 1, time.perf_counter()
        self._solve(self.solver, time_limit)
        unbounded = self.solution.status is Status.UNBOUNDED and self.reach == np.inf
        if unbounded and self.oracle.m > len(self.working.index):
            self.reach = REACH
            self._solve(self.solver, time_limit)
        if self.solution.status is Status.FAILED and self.solver is None:
            first = self.solution
            for name in preferred_solvers(self.program):
                if name != first.solver and self.solution.status is Status.FAILED:
                    with contextlib.suppress(ProgramError):  # too large for this one
                        self._solve(name, time_limit)
            self.notes.append(f"'{first.solver}' failed in round {self.rounds}, tried '{self.solution.solver}'")
        self.largest = max(self.largest, self.program.m)
        self.solve_seconds += time.perf_counter() - started

    def usable(self) -> bool:
        """Whether the solve gave a relaxation's optimum, or nearly so by its multipliers."""
        if self.solution.delta is None or self.solution.status is Status.OPTIMAL:
            return self.solution.delta is not None
        near = NEAR * (1.0 + abs(self.solution.objective))
        return self.solution.status is Status.FEASIBLE and certified_gap(self.program, self.solution) <= near

    def look(self) -> Index:
        """The violated rows outside of the working set; looks again in full precision before saying none.

        Where every row is at hand, that takes no pass.
        """
        delta = self._point()
        if len(self.working.index) == self.oracle.m:
            self.excess = self.working.excess(delta[: self.head.n_delta])
            return np.zeros(0, dtype=np.int64)
        screen = getattr(self.oracle, "screen", None)
        self.excess = self._pass(delta, screen)
        bad = self._bad()
        if not len(bad) and screen is not None:
            self.excess = self._pass(delta)
            bad = self._bad()
        return bad

    def update(self, bad: Index) -> None:
        """Drop rows that stayed slack, add the rows crossed first on the way from the inner point, move that point."""
        if not len(bad):
            return
        if self.solution.objective > self.dropped_at + RISE * (1.0 + abs(self.solution.objective)):
            self.dropped_at = self.solution.objective
            self.working.drop(self.excess[self.working.index])
        batch, lacks = self.batch, self.excess[bad]
        inside = self.inside if len(self.inside) else np.zeros(self.oracle.m)
        room = np.maximum(-inside[bad], 0.0)
        when = room / (room + lacks)
        chosen = bad
        if len(bad) > batch:
            key = when - 1e-9 * lacks / lacks.max()  # among rows crossed at once, the most violated
            chosen = bad[np.argpartition(key, batch)[:batch]]
        chosen = np.sort(chosen)
        self.working.add(chosen, self.oracle.rows(chosen))
        share = INWARD * float(when.min())
        if share > 0:
            self.inner = self.inner + share * (self._point() - self.inner)
            self.inside = (1.0 - share) * inside + share * self.excess

    def widen(self) -> bool:
        """Move artificial bounds out where the solution lies on one."""
        if self.reach >= FARTHEST or not at_reach(self.head, self._point(), self.reach):
            return False
        self.reach *= 1e3
        return True

    def tighten(self) -> bool:
        """Ask for more accuracy, once, where the gap or the violation of a row at hand is too large."""
        wide = certified_gap(self.program, self.solution) > self.gap_tol * (1.0 + abs(self.solution.objective))
        off = self.excess.max(initial=0.0) > self.feasibility_tol
        if self.loose is not None or not (wide or off):
            return False
        backend: Any = find_solver(self.program, self.solver)
        if not (is_dataclass(backend) and hasattr(backend, "feasibility_tol") and hasattr(backend, "gap_tol")):
            return False
        options: Any = {"feasibility_tol": 1e-3 * backend.feasibility_tol, "gap_tol": 1e-3 * backend.gap_tol}
        self.loose, self.solver = (self.program, self.solution, self.excess), replace(cast(Any, backend), **options)
        return True

    def finish(self) -> WorkingSetSolution:
        """The last solution with multipliers for all rows."""
        if self.reach < np.inf and at_reach(self.head, self._point(), self.reach):
            text = f"the objective still falls {self.reach:.0e} away; {self.solution.message}"
            return self._result(replace(self.solution, status=Status.UNBOUNDED, delta=None, message=text))
        return self._result(self.solution)

    def give_up(self) -> WorkingSetSolution:
        """What the back end said; the loose solution if there is one; else, at a limit, the inner point if feasible."""
        if self.loose is not None:
            self.program, self.solution, self.excess = self.loose
            return self.finish()
        limit = self.solution.status in (Status.NO_POINT, Status.FEASIBLE)
        return self.stop() if limit else self._result(replace(self.solution, delta=None))

    def stop(self) -> WorkingSetSolution:
        """The inner point if it is feasible, its value against that of the last relaxation."""
        text = f"stopped; {self.solution.message}"
        gap = certified_gap(self.program, self.solution) if self.usable() and self.reach == np.inf else float("nan")
        bound = self.solution.objective - gap
        self.excess = self._pass(self.inner)
        lack = max(float(self.excess.max(initial=0.0)), self.head.violation(self.inner))
        found: Any = {"message": text, "bound": bound, "solver": self.solution.solver}
        if lack > self.feasibility_tol:
            return self._result(Solution(Status.NO_POINT, **found))
        value = self.head.objective(self.inner)
        return self._result(Solution(Status.FEASIBLE, self.inner, value, **found))

    def _result(self, solution: Solution) -> WorkingSetSolution:
        distance, gap, violation = float("nan"), float("nan"), float("nan")
        if solution.delta is not None:
            violation = max(self.head.violation(solution.delta), float(self.excess.max(initial=0.0)))
            if solution.row_duals is not None:
                distance = certified_gap(self.program, solution)
                solution = replace(solution, bound=solution.objective - distance)
            else:
                distance = solution.objective - solution.bound
            gap = abs(distance) / objective_scale(self.head, np.asarray(solution.delta))
        own, m = self.head.m, self.oracle.m
        text = f"{solution.message}; {self.rounds} rounds, {self.passes} passes, {len(self.working.index)} of {m} rows"
        text = "; ".join([text, *self.notes])
        duals = {name: self.working.spread(getattr(solution, name), own, m) for name in ("row_duals", "ray")}
        took = {name: getattr(self, name) for name in ("rounds", "passes", "largest", "pass_seconds", "solve_seconds")}
        found = {"message": text, "violation": violation, "gap": gap, "attempts": ()}
        values: dict[str, Any] = {**vars(solution), **duals, **took, **found}
        return WorkingSetSolution(**values, distance=distance, working=self.working.index)

    def _solve(self, solver: Any, time_limit: float | None) -> None:
        self.program = relaxation(self.head, self.working, self.reach)
        options: Any = {"time_limit": time_limit, "checked": self.rounds > 1}  # the Hessian stays the same
        self.solution = run_solver(self.program, self._session(solver), **options)

    def _session(self, solver: Any) -> Any:
        """The back end; where it can go on from its last program, one that does so from round to round."""
        backend: Any = find_solver(self.program, solver)
        if not callable(getattr(backend, "session", None)):
            return backend
        key = solver if solver is None or isinstance(solver, str) else id(solver)
        return self.sessions.setdefault((key, backend.name), backend.session())

    def _point(self) -> Array:
        assert self.solution.delta is not None
        return self.solution.delta

    def _pass(self, delta: Array, look: Any = None) -> Array:
        started = time.perf_counter()
        found = np.asarray((look or self.oracle.violations)(delta[: self.head.n_delta]), dtype=np.float64)
        if np.isnan(found).any():
            raise ProgramError(f"working set: the violation of row {int(np.isnan(found).argmax())} is NaN.")
        self.passes += 1
        self.pass_seconds += time.perf_counter() - started
        return found

    def _bad(self) -> Index:
        bad = self.excess > self.feasibility_tol
        bad[self.working.index] = False
        return np.flatnonzero(bad)
