"""Random tiny programs whose answers are known by construction or by exact enumeration, and the check of an answer.

All numbers are small integers, so that nothing is rounded on the way. The cases that back ends get wrong are frequent:
fixed variables with a gradient on them, gradients in the span of the equality rows, Hessians that are singular or zero,
degenerate, repeated and empty rows.
"""

from __future__ import annotations

import itertools
from dataclasses import replace
from fractions import Fraction
from typing import Any

import numpy as np

from repairopt.program import KnownProgram, LowRankHessian, Program, Solution, Status

INF = np.inf
KINDS = {"optimum": 0.42, "no point": 0.18, "no bound": 0.2, "enumerated": 0.12, "integer, no bound": 0.08}


def random_program(seed: Any) -> KnownProgram:
    """A program with its status and optimal value; ``seed`` is whatever NumPy takes."""
    rng = np.random.default_rng(seed)
    kind = str(rng.choice(list(KINDS), p=list(KINDS.values())))
    make = {"optimum": _optimum, "no point": _no_point, "no bound": _no_bound, "enumerated": _enumerated}
    return make[kind](rng) if kind in make else _no_bound(rng, integer=True)


def wrong(known: KnownProgram, answer: Solution) -> str:
    """What is wrong with an answer; empty where it is right or leaves the question open."""
    if answer.status in (Status.FAILED, Status.NO_POINT):
        return ""
    if answer.status is not Status.FEASIBLE and answer.status is not known.status:
        return f"{answer.status} where {known.status} is right"
    if answer.status is Status.FEASIBLE and known.status is Status.INFEASIBLE:
        return "a point where there is none"
    if not answer.found:
        return ""
    if known.program.violation(answer.delta) > 1e-5:
        return f"a point that violates a row by {known.program.violation(answer.delta):.3g}"
    away = answer.objective - known.objective
    allowed = 1e-5 * (1.0 + abs(known.objective) + float(np.abs(known.program.gradient) @ np.abs(answer.delta)))
    if known.status is Status.OPTIMAL and (away < -allowed or answer.status is Status.OPTIMAL and away > allowed):
        return f"objective {answer.objective:.9g} where {known.objective:.9g} is right"
    return ""


def _matrix(rng: np.random.Generator, n: int) -> np.ndarray:
    m = int(rng.integers(0, 7))
    matrix = rng.integers(-3, 4, (m, n)) * (rng.random((m, n)) < rng.choice([0.4, 0.7, 1.0]))
    if m > 1 and rng.random() < 0.3:
        matrix[-1] = rng.choice([-2, -1, 1, 2]) * matrix[0]
    return matrix.astype(np.float64)


def _curvature(rng: np.random.Generator, n: int, still: np.ndarray | None = None) -> Any:
    """None, zero, or ``B'B`` of any rank, with ``H still = 0``, sometimes as a diagonal and a factor."""
    if rng.random() < 0.4:
        return None
    rows = rng.integers(-2, 3, (int(rng.integers(0, n + 1)), n)).astype(np.float64)
    if still is not None:
        rows = (still @ still) * rows - np.outer(rows @ still, still)
    return LowRankHessian(np.zeros(n), rows.T) if rng.random() < 0.15 and len(rows) else rows.T @ rows


