"""Which weights to change, where the user does not say: ranked by expected gain, tried at growing sizes, validated.

Groups of weights (the columns of single input features in the first layer, offsets by group, whole layers) are ranked
by the loss that meeting the bounds with each alone is expected to cost. The best few of them, at growing numbers, with
and without the last layers, are tried by short repairs on a part of the rows and judged on the others. Where the
inputs of the goal lie far from the labelled data in some columns, these are tried too: what changes there costs little
on real rows.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from repairopt.errors import RepairError
from repairopt.localize import Location
from repairopt.methods import (
    MET,
    SQP,
    TINIEST,
    GainModel,
    NonlinearProgram,
    OutOfFold,
    Positions,
    Task,
    cannot_be_shown,
    is_statistical,
    root_rows,
    steepest_sides,
    task_on,
    value_without_noise,
)
from repairopt.network import is_late
from repairopt.specify import (
    Divided,
    Folds,
    distinct_rows,
    inputs_of,
    measured,
    of_real_rows,
)
from repairopt.verify import Claim, Stop

from .prepare import Prepared, with_weights
from .weight_groups import WeightGroup, find_groups

MOST_ROWS = 4_000  # samples in the curvature
LEAST_ROWS = 100  # rows of a part below which nothing is tried
CHANCE_PRICE = 0.1  # of a weight, times 1 / rows: what it fits by chance
SIZES = (1, 2, 3, 5)  # numbers of groups that are tried, the first two with the last layers too
FEW = 300  # rows, below which few weights are tried alone
FEW_REAL = 1_000  # real rows, below which the column that tells two groups apart changes alone
TOLD = 0.2  # share of a column's variance that groups must explain for that
FEW_COLUMNS = (1, 2, 3)  # numbers of columns that are tried then
FEW_PARTS = 4  # of the rows then
TRIAL_STEPS, FEW_STEPS = 8, 4  # of a repair that only judges a choice, of few rows, and ends when the bounds are met
FAR = 2.0  # deviations of the labelled data, by which the mean of the goal's inputs in a column is off
FINALISTS = 2  # choices that are tried on all parts of the rows
PARTS = 2  # of the rows; each validates what was repaired on the others


@dataclass(frozen=True, eq=False)
class _Trial:
    """What a short repair missed on its own rows, and what it was worth on rows that it had not seen."""

    failed: float
    violation: float
    objective: float
    price: float
    delta: Any = None

    NUMBERS: ClassVar[tuple[str, ...]] = ("failed", "violation", "objective", "price")


def choose_weights(method: SQP, prepare: Callable[[Any], Prepared]) -> Prepared:
    """Prepare the repair with the weights that promise most.

    Args:
        method: The method that will run.
        prepare: From a choice of weights to a prepared repair.

    Returns:
        The prepared repair. That of ``weights="auto"`` as for other methods where this way of choosing says nothing:
        too few labelled rows for validation, no limit that is missed and has a slope, or a network of one layer.
    """
    started = time.perf_counter()
    usual = prepare("auto")
    best = None
    try:
        original = usual.task.judge.original
        if original.met and original.breaks_rows:  # weights that the goal depends on are not what is looked for
            best = prepare("last")
        elif not (original.met and original.feasible):
            best = _search(method, usual, prepare)
        elif said_of_original(usual.task, method)[1]:
            best = _search(replace(method, buffer=method.first_buffers(usual.task)), usual, prepare)
    except KeyboardInterrupt:
        return replace(usual, stopped="interrupted")
    except Stop:
        return usual
    if best is not None:
        seconds = best.task.log.seconds
        seconds["localize"] = seconds.get("localize", 0.0) + time.perf_counter() - started
    return best or usual


def said_of_original(task: Task, method: Any) -> tuple[tuple[Claim, ...], bool]:
    """What is claimed of the unchanged network, and whether the method is to do more for what it meets unshown."""
    claims, unshown = method.said_of_original(task) if isinstance(method, SQP) else ([], False)
    return tuple(claims), unshown


def _search(method: SQP, usual: Prepared, prepare: Callable[[Any], Prepared]) -> Prepared | None:
    """The best choice, prepared; one at a time, because each keeps activations of all samples."""
    few = _rows(usual.task) < FEW
    division = Folds(FEW_PARTS if few else PARTS, usual.task.seed)
    groups = find_groups(usual) if _can_be_judged(method, usual.task, division) else []
    if len(groups) < 2:
        return None
    try:
        ranked = _ranked(method, with_weights(usual, _union(groups, "all groups")), groups)
    except (Stop, RepairError) as error:
        _pass_on(error)
        return None
    if not ranked:
        return None
    far = _far_columns(usual.task, groups)
    few = few and not far and any(groups[k].column for k in ranked)
    real = of_real_rows(usual.task.goal)
    told = _telling_column(usual.task.goal, groups, ranked) if real and _rows(usual.task) < FEW_REAL else None
    if told is not None:
        level = [_bias_of(group) for group in groups if not group.column][:1]
        return prepare(_union([groups[told], *level], _called([groups[told], *level])))
    if few:
        sets = _few_weights(groups, ranked)
        if real or _rows(usual.task) < TINIEST:  # they do not tell choices apart
            return prepare(sets[-1])
        winner = _cross_validated(method, [with_weights(usual, one).task for one in sets], division)
        return None if winner is None else prepare(sets[winner])
    choices, division = _tries(groups, ranked, far, real), Folds(PARTS, usual.task.seed)

    def tried(k: int, part: int) -> _Trial | None:
        if is_late():
            return None
        choice = choices[k]
        return _tried(method, (usual if choice is None else with_weights(usual, choice)).task, division, part)

    trials = {k: trial for k in range(len(choices)) if (trial := tried(k, 0))}
    order = sorted(trials, key=lambda k: _merit(trials[k], trials.values()))[:FINALISTS]
    for part in range(1, PARTS):
        again = {k: trial for k in order if (trial := tried(k, part))}
        trials = {k: _mean([trials[k], trial]) for k, trial in again.items()}
    if not trials:
        return None
    best = choices[min(trials, key=lambda k: _merit(trials[k], trials.values()))]
    return usual if best is None else prepare(best)


def _can_be_judged(method: SQP, task: Task, division: Folds) -> bool:
    """Whether the rows to repair on are enough to tell choices apart, which is so for all choices or for none."""
    fit = task_on(task, lambda x: division.outside(0, x))
    if fit is None:
        return False
    problem = method.nonlinear_program(fit, method.named_buffers())
    if not problem.objective.on_outputs or max((len(x) for x in problem.inputs), default=0) >= LEAST_ROWS:
        return True
    return distinct_rows(problem.inputs) >= LEAST_ROWS  # goal and constraints often hold the same rows


def _pass_on(error: Exception) -> None:
    """Ctrl-C that reached a back end ends the search; any other end of a trial only that trial."""
    if isinstance(error, Stop) and str(error) == "interrupted":
        raise KeyboardInterrupt from error


def _ranked(method: SQP, prepared: Prepared, groups: Sequence[WeightGroup]) -> list[int]:
    """Groups by the expected cost of the repair with each alone; empty where nothing can be said."""
    task = prepared.task
    problem = method.nonlinear_program(task, method.named_buffers())
    zero = np.zeros(task.engine.n)
    lines = [limit.lines(task.engine, zero, task.surrogate) for limit in problem.limits]
    scale = task.engine.scale.cpu().numpy()
    slopes, needs = steepest_sides(lines, problem.aims)
    count = sum(len(inputs) for inputs in problem.inputs)
    rows = _curvature_rows(task, problem) if problem.objective.on_outputs else np.zeros((0, task.engine.n))
    model = GainModel(rows * scale.astype(rows.dtype), slopes * scale, needs)
    places = _places(task, groups)
    if any(group.column for group in groups):
        places = [place if group.column else place[:0] for place, group in zip(places, groups, strict=True)]
    return model.ranked(places, CHANCE_PRICE / max(1, count)) if np.any(needs > 0) else []


def _curvature_rows(task: Task, problem: NonlinearProgram) -> Any:
    """Rows ``(m, n)`` whose product with themselves is about the curvature of the mean cross-entropy."""
    inputs = max(problem.inputs, key=len)
    draw = torch.Generator().manual_seed(task.seed)
    pick = torch.randperm(len(inputs), generator=draw)[:MOST_ROWS].sort().values
    part = inputs[pick.to(inputs.device)]
    zero = np.zeros(task.engine.n)
    chance = torch.softmax(task.engine.predict(zero)(part), -1)
    rows = root_rows(task.engine, part, chance, zero, most=MOST_ROWS, seed=task.seed)
    return rows.cpu().numpy() / np.sqrt(len(part))


def _places(task: Task, groups: Sequence[WeightGroup]) -> list[Positions]:
    """Positions of the groups' weights among all weights of the engine."""
    starts, total = {}, 0
    for name, indices in task.engine.indices.items():
        starts[name], total = total, total + len(indices)
    found = []
    for group in groups:
        parts = []
        for name, positions in group.indices.items():
            own = task.engine.indices[name].cpu()
            parts.append(starts[name] + torch.searchsorted(own, positions.cpu()).numpy())
        found.append(np.concatenate(parts).astype(np.int64))
    return found


