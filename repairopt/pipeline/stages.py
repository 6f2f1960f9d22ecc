"""solve_repair(): the stages, called in order.

specify -> localize -> (fit surrogate, linearize, select rows, build program, solve: the method's loop) -> fall back ->
apply to a copy -> verify on the true network -> report.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, fields, is_dataclass, replace
from typing import Any

import torch
from torch import nn

from repairopt.errors import SolverError, SpecificationError, public
from repairopt.localize import LARGE, is_factor
from repairopt.methods import (
    OPTIONAL,
    SQP,
    Method,
    Outcome,
    Task,
    available_methods,
    check_uses,
    find_method,
    uses,
)
from repairopt.network import Classifier, limited
from repairopt.program import Status
from repairopt.report import Repair
from repairopt.specify import (
    Constraint,
    Property,
    Specification,
    is_of_regions,
    labelled_pairs,
    make_specification,
    weight_of,
)
from repairopt.verify import Stop

from .callbacks import Callbacks
from .conclude import CONFIDENCE, conclude_repair
from .former import take_former
from .given_points import layers_for_points, weights_for_points
from .prepare import Prepared, prepare_repair
from .settings import DEFAULTS, Settings
from .weight_choice import choose_weights, said_of_original

MANY, MANY_WEIGHTS = "train_then_correct", 20_000


@public
def solve_repair(
    model: nn.Module | Classifier,
    goal: Property | Constraint | Specification | Callable[..., Any],
    constraints: Any = (),
    *,
    data: Any = (),
    held_out: Any = (),
    weights: Any = "auto",
    method: str | Method = "auto",
    settings: Settings = DEFAULTS,
    **former: Any,
) -> Repair:
    """Repair a trained network: bring a property to its target while constraints keep holding.

    Args:
        model: Any module whose call gives logits ``(N, k)``, float32 or float64, CPU or CUDA; or a
            :class:`Classifier`, which says how other inputs and outputs are read. Never modified.
        goal: What must become true: a property (see ``repairopt.specify``), any object with ``name``, ``target`` and
            ``value(predict)``, a plain function of ``predict`` that is to become 0, a :class:`Region` or a list of
            these, a constraint on rows that does not hold yet (see :class:`repairopt.specify.BrokenRows`), or a whole
            :class:`Specification`, which may also name properties to watch.
        constraints: What must stay true (see ``repairopt.specify``).
        data: Labelled samples ``(inputs, labels)`` or ``(inputs, labels, sample_weight)``, a dataset or loader of
            pairs, or a list of these, whose loss is kept small; by default those of the constraints and of the goal.
        held_out: Data that only the report sees: a pair ``(inputs, labels)``, with the weights of its rows where goal
            and bounds have ``sample_weight``, or a dataset or loader of pairs, for which goal and constraints make
            their twins; or a list of properties and constraints.
        weights: Which weights may change; see :func:`repairopt.localize.localize`. With SQP, ``"auto"`` tries sets that
            promise much and validates them on a part of the rows; where given points of images or sequences are to
            become right it means all weights of networks of up to 10,000, and the last layer of larger ones.
        method: ``"auto"`` (what the goal names as its ``method``; :class:`TrainThenCorrect` where given points are to
            become right and ``weights`` is ``"auto"``, in networks of several layers and up to 250,000 weights, or
            where factors of low rank, or more than 20,000 weights in several layers, may change; else :class:`SQP`),
            the name of a registered method (:func:`available_methods`), or an instance with its settings.
        settings: Limits, seed, solver and what is told while the repair runs.
        **former: Keywords from before there were settings; they work with a warning.

    Returns:
        The repaired copy, its change and the report. An outcome short of the target is a verdict, not an exception;
        ``report.raise_if_failed()`` makes it one. Ctrl-C returns the best point so far, marked so.

    Raises:
        SpecificationError: Goal, constraints or data are malformed, or an option is given that the method does not use.

    References:
        AutoRIC: Automated Neural Network Repairing Based on Constrained Optimization, TOSEM 2024.
    """
    if former:
        model, goal, constraints, method, settings = take_former(model, goal, constraints, method, settings, former)
    given: Any = {"data": data, "held_out": held_out, "weights": weights, "method": method, "settings": settings}
    proposal = _told_of_unseen(propose_candidate(model, goal, constraints, **given))
    chosen = proposal.method
    asked = getattr(chosen, "confidence", None) or 0.0
    confidence = asked if asked > 0.5 else CONFIDENCE
    shrink = bool(getattr(chosen, "shrink", True))
    name = _describe(chosen)
    told: Any = {"method": name, "shrink": shrink, "stopped": proposal.stopped, "confidence": confidence}
    return conclude_repair(proposal.prepared, proposal.outcome, **told)


@dataclass(frozen=True, eq=False)
class Proposal:
    """What a method proposes, before anything is judged on it.

    Attributes:
        prepared: The repair.
        method: The method that ran.
        outcome: Its candidate, and what it says of it.
        stopped: Why it ended early, or empty.
    """

    prepared: Prepared
    method: Method
    outcome: Outcome
    stopped: str

    @property
    def is_met(self) -> bool:
        """Whether goal and constraints hold at the best point."""
        best = self.prepared.task.judge.best
        return best.met and best.feasible

    def apply(self) -> nn.Module:
        """A copy of the model with the candidate in it, whether or not a repair would end with it.

        Where the method was stopped, the candidate that it recorded last.
        """
        latest = self.prepared.task.log.latest if self.stopped else None
        found = self.outcome.candidate if latest is None else latest
        return self.prepared.as_candidate(found).apply(self.prepared.model)


@public
def propose_candidate(
    model: nn.Module | Classifier,
    goal: Property | Constraint | Specification | Callable[..., Any],
    constraints: Any = (),
    *,
    data: Any = (),
    held_out: Any = (),
    weights: Any = "auto",
    method: str | Method = "auto",
    settings: Settings = DEFAULTS,
) -> Proposal:
    """The stages of a repair up to what the method proposes; arguments and errors are those of :func:`solve_repair`.

    For comparisons of methods: what a method of the literature ends with is measured as it is, good or bad, where a
    repair would fall back to a better point that it met on its way.
    """
    if not isinstance(settings, Settings):
        raise SpecificationError(
            f"settings: got a {type(settings).__name__}; expected repairopt.Settings, as in settings=Settings(seed=1)."
        )
    callbacks = Callbacks(settings)
    given: Any = {"data": data, "held_out": held_out, "weights": weights, "method": method}
    found = _propose(model, goal, constraints, **given, settings=callbacks.settings)
    for failure in callbacks.failures:
        found.prepared.task.log.note(failure)
    return found


def _propose(
    model: nn.Module | Classifier,
    goal: Any,
    constraints: Any,
    *,
    data: Any,
    held_out: Any,
    weights: Any,
    method: str | Method,
    settings: Settings,
) -> Proposal:
    started = (time.perf_counter(), time.process_time())
    data = labelled_pairs(data)
    spec = make_specification(goal, constraints, held_out, data)
    is_open = isinstance(method, str) and method == "auto"
    chosen = find_method(getattr(spec.goal, "method", "auto") if is_open else method)
    _check_options(chosen, weights, settings, data)
    _check_goal(chosen, spec.goal)

    def prepare(weights: Any, method: Method = chosen) -> Prepared:
        given: Any = {"data": data, "method": method, "settings": settings, "started": started}
        with limited(None):  # what a repair cannot do without is done whatever the time
            return prepare_repair(model, spec, weights=weights, **given)

    deadline = None if settings.time_limit is None else started[0] + settings.time_limit
    free = isinstance(weights, str) and weights == "auto" and settings.start is None
    plain = settings.start is None and all(weight_of(pair) is None for pair in data)
    first = None
    able = is_open and free and plain and isinstance(chosen, SQP)
    layers = layers_for_points(spec, model, data, settings.time_limit) if able else 0
    if layers == 1:
        weights, free = "last", False
    elif layers:
        many = find_method(MANY)
        ready = prepare("all", many)
        last = MANY_WEIGHTS < ready.task.engine.n <= LARGE  # else half of the time is left for what is tried next
        first = _proposed(ready, many, deadline if last or deadline is None else (time.perf_counter() + deadline) / 2)
        if last or first.is_met or first.stopped not in ("", "time limit"):
            return first
    named = weights_for_points(spec, model) if isinstance(chosen, SQP) and free and not is_open else ""
    if named:
        return _proposed_by_layers(prepare, chosen, named, deadline)
    if isinstance(chosen, SQP) and free and first is None:
        with limited(deadline):
            prepared = choose_weights(chosen, prepare)
    else:
        prepared = prepare(weights)
    if first is not None:
        return _better(first, prepared, chosen, deadline)
    if is_open and isinstance(chosen, SQP) and plain and _has_many_weights(prepared.task):
        chosen = find_method(MANY)
    if free and isinstance(chosen, SQP) and prepared.task.judge.original.breaks_rows:
        return _proposed_for_broken(prepare, prepared, chosen, deadline)
    return _proposed(prepared, chosen, deadline)


def _proposed(prepared: Prepared, method: Method, deadline: float | None) -> Proposal:
    """What a method proposes for a prepared repair."""
    if prepared.stopped:
        outcome = Outcome(prepared.task.judge.best.candidate, Status.NO_POINT)
        return Proposal(prepared, method, outcome, prepared.stopped)
    with limited(deadline):
        return Proposal(prepared, method, *_run(prepared.task, method))


def _told_of_unseen(proposal: Proposal) -> Proposal:
    """The same with what its method says of inputs that it has not seen, where that is known before time is up."""
    task, says = proposal.prepared.task, proposal.outcome.said_of_unseen
    if says is None:
        return proposal
    try:
        with limited(task.judge.deadline):
            task.log.note(says())
    except Stop:
        return proposal
    except KeyboardInterrupt:
        return replace(proposal, stopped=proposal.stopped or "interrupted")
    except Exception as error:  # a repair that is found is not lost for a sentence about it
        task.log.note(f"What holds on inputs that were not seen is not known: {type(error).__name__}: {error}")
    return proposal


def _proposed_by_layers(
    prepare: Callable[[Any], Prepared], method: Method, named: str, deadline: float | None
) -> Proposal:
    """What a method proposes for the layers of that name, and where that misses something, for the last one."""
    first = _proposed(prepare(named), method, deadline)
    if named == "last" or first.is_met or first.stopped:
        return first
    return _better(first, prepare("last"), method, deadline)


def _proposed_for_broken(
    prepare: Callable[[Any], Prepared], prepared: Prepared, method: Method, deadline: float | None
) -> Proposal:
    """What a method proposes where constraints are broken from the beginning, and if they stay so, in other weights.

    In the last layer the rows of a program are what outputs will be, and weights that are chosen for the goal need not
    be those that matter to constraints.
    """
    first = _proposed(prepared, method, deadline)
    if first.prepared.task.judge.best.feasible or first.stopped:
        return first
    with limited(deadline):
        other = prepare("auto" if prepared.task.judge.original.met else "last")
    return first if _same_weights(prepared, other) else _better(first, other, method, deadline)


def _same_weights(one: Prepared, other: Prepared) -> bool:
    """Whether two choices of weights are the same."""
    first, second = one.task.engine.indices, other.task.engine.indices
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


def _better(first: Proposal, prepared: Prepared, method: Method, deadline: float | None) -> Proposal:
    """The better one of a proposal that misses something and that of another method, which is tried for that reason."""
    try:
        second = _proposed(prepared, method, deadline)
    except SolverError as error:
        first.prepared.task.log.note(f"{_describe(method)}, tried next, failed: {error}")
        return first
    before, now = first.prepared.task.judge.best, second.prepared.task.judge.best
    if not now.better_than(before):
        return replace(first, stopped=second.stopped or first.stopped)
    second.prepared.task.log.note(f"{_describe(first.method)}, tried first, left the goal at {before.goal:.4g}.")
    return second


def _has_many_weights(task: Task) -> bool:
    """Whether factors of low rank may change, or many weights, in more than the last layer."""
    if any(is_factor(name) for name in task.engine.indices):
        return True  # products of factors: where one is 0, the other has no derivative
    return task.engine.n > MANY_WEIGHTS and not task.engine.exact  # the original was judged, so the split is known


def _check_options(method: Method, weights: Any, settings: Settings, data: Any) -> None:
    """Refuse what the method would ignore."""
    given = {name: _differs(getattr(settings, name, None), getattr(DEFAULTS, name, None)) for name in OPTIONAL}
    given["weights"] = not (isinstance(weights, str) and weights == "auto")
    given["sample_weight"] = any(weight_of(pair) is not None for pair in data)
    if any(given[name] and name not in uses(method) for name in OPTIONAL):
        able = {name: [one for one in available_methods() if name in uses(find_method(one))] for name in OPTIONAL}
        check_uses(method, given, able)


def _check_goal(method: Method, goal: Property) -> None:
    """Refuse regions as the goal of a method that reads points alone."""
    if is_of_regions(goal) and "regions" not in uses(method):
        able = [one for one in available_methods() if "regions" in uses(find_method(one))]
        raise SpecificationError(
            f"goal '{goal.name}': speaks of every input in its regions, and method {type(method).__name__} reads "
            f"points alone. Leave method= out, or choose one that takes regions: {', '.join(able)}."
        )


def _differs(value: Any, default: Any) -> bool:
    """Whether a setting is not its default; one that is an array has none."""
    return value is not default if default is None else bool(value != default)


def _describe(method: Any) -> str:
    """Class and the settings that differ from their defaults."""
    if not is_dataclass(method):
        return type(method).__name__
    told = [f for f in fields(method) if f.repr and getattr(method, f.name) != f.default]
    changed = [f"{f.name}={getattr(method, f.name)!r}" for f in told]
    return f"{type(method).__name__}({', '.join(changed)})"


def _run(task: Task, method: Method) -> tuple[Outcome, str]:
    """Run the method; an interrupt, a limit or a solver that crashes ends it with the best point so far."""
    judge = task.judge
    if judge.original.met and judge.original.feasible and not getattr(method, "proves", False):
        claims, unshown = said_of_original(task, method)
        if not unshown:
            task.log.note("The goal is met by the original network already; nothing was changed.")
            return Outcome(judge.original.candidate, Status.OPTIMAL, claims=claims), ""
        task.log.note(
            f"The original network meets the goal on the repair data, but that is not shown for others: "
            f"{'; '.join(str(claim) for claim in claims if not claim.met)}."
        )
    try:
        outcome: Any = method.run(task)
        if not isinstance(outcome, Outcome):
            raise SpecificationError(
                f"method {type(method).__name__} returned a {type(outcome).__name__}; expected an Outcome. See "
                f"repairopt.interfaces.testing.check_method."
            )
        return outcome, ""
    except Stop as stop:
        reason = str(stop)
    except KeyboardInterrupt:
        reason = "interrupted"
    except SolverError as error:
        if judge.best is judge.original:
            raise  # nothing is lost, and the error says what to do
        task.log.note(f"A solve failed: {error}")
        reason = "solver failed"
    judge.deadline = None
    if reason not in ("time limit", "interrupted", "solver failed"):
        task.log.note(f"Nothing was changed: {reason}.")
        return Outcome(judge.original.candidate, Status.NO_POINT), ""
    return Outcome(judge.best.candidate, Status.FEASIBLE), reason
