"""PRDNN: points become right by the least change of one layer of a decoupled network, a linear program."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch

from repairopt.errors import SpecificationError
from repairopt.localize import Wrapped
from repairopt.methods.outcome import Outcome
from repairopt.methods.postprocess.two_networks import network_of_logits
from repairopt.methods.settings import Expected, check_settings
from repairopt.methods.task import Task
from repairopt.network import Array, Candidate
from repairopt.program import Status
from repairopt.specify import Region
from repairopt.surrogate import LinearizedRows, linearize

from .least_norm import LeastNorm, leads_of, one_layer, solve_least
from .output_rows import linear_copy
from .patterns import JoinedRows
from .polytopes import Polytope, plane_polytope, rows_of_polytopes
from .region_vertices import last_layer, points_beside, proved_outcome, regions_of, shape_of


@dataclass(frozen=True, kw_only=True)
class PRDNN(LeastNorm):
    """Provable repair of points by a decoupled network.

    One layer changes in the value channel of a decoupled network (:class:`.decoupled.Decoupled`), whose activation
    channel stays as it was: outputs are affine in the change, so the least change that makes all points right is a
    linear program (for ``norm="l2"`` a quadratic one), and what it finds holds exactly. For the last linear layer the
    decoupled network is the ordinary one, and the candidate a change of its weights; else it is a network around the
    original.

    Segments and plane polygons are divided into the linear regions of the network, and rows at the vertices of each
    make whole polytopes right, for networks that are piecewise linear. Such regions may be the goal where the last
    layer changes; decoupled networks of other layers have no bounds, so there they are named as ``polytopes``.

    Attributes:
        polytopes: Segments and polygons of inputs that must be right as a whole, beside the points: regions such as
            :meth:`Region.polytope` makes, or :class:`Polytope`.
        soft: Whether points may stay wrong where not all can be right: each lack of a lead then has a price.
        price: Of the mean lack, over the norm of the change.

    References:
        Sotoudeh and Thakur, Provable Repair of Deep Neural Networks, PLDI 2021. As in the authors' code: the objective
        ``|d|_1 / n + |d|_inf``, changes of at most 3, leads of at least 0.05, rows hard, or soft by the mean lack.
        Deviations: rows are handed to the solver as they are violated; soft rows are tried only where hard ones have no
        solution, at a price above the published 1.

    Example:
        >>> PRDNN(norm="linf").limit
        3.0
    """

    uses: ClassVar[frozenset[str]] = frozenset({"weights", "solver", "tolerance", "regions"})
    default_weights: ClassVar[str] = "last"
    systems: ClassVar[Mapping[str, Mapping[str, Any]]] = {"PRDNN": {}}

    polytopes: Sequence[Polytope | Region] = ()
    soft: bool = True
    price: float = 1000.0

    def __post_init__(self) -> None:
        super().__post_init__()
        check_settings(self, {"price": Expected(above=True)})

    def run(self, task: Task) -> Outcome:
        """Solve one program, judge the decoupled network."""
        regions = regions_of(task, self)
        points = points_beside(task, self, regions)
        layer = one_layer(task.engine, self)
        if regions and layer != last_layer(task, regions):
            raise SpecificationError(
                f"method PRDNN: a change of '{layer}' makes a decoupled network, without bounds that could prove a "
                f"region. Choose weights='last', or state points as the goal and the regions as polytopes=."
            )
        if task.engine.forward_fn is not None and (regions or self.polytopes):
            raise SpecificationError(
                "method PRDNN: follows regions through the module itself, whose outputs the repair reads in another "
                "way, as of a softmax or a Classifier. Give a module whose call takes the inputs and gives logits."
            )
        polytopes = [one if isinstance(one, Polytope) else plane_polytope(one, self) for one in self.polytopes]
        polytopes += [plane_polytope(one, self) for one in regions]
        parts: list[Any] = []
        with task.timed("linearize"):
            if points.constraints:
                linearization = linearize(task.engine, points.constraints, required=leads_of(points, self.buffer))
                parts.append(LinearizedRows(linearization, tuple(range(len(points.constraints)))))
                if not task.engine.exact:  # before the program is solved: whether a network can be decoupled
                    network_of_logits(task, self)
            if polytopes:
                shape = shape_of(task, points, regions)
                copy = linear_copy(task.engine.model, shape, self)
                parts.append(rows_of_polytopes(task.engine, copy, polytopes, shape, self.buffer))
        rows: Any = JoinedRows(*parts) if len(parts) > 1 else parts[0]
        solution = solve_least(task, rows, self)
        softened = solution.delta is None and solution.status is Status.INFEASIBLE and self.soft
        if softened:
            task.record("all points", accepted=False, note="no change of this layer makes all points right")
            solution = solve_least(task, rows, self, price=self.price)
        if solution.delta is None:
            task.record("all points", accepted=False)
            return Outcome(np.zeros(task.engine.n), solution.status)
        if regions and not softened:
            return proved_outcome(task, solution.delta, solution.status, shape)
        candidate = decoupled_candidate(task, self, solution.delta)
        judged = task.judge.keep(candidate)
        task.record("most points" if softened else "all points", judged)
        return Outcome(candidate, solution.status, indivisible=True)


def decoupled_candidate(task: Task, method: object, delta: Array) -> Candidate | Array:
    """The change itself where outputs are affine in it, else a decoupled network."""
    if task.engine.exact or not np.any(delta):
        return delta
    own, change, start = dict(task.engine.model.named_parameters(remove_duplicate=False)), {}, 0
    for name, index in task.engine.indices.items():
        flat = torch.zeros_like(own[name]).flatten()
        flat[index] = torch.as_tensor(delta[start : start + len(index)]).to(flat)
        change[name], start = flat.view(own[name].shape), start + len(index)
    return Wrapped("decoupled", network_of_logits(task, method)[1], change)