def _far_columns(task: Task, groups: Sequence[WeightGroup]) -> list[int]:
    """Columns in which the goal's inputs lie far from the labelled data: drawn ones may, real rows do not."""
    drawn = inputs_of(task.goal) if isinstance(task.goal, Divided) else None
    real = [inputs for inputs, _ in task.data]
    if drawn is None or not real or drawn.ndim != 2 or any(inputs.shape[1:] != drawn.shape[1:] for inputs in real):
        return []
    known = torch.cat(real).float()
    off = (drawn.to(known).mean(0) - known.mean(0)).abs() > FAR * known.std(0)
    return [k for k, group in enumerate(groups) if group.unit is not None and bool(off[group.unit])]


def _rows(task: Task) -> float:
    """Rows of the largest set that goal, bounds or data hold; infinite where none do."""
    items = [x for one in (task.goal, *task.constraints) if (x := inputs_of(measured(one))) is not None]
    return max((len(x) for x in (*items, *(x for x, _ in task.data))), default=np.inf)


def _few_weights(groups: Sequence[WeightGroup], ranked: Sequence[int]) -> list[Location]:
    """Where rows are few: some single columns and the best few of them, each with the level of all answers."""
    columns = [k for k in ranked if groups[k].column]
    layers = [group for group in groups if not group.column]
    chosen = [[k] for k in columns[: FEW_COLUMNS[-1]]] + [columns[:size] for size in FEW_COLUMNS if size > 1]
    chosen = [one for k, one in enumerate(chosen) if one not in chosen[:k]]
    level = [_bias_of(layers[0])] if layers else []
    sets = [[*(groups[k] for k in choice), *level] for choice in chosen]
    return [_union(one, _called(one)) for one in sets]


