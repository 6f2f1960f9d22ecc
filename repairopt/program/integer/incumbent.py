"""A good choice in about a second: multipliers of the continuous program say what to free, swaps improve it.

Measured against a minute of branch and bound on generated repairs: as good up to some hundred samples, better above.
No bound comes with it; :mod:`repairopt.program.integer.mixed_integer` adds that.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from repairopt.program.program import Array, Program
from repairopt.program.rechecking import row_norms
from repairopt.program.solution import Solution, Solver

from .choice_search import ChoiceSearch, Incumbent, TimeUp
from .integer_program import Choice, IntegerProgram
from .weight_grid import Rounding

TRIED = 5  # candidates that are solved for at each place, the best by their multipliers
KEPT = 0.6  # share of the chosen items that stays where too many are chosen
KICKS = 25  # disturbances in a row that lead to nothing better, after which the search ends
RETRIES = 6  # the same for searches of the fewest items
USED = 1e-7  # share of its reach above which an item counts as used
TAKEN = 25  # of so many items in use one is chosen at a time
BETTER = 1e-9  # relative improvement that counts


def find_incumbent(
    integer: IntegerProgram, solver: str | Solver | None = None, *, time_limit: float | None = None, seed: int = 0
) -> Incumbent | None:
    """Search for a good feasible point by solving continuous programs; None where none was found, which proves nothing.

    Starts from nothing chosen and adds what the multipliers promise most; starts from everything chosen and drops what
    is used least; starts from what fractional choices use. Swaps improve each; the best is disturbed (by ``seed``) and
    improved again, until nothing helps or the time is over: the best point so far is returned. On a grid the continuous
    optimum is rounded, one weight after the other. For the fewest items, charges for use say which must be chosen.
    """
    search = _Search(integer, solver, time_limit)
    try:
        if integer.frees == "nothing":
            search.round()
        elif integer.counts:
            search.fewest(np.random.default_rng(seed))
        else:
            search.improve_starts(np.random.default_rng(seed))
    except TimeUp:
        pass
    except KeyboardInterrupt:
        found = search.best()
        if found is None:
            raise
        return replace(found, interrupted=True)
    return search.best()


class _Search(ChoiceSearch):
    """The strategies of :func:`find_incumbent`."""

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

    def improve_starts(self, draw: np.random.Generator) -> None:
        """Start from both ends and from fractions, swap, disturb the best and improve it again."""
        if not self.integer.allows(self.forced):
            return  # more items must be chosen than may be
        ends = [self.grow(self.forced.copy()), self.thin(), self.grow(self.relaxed())]
        if self.incumbent is None:
            ends.append(self.grow(self.eliminate()))
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
                for more in self.additions(fewer, without if without.found else found):
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

    def eliminate(self, draw: np.random.Generator | None = None) -> Choice:
        """A small choice: charge for the use of every item, choose what multiplier times use says, charge it no more.

        With ``draw`` the charges are disturbed.

        References:
            Chinneck, An Effective Polynomial-Time Heuristic for the Minimum-Cardinality IIS Set-Covering Problem, 1996.
        """
        integer, n = self.integer, self.integer.original.n
        ends = integer.program.m - len(integer.limits)
        program = replace(
            integer.program,
            hessian=None,
            integer=None,
            matrix=integer.program.matrix[:ends],
            lower=integer.program.lower[:ends],
            upper=integer.program.upper[:ends],
            sources=(),
        )
        links = abs(program.matrix[:, n:]).T
        price = self.charge() * (1.0 if draw is None else draw.uniform(0.5, 2.0, self.count))
        chosen = self.forced.copy()
        while True:
            gradient = np.concatenate([np.zeros(n), np.where(chosen, 0.0, price)])
            found = self.solve(replace(program, gradient=gradient))
            if found.delta is None or not found.found:
                return self.possible.copy()
            use = np.where(chosen, 0.0, found.delta[n:])
            used = int(np.sum(use > USED))
            if used == 0:
                return chosen
            weight = use * (price if found.row_duals is None else links @ np.abs(found.row_duals))
            weight = np.where(use > USED, weight + 1e-12 * use, -1.0)
            chosen[np.argsort(-weight, kind="stable")[: max(1, used // TAKEN)]] = True

    def charge(self) -> Array:
        """Price of full use of each item: how far its rows then are from holding, in lengths of the row."""
        if self.frees_weights:
            return np.ones(self.count)
        reach = np.maximum(*self.reach) / np.maximum(row_norms(self.integer.original), 1e-300)
        return np.array([reach[item].max(initial=0.0) for item in self.integer.items])

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

    def fewest(self, draw: np.random.Generator) -> None:
        """Small choices, again with disturbed charges, until that leads to nothing smaller."""
        self.at(self.possible)
        self.shrink(self.eliminate())
        idle = 0
        while self.incumbent is not None and idle < RETRIES and np.any(self.incumbent.chosen & ~self.forced):
            before = self.incumbent.objective
            self.shrink(self.eliminate(draw))
            idle = 0 if _improves(self.incumbent.objective, before) else idle + 1


def _improves(value: float, than: float) -> bool:
    return value < than - BETTER * (1.0 + abs(than))