def _sides(rng: np.random.Generator, values: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Sides around values, and multipliers that these sides may carry; zero ones too, which is degenerate."""
    size = len(values)
    how, price, room = rng.integers(0, 6, size), rng.integers(0, 4, size), rng.integers(0, 4, (2, size))
    lower = np.where((how == 0) | (how == 1), -INF, values - np.where((how == 3) | (how == 4), 0, room[0]))
    upper = np.where((how == 0) | (how == 3), INF, values + np.where((how == 1) | (how == 4), 0, room[1]))
    return lower, upper, np.select([how == 1, how == 3, how == 4], [price, -price, price - 2], 0).astype(np.float64)


def _optimum(rng: np.random.Generator) -> KnownProgram:
    n = int(rng.integers(1, 6))
    point, matrix, hessian = rng.integers(-3, 4, n).astype(np.float64), _matrix(rng, n), _curvature(rng, n)
    lower, upper, duals = _sides(rng, matrix @ point)
    low, high, prices = _sides(rng, point)
    gradient = -(matrix.T @ duals + prices + (0.0 if hessian is None else hessian @ point))
    program = _program(rng, gradient, hessian, matrix, (lower, upper, low, high))
    return KnownProgram("optimum", program, Status.OPTIMAL, program.objective(point))


def _no_point(rng: np.random.Generator) -> KnownProgram:
    n = int(rng.integers(1, 6))
    matrix = np.vstack([_matrix(rng, n), rng.integers(-3, 4, (1, n)).astype(np.float64)])
    duals = rng.integers(-2, 3, len(matrix)) * (rng.random(len(matrix)) < 0.6)
    duals[-1] = rng.choice([-1, 1])
    slope, values = matrix.T @ duals, rng.integers(-3, 4, (2, len(matrix) + n))
    low, high = values.min(axis=0)[-n:].astype(np.float64), values.max(axis=0)[-n:].astype(np.float64)
    low[(slope <= 0) & (rng.random(n) < 0.5)], high[(slope >= 0) & (rng.random(n) < 0.5)] = -INF, INF
    least = sum(s * (a if s > 0 else b) for s, a, b in zip(slope, low, high, strict=True) if s)
    side = values[0, :-n].astype(np.float64)
    side[-1] = duals[-1] * (least - float(rng.integers(1, 4)) - duals[:-1] @ side[:-1])
    wide = np.where(rng.random(len(side)) < 0.4, INF, rng.integers(0, 3, len(side)))
    lower, upper = np.where(duals > 0, side - wide, side), np.where(duals < 0, side + wide, side)
    free = duals == 0
    lower[free & (rng.random(len(side)) < 0.5)], upper[free & (rng.random(len(side)) < 0.5)] = -INF, INF
    gradient, hessian = rng.integers(-3, 4, n).astype(np.float64), _curvature(rng, n)
    return KnownProgram(
        "no point", _program(rng, gradient, hessian, matrix, (lower, upper, low, high)), Status.INFEASIBLE
    )


def _no_bound(rng: np.random.Generator, integer: bool = False) -> KnownProgram:
    n = int(rng.integers(1, 6))
    point, ray, matrix = rng.integers(-3, 4, n).astype(np.float64), rng.integers(-2, 3, n), _matrix(rng, n)
    ray[rng.integers(n)] = rng.choice([-1, 1])
    lower, upper, _ = _sides(rng, matrix @ point)
    low, high, _ = _sides(rng, point)
    for below, above, along in ((lower, upper, matrix @ ray), (low, high, ray)):
        below[along < 0], above[along > 0] = -INF, INF
    gradient = rng.integers(-3, 4, n).astype(np.float64)
    if gradient @ ray > 0:
        gradient = -gradient
    elif gradient @ ray == 0:
        gradient = gradient - ray
    program = _program(rng, gradient, _curvature(rng, n, ray.astype(np.float64)), matrix, (lower, upper, low, high))
    if integer:
        program = _with(program, integer=rng.random(n) < 0.7)
    return KnownProgram("no bound", program, Status.UNBOUNDED)


def _enumerated(rng: np.random.Generator) -> KnownProgram:
    """Integer variables in small boxes, at most one continuous one; every choice is looked at, in rational numbers."""
    n = int(rng.integers(1, 5))
    matrix, hessian = _matrix(rng, n), _curvature(rng, n)
    mask = np.ones(n, dtype=bool)
    mask[-1] = n == 1 or rng.random() < 0.6
    low = rng.integers(-2, 2, n).astype(np.float64)
    high = low + rng.integers(0, 4, n)
    lower, upper, _ = _sides(rng, matrix @ rng.integers(-2, 3, n).astype(np.float64))
    gradient = rng.integers(-4, 5, n).astype(np.float64)
    program = _with(_program(rng, gradient, hessian, matrix, (lower, upper, low, high)), integer=mask)
    ranges = [range(int(a), int(b) + 1) for a, b in zip(low, high, strict=True)]
    if mask[-1]:
        points = [np.array(point, dtype=np.float64) for point in itertools.product(*ranges)]
        values = [program.objective(point) for point in points if program.violation(point) == 0]
    else:
        values = [best for point in itertools.product(*ranges[:-1]) for best in _last(program, point)]
    status = Status.OPTIMAL if values else Status.INFEASIBLE
    return KnownProgram("enumerated", program, status, float(min(values, default=np.nan)))


def _last(program: Program, point: tuple[int, ...]) -> list[float]:
    """The best value over the last variable, the others given; empty where it has no place."""
    low, high = (Fraction(int(side[-1])) for side in program.bounds())
    for row, below, above in zip(program.matrix, program.lower, program.upper, strict=True):
        fixed, slope = Fraction(int(row[:-1] @ np.array(point))), Fraction(int(row[-1]))
        for side, sign in ((below, 1), (above, -1)):
            if not np.isfinite(side):
                continue
            room = sign * (Fraction(int(side)) - fixed)  # sign * slope * last >= room
            if slope == 0:
                low, high = (low, high) if room <= 0 else (Fraction(1), Fraction(0))
            elif sign * slope > 0:
                low = max(low, room / (sign * slope))
            else:
                high = min(high, room / (sign * slope))
    if low > high:
        return []
    hessian = program.dense_hessian()
    slope = program.gradient[-1] + hessian[-1, :-1] @ np.array(point)
    best = float(np.clip(-slope / hessian[-1, -1], float(low), float(high))) if hessian[-1, -1] > 0 else float(low)
    return [program.objective(np.array([*point, end])) for end in (best, float(high))]


def _program(rng: np.random.Generator, gradient: Any, hessian: Any, matrix: Any, sides: Any) -> Program:
    from scipy import sparse

    lower, upper, low, high = sides
    stored = sparse.csr_matrix(matrix) if rng.random() < 0.1 else matrix
    bounds = {"delta_lower": low, "delta_upper": high}
    constant = float(rng.integers(-2, 3))
    return Program(
        gradient=gradient, hessian=hessian, constant=constant, matrix=stored, lower=lower, upper=upper, **bounds
    )


def _with(program: Program, **changes: Any) -> Program:
    matrix = program.matrix.toarray() if hasattr(program.matrix, "tocsr") else program.matrix
    return replace(program, matrix=matrix, **changes)
