"""APRNN: points and polytopes become right in the ordinary architecture, with every activation pattern kept."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from repairopt.errors import SpecificationError
from repairopt.methods.outcome import Outcome
from repairopt.methods.task import Task
from repairopt.network import Engine, shadow
from repairopt.program import Status
from repairopt.specify import Region, samples_in
from repairopt.surrogate import LinearizedRows, linearize

from .least_norm import LeastNorm, leads_of, solve_least
from .patterns import JoinedRows, PatternRows, ReluInputs
from .region_vertices import points_beside, proved_outcome, regions_of, shape_of, vertices_of


@dataclass(frozen=True, kw_only=True)
class APRNN(LeastNorm):
    """Provable repair of points that keeps the architecture.

    The weights of one layer and the biases after it change, while every ReLU keeps the sign that it has at each point:
    then outputs are affine in the change, and the least one that makes all points right is a linear program (for
    ``norm="l2"`` a quadratic one). All points that rows speak of keep their patterns, and so does the convex hull of
    points that share one. So regions are repaired as a whole, polytopes of any dimension (:meth:`Region.polytope`) and
    boxes of few inputs: their vertices take on the pattern of their center, if the changed weights can make them.

    Choose the weights as a layer with the biases of later ones, such as ``weights=["2.weight", "2.bias", "4.bias"]``.

    Attributes:
        room: How far what a ReLU reads stays from 0, where it was as far; above what rounding does.

    References:
        Tao, Nawas, Mitchell, Thakur, Architecture-Preserving Provable Repair of Deep Neural Networks, PLDI 2023.
        The objective and the bound of 3 are those of PRDNN, as in the authors' code, whose objective also counts
        changes of outputs. Deviations: only changes of weights count; rows of signs are handed to the solver as they
        are violated, in place of one variable for each neuron at each point.

    Example:
        >>> APRNN(norm="l2").room
        0.0001
    """

    uses: ClassVar[frozenset[str]] = frozenset({"weights", "solver", "tolerance", "regions"})
    default_weights: ClassVar[str] = "last"
    systems: ClassVar[Mapping[str, Mapping[str, Any]]] = {"APRNN": {}}

    room: float = 1e-4

    def run(self, task: Task) -> Outcome:
        """Solve one program with rows of answers and of signs, judge the network."""
        regions = regions_of(task, self)
        points = points_beside(task, self, regions)
        _check_weights(task.engine, self)
        vertices = [vertices_of(one, self) for one in regions]
        shape = shape_of(task, points, regions)
        reads = ReluInputs(shadow(task.engine.model), shape, self)
        parts: list[Any] = []
        with task.timed("linearize"):
            if points.constraints:
                linearization = linearize(task.engine, points.constraints, required=leads_of(points, self.buffer))
                parts.append(LinearizedRows(linearization, tuple(range(len(points.constraints)))))
                parts.append(PatternRows(task.engine, reads, _points(points), self.room))
            parts += [self._rows(task, reads, *pair, shape) for pair in zip(regions, vertices, strict=True)]
        solution = solve_least(task, JoinedRows(*parts), self)
        if solution.delta is None:
            task.record("all points", accepted=False, note=str(solution.status))
            if solution.status is Status.INFEASIBLE:
                reason = f"no change of at most limit={self.limit:g} keeps all patterns and makes all points right"
                more = " Regions take one pattern each, in the layers before the changed one, too." if regions else ""
                task.log.note(f"APRNN: {reason}; one may exist with other patterns.{more}")
            return Outcome(np.zeros(task.engine.n), solution.status)
        if regions:
            return proved_outcome(task, solution.delta, solution.status, shape)
        judged = task.judge.keep(solution.delta)
        task.record("all points", judged)
        return Outcome(solution.delta, solution.status, indivisible=True)

    def _rows(self, task: Task, reads: ReluInputs, region: Region, vertices: Tensor, shape: Any) -> PatternRows:
        """Signs and rows of the outputs at the vertices of a region, with the pattern of its center."""
        engine = task.engine
        inputs = vertices.unflatten(1, shape).to(engine.device, engine.dtype)
        with torch.no_grad():
            pattern = (reads(inputs.mean(0, keepdim=True))[1] > 0).expand(len(inputs), -1)
        matrix = region.matrix.expand(len(inputs), *region.matrix.shape)
        least = (region.offset + self.buffer).expand(len(inputs), -1)
        return PatternRows(engine, reads, inputs, self.room, pattern, (matrix, least))


def _points(task: Task) -> Any:
    """The inputs that rows speak of, each once, ``(N, ...)``."""
    every: list[Any] = [*task.constraints]
    return torch.unique(torch.cat([one.inputs[samples_in(one).to(one.inputs.device)] for one in every]), dim=0)


def _check_weights(engine: Engine, method: object) -> None:
    """One layer's weights, and otherwise biases of layers after it."""
    shapes = dict(engine.model.named_parameters(remove_duplicate=False))
    order = [name for name in shapes if name in engine.indices]
    matrices = [name for name in order if shapes[name].ndim > 1]
    before = [] if not matrices else order[: order.index(matrices[0])]
    if len(matrices) > 1 or before:
        raise SpecificationError(
            f"method {type(method).__name__}: changes the weights of one layer and biases from there on; the chosen "
            f"parameters are {', '.join(order[:6])}. Name them, such as weights=['2.weight', '2.bias', '4.bias']."
        )
