"""Gurobi's own: limit of the free license, licenses that are missing or wrong, errors, rays, statuses."""

import importlib
import os
from importlib.util import find_spec

import numpy as np
import pytest

from repairopt.errors import SolverError
from repairopt.program import Program, Status, solve
from repairopt.program.examples import conflicting_rows, linear
from repairopt.solvers import Gurobi

pytestmark = pytest.mark.skipif(find_spec("gurobipy") is None, reason="gurobi: gurobipy is not installed")


@pytest.fixture
def licensed():
    answer = solve(linear().program, Gurobi())
    if answer.status is Status.FAILED:
        pytest.skip(f"gurobi: {answer.message}")


def test_gurobi_names_every_native_status_and_error():
    from gurobipy import GRB

    module = importlib.import_module("repairopt.solvers.gurobi")
    assert {name for name in dir(GRB.Status) if not name.startswith("_")} <= set(module.STATUS)
    assert set(module.REMEDY) <= set(dir(GRB.Error))


TOO_LARGE = [
    Program(gradient=np.ones(201), hessian=np.eye(201)),
    Program(gradient=np.ones(2001), delta_lower=np.zeros(2001)),
    Program(gradient=np.ones(1), matrix=np.ones((2001, 1)), lower=np.arange(2001.0)),
]


@pytest.mark.parametrize("program", TOO_LARGE, ids=["201 variables, quadratic", "2,001 variables", "2,001 rows"])
@pytest.mark.usefixtures("licensed")
def test_gurobi_above_the_free_limit_is_a_status_with_a_remedy(program):
    solution = solve(program, Gurobi())
    if solution.status is Status.OPTIMAL:
        pytest.skip("gurobi: a full license is installed")
    assert solution.status is Status.FAILED
    assert "above the limit of the free license; get a license at gurobi.com" in solution.message
    assert "or use an open-source solver: " in solution.message


@pytest.mark.parametrize("text", [None, "TYPE=NODE\n", "not a license"])
def test_gurobi_without_a_valid_license_is_a_status_with_a_remedy(text, tmp_path, monkeypatch):
    file = tmp_path / "gurobi.lic"
    if text is not None:
        file.write_text(text)
    monkeypatch.setitem(os.environ, "GRB_LICENSE_FILE", str(file))
    solution = solve(linear().program, Gurobi())
    assert solution.status is Status.FAILED
    assert "no valid license was found, or it expired; upgrade gurobipy" in solution.message
    assert "use an open-source solver: highs" in solution.message


@pytest.mark.parametrize("wrong", [{"NoSuchParameter": 1}], ids=["unknown parameter"])
@pytest.mark.usefixtures("licensed")
def test_other_errors_of_gurobi_are_crashes(wrong):
    with pytest.raises(SolverError, match="'gurobi' crashed .*NoSuchParameter"):
        solve(linear().program, Gurobi(native=wrong))


@pytest.mark.usefixtures("licensed")
def test_farkas_ray_of_gurobi():
    ray = solve(conflicting_rows().program, Gurobi()).ray
    np.testing.assert_allclose(ray / ray[1], [2, 1, -5], rtol=1e-6)
