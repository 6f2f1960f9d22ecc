import importlib
from dataclasses import FrozenInstanceError, replace
from importlib.util import find_spec

import numpy as np
import pytest
from hypothesis import assume, given, settings, strategies as st

from repairopt.interfaces.testing import check_solver
from repairopt.program import Kind, Program, Status, known_programs, solve
from repairopt.program.backends import available_solvers
from repairopt.program.examples import INF, conflicting_rows, dense_quadratic, knapsack, linear
from repairopt.solvers import DAQP, OSQP, PIQP, Clarabel, HiGHS, ProxQP, SciPy

BACKENDS = [DAQP(), PIQP(), PIQP(sparse=True), PIQP(sparse=False), HiGHS(), HiGHS(threads=1), SciPy(), Clarabel()]
BACKENDS += [
    ProxQP(),
    OSQP(),
]  # SCIP and Gurobi: test_solvers_mixed_integer.py; CVXPY and Pyomo: test_solvers_layers.py


def label(backend):
    extra = [f"{name}={value}" for name, value in vars(backend).items() if value != getattr(type(backend)(), name)]
    return "-".join([backend.name, *extra])


def installed(kind):
    """Names of the back ends of this file that can take the kind."""
    return sorted({backend.name for backend in BACKENDS} & set(available_solvers(kind)))


def needs(backend):
    missing = [name for name in backend.requires if find_spec(name) is None]
    if missing:
        pytest.skip(f"{backend.name}: {', '.join(missing)} is not installed")


PAIRS = [
    (backend, problem) for backend in BACKENDS for kind in sorted(backend.kinds) for problem in known_programs(kind)
]


@pytest.mark.parametrize(("backend", "problem"), PAIRS, ids=[f"{label(b)}-{p.name}" for b, p in PAIRS])
def test_every_back_end_on_every_problem_of_its_kinds(backend, problem):
    needs(backend)
    solution = solve(problem.program, backend)
    assert solution.status is problem.status, solution.message
    assert solution.solver == backend.name
    assert solution.message != ""
    if problem.status is Status.OPTIMAL:
        assert solution.objective == pytest.approx(problem.objective, rel=1e-7, abs=1e-7)
        assert solution.violation <= 1e-7
        if problem.delta is not None:
            np.testing.assert_allclose(solution.delta, problem.delta, atol=1e-4)
    else:
        assert solution.delta is None
    if problem.status is Status.OPTIMAL and problem.program.integer is None:
        assert solution.row_duals.shape == (problem.program.m,)
        assert solution.bound_duals.shape == (problem.program.n,)
        assert solution.stationarity <= 1e-6 * (1 + np.abs(problem.program.gradient).max())


@pytest.mark.parametrize("backend", BACKENDS, ids=label)
def test_conformance(backend):
    needs(backend)
    ran = check_solver(backend)
    problems = [problem for kind in backend.kinds for problem in known_programs(kind)]
    assert {f"{problem.name}: answer" for problem in problems} <= set(ran)
    continuous = [p for p in problems if p.status is Status.OPTIMAL and p.program.integer is None]
    assert sum(name.endswith(": optimality conditions") for name in ran) == len(continuous)
    assert sum(name.endswith(": time limit") for name in ran) == len(backend.kinds) * hasattr(backend, "time_limit")


@pytest.mark.parametrize("backend", [HiGHS(), Clarabel()], ids=label)
def test_farkas_rays(backend):
    needs(backend)
    ray = solve(conflicting_rows().program, backend).ray
    np.testing.assert_allclose(ray / ray[1], [2, 1, -5], rtol=1e-6)
    assert "row against box: ray" in check_solver(backend)


def test_known_duals():
    for name in installed(Kind.QP):
        solution = solve(dense_quadratic().program, name)
        np.testing.assert_allclose(solution.row_duals, [2, 0, -1], atol=1e-5, err_msg=name)
        np.testing.assert_allclose(solution.bound_duals, [0, -3, 0, 0], atol=1e-5, err_msg=name)


@pytest.mark.parametrize("backend", BACKENDS, ids=label)
def test_options_cannot_be_changed_and_have_common_names(backend):
    common = {"time_limit", "feasibility_tol", "gap_tol", "start", "threads", "verbose", "native", "sparse"}
    assert set(vars(backend)) <= common
    assert {"feasibility_tol", "verbose", "native"} <= set(vars(backend))
    with pytest.raises(FrozenInstanceError):
        backend.verbose = True


LIMITS = [
    DAQP(native={"iter_limit": 1}),
    PIQP(native={"max_iter": 1}),
    HiGHS(native={"simplex_iteration_limit": 0, "presolve": "off"}),
    Clarabel(native={"max_iter": 1}),
    OSQP(native={"max_iter": 1}),
    ProxQP(native={"max_iter": 1}),
    SciPy(native={"maxiter": 1, "presolve": False}),
]


@pytest.mark.parametrize("backend", LIMITS, ids=label)
def test_native_options_arrive_and_a_limit_is_named(backend):
    needs(backend)
    random = np.random.default_rng(0)
    quadratic = Kind.QP in backend.kinds
    program = Program(
        gradient=random.normal(size=20),
        hessian=np.eye(20) if quadratic else None,
        matrix=random.normal(size=(40, 20)),
        upper=-1 + 2 * random.random(40),
        delta_lower=np.full(20, -9.0),
        delta_upper=np.full(20, 9.0),
    )
    assert solve(program, replace(backend, native={})).status is Status.OPTIMAL
    assert solve(program, backend).status is Status.NO_POINT


