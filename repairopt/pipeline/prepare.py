"""Prepare a repair: check what was passed, choose the weights, judge the original network."""

from __future__ import annotations

import time
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from torch import float64, nn

from repairopt.errors import SpecificationError
from repairopt.localize import (
    Factored,
    Location,
    WeightChange,
    add_factors,
    by_parameter,
    first_inputs,
    gather_change,
    localize,
    wants_factors,
)
from repairopt.methods import Log, Method, Task, TrustRegion, uses
from repairopt.network import Array, Candidate, Engine, Remembering, Stop, limited, split_model
from repairopt.specify import (
    Specification,
    check_repeatable,
    labelled_pairs,
    repeated_rows,
    said_of_contradictions,
    said_of_weights,
)
from repairopt.verify import Judge

from .read_outputs import reading_of
from .settings import Settings


@dataclass(frozen=True, eq=False)
class Prepared:
    """Everything that a method needs, and what the end of a repair needs.

    Attributes:
        model: The user's module; not modified.
        specification: Goal, constraints, what is watched and held out; not anchored.
        task: The repair in progress.
        started: Wall clock and processor time at the start, seconds.
        stopped: Why it ended before a method ran, or empty.
        factored: The network that the task is about, where factors of low rank change in place of weights.
    """

    model: nn.Module
    specification: Specification
    task: Task
    started: tuple[float, float]
    stopped: str = ""
    factored: Factored | None = None

    @property
    def location(self) -> Location:
        """The weights of the user's network that may change."""
        return self.task.location if self.factored is None else self.factored.own

    def as_candidate(self, found: Candidate | Array) -> Candidate:
        """What a method found, as a candidate for the user's network."""
        candidate = WeightChange(self.task.location, found) if isinstance(found, np.ndarray) else found
        return candidate if self.factored is None else self.factored.merged(candidate.apply(self.factored.model))


def prepare_repair(
    model: Any,
    spec: Specification,
    *,
    data: Any = (),
    weights: Any = "auto",
    method: Method,
    settings: Settings | None = None,
    started: tuple[float, float] | None = None,
) -> Prepared:
    """Check what was passed, choose the weights, judge the original network.

    Args:
        model: As for :func:`repairopt.solve_repair`.
        spec: What is stated, with held-out twins; not anchored.
        data: As for :func:`repairopt.solve_repair`.
        weights: As there.
        method: An instance.
        settings: As there.
        started: Wall clock and processor time from which limits count; None for now.

    Returns:
        The repair, ready for a method.

    Raises:
        SpecificationError: Goal, constraints or data are malformed, or a function of the user is random.
    """
    settings = settings or Settings()
    started = started or (time.perf_counter(), time.process_time())
    begun = time.perf_counter()
    network, forward_fn = split_model(model)
    steps = method if isinstance(method, TrustRegion) else TrustRegion()
    steps.check_model()
    convertible = "weights" in uses(method) or getattr(method, "converts_outputs", False)
    forward_fn, note = reading_of(network, forward_fn, spec, convertible=convertible)
    deadline = None if settings.time_limit is None else started[0] + settings.time_limit
    late, where = False, Location({}, None, "none; the method leaves the weights as they are")
    factored: Factored | None = None
    if "weights" in uses(method):
        try:
            if isinstance(weights, str) and weights == "auto":
                weights = getattr(method, "default_weights", weights)
            with limited(deadline):
                if wants_factors(weights):
                    _check_no_limits(spec)
                    factored = add_factors(network, weights, goal=spec, forward_fn=forward_fn, seed=settings.seed)
                    where = factored.location
                else:
                    where = localize(network, weights, goal=spec, forward_fn=forward_fn, seed=settings.seed)
        except Stop:
            late, where = True, Location({}, None, "none; the time limit passed before weights were chosen")
    log = Log(seconds={"localize": time.perf_counter() - begun})
    running = network if factored is None else factored.model
    engine = Engine(running, where.indices, forward_fn=forward_fn, memory_limit=settings.memory_limit)
    log.note(note)
    log.note(repeated_rows(spec, data))
    log.note(said_of_weights((spec.goal, *spec.on_outputs)))
    anchored = spec.anchored(Remembering(engine))
    double = engine.dtype == float64
    log.note(said_of_contradictions(anchored.goal, anchored.on_outputs, double=double))
    checkpoint = settings.checkpoint
    task = Task(
        engine=engine,
        spec=anchored,
        judge=Judge(engine, anchored, deadline),
        location=where,
        model=steps,
        data=labelled_pairs(data),
        new_counts=spec.held_out_counts(engine.predict()),
        solver=settings.solver,
        isolate=settings.isolate,
        tolerance=settings.tolerance,
        seed=settings.seed,
        progress=settings.progress,
        start=None if settings.start is None or late else gather_change(running, where, settings.start),
        checkpoint=None if checkpoint is None else lambda delta: checkpoint(by_parameter(running, where, delta)),
        log=log,
    )
    if not late:
        check_repeatable(spec, engine.predict)
    asked = first_inputs(spec.goal, spec.on_outputs)
    if engine.n and asked is not None:
        engine.check_read(asked)
    return Prepared(network, spec, task, started, "time limit" if late else "", factored)


def _check_no_limits(spec: Specification) -> None:
    """Refuse constraints on the change of weights, which factors are not."""
    if spec.on_change:
        raise SpecificationError(
            f"constraint '{spec.on_change[0].name}': limits the change of weights, and LowRank changes factors. Leave "
            f"it out, or choose weights as they are, such as weights='last'."
        )


def with_weights(prepared: Prepared, where: Location) -> Prepared:
    """The same repair with other weights, for a trial: what does not depend on them is shared, and nothing is checked.

    Args:
        prepared: The repair.
        where: Which weights may change; of a choice that is made from the network's own parameters.

    Returns:
        The repair with these weights.
    """
    task, names = prepared.task, [name for name, _ in prepared.model.named_parameters()]
    indices = {name: where.indices[name] for name in names if name in where.indices}
    shared: Any = {"forward_fn": task.engine.forward_fn, "memory_limit": task.engine.memory_limit}
    engine = Engine(prepared.model, indices, traced=task.engine, **shared)
    judge = Judge(engine, task.spec, task.judge.deadline, task.judge)
    log = Log(seconds=task.log.seconds, notes=[])
    return replace(prepared, task=replace(task, engine=engine, judge=judge, location=where, log=log))
