"""SCIP and Gurobi, and all that solve mixed-integer programs: answers, limits with an incumbent, statuses."""

import importlib
import itertools
from dataclasses import FrozenInstanceError, replace
from functools import cache
from importlib.util import find_spec

import numpy as np
import pytest
from hypothesis import given, settings, strategies as st

from repairopt.interfaces.testing import check_solver
from repairopt.program import Kind, Program, Status, known_programs, solve
from repairopt.program.backends import available_solvers, find_solver
from repairopt.program.examples import few_of_many, knapsack, linear
from repairopt.solvers import DAQP, SCIP, Gurobi, HiGHS, SciPy

BACKENDS = [SCIP(), Gurobi()]


def label(backend):
    return backend.name


@cache
def obstacle(backend_class):
    """Why a back end cannot run here, or nothing."""
    missing = [name for name in backend_class.requires if find_spec(name) is None]
    if missing:
        return f"{', '.join(missing)} is not installed"
    answer = solve(linear().program, backend_class())
    return answer.message if answer.status is Status.FAILED else ""


def needs(backend):
    reason = obstacle(type(backend))
    if reason:
        pytest.skip(f"{backend.name}: {reason}")


PROBLEMS = known_programs(nonconvex=True)
PAIRS = [(backend, problem) for backend in BACKENDS for problem in PROBLEMS]


@pytest.mark.parametrize(("backend", "problem"), PAIRS, ids=[f"{label(b)}-{p.name}" for b, p in PAIRS])
def test_every_problem(backend, problem):
    needs(backend)
    solution = solve(problem.program, backend)
    assert solution.status is problem.status, solution.message
    assert solution.message != ""
    if problem.status is Status.OPTIMAL:
        scale = 1 + np.abs(problem.program.gradient).max()
        assert solution.objective == pytest.approx(problem.objective, rel=1e-6, abs=1e-6)
        assert solution.violation <= 1e-7 * scale
        if problem.delta is not None:
            np.testing.assert_allclose(solution.delta, problem.delta, atol=1e-4)
    else:
        assert solution.delta is None


@pytest.mark.parametrize("backend", BACKENDS, ids=label)
def test_conformance(backend):
    needs(backend)
    ran = check_solver(backend)
    assert {f"{problem.name}: answer" for problem in PROBLEMS} <= set(ran)
    assert sum(name.endswith(": time limit") for name in ran) == 4


@pytest.mark.parametrize("backend", [SCIP(), Gurobi(), HiGHS(), SciPy()], ids=label)
def test_mixed_integer_answers_carry_a_bound(backend):
    needs(backend)
    for problem in known_programs(nonconvex=getattr(backend, "nonconvex", False)):
        mixed = problem.program.integer is not None
        if problem.status is Status.OPTIMAL and mixed and problem.program.kind in backend.kinds:
            bound = solve(problem.program, backend).bound
            assert bound == pytest.approx(problem.objective, rel=1e-5, abs=1e-5), problem.name


def test_at_most_2_of_4_by_enumeration():
    problem = few_of_many()
    low, high = problem.program.bounds()
    values = {}
    for switches in itertools.product((0.0, 1.0), repeat=4):
        fixed = replace(
            problem.program,
            integer=None,
            delta_lower=np.append(low[:4], switches),
            delta_upper=np.append(high[:4], switches),
        )
        solution = solve(fixed, DAQP())
        assert (solution.status is Status.INFEASIBLE) == (sum(switches) > 2)
        if solution.found:
            values[switches] = solution.objective
    order = sorted(values, key=values.get)
    assert order[0] == tuple(problem.delta[4:])
    assert values[order[0]] == pytest.approx(problem.objective)
    assert values[order[1]] > values[order[0]] + 0.1


