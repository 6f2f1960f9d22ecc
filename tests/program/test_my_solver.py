"""The outside plug-in of examples/my_solver.py: checked, used as an instance, installed and used by name."""

import importlib.util
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from repairopt.errors import SolverNotFoundError
from repairopt.program import Kind, Program, known_programs, solve
from repairopt.program.examples import dense_quadratic

EXAMPLE = Path(__file__).resolve().parents[2] / "examples" / "my_solver.py"
PYPROJECT = """
[build-system]
requires = ["setuptools"]
build-backend = "setuptools.build_meta"

[project]
name = "outside-solver"
version = "1.0"

[project.entry-points."repairopt.solvers"]
least_distance = "outside_solver:LeastDistance"

[tool.setuptools]
py-modules = ["outside_solver"]
"""
USE = """
from repairopt.program.examples import dense_quadratic
from repairopt.program import available_solvers, solve
solution = solve(dense_quadratic().program, "least_distance")
print(solution.solver, solution.status, f"{solution.objective:.6f}", "least_distance" in available_solvers("QP"))
"""


@pytest.fixture(scope="module")
def example():
    spec = importlib.util.spec_from_file_location("my_solver_example", EXAMPLE)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    yield module
    del sys.modules[spec.name]


def test_it_passes_all_checks(example):
    ran = example.checked()
    assert {f"{problem.name}: answer" for problem in known_programs(Kind.QP)} <= set(ran)
    assert "dense quadratic: optimality conditions" in ran
    assert "quadratic, conflicting rows: ray" in ran


@pytest.mark.parametrize("seed", range(15))
def test_it_agrees_with_the_default(example, seed):
    random = np.random.default_rng(seed)
    n, m = int(random.integers(2, 30)), int(random.integers(0, 60))
    factor, inside, matrix = random.normal(size=(n, n // 2)), random.normal(size=n), random.normal(size=(m, n))
    program = Program(
        gradient=random.normal(size=n),
        hessian=factor @ factor.T,
        matrix=matrix,
        upper=matrix @ inside + random.exponential(size=m),
        delta_lower=inside - 2,
        delta_upper=inside + 2,
    )
    assert solve(program, example.LeastDistance()).objective == pytest.approx(solve(program).objective, rel=1e-6)


def test_it_repairs_a_network_as_an_instance(example):
    report = example.repaired()
    assert report.startswith("REPAIRED")
    assert "solver least_distance" in report


def test_installed_as_a_package_it_has_a_name(tmp_path):
    pytest.importorskip("setuptools", reason="setuptools is not installed")
    source, target = tmp_path / "source", tmp_path / "target"
    source.mkdir()
    (source / "pyproject.toml").write_text(PYPROJECT)
    shutil.copy(EXAMPLE, source / "outside_solver.py")
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-build-isolation", "--no-deps", "--no-index"]
    done = subprocess.run([*pip, "--target", str(target), str(source)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    environment = os.environ | {"PYTHONPATH": str(target)}
    run = subprocess.run([sys.executable, "-c", USE], capture_output=True, text=True, check=False, env=environment)
    assert run.stdout.split() == ["least_distance", "optimal", f"{dense_quadratic().objective:.6f}", "True"], run.stderr


def test_not_installed_it_has_none():
    with pytest.raises(SolverNotFoundError, match="No solver is called 'least_distance'. Registered: "):
        solve(dense_quadratic().program, "least_distance")
