import itertools
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, strategies as st
from scipy import sparse

from repairopt.errors import ProgramError
from repairopt.program import Kind, LowRankHessian, Program, Rows, Source, Status, known_programs, solve
from repairopt.program.examples import INF
from repairopt.surrogate import Surrogate, build_program


def test_missing_sides_are_infinite():
    program = Program(gradient=np.ones(2), matrix=np.ones((3, 2)))
    assert (program.n, program.m) == (2, 3)
    assert np.all(program.lower == -INF)
    assert np.all(program.upper == INF)
    low, high = program.bounds()
    assert np.all(low == -INF)
    assert np.all(high == INF)


@pytest.mark.parametrize(
    ("hessian", "integer", "kind"),
    [
        (None, None, Kind.LP),
        (None, [False, False], Kind.LP),
        (np.eye(2), None, Kind.QP),
        (None, [True, False], Kind.MILP),
        (np.eye(2), [True, False], Kind.MIQP),
    ],
)
def test_kind(hessian, integer, kind):
    mask = None if integer is None else np.array(integer)
    assert Program(gradient=np.ones(2), hessian=hessian, integer=mask).kind is kind


def test_objective_by_hand():
    program = Program(gradient=np.array([1.0, -1.0]), hessian=np.array([[2.0, 1.0], [1.0, 4.0]]), constant=3.0)
    assert program.objective(np.array([2.0, 3.0])) == 0.5 * (8 + 12 + 36) + (2 - 3) + 3


def test_violation_takes_the_worst_of_rows_bounds_and_integrality():
    program = Program(
        gradient=np.zeros(2),
        matrix=np.array([[1.0, 1.0]]),
        lower=np.array([0.0]),
        upper=np.array([1.0]),
        delta_lower=np.array([-1.0, -1.0]),
        delta_upper=np.array([2.0, 2.0]),
        integer=np.array([True, False]),
    )
    assert program.violation(np.array([1.0, 0.0])) == 0
    assert program.violation(np.array([1.0, 1.5])) == 1.5
    assert program.violation(np.array([1.0, -1.25])) == 0.25
    assert program.violation(np.array([0.3, 0.0])) == pytest.approx(0.3)


def test_low_rank_hessian_stands_for_its_matrix():
    random = np.random.default_rng(0)
    low_rank = LowRankHessian(random.random(5), random.normal(size=(5, 2)))
    dense = np.diag(low_rank.diagonal) + low_rank.factor @ low_rank.factor.T
    vector = random.normal(size=5)
    a = Program(gradient=vector, hessian=low_rank)
    b = Program(gradient=vector, hessian=dense)
    np.testing.assert_allclose(a.dense_hessian(), dense)
    assert a.objective(vector) == pytest.approx(b.objective(vector), rel=1e-12)


def test_dense_hessian_refuses_what_does_not_fit():
    n = 3000
    program = Program(gradient=np.zeros(n), hessian=LowRankHessian(np.ones(n), np.ones((n, 1))))
    with pytest.raises(ProgramError, match="Hessian of 3,000 weights needs 0.1 GiB.*smaller Location"):
        program.dense_hessian(memory_limit=1e6)


def test_dense_hessian_of_a_linear_program_is_zero():
    assert not Program(gradient=np.ones(3)).dense_hessian().any()


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"matrix": np.ones((1, 3))}, r"matrix has shape \(1, 3\), expected \(m, 2\)"),
        ({"hessian": np.eye(3)}, r"hessian has shape \(3, 3\), expected \(2, 2\)"),
        ({"integer": np.array([True])}, r"integer mask has shape \(1,\), expected \(2,\)"),
        ({"matrix": np.eye(2), "upper": np.ones(3)}, r"upper has shape \(3,\), expected \(2,\)"),
        ({"matrix": np.eye(2), "upper": np.array([1.0, np.nan])}, "upper holds NaN"),
        ({"matrix": np.array([[1.0, np.nan]])}, "matrix holds NaN"),
        ({"matrix": sparse.csr_matrix([[1.0, np.inf]])}, "matrix holds NaN or infinite"),
        ({"matrix": np.eye(2), "sources": (Source("a"),)}, "1 sources for 2 rows"),
        ({"delta_lower": np.array([0.0, 2.0]), "delta_upper": np.ones(2)}, "bound 1 has lower 2 above upper 1"),
        (
            {"matrix": np.ones((1, 2)), "lower": [3], "upper": [2], "sources": (Source("keep label", 4),)},
            r"row 0 \('keep label', sample 4\) has lower 3 above upper 2",
        ),
    ],
)
def test_inconsistent_programs_are_refused_with_the_reason(fields, message):
    with pytest.raises(ProgramError, match=message):
        Program(gradient=np.ones(2), **fields)


@given(st.lists(st.floats(-10, 10), min_size=2, max_size=2), st.lists(st.floats(-10, 10), min_size=2, max_size=2))
def test_violation_is_zero_exactly_where_all_hold(point, sides):
    low, high = sorted(sides)
    program = Program(
        gradient=np.zeros(2), matrix=np.array([[1.0, 2.0]]), lower=np.array([low]), upper=np.array([high])
    )
    delta = np.array(point)
    value = delta[0] + 2 * delta[1]
    assert (program.violation(delta) == 0) == (low <= value <= high)


