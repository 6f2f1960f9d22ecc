"""Woodbury interior point in torch, for far more weights than any dense Hessian allows; CPU or GPU.

Part of repairopt (Apache-2.0); needs nothing but torch. Kinds LP and QP. The Hessian is a diagonal plus a low-rank
term; each iteration factorizes a matrix of the size of rows plus rank. Above some hundred rows a working set keeps
those few, and the others are only multiplied. Measured: 100,000 weights, 9,000 rows, see
``benchmarks/large_programs.py``.

Infeasible and unbounded programs are told by a second program of the same kind: the least total violation, whose
multipliers are the ray, and the steepest direction that no row or bound stops.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from repairopt.program import Array, Kind, Program, Solution, Status, solve_working_set

from .choice import rank
from .dual_active_set import System, active_set
from .primal_dual import Limits, Point, interior_point
from .program_tensors import Data, ProgramTensors

# Every ending of interior_point(), where the program turned out to be neither infeasible nor unbounded.
STATUS = {"solved": Status.OPTIMAL, "stalled": Status.FAILED, "time": Status.NO_POINT, "iterations": Status.NO_POINT}
EVEN = 1e-6  # smallest over largest curvature for which an active set is tried
COLD_STEPS, WARM_STEPS = 15, 40
TINY = 1e-7  # of the largest multiplier: smaller ones prove nothing


@dataclass(frozen=True)
class WoodburyIPM:
    """LP and QP with a diagonal or low-rank Hessian and any number of variables; the default for n above 5,000.

    Attributes:
        time_limit: Seconds, or None. Looked at in each iteration.
        feasibility_tol: Largest residual of rows and optimality conditions, relative to ``1 +`` the size of the data.
        gap_tol: Largest duality gap, relative to ``1 + |objective|``.
        device: Where to compute, for example ``"cuda"``.
        batch: Rows that a round of the working set adds; programs of up to twice as many rows are solved at once.
        memory_limit: Bytes above which to refuse, before anything is allocated.
        max_iter: Iterations of one solve.
        verbose: Kept for a common interface; nothing is printed.
    """

    time_limit: float | None = None
    feasibility_tol: float = 1e-9
    gap_tol: float = 1e-9
    device: str = "cpu"
    batch: int = 200
    memory_limit: float = 8 * 2**30
    max_iter: int = 200
    verbose: bool = False

    name: ClassVar[str] = "woodbury"
    kinds: ClassVar[frozenset[Kind]] = frozenset({Kind.LP, Kind.QP})
    requires: ClassVar[tuple[str, ...]] = ("torch",)

    @staticmethod
    def preference(program: Program) -> float:
        """Its rank among the back ends that are chosen without being asked for."""
        return rank("woodbury", program)

    def solve(self, program: Program) -> Solution:
        """All rows at once where they are few, else a working set of them."""
        if program.m <= 2 * self.batch:
            return _Inner(self).solve(program)
        head = replace(program, matrix=None, lower=np.zeros(0), upper=np.zeros(0), sources=(), n_delta=None)
        found = solve_working_set(
            head,
            _TensorRows(program, torch.device(self.device), self.memory_limit),
            solver=_Inner(self),
            batch=self.batch,
            feasibility_tol=0.5 * self.feasibility_tol,
            time_limit=self.time_limit,
        )
        return Solution(**{name: getattr(found, name) for name in Solution.__dataclass_fields__})


@dataclass
class _Inner:
    """All rows at once; remembers the last point, from which the next round of a working set starts."""

    options: WoodburyIPM
    time_limit: float | None = None
    memory: dict[str, Any] = field(default_factory=dict)

    name: ClassVar[str] = "woodbury"
    kinds: ClassVar[frozenset[Kind]] = WoodburyIPM.kinds
    requires: ClassVar[tuple[str, ...]] = ("torch",)

    def solve(self, program: Program) -> Solution:
        """Active set from the last point where there is one, else interior point."""
        options = self.options
        parts = ProgramTensors(program, torch.device(options.device), options.memory_limit)
        limit = options.time_limit if self.time_limit is None else self.time_limit
        deadline = None if limit is None else time.perf_counter() + limit
        limits = Limits(0.5 * options.feasibility_tol, options.gap_tol, options.max_iter, deadline)
        last, point = self.memory.get("delta"), None
        if parts.n and parts.square and parts.diagonal.min() > EVEN * parts.diagonal.max():
            data = parts.data(copy=False)
            guess = -data.gradient / data.curvature if last is None else parts.tensor(last[parts.free])
            system = System(data, _names(parts), self.memory.get("system"))
            point = active_set(data, guess, COLD_STEPS if last is None else WARM_STEPS, deadline, system)
            self.memory["system"] = system.release()
        if point is None:
            point = interior_point(parts.data(), limits)
        if point.ending in ("stalled", "iterations"):
            solution = _diagnosed(parts, limits)
            if solution is not None:
                return replace(solution, iterations=point.iterations)
        status = STATUS.get(point.ending, Status.FAILED)
        if status is not Status.OPTIMAL:
            return Solution(status, message=point.ending, iterations=point.iterations)
        solution = _solution(parts, point)
        assert solution.delta is not None
        self.memory["delta"] = solution.delta
        return solution


class _TensorRows:
    """All rows: on the device if they fit, else on the CPU, where they are not copied."""

    def __init__(self, program: Program, device: torch.device, memory_limit: float) -> None:
        if 8.0 * program.m * program.n > memory_limit:
            device = torch.device("cpu")
        self.program, self.m, self.device = program, program.m, device
        self.sparse = hasattr(program.matrix, "tocsr")
        self.matrix: Any = program.matrix.tocsr() if self.sparse else torch.as_tensor(program.matrix, device=device)

    def violations(self, delta: Array) -> Array:
        """One pass."""
        values = self.matrix @ (delta if self.sparse else torch.as_tensor(delta, device=self.device))
        products: Array = values if self.sparse else values.cpu().numpy()
        found: Array = np.maximum(self.program.lower - products, products - self.program.upper)
        return found

    def rows(self, index: Any) -> tuple[Any, Array, Array]:
        """Copies of some rows."""
        source = self.matrix if self.sparse else self.program.matrix
        return source[index], self.program.lower[index], self.program.upper[index]


def _names(parts: ProgramTensors) -> Tensor | None:
    """Numbers by which the rows of a working set are known again in the next round; None where they are not unique."""
    samples = [source.sample for source in parts.program.sources]
    if not samples or len(set(samples)) < len(samples):
        return None
    return torch.tensor(samples, device=parts.device)[torch.as_tensor(parts.used, device=parts.device)]


def _solution(parts: ProgramTensors, point: Point) -> Solution:
    """A point in all variables, with the multipliers of all rows and bounds."""
    program, delta, row_duals = parts.program, parts.spread(point.delta), parts.spread_rows(point.row_duals)
    bound_duals = np.zeros(program.n)
    bound_duals[parts.free] = point.bound_duals.cpu().numpy()
    if not parts.free.all():
        curved = parts.diagonal * delta + parts.factor @ (parts.factor.T @ delta)
        slope = curved + program.gradient + program.matrix.T @ row_duals
        bound_duals[~parts.free] = -slope[~parts.free]
    return Solution(
        Status.OPTIMAL,
        delta,
        message="solved",
        row_duals=row_duals,
        bound_duals=bound_duals,
        iterations=point.iterations,
    )


def _diagnosed(parts: ProgramTensors, limits: Limits) -> Solution | None:
    """Infeasible with its ray, or unbounded; None where neither is proven."""
    program = parts.program
    if parts.k:
        point = interior_point(_least_violation(parts), limits)
        ray = parts.spread_rows(point.row_duals)
        if point.ending == "solved" and _proves(program, ray):
            return Solution(Status.INFEASIBLE, message="infeasible: the ray proves it", ray=ray)
    point = interior_point(_steepest_ray(parts), limits)
    direction = point.delta.cpu().numpy()
    slope = float(program.gradient[parts.free] @ direction)
    if point.ending == "solved" and slope < -1e-6 * float(np.abs(program.gradient).max(initial=0.0)):
        return Solution(Status.UNBOUNDED, message="unbounded: a direction falls forever")
    return None


def _least_violation(parts: ProgramTensors) -> Data:
    """Minimize the sum of what the rows lack, two more variables for each."""
    data, k = parts.data(), parts.k
    rows = data.rows
    lengths = torch.linalg.vector_norm(rows, dim=1)
    slack = torch.diag(torch.where(lengths > 0, lengths, 1.0))
    zero, one = torch.zeros(2 * k, dtype=torch.float64, device=parts.device), torch.ones_like
    join = torch.cat
    return Data(
        join([rows, slack, -slack], dim=1),
        zero.new_zeros((0, parts.n + 2 * k)),
        join([torch.zeros_like(data.curvature), zero]),
        join([torch.zeros_like(data.gradient), one(zero)]),
        data.lower,
        data.upper,
        join([data.low, zero]),
        join([data.high, zero + torch.inf]),
    )


def _steepest_ray(parts: ProgramTensors) -> Data:
    """Minimize the slope over directions of at most 1 without curvature, which no row or bound stops."""
    data = parts.data()
    stays = data.curvature > 0
    none = torch.zeros(len(data.factor), dtype=torch.float64, device=parts.device)
    side = lambda values: torch.where(torch.isfinite(values), 0.0, values)  # noqa: E731
    least, most = side(data.low).clamp(min=-1.0), side(data.high).clamp(max=1.0)
    return Data(
        torch.cat([data.rows, data.factor]),
        data.factor[:0],
        torch.where(stays, 1e6 * (1.0 + data.gradient.abs()), 0.0),
        data.gradient,
        torch.cat([side(data.lower), none]),
        torch.cat([side(data.upper), none]),
        torch.where(least < most, least, -1e-12),
        torch.where(least < most, most, 1e-12),
    )


def _proves(program: Program, ray: Array) -> bool:
    """Whether ``ray' A d`` over the box stays above what the sides of the rows allow; small multipliers cut off."""
    ray[np.abs(ray) <= TINY * np.abs(ray).max(initial=0.0)] = 0.0
    ray[~np.isfinite(np.where(ray > 0, program.upper, program.lower)) & (ray != 0)] = 0.0
    used = ray != 0
    allowed = float(ray[used] @ np.where(ray > 0, program.upper, program.lower)[used])
    combined, (low, high) = program.matrix.T @ ray, program.bounds()
    kept = np.abs(combined) > TINY * np.abs(ray).max(initial=0.0)
    least = float(combined[kept] @ np.where(combined > 0, low, high)[kept])
    return least > allowed + 1e-9 * (1.0 + abs(allowed))
