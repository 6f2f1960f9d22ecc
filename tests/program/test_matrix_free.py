import subprocess
import sys
from dataclasses import replace
from importlib import import_module

import numpy as np
import pytest
import torch
from hypothesis import given, settings, strategies as st
from scipy import sparse

from repairopt.errors import ProgramError
from repairopt.interfaces.testing import check_solver
from repairopt.program import Kind, LowRankHessian, Program, Status, known_programs, solve
from repairopt.program.backends import available_solvers, find_solver
from repairopt.program.working_sets.relaxed_program import certified_gap
from repairopt.solvers import PIQP, WoodburyIPM

INF = np.inf
INNER = import_module("repairopt.solvers.matrix_free")


def large(n, m, seed=0, rank=6, margin=1.0, latent=8):
    """Correlated rows that zero satisfies, a diagonal and low-rank Hessian, a box."""
    random = np.random.default_rng(seed)
    mixing = random.normal(size=(latent, n)) / np.sqrt(latent)
    matrix = (0.3 * random.normal(size=(m, n)) + random.normal(size=(m, latent)) @ mixing) / np.sqrt(n)
    return Program(
        gradient=random.normal(size=n),
        hessian=LowRankHessian(random.uniform(0.5, 2, n), random.normal(size=(n, rank)) / np.sqrt(n)),
        matrix=matrix,
        lower=-margin * random.exponential(size=m),
        upper=np.full(m, INF),
        delta_lower=np.full(n, -1.0),
        delta_upper=np.full(n, 1.0),
    )


def dense(program):
    return replace(program, hessian=program.hessian.dense())


def test_conformance():
    ran = check_solver(WoodburyIPM())
    problems = [problem for kind in WoodburyIPM.kinds for problem in known_programs(kind)]
    assert {f"{problem.name}: answer" for problem in problems} <= set(ran)
    assert "row against box: ray" in ran
    assert "conflicting equality rows: ray" in ran


def test_registered_and_preferred_where_nothing_else_serves():
    assert "woodbury" in available_solvers(Kind.QP)
    big = large(6000, 1)
    assert find_solver(big).name == "woodbury"
    assert find_solver(large(100, 1)).name != "woodbury"
    assert find_solver(replace(big, hessian=None)).name != "woodbury"


@pytest.mark.parametrize(("n", "m", "margin"), [(300, 0, 1.0), (300, 200, 1.0), (300, 2000, 0.5), (600, 1200, 0.2)])
def test_as_everything_at_once(n, m, margin):
    program = large(n, m, margin=margin)
    found = solve(program, WoodburyIPM(batch=50))
    expected = solve(dense(program), PIQP())
    assert found.status is Status.OPTIMAL, found.message
    assert found.objective == pytest.approx(expected.objective, rel=1e-8)
    assert found.violation <= 1e-9
    assert certified_gap(program, found) <= 1e-8 * (1 + abs(found.objective))
    assert found.stationarity <= 1e-8
    np.testing.assert_allclose(found.delta, expected.delta, atol=1e-3)


def interior_only(monkeypatch):
    monkeypatch.setattr(INNER, "active_set", lambda *arguments: None)


@pytest.mark.parametrize("equal", [0, 5])
def test_tall_programs_solve_the_normal_equations_and_agree_with_the_other_system(monkeypatch, equal):
    program = large(60, 400, margin=0.5)
    halfway = program.matrix @ (0.5 * solve(dense(program), PIQP()).delta)  # of a point that holds to one that does
    lower, upper = program.lower.copy(), program.upper.copy()
    lower[:equal] = upper[:equal] = halfway[:equal]
    program = replace(program, lower=lower, upper=upper)
    interior_only(monkeypatch)
    steps = import_module("repairopt.solvers.primal_dual")
    sizes = []
    solved = steps._Factorized.solve
    monkeypatch.setattr(
        steps._Factorized, "solve", lambda self, *sides: (sizes.append(len(self.lower)), solved(self, *sides))[1]
    )
    backend = WoodburyIPM(batch=1000)
    narrow = solve(program, backend)
    assert 60 in sizes
    sizes.clear()
    monkeypatch.setattr(steps, "NARROW", INF)
    wide = solve(program, backend)
    assert 60 not in sizes
    assert narrow.status is wide.status is Status.OPTIMAL
    assert narrow.objective == pytest.approx(wide.objective, rel=1e-8)
    np.testing.assert_allclose(narrow.delta, wide.delta, atol=1e-6)
    np.testing.assert_allclose(narrow.row_duals, wide.row_duals, atol=1e-4)


