"""CVXPY and Pyomo: every problem through the solvers behind them, the models for users, statuses, what is missing."""

import importlib
import logging
from dataclasses import FrozenInstanceError, replace
from importlib.util import find_spec

import numpy as np
import pytest

from repairopt.errors import UnsupportedError
from repairopt.interfaces.testing import check_solver
from repairopt.program import Kind, Program, Status, known_programs, solve
from repairopt.program.examples import dense_quadratic, few_of_many, knapsack, linear, two_sided_rows
from repairopt.solvers import CVXPY, Pyomo, as_cvxpy, as_pyomo

BACKENDS = [CVXPY(), Pyomo()]
# Which library the solver behind a layer needs for a kind.
BEHIND = {
    "cvxpy": {Kind.LP: "clarabel", Kind.QP: "clarabel", Kind.MILP: "highspy", Kind.MIQP: "pyscipopt"},
    "pyomo": {Kind.LP: "highspy", Kind.QP: "pyscipopt", Kind.MILP: "highspy", Kind.MIQP: "pyscipopt"},
}


def label(backend):
    return backend.name


def needs(backend, *kinds):
    libraries = [*backend.requires, *(BEHIND[backend.name][kind] for kind in kinds)]
    missing = sorted({name for name in libraries if find_spec(name) is None})
    if missing:
        pytest.skip(f"{backend.name}: {', '.join(missing)} is not installed")


PAIRS = [(backend, problem) for backend in BACKENDS for problem in known_programs()]


@pytest.mark.parametrize(("backend", "problem"), PAIRS, ids=[f"{label(b)}-{p.name}" for b, p in PAIRS])
def test_every_problem(backend, problem):
    needs(backend, problem.program.kind)
    solution = solve(problem.program, backend)
    assert solution.status is problem.status, solution.message
    if problem.status is Status.OPTIMAL:
        scale = 1 + np.abs(problem.program.gradient).max()
        assert solution.objective == pytest.approx(problem.objective, rel=1e-6, abs=1e-6)
        assert solution.violation <= 1e-7 * scale
        if problem.delta is not None:
            np.testing.assert_allclose(solution.delta, problem.delta, atol=2e-4)
    else:
        assert solution.delta is None


@pytest.mark.parametrize("backend", BACKENDS, ids=label)
def test_conformance(backend):
    needs(backend, *Kind)
    ran = check_solver(backend)
    assert {f"{problem.name}: answer" for problem in known_programs()} <= set(ran)
    assert "linear: optimality conditions" in ran


@pytest.mark.parametrize(
    ("backend", "name"), [(CVXPY("OSQP"), "OSQP"), (CVXPY("SCS"), "SCS"), (Pyomo("highs"), "highs")]
)
def test_another_solver_by_name(backend, name):
    needs(backend)
    if backend.name == "cvxpy":
        import cvxpy

        if name not in cvxpy.installed_solvers():
            pytest.skip(f"cvxpy: {name} is not installed")
    solution = solve(dense_quadratic().program, backend)
    assert solution.message == f"optimal ({name})"
    np.testing.assert_allclose(solution.delta, dense_quadratic().delta, atol=1e-4)


def test_cvxpy_takes_further_constraints_on_the_weight_change():
    needs(CVXPY(), Kind.QP)
    import cvxpy

    program = dense_quadratic().program
    solution = solve(program, CVXPY(extra=lambda delta: [cvxpy.norm(delta, 2) <= 1, delta[0] == delta[3]]))
    assert solution.status is Status.OPTIMAL
    assert np.linalg.norm(solution.delta) == pytest.approx(1, abs=1e-6)
    assert solution.delta[0] == pytest.approx(solution.delta[3], abs=1e-7)
    assert solution.row_duals is None  # they would leave out the multipliers of the further constraints
    infeasible = solve(program, CVXPY(extra=lambda delta: [cvxpy.sum(delta) >= 9]))
    assert infeasible.status is Status.INFEASIBLE


def test_the_weight_change_leaves_out_auxiliary_variables():
    needs(CVXPY(), Kind.MIQP)
    shapes = []

    def total_is_one(delta):
        shapes.append(delta.shape)
        return [sum(delta) == 1]

    solution = solve(few_of_many().program, CVXPY(extra=total_is_one))
    assert shapes == [(4,)]
    assert solution.status is Status.OPTIMAL
    assert solution.delta[:4].sum() == pytest.approx(1, abs=1e-6)


