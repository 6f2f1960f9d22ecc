"""SCIP gets a dense convex Hessian by its axes: the same optima as other back ends find, proven sooner."""

import time
from dataclasses import replace

import numpy as np
import pytest
from random_programs import random_program, wrong

from repairopt.program import Program, Status, solve

scip = pytest.importorskip("repairopt.solvers.scip")
pytest.importorskip("pyscipopt")


def a_program(n, rank, integers=0, seed=0):
    random = np.random.default_rng(seed)
    half = random.normal(size=(n, rank))
    whole = np.arange(n) < integers
    return Program(
        gradient=random.normal(size=n) if rank == n else half @ random.normal(size=rank),
        hessian=half @ half.T / n,
        matrix=random.normal(size=(4, n)),
        lower=-np.ones(4),
        upper=np.ones(4),
        integer=whole if integers else None,
        delta_lower=-2.0 * np.ones(n),
        delta_upper=2.0 * np.ones(n),
    )


@pytest.mark.parametrize(("n", "rank"), [(20, 20), (60, 60), (40, 7), (30, 29), (15, 15)])
def test_convex_programs_agree_with_another_back_end(n, rank):
    program = a_program(n, rank)
    found, other = (solve(program, solver=name) for name in ("scip", "piqp"))
    assert found.status is Status.OPTIMAL
    assert found.objective == pytest.approx(other.objective, rel=1e-4, abs=1e-5)
    assert program.violation(found.delta) < 1e-6


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("started", [False, True])
def test_integers_are_the_same_by_axes_and_by_products(seed, started, monkeypatch):
    program = a_program(18, 18, integers=5, seed=seed)
    back_end = scip.SCIP(start=np.zeros(18) if started else None)
    by_axes = solve(program, solver=back_end)
    monkeypatch.setattr(scip, "PRODUCTS", 10**9)
    by_products = solve(program, solver=back_end)
    assert by_axes.status is by_products.status is Status.OPTIMAL
    assert by_axes.objective == pytest.approx(by_products.objective, rel=1e-5, abs=1e-6)
    assert np.allclose(by_axes.delta[:5], by_products.delta[:5])


def test_a_start_is_kept_with_its_places_on_the_axes():
    program = a_program(60, 60, integers=20)
    found = scip.SCIP(time_limit=0.2, node_limit=1, start=np.zeros(60)).solve(program)
    assert found.delta is not None
    assert program.objective(found.delta) <= program.objective(np.zeros(60)) + 1e-6


def test_what_is_not_convex_is_given_by_products():
    from pyscipopt import Model

    program = a_program(20, 20)
    saddle = Program(
        gradient=program.gradient,
        hessian=program.hessian - 0.5 * np.eye(20),
        delta_lower=program.delta_lower,
        delta_upper=program.delta_upper,
    )
    model = Model()
    assert scip._add_objective(model, saddle, scip._variables(model, saddle)).axes is None
    model = Model()
    added = scip._add_objective(model, program, scip._variables(model, program))
    assert added.axes.shape == (20, 20)
    assert len(added.places) == 20
    model = Model()
    flat = a_program(40, 7)
    assert len(scip._add_objective(model, flat, scip._variables(model, flat)).places) == 7


@pytest.mark.parametrize("size", [1e4, 1e8])
def test_large_curvatures_are_solved_as_those_near_one(size):
    program = a_program(16, 16, integers=4)
    known = solve(program, solver="scip")
    large = replace(program, gradient=size * program.gradient, hessian=size * program.dense_hessian())
    found = scip.SCIP(time_limit=20, start=np.zeros(16)).solve(large)
    assert found.status is Status.OPTIMAL
    assert large.objective(found.delta) == pytest.approx(size * known.objective, rel=1e-5)


def test_small_curvatures_leave_the_linear_part_its_size():
    program = a_program(16, 16, integers=4)
    small = replace(program, hessian=1e-10 * program.dense_hessian())
    linear = solve(replace(program, hessian=None), solver="highs")
    assert scip.SCIP().solve(small).bound == pytest.approx(linear.objective, rel=1e-5)


@pytest.mark.parametrize("seed", [1000503, 1001330, 1001866, 1002840, 1002923, 1003839, 1004261, 1006628])
def test_flat_axes_of_unbounded_variables_do_not_run_on_without_end(seed):
    """Of such programs SCIP took the products of weights for nonconvex, by rounding, and branched for hours."""
    known = random_program(seed)
    began = time.process_time()
    answer = solve(known.program, "scip", time_limit=10.0)
    assert answer.status is Status.OPTIMAL
    assert not wrong(known, answer)
    assert time.process_time() - began < 5.0