def test_both_methods_agree(monkeypatch):
    program = large(400, 120, margin=0.3)
    exact = solve(program, WoodburyIPM())
    assert exact.violation <= 1e-13
    interior_only(monkeypatch)
    interior = solve(program, WoodburyIPM())
    assert interior.objective == pytest.approx(exact.objective, rel=1e-9)
    assert interior.violation <= 1e-9
    np.testing.assert_allclose(interior.row_duals, exact.row_duals, atol=1e-5)
    np.testing.assert_allclose(interior.bound_duals, exact.bound_duals, atol=1e-5)
    many = solve(large(300, 3000, margin=0.3), WoodburyIPM(batch=40))
    assert many.status is Status.OPTIMAL


@st.composite
def random_programs(draw):
    n, m, rank = draw(st.integers(1, 12)), draw(st.integers(0, 20)), draw(st.integers(0, 12))
    random = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    inside = random.normal(size=n)
    matrix = random.normal(size=(m, n)) * 10 ** random.uniform(-1, 1, size=(m, 1))
    value = matrix @ inside
    lower, upper = value - random.exponential(size=m), value + random.exponential(size=m)
    lower[random.random(m) < 0.4], upper[random.random(m) < 0.4] = -INF, INF
    equal = (random.random(m) < 0.1) & (np.arange(m) < n // 2)
    lower[equal] = upper[equal] = value[equal]
    low, high = inside - 1 - random.exponential(size=n), inside + random.exponential(size=n)
    fixed = random.random(n) < 0.1
    low[fixed] = high[fixed] = inside[fixed]
    if draw(st.booleans()):
        low[(random.random(n) < 0.3) & ~fixed] = -INF
    if draw(st.booleans()):  # every row twice
        matrix, lower, upper = np.vstack([matrix, matrix]), np.append(lower, lower), np.append(upper, upper)
    diagonal = np.where(random.random(n) < 0.5, random.exponential(size=n), 0.0) if draw(st.booleans()) else np.zeros(n)
    hessian = LowRankHessian(diagonal, random.normal(size=(n, rank)))
    bounds = {"delta_lower": low, "delta_upper": high}
    rows = {"matrix": matrix, "lower": lower, "upper": upper}
    return Program(gradient=random.normal(size=n), hessian=hessian if rank else None, **rows, **bounds)


@given(random_programs())
@settings(max_examples=40, deadline=None, derandomize=True)
def test_random_programs(program):
    found = solve(program, WoodburyIPM())
    expected = solve(program if program.hessian is None else dense(program), PIQP())
    assert found.status is expected.status, found.message
    if expected.found:
        assert found.objective == pytest.approx(expected.objective, rel=1e-6, abs=1e-6)
        assert found.violation <= 1e-8


@given(random_programs(), st.integers(0, 2**32 - 1))
@settings(max_examples=20, deadline=None, derandomize=True)
def test_rows_in_conflict_give_a_ray(program, seed):
    random = np.random.default_rng(seed)
    row = random.normal(size=program.n)
    matrix = np.vstack([program.matrix, row, -row])
    lower, upper = np.append(program.lower, [0.2, 0.2]), np.append(program.upper, [INF, INF])
    found = solve(replace(program, matrix=matrix, lower=lower, upper=upper), WoodburyIPM())
    assert found.status is Status.INFEASIBLE
    assert found.ray is not None


@pytest.mark.parametrize("size", [1e-5, 1e-2, 1e4])
def test_badly_scaled(size):
    program = large(200, 150, margin=0.3)
    lengths = size ** np.random.default_rng(0).uniform(0, 1, size=150)
    scaled = replace(program, matrix=program.matrix * lengths[:, None], lower=program.lower * lengths)
    found = solve(scaled, WoodburyIPM(feasibility_tol=1e-12))
    assert found.objective == pytest.approx(solve(program, WoodburyIPM()).objective, rel=1e-6)
    units = size ** np.random.default_rng(1).uniform(0, 1, size=200)
    other = replace(
        program,
        gradient=program.gradient * units,
        hessian=LowRankHessian(program.hessian.diagonal * units**2, program.hessian.factor * units[:, None]),
        matrix=program.matrix * units,
        delta_lower=program.delta_lower / units,
        delta_upper=program.delta_upper / units,
    )
    assert solve(other, WoodburyIPM()).objective == pytest.approx(found.objective, rel=1e-6)


def test_sparse_rows_fixed_variables_and_rows_without_sides():
    program = large(150, 900, margin=0.5)
    low, high = program.bounds()
    low, high = low.copy(), high.copy()
    low[:20] = high[:20] = 0.05
    lower = program.lower.copy()
    lower[100:130] = -INF
    program = replace(program, delta_lower=low, delta_upper=high, lower=lower)
    expected = solve(dense(program), PIQP())
    for matrix in (program.matrix, sparse.csr_matrix(program.matrix), sparse.coo_matrix(program.matrix)):
        for batch in (60, 900):
            found = solve(replace(program, matrix=matrix), WoodburyIPM(batch=batch))
            assert found.status is Status.OPTIMAL
            assert found.objective == pytest.approx(expected.objective, rel=1e-7)
            assert found.stationarity < 1e-6
            assert found.row_duals.shape == (900,)
            assert not found.row_duals[100:130].any()


def test_infeasible_and_unbounded_among_many_rows():
    program = large(100, 1000)
    matrix, lower = program.matrix.copy(), program.lower.copy()
    matrix[500], lower[500], lower[501] = -matrix[501], 1.0, 1.0
    found = solve(replace(program, matrix=matrix, lower=lower), WoodburyIPM(batch=50))
    assert found.status is Status.INFEASIBLE
    assert found.ray.shape == (1000,)
    open_box = {"delta_lower": np.full(100, -INF), "delta_upper": np.full(100, INF)}
    flat = replace(program, hessian=None, matrix=np.abs(matrix), gradient=-np.ones(100), **open_box)
    assert solve(flat, WoodburyIPM(batch=50)).status is Status.UNBOUNDED


def test_memory_is_refused_before_it_is_taken():
    program = large(500, 50)
    with pytest.raises(ProgramError, match=r"needs 0.0 GiB for 500 variables with 50 rows and a Hessian of rank 6"):
        solve(program, WoodburyIPM(memory_limit=1e5))
    tall = large(20, 5000)  # whose system has the size of its variables: the matrix of all rows would take 600 MB
    assert solve(tall, WoodburyIPM(memory_limit=2e7)).status is Status.OPTIMAL
    wide = Program(gradient=np.zeros(5001), hessian=np.broadcast_to(np.float64(0.0), (5001, 5001)))
    with pytest.raises(ProgramError, match="LowRankHessian"):
        WoodburyIPM().solve(wide)


def test_limits_are_named(monkeypatch):
    program = large(200, 100)
    interior_only(monkeypatch)
    assert solve(program, WoodburyIPM(time_limit=1e-9)).status is Status.NO_POINT
    assert solve(program, WoodburyIPM(max_iter=1)).status is Status.NO_POINT
    assert solve(program, WoodburyIPM(max_iter=1)).message == "iterations"
    monkeypatch.setattr(INNER, "STATUS", {})
    assert solve(program, WoodburyIPM()).status is Status.FAILED


def test_the_program_is_left_alone_and_two_runs_agree():
    program = large(300, 900)
    before = [program.matrix.copy(), program.hessian.factor.copy(), program.gradient.copy()]
    first, second = (solve(program, WoodburyIPM(batch=50)) for _ in range(2))
    np.testing.assert_array_equal(first.delta, second.delta)
    for old, new in zip(before, [program.matrix, program.hessian.factor, program.gradient], strict=True):
        np.testing.assert_array_equal(old, new)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
def test_on_a_gpu():
    program = large(2000, 3000, margin=0.5)
    found, expected = solve(program, WoodburyIPM(device="cuda")), solve(program, WoodburyIPM())
    assert found.objective == pytest.approx(expected.objective, rel=1e-9)
    assert found.violation <= 1e-9


MEMORY = """
import resource
import numpy as np
from repairopt.program.program import Program
from repairopt.program.solve_program import solve
from repairopt.solvers import WoodburyIPM
from repairopt.program import LowRankHessian
random = np.random.default_rng(0)
n, m = 20_000, 1_000
matrix = np.empty((m, n))
mixing = random.normal(size=(10, n))
for i in range(0, m, 100):
    random.standard_normal(out=matrix[i:i + 100])
    matrix[i:i + 100] += random.normal(size=(100, 10)) @ mixing
matrix /= n**0.5
hessian = LowRankHessian(random.uniform(0.5, 2, n), random.normal(size=(n, 10)) / n**0.5)
program = Program(gradient=random.normal(size=n), hessian=hessian, matrix=matrix, lower=-5 * random.exponential(size=m),
                  delta_lower=np.full(n, -1.0), delta_upper=np.full(n, 1.0))
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
found = solve(program)
after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
print(found.solver, found.status, found.violation, (after - before) / 1024)
"""


@pytest.mark.slow
def test_memory_of_a_large_program():
    """A dense Hessian would take 3 GiB, another copy of the rows 153 MiB."""
    run = subprocess.run([sys.executable, "-c", MEMORY], capture_output=True, text=True, check=True)
    solver, status, violation, mebibytes = run.stdout.split()
    assert (solver, status) == ("woodbury", "optimal")
    assert float(violation) <= 1e-9
    assert float(mebibytes) < 180
