"""Multipliers for a point that came without: nonnegative least squares over the sides that hold it."""

from __future__ import annotations

import numpy as np

from repairopt.program.program import Array, Program
from repairopt.program.rechecking import row_norms

from .duality import dual_bound, rows_of

SLACKS = (1e-10, 1e-8, 1e-6, 1e-4)  # relative slack up to which a side may carry a multiplier, tried in turn
LARGEST = 20_000_000  # entries of the least-squares matrix


def recover_duals(program: Program, delta: Array, tol: float, deficit: float) -> Array | None:
    """Find row multipliers ``(m,)`` that explain why a point is optimal; None where too many sides are active.

    Solves ``H d + g + A'y + z = 0`` by nonnegative least squares over the sides of rows and bounds that are active, and
    stops at the first multipliers whose bound is within ``tol``. Integrality is ignored.
    """
    gradient = program.gradient + (0.0 if program.hessian is None else program.hessian @ delta)
    best, least = None, np.inf
    for slack in SLACKS:
        duals = _active_set(program, delta, gradient, slack)
        if duals is None:
            break
        gap = abs(dual_bound(program, delta, duals, deficit=deficit).gap)
        if best is None or gap < least:
            best, least = duals, gap
        if gap <= 0.1 * tol * min(1.0, float(np.abs(gradient).max(initial=0.0)) or 1.0):
            break
    return best


def _active_set(program: Program, delta: Array, gradient: Array, slack: float) -> Array | None:
    from scipy import optimize

    low, high = program.bounds()
    lengths, values = row_norms(program), np.asarray(program.matrix @ delta)
    lengths[lengths == 0] = 1.0
    size = max(1.0, float(np.abs(delta).max(initial=0.0)))
    room = slack * np.maximum(size * lengths, np.abs(values))
    above, below = np.flatnonzero(program.upper - values <= room), np.flatnonzero(values - program.lower <= room)
    at_high = np.flatnonzero(high - delta <= slack * np.maximum(size, np.abs(delta)))
    at_low = np.flatnonzero(delta - low <= slack * np.maximum(size, np.abs(delta)))
    rows = np.concatenate([above, below])
    signs = np.concatenate([np.ones(len(above)), -np.ones(len(below))]) / lengths[rows]
    count = len(rows) + len(at_high) + len(at_low)
    if count * program.n > LARGEST:
        return None
    units = np.zeros((program.n, len(at_high) + len(at_low)))
    units[at_high, np.arange(len(at_high))] = 1.0
    units[at_low, len(at_high) + np.arange(len(at_low))] = -1.0
    columns = np.hstack([(rows_of(program, rows) * signs[:, None]).T, units])
    duals = np.zeros(program.m)
    if not count:
        return duals
    try:
        found = optimize.nnls(columns, -gradient)[0]
    except RuntimeError:  # its iteration limit
        found = optimize.lsq_linear(columns, -gradient, bounds=(0.0, np.inf)).x
    np.add.at(duals, rows, found[: len(rows)] * signs)
    return duals
