"""Prepare a repair: check what was passed, choose the weights, judge the original network."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from repairopt.errors import SpecificationError
from repairopt.localize import Location, by_parameter, gather_change, localize
from repairopt.methods import Task
from repairopt.network import Engine, ForwardFunction, Remembering
from repairopt.program import Solver
from repairopt.specify import (
    Property,
    Specification,
    Statistical,
    anchor,
    labelled_pairs,
    make_specification,
    margins_at,
    measured,
    repeated_rows,
    required_margins,
)
from repairopt.surrogate import SurrogateSettings, check_way
from repairopt.verify import Judge, Round


@dataclass(frozen=True, eq=False)
class Prepared:
    """Everything that a method needs, and what the end of a repair needs.

    Attributes:
        model: The user's model; not modified.
        specification: Goal, constraints, what is watched and held out.
        location: The weights that may change.
        task: The repair in progress.
        forward_fn: As passed.
        memory_limit: As passed.
        started: Wall clock at the start, seconds.
        cpu_started: Processor time at the start, seconds.
        stopped: Why it ended before a method ran, or empty.
    """

    model: nn.Module
    specification: Specification
    location: Location
    task: Task
    forward_fn: ForwardFunction | None
    memory_limit: int
    started: float
    cpu_started: float
    stopped: str = ""


def prepare_repair(
    model: nn.Module,
    goal: Property | Callable[..., Any],
    constraints: Any = (),
    *,
    target: float | None = None,
    data: Any = (),
    held_out: Any = (),
    watch: Any = (),
    weights: Any = "auto",
    program: str = "qp",
    surrogate: str | SurrogateSettings = "auto",
    convexify: str = "project",
    trust_radius: float = 1.0,
    solver: str | Solver | None = None,
    isolate: bool = False,
    forward_fn: ForwardFunction | None = None,
    time_limit: float | None = None,
    memory_limit: int = 2**30,
    feasibility_tol: float = 1e-6,
    seed: int = 0,
    progress: Callable[[Round], None] | None = None,
    start: Any = None,
    checkpoint: Callable[[dict[str, Tensor]], None] | None = None,
) -> Prepared:
    """Check what was passed, choose the weights, judge the original network.

    Args:
        model: As for :func:`repairopt.solve_repair`, as all that follows.
        goal: Same.
        constraints: Same.
        target: Same.
        data: Same.
        held_out: Same.
        watch: Same.
        weights: Same.
        program: Same.
        surrogate: Same.
        convexify: Same.
        trust_radius: Same.
        solver: Same.
        isolate: Same.
        forward_fn: Same.
        time_limit: Same.
        memory_limit: Same.
        feasibility_tol: Same.
        seed: Same.
        progress: Same.
        start: Same.
        checkpoint: Same.

    Returns:
        The repair, ready for a method.

    Raises:
        SpecificationError: Goal, constraints or data are malformed.
    """
    started, cpu = time.perf_counter(), time.process_time()
    specification = make_specification(goal, constraints, target, held_out, watch)
    seconds: dict[str, float] = {}
    where = localize(
        model, weights, goal=specification.goal, constraints=specification.on_outputs, forward_fn=forward_fn, seed=seed
    )
    seconds["localize"] = time.perf_counter() - started
    engine = Engine(model, where.indices, forward_fn=forward_fn, memory_limit=memory_limit)
    check_way(convexify)
    repeated = repeated_rows(specification, data)
    task = _task(
        engine,
        specification,
        deadline=None if time_limit is None else started + _positive("time_limit", time_limit),
        surrogate=_settings(surrogate, seed),
        convexify=convexify,
        linear=_is_linear(program),
        trust_radius=_positive("trust_radius", trust_radius),
        solver=solver,
        isolate=isolate,
        feasibility_tol=feasibility_tol,
        data=labelled_pairs(data),
        new_counts=_new_counts(engine, specification),
        seed=seed,
        progress=progress,
        start=None if start is None else gather_change(model, where, start),
        checkpoint=None if checkpoint is None else lambda delta: checkpoint(by_parameter(model, where, delta)),
        seconds=seconds,
    )
    task.notes += [repeated] if repeated else []
    return Prepared(model, specification, where, task, forward_fn, memory_limit, started, cpu)


def _new_counts(engine: Engine, spec: Specification) -> dict[str, int]:
    """How many held-out samples goal and bounds will be measured on; of the held-out data nothing else is read."""
    found: dict[str, int] = {}
    for item in spec.held_out:
        prop = measured(item)
        if isinstance(prop, Statistical):
            with torch.no_grad():
                found[item.name] = int(anchor(prop, engine.predict()).interval(engine.predict(), 0.9).count)
    return found


def _settings(surrogate: str | SurrogateSettings, seed: int) -> SurrogateSettings:
    if isinstance(surrogate, SurrogateSettings):
        return surrogate
    return SurrogateSettings(kind=surrogate, seed=seed)


def _is_linear(program: str) -> bool:
    if program not in ("qp", "lp"):
        raise SpecificationError(f"program={program!r}; choose qp or lp.")
    return program == "lp"


def _positive(name: str, value: float) -> float:
    if not value > 0:
        raise SpecificationError(f"{name}={value}; expected a number above 0.")
    return float(value)


def _task(engine: Engine, spec: Specification, *, deadline: float | None, **settings: Any) -> Task:
    """What is taken from the original network: anchored constraints, required margins, the first judgement."""
    predict = Remembering(engine)
    anchored = tuple(anchor(constraint, predict) for constraint in spec.on_outputs)
    goal = anchor(spec.goal, predict)
    margins = margins_at(predict, anchored)
    required = tuple(required_margins(c, m) for c, m in zip(anchored, margins, strict=True))
    judge = Judge(engine, goal, anchored, spec.on_change, deadline)
    return Task(engine, goal, anchored, spec.on_change, judge, required, **settings)
