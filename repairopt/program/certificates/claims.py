"""Claims that residuals cannot check: that a program is unbounded, and optimality of an answer without multipliers.

UNBOUNDED needs a feasible point and a checked ray. OPTIMAL without multipliers needs a lower bound: that of another
back end, whose own multipliers pass the recheck. What is not proven is taken back.
"""

from __future__ import annotations

import time
from dataclasses import replace
from typing import Any

from repairopt.errors import RepairError
from repairopt.program.backends import load_solver, preferred_solvers, with_options
from repairopt.program.program import Program
from repairopt.program.rechecking import bound_gap, objective_scale, recheck, tolerance
from repairopt.program.solution import RecessionRay, Solution, Status

from .recession import concave_ray, feasible_point, recession_ray


def settle(
    program: Program,
    answer: Solution,
    backend: Any,
    *,
    convex: bool,
    feasibility_tol: float,
    optimality_tol: float | None,
    time_limit: float | None,
) -> Solution:
    """The rechecked answer of a back end, with a proof where its claim needs one; taken back where there is none.

    An answer with ``retry=False`` is left as it is: the back end had constraints that are not in the program.
    """
    deadline = None if time_limit is None else time.perf_counter() + time_limit
    if answer.status is Status.UNBOUNDED and answer.retry:
        return _with_ray(program, answer, None if convex else backend, feasibility_tol, deadline)
    if answer.status is not Status.OPTIMAL or not answer.retry or program.integer is not None:
        return answer
    tol = tolerance(answer.delta) if optimality_tol is None else optimality_tol
    if convex:
        return _with_bound(program, answer, tol, feasibility_tol, deadline)
    gap, doubt = bound_gap(program, answer, answer.objective, max(tol, getattr(backend, "gap_tol", 0.0)))
    return replace(_doubted(answer, doubt) if doubt else answer, gap=gap)


def _left(deadline: float | None) -> float | None:
    return None if deadline is None else max(1e-3, deadline - time.perf_counter())


def _with_ray(program: Program, answer: Solution, backend: Any, tol: float, deadline: float | None) -> Solution:
    ray = recession_ray(program, time_limit=_left(deadline)) if backend is None else concave_ray(program, backend)
    point = None if ray is None else feasible_point(program, answer.delta, tol, _left(deadline))
    if ray is not None and point is not None:
        return replace(answer, delta=None, proof=RecessionRay(point, ray))
    lack = "direction along which the objective falls for ever" if ray is None else "point that holds all rows"
    text = f"claimed unbounded, but no {lack} was found; {answer.message}"
    return replace(answer, status=Status.FAILED, delta=None, claimed=Status.UNBOUNDED, message=text)


def _with_bound(program: Program, answer: Solution, tol: float, feasible: float, deadline: float | None) -> Solution:
    """The answer with a bound from the multipliers of another back end; FEASIBLE where it is not reached."""
    assert answer.delta is not None
    scale, text = objective_scale(program, answer.delta), "no multipliers came with it, and none were found"
    for name in preferred_solvers(program):
        if name == answer.solver:
            continue
        try:
            found = with_options(load_solver(name)(), time_limit=_left(deadline)).solve(program)
        except (RepairError, ArithmeticError, ValueError, RuntimeError, MemoryError):
            continue
        other = recheck(program, found, feasibility_tol=feasible, optimality_tol=tol)
        if other.status is not Status.OPTIMAL or other.row_duals is None:
            continue
        away = answer.objective - other.objective
        if away <= tol * scale:
            gap = max(0.0, away) / scale + other.gap
            return replace(answer, bound=min(answer.objective, other.objective) - other.gap * scale, gap=gap)
        text = f"'{name}' found a point that is {away:.3g} better"
        break
    return _doubted(answer, text)


def _doubted(answer: Solution, why: str) -> Solution:
    message = f"claimed optimal, but {why}; {answer.message}"
    return replace(answer, status=Status.FEASIBLE, claimed=Status.OPTIMAL, message=message)
