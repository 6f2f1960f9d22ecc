"""A repair as one program, for others to add to: CVXPY, Pyomo, own code."""

import numpy as np
import pytest
import torch
from biased_task import task

from repairopt import GroupGap, SpecificationError, Verdict, formulate_repair, solve_repair
from repairopt.methods import OneShot
from repairopt.program import Status, solve


@pytest.fixture(scope="module")
def toy():
    return task()


def formulated(toy):
    return formulate_repair(toy.model, toy.gap(), [toy.keep()], weights="last")


def test_the_program_is_that_of_the_one_shot_method(toy):
    repair = formulated(toy)
    answer = solve(repair.program)
    assert answer.status is Status.OPTIMAL
    finished = repair.finish(answer.delta)
    usual = solve_repair(toy.model, toy.gap(), [toy.keep()], weights="last", method=OneShot(shrink=False))
    assert finished.report.verification.goal_after == usual.report.verification.goal_after
    assert {source.constraint for source in repair.program.sources} == {"keep labels"}


def test_users_add_constraints_with_cvxpy(toy):
    cvxpy = pytest.importorskip("cvxpy")
    from repairopt.solvers import as_cvxpy

    repair = formulated(toy)
    problem, change = as_cvxpy(repair.program)
    problem = cvxpy.Problem(problem.objective, [*problem.constraints, cvxpy.norm(change, 1) <= 0.05])
    problem.solve(solver="CLARABEL")
    assert problem.status == "optimal"
    finished = repair.finish(change.value)
    assert sum(float(part.abs().sum()) for part in finished.delta.values()) <= 0.05 + 1e-5
    assert finished.report.verdict in (Verdict.IMPROVED, Verdict.REPAIRED)


def test_users_add_constraints_with_pyomo(toy):
    pyo = pytest.importorskip("pyomo.environ")
    from repairopt.solvers import as_pyomo

    repair = formulate_repair(toy.model, toy.gap(), [toy.keep()], weights="last", method=OneShot(program="lp"))
    model = as_pyomo(repair.program)
    model.still = pyo.Constraint(expr=model.delta[0] == 0)
    pyo.SolverFactory("appsi_highs").solve(model)
    finished = repair.finish([pyo.value(model.delta[j]) for j in range(repair.program.n)])
    assert float(next(iter(finished.delta.values())).flatten()[0]) == 0


def test_what_is_no_weight_change_is_named(toy):
    repair = formulated(toy)
    with pytest.raises(SpecificationError, match="delta: shape .*; expected .* finite numbers.*Was the program solved"):
        repair.finish(None)
    with pytest.raises(SpecificationError, match="one for each chosen weight"):
        repair.finish(np.zeros(3))


def test_changes_that_the_precision_of_the_network_swallows_are_not_counted():
    single = task(count=60, dtype=torch.float32)
    gap = GroupGap.observed(single.inputs, column=1, target=0.1)
    repair = formulate_repair(single.model, gap, weights="last")
    delta = np.full(int(repair.program.n_delta), 1e-12)
    delta[0] = 0.1
    finished = repair.finish(delta)
    differ = sum(int((change != 0).sum()) for change in finished.delta.values())
    assert finished.report.changed == differ <= 1
