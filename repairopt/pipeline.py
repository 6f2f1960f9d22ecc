"""solve_repair(): the stages, called in order.

specify -> localize -> (fit surrogate, linearize, select rows, build program, solve: the method's loop) -> fall back ->
apply to a copy -> verify on the true network -> report.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, fields, is_dataclass, replace
from typing import Any

import numpy as np
from torch import Tensor, nn

from .apply import apply
from .errors import SpecificationError
from .evaluate import Engine, ForwardFunction, Remembering
from .judge import Judge, Judgement, Stop
from .linearize import anchor, margins_at, required_margins
from .localize import Location, localize
from .methods.autoric import Bisection, Incremental, Method, OneShot
from .methods.sequential import Sequential
from .methods.task import Outcome, Round, Task
from .report import Report, Trust, Verdict, library_versions
from .solve import Solver, Status
from .specify import CallableProperty, Constraint, Property, Specification
from .surrogate import SurrogateSettings
from .surrogates.convexify import check_way
from .verify import Verification, verify

METHODS: dict[str, Callable[[], Method]] = {
    "one_shot": OneShot,
    "incremental": Incremental,
    "bisection": Bisection,
    "sequential": Sequential,
}


@dataclass(frozen=True, eq=False)
class Repair:
    """The result of :func:`solve_repair`.

    Attributes:
        model: The repaired copy; the original is untouched. Equals the original where nothing better was found.
        delta: For each parameter that could change its change, a tensor of its shape.
        report: What was done and what came of it.
    """

    model: nn.Module
    delta: dict[str, Tensor]
    report: Report


def solve_repair(
    model: nn.Module,
    goal: Property | Callable[..., Any],
    constraints: Any = (),
    *,
    target: float | None = None,
    held_out: Any = (),
    watch: Any = (),
    weights: Any = "auto",
    method: str | Method = "auto",
    program: str = "qp",
    surrogate: str | SurrogateSettings = "auto",
    convexify: str = "project",
    trust_radius: float = 1.0,
    solver: str | Solver | None = None,
    shrink: bool = True,
    forward_fn: ForwardFunction | None = None,
    time_limit: float | None = None,
    memory_limit: int = 2**30,
    feasibility_tol: float = 1e-6,
    seed: int = 0,
    progress: Callable[[Round], None] | None = None,
) -> Repair:
    """Repair a trained network: bring a property to its target while constraints keep holding.

    Args:
        model: Any module whose call gives logits ``(N, k)``, float32 or float64, CPU or CUDA. Never modified.
        goal: What must become true: a property (see ``repairopt.properties``), any object with ``name``, ``target``
            and ``value(predict)``, or a plain function of ``predict`` together with ``target``.
        constraints: What must stay true (see ``repairopt.constraints``).
        target: Overrides the goal's target.
        held_out: Data that only the report sees: a pair ``(inputs, labels)``, for which goal and constraints make their
            twins, or a list of properties and constraints.
        watch: Further properties to report, before and after.
        weights: Which weights may change; see :func:`repairopt.localize.localize`.
        method: ``"auto"`` (sequential where the goal has a soft value, else incremental), ``"one_shot"``,
            ``"incremental"``, ``"bisection"``, ``"sequential"``, or an instance with its settings.
        program: ``"qp"`` or ``"lp"``.
        surrogate: Model of the property: ``"auto"``, ``"full"``, ``"gradient_hessian"``, ``"hessian"``,
            ``"gauss_newton"``, ``"diagonal_low_rank"``, ``"linear"``, or settings.
        convexify: ``"project"``, ``"shift"``, ``"abs"`` or ``"none"``.
        trust_radius: Largest change of a weight in one program, in units of ``max(|weight|, rms of its parameter)``.
        solver: Back end by name or instance; None chooses an open-source one.
        shrink: Where a method overshoots the target, go back towards the original as far as the target stays met.
        forward_fn: ``(model, inputs) -> logits`` for models with other inputs or outputs.
        time_limit: Seconds after which the best point so far is returned, marked so.
        memory_limit: Bytes that activations and intermediate results may take.
        feasibility_tol: Largest relative violation of a row that counts as feasible.
        seed: For everything that draws.
        progress: Called after each round.

    Returns:
        The repaired copy, its change and the report. An outcome short of the target is a verdict, not an exception;
        ``report.raise_if_failed()`` makes it one. Ctrl-C returns the best point so far, marked so.

    Raises:
        SpecificationError: Goal, constraints or data are malformed.

    References:
        AutoRIC: Automated Neural Network Repairing Based on Constrained Optimization, TOSEM 2024.
    """
    started, cpu = time.perf_counter(), time.process_time()
    specification = _specification(goal, constraints, target, held_out, watch)
    seconds: dict[str, float] = {}
    where = localize(
        model, weights, goal=specification.goal, constraints=specification.on_outputs, forward_fn=forward_fn, seed=seed
    )
    seconds["localize"] = time.perf_counter() - started
    engine = Engine(model, where.indices, forward_fn=forward_fn, memory_limit=memory_limit)
    task = _task(
        engine,
        specification,
        deadline=None if time_limit is None else started + _positive("time_limit", time_limit),
        surrogate=_settings(surrogate, seed),
        convexify=_checked_way(convexify),
        linear=_is_linear(program),
        trust_radius=_positive("trust_radius", trust_radius),
        solver=solver,
        feasibility_tol=feasibility_tol,
        seed=seed,
        progress=progress,
        seconds=seconds,
    )
    chosen = _method(method, specification.goal)
    outcome, stopped = _run(task, chosen)
    final = _settle(task, outcome, shrink, stopped)
    repaired, delta = apply(model, where, final.delta)
    with task.timed("verify"):
        initial = engine.initial.double().cpu().numpy()
        verification = verify(
            model,
            repaired,
            specification,
            change=(initial, final.delta),
            forward_fn=forward_fn,
            memory_limit=memory_limit,
        )
    report = Report(
        verdict=_verdict(verification, outcome, final),
        verification=verification,
        location=where,
        changed=sum(int((change != 0).sum()) for change in delta.values()),
        largest_change=max((float(change.abs().max()) for change in delta.values()), default=0.0),
        status=outcome.status,
        method=_describe(chosen),
        surrogate=outcome.surrogate,
        rounds=tuple(task.rounds),
        rows_used=task.rows_used,
        gave_way=outcome.gave_way,
        trust=_trust(task, outcome, final),
        seconds={**task.seconds, "total": time.perf_counter() - started},
        cpu_seconds=time.process_time() - cpu,
        stopped=stopped,
        notes=tuple(task.notes),
        seed=seed,
        versions=library_versions(),
    )
    return Repair(repaired, delta, report)


def _specification(goal: Any, constraints: Any, target: float | None, held_out: Any, watch: Any) -> Specification:
    if callable(goal) and not hasattr(goal, "value"):
        goal = CallableProperty(goal, 0.0 if target is None else float(target))
    elif target is not None:
        try:
            goal = replace(goal, target=float(target))
        except TypeError:
            raise SpecificationError(
                f"goal {goal!r}: target= can override the target of a dataclass only; set it on the object."
            ) from None
    spec = Specification(goal, constraints, (), watch)
    pair = isinstance(held_out, tuple | list) and len(held_out) == 2
    if pair and not any(isinstance(item, Property | Constraint) for item in held_out):
        inputs, labels = held_out
        items = [spec.goal, *spec.watch, *spec.on_outputs]
        held_out = tuple(item.on(inputs, labels) for item in items if hasattr(item, "on"))
    return replace(spec, held_out=held_out)


def _settings(surrogate: str | SurrogateSettings, seed: int) -> SurrogateSettings:
    if isinstance(surrogate, SurrogateSettings):
        return surrogate
    return SurrogateSettings(kind=surrogate, seed=seed)


def _is_linear(program: str) -> bool:
    if program not in ("qp", "lp"):
        raise SpecificationError(f"program={program!r}; choose qp or lp.")
    return program == "lp"


def _checked_way(convexify: str) -> str:
    check_way(convexify)
    return convexify


def _positive(name: str, value: float) -> float:
    if not value > 0:
        raise SpecificationError(f"{name}={value}; expected a number above 0.")
    return float(value)


def _method(method: str | Method, goal: Any) -> Method:
    if isinstance(method, str):
        name = method
        if name == "auto":
            name = "sequential" if hasattr(goal, "soft_value") else "incremental"
        if name not in METHODS:
            raise SpecificationError(f"method={method!r}; choose auto, {', '.join(METHODS)}, or pass an instance.")
        return METHODS[name]()
    if not isinstance(method, Method) or isinstance(method, type):
        raise SpecificationError(f"method={method!r}: expected a name or an instance with run(task).")
    return method


def _describe(method: Any) -> str:
    """Class and the settings that differ from their defaults."""
    if not is_dataclass(method):
        return type(method).__name__
    changed = [f"{f.name}={getattr(method, f.name)!r}" for f in fields(method) if getattr(method, f.name) != f.default]
    return f"{type(method).__name__}({', '.join(changed)})"


def _task(engine: Engine, spec: Specification, *, deadline: float | None, **settings: Any) -> Task:
    """What is taken from the original network: anchored constraints, required margins, the first judgement."""
    predict = Remembering(engine)
    anchored = tuple(anchor(constraint, predict) for constraint in spec.on_outputs)
    margins = margins_at(predict, anchored)
    required = tuple(required_margins(c, m) for c, m in zip(anchored, margins, strict=True))
    judge = Judge(engine, spec.goal, anchored, spec.on_change, deadline)
    return Task(engine, spec.goal, anchored, spec.on_change, judge, required, **settings)


def _run(task: Task, method: Method) -> tuple[Outcome, str]:
    """Run the method; an interrupt or a limit ends it with the best point so far."""
    judge = task.judge
    if judge.original.met and judge.original.feasible:
        task.notes.append("The goal is met by the original network already; nothing was changed.")
        return Outcome(judge.original.delta, Status.OPTIMAL), ""
    try:
        return method.run(task), ""
    except Stop as stop:
        reason = str(stop)
    except KeyboardInterrupt:
        reason = "interrupted"
    judge.deadline = None
    if reason not in ("time limit", "interrupted"):
        task.notes.append(f"Nothing was changed: {reason}.")
        return Outcome(judge.original.delta, Status.NO_POINT), ""
    return Outcome(judge.best.delta, Status.FEASIBLE), reason


def _settle(task: Task, outcome: Outcome, shrink: bool, stopped: str) -> Judgement:
    """From the proposed point to the one that is applied: fall back to a feasible one, then shrink the change."""
    judge = task.judge
    judge.deadline = None
    with task.timed("fall back"):
        proposed = judge(outcome.delta)
        if proposed.surplus > judge.original.surplus or proposed.constant or not proposed.change_holds:
            zero = np.zeros_like(outcome.delta)
            judge.halve(zero, outcome.delta, lambda j: j.surplus <= judge.original.surplus and not j.constant, 10)
            task.notes.append("The proposed step breaks a constraint on the true network; a shorter step was taken.")
            proposed = judge.best
        elif not proposed.feasible and judge.best.feasible:
            proposed = judge.best
        if (
            shrink
            and not outcome.aimed
            and not stopped
            and proposed.met
            and proposed.feasible
            and np.any(proposed.delta)
        ):
            proposed = _shrunk(judge, proposed)
    return proposed


def _shrunk(judge: Judge, found: Judgement) -> Judgement:
    """The smallest share of the change, by bisection, that still meets the goal with no more failing samples."""
    low, high = 0.0, 1.0
    best = found
    for _ in range(6):
        middle = (low + high) / 2
        trial = judge(middle * found.delta)
        if trial.met and trial.feasible and trial.error <= best.error:
            high, best = middle, trial
        else:
            low = middle
    return best


def _trust(task: Task, outcome: Outcome, final: Judgement) -> Trust:
    fit = outcome.surrogate.fit_error if outcome.surrogate is not None else None
    error, ratio = float("nan"), float("nan")
    lin = outcome.linearization
    if lin is not None and np.any(final.delta != lin.delta):
        with task.timed("verify"):
            true = margins_at(Remembering(task.engine, final.delta), lin.constraints)
            linear = lin.at(final.delta - lin.delta)
        error = max((float(np.abs(a - b).max(initial=0.0)) for a, b in zip(true, linear, strict=True)), default=0.0)
    if outcome.predicted > 1e-9:
        ratio = (task.judge.original.goal - task.judge(outcome.delta).goal) / outcome.predicted
    return Trust(1 - fit.r2 if fit is not None else float("nan"), error, ratio)


def _verdict(verification: Verification, outcome: Outcome, final: Judgement) -> Verdict:
    goal = verification.measures[0]
    became_constant = verification.constant and not verification.constant_before
    if became_constant or any(not c.holds and not c.soft for c in verification.checks if not c.held_out):
        changed = bool(np.any(final.delta))
        conflict = bool(outcome.gave_way) or (not changed and outcome.status is Status.INFEASIBLE)
        return Verdict.INFEASIBLE if conflict else Verdict.VIOLATED
    assert goal.target is not None
    if goal.after <= goal.target and not verification.constant:
        return Verdict.REPAIRED
    if goal.after < goal.before:
        return Verdict.IMPROVED
    return Verdict.INFEASIBLE if outcome.gave_way or outcome.status is Status.INFEASIBLE else Verdict.UNSOLVED


__all__ = ["Location", "Repair", "solve_repair"]
