"""Back ends that go on from their last program: the same answers as from scratch, with less work."""

from dataclasses import replace
from importlib.util import find_spec

import numpy as np
import pytest

from repairopt.program import Kind, Program, Source, Status, run_solver, solve_working_set
from repairopt.program.working_sets.row_oracles import DenseRows
from repairopt.solvers import CVXPY, OSQP, HiGHS, ProxQP, WoodburyIPM

BACKENDS = [HiGHS(), OSQP(), ProxQP(), CVXPY()]


def needs(backend):
    missing = [name for name in backend.requires if find_spec(name) is None]
    if missing:
        pytest.skip(f"{backend.name}: {', '.join(missing)} is not installed")


def family(kind, seed=0, n=12, m=60):
    """A program, and rows to choose from, each with a name."""
    random = np.random.default_rng(seed)
    factor = random.normal(size=(n, n))
    return Program(
        gradient=random.normal(size=n),
        hessian=factor @ factor.T if kind is Kind.QP else None,
        matrix=random.normal(size=(m, n)),
        lower=np.full(m, -2.0),
        upper=random.exponential(size=m),
        delta_lower=np.full(n, -1.0),
        delta_upper=np.full(n, 1.0),
        sources=tuple(Source("row", i) for i in range(m)),
    )


def part(program, rows):
    return replace(
        program,
        matrix=program.matrix[rows],
        lower=program.lower[rows],
        upper=program.upper[rows],
        sources=tuple(program.sources[i] for i in rows),
    )


def chain(program):
    """Programs that follow each other: rows come, go, change places, change; sides, gradient and bounds change."""
    random = np.random.default_rng(1)
    rows = np.arange(20)
    yield "first", part(program, rows)
    yield "rows added", part(program, np.arange(35))
    yield "rows dropped", part(program, np.concatenate([np.arange(5), np.arange(15, 35)]))
    shuffled = random.permutation(30)
    yield "shuffled", part(program, shuffled)
    yield "sides", replace(part(program, shuffled), upper=program.upper[shuffled] + 0.3)
    other = part(program, shuffled)
    yield "gradient", replace(other, gradient=-program.gradient, constant=2.0)
    changed = other.matrix.copy()
    changed[3] *= -1.0
    yield "coefficients", replace(other, matrix=changed)
    yield "bounds", replace(other, delta_upper=np.full(program.n, 0.5))
    yield "a bound less", replace(other, delta_upper=np.where(np.arange(program.n) == 2, np.inf, 1.0))
    yield "equality", replace(other, lower=np.where(np.arange(30) == 4, other.upper, other.lower))
    yield "other variables", family(program.kind, seed=5, n=7)


@pytest.mark.parametrize("backend", BACKENDS, ids=lambda b: b.name)
def test_sessions_give_the_answers_of_fresh_solves(backend):
    needs(backend)
    kind = Kind.QP if Kind.QP in backend.kinds else Kind.LP
    session = backend.session()
    for what, program in chain(family(kind)):
        fresh, found = run_solver(program, backend), run_solver(program, session)
        assert found.status is fresh.status is Status.OPTIMAL, (what, found.message)
        assert found.objective == pytest.approx(fresh.objective, rel=1e-6, abs=1e-7), what
        assert found.gap <= 1e-6, what


@pytest.mark.parametrize("backend", BACKENDS, ids=lambda b: b.name)
def test_infeasible_in_between_does_not_spoil_a_session(backend):
    needs(backend)
    program = part(family(Kind.QP if Kind.QP in backend.kinds else Kind.LP), np.arange(20))
    session = backend.session()
    assert run_solver(program, session).status is Status.OPTIMAL
    conflict = replace(program, lower=np.full(20, 90.0), upper=np.full(20, 99.0))
    assert run_solver(conflict, session).status is Status.INFEASIBLE
    again = run_solver(program, session)
    assert again.objective == pytest.approx(run_solver(program, backend).objective, rel=1e-6, abs=1e-7)


def test_highs_keeps_its_basis():
    program = family(Kind.LP, n=40, m=400)
    session, few = HiGHS(native={"presolve": "off"}).session(), part(program, np.arange(300))
    first = run_solver(few, session)
    assert run_solver(few, session).iterations == 0
    more = part(program, np.arange(320))
    fresh, found = run_solver(more, HiGHS(native={"presolve": "off"})), run_solver(more, session)
    assert found.iterations < 0.5 * fresh.iterations
    assert first.iterations > 0


def test_osqp_keeps_its_factors_and_its_point():
    needs(OSQP())
    program, session = part(family(Kind.QP), np.arange(20)), OSQP().session()
    first = run_solver(program, session)
    again = run_solver(replace(program, gradient=program.gradient * 1.001), session)
    assert again.iterations < first.iterations


def test_cvxpy_skips_the_translation_where_parameters_alone_change():
    needs(CVXPY())
    program, session = part(family(Kind.QP), np.arange(20)), CVXPY().session()
    run_solver(program, session)
    problem = session.memory["problem"]
    run_solver(replace(program, gradient=-program.gradient, upper=program.upper + 0.1), session)
    assert session.memory["problem"] is problem
    run_solver(part(family(Kind.QP), np.arange(25)), session)
    assert session.memory["problem"] is not problem


@pytest.mark.parametrize("backend", [HiGHS(), OSQP(), ProxQP(), WoodburyIPM()], ids=lambda b: b.name)
def test_a_working_set_goes_on_from_round_to_round(backend):
    needs(backend)
    kind = Kind.LP if backend.name == "highs" else Kind.QP
    program = family(kind, n=20, m=3000)
    head = replace(program, matrix=None, lower=np.zeros(0), upper=np.zeros(0), sources=())
    rows = DenseRows(program.matrix, program.lower, program.upper)
    found = solve_working_set(head, rows, solver=backend, batch=50, feasibility_tol=1e-8)
    everything = run_solver(replace(program, sources=()))
    assert found.status is Status.OPTIMAL
    assert found.rounds > 1
    assert found.objective == pytest.approx(everything.objective, rel=1e-6)
