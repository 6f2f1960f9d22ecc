"""Lower bounds on a program's optimum from a point and multipliers, in float64, rounding errors counted.

For convex ``f``, any point ``w`` and any multipliers ``y`` of the rows (positive ones paired with upper sides, negative
ones with lower sides), every feasible ``x`` has, with ``r = H w + g + A' y``::

    f(x)  >=  f(w) + (H w + g)'(x - w)  >=  f(w) - (H w + g)' w  -  sum_i (y_i+ upper_i - y_i- lower_i)  +  min r'x

the minimum over the box of the variables. So at any point ``d``, whoever found it::

    f(d) - f*  <=  1/2 (d - w)'H(d - w)  +  sum_i y_i+ (upper_i - a_i d) + y_i- (a_i d - lower_i)
                   +  sum_j r_j+ (d_j - delta_lower_j) + r_j- (delta_upper_j - d_j)

Nothing is asked of ``y``: bad multipliers make a weak bound, never a wrong one. Where a bound that the last sum needs
is infinite, the right side is infinite unless ``r_j = 0``. Solvers leave ``r_j`` near 1e-9, so ``w`` and ``y`` are
moved by least squares until ``r_j`` is 0 to rounding; what remains is counted for points up to ``reach`` away.
"""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from repairopt.program.hessian import LowRankHessian
from repairopt.program.program import Array, Program
from repairopt.program.rechecking import LARGEST_FACTORIZED, row_norms

UNIT = 2.0**-53  # relative error of one operation
REACH = 1e3  # times 1 + the size of the point: how far out points are compared where a variable has no bound
ZERO = 8.0  # rounding errors up to which a reduced gradient counts as zero
REPAIRS = 5  # tries to make the reduced gradient zero where bounds are infinite
NEARLY = 1e-7  # of the largest entry of g
BLOCK = 2**20  # entries whose absolute values are held at a time
DENSE_REPAIR = 4_000_000  # entries up to which least squares are solved by factorization


@dataclass(frozen=True, eq=False)
class DualBound:
    """How far a point can be from the optimum: ``f(delta) - f*`` is at most ``gap``, rounding errors included.

    The objective was linearized at ``anchor``, with the multipliers ``row_duals``: those given, without those of
    infinite sides, moved where needed. ``H + deficit I`` is positive semidefinite. Variables without a bound were
    compared up to ``reach`` from ``delta``.
    """

    gap: float
    anchor: Array
    row_duals: Array
    deficit: float
    reach: float


def dual_bound(program: Program, delta: Array, row_duals: Array, *, deficit: float | None = None) -> DualBound:
    """Bound ``f(delta) - f*`` from above by the formula of this module, with the multipliers that it used.

    Integrality is ignored; ``delta`` need not be feasible and ``row_duals (m,)`` may be any numbers. ``deficit`` is
    what :func:`curvature_deficit` returned for this Hessian, where known.
    """
    usable = np.where(row_duals > 0, np.isfinite(program.upper), np.isfinite(program.lower)) & np.isfinite(row_duals)
    usable &= bool(reduced_gradient(program, delta, np.zeros(program.m))[0].any())  # else none is needed
    duals, anchor = np.where(usable, row_duals, 0.0), delta
    reduced, error = reduced_gradient(program, anchor, duals)
    short = unbounded_side(program, reduced) & (np.abs(reduced) > ZERO * error)
    if short.any():
        anchor, duals = _repair(program, delta, duals, short)
        reduced, error = reduced_gradient(program, anchor, duals)
    lack = curvature_deficit(program) if deficit is None else deficit
    gap, reach = _gap(program, delta, anchor, duals, (reduced, error), lack)
    return DualBound(gap, anchor, duals, lack, reach)


def gamma(count: int) -> float:
    """Relative error of a sum of ``count`` products, in any order."""
    return count * UNIT / (1.0 - count * UNIT)


def rows_of(program: Program, rows: Any) -> Array:
    """Some rows of ``A`` as a dense array."""
    part = program.matrix[rows]
    return np.asarray(part.toarray() if hasattr(part, "toarray") else part, dtype=np.float64)