def test_a_limit_with_a_point_in_hand_is_feasible_and_bounded():
    random = np.random.default_rng(0)
    program = Program(
        gradient=random.normal(size=60),
        matrix=random.normal(size=(90, 60)),
        upper=1.0 + random.exponential(size=90),
        delta_lower=np.full(60, -2.0),
        delta_upper=np.full(60, 2.0),
        integer=np.ones(60, dtype=bool),
    )
    solution = solve(program, HiGHS(native={"mip_max_nodes": 1, "presolve": "off"}))
    assert solution.status is Status.FEASIBLE
    assert solution.message == "kSolutionLimit"
    assert solution.violation == 0
    assert solution.bound < solution.objective


def test_another_number_of_threads_each_time():
    for threads in (1, 2, None, 1):
        assert solve(knapsack().program, HiGHS(threads=threads)).status is Status.OPTIMAL


def native_names(backend):
    library = importlib.import_module(backend.requires[0])
    if backend.name == "piqp":
        return set(library.Status.__members__)
    if backend.name == "proxqp":
        return set(library.proxqp.QPSolverOutput.__members__)
    if backend.name == "osqp":
        return {status.name for status in library.SolverStatus}
    kind = library.HighsModelStatus if backend.name == "highs" else library.SolverStatus
    return {name for name in dir(kind) if not name.startswith("_") and name not in ("name", "value")}


@pytest.mark.parametrize("backend", [PIQP(), HiGHS(), Clarabel(), OSQP(), ProxQP()], ids=label)
def test_every_native_status_has_a_meaning(backend):
    needs(backend)
    table = importlib.import_module(f"repairopt.solvers.{backend.name}").STATUS
    assert native_names(backend) <= set(table)


@pytest.mark.parametrize("backend", [DAQP(), PIQP(), HiGHS(), Clarabel(), OSQP(), ProxQP(), SciPy()], ids=label)
def test_an_unknown_native_status_is_failed_and_its_text_kept(backend, monkeypatch):
    needs(backend)
    program = linear().program if Kind.LP in backend.kinds else dense_quadratic().program
    known = solve(program, backend)
    monkeypatch.setattr(importlib.import_module(f"repairopt.solvers.{backend.name}"), "STATUS", {})
    unknown = solve(program, backend)
    assert unknown.status is Status.FAILED
    assert unknown.message == ("exit flag 1" if backend.name == "daqp" else known.message)


@pytest.mark.parametrize("backend", BACKENDS, ids=label)
def test_quiet_unless_verbose(backend, capfd):
    needs(backend)
    problems = [problem for kind in backend.kinds for problem in known_programs(kind)]
    for problem in problems:
        solve(problem.program, backend)
    assert capfd.readouterr() == ("", "")
    if backend.name != "daqp":
        solve(problems[0].program, replace(backend, verbose=True))
        assert len(capfd.readouterr().out) > 100


def test_dependent_equality_rows_are_no_contradiction():
    rows = np.array([[1.0, 1, 0], [2, 2, 0], [0, 1, 1], [1, 2, 1]])
    sides = np.array([1.0, 2, 3, 4])
    program = Program(gradient=np.zeros(3), hessian=np.eye(3), matrix=rows, lower=sides, upper=sides)
    expected = np.linalg.lstsq(rows, sides, rcond=None)[0]
    for name in installed(Kind.QP):
        np.testing.assert_allclose(solve(program, name).delta, expected, atol=1e-6, err_msg=name)


@st.composite
def random_programs(draw):
    """Feasible programs in a box, of mixed rows; the seed shrinks well enough for numbers of this size."""
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
    factor = random.normal(size=(n, rank))
    return Program(
        gradient=random.normal(size=n),
        hessian=factor @ factor.T if rank else None,
        matrix=matrix,
        lower=lower,
        upper=upper,
        delta_lower=low,
        delta_upper=high,
    )


@given(random_programs())
@settings(max_examples=60, deadline=None, derandomize=True)
def test_back_ends_agree(program):
    names = [name for name in installed(program.kind) if name != "osqp"]
    assert len(names) >= 2
    solutions = [solve(program, name) for name in names]
    reference = solutions[names.index("daqp")]
    for solution in solutions:
        assert solution.status is Status.OPTIMAL, (solution.solver, solution.message)
        assert solution.objective == pytest.approx(reference.objective, rel=1e-6, abs=1e-6), solution.solver
        assert solution.violation <= 1e-7


@given(random_programs())
@settings(max_examples=25, deadline=None, derandomize=True)
def test_osqp_agrees_or_says_that_it_did_not_finish(program):
    needs(OSQP())
    assume(program.kind is Kind.QP)
    solution, reference = solve(program, OSQP(native={"max_iter": 20_000})), solve(program, DAQP())
    assert solution.status in (Status.OPTIMAL, Status.FEASIBLE, Status.NO_POINT)
    if solution.status is Status.OPTIMAL:
        assert solution.objective == pytest.approx(reference.objective, rel=1e-5, abs=1e-5)


@given(random_programs(), st.integers(0, 2**32 - 1))
@settings(max_examples=25, deadline=None, derandomize=True)
def test_permuting_variables_permutes_nothing_but_the_answer(program, seed):
    order = np.random.default_rng(seed).permutation(program.n)
    low, high = program.bounds()
    other = replace(
        program,
        gradient=program.gradient[order],
        hessian=None if program.hessian is None else program.hessian[np.ix_(order, order)],
        matrix=program.matrix[:, order],
        delta_lower=low[order],
        delta_upper=high[order],
    )
    assert solve(other).objective == pytest.approx(solve(program).objective, rel=1e-7, abs=1e-7)
