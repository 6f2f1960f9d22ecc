from dataclasses import replace

import numpy as np
import pytest

from repairopt.program import Kind, LowRankHessian, Program, Solution, Status, solve
from repairopt.program.backends import available_solvers
from repairopt.program.certificates.certificate import CertificateVerdict, certify
from repairopt.program.certificates.duality import curvature_deficit, dual_bound
from repairopt.program.certificates.exact_check import exact_bound
from repairopt.program.examples import INF, dense_quadratic

OPTIMAL, FEASIBLE = CertificateVerdict.OPTIMAL, CertificateVerdict.FEASIBLE
SOLVERS = ["clarabel", "daqp", "highs", "piqp"]


def test_infinite_bounds_need_a_reduced_gradient_of_zero():
    program = Program(np.array([1.0, 1]), matrix=np.array([[1.0, 2]]), lower=np.array([1.0]))  # unbounded below
    known = dual_bound(program, np.array([1.0, 0]), np.array([-1.0]))
    assert known.gap == INF
    boxed = replace(program, delta_lower=np.array([-5.0, -5]), delta_upper=np.array([5.0, 5]))
    assert dual_bound(boxed, np.array([1.0, 0]), np.array([-1.0])).gap == pytest.approx(5)  # r = (0, -1)
    assert exact_bound(program, known) is None


def test_reduced_gradients_of_interior_points_are_repaired():
    program = dense_quadratic().program
    free = replace(program, delta_lower=None, delta_upper=None)
    solution = solve(free, "piqp")
    noisy = solution.row_duals + np.array([1e-9, 0, -1e-9])
    known = dual_bound(free, solution.delta, noisy)
    assert known.gap < 1e-7
    assert np.isfinite(known.reach)
    bound = exact_bound(free, known)
    assert float(bound) == pytest.approx(solution.objective, rel=1e-7)


@pytest.mark.parametrize("small", [1e-3, 1e-9, 1e-13])
def test_nonconvex_programs_are_bounded_by_their_curvature(small):
    program = Program(
        np.zeros(2), np.array([[1.0, 1], [1, 1 - small]]), delta_lower=np.full(2, -1.0), delta_upper=np.full(2, 1.0)
    )
    true = -0.5 * float(np.linalg.eigvalsh(program.hessian)[0])
    deficit = curvature_deficit(program)
    assert 2 * true <= deficit <= 30 * true + 1e-13
    origin = certify(program, Solution(Status.OPTIMAL, np.zeros(2), row_duals=np.zeros(0)), exact=True)
    assert origin.bound <= program.objective(np.array([1.0, -1.0]))
    assert origin.verdict is (OPTIMAL if small < 1e-8 else FEASIBLE)


def test_curvature_deficit_of_known_matrices():
    def of(matrix):
        return curvature_deficit(Program(np.zeros(len(matrix)), matrix))

    assert of(np.diag([1.0, 0.0, 2.0])) == 0
    assert of(np.diag([1.0, -0.5, 2.0])) == 0.5
    assert of(np.zeros((3, 3))) == 0
    assert of(dense_quadratic().program.hessian) == 0
    assert 0 < of(np.ones((3, 3))) < 1e-13
    assert of(np.array([[0.0, 1], [1, 0]])) >= 1
    assert of(np.array([[1.0, 1], [0, 1]])) == INF
    low_rank = LowRankHessian(np.array([1.0, -2.0]), np.ones((2, 1)))
    assert curvature_deficit(Program(np.zeros(2), low_rank)) == 2


def test_many_slacks_without_upper_bounds():
    """Soft rows as build_program makes them: each has a slack of a price, bounded below only."""
    random = np.random.default_rng(0)
    n, soft = 10, 60
    matrix = np.hstack([random.normal(size=(soft, n)), np.eye(soft)])
    program = Program(
        gradient=np.concatenate([np.zeros(n), np.full(soft, 0.3)]),
        hessian=np.diag(np.concatenate([np.ones(n), np.zeros(soft)])),
        matrix=matrix,
        lower=np.full(soft, 0.5),
        delta_lower=np.concatenate([np.full(n, -1.0), np.zeros(soft)]),
        delta_upper=np.concatenate([np.full(n, 1.0), np.full(soft, INF)]),
        n_delta=n,
    )
    for name in SOLVERS:
        if name in available_solvers(Kind.QP):
            solution = solve(program, name)
            assert certify(program, solution).verdict is OPTIMAL, name
            assert certify(program, solution, exact=True).verdict is OPTIMAL, name


def test_low_rank_and_sparse_programs_are_certified_exactly():
    from scipy import sparse

    random = np.random.default_rng(1)
    low_rank = LowRankHessian(random.random(6), random.normal(size=(6, 2)))
    matrix = sparse.random(9, 6, density=0.5, random_state=2, format="csr")
    program = Program(random.normal(size=6), low_rank, 0.5, matrix, np.full(9, -0.1), np.full(9, 0.2))
    dense = replace(program, hessian=low_rank.dense(), matrix=matrix.toarray())
    solution = solve(dense, "daqp")
    for kind in (program, dense):
        for exact in (False, True):
            assert certify(kind, solution, exact=exact).verdict is OPTIMAL
