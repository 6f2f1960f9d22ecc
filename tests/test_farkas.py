from dataclasses import replace
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from infeasible_programs import barely_feasible, exact_margin, infeasible_at, proves

from repairopt.certificates.certify import CertificateVerdict, certify
from repairopt.certificates.conflict import explain_conflict
from repairopt.certificates.farkas import check_ray, farkas_certificate
from repairopt.certificates.rational import as_fractions
from repairopt.errors import ProgramError
from repairopt.problems import INF, conflicting_rows, known_programs
from repairopt.program import Program
from repairopt.solve import Solution, Status, available_solvers, solve

INFEASIBLE = [p for p in known_programs() if p.status is Status.INFEASIBLE and p.program.integer is None]


@pytest.mark.parametrize("exact", [False, True])
@pytest.mark.parametrize("problem", INFEASIBLE, ids=lambda p: p.name)
def test_known_conflicts_are_certified(problem, exact):
    solver = available_solvers(problem.program.kind)[0]
    solution = solve(problem.program, solver)
    for claim in (solution, Solution(Status.INFEASIBLE)):
        found = certify(problem.program, claim, exact=exact)
        assert found.verdict is CertificateVerdict.INFEASIBLE
        assert proves(problem.program, found.farkas)
        assert np.isinf(found.reach)
        assert "contradict each other" in str(found)


@pytest.mark.parametrize("boxed", [True, False])
@pytest.mark.parametrize("depth", [1, 1e-2, 1e-4, 1e-6, 1e-8])
@pytest.mark.parametrize("seed", range(3))
def test_infeasibility_is_certified_exactly_at_every_depth(depth, boxed, seed):
    program = infeasible_at(depth, boxed=boxed, seed=seed)
    found = certify(program, Solution(Status.INFEASIBLE), exact=True)
    assert found.verdict is CertificateVerdict.INFEASIBLE
    assert found.farkas.rational is not None
    assert proves(program, found.farkas)
    assert 0 < found.farkas.margin <= depth
    assert float(exact_margin(program, found.farkas.rational)) == pytest.approx(found.farkas.margin, rel=1e-12)
    assert proves(program, farkas_certificate(program))


def test_rays_of_back_ends_are_used_and_wrong_ones_replaced():
    program = conflicting_rows().program
    good = solve(program, "highs").ray
    np.testing.assert_allclose(check_ray(program, good).ray, [0.4, 0.2, -1])
    noisy = check_ray(program, good * (1 + 1e-10 * np.array([1, -1, 1])))  # free variables: made exact again
    assert exact_margin(program, noisy.rational) > 0
    for wrong in (-good, np.array([1.0, 0, 0]), np.zeros(3), np.array([0, 0, 1.0]), np.full(3, np.nan), np.ones(2)):
        assert check_ray(program, wrong) is None
        assert certify(program, Solution(Status.INFEASIBLE, ray=wrong)).verdict is CertificateVerdict.INFEASIBLE


@given(barely_feasible(), st.integers(0, 2**32 - 1))
@settings(max_examples=60)
def test_feasible_programs_are_never_proven_infeasible(drawn, seed):
    inside, program = drawn
    assert program.violation(inside) == 0
    assert farkas_certificate(program) is None
    assert farkas_certificate(program, exact=True) is None
    random = np.random.default_rng(seed)
    for _ in range(3):
        assert check_ray(program, random.normal(size=program.m)) is None
    with pytest.raises(ProgramError, match="has a solution"):
        explain_conflict(program)


def test_a_solution_very_far_away_is_no_conflict():
    """x - y >= 1 and x <= (1 + 2e-16) y hold together, at 4.5e15 and beyond: float64 alone could not tell."""
    program = Program(
        np.ones(2),
        matrix=np.array([[1.0, -1], [1, -1 - 2**-52]]),
        lower=np.array([1, -INF]),
        upper=np.array([INF, 0.0]),
    )
    assert program.violation(np.array([2.0**53, 2.0**53 - 2])) == 0
    assert check_ray(program, np.array([-1.0, 1])) is None
    boxed = replace(program, delta_lower=np.full(2, -1e9), delta_upper=np.full(2, 1e9))
    assert proves(boxed, check_ray(boxed, np.array([-1.0, 1])))


def test_large_programs_with_free_variables_are_proven_within_a_reach():
    random = np.random.default_rng(0)
    n = 100
    rows = random.normal(size=(n, n))
    program = Program(np.ones(n), matrix=np.vstack([rows, -rows.sum(axis=0)]), upper=np.r_[np.zeros(n), -1.0])
    found = farkas_certificate(program)
    assert found.rational is None
    assert 1e5 < found.reach < INF
    with pytest.raises(ProgramError, match="equations for 100 variables"):
        farkas_certificate(program, exact=True)


def test_rays_by_hand_in_fractions():
    """0.1 + 0.2 is above 0.3 in exact arithmetic of floats, by 2.8e-17: a conflict that float64 cannot see."""
    program = Program(
        np.zeros(1), matrix=np.ones((1, 1)), upper=np.array([0.3]), delta_lower=np.array([0.1 + 0.2]), delta_upper=[9.0]
    )
    found = check_ray(program, np.array([1.0]), exact=True)
    assert found.margin == float(Fraction(0.1 + 0.2) - Fraction(0.3)) > 0
    assert as_fractions([0.5]) == [Fraction(1, 2)]
