"""Prepare a repair: check what was passed, choose the weights, judge the original network."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from .apply import by_parameter, gather_change
from .convert_data import column_names, is_dataset, to_tensors
from .errors import SpecificationError
from .evaluate import Engine, ForwardFunction, Remembering
from .judge import Judge
from .linearize import anchor, margins_at, required_margins
from .localize import Location, localize
from .methods.task import Round, Task
from .solve import Solver
from .specify import CallableProperty, Constraint, Property, Specification, check_labelled
from .surrogate import SurrogateSettings
from .surrogates.convexify import check_way
from .validity.rows import overlap


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


def repeated_rows(spec: Specification, data: Any) -> str:
    """A warning where held-out rows stand in the repair data too; empty where none do."""
    own = [x for item in (spec.goal, *spec.on_outputs) for x in _inputs_of(item)] + [x for x, _ in labelled_pairs(data)]
    held_out = [x for item in spec.held_out for x in _inputs_of(item)]
    counts = {x.data_ptr(): (overlap(own, [x]), len(x)) for x in held_out}  # statements may share rows: the most counts
    count, total = max(counts.values(), default=(0, 0))
    if not count:
        return ""
    return (
        f"{count:,} of {total:,} held-out rows equal a row of the repair data: what the report says of held-out "
        f"data is too good by that much. Split by rows, without repeats, before the repair."
    )


def _inputs_of(item: Any) -> list[Tensor]:
    """Inputs of a property or constraint of samples; sampled inputs, which nobody held out, do not count."""
    item = getattr(item, "property", item)
    if not getattr(item, "statistical", True):
        return []
    found = getattr(item, "inputs", None)
    if found is None:
        samples = getattr(item, "samples", None)
        found = None if getattr(samples, "paired", False) else getattr(samples, "inputs", None)
    return [found] if isinstance(found, Tensor) else []


def make_specification(goal: Any, constraints: Any, target: float | None, held_out: Any, watch: Any) -> Specification:
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
    if is_dataset(held_out) or (pair and not any(isinstance(item, Property | Constraint) for item in held_out)):
        given, labels = (held_out, None) if is_dataset(held_out) else held_out
        items = [item for item in (spec.goal, *spec.watch, *spec.on_outputs) if hasattr(item, "on")]
        _check_columns(items, given)
        inputs, labels = to_tensors(given, labels, owner="held_out")
        held_out = tuple(item.on(inputs, labels) for item in items)
    return replace(spec, held_out=held_out)


def _check_columns(items: list[Any], inputs: Any) -> None:
    """Held-out frames have the columns of the frames that groups were made from, in the same order."""
    names = column_names(inputs)
    for item in items:
        own = getattr(getattr(getattr(item, "property", item), "samples", None), "columns", ())
        if own and names and own != names:
            raise SpecificationError(
                f"held_out: its columns are {', '.join(names[:20])}; those of '{item.name}' are {', '.join(own[:20])}. "
                f"Bring them into the same order, frame[columns]."
            )


def _new_counts(engine: Engine, spec: Specification) -> dict[str, int]:
    """How many held-out samples goal and bounds will be measured on; of the held-out data nothing else is read."""
    found: dict[str, int] = {}
    for item in spec.held_out:
        measured: Any = getattr(item, "property", item)
        if hasattr(measured, "interval"):
            with torch.no_grad():
                found[item.name] = int(anchor(measured, engine.predict()).interval(engine.predict(), 0.9).count)
    return found


def labelled_pairs(data: Any) -> tuple[tuple[Tensor, Tensor], ...]:
    """``(inputs, labels)``, a dataset or loader of pairs, or a list of these, checked."""
    if is_dataset(data):
        return (check_labelled("data", data, None, integers=True),)
    if isinstance(data, tuple | list) and not len(data):
        return ()
    single = isinstance(data, tuple) and len(data) == 2 and not isinstance(data[0], tuple)
    pairs = [data] if single else data
    if isinstance(pairs, list | tuple):
        pairs = [(one, None) if is_dataset(one) else one for one in pairs]
    if not isinstance(pairs, list | tuple) or any(not isinstance(p, tuple | list) or len(p) != 2 for p in pairs):
        raise SpecificationError(
            f"data: expected a pair (inputs, labels), or a list of such pairs; got {type(data).__name__}."
        )
    return tuple(check_labelled("data", *pair, integers=True) for pair in pairs)


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
