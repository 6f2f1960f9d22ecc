"""REASSURE: the linear region around each wrong point is repaired as a whole by a patch of least change."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch

from repairopt.errors import SpecificationError
from repairopt.localize import Wrapped
from repairopt.methods.outcome import Outcome
from repairopt.methods.settings import Expected, check_settings
from repairopt.methods.task import Task
from repairopt.program import AffineLayer, Array, LayeredNetwork, Program, RectifierLayer, Status
from repairopt.verify import Judgement

from .least_norm import leads_of, points_of
from .output_rows import linear_copy, rows_of_outputs

GROWTH, STEEPEST = 8.0, 1e7  # of gamma
WIDER = 0.5  # by how many of its widths the box of known inputs grows on each side


@dataclass(frozen=True, kw_only=True)
class REASSURE:
    """Provable repair of points and of the linear regions around them, by patches.

    For each wrong point a linear program finds the affine function of least largest size that makes all inputs of the
    point's linear region right; a gate adds it on this region and on a shell around of width ``1 / gamma``, and nowhere
    else. No weight changes; the network grows with every patch. It is for piecewise linear networks of few inputs: a
    program has some ``2 k (d + m)`` variables for ``d`` inputs, ``k`` outputs and ``m`` neurons.

    A region is right as a whole but where the shell of another patch reaches into it. The steepness grows until every
    given point is right and no bound is broken, or ``STEEPEST`` is reached; a larger ``gamma`` makes thinner shells.

    Attributes:
        lower: Smallest input that occurs, a number or ``(d,)``; None for half a width below those of the given points.
        upper: Largest input that occurs.
        buffer: Smallest lead that points get, on all of their region.
        gamma: Inverse width of the shells at first, in units of the inputs.

    References:
        Fu and Li, Sound and Complete Neural Network Repair with Minimality and Locality Guarantees, ICLR 2022; gamma
        of 10 at first as in the authors' code. Deviation: half-spaces are left out where the box of inputs implies
        them, not by a linear program for each.

    Example:
        >>> REASSURE(lower=-1.0, upper=1.0).gamma
        10.0
    """

    uses: ClassVar[frozenset[str]] = frozenset({"solver"})
    systems: ClassVar[Mapping[str, Mapping[str, Any]]] = {"REASSURE (RA)": {}}

    lower: Any = None
    upper: Any = None
    buffer: float = 0.05
    gamma: float = 10.0

    def __post_init__(self) -> None:
        check_settings(self, {"buffer": Expected(), "gamma": Expected(above=True)})

    def run(self, task: Task) -> Outcome:
        """One program for each region with a wrong point, then gates as steep as it takes."""
        points = points_of(task, self)
        if task.engine.forward_fn is not None:
            raise SpecificationError("method REASSURE: runs the module itself; give the network without a forward_fn.")
        some: Any = points.constraints[0]
        copy = linear_copy(task.engine.model, tuple(some.inputs.shape[1:]), self)
        rows = rows_of_outputs(points, leads_of(points, self.buffer))
        box = self._box(np.concatenate([one.inputs for one in rows]))
        patches: list[_Patch] = []
        for part in rows:
            for i in np.flatnonzero(part.wrong):
                if not any(patch.covers(part.inputs[i], part.matrix[i]) for patch in patches):
                    found = self._patch(task, copy, part.inputs[i], part.matrix[i], part.least[i], box)
                    patches += [] if found is None else [found]
        if not patches:
            return Outcome(np.zeros(task.engine.n), Status.INFEASIBLE)
        best = self._steepened(task, points, patches)
        return Outcome(best.candidate, Status.OPTIMAL, indivisible=True)

    def _box(self, inputs: Array) -> tuple[Array, Array]:
        low, high = inputs.min(0), inputs.max(0)
        width = np.maximum(high - low, 1e-3 * max(1.0, float(np.abs(inputs).max())))
        sides = []
        ends = (("lower", self.lower, low - WIDER * width), ("upper", self.upper, high + WIDER * width))
        for name, given, default in ends:
            side = default if given is None else np.asarray(given, dtype=np.float64).ravel()
            if side.size not in (1, low.size) or not np.isfinite(side).all():
                raise SpecificationError(
                    f"method REASSURE: {name}={given!r}; expected a number, or one for each input."
                )
            sides.append(np.broadcast_to(side, low.shape).copy())
        if (inputs < sides[0]).any() or (inputs > sides[1]).any():
            raise SpecificationError("method REASSURE: a point lies outside of lower and upper.")
        return sides[0], sides[1]

    def _patch(self, task: Task, copy: LayeredNetwork, x: Array, rows: Array, least: Array, box: Any) -> _Patch | None:
        """The patch of one point's region, or None where it has none."""
        region = linear_region(copy, x, *box)
        slope, shift = region.slope, region.shift
        program = patch_program(region, -rows, -least)
        solution = task.solve_program(program)
        if solution.delta is None:
            task.record("patch", accepted=False, note=str(solution.status))
            return None
        task.record("patch")
        k, d = slope.shape[0], slope.shape[1]
        own, offset = solution.delta[: k * d].reshape(k, d), solution.delta[k * d : k * d + k]
        middle, half = (box[0] + box[1]) / 2, (box[1] - box[0]) / 2
        bound = np.abs(own @ middle + offset) + np.abs(own) @ half
        after = rows @ (own + slope), rows @ (offset + shift) - least
        return _Patch(region, own, offset, bound * (1 + 1e-6) + 1e-9, rows, after)

    def _steepened(self, task: Task, points: Task, patches: list[_Patch]) -> Judgement:
        """The patches behind gates that are steep enough: every point right, and no bound broken."""
        gamma, best = self.gamma, None
        while True:
            candidate = Wrapped("patches", {"gamma": gamma}, _tensors(patches))
            judged = points.judge(candidate)
            if best is None or judged.better_than(best):
                best, kept = judged, candidate
            if judged.feasible or gamma >= STEEPEST:
                break
            gamma *= GROWTH
        found = task.judge.keep(kept)
        task.log.last = (0, 0, None)
        task.record(f"{len(patches)} patches, gamma {kept.settings['gamma']:g}", found)
        return found


