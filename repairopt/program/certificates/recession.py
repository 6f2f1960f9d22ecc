"""Recession rays: directions along which an objective falls without limit, for claims that a program is unbounded.

From a feasible point ``x``, a direction ``r`` stays feasible for ever where no finite side of a row or bound stops it.
A convex objective falls along it without limit exactly where ``H r = 0`` and ``g'r < 0``, and an unbounded program that
has a point has such a ray. For mixed-integer programs with rational numbers the same ray will do (Meyer, On the
existence of optimal solutions to integer and mixed-integer programming problems, 1974).
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np

from repairopt.program.backends import find_solver, with_options
from repairopt.program.hessian import LowRankHessian
from repairopt.program.program import Array, Hessian, Program
from repairopt.program.rechecking import violations
from repairopt.program.solution import Solver

EXACT = 1e-11  # relative error of a direction, after its polish
SLOPE = 1e-9  # least fall along a direction, relative to the size of its terms
ACTIVE = 1e-7  # of a row of length 1: up to this it is meant to be zero along the direction


def recession_ray(program: Program, *, time_limit: float | None = None) -> Array | None:
    """Find a direction ``(n,)`` of largest entry 1 along which the convex objective falls without limit, or None.

    Whether the program has a point is not looked at. The direction is the optimum of a linear program over the cone of
    all directions within a box, checked from the program's data alone; HiGHS finds it, and is not believed.
    """
    low, high = program.bounds()
    away = np.flatnonzero((np.isinf(low) | np.isinf(high)) & (_diagonal(program.hessian, program.n) <= 0))
    scale = float(np.abs(program.gradient[away]).max(initial=0.0))
    if scale == 0:
        return None
    lines, lower, upper = _cone(program, away)
    box: Any = {"delta_lower": -1.0 * np.isinf(low[away]), "delta_upper": 1.0 * np.isinf(high[away])}
    cone = replace(Program(gradient=program.gradient[away] / scale, matrix=lines, lower=lower, upper=upper), **box)
    found: Any = with_options(find_solver(cone, "highs"), time_limit=time_limit).solve(cone)
    if found.delta is None:
        return None
    ray = np.zeros(program.n)
    ray[away] = np.clip(_polished(lines, np.asarray(found.delta)), *cone.bounds())
    largest = float(np.abs(ray).max())
    return ray / largest if largest > 0 and falls_for_ever(program, ray / largest) else None


def falls_for_ever(program: Program, ray: Array) -> bool:
    """Whether a convex objective falls along a direction without limit, and no side of a row or bound stops it."""
    if not np.all(np.isfinite(ray)) or not _stays_inside(program, ray):
        return False
    bent, size = _bend(program.hessian, ray)
    slopes = program.gradient * ray
    return bent <= 1e-15 * (program.n + 20) * size and float(slopes.sum()) < -SLOPE * float(np.abs(slopes).sum())


def concave_ray(program: Program, solver: Solver) -> Array | None:
    """Find a direction along which a nonconvex objective bends down for ever, or None; by a back end for such."""
    low, high = program.bounds()
    nothing, (lines, lower, upper) = np.zeros(program.n), _cone(replace(program, hessian=None), np.arange(program.n))
    box: Any = {"delta_lower": -1.0 * np.isinf(low), "delta_upper": 1.0 * np.isinf(high)}
    found = solver.solve(
        Program(gradient=nothing, hessian=program.hessian, matrix=lines, lower=lower, upper=upper, **box)
    )
    if found.delta is None:
        return None
    ray = np.where(np.abs(found.delta) > ACTIVE, found.delta, 0.0)
    bent, size = _bend(program.hessian, ray)
    return ray if _stays_inside(program, ray) and bent < -ACTIVE * size else None


def feasible_point(program: Program, hint: Array | None, tol: float, time_limit: float | None) -> Array | None:
    """A point ``(n,)`` that holds all rows to a relative ``tol``: the hint, or what HiGHS finds; None where neither."""
    without = replace(program, hessian=None, gradient=np.zeros(program.n))
    for attempt in range(2):
        if attempt:
            hint = with_options(find_solver(without, "highs"), time_limit=time_limit).solve(without).delta
        if hint is not None and np.all(np.isfinite(hint)):
            values = np.asarray(program.matrix @ hint)
            if violations(program, np.asarray(hint, dtype=np.float64), values)[1] <= tol:
                return np.asarray(hint, dtype=np.float64)
    return None


def _diagonal(hessian: Hessian | None, n: int) -> Array:
    """The part of the curvature that a low-rank Hessian has on its diagonal alone."""
    return hessian.diagonal if isinstance(hessian, LowRankHessian) else np.zeros(n)


def _cone(program: Program, away: Any) -> tuple[Any, Array, Array]:
    """The rows that a direction over some variables must hold, each of length about 1, and their sides, 0 or none."""
    from scipy import sparse

    parts = [sparse.csr_matrix(program.matrix)[:, away]] if program.m else []
    lower = [np.where(np.isfinite(program.lower), 0.0, -np.inf)]
    upper = [np.where(np.isfinite(program.upper), 0.0, np.inf)]
    if program.hessian is not None:
        curved: Any = program.hessian.factor.T if isinstance(program.hessian, LowRankHessian) else program.hessian
        parts.append(sparse.csr_matrix(curved[:, away]))
        lower, upper = [*lower, np.zeros(len(curved))], [*upper, np.zeros(len(curved))]
    lines = sparse.vstack(parts, format="csr") if parts else sparse.csr_matrix((0, len(away)))
    length = abs(lines).max(axis=1).toarray().ravel() if lines.nnz else np.zeros(lines.shape[0])
    used = np.flatnonzero(length > 0)
    lines = sparse.diags(1.0 / length[used]) @ lines[used]
    return sparse.csr_matrix(lines), np.concatenate(lower)[used], np.concatenate(upper)[used]


def _polished(lines: Any, ray: Array) -> Array:
    """The direction with the rows that are nearly zero along it made zero, to rounding."""
    ray = np.where(np.abs(ray) > SLOPE, ray, 0.0)
    moved, held = np.flatnonzero(ray), np.abs(lines @ ray) <= ACTIVE
    if len(moved) and held.any():
        active = lines[np.flatnonzero(held)][:, moved].toarray()
        ray[moved] -= np.linalg.lstsq(active, active @ ray[moved], rcond=None)[0]
    return ray


def _stays_inside(program: Program, ray: Array) -> bool:
    low, high = program.bounds()
    if np.any((ray < 0) & np.isfinite(low)) or np.any((ray > 0) & np.isfinite(high)):
        return False
    if not program.m:
        return True
    along, size = np.asarray(program.matrix @ ray), EXACT * np.asarray(abs(program.matrix) @ np.abs(ray))
    stopped = (np.isfinite(program.lower) & (along < -size)) | (np.isfinite(program.upper) & (along > size))
    return not bool(stopped.any())


def _bend(hessian: Hessian | None, ray: Array) -> tuple[float, float]:
    """``r'Hr`` and the size of its terms."""
    if hessian is None:
        return 0.0, 0.0
    if isinstance(hessian, LowRankHessian):
        across, terms = hessian.factor.T @ ray, np.abs(hessian.factor).T @ np.abs(ray)
        along = hessian.diagonal * ray**2
        return float(along.sum() + across @ across), float(np.abs(along).sum() + terms @ terms)
    return float(ray @ (hessian @ ray)), float(np.abs(ray) @ (np.abs(hessian) @ np.abs(ray)))
