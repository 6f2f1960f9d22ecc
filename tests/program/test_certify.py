from dataclasses import FrozenInstanceError, replace
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings, strategies as st

from repairopt.errors import ProgramError
from repairopt.program import Kind, Program, Solution, Status, known_programs, solve
from repairopt.program.backends import available_solvers
from repairopt.program.certificates.certificate import Certificate, CertificateVerdict, certify
from repairopt.program.certificates.duality import dual_bound
from repairopt.program.certificates.exact_check import exact_bound
from repairopt.program.certificates.rational import round_up
from repairopt.program.examples import INF, dense_quadratic, linear
from repairopt.program.rechecking import objective_scale

OPTIMAL, FEASIBLE = CertificateVerdict.OPTIMAL, CertificateVerdict.FEASIBLE

SOLVERS = ["clarabel", "daqp", "highs", "piqp"]

CONTINUOUS = [p for p in known_programs() if p.program.integer is None and p.status is Status.OPTIMAL]

PAIRS = [(p, s) for p in CONTINUOUS for s in available_solvers(p.program.kind) if s in SOLVERS]


@pytest.mark.parametrize("exact", [False, True])
@pytest.mark.parametrize(("problem", "solver"), PAIRS, ids=[f"{s}-{p.name}" for p, s in PAIRS])
def test_known_optima_are_certified(problem, solver, exact):
    solution = solve(problem.program, solver)
    found = certify(problem.program, solution, exact=exact)
    assert found.verdict is OPTIMAL, str(found)
    assert found.reasons == ()
    assert found.duals == "back end"
    assert found.bound <= problem.objective + 1e-12 * (1 + abs(problem.objective))
    assert found.bound == pytest.approx(problem.objective, abs=1e-6 * (1 + abs(problem.objective)))
    if exact:
        low, high = found.interval
        assert float(low) <= problem.objective + 1e-12 * (1 + abs(problem.objective))
        assert found.gap == round_up(high - low)
        assert np.isinf(found.reach)


@pytest.mark.parametrize(("problem", "solver"), PAIRS, ids=[f"{s}-{p.name}" for p, s in PAIRS])
def test_duals_are_recovered_where_there_are_none(problem, solver):
    solution = replace(solve(problem.program, solver), row_duals=None, bound_duals=None)
    found = certify(problem.program, solution)
    assert (found.verdict, found.duals) == (OPTIMAL, "recovered"), str(found)


def test_osqp_is_certified_to_its_own_accuracy():
    pytest.importorskip("osqp")
    solution = solve(dense_quadratic().program, "osqp")
    assert certify(dense_quadratic().program, solution, tol=1e-5).verdict is OPTIMAL


def points_and_duals(problem):
    solution = solve(problem.program, "daqp")
    return problem.program, solution, np.random.default_rng(0)


WRONG_DUALS = [p for p in CONTINUOUS if p.program.m and np.any(p.program.matrix @ np.ones(p.program.n))]


@pytest.mark.parametrize("exact", [False, True])
@pytest.mark.parametrize("problem", CONTINUOUS, ids=lambda p: p.name)
def test_wrong_solutions_are_never_certified(problem, exact):
    program, solution, random = points_and_duals(problem)
    for size in (1e-4, 1e-1):
        step = size * random.normal(size=program.n) * np.maximum(1, np.abs(solution.delta))
        off = solution.delta + step
        low, high = program.bounds()
        for point in (off, np.clip(off, low, high)):
            better = program.violation(point) == 0 and program.objective(point) <= problem.objective + 1e-9
            if not better:
                wrong = certify(program, replace(solution, delta=point), exact=exact)
                assert wrong.verdict is not OPTIMAL, (size, str(wrong))
                bare = replace(solution, delta=point, row_duals=None, bound_duals=None)
                assert certify(program, bare, exact=exact).verdict is not OPTIMAL


@pytest.mark.parametrize("problem", WRONG_DUALS, ids=lambda p: p.name)
def test_wrong_duals_are_never_certified(problem):
    program, solution, random = points_and_duals(problem)
    one_row = np.zeros(program.m)
    one_row[np.argmax(np.abs(program.matrix @ np.ones(program.n)))] = 1e-2
    for wrong in (solution.row_duals + one_row, random.normal(size=program.m) + 2, np.full(program.m, np.nan)):
        assert certify(program, replace(solution, row_duals=wrong)).verdict is FEASIBLE
    if np.any(solution.row_duals):
        assert certify(program, replace(solution, row_duals=-solution.row_duals)).verdict is FEASIBLE
    wrong = solution.bound_duals + 1e-2 * (1 + np.abs(program.gradient).max())
    assert certify(program, replace(solution, bound_duals=wrong)).verdict is FEASIBLE
    for bad in (np.zeros(program.m + 1), np.full(program.m, np.nan), np.full(program.m, np.inf)):
        assert certify(program, replace(solution, row_duals=bad)).verdict is FEASIBLE
    for bad in (np.zeros(program.n + 1), np.full(program.n, np.nan), np.full(program.n, np.inf)):
        assert certify(program, replace(solution, bound_duals=bad)).verdict is FEASIBLE


