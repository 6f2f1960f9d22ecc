"""A good choice in about a second: multipliers of the continuous program say what to free, swaps improve it.

Measured against a minute of branch and bound on generated repairs: as good up to some hundred samples, better above.
No bound comes with it; :mod:`repairopt.mixed_integer` adds that.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, replace

import numpy as np

from .errors import SolverError
from .integer_program import Choice, IntegerProgram, row_range
from .program import Array, Kind, Program
from .solve import Solution, Solver, Status, find_solver, solve
from .weight_grid import Rounding

TRIED = 5  # candidates that are solved for at each place, the best by their multipliers
KEPT = 0.6  # share of the chosen items that stays where too many are chosen
KICKS = 25  # disturbances in a row that lead to nothing better, after which the search ends
ROUNDS = 4  # weighted linear programs that look for a small choice
MANY_ROWS = 100  # above which a program is solved with the rows that matter
JOINING = 20  # violated rows that join them in a round
VIOLATED = 1e-9  # violation above which a row joins
BETTER = 1e-9  # relative improvement that counts


@dataclass(frozen=True, eq=False)
class Incumbent:
    """A feasible point of a mixed-integer program.

    Attributes:
        delta: The variables of ``original``.
        chosen: For each item whether it is chosen.
        objective: What the program minimizes, there.
        seconds: Wall time of the search.
        solves: Continuous programs solved for it.
    """

    delta: Array
    chosen: Choice
    objective: float
    seconds: float = 0.0
    solves: int = 0


def find_incumbent(
    integer: IntegerProgram, solver: str | Solver | None = None, *, time_limit: float | None = None, seed: int = 0
) -> Incumbent | None:
    """Search for a good feasible point by solving continuous programs.

    Starts from nothing chosen and adds what the multipliers promise most; starts from everything chosen and drops what
    is used least; where both fail, weighted linear programs look for a small choice. The better is improved by swaps,
    then disturbed and improved again, until nothing helps or the time is over. On a grid the continuous optimum is
    rounded, one weight after the other.

    Args:
        integer: From :mod:`repairopt.integer_program`.
        solver: Back end for the continuous programs; None chooses one by size.
        time_limit: Seconds; the best point so far is returned.
        seed: For the disturbances.

    Returns:
        The best point found, or None where none was found, which proves nothing.
    """
    search = _Search(integer, solver, time_limit)
    try:
        if integer.frees == "nothing":
            search.round()
        elif integer.counts:
            search.shrink(search.small())
        else:
            search.improve_starts(np.random.default_rng(seed))
    except _TimeUp:
        pass
    return search.best()


class _TimeUp(Exception):
    """The time limit has passed; the best point is kept."""


class _Search:
    """One search: solves restricted programs, each once, and remembers the best feasible one."""

    def __init__(self, integer: IntegerProgram, solver: str | Solver | None, time_limit: float | None) -> None:
        self.integer, self.solver, self.count = integer, solver, len(integer.items)
        self.started, self.solves = time.perf_counter(), 0
        self.deadline = None if time_limit is None else self.started + time_limit
        self.known: dict[bytes, Solution] = {}
        self.backends: dict[tuple[Kind, int], Solver] = {}
        self.working = np.zeros(integer.original.m, dtype=bool)
        self.incumbent: Incumbent | None = None
        low, high = integer.program.bounds()
        self.forced, self.possible = (side[integer.original.n :] > 0.5 for side in (low, high))
        self.reach = _reach(integer)

    def best(self) -> Incumbent | None:
        """The best feasible point so far, with what it cost."""
        if self.incumbent is None:
            return None
        return replace(self.incumbent, seconds=time.perf_counter() - self.started, solves=self.solves)

    # ---------------------------------------------------------------- solving

    def solve(self, program: Program) -> Solution:
        """A continuous program, within the time left; a back end that fails yields a failed solution."""
        left = None if self.deadline is None else self.deadline - time.perf_counter()
        if left is not None and left <= 0:
            raise _TimeUp
        self.solves += 1
        like = (program.kind, program.n)
        if like not in self.backends:
            self.backends[like] = find_solver(program, self.solver)
        try:
            return solve(program, self.backends[like], time_limit=left)
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

    def round(self) -> None:
        """Points on a grid."""
        rounding = Rounding(self.integer, self.point)
        try:
            rounding.run()
        finally:
            if rounding.best is not None:
                self.offer(*self.integer.recover(rounding.best[1]))

    def point(self, program: Program) -> Array | None:
        """The optimum of a continuous program, or None."""
        found = self.solve(program)
        return found.delta if found.found else None

    # ---------------------------------------------------------------- few changes, few broken

    def improve_starts(self, draw: np.random.Generator) -> None:
        """Start from both ends, improve the better end, disturb it and improve again."""
        ends = [self.grow(self.forced.copy()), self.thin(), self.grow(self.relaxed())]
        if self.incumbent is None:
            ends.append(self.grow(self.small()))
        for end in ends:
            if end is not None:
                self.swap(end)
        idle = 0
        while self.incumbent is not None and idle < KICKS:
            before, chosen = self.incumbent.objective, self.incumbent.chosen.copy()
            movable = np.flatnonzero(chosen & ~self.forced)
            if len(movable) < 2:
                return
            chosen[draw.choice(movable, size=max(2, len(movable) // 3), replace=False)] = False
            end = self.grow(chosen, draw)
            if end is not None:
                self.swap(end)
            idle = 0 if _improves(self.incumbent.objective, before) else idle + 1

    def grow(self, chosen: Choice, draw: np.random.Generator | None = None) -> Choice | None:
        """Add the item that helps most, of those that the multipliers promise most, while any is allowed."""
        found = self.at(chosen)
        if not found.found or not self.integer.allows(chosen):
            return None
        while True:
            trials = [(self.at(more), more) for more in self.additions(chosen, found, draw)]
            trials = [(one, more) for one, more in trials if one.found and _improves(one.objective, found.objective)]
            if not trials:
                return chosen
            found, chosen = min(trials, key=lambda pair: pair[0].objective)

    def additions(self, chosen: Choice, found: Solution, draw: np.random.Generator | None = None) -> list[Choice]:
        """The choices with one item more that promise most."""
        gain = self.gain(found)
        if draw is not None:
            gain = gain * draw.uniform(0.5, 1.0, len(gain))
        gain[chosen | ~self.possible] = 0.0
        trials: list[Choice] = []
        for i in np.argsort(-gain, kind="stable")[: np.count_nonzero(gain)]:
            more = chosen.copy()
            more[i] = True
            if self.integer.allows(more):
                trials.append(more)
            if len(trials) == TRIED:
                break
        return trials

    def thin(self) -> Choice | None:
        """From everything chosen, drop what is used least until the limits hold."""
        chosen = self.possible.copy()
        while True:
            found = self.at(chosen)
            if not found.found or found.delta is None:
                return None
            if self.integer.allows(chosen):
                return self.grow(chosen)
            use = self.use(found.delta)
            use[self.forced] = np.inf
            for items, most in self.integer.limits:
                own = items[chosen[items]]
                keep = max(most, int(KEPT * len(own)))
                chosen[own[np.argsort(-use[own], kind="stable")[keep:]]] = False

    def swap(self, chosen: Choice) -> None:
        """Exchange one chosen item for another while that improves."""
        improved = True
        while improved:
            improved, found = False, self.at(chosen)
            assert found.delta is not None
            use = self.use(found.delta)
            movable = np.flatnonzero(chosen & ~self.forced)
            best, chosen_best = found.objective, chosen
            for out in movable[np.argsort(use[movable], kind="stable")]:
                fewer = chosen.copy()
                fewer[out] = False
                without = self.at(fewer)
                for more in self.additions(fewer, without) if without.found else ():
                    trial = self.at(more)
                    if trial.found and _improves(trial.objective, best):
                        best, chosen_best, improved = trial.objective, more, True
            chosen = chosen_best

    def relaxed(self) -> Choice:
        """The items that the program with fractional choices uses most, as many as allowed."""
        found = self.solve(replace(self.integer.program, integer=None))
        chosen = self.forced.copy()
        if found.delta is None or not found.found:
            return chosen
        share = found.delta[self.integer.original.n :]
        for i in np.argsort(-share, kind="stable"):
            more = chosen.copy()
            more[i] = True
            if share[i] > 1e-6 and self.integer.allows(more):
                chosen = more
        return chosen

    def gain(self, found: Solution) -> Array:
        """What freeing each item promises: multiplier times reach, summed over its rows or weights."""
        weights = self.integer.frees == "weights"
        duals = found.bound_duals if weights else found.row_duals
        if duals is None:
            return np.ones(self.count)
        low, high = self.reach
        return self.summed(np.where(duals > 0, duals * high, -duals * low))

    def use(self, delta: Array) -> Array:
        """How far each item uses its freedom, as a share of its reach."""
        low, high = self.reach
        original = self.integer.original
        if self.integer.frees == "weights":
            over, under = np.maximum(delta, 0.0), np.maximum(-delta, 0.0)
        else:
            rows = original.matrix @ delta
            over, under = np.maximum(rows - original.upper, 0.0), np.maximum(original.lower - rows, 0.0)
        return self.summed(over / np.maximum(high, 1e-300) + under / np.maximum(low, 1e-300))

    def summed(self, values: Array) -> Array:
        """One number for each item, from those of its rows or weights."""
        return np.array([values[item].sum() for item in self.integer.items])

    # ---------------------------------------------------------------- a small choice

    def small(self) -> Choice:
        """A choice of few items, by linear programs that charge for each, ever less for those in use."""
        program, n = self.integer.program, self.integer.original.n
        lower, upper = program.lower.copy(), program.upper.copy()
        ends = program.m - len(self.integer.limits)
        lower[ends:], upper[ends:] = -np.inf, np.inf
        price, chosen = np.ones(self.count), self.possible.copy()
        for _ in range(ROUNDS):
            gradient = np.concatenate([np.zeros(n), price])
            found = self.solve(
                replace(program, gradient=gradient, hessian=None, integer=None, lower=lower, upper=upper)
            )
            if found.delta is None or not found.found:
                break
            switches = found.delta[n:]
            trial = (switches > 1e-7) | self.forced
            if trial.sum() < chosen.sum():
                chosen = trial
                self.at(chosen)
            price = 1.0 / (switches + 0.01)
        return chosen

    def shrink(self, chosen: Choice) -> None:
        """Drop items one by one, those used least first, as long as a point remains."""
        found = self.at(chosen)
        if found.delta is None or not found.found:
            return
        use = self.use(found.delta)
        for i in np.argsort(use, kind="stable"):
            if chosen[i] and not self.forced[i]:
                fewer = chosen.copy()
                fewer[i] = False
                if self.at(fewer).found:
                    chosen = fewer


def _improves(value: float, than: float) -> bool:
    return value < than - BETTER * (1.0 + abs(than))


def _reach(integer: IntegerProgram) -> tuple[Array, Array]:
    """How far each weight, or each side of each row, may go once freed; 0 where that is without limit."""
    original = integer.original
    if integer.frees == "weights":
        sides = [np.abs(side) for side in original.bounds()]
    else:
        least, greatest = row_range(original)
        sides = [np.maximum(0.0, original.lower - least), np.maximum(0.0, greatest - original.upper)]
    low, high = (np.where(np.isfinite(side), side, 0.0) for side in sides)
    return low, high
