"""Buffers that make typed bounds hold on new data, set by cross-validation.

The repair is run on all rows with buffers of the size of the sampling error, and on all but each fold in turn. The
answers of the network that has not seen a row give every bound a value and an interval as on new data, with all rows
counted. Where the upper end lies above the typed bound, the buffer grows by as much and the runs go on from where they
were; that of the goal only where no bound is missed.

With many weights a count of wrong points can be driven down point by point, each right by a hair, which says nothing of
new points (measured: 2 flips among the kept images, 1 % among others). There the buffer is a lead in logits that points
need to count as right, and it is the lead that grows.

Where the interval of a gap alone takes more of its bound than is to spare, no buffer helps. Chance moves rates near 0
or 1 less than those near one half, so the rounds run again with a bound on the interval's width, and that end is taken
where it costs little (measured: the gap between two sets of drawn inputs within 0.02 on 18 of 20 divisions, not 12).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from repairopt.methods.outcome import Outcome
from repairopt.methods.subtask import task_on
from repairopt.methods.task import Task
from repairopt.network import Engine, Remembering
from repairopt.program import Array
from repairopt.specify import (
    Folds,
    GroupRates,
    Restrictable,
    SampleShare,
    Statistical,
    normal_quantile,
    stands_for_population,
)
from repairopt.verify import Claim, Stop, make_claim

from .filter import MET
from .interval_width import WidthLimit, below_half, spread
from .limits import Limit
from .nonlinear_program import NonlinearProgram

ROUNDS = 4  # of enlarging buffers
MOST = 0.9  # share of a bound that its buffer may take
EXCESS = 1.1  # of the shortfall, by which a buffer grows
MORE_LEAD, MOST_LEAD = 2.0, 4.0  # factor by which a lead grows, and its largest size over the first
WIDEST = 0.75  # share of a bound that the interval of a gap may take
HALVINGS = 5  # of a way that goes too far
FLOOR = 1e-3  # of a bound, that what it shortfall is compared with
TINY = 1e-6
SIZED = 0.9  # confidence of the interval whose width tells a sampling error

Sizes = dict[str, float]  # by name of a limit
MakeProgram = Callable[[Task, Sizes, Sizes, dict[str, WidthLimit]], NonlinearProgram]
Minimize = Callable[[Task, NonlinearProgram, Array | None], Outcome]


@dataclass(frozen=True, eq=False)
class Validated:
    """The outcome of a repair with buffers from cross-validation.

    Attributes:
        outcomes: Outcome of the run on all rows, then of those without each fold.
        buffers: By name of the goal and the bounds.
        margins: Leads in logits, by name of those that ask for one.
        claims: About new data, from rows that the network that answers them has not seen.
        predict: That network, or networks.
    """

    outcomes: list[Outcome]
    buffers: Sizes
    margins: Sizes
    claims: tuple[Claim, ...]
    predict: OutOfFold

    @property
    def outcome(self) -> Outcome:
        """The outcome of the run on all rows."""
        return self.outcomes[0]

    def shortfall(self, task: Task, limits: Sequence[Limit]) -> tuple[float, float]:
        """Shares by which the bounds, summed, and the goal are missed on new data."""
        shares = [
            max(0.0, _shortfall(task, limit, claim)) / max(FLOOR, abs(limit.limit))
            for limit, claim in zip(limits, self.claims, strict=True)
        ]
        goal = [limit.name == task.goal.name for limit in limits]
        return (
            sum(share for share, own in zip(shares, goal, strict=True) if not own),
            sum(share for share, own in zip(shares, goal, strict=True) if own),
        )


class OutOfFold:
    """Answers each row by the network that was repaired without its fold.

    Args:
        engine: The network.
        folds: The division.
        deltas: Weight change of each fold's network.
    """

    def __init__(self, engine: Engine, folds: Folds, deltas: Sequence[Array]) -> None:
        self.engine, self.folds = engine, folds
        self.deltas = [engine.as_delta(delta) for delta in deltas]

    def __call__(self, inputs: Tensor) -> Tensor:
        """Outputs ``(N, k)``."""
        fold = self.folds.of(inputs).to(self.engine.device)
        found = self.engine.known_outputs(inputs, self.deltas[0]).clone()
        for k, delta in enumerate(self.deltas[1:], start=1):
            own = fold == k
            found[own] = self.engine.known_outputs(inputs, delta)[own]
        return found


def run_confidently(
    task: Task,
    make: MakeProgram,
    minimize: Minimize,
    attempt: Minimize,
    *,
    confidence: float,
    folds: int,
    leads: Sizes,
    narrow: float = 0.0,
) -> Validated | None:
    """Repair so that each bound is met on new data with a confidence.

    Args:
        task: The repair.
        make: From a task, buffers, margins and widths to limits and objective.
        minimize: From a task, its nonlinear_program and a start to an outcome.
        attempt: The same with less effort, for what may turn out too dear.
        confidence: One-sided.
        folds: Number of folds.
        leads: First leads in logits, of those that get one.
        narrow: Share of the objective that narrower intervals may cost.

    Returns:
        The outcome of the round that misses least on new data, bounds first; None where no bound tells its sampling
        error, or a fold would lack rows.
    """
    limits = [limit for limit in make(task, {}, {}, {}).limits if _is_statistical(limit.property)]
    division = Folds(folds, task.seed)
    parts = [task_on(task, lambda x, k=k: division.outside(k, x)) for k in range(folds)]  # type: ignore[misc]
    if not limits or any(part is None for part in parts):
        return None
    tasks: list[Task] = [task, *(part for part in parts if part is not None)]
    search = _Search(tasks, make, minimize, attempt, limits, division, confidence, leads)
    best = search.rounds({}, [None] * len(tasks))
    widths = _width_limits(task, limits, best) if narrow else {}
    if not widths:
        return best
    objective = make(task, {}, {}, {}).objective
    most = objective.value(best.outcome.delta) * (1.0 + narrow)
    try:
        narrowed = search.narrowed(widths, best, lambda delta: objective.value(delta) <= most)
    except Stop:
        return best
    if narrowed is None or narrowed.shortfall(task, limits) >= best.shortfall(task, limits):
        return best
    names = ", ".join(f"'{name}'" for name in widths)
    task.log.notes.append(
        f"{names}: chance alone could have moved it by more than {100 * WIDEST:.0f} % of its bound; rates were moved "
        f"away from one half, where chance moves them less. SQP(narrow=0) leaves that out."
    )
    return narrowed


def _shortest_way(problem: NonlinearProgram, start: Array, end: Array) -> Array:
    """About the first point on the way to an end at which the limits are met: a step may go far beyond them."""
    low, high = 0.0, 1.0
    for _ in range(HALVINGS if problem.point(end).violation <= MET else 0):
        middle = (low + high) / 2
        met = problem.point(start + middle * (end - start)).violation <= MET
        low, high = (low, middle) if met else (middle, high)
    return start + high * (end - start)


def _on_one_side(widths: dict[str, WidthLimit], limits: Sequence[Limit], predict: Any) -> dict[str, WidthLimit]:
    """The same, with the rates on the side of one half on which a network has them."""
    gaps = {limit.name: limit.property for limit in limits}
    return {name: replace(width, below=below_half(gaps[name], predict)) for name, width in widths.items()}


@dataclass(frozen=True, eq=False)
class _Search:
    """Rounds of repairs, on all rows and on all but each fold, with buffers that grow by the shortfall.

    Attributes:
        tasks: On all rows, then without each fold.
        make: See :func:`run_confidently`.
        minimize: As :meth:`SQP.minimize`.
        attempt: See there; also for what was out of reach with smaller buffers.
        limits: Those that are statistics of a sample.
        division: Into folds.
        confidence: One-sided.
        leads: First ones.
    """

    tasks: list[Task]
    make: MakeProgram
    minimize: Minimize
    attempt: Minimize
    limits: list[Limit]
    division: Folds
    confidence: float
    leads: Sizes

    def narrowed(
        self, widths: dict[str, WidthLimit], best: Validated, affordable: Callable[[Array], bool]
    ) -> Validated | None:
        """The best of the rounds with narrower intervals; None where no way there is found that can be afforded.

        The run on all rows says on which side of one half the rates are to lie; each fold finds its own way there, so
        that it owes nothing else to the rows that it leaves out.
        """
        starts, sided = [], widths
        for k, (part, begin) in enumerate(zip(self.tasks, best.outcomes, strict=True)):
            problem = self.make(part, best.buffers, best.margins, sided)
            end = self.attempt(part, problem, begin.delta).delta
            if k == 0:
                if problem.point(end).violation > MET or not affordable(end):
                    return None
                sided = _on_one_side(widths, self.limits, part.engine.predict(end))
            starts.append(_shortest_way(problem, begin.delta, end))
        found = self.rounds(sided, starts)
        return found if affordable(found.outcome.delta) else None

    def rounds(self, widths: dict[str, WidthLimit], starts: Sequence[Array | None]) -> Validated:
        """The best of the rounds from some points.

        Buffers only grow: what was out of reach is not tried again from several starts with larger ones, and where all
        rows together do not meet the typed bounds, parts of them say nothing that more effort or rounds would change.

        Raises:
            Stop: In the first of them.
        """
        task = self.tasks[0]
        buffers = {limit.name: _first_buffer(task, limit, self.confidence) for limit in self.limits}
        margins = {limit.name: lead for limit in self.limits if (lead := self.leads.get(limit.name, 0.0))}
        most_leads = {name: MOST_LEAD * lead for name, lead in margins.items()}
        best: Validated | None = None
        missed, failed = [False] * len(self.tasks), False
        for _ in range(ROUNDS):
            outcomes: list[Outcome] = []
            try:
                for k, (part, start) in enumerate(zip(self.tasks, starts, strict=True)):
                    problem = self.make(part, buffers, margins, widths)
                    run = self.attempt if missed[k] or failed else self.minimize
                    outcomes.append(run(part, problem, start))
                    missed[k] = missed[k] or problem.point(outcomes[k].delta).violation > MET
                    failed = failed or not _is_reached(task, outcomes[0].delta)
            except Stop:
                if best is not None:
                    return best
                raise
            deltas = [outcome.delta for outcome in outcomes]
            out_of_fold = OutOfFold(task.engine, self.division, deltas[1:])
            claims = _claims(task, self.limits, out_of_fold, self.confidence)
            found = Validated(outcomes, dict(buffers), dict(margins), claims, out_of_fold)
            if best is None or found.shortfall(task, self.limits) <= best.shortfall(task, self.limits):
                best = found
            if failed or not _enlarge(task, buffers, margins, most_leads, self.limits, claims):
                break
            starts = deltas
        assert best is not None
        return best


def _is_reached(task: Task, delta: Array) -> bool:
    judged = task.judge(delta)
    return judged.met and judged.feasible


def _claims(task: Task, limits: Sequence[Limit], predict: Any, confidence: float) -> tuple[Claim, ...]:
    found = []
    original = Remembering(task.engine)
    for limit in limits:
        options: Any = {"confidence": confidence, "source": "cross-validation"}
        options["original"] = original if limit.relative else None
        claim = make_claim(limit.name, limit.property, limit.limit, predict, **options)
        assert claim is not None
        found.append(claim)
    return tuple(found)


def cannot_be_shown(task: Task, limits: Sequence[Limit], predict: Any, confidence: float) -> bool:
    """Whether chance alone may move a gap by more than a bound on it leaves, at the rates of this network."""
    open_limits = [limit for limit in limits if _is_statistical(limit.property)]
    return any(_own_width(task, limit, predict, confidence) > WIDEST * max(0.0, limit.limit) for limit in open_limits)


def _own_width(task: Task, limit: Limit, predict: Any, confidence: float) -> float:
    """How far chance alone may move a gap, whatever its limit is; 0 of what is no gap, or has no limit above 0."""
    if not isinstance(limit.property, GroupRates) or limit.limit <= 0:
        return 0.0
    interval = limit.property.interval(predict, 2.0 * confidence - 1.0)
    return float(interval.high - interval.value) * _widening(task, limit)


def _width_limits(task: Task, limits: Sequence[Limit], found: Validated) -> dict[str, WidthLimit]:
    """The largest widths of those limits whose intervals leave the gap itself too little of the bound."""
    widths = {}
    for limit, claim in zip(limits, found.claims, strict=True):
        with torch.no_grad():
            own = _own_width(task, limit, found.predict, claim.confidence)
            if own > max(0.0, WIDEST * limit.limit) and _shortfall(task, limit, claim) > TINY:
                size = float(spread(limit.property, found.predict))
                if size > 0:
                    widths[limit.name] = WidthLimit(own / size, WIDEST * limit.limit)
    return widths


def _enlarge(
    task: Task, buffers: Sizes, margins: Sizes, most_leads: Sizes, limits: Sequence[Limit], claims: Sequence[Claim]
) -> bool:
    """Add the shortfall to the buffers, or enlarge the leads; whether anything grew."""
    shortfall = {limit.name: _shortfall(task, limit, claim) for limit, claim in zip(limits, claims, strict=True)}
    bounds_lack = any(missing > TINY for name, missing in shortfall.items() if name != task.goal.name)
    grown = False
    for limit in limits:
        name = limit.name
        if shortfall[name] <= TINY or (bounds_lack and name == task.goal.name):
            continue
        if name in margins:
            larger = min(most_leads[name], MORE_LEAD * margins[name])
            grown, margins[name] = grown or larger > margins[name], larger
            continue
        most = MOST * limit.limit if limit.limit > 0 else np.inf
        larger = min(most, buffers[name] + EXCESS * shortfall[name])
        if larger > buffers[name] + TINY:
            buffers[name], grown = larger, True
    return grown


def _shortfall(task: Task, limit: Limit, claim: Claim) -> float:
    """By how much the upper end of an interval lies above the typed bound, as wide as it will be when measured."""
    return claim.interval.value + _upper_width(task, limit, claim) - limit.limit


def _upper_width(task: Task, limit: Limit, claim: Claim) -> float:
    """How far the upper end lies above the value, in a sample of the size on which the bound will be measured."""
    return (claim.interval.high - claim.interval.value) * _widening(task, limit)


def _first_buffer(task: Task, limit: Limit, confidence: float) -> float:
    """As many sampling errors as the confidence asks for; of a rate those at the bound, not at the original's value."""
    prop: Any = limit.property
    with torch.no_grad():
        interval = prop.interval(task.engine.predict(), SIZED)
    error = interval.error
    if isinstance(limit.property, SampleShare) and 0 < limit.limit < 1:
        error = float(np.sqrt(limit.limit * (1 - limit.limit) / interval.count))
    size = normal_quantile(confidence) * error * _widening(task, limit)
    return float(min(size, MOST * limit.limit) if limit.limit > 0 else size)


def _widening(task: Task, limit: Limit) -> float:
    """How much wider an interval is for a sample of the size on which the bound will be measured."""
    count = task.new_counts.get(limit.name)
    if not count:
        return 1.0
    prop: Any = limit.property
    own = prop.interval(task.engine.predict(), SIZED).count
    return float(np.sqrt(1.0 + own / count))


def _is_statistical(prop: Any) -> bool:
    return isinstance(prop, Statistical) and isinstance(prop, Restrictable) and stands_for_population(prop)