def test_numbers_on_a_program_done_by_hand():
    """Maximize 3x + 2y; x + y <= 4, x + 3y <= 7, x in [0, 3], y >= 0: (3, 1) with duals 2, 0 and 1, 0."""
    program = linear().program
    solution = Solution(
        Status.OPTIMAL, np.array([3.0, 1]), row_duals=np.array([2.0, 0]), bound_duals=np.array([1.0, 0])
    )
    found = certify(program, solution, exact=True)
    assert found.interval == (Fraction(-10), Fraction(-10))
    assert (found.violation, found.gap, found.dual_residual, found.complementarity) == (0, 0, 0, 0)
    half = certify(program, replace(solution, row_duals=np.array([2.5, 0])), exact=True)
    assert half.interval == (Fraction(-21, 2), Fraction(-10))  # 1 - 2.5 * 4 - 0.5 * 3
    assert half.verdict is FEASIBLE
    assert half.dual_residual == 0.5
    wrong = certify(program, replace(solution, row_duals=np.array([2.0, -0.25])))
    assert wrong.sign_violation == 0.25  # 0.25 (1, 3), beside a gradient of (3, 2)
    assert wrong.verdict is FEASIBLE
    inside = certify(program, replace(solution, delta=np.array([3.0, 0.5])))
    assert inside.complementarity == 1.0
    assert inside.gap == pytest.approx(1.0)
    assert inside.relative_gap == pytest.approx(0.1)
    outside = certify(program, replace(solution, delta=np.array([3.0, 1.5])))
    assert outside.verdict is CertificateVerdict.NOT_CERTIFIED
    assert outside.violation == 0.5


def test_scale_of_rows_and_objective_does_not_matter():
    program = linear().program
    good = solve(program, "daqp")
    for rows, objective in ((1e-9, 1e-9), (1e9, 1e9), (1e-9, 1e9)):
        scaled = replace(
            program,
            matrix=program.matrix * rows,
            upper=program.upper * rows,
            gradient=program.gradient * objective,
            constant=0.0,
        )
        duals = {"row_duals": good.row_duals * objective / rows, "bound_duals": good.bound_duals * objective}
        assert certify(scaled, replace(good, **duals)).verdict is OPTIMAL
        for point in ([3.0, 1.001], [3.0, 0.999], [2.999, 1.0]):
            off = replace(good, delta=np.array(point), **duals)
            assert certify(scaled, off).verdict is not OPTIMAL


def test_single_precision_gets_a_looser_tolerance():
    solution = solve(dense_quadratic().program, "daqp")
    rough = replace(solution, delta=(solution.delta + 1e-5).astype(np.float32))
    assert certify(dense_quadratic().program, rough).verdict is OPTIMAL
    assert certify(dense_quadratic().program, replace(rough, delta=solution.delta + 1e-5)).verdict is not OPTIMAL


def test_no_point_and_unbounded_are_not_certified():
    program = linear().program
    for status in (Status.UNBOUNDED, Status.NO_POINT, Status.FAILED):
        found = certify(program, Solution(status))
        assert found.verdict is CertificateVerdict.NOT_CERTIFIED
        assert "no finite point" in found.reasons[0]
    assert "no finite point" in certify(program, Solution(Status.OPTIMAL, np.array([np.nan, 0]))).reasons[0]
    lie = certify(program, Solution(Status.INFEASIBLE))
    assert (lie.verdict, lie.farkas) == (CertificateVerdict.NOT_CERTIFIED, None)


@pytest.mark.parametrize("verdict", CertificateVerdict)
def test_every_verdict_has_a_meaning(verdict):
    assert verdict.meaning.endswith(".")
    with pytest.raises(FrozenInstanceError):
        Certificate(verdict).tol = 1.0


def test_mixed_integer_bounds_are_compared_and_not_believed():
    for problem in (*known_programs("MILP"), *known_programs("MIQP")):
        if problem.status is Status.OPTIMAL and problem.program.kind is Kind.MILP:
            solution = solve(problem.program, "highs")
            found = certify(problem.program, solution)
            assert found.verdict is FEASIBLE
            assert found.bound_from == "back end"
            assert found.gap == pytest.approx(0, abs=1e-9)
            lie = certify(problem.program, replace(solution, bound=solution.objective + 1))
            assert lie.bound_from != "back end"
            assert "above the objective" in lie.reasons[0]
            off = certify(problem.program, replace(solution, delta=solution.delta - 0.01))
            assert off.verdict is CertificateVerdict.NOT_CERTIFIED


