"""Claims of back ends that residuals cannot check, and what programs and options are taken or refused."""

import os
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import numpy as np
import pytest
from scipy import sparse

from repairopt.errors import ProgramError
from repairopt.program import (
    Kind,
    LowRankHessian,
    Program,
    Solution,
    Status,
    known_programs,
    run_solver,
    solve,
    without_noise,
)
from repairopt.program.certificates.recession import falls_for_ever, recession_ray
from repairopt.solvers import CVXPY, OSQP, SCIP, Pyomo
from repairopt.solvers.scip import NOISE

INF = np.inf


@dataclass(frozen=True)
class Says:
    """A back end that gives the answer that it was made with."""

    answer: Any
    nonconvex: bool = False

    name: ClassVar[str] = "says"
    kinds: ClassVar[frozenset[Kind]] = frozenset(Kind)
    requires: ClassVar[tuple[str, ...]] = ()

    def solve(self, program):
        return self.answer


def program(gradient, rows=(), low=-INF, high=INF, **other):
    """Rows are ``(lower, coefficients, upper)``."""
    n = len(gradient)
    sides = {"lower": np.array([r[0] for r in rows]), "upper": np.array([r[2] for r in rows])}
    matrix = np.array([r[1] for r in rows], dtype=float).reshape(len(rows), n)
    bounds = {"delta_lower": np.broadcast_to(low, n), "delta_upper": np.broadcast_to(high, n)}
    return Program(gradient=np.array(gradient, dtype=float), matrix=matrix, **sides, **bounds, **other)


BOUNDED = {
    "a fixed variable with a gradient on it": program([1.0, -7.0], low=[0.0, 2.0], high=[5.0, 2.0]),
    "a gradient in the span of equality rows": program([1, 2, 3], [(4, [1, 2, 3], 4)]),
    "a Hessian of zeros over a box": program([1, -1], low=-2.0, high=3.0, hessian=np.zeros((2, 2))),
    "no gradient": program([0, 0, 0]),
    "held by a row alone": program([-1, -1], [(-INF, [1, 1], 7)], low=[0, 0]),
    "curvature where the gradient is": program([0, -5], hessian=np.diag([0.0, 1e-6])),
    "a factor where the gradient is": program([2, 2], hessian=LowRankHessian(np.zeros(2), np.ones((2, 1)))),
    "whole numbers in a box": program([-1, 2], low=-3.0, high=3.0, integer=np.array([True, False])),
}
UNBOUNDED = {
    "a free variable": program([0, 1]),
    "along a row": program([-1, 0], [(0, [1, -1], 0)], low=[0, 0]),
    "along the null space": program([1, -1], hessian=np.ones((2, 2))),
    "beside a factor": program([0, 1, 0], hessian=LowRankHessian(np.array([1.0, 0, 0]), np.array([[0], [0], [1.0]]))),
    "whole numbers": program([-2, -3], [(-4, [3, -2], 4)], low=[0, 0], integer=np.ones(2, dtype=bool)),
    "whole numbers, quadratic": program([1, -1], hessian=np.ones((2, 2)), integer=np.ones(2, dtype=bool)),
}


@pytest.mark.parametrize("bounded", BOUNDED.values(), ids=BOUNDED)
def test_unbounded_is_not_believed_without_a_ray(bounded):
    lie = solve(bounded, Says(Solution(Status.UNBOUNDED)))
    assert (lie.status, lie.claimed) == (Status.FAILED, Status.UNBOUNDED)
    assert "no direction along which the objective falls for ever was found" in lie.message
    assert recession_ray(bounded) is None
    assert solve(bounded).status is Status.OPTIMAL


@pytest.mark.parametrize("endless", UNBOUNDED.values(), ids=UNBOUNDED)
def test_unbounded_comes_with_a_ray_that_shows_it(endless):
    found = solve(endless)
    assert found.status is Status.UNBOUNDED
    assert falls_for_ever(endless, found.proof.ray)
    values = []
    for length in (0.0, 1e3, 1e6):
        point = found.proof.point + length * found.proof.ray
        assert replace(endless, integer=None).violation(point) <= 1e-6 * (1 + length)
        values.append(endless.objective(point))
    assert values[0] > values[1] > values[2]