@pytest.mark.parametrize("problem", [two_sided_rows(), dense_quadratic()], ids=lambda problem: problem.name)
def test_a_cvxpy_problem_is_solved_again_with_other_parameters(problem):
    needs(CVXPY(), Kind.QP)
    model, delta = as_cvxpy(problem.program)
    assert model.is_dcp(dpp=True)
    gradient = problem.program.gradient + np.arange(problem.program.n)
    for values in (problem.program.gradient, gradient):
        model.param_dict["gradient"].value = values
        model.solve(solver="CLARABEL", tol_feas=1e-9, tol_gap_abs=1e-9, tol_gap_rel=1e-9)
        expected = solve(replace(problem.program, gradient=values), "daqp")
        assert model.value == pytest.approx(expected.objective, abs=1e-6)
        np.testing.assert_allclose(delta.value, expected.delta, atol=1e-5)
    assert set(model.param_dict) <= {"gradient", "sides", "upper", "lower", "delta_upper", "delta_lower"}


def test_a_pyomo_model_takes_further_constraints():
    needs(Pyomo(), Kind.MILP)
    import pyomo.environ as pyo

    model = as_pyomo(knapsack().program)
    assert len(model.delta) == 6
    assert len(model.rows) == 1
    model.not_both = pyo.Constraint(expr=model.delta[0] + model.delta[2] <= 1)
    pyo.SolverFactory("appsi_highs").solve(model)
    chosen = [round(pyo.value(variable)) for variable in model.delta.values()]
    assert chosen[0] + chosen[2] <= 1
    assert pyo.value(model.objective) > -26


@pytest.mark.parametrize(("side", "status"), [(1.0, Status.INFEASIBLE), (0.0, Status.OPTIMAL)])
@pytest.mark.parametrize("backend", BACKENDS, ids=label)
def test_rows_without_coefficients_and_without_sides(backend, side, status):
    needs(backend, Kind.LP)
    program = Program(
        gradient=np.ones(2),
        matrix=np.array([[0.0, 0.0], [1.0, 1.0], [1.0, -1.0]]),
        lower=np.array([side, -2.0, -np.inf]),
        delta_lower=np.full(2, -4.0),
        delta_upper=np.full(2, 4.0),
    )
    assert solve(program, backend).status is status


@pytest.mark.parametrize(("solver", "problem"), [("CLARABEL", knapsack()), ("SCIPY", dense_quadratic())])
def test_a_solver_of_cvxpy_that_cannot_take_the_program(solver, problem):
    needs(CVXPY(), Kind.LP)
    with pytest.raises(UnsupportedError, match=f"CVXPY's solver {solver} cannot take this program"):
        solve(problem.program, CVXPY(solver))


def test_a_solver_of_cvxpy_that_is_not_installed():
    needs(CVXPY())
    with pytest.raises(UnsupportedError, match="solver NOPE for a LP is not installed. CVXPY has: .*pip install nope"):
        solve(linear().program, CVXPY("NOPE"))


@pytest.mark.parametrize("solver", ["no_such_solver", "cplex"])
def test_a_missing_executable_of_pyomo_is_a_status_with_a_remedy(solver, capfd):
    needs(Pyomo())
    solution = solve(linear().program, Pyomo(solver))
    assert solution.status is Status.FAILED
    assert f"Pyomo's solver {solver} is not available here; install its executable" in solution.message
    assert capfd.readouterr() == ("", "")


def hard_program():
    random = np.random.default_rng(0)
    return Program(
        gradient=random.normal(size=100),
        matrix=random.normal(size=(150, 100)),
        upper=1.0 + random.exponential(size=150),
        delta_lower=np.full(100, -2.0),
        delta_upper=np.full(100, 2.0),
        integer=np.ones(100, dtype=bool),
    )


@pytest.mark.parametrize("backend", [CVXPY(time_limit=0.3), Pyomo(time_limit=0.3), CVXPY("SCIP", time_limit=0.3)])
def test_a_time_limit_is_named(backend):
    needs(backend, Kind.MILP, Kind.MIQP)
    solution = solve(hard_program(), backend)
    assert solution.status in (Status.FEASIBLE, Status.NO_POINT)
    assert solution.seconds < 5


@pytest.mark.parametrize("backend", BACKENDS, ids=label)
def test_every_native_status_has_a_meaning(backend):
    needs(backend)
    table = importlib.import_module(f"repairopt.solvers.{backend.name}").STATUS
    if backend.name == "cvxpy":
        from cvxpy import settings

        names = {*settings.SOLUTION_PRESENT, *settings.INF_OR_UNB, *settings.ERROR}
    else:
        from pyomo.opt import TerminationCondition

        names = {str(condition) for condition in TerminationCondition}
    assert names <= set(table)