@dataclass(frozen=True, eq=False)
class LinearRegion:
    """Inputs ``normals x <= sides`` on which a network is ``slope x + shift``; normals have length 1."""

    normals: Array
    sides: Array
    slope: Array
    shift: Array


@dataclass(frozen=True, eq=False)
class _Patch:
    """A region, its patch ``slope x + shift`` of at most ``bound`` on the box, and the rows that hold after it."""

    region: LinearRegion
    slope: Array
    shift: Array
    bound: Array
    rows: Array
    after: tuple[Array, Array]

    def covers(self, x: Array, rows: Array) -> bool:
        """Whether a point lies in the region, and asks for the same."""
        inside = bool((self.region.normals @ x <= self.region.sides + 1e-9).all())
        return inside and rows.shape == self.rows.shape and np.array_equal(rows, self.rows)


def linear_region(copy: LayeredNetwork, x: Array, lower: Array, upper: Array) -> LinearRegion:
    """The linear region of a piecewise linear network that an input is in, within a box."""
    values = [x[None]]
    forms = [(np.eye(len(x)), np.zeros(len(x)))]
    normals, sides = [], []
    for layer in copy.layers:
        own = [forms[parent] for parent in layer.inputs]
        values.append(layer.run([values[parent] for parent in layer.inputs]))
        if isinstance(layer, RectifierLayer):
            slope, shift = own[0]
            read = values[layer.inputs[0]][0]
            sign = np.where(read > 0, -1.0, 1.0)  # sign * (slope x + shift) <= 0
            normals.append(sign[:, None] * slope)
            sides.append(-sign * shift)
            factor = np.where(read > 0, 1.0, layer.leak)
            forms.append((factor[:, None] * slope, factor * shift))
        elif isinstance(layer, AffineLayer):
            slope, shift = own[0]
            moved = layer.apply(layer.weight, np.concatenate([slope.T, shift[None]])).T
            forms.append((moved[:, :-1], moved[:, -1] + layer.bias))
        else:
            forms.append((np.sum([one[0] for one in own], axis=0), np.sum([one[1] for one in own], axis=0)))
    eye = np.eye(len(x))
    matrix, side = np.concatenate([*normals, eye, -eye]), np.concatenate([*sides, upper, -lower])
    length = np.linalg.norm(matrix, axis=1)
    largest = np.maximum(matrix, 0) @ upper + np.minimum(matrix, 0) @ lower
    kept = (length > 1e-12) & (largest > side)  # others hold on the whole box
    kept[len(matrix) - 2 * len(x) :] = True
    return LinearRegion(matrix[kept] / length[kept, None], side[kept] / length[kept], *forms[-1])