@pytest.mark.parametrize("endless", UNBOUNDED.values(), ids=UNBOUNDED)
def test_unbounded_needs_a_point_too(endless):
    extra = np.zeros((2, endless.n))
    extra[:, 0] = 1.0
    sides = {"lower": np.array([9.0, -INF]), "upper": np.array([INF, 5.0])}
    both = {name: np.concatenate([getattr(endless, name), sides[name]]) for name in sides}
    empty = replace(endless, matrix=np.vstack([endless.matrix, extra]), **both)
    assert run_solver(empty, Says(Solution(Status.UNBOUNDED))).status is Status.FAILED
    assert solve(empty).status is Status.INFEASIBLE


SOLVED = [known.program for known in known_programs() if known.status is Status.OPTIMAL]


def without_multipliers(program):
    return replace(solve(program), row_duals=None, bound_duals=None, attempts=(), gap=np.nan)


def test_optimal_without_multipliers_stands_where_it_is_true():
    assert all(solve(program, Says(without_multipliers(program))).status is Status.OPTIMAL for program in SOLVED)


def test_optimal_without_multipliers_falls_where_there_is_a_better_point():
    lies = 0
    for program in SOLVED:
        right = without_multipliers(program)
        other = solve(replace(program, gradient=-program.gradient, hessian=None), "highs")
        worse = other.delta if other.found else 0.5 * right.delta
        if program.violation(worse) < 1e-7 and program.objective(worse) > right.objective + 1e-3:
            lies += 1
            found = solve(program, Says(replace(right, delta=worse)))
            assert (found.status, found.claimed) == (Status.FEASIBLE, Status.OPTIMAL)
    assert lies >= 5


@pytest.mark.parametrize("bound", [np.nan, -INF, 0.0, 1.5, 2.5])
def test_a_mixed_integer_answer_needs_its_own_bound_at_its_value(bound):
    box = program([1, 1], low=0.0, high=1.0, integer=np.array([True, False]))
    lie = solve(box, Says(Solution(Status.OPTIMAL, np.ones(2), bound=bound)))
    assert (lie.status, lie.claimed) == (Status.FEASIBLE, Status.OPTIMAL)
    assert solve(box, Says(Solution(Status.OPTIMAL, np.zeros(2), bound=0.0))).status is Status.OPTIMAL


@pytest.mark.parametrize("backend", [CVXPY(), CVXPY("SCIP"), Pyomo(), Pyomo("scip_direct")], ids=str)
@pytest.mark.parametrize("fixed", [1e4, 1e6])
def test_layers_prove_mixed_integer_answers(backend, fixed):
    pytest.importorskip(backend.requires[0])
    random = np.random.default_rng(5)
    weights = random.integers(30, 90, 25).astype(float)
    values = weights + random.integers(-5, 6, 25)
    limit = (-INF, [*weights, 0.0], weights.sum() / 3)
    sack = program([*-values, -fixed], [limit], [0.0] * 25 + [1.0], 1.0, integer=np.arange(26) < 25)
    found, direct = solve(sack, backend), solve(sack, "highs")
    assert found.status is Status.OPTIMAL
    assert found.objective - 1e-6 * fixed * 1.1 <= found.bound <= found.objective + 1e-6
    assert found.objective == pytest.approx(direct.objective, abs=1e-6 * fixed * 1.1)


SKEWED = {
    "upper triangle": np.array([[1.0, 3.0], [0.0, 9.0]]),
    "lower triangle": np.array([[1.0, 0.0], [0.5, 1.0]]),
    "a little off": np.array([[1.0, 0.5 + 1e-6], [0.5, 1.0]]),
    "opposite signs": np.array([[2.0, 1.0], [-1.0, 2.0]]),
    "large": np.array([[1e8, 1e6], [0.0, 1e8]]),
}
BENT = {
    "a negative eigenvalue of 1e-9": np.diag([1.0, -1e-9]),
    "rank one and a little less": np.ones((2, 2)) - 1e-10 * np.eye(2),
    "small all over": np.diag([1e-6, -1e-12]),
    "hidden in a product": np.array([[1.0, 1.0], [1.0, 1.0 - 1e-8]]),
    "zero diagonal": np.array([[0.0, 1e-3], [1e-3, 1.0]]),
}