def _telling_column(goal: Any, groups: Sequence[WeightGroup], ranked: Sequence[int]) -> int | None:
    """The column whose values tell two groups of real rows apart best; None where none does, or groups are more.

    With the level of all answers it moves groups about as thresholds by group do, with as little to fit noise with.
    (Measured on 14 divisions of Adult each: of 200 rows a gap of 0.047 costs 1.4 points where three columns, chosen by
    expected gain, cost 1.6 for 0.057; of 500 rows a gap of 0.059 costs 3.1 where they cost 3.4 for 0.057.)
    """
    x = goal.samples.inputs
    columns = [k for k in ranked if groups[k].unit is not None]
    if goal.samples.q != 2 or x.ndim != 2 or not columns:
        return None
    with torch.no_grad():
        low, high = goal.samples.mean_by_group(x.double().cpu())
        share = (goal.samples.member == 0).double().mean()
        told = share * (1 - share) * (high - low) ** 2 / x.double().cpu().var(0, correction=0).clamp(min=1e-12)
    best = max(columns, key=lambda k: float(told[groups[k].unit]))
    return best if float(told[groups[best].unit]) >= TOLD else None


def _tries(
    groups: Sequence[WeightGroup], ranked: Sequence[int], far: Sequence[int], real: bool
) -> list[Location | None]:
    """What is tried: the usual choice and all others; of gaps of real rows in columns those that led on new rows.

    (Measured on Adult beside the usual closeness: the last layers, two columns with them, three, five, and the weights
    of the steepest slopes are within 0.15 points of each other at the same gap; single columns cost up to twice as
    much. A choice among many is one by chance, and takes its time.)
    """
    columns = [k for k in ranked if groups[k].column]
    if not real or far or not columns:
        return [None, *_choices(groups, ranked, far)]
    last = [k for k, group in enumerate(groups) if not group.column][:2]
    sets = [last, [*columns[: SIZES[1]], *last], columns[: SIZES[-1]]]
    return [_union([groups[k] for k in one], _called([groups[k] for k in one])) for one in sets if one]


def _choices(groups: Sequence[WeightGroup], ranked: Sequence[int], far: Sequence[int]) -> list[Location]:
    """The best groups at growing numbers, alone and together with the last two layers; nothing twice.

    The best with those that are far from the data and the last two layers is a choice too.

    Where input features are groups, layers in the middle are not: they hold many more weights, and lose for it.
    """
    last = [k for k, group in enumerate(groups) if not group.column][:2]
    columns = [k for k in ranked if groups[k].column]
    order = columns or [k for k in ranked]
    found: list[list[int]] = [last] if columns else []
    if far and columns:
        found.append([columns[0], *(k for k in far if k != columns[0]), *last])
    for size in SIZES:
        best = order[:size]
        for choice in (best, [*best, *(k for k in last if k not in best)])[: 2 if size < SIZES[2] else 1]:
            if len(best) == size and sorted(choice) not in [sorted(other) for other in found]:
                found.append(choice)
    return [_union([groups[k] for k in choice], _called([groups[k] for k in choice])) for choice in found]