def patch_program(region: LinearRegion, rows: Array, most: Array) -> Program:
    """Least ``H`` with ``|c x + d| <= H`` and ``rows @ (f(x) + c x + d) <= most`` on all of a region, by duality.

    Variables: ``c (k, d)``, ``d (k,)``, ``H``, and multipliers of the region's half-spaces for each side of each
    patched output and for each row.
    """
    from scipy import sparse

    (m, d), k, r = region.normals.shape, len(region.shift), len(rows)
    start_d, start_h, start_q = k * d, k * d + k, k * d + k + 1
    count = start_q + (2 * k + r) * m
    transposed = sparse.csr_matrix(region.normals.T)
    blocks, lower, upper = [], [], []

    def columns(part: Any, start: int) -> Any:
        part = sparse.csr_matrix(part)
        after = sparse.csr_matrix((part.shape[0], count - start - part.shape[1]))
        return sparse.hstack([sparse.csr_matrix((part.shape[0], start)), part, after], format="csr")

    def slopes(weights: Array) -> Any:
        """``weights (k,) @ c`` as ``d`` rows."""
        return columns(sparse.hstack([float(w) * sparse.identity(d) for w in weights]), 0)

    sides = [(sign * np.eye(k)[j], 0.0) for j in range(k) for sign in (1.0, -1.0)]
    for number, (weights, _) in enumerate([*sides, *((row, 0.0) for row in rows)]):
        at = start_q + number * m
        is_row = number >= 2 * k
        fixed = weights @ region.slope if is_row else np.zeros(d)
        blocks.append(columns(transposed, at) - slopes(weights))
        lower.append(fixed)
        upper.append(fixed)
        last = columns(region.sides[None], at) + columns(weights[None], start_d)
        blocks.append(last if is_row else last - columns(np.ones((1, 1)), start_h))
        lower.append(np.array([-np.inf]))
        upper.append(np.array([most[number - 2 * k] - weights @ region.shift if is_row else 0.0]))
    free = np.full(start_q, -np.inf)
    return Program(
        gradient=np.concatenate([np.zeros(start_h), [1.0], np.zeros(count - start_q)]),
        matrix=sparse.vstack(blocks, format="csr"),
        lower=np.concatenate(lower),
        upper=np.concatenate(upper),
        delta_lower=np.concatenate([free, np.zeros(count - start_q)]),
        delta_upper=np.full(count, np.inf),
        n_delta=start_h,
    )


def _tensors(patches: list[_Patch]) -> dict[str, torch.Tensor]:
    """What :class:`.patch_network.PatchNetwork` adds; regions are padded with half-spaces that always hold."""
    most = max(len(patch.region.sides) for patch in patches)
    normals = [np.pad(one.region.normals, ((0, most - len(one.region.sides)), (0, 0))) for one in patches]
    sides = [np.pad(one.region.sides, (0, most - len(one.region.sides)), constant_values=1.0) for one in patches]
    parts = {"normals": normals, "sides": sides}
    parts |= {name: [getattr(one, name) for one in patches] for name in ("slope", "shift", "bound")}
    return {name: torch.from_numpy(np.stack(value)) for name, value in parts.items()}