@pytest.mark.parametrize("backend", BACKENDS, ids=label)
def test_an_unknown_native_status_is_failed_and_its_text_kept(backend, monkeypatch):
    needs(backend, Kind.LP)
    known = solve(linear().program, backend)
    monkeypatch.setattr(importlib.import_module(f"repairopt.solvers.{backend.name}"), "STATUS", {})
    unknown = solve(linear().program, backend)
    assert (unknown.status, unknown.message) == (Status.FAILED, known.message)


@pytest.mark.parametrize("backend", BACKENDS, ids=label)
def test_quiet_unless_verbose_and_frozen(backend, capfd):
    needs(backend, *Kind)
    for problem in known_programs():
        solve(problem.program, backend)
    assert capfd.readouterr() == ("", "")
    solve(linear().program, replace(backend, verbose=True))
    assert len(capfd.readouterr().out) > 100
    with pytest.raises(FrozenInstanceError):
        backend.verbose = True


@pytest.mark.parametrize("backend", BACKENDS, ids=label)
def test_layers_agree_with_direct_back_ends(backend):
    for seed in range(12):
        random = np.random.default_rng(seed)
        n, m, kind = 4, 6, list(Kind)[seed % 4]
        needs(backend, kind)
        factor, matrix = random.normal(size=(n, 3)), random.normal(size=(m, n))
        program = Program(
            gradient=random.normal(size=n),
            hessian=factor @ factor.T if kind in (Kind.QP, Kind.MIQP) else None,
            matrix=matrix,
            lower=np.where(random.random(m) < 0.5, -np.inf, -3.0),
            upper=random.exponential(size=m),
            delta_lower=np.full(n, -2.0),
            delta_upper=np.full(n, 2.0),
            integer=np.arange(n) < 2 if kind in (Kind.MILP, Kind.MIQP) else None,
        )
        layer, direct = solve(program, backend), solve(program)
        assert layer.status is Status.OPTIMAL, layer.message
        assert layer.objective == pytest.approx(direct.objective, rel=1e-5, abs=1e-5)


def test_a_log_handler_whose_stream_is_closed_does_not_stop_pyomo(monkeypatch, tmp_path):
    pytest.importorskip("pyomo")
    pytest.importorskip("highspy")
    with open(tmp_path / "log", "w") as stream:
        pass
    handlers = [*logging.getLogger().handlers, logging.StreamHandler(stream)]  # as of basicConfig, beside a notebook
    monkeypatch.setattr(logging.getLogger(), "handlers", handlers)
    assert solve(knapsack().program, "pyomo").status is Status.OPTIMAL
    assert logging.getLogger().handlers == handlers


def test_scip_behind_pyomo_keeps_to_its_limit_where_variables_are_free():
    """It branched on and on over products of free variables, whatever its time limit."""
    needs(Pyomo(), Kind.MIQP)
    program = Program(
        gradient=np.array([-2.0, 0.0, 2.0, 1.0]),
        hessian=np.array([[2.0, -2.0, 1.0, 1.0], [-2.0, 4.0, 0.0, 0.0], [1.0, 0.0, 2.0, 1.0], [1.0, 0.0, 1.0, 2.0]]),
        matrix=np.array([[2.0, 2.0, -1.0, 0.0]]),
        lower=np.array([-2.0]),
        upper=np.array([-1.0]),
        delta_lower=np.array([-np.inf, -1.0, 0.0, -np.inf]),
        delta_upper=np.array([np.inf, np.inf, 4.0, np.inf]),
        integer=np.array([False, False, True, True]),
    )
    found = solve(program, "pyomo", time_limit=10.0)
    assert found.status is Status.OPTIMAL
    assert found.seconds < 10
    assert found.objective == pytest.approx(0.45, abs=1e-6)  # by the own back end of SCIP too


def test_scip_behind_pyomo_gets_dense_hessians_by_their_axes():
    needs(Pyomo(), Kind.MIQP)
    factor = np.random.default_rng(0).normal(size=(12, 20))
    sides = {"delta_lower": np.full(20, -2.0), "delta_upper": np.full(20, 2.0), "integer": np.arange(20) < 4}
    program = Program(factor.sum(0), hessian=factor.T @ factor, constant=1.5, **sides)
    found, expected = (solve(program, name, time_limit=10.0) for name in ("pyomo", "scip"))
    assert found.status is expected.status is Status.OPTIMAL
    assert found.objective == pytest.approx(expected.objective, abs=1e-5)
    assert found.bound <= expected.objective + 1e-5
