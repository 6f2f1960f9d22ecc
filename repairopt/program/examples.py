"""Small programs with known answers, for tests, documentation and users.

Most are built backwards: the optimum and its multipliers are chosen, and the gradient follows from
``H d + g + A' y + z = 0``, so the answer is known exactly and owes nothing to a solver. Integer programs are small
enough to be enumerated.

Example:
    >>> [problem.name for problem in known_programs("MIQP")]
    ['nearest integer point', 'at most 2 of 4', 'quadratic, no integer point', 'unbounded integer quadratic']
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from .hessian import LowRankHessian
from .program import Array, Hessian, Kind, Program
from .solution import Status

INF = float("inf")


@dataclass(frozen=True, eq=False)
class KnownProgram:
    """A program and how a solve must end: status, optimal value or NaN, the optimum where it is unique.

    ``nonconvex`` says that the Hessian has a negative eigenvalue; only for back ends that say they take such programs.
    """

    name: str
    program: Program
    status: Status
    objective: float = float("nan")
    delta: Array | None = None
    nonconvex: bool = False


def known_programs(kind: Kind | str | None = None, *, nonconvex: bool = False) -> list[KnownProgram]:
    """All programs of this module, or those of a kind, new on each call; ``nonconvex`` adds indefinite Hessians."""
    every = (*_linear_programs(), *_quadratic_programs(), *_integer_programs())
    problems = [problem for problem in every if nonconvex or not problem.nonconvex]
    return [problem for problem in problems if kind is None or problem.program.kind is Kind(kind)]


def _array(*values: Any) -> Array:
    return np.array(values, dtype=np.float64)


def _program(gradient: Any, rows: Sequence[Any] = (), bounds: Sequence[Any] | None = None, **other: Any) -> Program:
    """Rows as ``(lower, coefficients, upper, ...)``, bounds as ``(lower, upper, ...)``."""
    g = np.asarray(gradient, dtype=np.float64)
    sides = [(-INF, INF)] * len(g) if bounds is None else bounds
    return Program(
        gradient=g,
        matrix=_array(*(row[1] for row in rows)).reshape(len(rows), len(g)),
        lower=_array(*(row[0] for row in rows)),
        upper=_array(*(row[2] for row in rows)),
        delta_lower=_array(*(side[0] for side in sides)),
        delta_upper=_array(*(side[1] for side in sides)),
        **other,
    )


def _from_optimum(
    name: str, delta: Any, hessian: Hessian | None = None, *, rows: Any = (), bounds: Any = None
) -> KnownProgram:
    """A program whose optimum is ``delta`` by construction.

    Rows are ``(lower, coefficients, upper, multiplier)``, bounds ``(lower, upper, multiplier)``; a multiplier is
    positive only where the upper side is active at ``delta``, negative only where the lower side is.
    """
    d = np.asarray(delta, dtype=np.float64)
    program = _program(np.zeros(len(d)), rows, bounds, hessian=hessian)
    gradient = -(program.matrix.T @ _array(*(row[3] for row in rows)))
    if bounds is not None:
        gradient -= _array(*(side[2] for side in bounds))
    if hessian is not None:
        gradient -= hessian @ d
    program = replace(program, gradient=gradient)
    return KnownProgram(name, program, Status.OPTIMAL, program.objective(d), d)


def linear() -> KnownProgram:
    """Maximize 3x + 2y: one active row, one active bound, an infinite bound, a constant."""
    rows = [(-INF, [1, 1], 4), (-INF, [1, 3], 7)]
    program = _program([-3, -2], rows, [(0, 3), (0, INF)], constant=1.0)
    return KnownProgram("linear", program, Status.OPTIMAL, -10.0, _array(3, 1))


def dense_quadratic() -> KnownProgram:
    """A full, non-diagonal Hessian: a back end that takes the wrong triangle, or only the diagonal, fails here."""
    hessian = _array([6, 2, -1, 1], [2, 5, 2, 0], [-1, 2, 7, 1], [1, 0, 1, 4])
    rows = [(-INF, [1, 1, 1, 1], 2.5, 2), (-INF, [2, -1, 0, 1], 20, 0), (0, [1, 0, 4, -1], INF, -1)]
    bounds = [(-5, 5, 0), (-2, 5, -3), (-5, INF, 0), (-5, 5, 0)]
    return _from_optimum("dense quadratic", [1, -2, 0.5, 3], hessian, rows=rows, bounds=bounds)


def two_sided_rows() -> KnownProgram:
    """Finite sides on both ends: one row active above, one below, one not at all; a fourth row has no sides."""
    hessian = _array([2, 1, 0], [1, 2, 1], [0, 1, 2])
    rows = [(-6, [1, 1, 1], 6, 3), (2, [1, -1, 1], 8, -2), (-4, [1, 0, -1], 4, 0), (-INF, [1, 1, 0], INF, 0)]
    return _from_optimum("two-sided rows", [1, 2, 3], hessian, rows=rows)


_CONFLICT = ((-INF, [1, 2], 4), (-INF, [3, 1], 5), (5, [1, 1], INF))  # no two conflict, all three do


def conflicting_rows() -> KnownProgram:
    """Three rows in conflict, x + 2y <= 4, 3x + y <= 5 and x + y >= 5, of which any two can hold."""
    return KnownProgram("conflicting rows", _program([1, 1], _CONFLICT), Status.INFEASIBLE)


def unbounded_linear() -> KnownProgram:
    """The objective falls along (1, 1), which no row stops."""
    program = _program([-1, -1], [(-2, [1, -1], 2)], [(0, INF)] * 2)
    return KnownProgram("unbounded linear", program, Status.UNBOUNDED)


def unbounded_quadratic() -> KnownProgram:
    """The objective falls along (0, 1), where the singular Hessian has no curvature."""
    program = _program([1, -1], bounds=[(0, INF)] * 2, hessian=np.diag(_array(1, 0)))
    return KnownProgram("unbounded quadratic", program, Status.UNBOUNDED)


def knapsack() -> KnownProgram:
    """Six items, weights at most 15; of the 64 choices items 0, 2 and 3 are best, worth 26 at weight 15."""
    rows = [(-INF, [6, 5, 5, 4, 4, 1], 15)]
    program = _program([-10, -7, -9, -7, -4, -2], rows, [(0, 1)] * 6, integer=np.ones(6, dtype=bool))
    return KnownProgram("knapsack", program, Status.OPTIMAL, -26.0, _array(1, 0, 1, 1, 0, 0))


def integer_conflict() -> KnownProgram:
    """2x + 2y = 5 has real solutions and no whole-numbered ones."""
    program = _program([1, 1], [(5, [2, 2], 5)], [(-9, 9)] * 2, integer=np.ones(2, dtype=bool))
    return KnownProgram("no integer point", program, Status.INFEASIBLE)


def nearest_integer_point() -> KnownProgram:
    """Nearest of 49 points to (0.6, 0.7) in a skewed norm: (0, 1) at 0.063, not (1, 1) at 0.233 as rounding has it."""
    hessian, center = _array([1, 0.9], [0.9, 1]), _array(0.6, 0.7)
    program = _program(-hessian @ center, bounds=[(-3, 3)] * 2, hessian=hessian, integer=np.ones(2, dtype=bool))
    program = replace(program, constant=0.5 * float(center @ hessian @ center))
    return KnownProgram("nearest integer point", program, Status.OPTIMAL, 0.063, _array(0, 1))


def few_of_many() -> KnownProgram:
    """Change at most 2 of 4 weights, by a big-M of 2; the weight with the steepest slope is not among the best two.

    The last four variables are switches: ``|d[i]| <= 2 s[i]``, and at most two switches are on.
    """
    hessian = np.zeros((8, 8))
    hessian[:4, :4] = _array([4, 2, 0, 1], [2, 3, 1, 0], [0, 1, 2, 1], [1, 0, 1, 4])
    unit = np.eye(8)
    rows = [(-INF, sign * unit[i] - 2 * unit[4 + i], 0) for i in range(4) for sign in (1, -1)]
    rows += [(-INF, unit[4:].sum(axis=0), 2)]
    mask, bounds = np.arange(8) >= 4, [(-2, 2)] * 4 + [(0, 1)] * 4
    program = _program([-6, -5, -2, -4, 0, 0, 0, 0], rows, bounds, hessian=hessian, integer=mask, n_delta=4)
    return KnownProgram("at most 2 of 4", program, Status.OPTIMAL, -37 / 6, _array(0, 5 / 3, 0, 1, 0, 1, 0, 1))


def _linear_programs() -> Iterator[KnownProgram]:
    """Linear ones, those without a solution at the end."""
    rows: list[Any]
    bounds: list[Any]
    yield linear()
    # No rows at all, bounds only.
    program = _program([1, -2, 3], bounds=[(-1, 1), (-1, 5), (-2, 1)])
    yield KnownProgram("linear without rows", program, Status.OPTIMAL, -17.0, _array(-1, 5, -2))
    # Six rows meet at the optimum of two variables, two of them the same.
    rows = [(-INF, [1, 1], 2, 0.5), (-INF, [1, 1], 2, 0.5), (-INF, [2, 1], 3, 1), (-INF, [1, 2], 3, 1)]
    rows += [(-INF, [3, 1], 4, 0), (-INF, [1, 3], 4, 1)]
    yield _from_optimum("degenerate vertex", [1, 1], rows=rows, bounds=[(-9, INF, 0), (-9, INF, 0)])
    # A chain ``d[i+1] - d[i] <= 1`` from ``d[0] <= 0``, stored as a sparse matrix; maximize the last.
    from scipy import sparse

    n = 40
    rows = [(-INF, np.eye(n)[i + 1] - np.eye(n)[i], 1, 1) for i in range(n - 1)]
    bounds = [(-INF, 0, 1)] + [(-INF, INF, 0)] * (n - 1)
    dense = _from_optimum("sparse linear", np.arange(n), rows=rows, bounds=bounds)
    yield replace(dense, program=replace(dense.program, matrix=sparse.csr_matrix(dense.program.matrix)))
    # Equality rows over free variables; the third row is the sum of the first two.
    rows = [(3, [1, 1, 0], 3, 1), (5, [0, 1, 1], 5, -2), (8, [1, 2, 1], 8, 0), (-INF, [1, 0, 0], 1, 3)]
    yield _from_optimum("linear, dependent equality rows", [1, 2, 3], rows=rows)
    # One variable fixed by equal bounds, one free.
    rows = [(4, [1, 1, 1], INF, -2), (-INF, [0, 1, 2], 5, 1)]
    bounds = [(2, 2, 5), (-INF, INF, 0), (3, INF, -0.5)]
    yield _from_optimum("linear, fixed and free variables", [2, -1, 3], rows=rows, bounds=bounds)
    # Rows whose sizes differ by ten orders of magnitude.
    rows = [(-INF, [1e6, 2e6, 0], 5e6, 1e-6), (-INF, [0, 1e-4, 1e-4], 1e-4, 1e4), (0, [1, 0, 1], INF, -1)]
    yield _from_optimum("badly scaled linear", [1, 2, -1], rows=rows, bounds=[(-50, 50, 0)] * 3)
    yield conflicting_rows()
    # Two parallel equality rows.
    program = _program([1, 1], [(1, [1, 1], 1), (3, [2, 2], 3)])
    yield KnownProgram("conflicting equality rows", program, Status.INFEASIBLE)
    # A row that asks for more than the box allows.
    program = _program([1, 1, 1], [(7, [1, 2, 3], INF)], [(0, 1)] * 3)
    yield KnownProgram("row against box", program, Status.INFEASIBLE)
    yield unbounded_linear()


def _quadratic_programs() -> Iterator[KnownProgram]:
    """Convex quadratic ones, those without a solution at the end."""
    rows: list[Any]
    bounds: list[Any]
    hessian: Any
    yield dense_quadratic()
    # A Hessian that is given as a diagonal and a factor.
    hessian = LowRankHessian(_array(1, 2, 1, 3), _array([1, 0], [2, 1], [0, -1], [1, 1]))
    bounds = [(-4, 4, 1)] + [(-4, 4, 0)] * 3
    yield _from_optimum("low-rank Hessian", [4, -1, -2, 0], hessian, rows=[(-INF, [1] * 4, 1, 2)], bounds=bounds)
    # A singular Hessian, a unique optimum held by a row, free variables.
    yield _from_optimum("singular Hessian", [1, 0], np.diag(_array(1, 0)), rows=[(1, [1, 1], INF, -1)])
    # A Hessian of rank one whose optima fill a plane; only the value is known.
    program = _program([-3, -3, -3], bounds=[(-5, 5)] * 3, hessian=np.ones((3, 3)), constant=4.5)
    yield KnownProgram("many optima", program, Status.OPTIMAL, 0.0)
    # Two equality rows and an inequality over free variables.
    hessian = _array([3, 1, 0, 0], [1, 3, 1, 0], [0, 1, 3, 1], [0, 0, 1, 3])
    rows = [(2, [1, 1, 1, 1], 2, 4), (6, [1, -1, 2, 0], 6, -3), (-INF, [0, 1, 0, 1], -1, 0.5)]
    yield _from_optimum("equality rows", [1, -1, 2, 0], hessian, rows=rows)
    yield two_sided_rows()
    # Two variables fixed by equal bounds, with multipliers of either sign; two free.
    hessian = _array([4, 1, 1, 0], [1, 4, 1, 1], [1, 1, 4, 1], [0, 1, 1, 4])
    bounds = [(0.5, 0.5, 2), (-1, -1, -2), (-INF, INF, 0), (-INF, INF, 0)]
    rows = [(-INF, [1, 1, 1, 1], 2.5, 1.5)]
    yield _from_optimum("fixed and free variables", [0.5, -1, 2, 1], hessian, rows=rows, bounds=bounds)
    # No rows, no bounds.
    yield _from_optimum("no rows, no bounds", [1, -2, 3], _array([4, 1, 0], [1, 3, 1], [0, 1, 2]))
    # Curvatures and rows whose sizes differ by six orders of magnitude.
    hessian = _array([1e4, 10, 0], [10, 1, 0.01], [0, 0.01, 0.01])
    rows = [(-INF, [1e4, 0, 1e4], 3e4, 1e-3), (-1, [1e-2, 1e-2, 0], 1, 0)]
    yield _from_optimum("badly scaled quadratic", [1, -1, 2], hessian, rows=rows, bounds=[(-100, 100, 0)] * 3)
    # The conflicting rows under a positive definite Hessian.
    program = _program([1, 1], _CONFLICT, hessian=_array([2, 1], [1, 2]))
    yield KnownProgram("quadratic, conflicting rows", program, Status.INFEASIBLE)
    yield unbounded_quadratic()


def _integer_programs() -> Iterator[KnownProgram]:
    """Mixed-integer ones, then nonconvex ones."""
    yield knapsack()
    # Maximize 5x + 4y with 2x + 2y <= 9 and x <= 2.5, x integer: the relaxation stops at x = 2.5, the answer at 2.
    mask = np.array([True, False])
    program = _program([-5, -4], [(-INF, [2, 2], 9)], [(-4, 2.5), (-4, 40)], integer=mask)
    yield KnownProgram("mixed-integer linear", program, Status.OPTIMAL, -20.0, _array(2, 2.5))
    yield integer_conflict()
    # The unbounded linear one over the integers.
    program = replace(unbounded_linear().program, integer=np.ones(2, dtype=bool))
    yield KnownProgram("unbounded integer", program, Status.UNBOUNDED)
    yield nearest_integer_point()
    yield few_of_many()
    # The integer conflict under a positive definite Hessian.
    program = replace(integer_conflict().program, hessian=_array([2, 1], [1, 2]))
    yield KnownProgram("quadratic, no integer point", program, Status.INFEASIBLE)
    # The unbounded quadratic one over the integers.
    program = replace(unbounded_quadratic().program, integer=np.ones(2, dtype=bool))
    yield KnownProgram("unbounded integer quadratic", program, Status.UNBOUNDED)
    # The product xy over a box: -3 at (-1, 3); (1, -2) at -2 is better than all around it, and not the best.
    program = _program([0, 0], bounds=[(-1, 1), (-2, 3)], hessian=_array([0, 1], [1, 0]))
    yield KnownProgram("saddle", program, Status.OPTIMAL, -3.0, _array(-1, 3), nonconvex=True)
    # A concave objective over a pentagon, best at the corner (2, 1) that the row x + y <= 3 cuts.
    program = _program([-1, 1], [(-INF, [1, 1], 3)], [(-1, 2)] * 2, hessian=-_array([2, 1], [1, 2]))
    yield KnownProgram("concave", program, Status.OPTIMAL, -8.0, _array(2, 1), nonconvex=True)
    # Of the whole-numbered points with -2.5 <= x, y <= 2.4 and x - y <= 3, the one farthest from (0.3, 0.2).
    center, mask = _array(0.3, 0.2), np.ones(2, dtype=bool)
    program = _program(center, [(-INF, [1, -1], 3)], [(-2.5, 2.4)] * 2, hessian=-np.eye(2), integer=mask)
    yield KnownProgram("farthest integer point", program, Status.OPTIMAL, -5.0, _array(-2, -2), nonconvex=True)