def absolute_columns(program: Program, duals: Array) -> Array:
    """``|A|' |y|``, in blocks of rows."""
    if hasattr(program.matrix, "tocsr"):
        return np.asarray(abs(program.matrix).T @ np.abs(duals))
    total, used = np.zeros(program.n), np.flatnonzero(duals)
    step = max(1, BLOCK // max(1, program.n))
    for start in range(0, len(used), step):
        chosen = used[start : start + step]
        total += np.abs(duals[chosen]) @ np.abs(program.matrix[chosen])
    return total


def reduced_gradient(program: Program, anchor: Array, duals: Array) -> tuple[Array, Array]:
    """``H w + g + A' y`` and a bound on its rounding error, entry by entry."""
    value, size, terms = program.gradient.copy(), np.abs(program.gradient), 3
    hessian = program.hessian
    if isinstance(hessian, LowRankHessian):
        value += hessian @ anchor
        factor, point = np.abs(hessian.factor), np.abs(anchor)
        size += np.abs(hessian.diagonal) * point + factor @ (factor.T @ point)
        terms += program.n + hessian.factor.shape[1]
    elif hessian is not None:
        value += hessian @ anchor
        size += np.abs(hessian) @ np.abs(anchor)
        terms += program.n
    used = int(np.count_nonzero(duals))
    if used:
        value += program.matrix.T @ duals
        size += absolute_columns(program, duals)
    return value, gamma(terms + used) * size


def curvature_deficit(program: Program) -> float:
    """How far the Hessian is from positive semidefinite: a bound on minus its smallest eigenvalue, at least 0.

    A Cholesky factorization that runs to its end proves its matrix to be positive definite up to a known error (Rump,
    Verification of positive definiteness, 2006). Infinite above 5,000 variables, where none is tried.
    """
    hessian = program.hessian
    if hessian is None:
        return 0.0
    if isinstance(hessian, LowRankHessian):
        return max(0.0, -float(hessian.diagonal.min(initial=0.0)))
    matrix = hessian[np.ix_(*[np.flatnonzero(hessian.any(axis=0))] * 2)]
    n = len(matrix)
    if n == 0:
        return 0.0
    if n > LARGEST_FACTORIZED or not np.array_equal(matrix, matrix.T):
        return float("inf")
    if np.count_nonzero(matrix) == np.count_nonzero(matrix.diagonal()):
        return max(0.0, -float(matrix.diagonal().min()))
    error = 2.0 * gamma(n + 2) * max(float(np.abs(matrix.diagonal()).sum()), float(np.abs(matrix).max()))
    shift = -2.0 * error
    for _ in range(40):
        with contextlib.suppress(np.linalg.LinAlgError):
            np.linalg.cholesky(matrix + shift * np.eye(n))
            return max(0.0, shift + error + abs(shift) * n * UNIT)
        shift = error if shift < 0 else 10.0 * shift
    return float("inf")


def unbounded_side(program: Program, reduced: npt.NDArray[Any]) -> npt.NDArray[np.bool_]:
    """Variables that the objective, as the multipliers price it, pushes towards an infinite bound."""
    low, high = program.bounds()
    return ((reduced > 0) & np.isneginf(low)) | ((reduced < 0) & np.isposinf(high))


def near_zero(program: Program, reduced: Array) -> npt.NDArray[np.bool_]:
    """Variables with an infinite bound whose reduced gradient is so small that it is meant to be zero."""
    low, high = program.bounds()
    small = np.abs(reduced) <= NEARLY * float(np.abs(program.gradient).max(initial=0.0))
    return small & (np.isinf(low) | np.isinf(high))


def _repair(program: Program, delta: Array, duals: Array, short: npt.NDArray[np.bool_]) -> tuple[Array, Array]:
    """Move anchor and multipliers, relative to their sizes, until the reduced gradient is zero on ``short``."""
    rows, anchor, duals = np.flatnonzero(duals), delta.copy(), duals.copy()
    curved = np.arange(program.n if program.hessian is not None else 0)
    weights = np.concatenate([np.full(len(curved), 1.0 + np.abs(delta).max(initial=0.0)), np.abs(duals[rows])])
    both, first = np.isinf(program.bounds()[0]) & np.isinf(program.bounds()[1]), True
    for _ in range(REPAIRS):
        reduced, error = reduced_gradient(program, anchor, duals)
        new = unbounded_side(program, reduced) & (np.abs(reduced) > ZERO * error)
        if not new.any() or not len(weights):
            break
        short = short | new | (both if first else near_zero(program, reduced))
        first = False
        where = np.flatnonzero(short)
        step = weights * _least_squares(_balance(program, where, rows, curved), weights, -reduced[where])
        moved = duals[rows] + step[len(curved) :]
        duals[rows] = np.where(np.sign(moved) == np.sign(duals[rows]), moved, 0.0)
        anchor[curved] += step[: len(curved)]
    return anchor, duals


def _balance(program: Program, where: Any, rows: Any, curved: Any) -> Any:
    """Matrix from changes of anchor and multipliers to the reduced gradient at ``where``."""
    parts: list[Any] = []
    hessian = program.hessian
    if len(curved):
        if isinstance(hessian, LowRankHessian):
            part = hessian.factor[where] @ hessian.factor.T
            part[np.arange(len(where)), where] += hessian.diagonal[where]
        else:
            assert hessian is not None
            part = hessian[where]
        parts.append(part)
    if hasattr(program.matrix, "tocsr"):
        from scipy import sparse

        return sparse.hstack([*parts, program.matrix.tocsr()[rows][:, where].T], format="csr")
    return np.hstack([*parts, program.matrix[np.ix_(rows, where)].T])


def _least_squares(matrix: Any, weights: Array, sides: Array) -> Array:
    """Shortest ``v`` that minimizes ``|matrix (weights * v) - sides|``."""
    if matrix.shape[0] * matrix.shape[1] <= DENSE_REPAIR:
        dense = matrix.toarray() if hasattr(matrix, "toarray") else matrix
        lengths = np.linalg.norm(dense * weights, axis=1)
        lengths[lengths == 0] = 1.0
        return np.asarray(np.linalg.lstsq(dense * weights / lengths[:, None], sides / lengths, rcond=1e-12)[0])
    from scipy import sparse
    from scipy.sparse import linalg

    scaled = matrix @ sparse.diags(weights) if hasattr(matrix, "tocsr") else matrix * weights
    return np.asarray(linalg.lsmr(scaled, sides, atol=1e-15, btol=1e-15, maxiter=500)[0])


def _gap(
    program: Program, delta: Array, anchor: Array, duals: Array, reduced: tuple[Array, Array], deficit: float
) -> tuple[float, float]:
    """Gap, rounding errors included, and the reach."""
    low, high = program.bounds()
    slope, error = reduced
    reach = REACH * (1.0 + float(np.abs(delta).max(initial=0.0)))
    if np.any(unbounded_side(program, slope) & (np.abs(slope) > ZERO * error)):
        return float("inf"), reach
    below = np.where(np.isfinite(low), delta - low, reach)
    above = np.where(np.isfinite(high), high - delta, reach)
    bound_terms = np.where(slope > 0, slope * below, -slope * above)
    widest = np.maximum(np.abs(below), np.abs(above))
    extent = np.where(slope > error, np.abs(below), np.where(slope < -error, np.abs(above), widest))
    used = np.flatnonzero(duals)
    sides = np.where(duals > 0, program.upper, program.lower)[used]
    row_terms = duals[used] * (sides - (program.matrix @ delta)[used])
    lengths = row_norms(program)[used] * float(np.linalg.norm(delta))
    curvature, rounding = _curvature(program, delta - anchor, widest, deficit)
    rounding += float(error @ extent) + gamma(program.n + 3) * float(np.abs(duals[used]) @ (lengths + np.abs(sides)))
    rounding += gamma(program.n + len(used) + 3) * float(np.abs(bound_terms).sum() + np.abs(row_terms).sum())
    total = curvature + float(bound_terms.sum() + row_terms.sum()) + rounding
    both = (np.abs(slope) <= error) | (deficit > 0)
    open_ended = (np.isinf(low) & (both | (slope > 0))) | (np.isinf(high) & (both | (slope < 0)))
    return total, reach if bool(open_ended.any()) else float("inf")


def _curvature(program: Program, moved: Array, extent: Array, deficit: float) -> tuple[float, float]:
    """The quadratic part of the gap and its rounding error."""
    hessian, value, rounding = program.hessian, 0.0, 0.0
    if hessian is None:
        return value, rounding
    if moved.any():
        if isinstance(hessian, LowRankHessian):
            size = float(np.abs(hessian.diagonal).max(initial=0.0) + np.linalg.norm(hessian.factor) ** 2)
        else:
            size = float(np.linalg.norm(hessian))
        value = 0.5 * float(moved @ (hessian @ moved))
        rounding = gamma(2 * program.n + 3) * size * float(moved @ moved)
    if deficit > 0:
        curved = np.ones(program.n, bool) if isinstance(hessian, LowRankHessian) else hessian.any(axis=0)
        away = (extent + np.abs(moved))[curved]
        value += 0.5 * deficit * float(away @ away)
    return value, rounding