@st.composite
def random_programs(draw, free=True):
    """Feasible LPs and QPs: degenerate (repeated rows, more active rows than variables), badly scaled, partly free."""
    n, m, rank = draw(st.integers(1, 8)), draw(st.integers(0, 12)), draw(st.integers(0, 8))
    random = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    inside = np.round(random.normal(size=n), draw(st.sampled_from([0, 1, 12])))
    matrix = np.round(random.normal(size=(m, n)), draw(st.sampled_from([0, 12])))
    if m > 1 and draw(st.booleans()):
        matrix[1] = matrix[0]
    matrix = matrix * 10 ** (draw(st.sampled_from([0, 2, 4])) * random.uniform(-1, 1, size=(m, 1)))
    value = matrix @ inside
    room = random.exponential(size=m) * (random.random(m) < 0.5) * np.abs(matrix).max(axis=1, initial=0)
    lower, upper = np.where(random.random(m) < 0.5, -INF, value - room), value + room
    low, high = inside - 1 - random.exponential(size=n), inside + random.exponential(size=n)
    factor = random.normal(size=(n, rank)) * 10 ** random.uniform(-1, 1, size=(n, 1))
    hessian = factor @ factor.T if rank else None
    gradient = random.normal(size=n)
    if free and draw(st.booleans()):  # drop some bounds, with a gradient that keeps the program bounded
        low[random.random(n) < 0.5] = -INF
        high[random.random(n) < 0.5] = INF
        duals = np.where(random.random(m) < 0.5, random.exponential(size=m), 0)
        gradient = -matrix.T @ duals - (0 if hessian is None else hessian @ inside)
    return Program(gradient, hessian, 1.0, matrix, lower, upper, low, high)


def test_a_trace_of_a_multiplier_does_not_cost_the_bound_where_every_point_is_optimal():
    program = Program(np.zeros(2), matrix=np.ones((1, 2)), lower=np.ones(1), upper=np.ones(1))  # no bounds of weights
    point = Solution(Status.OPTIMAL, np.array([0.5, 0.5]), row_duals=np.array([-6e-95]))
    assert certify(program, point).verdict is OPTIMAL


@given(random_programs())
@settings(max_examples=25)
def test_random_programs_are_certified_and_bounds_hold(program):
    for name in available_solvers(program.kind):
        solution = solve(program, name)
        if name not in SOLVERS or solution.status is not Status.OPTIMAL:
            continue
        found = certify(program, solution)
        assert found.relative_violation <= 1e-7, name
        if found.verdict is not OPTIMAL:  # an interior point is not accurate enough, or its multipliers are not
            assert name != "daqp" or found.relative_gap < 1e-4, str(found)
        exact = certify(program, solution, exact=True)
        if exact.interval is not None and exact.violation == 0:
            assert exact.gap >= 0
        if exact.interval is not None and np.isfinite(found.bound):
            assert found.bound <= float(exact.interval[1]) + 1e-6 * objective_scale(program, solution.delta)


@given(random_programs(free=False), st.integers(0, 2**32 - 1))
@settings(max_examples=60)
def test_no_multipliers_bound_wrongly(program, seed):
    """Random points and multipliers: the bound stays below the objective of every exactly feasible point."""
    random = np.random.default_rng(seed)
    solution = solve(program, "daqp")
    optimum = program.objective(solution.delta)
    for size in (0, 0.1, 10):
        anchor = solution.delta + size * random.normal(size=program.n)
        duals = solution.row_duals + size * random.normal(size=program.m)
        known = dual_bound(program, anchor, duals)
        assert program.objective(anchor) - known.gap <= optimum + 1e-7 * (1 + abs(optimum))
        exact = exact_bound(program, replace(known, gap=0.0))
        assert float(exact) <= optimum + 1e-7 * (1 + abs(optimum))
        assert program.objective(anchor) - known.gap <= float(exact) + 1e-9 * (1 + abs(float(exact)))


@given(random_programs(free=False), st.integers(0, 2**32 - 1), st.floats(1e-5, 1))
@settings(max_examples=60)
def test_random_wrong_points_are_never_certified(program, seed, size):
    solution = solve(program, "daqp")
    best = certify(program, solution, exact=True)
    off = solution.delta + size * np.random.default_rng(seed).normal(size=program.n)
    off = np.clip(off, *program.bounds())
    found = certify(program, replace(solution, delta=off, row_duals=None, bound_duals=None))
    scale = objective_scale(program, off)
    if program.objective(off) > best.objective + 1e-6 * scale or found.relative_violation > 1e-6:
        assert found.verdict is not OPTIMAL


def test_exact_checks_refuse_what_is_too_large():
    m, n = 3000, 1000
    box = {"delta_lower": np.full(n, -1.0), "delta_upper": np.full(n, 1.0)}
    program = Program(np.ones(n), matrix=np.ones((m, n)), lower=np.full(m, -1.0), **box)
    solution = Solution(Status.OPTIMAL, np.full(n, -1.0 / n), row_duals=np.full(m, -1.0 / m))
    assert certify(program, solution).verdict is OPTIMAL
    with pytest.raises(ProgramError, match=r"3,000 rows in doubt of 1,000 variables make 3,000,000, above"):
        certify(program, solution, exact=True)
