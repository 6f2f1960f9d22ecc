"""Farkas certificates: multipliers of the rows that prove that no point satisfies a program.

For multipliers ``y`` (positive ones paired with upper sides, negative ones with lower sides), every point that holds
the rows has ``(A' y)' d <= s`` with ``s = sum_i (y_i+ upper_i - y_i- lower_i)``. If the least value of ``(A' y)' d``
over the box of the variables, ``sum_j min(w_j delta_lower_j, w_j delta_upper_j)`` with ``w = A' y``, is above ``s``,
there is no such point. A variable without a bound on the side that the minimum wants needs ``w_j = 0``.

The check in float64 subtracts a bound on all of its rounding errors. Where ``w_j`` has to be 0, which rounding cannot
show, small programs are checked in rational arithmetic, with ``y`` adjusted so that ``w_j`` is 0 exactly; for large
ones the proof covers the points within ``reach``.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from repairopt.errors import ProgramError
from repairopt.program.program import Array, Program
from repairopt.program.rechecking import row_norms
from repairopt.program.solution import FarkasCertificate, Solver, Status

from .duality import UNIT, absolute_columns, gamma, unbounded_side
from .elastic import elastic_points
from .exact_check import balanced_system
from .rational import round_down

REACH = 1e6  # times the size of sides over row norms
NEGLIGIBLE = (0.0, 1e-12, 1e-9, 1e-6)  # share of the largest multiplier up to which others are dropped, tried in turn
NEARLY = 1e-5  # of |A|'|y|: up to this w may be made zero by moving the multipliers


def farkas_certificate(
    program: Program,
    *,
    ray: Array | None = None,
    exact: bool = False,
    solver: str | Solver | None = None,
    time_limit: float | None = None,
) -> FarkasCertificate | None:
    """Prove that a program has no solution; None where no multipliers passed the check: it has one, or nearly so.

    Tries the given ray, which is not trusted, then the multipliers of an elastic linear program (violations over row
    norms, the largest minimized; ``time_limit`` for each of its rounds), which prove infeasibility down to depths of
    some 1e-10. Integrality is ignored. ``exact`` checks in rational arithmetic in any case; a ProgramError where the
    rows that take part are too large for that.
    """
    relaxed = replace(program, integer=None, hessian=None, gradient=np.zeros(program.n))
    if ray is not None:
        found = check_ray(relaxed, ray, exact=exact)
        if found is not None:
            return found
    if program.m == 0:
        return None
    for point in elastic_points(relaxed, measure="max", scaled=True, solver=solver, time_limit=time_limit):
        if point.status is Status.OPTIMAL and point.row_duals is not None:
            found = check_ray(relaxed, point.row_duals, exact=exact)
            if found is not None:
                return found
    return None


def check_ray(program: Program, ray: Array, *, exact: bool = False) -> FarkasCertificate | None:
    """Check whether multipliers ``(m,)``, any numbers, prove that rows and bounds contradict each other.

    Objective and integrality are ignored; ``exact`` is that of :func:`farkas_certificate`. None where the check fails
    or the shape is wrong.
    """
    if np.shape(ray) != (program.m,):
        return None
    usable = np.where(ray > 0, np.isfinite(program.upper), np.isfinite(program.lower)) & np.isfinite(ray)
    kept = np.where(usable, np.asarray(ray, dtype=np.float64), 0.0)
    largest = float(np.abs(kept).max(initial=0.0))
    if largest == 0:
        return None
    kept = kept / largest
    refused = None
    for share in NEGLIGIBLE:
        cleaned = np.where(np.abs(kept) > share, kept, 0.0)
        margin, reach, hopeful = _margin(program, cleaned)
        if margin > 0 and np.isinf(reach) and not exact:
            return FarkasCertificate(cleaned, margin)
        if not hopeful:
            continue
        try:
            found = _rational(program, cleaned)
        except ProgramError as error:
            refused = error
            if margin > 0 and not exact:
                return FarkasCertificate(cleaned, margin, reach)
            continue
        if found is not None:
            return found
    if exact and refused is not None:
        raise refused
    return None


def _margin(program: Program, ray: Array) -> tuple[float, float, bool]:
    """How far the ray separates box and rows, less all rounding errors; the reach; whether an exact check may do."""
    low, high = program.bounds()
    used = np.flatnonzero(ray)
    slope, size = np.asarray(program.matrix.T @ ray), absolute_columns(program, ray)
    error = gamma(len(used) + 3) * size
    sides = np.where(ray > 0, program.upper, program.lower)[used]
    lengths = row_norms(program)[used]
    reach = REACH * (1.0 + float(np.max(np.abs(sides) / np.where(lengths > 0, lengths, 1.0), initial=0.0)))
    needs = unbounded_side(program, slope)
    spent = ray[used] * sides
    ends = np.where(slope > 0, low, high)
    least = slope * np.where(needs | (slope == 0), 0.0, ends)
    hopeful = bool(np.all(np.abs(slope[needs]) <= NEARLY * size[needs])) and float(least.sum() - spent.sum()) > 0
    if np.any(needs & (np.abs(slope) > 8.0 * error)):
        return -np.inf, reach, hopeful
    below, above = np.where(np.isfinite(low), low, -reach), np.where(np.isfinite(high), high, reach)
    terms = np.where(slope > 0, slope * below, slope * above)
    widest = np.maximum(np.abs(below), np.abs(above))
    extent = np.where(slope > error, np.abs(below), np.where(slope < -error, np.abs(above), widest))
    summed = float(np.abs(terms).sum() + np.abs(spent).sum())
    rounding = float(error @ extent) + gamma(program.n + len(used) + 3) * summed
    unclear = np.abs(slope) <= error
    open_ended = (error > 0) & ((np.isinf(low) & (unclear | (slope > 0))) | (np.isinf(high) & (unclear | (slope < 0))))
    margin = float(terms.sum() - spent.sum()) - rounding * (1.0 + 4.0 * UNIT)
    return margin, reach if bool(open_ended.any()) else float("inf"), hopeful


def _rational(program: Program, ray: Array) -> FarkasCertificate | None:
    """The same check in rational arithmetic: the lower bound on an objective of 0 must be above 0.

    ``ray`` is moved where ``w`` must be 0 and is not.
    """
    nothing = np.zeros(program.n)
    system = balanced_system(replace(program, hessian=None, gradient=nothing, constant=0.0), nothing, ray)
    margin = None if system is None else system.bound(deficit=0.0)
    if system is None or margin is None or margin <= 0:
        return None
    rational = {int(row): value for row, value in zip(system.rows, system.duals, strict=True) if value}
    ray = np.zeros(program.m)
    ray[list(rational)] = [float(value) for value in rational.values()]
    return FarkasCertificate(ray, round_down(margin), rational=rational)
