"""Coefficients that back ends take for infinite are refused before any of them runs on without end."""

import numpy as np
import pytest

from repairopt import Program, SolverError
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
