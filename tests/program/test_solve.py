import subprocess
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest

from repairopt.errors import ProgramError, SolverError, SolverNotFoundError, UnsupportedError
from repairopt.program import Kind, LowRankHessian, Program, Solution, Status, backends as registry, run_solver, solve
from repairopt.program.backends import available_solvers, find_solver
from repairopt.program.examples import dense_quadratic, knapsack, linear, nearest_integer_point
from repairopt.solvers import DAQP, PIQP, HiGHS, choice


@dataclass(frozen=True)
class Fixed:
    """A back end whose answer is given: what the core makes of it is under test."""

    answer: Any = None
    time_limit: float | None = None

    name: ClassVar[str] = "fixed"
    kinds: ClassVar[frozenset[Kind]] = frozenset(Kind)
    requires: ClassVar[tuple[str, ...]] = ()

    def solve(self, program):
        if isinstance(self.answer, BaseException):
            raise self.answer
        return self.answer if isinstance(self.answer, Solution) else Solution(Status.NO_POINT, message=str(self))


def test_listing_and_importing_back_ends_loads_no_native_library():
    libraries = ("daqp", "piqp", "highspy", "clarabel", "osqp", "cvxpy", "pyomo", "pyscipopt", "gurobipy", "proxsuite")
    code = (
        "import sys, repairopt.solvers, repairopt.program.solve_program as s; names = s.available_solvers(); "
        f"print(names, [m for m in {libraries} if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.startswith("['")
    assert done.stdout.strip().endswith("] []")


def test_available_solvers_by_kind():
    assert {"daqp", "piqp", "highs"} <= set(available_solvers())
    assert "highs" in available_solvers(Kind.MILP)
    assert "highs" not in available_solvers("QP")
    assert "daqp" not in available_solvers("MILP")


@pytest.mark.parametrize(
    ("n", "quadratic", "name"),
    [(3, False, "daqp"), (300, False, "daqp"), (301, False, "highs"), (5001, False, "highs")]
    + [(60, True, "daqp"), (61, True, "piqp"), (1000, True, "piqp")],
)
def test_default_by_kind_and_size(n, quadratic, name):
    program = Program(gradient=np.ones(n), hessian=np.eye(n) if quadratic else None)
    assert find_solver(program).name == name


def test_default_by_density_and_structure():
    from scipy import sparse

    rows = sparse.random(1000, 200, density=0.02, format="csr", rng=0)
    assert find_solver(Program(gradient=np.ones(200), matrix=rows)).name == "piqp"
    assert find_solver(Program(gradient=np.ones(400), matrix=np.ones((400, 400)))).name == "piqp"
    assert find_solver(Program(gradient=np.ones(200), matrix=rows.toarray())).name == "daqp"
    wide = LowRankHessian(np.ones(6000), np.ones((6000, 1)))
    assert find_solver(Program(gradient=np.ones(6000), hessian=wide)).name == "woodbury"
    thin = LowRankHessian(np.ones(400), np.ones((400, 1)))
    assert find_solver(Program(gradient=np.ones(400), hessian=thin)).name == "woodbury"


def test_the_table_of_choices_is_the_one_in_the_documentation():
    text = (Path(__file__).resolve().parents[2] / "solvers" / "README.md").read_text(encoding="utf-8")
    for kind, which, order in choice.described():
        assert f"| {kind} | {which} | {order} |" in text
    names = {name for rule in choice.TABLE for name in rule.order}
    assert names <= set(registry._registered())
    for name in set(registry._registered()) - names:
        assert registry.load_solver(name).preference(linear().program) == np.inf
    for kind in Kind:
        assert [rule for rule in choice.TABLE if rule.kind is kind][-1].variables == np.inf, "every program fits a line"


def test_default_for_mixed_integer():
    assert find_solver(knapsack().program).name == "highs"


def test_unknown_name():
    with pytest.raises(SolverNotFoundError, match="No solver is called 'gurobbi'. Registered: .*highs"):
        solve(linear().program, "gurobbi")


@pytest.mark.parametrize("wrong", [DAQP, 3, object()])
def test_what_is_no_solver(wrong):
    with pytest.raises(SolverNotFoundError, match="expected a name, an instance with name, kinds, requires and solve"):
        solve(linear().program, wrong)


def test_library_not_installed():
    class Absent(Fixed):
        name = "absent"
        requires = ("no_such_library_anywhere",)

    with pytest.raises(SolverNotFoundError, match="'absent' needs no_such_library_anywhere, which is not installed"):
        solve(linear().program, Absent())


def test_wrong_kind_names_alternatives():
    with pytest.raises(UnsupportedError, match=r"'daqp' cannot solve a MILP \(it handles LP, QP\).*can: .*highs"):
        solve(knapsack().program, "daqp")
    with pytest.raises(
        UnsupportedError, match=r"'highs' cannot solve a QP \(it handles LP, MILP\).*can: .*daqp, .*piqp"
    ):
        solve(dense_quadratic().program, HiGHS())


def test_no_solver_for_the_kind():
    if available_solvers(Kind.MIQP):
        pytest.skip("a back end for MIQP is installed")
    with pytest.raises(SolverNotFoundError, match="No installed solver takes a MIQP"):
        solve(nearest_integer_point().program)


def test_indefinite_hessian_is_refused_before_any_solver_sees_it():
    program = Program(gradient=np.zeros(2), hessian=np.diag([1.0, -0.5]))
    with pytest.raises(ProgramError, match="not positive semidefinite .smallest eigenvalue -0.5.*Convexify"):
        solve(program, Fixed(RuntimeError("never called")))


def test_unsymmetric_hessian_is_refused():
    with pytest.raises(ProgramError, match=r"not symmetric. Pass \(H \+ H.T\) / 2"):
        solve(Program(gradient=np.zeros(2), hessian=np.array([[1.0, 1.0], [0.0, 1.0]])))


def test_a_solver_that_takes_nonconvex_programs_gets_them():
    class Nonconvex(Fixed):
        nonconvex = True

    program = Program(gradient=np.zeros(1), hessian=np.array([[-1.0]]), delta_lower=[-1], delta_upper=[1])
    assert solve(program, Nonconvex(Solution(Status.OPTIMAL, np.ones(1)))).objective == -0.5


@pytest.mark.parametrize("status", [Status.OPTIMAL, Status.FEASIBLE])
@pytest.mark.parametrize("point", [[3.0, 1.1], [3.1, 0.0], [-0.1, 0.0]])
def test_a_claim_that_violates_a_row_or_bound_is_failed(status, point):
    solution = run_solver(linear().program, Fixed(Solution(status, np.array(point), message="native text")))
    assert solution.status is Status.FAILED
    assert not solution.found
    assert solution.violation == pytest.approx(0.1)
    assert f"claimed {status} with a violation of 0.1" in solution.message
    assert "native text" in solution.message


def test_a_fractional_claim_is_failed():
    solution = solve(knapsack().program, Fixed(Solution(Status.OPTIMAL, np.array([0.5, 0, 0, 0, 0, 0]))))
    assert solution.status is Status.FAILED


@pytest.mark.parametrize("delta", [None, np.array([np.nan, 1.0]), np.array([np.inf, 1.0])])
def test_a_claim_without_a_finite_point_is_failed(delta):
    solution = solve(linear().program, Fixed(Solution(Status.OPTIMAL, delta)))
    assert solution.status is Status.FAILED
    assert solution.delta is None
    assert "without a finite point" in solution.message


def test_small_violations_pass_relative_to_the_side():
    program = Program(gradient=np.zeros(1), matrix=np.ones((1, 1)), upper=np.array([1e6]))
    answer = Fixed(Solution(Status.OPTIMAL, np.array([1e6 + 0.5])))
    assert solve(program, answer).status is Status.OPTIMAL
    assert solve(program, answer, feasibility_tol=1e-7).status is Status.FAILED


def test_the_core_recomputes_what_the_solver_reports():
    lie = Solution(Status.OPTIMAL, np.array([3.0, 1.0]), objective=-99.0, violation=7.0, solver="other", seconds=-1.0)
    wrong = replace(lie, row_duals=np.array([2.0, 0.5]), bound_duals=np.zeros(2), stationarity=0.0, gap=0.0)
    solution = run_solver(linear().program, Fixed(wrong))
    assert (solution.solver, solution.objective, solution.violation) == ("fixed", -10.0, 0.0)
    assert solution.seconds >= 0
    assert solution.stationarity == pytest.approx(max(abs(-3 + 2.5), abs(-2 + 2 + 1.5)))
    assert solution.complementarity == pytest.approx(0.5 * 1.0)  # the second row has room of 1
    assert (solution.status, solution.claimed) == (Status.FEASIBLE, Status.OPTIMAL)
    assert "claimed optimal, but the multipliers leave a gradient of 0.429 (relative)" in solution.message


@pytest.mark.parametrize("crash", [ZeroDivisionError("native"), ImportError("native"), ValueError("native")])
def test_a_crash_is_chained_and_names_what_was_solved(crash):
    with pytest.raises(SolverError, match="'fixed' crashed on a LP with 2 variables and 2 rows: .*native") as caught:
        solve(linear().program, Fixed(crash))
    assert caught.value.__cause__ is crash


def test_running_out_of_memory_is_chained():
    with pytest.raises(SolverError, match="'fixed' ran out of memory on 2 variables, 2 rows") as caught:
        solve(linear().program, Fixed(MemoryError()))
    assert isinstance(caught.value.__cause__, MemoryError)


@pytest.mark.parametrize("error", [ProgramError("too large"), UnsupportedError("no")])
def test_errors_of_the_library_itself_pass_unchanged(error):
    with pytest.raises(type(error)) as caught:
        solve(linear().program, Fixed(error))
    assert caught.value is error


@pytest.mark.parametrize(
    ("own", "limit", "used"), [(None, 5.0, 5.0), (9.0, 5.0, 5.0), (2.0, 5.0, 2.0), (2.0, None, 2.0)]
)
def test_the_smaller_time_limit_holds(own, limit, used):
    solution = solve(linear().program, Fixed(time_limit=own), time_limit=limit)
    assert f"time_limit={used}" in solution.message


def test_a_back_end_without_a_time_limit_takes_the_program_all_the_same():
    assert solve(linear().program, PIQP(), time_limit=5.0).status is Status.OPTIMAL


@pytest.mark.parametrize("status", list(Status))
def test_every_status_says_what_it_means(status):
    assert len(status.meaning) > 40
    assert str(status) == status.value


def test_outcomes_are_values():
    for status in (Status.NO_POINT, Status.FAILED):
        solution = solve(linear().program, Fixed(Solution(status, message="text")))
        assert (solution.status, solution.found, solution.message) == (status, False, "text")
