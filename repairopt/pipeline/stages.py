"""solve_repair(): the stages, called in order.

specify -> localize -> (fit surrogate, linearize, select rows, build program, solve: the method's loop) -> fall back ->
apply to a copy -> verify on the true network -> report.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import fields, is_dataclass
from typing import Any

from torch import Tensor, nn

from repairopt.errors import SolverError, SpecificationError
from repairopt.methods import SQP, Bisection, Incremental, Method, OneShot, Outcome, Sequential, Task
from repairopt.network import ForwardFunction
from repairopt.program import Solver, Status
from repairopt.report import Repair
from repairopt.specify import Property
from repairopt.surrogate import SurrogateSettings
from repairopt.verify import Round, Stop

from .conclude import CONFIDENCE, conclude_repair
from .prepare import Prepared, prepare_repair
from .weight_choice import choose_weights

METHODS: dict[str, Callable[[], Method]] = {
    "one_shot": OneShot,
    "incremental": Incremental,
    "bisection": Bisection,
    "sequential": Sequential,
    "sqp": SQP,
}


def solve_repair(
    model: nn.Module,
    goal: Property | Callable[..., Any],
    constraints: Any = (),
    *,
    target: float | None = None,
    data: Any = (),
    held_out: Any = (),
    watch: Any = (),
    weights: Any = "auto",
    method: str | Method = "auto",
    program: str = "qp",
    surrogate: str | SurrogateSettings = "auto",
    convexify: str = "project",
    trust_radius: float = 1.0,
    solver: str | Solver | None = None,
    isolate: bool = False,
    shrink: bool = True,
    forward_fn: ForwardFunction | None = None,
    time_limit: float | None = None,
    memory_limit: int = 2**30,
    feasibility_tol: float = 1e-6,
    seed: int = 0,
    progress: Callable[[Round], None] | None = None,
    start: Any = None,
    checkpoint: Callable[[dict[str, Tensor]], None] | None = None,
) -> Repair:
    """Repair a trained network: bring a property to its target while constraints keep holding.

    Args:
        model: Any module whose call gives logits ``(N, k)``, float32 or float64, CPU or CUDA. Never modified.
        goal: What must become true: a property (see ``repairopt.specify``), any object with ``name``, ``target`` and
            ``value(predict)``, or a plain function of ``predict`` together with ``target``.
        constraints: What must stay true (see ``repairopt.specify``).
        target: Overrides the goal's target.
        data: Labelled samples ``(inputs, labels)``, a dataset or loader of pairs, or a list of these, whose loss is
            kept small; by default those of the constraints and of the goal.
        held_out: Data that only the report sees: a pair ``(inputs, labels)``, or a dataset or loader of pairs, for
            which goal and constraints make their twins; or a list of properties and constraints.
        watch: Further properties to report, before and after.
        weights: Which weights may change; see :func:`repairopt.localize.localize`. With SQP, ``"auto"`` tries sets that
            promise much (see :mod:`repairopt.pipeline.weight_choice`) and validates them on a part of the rows.
        method: ``"auto"`` (:class:`repairopt.SQP`), ``"sqp"``, or of AutoRIC's kind ``"one_shot"``, ``"incremental"``,
            ``"bisection"``, ``"sequential"``; or an instance with its settings.
        program: ``"qp"`` or ``"lp"``.
        surrogate: Model of the property: ``"auto"``, ``"full"``, ``"gradient_hessian"``, ``"hessian"``,
            ``"gauss_newton"``, ``"diagonal_low_rank"``, ``"linear"``, or settings.
        convexify: ``"project"``, ``"shift"``, ``"abs"`` or ``"none"``.
        trust_radius: Largest change of a weight in one program, in units of ``max(|weight|, rms of its parameter)``.
        solver: Back end by name or instance; None chooses an open-source one.
        isolate: Run back ends in a process of their own, so that a crash inside one costs a step, not the run.
        shrink: Where a method overshoots the target, go back towards the original as far as the target stays met.
        forward_fn: ``(model, inputs) -> logits`` for models with other inputs or outputs.
        time_limit: Seconds after which the best point so far is returned, marked so.
        memory_limit: Bytes that activations and intermediate results may take.
        feasibility_tol: Largest relative violation of a row that counts as feasible.
        seed: For everything that draws.
        progress: Called after each round.
        start: Where to begin, for methods that can (SQP): for parameters by name the change, as ``checkpoint`` gets it,
            or a repair or a patch of this model.
        checkpoint: Called with the best change so far, a tensor for each parameter, whenever a point is kept.

    Returns:
        The repaired copy, its change and the report. An outcome short of the target is a verdict, not an exception;
        ``report.raise_if_failed()`` makes it one. Ctrl-C returns the best point so far, marked so.

    Raises:
        SpecificationError: Goal, constraints or data are malformed.

    References:
        AutoRIC: Automated Neural Network Repairing Based on Constrained Optimization, TOSEM 2024.
    """
    chosen = _method(method)
    if start is not None and not getattr(chosen, "can_start", False):
        raise SpecificationError(
            f"start: method {type(chosen).__name__} begins at the original network; leave start= out, or use "
            f"method='sqp'."
        )
    begun = time.perf_counter()

    def prepare(weights: Any) -> Prepared:
        left = None if time_limit is None else max(1e-3, time_limit - (time.perf_counter() - begun))
        return prepare_repair(
            model,
            goal,
            constraints,
            target=target,
            data=data,
            held_out=held_out,
            watch=watch,
            weights=weights,
            program=program,
            surrogate=surrogate,
            convexify=convexify,
            trust_radius=trust_radius,
            solver=solver,
            isolate=isolate,
            forward_fn=forward_fn,
            time_limit=left if time_limit is None or time_limit > 0 else time_limit,
            memory_limit=memory_limit,
            feasibility_tol=feasibility_tol,
            seed=seed,
            progress=progress,
            start=start,
            checkpoint=checkpoint,
        )

    if isinstance(chosen, SQP) and isinstance(weights, str) and weights == "auto" and start is None:
        prepared = choose_weights(chosen, prepare)
    else:
        prepared = prepare(weights)
    if prepared.stopped:
        outcome, stopped = Outcome(prepared.task.judge.best.delta, Status.NO_POINT), prepared.stopped
    else:
        outcome, stopped = _run(prepared.task, chosen)
    asked = getattr(chosen, "confidence", None) or 0.0
    confidence = asked if asked > 0.5 else CONFIDENCE
    name = _describe(chosen)
    return conclude_repair(prepared, outcome, method=name, shrink=shrink, stopped=stopped, confidence=confidence)


def _method(method: str | Method) -> Method:
    if isinstance(method, str):
        name = "sqp" if method == "auto" else method
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


def _run(task: Task, method: Method) -> tuple[Outcome, str]:
    """Run the method; an interrupt, a limit or a solver that crashes ends it with the best point so far."""
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
    except SolverError as error:
        if judge.best is judge.original:
            raise  # nothing is lost, and the error says what to do
        task.notes.append(f"A solve failed: {error}")
        reason = "solver failed"
    judge.deadline = None
    if reason not in ("time limit", "interrupted", "solver failed"):
        task.notes.append(f"Nothing was changed: {reason}.")
        return Outcome(judge.original.delta, Status.NO_POINT), ""
    return Outcome(judge.best.delta, Status.FEASIBLE), reason
