"""Recheck an answer from the program's data alone, in float64: nothing that a back end says is believed.

Four products, one each with ``A``, its transpose, ``H`` and the squares of ``A``, whatever the back end. What is found:

* violation of rows, bounds and integrality;
* stationarity, the largest entry of ``H d + g + A'y + z``;
* complementarity, the products of multipliers and the room of their sides;
* duality gap, the sum of these products: the objective is at most that far from the optimum, up to stationarity.

Relative figures have scales that follow the data: a row's violation over ``max(1, |side|, |a_i| max(1, |d|))``, the gap
over the size of the objective's terms, stationarity over its largest term. ``certificates/certify.py`` goes further: it
counts rounding errors, recovers missing multipliers, and repeats all in rational arithmetic.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from .hessian import LowRankHessian
from .program import Array, Program
from .solution import Solution, Status

LARGEST_FACTORIZED = 5000  # variables up to which a dense Hessian is factorized to see that it is convex


@dataclass(frozen=True)
class Residuals:
    """What a point and multipliers look like on the program's own data, absolute and over the scales of this module.

    ``sign_violation`` is the largest entry of the gradient that is held by infinite sides only, over the largest entry
    of its terms; ``gap`` the sum of the products of multipliers and slacks, over the size of the objective's terms.
    What belongs to multipliers is NaN without them.
    """

    violation: float
    relative_violation: float
    objective: float
    stationarity: float = float("nan")
    relative_stationarity: float = float("nan")
    sign_violation: float = float("nan")
    complementarity: float = float("nan")
    gap: float = float("nan")


def tolerance(point: Array | None, usual: float = 1e-6) -> float:
    """Relative tolerance of optimality by the precision of a point: the usual one, 1e-3 for single and half."""
    return 1e-3 if getattr(point, "dtype", None) in (np.float32, np.float16) else usual


def residuals(
    program: Program, delta: Array, row_duals: Array | None = None, bound_duals: Array | None = None
) -> Residuals:
    """Put a point and multipliers into the program, without integrality.

    The residuals of multipliers are NaN where those of the rows are None; those of the bounds are, unless given, what
    is left of the gradient where a bound can hold it.
    """
    low, high = program.bounds()
    values = np.asarray(program.matrix @ delta) if program.m else np.zeros(0)
    curvature = np.zeros(program.n) if program.hessian is None else program.hessian @ delta
    objective = 0.5 * float(delta @ curvature) + float(program.gradient @ delta) + program.constant
    found = Residuals(*violations(program, delta, values), objective)
    if row_duals is None:
        return found
    pulled = np.asarray(program.matrix.T @ row_duals) if program.m else np.zeros(program.n)
    reduced = curvature + program.gradient + pulled
    prices = -reduced if bound_duals is None else np.asarray(bound_duals, dtype=np.float64)
    rest = reduced + prices
    if bound_duals is None:  # what no bound can hold is left over
        held = np.where(prices > 0, np.isfinite(high), np.isfinite(low))
        prices, rest = np.where(held, prices, 0.0), np.where(held, 0.0, reduced)
    products, wrong = [], 0.0
    for dual, value, lower, upper in ((row_duals, values, program.lower, program.upper), (prices, delta, low, high)):
        side = np.where(dual > 0, upper, lower)
        infinite = ~np.isfinite(side)
        if dual is row_duals and np.any(dual[infinite]):
            wrong = float(np.abs(program.matrix[infinite].T @ dual[infinite]).max(initial=0.0))
        elif dual is prices:
            wrong = max(wrong, float(np.abs(dual[infinite]).max(initial=0.0)))
        products.append(np.where(infinite, 0.0, dual * (np.where(infinite, 0.0, side) - value)))
    terms = np.concatenate(products)
    largest = max(float(np.abs(part).max(initial=0.0)) for part in (curvature, program.gradient, pulled, prices))
    largest = max(largest, _smallest_scale(program))  # at the optimum all of these may vanish
    left = float(np.abs(rest).max(initial=0.0))
    return replace(
        found,
        stationarity=left,
        relative_stationarity=left / largest,
        sign_violation=wrong / largest,
        complementarity=float(np.abs(terms).max(initial=0.0)),
        gap=abs(float(terms.sum())) / objective_scale(program, delta),
    )


def recheck(
    program: Program,
    solution: Solution,
    *,
    feasibility_tol: float,
    optimality_tol: float | None,
    gap_tol: float = 1e-6,
) -> Solution:
    """The answer with what its own data say; claims that they do not bear out are taken back.

    FAILED in place of OPTIMAL or FEASIBLE where rows are violated by more than ``feasibility_tol`` (relative); FEASIBLE
    in place of OPTIMAL where the multipliers do not prove it to ``optimality_tol`` (stationarity, gap, relative; None
    goes by the point's dtype), or the bound of a mixed-integer program is not within ``gap_tol`` of the point.
    """
    if solution.delta is None or not np.all(np.isfinite(solution.delta)):
        if solution.status in (Status.OPTIMAL, Status.FEASIBLE):
            text = f"claimed {solution.status} without a finite point; {solution.message}"
            return replace(solution, status=Status.FAILED, delta=None, message=text, claimed=solution.status)
        return replace(solution, delta=None)
    tol = tolerance(solution.delta) if optimality_tol is None else optimality_tol
    delta = np.asarray(solution.delta, dtype=np.float64)
    usable = _finite(solution.row_duals) and _finite(solution.bound_duals) and program.integer is None
    duals = (solution.row_duals, solution.bound_duals) if usable else (None, None)
    found = residuals(program, delta, *duals)
    status, message, gap = solution.status, solution.message, found.gap
    doubt = ""
    if program.integer is not None and solution.found and solution.retry:
        gap, doubt = bound_gap(program, solution, found.objective, max(gap_tol, 1e-6))
    if solution.found and found.relative_violation > feasibility_tol:
        status, message = Status.FAILED, f"claimed {status} with a violation of {found.violation:.3g}; {message}"
    elif status is Status.OPTIMAL:
        doubt = doubt or ("" if program.integer is not None else _doubt(program, solution, found, tol, usable))
        if doubt:
            status, message = Status.FEASIBLE, f"claimed optimal, but {doubt}; {message}"
    return replace(
        solution,
        status=status,
        claimed=None if status is solution.status else solution.status,
        message=message,
        delta=delta,
        objective=found.objective,
        violation=found.violation,
        stationarity=found.stationarity,
        complementarity=found.complementarity,
        gap=gap,
    )


def bound_gap(program: Program, solution: Solution, objective: float, tol: float) -> tuple[float, str]:
    """How far an answer is above its own bound, relative, and what speaks against OPTIMAL, or nothing."""
    assert solution.delta is not None
    scale = max(objective_scale(program, np.asarray(solution.delta, dtype=np.float64)), abs(objective))
    gap = (objective - solution.bound) / scale
    if np.isnan(gap):
        return gap, "no lower bound came with it"
    if gap < -tol:
        return gap, f"its bound is {-gap * scale:.3g} above its own point"
    return max(0.0, gap), "" if gap <= tol * (1.0 + 1e-6) else f"its own bound leaves a gap of {gap:.3g} (relative)"


def _doubt(program: Program, solution: Solution, found: Residuals, tol: float, usable: bool) -> str:
    """What speaks against a claim of optimality; empty where nothing does."""
    if solution.row_duals is None:
        return ""
    if not usable:
        return "its multipliers are not finite"
    for name, value in (
        ("the multipliers leave a gradient of", found.relative_stationarity),
        ("sides that are infinite hold a gradient of", found.sign_violation),
        ("the multipliers leave a gap of", found.gap),
    ):
        if not value <= tol:
            return f"{name} {value:.3g} (relative)"
    return ""


def row_norms(program: Program) -> Array:
    """Euclidean norm of each row."""
    if hasattr(program.matrix, "tocsr"):
        from scipy.sparse import linalg

        return np.asarray(linalg.norm(program.matrix, axis=1)) if program.m else np.zeros(0)
    return np.asarray(np.sqrt(np.einsum("ij,ij->i", program.matrix, program.matrix)))


def objective_scale(program: Program, delta: Array) -> float:
    """The size of the objective's terms at a point, ``1/2 d'Hd + sum |g_j d_j|``: what gaps are measured against.

    At least ``min(1, max|g| + max|H_jj|)``: 1 for objectives of usual size, less for tiny ones.
    """
    quadratic = 0.0 if program.hessian is None else 0.5 * abs(float(delta @ (program.hessian @ delta)))
    return max(quadratic + float(np.abs(program.gradient) @ np.abs(delta)), _smallest_scale(program))


def _smallest_scale(program: Program) -> float:
    """``min(1, max|g| + max|H_jj|)``, or 1 where that is 0."""
    hessian, least = program.hessian, float(np.abs(program.gradient).max(initial=0.0))
    if isinstance(hessian, LowRankHessian):
        least += float((np.abs(hessian.diagonal) + (hessian.factor**2).sum(axis=1)).max(initial=0.0))
    elif hessian is not None:
        least += float(np.abs(hessian.diagonal()).max(initial=0.0))
    return min(1.0, least) or 1.0


def violations(program: Program, delta: Array, values: Array, *, floor: float = 1.0) -> tuple[float, float]:
    """Largest violation, absolute and over ``max(floor, |side|, |a_i| max(1, |d|))``; bounds over ``max(1, |side|)``.

    ``values`` is ``A @ delta``. With a floor of 0 the relative figure does not change when a row is scaled.
    """
    low, high = program.bounds()
    size = max(1.0, float(np.abs(delta).max(initial=0.0)))
    least = np.maximum(floor, row_norms(program) * size)
    absolute = relative = 0.0
    for lower, value, upper, own in ((program.lower, values, program.upper, least), (low, delta, high, 1.0)):
        for excess, side in ((lower - value, lower), (value - upper, upper)):
            worst = float(excess.max(initial=0.0))
            if worst > 0:
                absolute = max(absolute, worst)
                scale = np.maximum(np.where(np.isfinite(side), np.abs(side), 0.0), own)
                relative = max(relative, float((excess / np.where(scale > 0, scale, 1.0)).max()))
    if program.integer is not None:
        chosen = delta[program.integer]
        worst = float(np.abs(chosen - np.round(chosen)).max(initial=0.0))
        absolute, relative = max(absolute, worst), max(relative, worst)
    return absolute, relative


def _finite(values: Array | None) -> bool:
    return values is None or bool(np.all(np.isfinite(values)))
