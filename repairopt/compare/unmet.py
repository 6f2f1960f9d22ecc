"""When a bound cannot be met: which named bounds conflict, how near one can come, and whether that is proved.

Bounds are dropped one at a time and the repair is tried without; what is left when no more can be dropped conflicts.
Then sets of fewer bounds are tried, for as many repairs as are allowed. A repair that fails is no proof. Where all
changed weights are in the last layer and what is left constrains samples one by one, all of it is a linear program in
the weights, and a certificate of Farkas proves that no change whatsoever meets it, with leads of 1e-5 and more; the
larger leads that repairs aim at are no part of what is proved.

References:
    Chinneck, Feasibility and infeasibility in optimization, 2008, chapter 6, for the deletion filter.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, is_dataclass, replace
from itertools import combinations
from typing import Any

import numpy as np
from torch import nn

from repairopt.errors import ProgramError, SpecificationError, public
from repairopt.localize import wants_factors
from repairopt.methods import SQP, Method, find_method, with_rows_of_goal
from repairopt.network import Stop
from repairopt.pipeline import DEFAULTS, Settings, prepare_repair, solve_repair, unless_interrupted, without_former
from repairopt.program import Conflict, Program, explain_conflict, stack_rows
from repairopt.report import Repair, Verdict
from repairopt.specify import CallableProperty, ChangeConstraint, Specification, is_strict
from repairopt.surrogate import linearize

from .shared_limit import TIME_LIMIT, SharedLimit

LEAST_LEAD = 1e-5  # of what rows of a proof ask: holding counts, not the lead that a repair aims at
RUNS = 3  # repairs of a call, beside one for each constraint, at least
MOST_ENTRIES = 20_000_000  # of the rows of a proof


@dataclass(frozen=True, eq=False)
class Unmet:
    """Why a repair falls short.

    Attributes:
        conflict: Names of the goal and the constraints that cannot be met together; without any one of them the others
            can. Without the goal where constraints are in conflict among themselves. Empty where all were met after
            all.
        smallest: Whether every set of fewer constraints can be met; else not all of these were tried.
        closest: The value of the goal at the end of the repair with all constraints; before it, where one broke.
        target: What the goal had to reach.
        proof: Rows in conflict with a certificate that was checked, or None.
        repair: The repair that came closest.
        stopped: ``"time limit"`` where a repair ended at its share of the time, or was not begun.
    """

    conflict: tuple[str, ...]
    closest: float
    target: float
    proof: Conflict | None
    repair: Repair
    smallest: bool = True
    stopped: str = ""

    @property
    def proved(self) -> bool:
        """Whether no change of the chosen weights can meet the bounds; else none was found."""
        return self.proof is not None

    def __str__(self) -> str:
        if not self.conflict:
            return f"All bounds are met: {self.closest:.4g} against {self.target:.4g}."
        names = " and ".join(repr(name) for name in self.conflict)
        single = len(self.conflict) == 1
        how = "cannot be met" if self.proved else "was not met" if single else "were not met"
        together = "by itself" if single else "together"
        text = f"{names} {how} {together} with these weights; closest value of the goal: {self.closest:.4g}, "
        text += f"target {self.target:.4g}. "
        if self.stopped:
            text += f"Stopped early ({self.stopped}): with more time, some of these may be met. "
        elif not self.smallest:
            text += "There may be a smaller set in conflict; most_tries= looks for one longer. "
        if self.proof is not None:
            return text + f"Proved: {self.proof}"
        return text + "This is not proved: another method, start or other weights may do better."


@public
def explain_unmet(
    model: nn.Module,
    goal: Any,
    constraints: Any = (),
    *,
    most_tries: int = 20,
    method: str | Method | None = None,
    settings: Settings = DEFAULTS,
    **options: Any,
) -> Unmet:
    """Find the smallest set of named bounds that a repair cannot meet together.

    Args:
        model: As for :func:`repairopt.solve_repair`.
        goal: As there.
        constraints: As there.
        most_tries: Repairs that may be run to look for a smaller set, once none of the bounds can be left out.
        method: As there; None for SQP without buffers for new data.
        settings: As there; the time limit is that of the whole call, whose repairs share what is left.
        **options: ``data``, ``held_out``, ``weights`` and former keywords. With ``weights="auto"`` all tries use the
            weights of the first.

    Raises:
        SpecificationError: Two constraints have the same name; ``most_tries`` is no whole number.
    """
    if isinstance(most_tries, bool) or not isinstance(most_tries, int) or most_tries < 0:
        raise SpecificationError(f"most_tries={most_tries!r}: expected a whole number, 0 or more.")
    items = list(constraints) if isinstance(constraints, list | tuple) else [constraints]
    names = [getattr(item, "name", type(item).__name__) for item in items]
    if repeated := sorted(name for name in names if names.count(name) > 1):
        raise SpecificationError(f"constraints: two are called '{repeated[0]}'; give each a name= of its own.")
    given = (model, goal, constraints, SQP(confidence=None) if method is None else method, settings)
    model, goal, _, chosen, settings, options = without_former(*given, options)
    goal = Specification(goal, tuple(items)).goal
    options |= {"method": find_method(chosen)}
    limit, shared, runs = float(goal.target), SharedLimit(settings), iter(range(RUNS + len(items), 0, -1))

    def tried(aim: Any, bounds: Sequence[Any], *, needed: bool = False) -> Repair:
        def repair(settings: Settings) -> Repair:
            return solve_repair(model, aim, bounds, settings=settings, **options)

        return unless_interrupted(shared.run(repair, max(2, next(runs, 2)), needed=needed))

    first = tried(goal, items, needed=True)
    if _met(first):
        return Unmet((), _value(first), limit, None, first)
    if not wants_factors(options.get("weights")):
        options["weights"] = first.report.location
    left, smallest, among_themselves, kept = list(range(len(items))), False, False, goal

    def met(chosen: Sequence[int]) -> bool:
        fine = _held if among_themselves else _met
        return _possible(tried(kept, [items[i] for i in chosen]), fine)

    with contextlib.suppress(Stop):
        idle = _met_by_any(goal, first)
        among_themselves = bool(items) and not _possible(tried(idle, items), _held)
        kept = idle if among_themselves else goal
        if not among_themselves and not _possible(tried(goal, ()), _met):
            left = []  # the goal alone is out of reach
        for k in list(left):
            without = [i for i in left if i != k]
            if not met(without):
                left = without
        left, smallest = _fewest(met, len(items), left, most_tries)
    proof = _prove(model, kept, [items[i] for i in left], options | {"settings": settings}, shared.left)
    conflict = (*(() if among_themselves else (goal.name,)), *(names[i] for i in left))
    if proof is not None:
        conflict = tuple(name for name in conflict if name in proof.constraints)
    return Unmet(conflict, _value(first), limit, proof, first, smallest, shared.stopped)


def _fewest(
    met: Callable[[Sequence[int]], bool], count: int, found: list[int], most_tries: int
) -> tuple[list[int], bool]:
    """The first of the smaller sets, by size, that cannot be met, else the one found; whether none is smaller."""
    tries = 0
    for size in range(1, len(found)):
        for chosen in combinations(range(count), size):
            if set(chosen) < set(found):
                continue  # a part of what no bound can be left out of
            if tries == most_tries:
                return found, False
            tries += 1
            if not met(chosen):
                return list(chosen), True
    return found, True


def _met_by_any(goal: Any, repair: Repair) -> Any:
    """The goal with a target that no network misses, to see what the constraints ask for by themselves."""
    seen = max(abs(repair.report.verification.goal_before), abs(float(goal.target)))
    target = 1.0 if getattr(goal, "is_share", False) else 1e3 * (1.0 + seen)
    if is_dataclass(type(goal)):
        return replace(goal, target=target)
    return CallableProperty(goal.value, target, goal.name)


def _met(repair: Repair) -> bool:
    return repair.report.verdict is Verdict.REPAIRED


def _possible(repair: Repair, fine: Callable[[Repair], bool]) -> bool:
    """Whether all is well, or might be with more time: of what the time limit ended nobody says that it cannot be."""
    return fine(repair) or repair.report.stopped == TIME_LIMIT


def _held(repair: Repair) -> bool:
    """Whether all constraints hold, whatever the goal does; a constant network, which is no repair, may hold them."""
    return all(check.holds or check.soft for check in repair.report.verification.checks if not check.held_out)


def _value(repair: Repair) -> float:
    goal = repair.report.verification.measures[0]
    return float(goal.after if _held(repair) else goal.before)


def _prove(
    model: nn.Module, goal: Any, constraints: Sequence[Any], options: dict[str, Any], seconds: float | None
) -> Conflict | None:
    """A certified conflict of rows; None where the outputs are not affine in the weights, or the bounds are counts.

    None too where no ``seconds`` are left.
    """
    if seconds == 0:
        return None
    rows_only = [one for one in constraints if is_strict(one)]
    on_change = [one for one in constraints if isinstance(one, ChangeConstraint)]
    own = {key: value for key, value in options.items() if key != "held_out"}
    task = with_rows_of_goal(prepare_repair(model, Specification(goal, (*rows_only, *on_change)), **own).task)
    if not task.constraints:
        return None
    least = tuple(np.minimum(required, LEAST_LEAD) for required in task.required)
    lin = linearize(task.engine, task.constraints, required=least)
    if not lin.engine.exact:
        return None
    every = {c: np.arange(len(margins)) for c, margins in enumerate(lin.margins)}
    rows = lin.rows(every)
    rows = stack_rows(replace(rows, price=np.full(len(rows), np.inf)), task.change_rows(np.zeros(task.engine.n)))
    if rows.matrix.shape[0] * rows.matrix.shape[1] > MOST_ENTRIES:
        return None
    low, high = task.box(np.zeros(task.engine.n), np.inf)
    sides: Any = {"lower": rows.lower, "upper": rows.upper, "delta_lower": low, "delta_upper": high}
    program = Program(np.zeros(task.engine.n), matrix=rows.matrix, sources=rows.sources, **sides)
    try:
        return explain_conflict(program, time_limit=seconds)
    except ProgramError:
        return None
