"""Coefficients that back ends take for infinite are refused before any of them runs on without end."""

import numpy as np
import pytest

from repairopt import Program, ProgramError, SolverError
from repairopt.program import Status, solve


@pytest.mark.parametrize(
    "data",
    [
        {"gradient": np.array([1e20, 1.0])},
        {"gradient": np.ones(2), "hessian": np.diag([1e25, 1.0])},
        {"gradient": np.ones(2), "matrix": np.array([[-1e30, 1.0]]), "lower": np.zeros(1)},
        {"gradient": np.ones(2), "matrix": np.ones((1, 2)), "lower": np.array([1e300])},
        {"gradient": np.ones(2), "matrix": np.ones((1, 2)), "upper": np.array([-1e300])},
    ],
)
def test_numbers_that_mean_infinite_are_refused(data):
    with pytest.raises(SolverError, match="as infinite"):
        solve(Program(**data, delta_lower=-np.ones(2), delta_upper=np.ones(2)))


def test_sides_and_bounds_that_stand_for_none_are_allowed():
    found = solve(
        Program(
            gradient=np.ones(2),
            matrix=np.ones((1, 2)),
            lower=np.array([-1e30]),
            upper=np.array([1e30]),
            delta_lower=np.zeros(2),
            delta_upper=np.full(2, 1e30),
        )
    )
    assert found.status is Status.OPTIMAL
    assert found.objective == pytest.approx(0.0, abs=1e-9)


@pytest.mark.parametrize("size", [1e8, 1e7, 1e6, 1e5, 3e4, 1e3])
def test_prices_of_very_different_sizes_are_solved_by_default(size):
    """A first back end that ends its iterations without a point is not the last word."""
    program = Program([1 / size, size], matrix=[[1.0, 1.0]], lower=[1.0], delta_lower=[0.0, 0.0])
    answer = solve(program)
    assert answer.status is Status.OPTIMAL
    assert answer.objective == pytest.approx(1 / size, rel=1e-3, abs=1e-9)


@pytest.mark.parametrize("odd", [None, 3, "program", np.ones(2), {}, Program])
def test_what_is_no_program_is_said_to_be_none(odd):
    with pytest.raises(ProgramError, match="expected a Program"):
        solve(odd)


@pytest.mark.parametrize("odd", [5, None, "a", ["a"], [None], [("c", 0)], {"a": 1}, np.array(3)])
def test_sources_say_where_rows_come_from(odd):
    with pytest.raises(ProgramError, match="sources hold .* expected a list of Source"):
        Program([1.0], matrix=[[1.0]], lower=[0.0], sources=odd)