@pytest.mark.parametrize("solver", ["scip", "daqp", "piqp", "gurobi", None])
@pytest.mark.parametrize("hessian", SKEWED.values(), ids=SKEWED)
def test_no_back_end_sees_a_hessian_that_is_not_symmetric(hessian, solver):
    if solver == "gurobi":
        pytest.importorskip("gurobipy")
    with pytest.raises(ProgramError, match=r"not symmetric. Pass \(H \+ H.T\) / 2"):
        solve(program([1, 1], low=-1.0, high=1.0, hessian=hessian), solver)


@pytest.mark.parametrize("solver", ["daqp", "piqp", None])
@pytest.mark.parametrize("hessian", BENT.values(), ids=BENT)
def test_no_convex_back_end_sees_a_hessian_that_is_barely_indefinite(hessian, solver):
    with pytest.raises(ProgramError, match="not positive semidefinite"):
        solve(program([0, -1], hessian=hessian), solver)


@pytest.mark.parametrize(
    "convert",
    [sparse.csc_matrix, sparse.coo_matrix, sparse.lil_matrix, sparse.dok_matrix, sparse.dia_matrix, sparse.bsr_array]
    + [np.ndarray.tolist, lambda a: a.astype(np.int32), lambda a: a.astype(np.float32), tuple],
)
def test_matrices_of_every_kind_are_converted(convert):
    matrix, hessian = np.array([[1.0, 1.0], [2.0, -1.0]]), np.array([[2.0, 1.0], [1.0, 2.0]])
    plain = Program(gradient=np.ones(2), hessian=hessian, matrix=matrix, lower=np.ones(2))
    found = Program(gradient=[1, 1], hessian=convert(hessian), matrix=convert(matrix), lower=[1, 1])
    assert found.matrix.dtype == found.hessian.dtype == np.float64
    assert solve(found).objective == pytest.approx(solve(plain).objective, abs=1e-8)


@pytest.mark.parametrize(
    "fields",
    [
        {"matrix": [["a", "b"]]},
        {"matrix": [[1j, 0]]},
        {"matrix": [[1.0], [1.0, 2.0]]},
        {"matrix": [1.0, 2.0]},
        {"hessian": sparse.csr_matrix((2, 2), dtype=complex)},
        {"hessian": "identity"},
        {"integer": [0]},
        {"integer": [0, 2]},
        {"constant": np.nan},
        {"constant": "0"},
        {"n_delta": 3},
        {"gradient": [[1.0], [2.0]]},
        {"gradient": None},
        {"delta_lower": ["-1", "1"]},
    ],
    ids=str,
)
def test_what_is_no_program_is_refused_by_name(fields):
    with pytest.raises(ProgramError, match=next(iter(fields))):
        Program(**{"gradient": np.ones(2), **fields})


@pytest.mark.parametrize("limit", [-1, 0, np.nan, -INF, "5", True])
@pytest.mark.parametrize("name", ["time_limit", "memory_limit"])
def test_limits_that_are_none_are_refused(name, limit):
    with pytest.raises(ProgramError, match=f"{name}=.*expected a number above 0"):
        solve(BOUNDED["no gradient"], **{name: limit})


@pytest.mark.parametrize("seed", range(5))
def test_libraries_print_no_warnings_of_their_tolerances(seed, capfd):
    random = np.random.default_rng(seed)
    factor = random.normal(size=(6, 4))
    small = program(random.normal(size=6), low=-3.0, high=3.0, hessian=factor @ factor.T)
    for backend in (SCIP(), OSQP()):
        pytest.importorskip(backend.requires[0])
        assert solve(small, backend).found
    assert capfd.readouterr() == ("", "")


def test_lines_of_both_tolerances_are_left_out_and_others_are_not(capfd):
    with without_noise(2, NOISE):
        for line in ("Cannot set feasibility tolerance to 1e-11", "Cannot set optimality tolerance", "else Cannot set"):
            os.write(2, f"{line}\n".encode())
    assert capfd.readouterr() == ("", "else Cannot set\n")
