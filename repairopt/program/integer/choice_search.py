"""Solve what choices leave of a mixed-integer program, each once, and remember the best feasible point."""

from __future__ import annotations

import time
from dataclasses import dataclass, replace

import numpy as np

from repairopt.errors import SolverError
from repairopt.program.attempt import run_solver
from repairopt.program.backends import find_solver
from repairopt.program.program import Array, Kind, Program
from repairopt.program.solution import Solution, Solver, Status

from .integer_program import Choice, IntegerProgram, row_excess

MANY_ROWS = 100  # above which a program is solved with the rows that matter
JOINING = 20  # violated rows that join them in a round
VIOLATED = 1e-9  # violation above which a row joins


@dataclass(frozen=True, eq=False)
class Incumbent:
    """A feasible point of a mixed-integer program: the variables of ``original``, the choice, and what it cost.

    ``solves`` counts continuous programs; ``interrupted`` says whether Ctrl-C ended the search.
    """

    delta: Array
    chosen: Choice
    objective: float
    seconds: float = 0.0
    solves: int = 0
    interrupted: bool = False


class TimeUp(Exception):
    """The time limit has passed; the best point is kept."""


class ChoiceSearch:
    """One search: solves restricted programs, each once, and remembers the best feasible one."""

    def __init__(self, integer: IntegerProgram, solver: str | Solver | None, time_limit: float | None) -> None:
        self.integer, self.solver, self.count = integer, solver, len(integer.items)
        self.frees_weights = integer.frees == "weights"
        self.started, self.solves = time.perf_counter(), 0
        self.deadline = None if time_limit is None else self.started + time_limit
        self.known: dict[bytes, Solution] = {}
        self.backends: dict[tuple[Kind, int], Solver] = {}
        self.working = np.zeros(integer.original.m, dtype=bool)
        self.incumbent: Incumbent | None = None
        low, high = integer.program.bounds()
        self.forced, self.possible = (side[integer.original.n :] > 0.5 for side in (low, high))
        sides = tuple(map(np.abs, integer.original.bounds())) if self.frees_weights else row_excess(integer.original)
        # How far each weight, or each side of each row, may go once freed; 0 where that is without limit:
        self.reach = tuple(np.where(np.isfinite(side), side, 0.0) for side in sides)

    def best(self) -> Incumbent | None:
        """The best feasible point so far, with what it cost."""
        if self.incumbent is None:
            return None
        return replace(self.incumbent, seconds=time.perf_counter() - self.started, solves=self.solves)

    def solve(self, program: Program) -> Solution:
        """A continuous program, within the time left; a back end that fails yields a failed solution."""
        left = None if self.deadline is None else self.deadline - time.perf_counter()
        if left is not None and left <= 0:
            raise TimeUp
        self.solves += 1
        like = (program.kind, program.n)
        if like not in self.backends:
            self.backends[like] = find_solver(program, self.solver)
        try:
            return run_solver(program, self.backends[like], time_limit=left)
        except SolverError as error:
            return Solution(Status.FAILED, message=str(error))

    def solve_by_rows(self, program: Program) -> Solution:
        """The same with the rows that mattered in some solve before; those that the point violates join them."""
        if program.m <= MANY_ROWS or hasattr(program.matrix, "tocsr"):
            return self.solve(program)
        while True:
            index = np.flatnonzero(self.working)
            sides = (program.lower[index], program.upper[index])
            part = replace(program, matrix=program.matrix[index], lower=sides[0], upper=sides[1], sources=())
            found = self.solve(part)
            if found.delta is None or not found.found:
                return found if found.status is Status.INFEASIBLE else self.solve(program)
            values = program.matrix @ found.delta
            lack = np.maximum(program.lower - values, values - program.upper)
            lack[index] = 0.0
            worst = np.argsort(-lack, kind="stable")[:JOINING]
            worst = worst[lack[worst] > VIOLATED]
            if not len(worst):
                duals = np.zeros(program.m)
                duals[index] = 0.0 if found.row_duals is None else found.row_duals
                return replace(found, row_duals=None if found.row_duals is None else duals)
            self.working[worst] = True

    def at(self, chosen: Choice) -> Solution:
        """The best point of a choice; remembered where the choice is allowed."""
        key = np.packbits(chosen).tobytes()
        if key not in self.known:
            found = self.known[key] = self.solve_by_rows(self.integer.restricted(chosen))
            if found.found and found.delta is not None and self.integer.allows(chosen):
                self.offer(self.integer.cleaned(found.delta, chosen), chosen)
        return self.known[key]

    def offer(self, delta: Array, chosen: Choice) -> None:
        """Keep a feasible point where it is the best."""
        value = self.integer.objective(delta, chosen)
        if self.incumbent is None or value < self.incumbent.objective:
            self.incumbent = Incumbent(delta, chosen.copy(), value)

    def gain(self, found: Solution) -> Array:
        """What freeing each item promises: multiplier times reach, summed over its rows or weights."""
        duals = found.bound_duals if self.frees_weights else found.row_duals
        if duals is None:
            return np.ones(self.count)
        low, high = self.reach
        return self.summed(np.where(duals > 0, duals * high, -duals * low))

    def use(self, delta: Array) -> Array:
        """How far each item uses its freedom, as a share of its reach."""
        low, high = self.reach
        original = self.integer.original
        if self.frees_weights:
            over, under = np.maximum(delta, 0.0), np.maximum(-delta, 0.0)
        else:
            rows = original.matrix @ delta
            over, under = np.maximum(rows - original.upper, 0.0), np.maximum(original.lower - rows, 0.0)
        return self.summed(over / np.maximum(high, 1e-300) + under / np.maximum(low, 1e-300))

    def summed(self, values: Array) -> Array:
        """One number for each item, from those of its rows or weights."""
        return np.array([values[item].sum() for item in self.integer.items])
