from fractions import Fraction

import numpy as np
from hypothesis import given, strategies as st

from repairopt.program import Program
from repairopt.program.certificates.exact_check import exact_objective, exact_violation
from repairopt.program.certificates.rational import (
    as_fractions,
    exact_product,
    exact_solve,
    is_semidefinite,
    round_down,
    round_up,
)

FLOATS = st.floats(-1e6, 1e6, allow_nan=False, allow_subnormal=True)


@given(
    st.lists(st.lists(FLOATS, min_size=3, max_size=3), min_size=1, max_size=4), st.lists(FLOATS, min_size=3, max_size=3)
)
def test_exact_products_are_exact(matrix, vector):
    exact = [sum((Fraction(a) * Fraction(x) for a, x in zip(row, vector, strict=True)), Fraction(0)) for row in matrix]
    assert exact_product(np.array(matrix), as_fractions(vector)) == exact
    for value in exact:
        assert Fraction(round_down(value)) <= value <= Fraction(round_up(value))
        assert round_up(value) - round_down(value) <= 1e-15 * abs(float(value))


@given(st.integers(0, 2**32 - 1), st.integers(1, 4), st.integers(1, 6))
def test_exact_solve(seed, rows, columns):
    random = np.random.default_rng(seed)
    table = [as_fractions(row) for row in np.round(random.normal(size=(rows, columns)), 1)]
    solution = as_fractions(random.normal(size=columns))
    sides = [sum((a * x for a, x in zip(row, solution, strict=True)), Fraction(0)) for row in table]
    found = exact_solve(table, sides)
    assert [sum((a * x for a, x in zip(row, found, strict=True)), Fraction(0)) for row in table] == sides
    assert exact_solve([*table, table[0]], [*sides, sides[0] + 1]) is None


def test_exact_definiteness():
    assert is_semidefinite(np.ones((3, 3)))
    assert not is_semidefinite(np.ones((3, 3)) - 2**-52 * np.eye(3))
    assert not is_semidefinite(np.array([[0.0, 1], [1, 5]]))
    assert is_semidefinite(np.zeros((2, 2)))


def test_exact_violation_and_objective_by_hand():
    program = Program(
        np.array([0.1, 0.2]),
        np.array([[2.0, 1], [1, 2]]),
        0.5,
        matrix=np.array([[0.1, 0.2]]),
        upper=np.array([0.3]),
        integer=np.array([True, False]),
    )
    point = np.array([1.0, 1.0])
    assert exact_violation(program, point) == Fraction(0.1) + Fraction(0.2) - Fraction(0.3)
    assert exact_violation(program, point) > 0
    assert exact_objective(program, point) == Fraction(0.1) + Fraction(0.2) + Fraction(7, 2)
    assert exact_violation(program, np.array([0.75, 0.0])) == Fraction(1, 4)