@pytest.mark.parametrize("problem", known_programs(), ids=lambda problem: problem.name)
def test_known_answers_are_feasible_and_have_the_stated_value(problem):
    if problem.delta is not None:
        assert problem.program.violation(problem.delta) <= 1e-12
        assert problem.program.objective(problem.delta) == pytest.approx(problem.objective, rel=1e-9, abs=1e-12)
    assert (problem.status is Status.OPTIMAL) == np.isfinite(problem.objective)


def test_known_programs_have_different_names_and_cover_every_kind():
    problems = known_programs()
    assert len({problem.name for problem in problems}) == len(problems)
    assert {problem.program.kind for problem in problems} == set(Kind)


@pytest.mark.parametrize("name", ["knapsack", "nearest integer point"])
def test_integer_answers_by_enumeration(name):
    problem = next(problem for problem in known_programs() if problem.name == name)
    low, high = problem.program.bounds()
    grid = itertools.product(*(range(int(a), int(b) + 1) for a, b in zip(low, high, strict=True)))
    points = [np.array(point, dtype=float) for point in grid]
    values = sorted((problem.program.objective(p), tuple(p)) for p in points if problem.program.violation(p) == 0)
    assert values[0][0] == pytest.approx(problem.objective)
    assert values[0][1] == tuple(problem.delta)
    assert values[1][0] > values[0][0] + 1e-3


BOX = (np.full(2, -5.0), np.full(2, 5.0))


def bowl():
    """``1/2 |d|^2 - 3 d_0``: its minimum is (3, 0)."""
    return Surrogate(gradient=np.array([-3.0, 0.0]), hessian=np.eye(2), constant=7.0)


def one_row(price=INF, convert=np.asarray):
    """``-d_0 - d_1 >= -1``: with the bowl, the optimum is (2, -1) and the multiplier of the row 1."""
    matrix = convert(np.array([[-1.0, -1.0]]))
    return Rows(matrix, np.array([-1.0]), np.array([INF]), np.array([price]), (Source("keep label", 4),))


def test_build_program_with_hard_rows():
    program = build_program(bowl(), one_row(), box=BOX)
    assert (program.kind, program.n, program.m, program.n_delta) == (Kind.QP, 2, 1, 2)
    assert program.sources == (Source("keep label", 4),)
    solution = solve(program)
    np.testing.assert_allclose(solution.delta, [2, -1], atol=1e-7)
    assert solution.objective == pytest.approx(0.5 * 5 - 6 + 7)
    np.testing.assert_allclose(solution.row_duals, [-1], atol=1e-6)


@pytest.mark.parametrize("convert", [np.asarray, sparse.csr_matrix])
@pytest.mark.parametrize(("price", "delta", "slack"), [(1.5, (2, -1), 0), (0.5, (2.5, -0.5), 1), (0.0, (3, 0), 2)])
def test_a_soft_row_is_broken_where_its_price_is_below_its_multiplier(price, delta, slack, convert):
    program = build_program(bowl(), one_row(price, convert), box=BOX)
    assert (program.n, program.n_delta) == (3, 2)
    solution = solve(program)
    np.testing.assert_allclose(solution.delta[:2], delta, atol=1e-6)
    if price > 0:
        assert solution.delta[2] == pytest.approx(slack, abs=1e-6)


def test_hard_and_soft_rows_together():
    rows = Rows(
        np.array([[-1.0, -1], [1, -1], [0, 1]]), np.array([-1.0, -9, -2]), np.full(3, INF), np.array([INF, 2, 3]), ()
    )
    program = build_program(bowl(), rows, box=BOX)
    np.testing.assert_array_equal(program.matrix, [[-1, -1, 0, 0], [1, -1, 1, 0], [0, 1, 0, 1]])
    np.testing.assert_array_equal(program.gradient, [-3, 0, 2, 3])
    np.testing.assert_array_equal(program.dense_hessian(), np.diag([1.0, 1, 0, 0]))
    np.testing.assert_array_equal(program.delta_lower, [-5, -5, 0, 0])
    assert np.all(np.isinf(program.delta_upper[2:]))


def test_a_soft_row_may_not_have_an_upper_side():
    rows = replace(one_row(price=1.0), upper=np.array([3.0]))
    with pytest.raises(ProgramError, match="a soft row has a finite upper side; write it as two rows"):
        build_program(bowl(), rows, box=BOX)


def test_rows_on_the_change_stand_below_the_others():
    change = Rows(np.array([[1.0, 0.0]]), np.array([-INF]), np.array([0.5]), np.array([INF]), (Source("budget"),))
    program = build_program(bowl(), one_row(), box=BOX, change=change)
    assert [source.constraint for source in program.sources] == ["keep label", "budget"]
    np.testing.assert_allclose(solve(program).delta, [0.5, 0], atol=1e-7)


def test_linear_drops_the_quadratic_term():
    program = build_program(bowl(), one_row(), box=BOX, linear=True)
    assert program.kind is Kind.LP
    assert solve(program).delta[0] == pytest.approx(5)


@pytest.mark.parametrize("hessian", [np.eye(2), LowRankHessian(np.ones(2), np.zeros((2, 1)))])
def test_proximal_term_is_measured_in_scaled_coordinates(hessian):
    surrogate = replace(bowl(), hessian=hessian, scale=np.array([0.5, 2.0]))
    program = build_program(surrogate, Rows.empty(2), box=BOX, proximal=3.0)
    np.testing.assert_allclose(program.dense_hessian(), np.diag([1 + 3 / 0.25, 1 + 3 / 4]))
