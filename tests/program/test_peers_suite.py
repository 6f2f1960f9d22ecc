"""The 19 linear, quadratic and mixed-integer problems of CVXPY's own test suite, on every back end that takes them."""

import numpy as np
import pytest

from repairopt.program import Program, Status, available_solvers, solve

pytestmark = pytest.mark.slow

cvxpy = pytest.importorskip("cvxpy")
helpers = pytest.importorskip("cvxpy.tests.solver_test_helpers")

NAMES = [f"{kind}_{k}" for kind in ("lp", "mi_lp") for k in range(8)] + ["lp_bound_attr", "qp_0", "qp_bound_attr"]
ENDS = {np.inf: Status.INFEASIBLE, -np.inf: Status.UNBOUNDED}


def converted(name):
    """A problem of CVXPY's as a program, its optimal value, whether it is minimized (1 or -1), and what is added."""
    case = getattr(helpers, name)()
    data, _, _ = case.prob.get_problem_data(cvxpy.HIGHS if case.prob.is_mixed_integer() else cvxpy.OSQP)
    sign = 1.0 if isinstance(case.prob.objective, cvxpy.Minimize) else -1.0
    for variable in case.prob.variables():
        variable.save_value(np.zeros(variable.shape))
    offset = sign * float(np.sum(case.prob.objective.expr.value))
    if "F" in data:
        rows = np.vstack([data["A"].toarray(), data["F"].toarray()])
        upper = np.concatenate([data["b"], data["G"]])
        equal = len(data["b"])
    elif data["A"] is None:
        rows, upper, equal = np.zeros((0, len(data["c"]))), np.zeros(0), 0
    else:
        rows, upper, equal = data["A"].toarray(), data["b"], data["dims"].zero
    gradient = data["q"] if "q" in data else data["c"]
    sides = [np.full(len(gradient), side) for side in (-np.inf, np.inf)]
    for k, bounds in enumerate((data.get("lower_bounds"), data.get("upper_bounds"))):
        sides[k] = sides[k] if bounds is None else np.array(bounds, dtype=float)
    mask, switches = np.zeros(len(gradient), dtype=bool), list(data["bool_vars_idx"])
    mask[[*switches, *data["int_vars_idx"]]] = True
    sides[0][switches], sides[1][switches] = 0.0, 1.0
    hessian = data["P"] if "P" in data and data["P"].nnz else None
    lower = np.where(np.arange(len(upper)) < equal, upper, -np.inf)
    bounds = {"delta_lower": sides[0], "delta_upper": sides[1]}
    program = Program(gradient=gradient, hessian=hessian, matrix=rows, lower=lower, upper=upper, **bounds, integer=mask)
    return program, case.expect_val, sign, offset


@pytest.mark.parametrize("name", NAMES)
def test_a_problem_of_cvxpy(name):
    program, value, sign, offset = converted(name)
    status = ENDS.get(np.nan if value is None else sign * value, Status.OPTIMAL)
    value = None if value is None else sign * value - offset
    for solver in [None, *available_solvers(program.kind)]:
        if solver == "woodbury" and status is not Status.OPTIMAL:
            continue
        found = solve(program, solver)
        assert found.status is status, (solver, found.message)
        if status is Status.OPTIMAL:
            value = found.objective if value is None else value  # CVXPY states none: all must agree
            assert found.objective == pytest.approx(value, rel=1e-5, abs=1e-5), solver