@pytest.mark.parametrize("problem", [p for p in PROBLEMS if p.nonconvex], ids=lambda problem: problem.name)
def test_nonconvex_answers_by_a_grid(problem):
    axes = []
    for low, high in zip(*problem.program.bounds(), strict=True):
        whole = problem.program.integer is not None
        axes.append(np.arange(np.ceil(low), high + 1e-9) if whole else np.linspace(low, high, 121))
    points = [np.array(point) for point in itertools.product(*axes)]
    values = [problem.program.objective(point) for point in points if problem.program.violation(point) <= 1e-9]
    assert problem.objective - 1e-9 <= min(values) <= problem.objective + 0.2
    assert np.linalg.eigvalsh(problem.program.dense_hessian())[0] < 0


def sparse_change(n=60, k=10, seed=0):
    """Change at most k of n weights; hard enough to outlast a limit."""
    random = np.random.default_rng(seed)
    factor = random.normal(size=(n, n // 2))
    hessian = np.zeros((2 * n, 2 * n))
    hessian[:n, :n] = factor @ factor.T / n + 0.01 * np.eye(n)
    unit = np.eye(2 * n)
    switch = [sign * unit[i] - unit[n + i] for i in range(n) for sign in (1, -1)]
    return Program(
        gradient=np.append(random.normal(size=n), np.zeros(n)),
        hessian=hessian,
        matrix=np.array([*switch, unit[n:].sum(axis=0)]),
        upper=np.append(np.zeros(2 * n), k),
        delta_lower=np.append(-np.ones(n), np.zeros(n)),
        delta_upper=np.ones(2 * n),
        integer=np.arange(2 * n) >= n,
        n_delta=n,
    )


LIMITS = [
    (SCIP(time_limit=0.5), "timelimit"),
    (SCIP(node_limit=1), "totalnodelimit"),
    (SCIP(native={"limits/solutions": 1}), "sollimit"),
    (Gurobi(node_limit=0, native={"Presolve": 0, "Cuts": 0}), "NODE_LIMIT"),
    (Gurobi(native={"SolutionLimit": 1}), "SOLUTION_LIMIT"),
    (Gurobi(native={"WorkLimit": 1e-3}), "WORK_LIMIT"),
]


@pytest.mark.parametrize(("backend", "native"), LIMITS, ids=[f"{label(b)}-{native}" for b, native in LIMITS])
def test_a_limit_returns_the_incumbent_with_bound_and_gap(backend, native):
    needs(backend)
    solution = solve(sparse_change(), backend)
    assert solution.status is Status.FEASIBLE, solution.message
    assert solution.violation <= 1e-7
    assert np.count_nonzero(np.abs(solution.delta[:60]) > 1e-6) <= 10
    if np.isnan(solution.bound):
        assert solution.message == f"{native}, gap unknown"
        assert "limit" in native.lower()  # ended before a bound was known: by solutions, or on a busy machine
    else:
        assert solution.bound < solution.objective
        assert solution.message.startswith(f"{native}, gap ")
        assert solution.message.endswith(" %")


@pytest.mark.parametrize("backend", [SCIP(time_limit=0.0), Gurobi(time_limit=0.0)], ids=label)
def test_a_limit_without_a_point(backend):
    needs(backend)
    random = np.random.default_rng(0)
    rows = random.integers(-9, 9, size=(8, 40)).astype(float)
    sides = rows @ random.integers(0, 2, size=40)  # equality rows over switches: no heuristic meets them at once
    program = Program(
        gradient=random.normal(size=40),
        matrix=rows,
        lower=sides,
        upper=sides,
        delta_lower=np.zeros(40),
        delta_upper=np.ones(40),
        integer=np.ones(40, dtype=bool),
    )
    assert solve(program, backend).status is Status.NO_POINT


@pytest.mark.parametrize("backend", [SCIP(gap_tol=0.5), Gurobi(gap_tol=0.5), HiGHS(gap_tol=0.5)], ids=label)
def test_a_wide_gap_ends_early_and_shows_in_the_bound(backend):
    needs(backend)
    program = sparse_change() if Kind.MIQP in backend.kinds else knapsack().program
    solution = solve(program, backend)
    assert solution.status is Status.OPTIMAL
    assert solution.objective - solution.bound <= 0.5 * abs(solution.objective) + 1e-9


def test_scip_names_every_native_status():
    needs(SCIP())
    from pyscipopt import SCIP_STATUS

    table = importlib.import_module("repairopt.solvers.scip").STATUS
    assert {name.lower() for name in dir(SCIP_STATUS) if not name.startswith("_")} <= set(table)


@pytest.mark.parametrize("backend", BACKENDS, ids=label)
def test_an_unknown_native_status_is_failed_and_its_text_kept(backend, monkeypatch):
    needs(backend)
    known = solve(knapsack().program, backend)
    monkeypatch.setattr(importlib.import_module(f"repairopt.solvers.{backend.name}"), "STATUS", {})
    unknown = solve(knapsack().program, backend)
    assert unknown.status is Status.FAILED
    assert unknown.message == known.message


def test_solver_none_takes_open_source_ones_only():
    needs(SCIP())
    expected = {Kind.LP: "daqp", Kind.QP: "daqp", Kind.MILP: "highs", Kind.MIQP: "scip"}
    for problem in known_programs():
        assert find_solver(problem.program).name == expected[problem.program.kind]
    assert Gurobi.preference(linear().program) == np.inf


@pytest.mark.parametrize("backend", BACKENDS, ids=label)
def test_quiet_unless_verbose(backend, capfd):
    needs(backend)
    for problem in PROBLEMS:
        solve(problem.program, backend)
    assert capfd.readouterr() == ("", "")
    solve(PROBLEMS[0].program, replace(backend, verbose=True))
    assert len(capfd.readouterr().out) > 100


@pytest.mark.parametrize("backend", BACKENDS, ids=label)
def test_threads_and_frozen_options(backend):
    needs(backend)
    for threads in (1, 2, None):
        assert solve(knapsack().program, replace(backend, threads=threads)).objective == pytest.approx(-26)
    with pytest.raises(FrozenInstanceError):
        backend.threads = 3


@st.composite
def random_integer_programs(draw):
    """Feasible programs of few variables in a small box, so that enumeration decides."""
    n, m, whole = draw(st.integers(1, 3)), draw(st.integers(0, 4)), draw(st.integers(1, 3))
    random = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    matrix, inside = random.normal(size=(m, n)), random.integers(-2, 3, size=n).astype(float)
    factor, quadratic, sign = random.normal(size=(n, n)), draw(st.booleans()), draw(st.sampled_from([1.0, 1.0, -1.0]))
    return Program(
        gradient=random.normal(size=n),
        hessian=sign * factor @ factor.T if quadratic else None,
        matrix=matrix,
        upper=matrix @ inside + random.exponential(size=m),
        delta_lower=np.full(n, -2.0),
        delta_upper=np.full(n, 2.0),
        integer=np.arange(n) < whole,
    )


@given(random_integer_programs())
@settings(max_examples=30, deadline=None, derandomize=True)
def test_all_agree_and_enumeration_where_all_are_integer(program):
    names = [name for name in ("scip", "gurobi", "highs", "scipy") if name in available_solvers(program.kind)]
    convex = program.hessian is None or np.linalg.eigvalsh(program.dense_hessian())[0] >= 0
    solutions = [solve(program, name) for name in names if name != "gurobi" or not obstacle(Gurobi)]
    if program.integer.all():
        points = (np.array(point, dtype=float) for point in itertools.product(range(-2, 3), repeat=program.n))
        best = min(program.objective(point) for point in points if program.violation(point) <= 1e-9)
    elif convex and solutions:
        best = solutions[-1].objective
    else:
        best = min((solution.objective for solution in solutions), default=0.0)
    for solution in solutions:
        assert solution.status is Status.OPTIMAL, (solution.solver, solution.message)
        assert solution.objective == pytest.approx(best, rel=1e-5, abs=1e-5), solution.solver
        assert solution.bound <= best + 1e-5 * (1 + abs(best))
