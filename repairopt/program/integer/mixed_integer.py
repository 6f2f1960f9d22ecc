"""Solve a mixed-integer program of a repair: a good point first, then a proven bound, and the gap between the two.

The point comes from ``incumbent.py``, bounds from continuous relaxations and from a branch-and-cut back end.
Whatever ends the search, the best point comes back with its gap.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from repairopt.errors import SolverError, SolverNotFoundError
from repairopt.program.backends import find_solver, with_options
from repairopt.program.program import Array, Program
from repairopt.program.rechecking import row_norms
from repairopt.program.solution import Solution, Solver, Status
from repairopt.program.solve_program import solve

from .choice_search import Incumbent
from .incumbent import find_incumbent
from .integer_program import Choice, IntegerProgram

SEARCH_SHARE = 0.25  # of the time limit, for the first point; seldom used up
SEARCH_SECONDS = 20.0  # for the first point where there is no time limit
VIOLATED = 1e-7  # violation of a row of length 1 above which it joins a group
VIOLATION = 1e-6  # largest of a point on a grid
NEGLIGIBLE = 1e-9  # difference of objectives that is none
SAFETY = 1e-7  # taken off bounds that a continuous solve gave, relative to 1 + |bound|


@dataclass(frozen=True, eq=False)
class IntegerSolution:
    """The best point of a mixed-integer program, and how far from optimal it can be.

    Attributes:
        status: OPTIMAL: the gap is within the tolerance. FEASIBLE: a limit was hit, or no back end could prove more.
        delta: The variables of the continuous program, ``(n,)``, or None where there is no point.
        chosen: For each item whether it was chosen; empty on a grid and where there is no point.
        objective: What was minimized, at ``delta``; NaN where there is no point.
        bound: Proven lower bound on it, in floating-point arithmetic; ``-inf`` where nothing was proven.
        gap: ``objective - bound`` over ``|objective|``, or that of no change where it is larger; NaN without a point.
        solver: Where the point came from: ``"incumbent"`` or the name of the back end.
    """

    status: Status
    delta: Array | None = None
    chosen: Choice = field(default_factory=lambda: np.zeros(0, dtype=bool))
    objective: float = float("nan")
    bound: float = -float("inf")
    gap: float = float("nan")
    solver: str = ""
    seconds: float = 0.0
    message: str = ""
    interrupted: bool = False


def solve_integer(
    integer: IntegerProgram,
    solver: str | Solver | None = None,
    *,
    time_limit: float | None = 60.0,
    gap_tol: float = 1e-3,
    seed: int = 0,
) -> IntegerSolution:
    """Find a good point, then prove how good it is and improve it.

    A back end with a field ``start`` gets the point to start from, one with ``gap_tol`` the relative gap at which the
    program counts as solved; an instance keeps a gap of its own. Where none is installed for the kind, the point comes
    back with the gap that the relaxations prove. ``time_limit`` is for everything; ``seed`` for the search for the
    first point.

    Raises:
        SolverNotFoundError: The named back end is not there.
        UnsupportedError: The named back end cannot take the program.
    """
    started = time.perf_counter()
    search = SEARCH_SECONDS if time_limit is None else SEARCH_SHARE * time_limit
    if solver is not None:
        find_solver(integer.program, solver)  # what is wrong with the choice is said before anything runs
    found = find_incumbent(integer, time_limit=search, seed=seed)
    best = _Best(integer, found, started, time_limit)
    if found is not None and found.interrupted:
        return replace(best.solution(Status.FEASIBLE, "interrupted"), interrupted=True)
    best.raise_bound(relaxation_bound(integer, time_limit=_left(time_limit, started)))
    if best.gap() > gap_tol:
        best.raise_bound(groups_bound(integer, time_limit=search))
    if best.gap() <= gap_tol:
        return best.solution(Status.OPTIMAL, "")
    left = _left(time_limit, started, 0.0)
    if left == 0.0:  # a back end reads a large program for seconds before it looks at a limit
        return best.solution(Status.FEASIBLE if found else Status.NO_POINT, "time limit")
    try:
        answer = _branched(best, solver, gap_tol, left)
    except SolverNotFoundError as error:
        return best.solution(Status.FEASIBLE if found else Status.NO_POINT, str(error))
    if answer.status in (Status.INFEASIBLE, Status.UNBOUNDED) and best.point is None:
        return best.solution(answer.status, answer.message)
    best.take(answer)
    if best.point is None:
        status = answer.status if not answer.found else Status.NO_POINT
    else:
        status = Status.OPTIMAL if best.gap() <= gap_tol * (1 + 1e-6) else Status.FEASIBLE
    return replace(best.solution(status, answer.message), interrupted=answer.interrupted)


def _branched(best: _Best, solver: str | Solver | None, gap_tol: float, time_limit: float | None) -> Solution:
    """What a branch-and-cut back end says."""
    offset, point = best.offset(), best.point
    program = replace(best.integer.program, constant=best.integer.program.constant + offset)
    share = gap_tol
    if point is not None:
        share *= min(1.0, best.scale(point.objective) / max(NEGLIGIBLE, abs(point.objective + offset)))
    start = None if point is None else best.integer.lift(point.delta, point.chosen)
    backend: Any = find_solver(program, solver)
    default = getattr(type(backend), "gap_tol", None)
    own = getattr(backend, "gap_tol", None) != default  # an instance keeps its own gap
    backend = with_options(backend, start=start, gap_tol=None if own else share)
    try:
        answer = solve(program, backend, time_limit=time_limit, prove=False)
    except SolverError as error:
        return Solution(Status.FAILED, message=str(error))
    return replace(answer, objective=answer.objective - offset, bound=answer.bound - offset)


class _Best:
    """The best point and the best bound so far."""

    def __init__(
        self, integer: IntegerProgram, point: Incumbent | None, started: float, time_limit: float | None = None
    ) -> None:
        self.integer, self.point, self.started, self.time_limit = integer, point, started, time_limit
        self.bound, self.solver = -float("inf"), "incumbent" if point else ""

    def raise_bound(self, bound: float) -> None:
        """Take a proven bound; a number of items is rounded up."""
        if np.isfinite(bound):
            self.bound = max(self.bound, float(np.ceil(bound - 1e-6)) if self.integer.counts else bound)

    def gap(self) -> float:
        """Relative distance of point and bound, infinite without a point."""
        if self.point is None:
            return float("inf")
        away = self.point.objective - self.bound
        return away / self.scale(self.point.objective) if away > NEGLIGIBLE else 0.0

    def scale(self, value: float) -> float:
        """What a gap is relative to: a share of next to nothing would never be proven."""
        unchanged = 0.0 if self.integer.counts else abs(self.integer.original.constant)
        return max(abs(value), unchanged, NEGLIGIBLE)

    def offset(self) -> float:
        """Added to the objective for the back end, whose own relative gap must not be one of next to nothing."""
        unchanged = 0.0 if self.integer.counts else abs(self.integer.original.constant)
        return unchanged if self.bound > -0.5 * unchanged else 0.0

    def take(self, answer: Solution) -> None:
        """Take point and bound of a back end; the point is solved anew with its choice fixed, which makes it exact."""
        point = self._exact(answer.delta) if answer.found and answer.delta is not None else None
        if point is not None and (self.point is None or point.objective < self.point.objective):
            self.point, self.solver = point, answer.solver
        if answer.found:
            known = np.isfinite(answer.bound)
            self.raise_bound(answer.bound if known or answer.status is not Status.OPTIMAL else answer.objective)

    def _exact(self, answer: Array) -> Incumbent | None:
        delta, chosen = self.integer.recover(answer)
        if self.integer.unit is not None:
            good = self.integer.original.violation(delta) <= VIOLATION
            return Incumbent(delta, chosen, self.integer.objective(delta, chosen)) if good else None
        found = _solved(self.integer.restricted(chosen), _left(self.time_limit, self.started, 1.0))
        if found.delta is None or not found.found or not self.integer.allows(chosen):
            return None
        delta = self.integer.cleaned(found.delta, chosen)
        return Incumbent(delta, chosen, self.integer.objective(delta, chosen))

    def solution(self, status: Status, message: str) -> IntegerSolution:
        """Everything together."""
        seconds = time.perf_counter() - self.started
        if self.point is None:
            return IntegerSolution(status, bound=self.bound, seconds=seconds, message=message)
        return IntegerSolution(
            status=status,
            delta=self.point.delta,
            chosen=self.point.chosen,
            objective=self.point.objective,
            bound=min(self.bound, self.point.objective),
            gap=self.gap(),
            solver=self.solver,
            seconds=seconds,
            message=message,
        )


def _left(time_limit: float | None, started: float, least: float = 0.1) -> float | None:
    """Seconds left of a limit, at least so many."""
    return None if time_limit is None else max(least, time_limit - (time.perf_counter() - started))


def relaxation_bound(integer: IntegerProgram, *, time_limit: float | None = None) -> float:
    """Bound from the program with fractional choices; ``-inf`` where it has none, or no time for it, ``inf`` never."""
    found = _solved(replace(integer.program, integer=None), time_limit)
    return _safe(found.objective) if found.status is Status.OPTIMAL else -float("inf")


def groups_bound(integer: IntegerProgram, *, time_limit: float | None = None) -> float:
    """Bound for "at most C samples break": of C + 1 groups without common samples, at least one breaks in no sample.

    So the least of the optima with the rows of one group alone is a bound. Samples go one by one to the group with the
    least optimum: the one that it violates most. Far better than fractional choices where the box is wide (measured).
    ``-inf`` for programs without one limit for all samples.
    """
    if integer.frees != "rows" or integer.counts or len(integer.limits) != 1 or not integer.items:
        return -float("inf")
    started = time.perf_counter()
    groups = _Groups(integer, lambda: _left(time_limit, started))
    while (time_limit is None or time.perf_counter() < started + time_limit) and groups.strengthen():
        pass
    return _safe(min(groups.values))


class _Groups:
    """Disjoint groups of samples, and the optimum with the rows of each; ``left`` says how many seconds there are."""

    def __init__(self, integer: IntegerProgram, left: Callable[[], float | None]) -> None:
        self.integer, self.left, original = integer, left, integer.original
        owned = np.zeros(original.m, dtype=bool)
        owned[np.concatenate(integer.items)] = True
        self.hard = np.flatnonzero(~owned)
        self.length = np.maximum(row_norms(original), 1e-150)
        self.free = set(range(len(integer.items)))
        count = integer.limits[0][1] + 1
        self.rows = [self.hard] * count
        first, value = self._optimum(self.hard)
        self.points, self.values = [first] * count, [value] * count

    def strengthen(self) -> bool:
        """Give the weakest group one more sample; False where that helps no more."""
        weakest = int(np.argmin(self.values))
        point, original = self.points[weakest], self.integer.original
        if point is None:
            return False
        values = original.matrix @ point
        lack = np.maximum(original.lower - values, values - original.upper) / self.length
        free = np.array(sorted(self.free), dtype=np.int64)
        worst = np.array([lack[self.integer.items[i]].max(initial=-np.inf) for i in free])
        if not len(free) or worst.max() <= VIOLATED:
            return False
        item = int(free[np.argmax(worst)])
        self.free.remove(item)
        self.rows[weakest] = np.concatenate([self.rows[weakest], self.integer.items[item]])
        self.points[weakest], self.values[weakest] = self._optimum(self.rows[weakest])
        return True

    def _optimum(self, rows: Any) -> tuple[Array | None, float]:
        original = self.integer.original
        sides = {"lower": original.lower[rows], "upper": original.upper[rows]}
        found = _solved(replace(original, matrix=original.matrix[rows], sources=(), **sides), self.left())
        if found.status is Status.INFEASIBLE:
            return None, float("inf")
        return (found.delta, found.objective) if found.status is Status.OPTIMAL else (None, -float("inf"))


def _solved(program: Program, time_limit: float | None) -> Solution:
    try:
        return solve(program, time_limit=time_limit, prove=False)
    except SolverError as error:
        return Solution(Status.FAILED, message=str(error))


def _safe(bound: float) -> float:
    return bound - SAFETY * (1.0 + abs(bound)) if np.isfinite(bound) else -float("inf")
