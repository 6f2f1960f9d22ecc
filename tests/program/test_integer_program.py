"""Mixed-integer programs against enumeration; what their limits, bounds and maps back must satisfy."""

from itertools import combinations, product

import numpy as np
import pytest
from hypothesis import given, strategies as st
from integer_instances import broken_samples, enumerated, singles, sparse_change, wrong_samples
from scipy import sparse

from repairopt import Kind, Program, ProgramError, Status, available_solvers
from repairopt.program import (
    Source,
    allow_broken,
    grid,
    limit_changes,
    maximize_fixed,
    rows_by_sample,
    solve,
    solve_integer,
)
from repairopt.program.integer.integer_program import row_range

quadratic = pytest.mark.skipif(not available_solvers("MIQP"), reason="no MIQP back end is installed")
EXACT = {"time_limit": 30.0, "gap_tol": 1e-7}


def sampled(program: Program, names: list[str]) -> Program:
    sources = tuple(Source(name, i // 2) for i, name in enumerate(names))
    return Program(
        program.gradient,
        program.hessian,
        matrix=program.matrix,
        lower=program.lower,
        upper=program.upper,
        delta_lower=program.delta_lower,
        delta_upper=program.delta_upper,
        sources=sources,
    )


@pytest.mark.parametrize("seed", range(3))
def test_few_changes_agree_with_all_subsets_linear(seed):
    integer = limit_changes(sparse_change(8, seed, rows=12, linear=True), 3)
    assert integer.program.kind is Kind.MILP
    found = solve(integer.program, "highs")
    delta, chosen = integer.recover(found.delta)
    assert found.objective == pytest.approx(enumerated(integer), abs=1e-7)
    assert np.count_nonzero(np.abs(delta) > 1e-9) <= chosen.sum() <= 3


@quadratic
@pytest.mark.parametrize("seed", range(3))
def test_few_changes_agree_with_all_subsets_quadratic(seed):
    integer = limit_changes(sparse_change(8, seed, rows=12), 3)
    found = solve_integer(integer, **EXACT)
    assert found.status is Status.OPTIMAL
    assert found.objective == pytest.approx(enumerated(integer), abs=1e-6)
    assert np.count_nonzero(found.delta) <= 3
    assert integer.original.violation(found.delta) <= 1e-6


@pytest.mark.parametrize("seed", range(3))
def test_allowed_breaks_agree_with_all_subsets_linear(seed):
    integer = allow_broken(broken_samples(10, 5, seed, linear=True), 2, singles(10))
    found = solve(integer.program, "highs")
    assert found.objective == pytest.approx(enumerated(integer), abs=1e-7)
    delta, chosen = integer.recover(found.delta)
    assert chosen.sum() <= 2
    assert integer.restricted(chosen).violation(delta) <= 1e-7


@quadratic
@pytest.mark.parametrize("seed", range(3))
def test_allowed_breaks_agree_with_all_subsets_quadratic(seed):
    integer = allow_broken(broken_samples(10, 5, seed), 2, singles(10))
    found = solve_integer(integer, **EXACT)
    assert found.status is Status.OPTIMAL
    assert found.objective == pytest.approx(enumerated(integer), abs=1e-6)


@pytest.mark.parametrize("seed", range(3))
def test_fewest_wrong_samples_agree_with_all_subsets(seed):
    program = wrong_samples(20, 8, 4, seed)
    integer = maximize_fixed(program, singles(8))
    least = next(
        size
        for size in range(9)
        for picked in combinations(range(8), size)
        if solve(integer.restricted(np.isin(np.arange(8), picked)), "piqp").found
    )
    found = solve_integer(integer, **EXACT)
    assert found.status is Status.OPTIMAL
    assert found.objective == found.bound == found.chosen.sum() == least
    wrong = program.matrix[:8] @ found.delta < program.lower[:8] - 1e-6
    assert not np.any(wrong & ~found.chosen)
    assert np.all(program.matrix[8:] @ found.delta >= program.lower[8:] - 1e-6)


@pytest.mark.parametrize("linear", [True, pytest.param(False, marks=quadratic)])
def test_grid_agrees_with_all_grid_points(linear):
    program = sparse_change(3, 1, rows=6, linear=linear)
    steps, codes = np.array([0.25, 0.3, 0.5]), np.array([126, 0, -127])
    integer = grid(program, steps, codes)
    room = (1 / steps + 1e-9).astype(int)
    ends = zip(np.maximum(-room, -128 - codes), np.minimum(room, 127 - codes), strict=True)
    ranges = [range(low, high + 1) for low, high in ends]
    points = [steps * np.array(point) for point in product(*ranges)]
    best = min(program.objective(point) for point in points if program.violation(point) <= 1e-9)
    found = solve_integer(integer, **EXACT)
    assert found.status is Status.OPTIMAL
    assert found.objective == pytest.approx(best, abs=1e-7)
    whole = found.delta / steps
    assert np.allclose(whole, np.round(whole), atol=1e-9)
    assert np.all(codes + whole <= 127 + 1e-9)
    assert np.all(codes + whole >= -128 - 1e-9)


@given(seed=st.integers(0, 10_000), count=st.integers(0, 4))
def test_big_numbers_never_cut_off_a_point_that_a_choice_allows(seed, count):
    program = broken_samples(8, 4, seed)
    integer = allow_broken(program, count, singles(8))
    draw = np.random.default_rng(seed)
    for _ in range(5):
        delta = draw.choice([-1.0, 1.0], size=4) * draw.choice([1.0, 1.0, draw.uniform()])
        broken = program.matrix @ delta < program.lower
        point = integer.lift(delta, broken)
        hard = integer.program.violation(point) > 1e-9
        assert hard == (broken.sum() > count), "feasible exactly where few enough samples break"


@given(seed=st.integers(0, 10_000), count=st.integers(0, 5))
def test_changes_within_the_box_are_feasible_exactly_where_few_enough(seed, count):
    draw = np.random.default_rng(seed)
    low, high = -draw.uniform(0, 2, size=6), draw.uniform(0, 2, size=6)
    integer = limit_changes(Program(np.ones(6), delta_lower=low, delta_upper=high), count, [[0, 1], [2], [3, 5]])
    delta = np.where(draw.random(6) < 0.5, 0.0, np.where(draw.random(6) < 0.5, low, high))
    used = np.array([delta[0] != 0 or delta[1] != 0, delta[2] != 0, delta[3] != 0 or delta[5] != 0])
    assert (integer.program.violation(integer.lift(delta, used)) <= 1e-9) == (used.sum() <= count)
    assert integer.program.violation(integer.lift(delta, np.zeros(3, dtype=bool))) <= 1e-9 or used.any()


def test_a_big_number_is_the_most_that_a_row_can_lack():
    program = Program(
        np.zeros(2),
        matrix=np.array([[2.0, -1.0], [1.0, 0.0]]),
        lower=np.array([1.0, -9.0]),
        delta_lower=np.array([-1.0, -2.0]),
        delta_upper=np.array([3.0, 4.0]),
    )
    integer = allow_broken(program, 1, singles(2))
    links = integer.program.matrix[:2, 2:].toarray()
    assert links == pytest.approx(np.array([[7.0, 0.0], [0.0, 0.0]]))  # 1 - (2 * -1 - 4); the second always holds
    assert integer.program.bounds()[1][2:].tolist() == [1.0, 0.0]


def test_two_sided_rows_may_break_on_either_side():
    program = Program(
        np.array([-1.0]),
        matrix=np.array([[1.0]]),
        lower=np.array([-0.5]),
        upper=np.array([0.5]),
        delta_lower=np.array([-3.0]),
        delta_upper=np.array([2.0]),
    )
    integer = allow_broken(program, 1, [[0]])
    assert solve(integer.program, "highs").objective == pytest.approx(-2.0)
    other = Program(np.array([1.0]), None, 0.0, program.matrix, program.lower, program.upper, *program.bounds())
    assert solve(allow_broken(other, 1, [[0]]).program, "highs").objective == pytest.approx(-3.0)
    assert solve(allow_broken(other, 0, [[0]]).program, "highs").objective == pytest.approx(-0.5)


def test_row_ranges_of_dense_and_sparse_rows_agree():
    program = broken_samples(6, 5)
    matrix = program.matrix * (np.abs(program.matrix) > 0.5)
    low, high = np.full(5, -np.inf), np.ones(5)
    dense = Program(program.gradient, matrix=matrix, delta_lower=low, delta_upper=high)
    other = Program(program.gradient, matrix=sparse.csr_matrix(matrix), delta_lower=low, delta_upper=high)
    for one, two in zip(row_range(dense), row_range(other), strict=True):
        assert one == pytest.approx(two)


def test_samples_come_from_the_sources_and_each_constraint_has_its_own_limit():
    program = sampled(broken_samples(8, 4, 3), ["keep"] * 4 + ["fix"] * 4)
    assert [rows.tolist() for rows in rows_by_sample(program)] == [[0, 1], [2, 3], [4, 5], [6, 7]]
    assert [rows.tolist() for rows in rows_by_sample(program, "fix")] == [[4, 5], [6, 7]]
    integer = allow_broken(program, {"keep": 0, "fix": 1})
    assert integer.allows(np.array([False, False, True, False]))
    assert not integer.allows(np.array([True, False, False, False]))
    assert not integer.allows(np.array([False, False, True, True]))
    assert [str(source) for source in integer.program.sources[-2:]] == [
        "'choice': at most 0 of 2",
        "'choice': at most 1 of 2",
    ]


def test_a_weight_that_must_change_is_always_chosen():
    program = Program(np.ones(3), delta_lower=np.array([0.5, -1.0, -1.0]), delta_upper=np.ones(3))
    found = solve_integer(limit_changes(program, 2), **EXACT)
    assert found.chosen[0]
    assert found.objective == pytest.approx(-0.5)
    assert solve_integer(limit_changes(program, 0), **EXACT).status is Status.INFEASIBLE


def test_slack_variables_are_no_weights():
    program = Program(
        np.array([1.0, 1.0, 5.0]),
        matrix=np.array([[1.0, 0.0, 1.0]]),
        lower=np.array([2.0]),
        delta_lower=np.array([-1.0, -1.0, 0.0]),
        delta_upper=np.array([1.0, 1.0, np.inf]),
        n_delta=2,
    )
    found = solve_integer(limit_changes(program, 1), **EXACT)
    assert found.delta == pytest.approx([1.0, 0.0, 1.0])
    gridded = solve_integer(grid(program, 0.4), **EXACT)
    assert gridded.delta == pytest.approx([0.8, -0.8, 1.2])


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda p: limit_changes(p, -1), "count is -1"),
        (lambda p: limit_changes(p, 1, [[0, 1], [1]]), "weight 1 is in two groups"),
        (lambda p: limit_changes(p, 1, [[7]]), "weight 7 does not exist"),
        (lambda p: limit_changes(Program(np.ones(2)), 1), "weight 0 has no bounds"),
        (lambda p: allow_broken(p, 1, [[0], [9]]), "row 9 does not exist"),
        (lambda p: allow_broken(Program(np.ones(4), matrix=p.matrix, lower=p.lower), 1, [[0]]), "without limit"),
        (lambda p: allow_broken(p, {"keep": 1}, [[0]]), "pass no samples"),
        (lambda p: limit_changes(limit_changes(p, 1).program, 1), "mixed-integer already"),
        (lambda p: grid(p, 0.0), "step 0.0"),
    ],
)
def test_misuse_is_named(build, message):
    with pytest.raises(ProgramError, match=message):
        build(broken_samples(6, 4))
