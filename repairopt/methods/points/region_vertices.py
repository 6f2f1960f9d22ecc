"""Regions for methods that are exact on convex hulls: their vertices, and the points that are asked for beside them."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from repairopt.errors import SpecificationError
from repairopt.localize import NewWeights
from repairopt.methods.outcome import Outcome
from repairopt.methods.regions.deployed_proof import check_repaired
from repairopt.methods.task import Task
from repairopt.network import Evidence, network_of
from repairopt.program import Array, Status
from repairopt.specify import KeepRegions, Region, SampleConstraint, UnprovedRegions
from repairopt.verify import Judge

from .least_norm import check_linear, points_of

MOST = 10  # inputs that may vary in a box of inputs, whose corners are its vertices


def regions_of(task: Task, method: object) -> list[Region]:
    """The regions that goal and constraints speak of, each with rows that must all hold."""
    found = [one for holder in _holders(task) for one in holder.regions]
    for region in found:
        if int(region.group.max()) + 1 < len(region.group):
            raise SpecificationError(
                f"method {type(method).__name__}: of '{region.name}' one row of several is to hold, which no convex "
                f"program says. Choose method='regions'."
            )
    return found


def vertices_of(region: Region, method: object) -> Tensor:
    """The vertices of a region ``(V, d)``; of a box its corners."""
    if region.vertices is not None:
        return torch.as_tensor(region.vertices)
    varies = torch.nonzero(region.upper > region.lower)[:, 0]
    if len(varies) > MOST:
        raise SpecificationError(
            f"method {type(method).__name__}: '{region.name}' is a box in {len(varies)} dimensions, with too many "
            f"vertices. Choose method='regions'."
        )
    corners = region.lower.repeat(2 ** len(varies), 1)
    for place, dimension in enumerate(varies.tolist()):
        high = torch.arange(len(corners)) >> place & 1 > 0
        corners[high, dimension] = region.upper[dimension]
    return corners


def points_beside(task: Task, method: object, regions: list[Region]) -> Task:
    """As :func:`.least_norm.points_of`, where regions ask for something, too."""
    if not regions:
        return points_of(task, method)
    kept = tuple(one for one in task.spec.constraints if not isinstance(one, KeepRegions))
    spec = replace(task.spec, constraints=kept)
    beside = replace(task, spec=spec, judge=Judge(task.engine, spec, task.judge.deadline))
    if not isinstance(task.goal, UnprovedRegions):
        return points_of(beside, method)
    others = [one.name for one in beside.constraints if not isinstance(one, SampleConstraint)]
    if others:
        raise SpecificationError(
            f"method {type(method).__name__}: '{others[0]}' is no constraint by sample. Choose method='regions'."
        )
    check_linear(beside, [*beside.constraints], type(method).__name__)
    return beside


def shape_of(task: Task, points: Task, regions: list[Region]) -> tuple[int, ...]:
    """The shape of one input."""
    some: Any = points.constraints[0] if points.constraints else None
    return tuple(UnprovedRegions(regions).steps(task.engine.caller).shape if some is None else some.inputs.shape[1:])


def last_layer(task: Task, regions: list[Region]) -> str | None:
    """Name of the linear layer that gives the outputs; None where they come from something else."""
    steps = UnprovedRegions(regions).steps(task.engine.caller)
    return None if steps.last is None or steps.last_index != steps.output else steps.last.layer.removeprefix("model.")


def proved_outcome(task: Task, delta: Array, status: Status, shape: tuple[int, ...]) -> Outcome:
    """The outcome of a change that repairs regions, with the proof of these where bounds give one, checked."""
    candidate = new_weights(task, delta)
    task.record("regions", task.judge.keep(candidate))
    predict = network_of(task.engine, candidate)
    evidence = Evidence.joined([one.evidence(predict) for one in _holders(task)])
    regions = [one for holder in _holders(task) for one in holder.regions]
    checked = check_repaired(candidate.apply(task.engine.model), regions, evidence, shape, seed=task.seed)
    task.log.note(f"Proof of the regions: {checked.describe()}")
    return Outcome(candidate, status, indivisible=True, proof=checked.proof, proof_verdict=checked.verdict)


def new_weights(task: Task, delta: Array) -> NewWeights:
    """A change as the new weights that it leads to."""
    engine = task.engine
    weights = {name: value.detach() for name, value in engine.weights(engine.as_delta(delta)).items()}
    own = dict(engine.model.named_parameters(remove_duplicate=False))
    return NewWeights(weights, sum(int((own[name] != value).sum()) for name, value in weights.items()))


def _holders(task: Task) -> list[Any]:
    return [one for one in (task.goal, *task.constraints) if isinstance(one, UnprovedRegions | KeepRegions)]