def _bias_of(layer: WeightGroup) -> WeightGroup:
    """The smallest of a layer's parameters, its bias where it has one: the level of all answers."""
    name = min(layer.indices, key=lambda name: len(layer.indices[name]))
    return WeightGroup(name, {name: layer.indices[name]})


def _called(groups: Sequence[WeightGroup]) -> str:
    return f"expected gain: {', '.join(group.name for group in groups)}"


def _union(groups: Sequence[WeightGroup], method: str) -> Location:
    found: dict[str, Tensor] = {}
    for group in groups:
        for name, positions in group.indices.items():
            both = torch.cat([found[name], positions]).unique() if name in found else positions
            found[name] = both
    return Location(found, None, method)


def _tried(method: SQP, task: Task, division: Folds, part: int, steps: int = TRIAL_STEPS) -> _Trial | None:
    """A short repair on all parts of the rows but one, judged on that one; None where there are too few.

    It ends where the bounds are met. (Measured on 34 divisions of Adult: of 8 choices those of ended trials cost 0.1
    points less on rows that none saw than those of trials to their ends, in half of the time; further steps fit noise.)
    """
    short = replace(method, max_steps=steps, restarts=0, confidence=None, smallest_fall=1.0)
    try:
        fit = task_on(task, lambda x: division.outside(part, x))
        rest = task_on(task, lambda x: ~division.outside(part, x))
        if fit is None or rest is None:
            return None
        problem = short.nonlinear_program(fit, short.named_buffers())
        outcome = short.minimize(fit, problem)
        seen = problem.point(outcome.delta)
        judge = short.nonlinear_program(rest, short.named_buffers())
        new, before = judge.point(outcome.delta), judge.point(np.zeros(task.engine.n))
    except (Stop, RepairError) as error:
        _pass_on(error)
        return None
    failed = seen.violation if seen.violation > MET else 0.0
    price = max(outcome.prices.values(), default=0.0)
    objective = new.objective - before.objective
    asked = method.confidence
    if asked is not None and cannot_be_shown(task, problem.limits, task.engine.predict(outcome.delta), asked):
        objective += method.narrow * abs(before.objective)  # what it may cost to change that
    return _Trial(failed, new.violation, objective, price, outcome.delta)


def _cross_validated(method: SQP, tasks: Sequence[Task], division: Folds) -> int | None:
    """Position of the choice that is worth most on all parts of the rows in turn; None where none could be judged.

    What bounds miss is told by all parts together, because few rows of one are mostly noise. After each part the worse
    half of what is left is given up, down to the finalists.
    """
    trials: dict[int, list[_Trial]] = {k: [] for k in range(len(tasks))}
    for part in range(division.count):
        for k in list(trials):
            trial = None if is_late() else _tried(method, tasks[k], division, part, FEW_STEPS)
            if trial is None:
                del trials[k]
            else:
                trials[k].append(trial)
        if len(trials) > FINALISTS and part + 1 < division.count:
            means = {k: _mean(own) for k, own in trials.items()}
            order = sorted(means, key=lambda k: _merit(means[k], means.values()))
            trials = {k: trials[k] for k in order[: max(FINALISTS, (len(order) + 1) // 2)]}
    if not trials:
        return None
    found = {k: _mean(own) for k, own in trials.items()}
    for k, own in trials.items():
        stated = method.nonlinear_program(tasks[k], method.named_buffers()).limits
        limits = [one for one in stated if is_statistical(one.property)]
        if limits:
            unseen = OutOfFold(tasks[k].engine, division, [trial.delta for trial in own])
            missed = sum(max(0.0, value_without_noise(limit, unseen) - limit.aim) for limit in limits)
            found[k] = replace(found[k], violation=missed)
    return min(found, key=lambda k: _merit(found[k], found.values()))


def _mean(trials: Sequence[_Trial]) -> _Trial:
    numbers = {name: float(np.mean([getattr(one, name) for one in trials])) for name in _Trial.NUMBERS}
    return replace(trials[0], **numbers)


def _merit(trial: _Trial, trials: Iterable[_Trial]) -> tuple[float, float]:
    """The loss on new rows, with what bounds miss there at the price of the bounds; failures come last."""
    prices = [one.price for one in trials if not one.failed]
    price = float(np.median(prices)) if prices else 0.0
    return trial.failed, trial.objective + price * trial.violation
