"""What the core makes of answers that are wrong, unproven or missing: recheck, proofs, scaling, other back ends."""

from dataclasses import dataclass, field, replace
from typing import Any, ClassVar

import numpy as np
import pytest

from repairopt.errors import ProgramError, SolverError
from repairopt.program import (
    Kind,
    LowRankHessian,
    Program,
    Solution,
    Source,
    Status,
    backends as registry,
    known_programs,
    memory,
    run_solver,
    solve,
)
from repairopt.program.examples import conflicting_rows, dense_quadratic, integer_conflict, linear
from repairopt.program.rechecking import residuals, tolerance
from repairopt.program.scaling import equilibrate
from repairopt.solvers import CVXPY, DAQP, PIQP, HiGHS


@dataclass(frozen=True)
class Answering:
    """A back end that gives its answers one after the other, and counts."""

    answers: tuple[Any, ...] = ()
    asked: list[Program] = field(default_factory=list)

    name: ClassVar[str] = "answering"
    kinds: ClassVar[frozenset[Kind]] = frozenset(Kind)
    requires: ClassVar[tuple[str, ...]] = ()

    def solve(self, program: Program) -> Solution:
        self.asked.append(program)
        answer = self.answers[min(len(self.asked), len(self.answers)) - 1]
        if isinstance(answer, Exception):
            raise answer
        return answer


def ended(status):
    """The known programs that end so."""
    return [problem for problem in known_programs() if problem.status is status]


def as_default(monkeypatch, backend, *others):
    """Makes a back end the first choice, followed by others."""
    import repairopt.program.solve_program as module

    plain = registry.find_solver
    monkeypatch.setattr(module, "find_solver", lambda p, s=None: backend if s is None else plain(p, s))
    monkeypatch.setattr(module, "preferred_solvers", lambda p: [backend.name, *others])


# ------------------------------------------------------------------------------------------------ residuals


@pytest.mark.parametrize("problem", ended(Status.OPTIMAL), ids=lambda p: p.name)
def test_a_right_answer_has_no_residuals(problem):
    found = solve(problem.program)
    assert found.status is Status.OPTIMAL
    assert found.claimed is None
    if problem.program.integer is None:
        assert found.gap <= 1e-6
        looked = residuals(problem.program, found.delta, found.row_duals, found.bound_duals)
        assert looked.relative_stationarity <= 1e-6
        assert looked.complementarity == found.complementarity


def test_multipliers_of_bounds_are_what_is_left_of_the_gradient():
    problem = dense_quadratic()
    looked = residuals(problem.program, problem.delta, np.array([2.0, 0.0, -1.0]))
    assert looked.relative_stationarity <= 1e-12
    assert looked.gap <= 1e-12


@pytest.mark.parametrize(
    ("delta", "rows", "bounds", "text"),
    [
        ([3, 1], [2, 0], [1, 1], "leave a gradient of"),
        ([2, 1], [2, 0], [1, 0], "leave a gap of"),
        ([3, 1], [2, -1], [2, 3], "sides that are infinite hold a gradient of"),
        ([3, 1], [np.nan, 0], [1, 0], "its multipliers are not finite"),
    ],
)
def test_optimal_is_taken_back_where_multipliers_disagree(delta, rows, bounds, text):
    answer = Solution(Status.OPTIMAL, np.array(delta, float), message="native")
    answer = replace(answer, row_duals=np.array(rows, float), bound_duals=np.array(bounds, float))
    found = run_solver(linear().program, Answering((answer,)))
    assert (found.status, found.claimed) == (Status.FEASIBLE, Status.OPTIMAL)
    assert text in found.message
    assert found.message.endswith("native")


def test_the_claim_stays_where_multipliers_bear_it_out():
    right = Solution(Status.OPTIMAL, np.array([3.0, 1.0]), row_duals=np.array([2.0, 0]), bound_duals=np.array([1.0, 0]))
    found = run_solver(linear().program, Answering((right,)))
    assert (found.status, found.claimed, found.gap) == (Status.OPTIMAL, None, 0.0)


@pytest.mark.parametrize("factor", [1e-6, 1.0, 1e6])
def test_residuals_do_not_depend_on_the_unit_of_the_objective(factor):
    program = linear().program
    scaled = replace(program, gradient=program.gradient * factor, constant=program.constant * factor)
    duals = (factor * np.array([1.9, 0.0]), factor * np.array([1.1, 0.1]))
    looked = residuals(scaled, np.array([2.9, 1.0]), *duals)
    assert looked.gap == pytest.approx(
        residuals(program, np.array([2.9, 1.0]), duals[0] / factor, duals[1] / factor).gap
    )


def test_a_bound_above_the_own_point_of_a_mixed_integer_answer_is_not_believed():
    (problem,) = [p for p in known_programs("MILP") if p.name == "knapsack"]
    lie = Solution(Status.OPTIMAL, problem.delta, bound=-20.0)
    found = run_solver(problem.program, Answering((lie,)))
    assert (found.status, found.claimed) == (Status.FEASIBLE, Status.OPTIMAL)
    assert "its bound is 6 above its own point" in found.message


def test_tolerance_goes_by_the_precision_of_the_point():
    assert tolerance(np.zeros(1)) == 1e-6
    assert tolerance(np.zeros(1, dtype=np.float32)) == 1e-3
    near = Solution(
        Status.OPTIMAL,
        np.array([2.9999, 1.0], dtype=np.float32),
        row_duals=np.array([2.0, 0]),
        bound_duals=np.array([1.0, 0]),
    )
    assert run_solver(linear().program, Answering((near,))).status is Status.OPTIMAL
    double = replace(near, delta=near.delta.astype(np.float64))
    assert run_solver(linear().program, Answering((double,))).status is Status.FEASIBLE


def test_multipliers_by_name():
    sources = (Source("keep labels", 7, "class 1 over class 0"), Source("gap"))
    program = replace(linear().program, sources=sources)
    found = solve(program, "highs").named_duals(program)
    assert [(one.source, one.side) for one in found] == [(sources[0], "upper")]
    assert found[0].value == pytest.approx(2.0)
    slightly = replace(program, upper=program.upper + [0.01, 0.0])
    gain = solve(program, "highs").objective - solve(slightly, "highs").objective
    assert gain == pytest.approx(0.01 * found[0].value)


# ------------------------------------------------------------------------------------------------ infeasible


@pytest.mark.parametrize(
    "problem", [p for p in known_programs() if p.status is Status.INFEASIBLE], ids=lambda p: p.name
)
def test_infeasible_comes_with_a_checked_proof(problem):
    found = solve(problem.program)
    assert found.status is Status.INFEASIBLE
    if problem.program.integer is None:
        ray = found.proof.ray
        combined, (low, high) = problem.program.matrix.T @ ray, problem.program.bounds()
        small = np.abs(combined) <= 1e-12
        least = sum(w * (low[j] if w > 0 else high[j]) for j, w in enumerate(combined) if not small[j])
        used = ray != 0
        allowed = ray[used] @ np.where(ray > 0, problem.program.upper, problem.program.lower)[used]
        assert least > allowed
    else:
        assert found.proof is None  # multipliers prove nothing about whole numbers


def test_a_proof_can_be_left_out():
    assert solve(conflicting_rows().program, prove=False).proof is None
    assert solve(integer_conflict().program).attempts[0].solver == "highs"


def test_infeasible_is_refuted_by_a_point():
    wrong = Answering((Solution(Status.INFEASIBLE, message="native"),))
    found = solve(linear().program, wrong)
    assert (found.status, found.claimed) == (Status.FAILED, Status.INFEASIBLE)
    assert "claimed infeasible, but a point that holds all rows was found" in found.message
    assert [one.scaled for one in found.attempts] == [False, True]
    other = solve(linear().program, Answering(wrong.answers), fallback=True)
    assert (other.status, other.solver, len(other.attempts)) == (Status.OPTIMAL, "daqp", 3)


def test_a_layer_with_further_constraints_is_believed():
    pytest.importorskip("cvxpy")
    import cvxpy

    found = solve(linear().program, CVXPY(extra=lambda change: [cvxpy.sum(change) >= 9]))
    assert (found.status, found.proof, len(found.attempts)) == (Status.INFEASIBLE, None, 1)


# ------------------------------------------------------------------------------------------------ further tries


def test_trouble_is_answered_by_scaling_and_recorded():
    failing = Answering((Solution(Status.FAILED, message="numbers"), Solution(Status.FEASIBLE, np.zeros(2))))
    found = solve(linear().program, failing)
    assert found.status is Status.FEASIBLE
    assert [(one.status, one.scaled) for one in found.attempts] == [(Status.FAILED, False), (Status.FEASIBLE, True)]
    assert "numbers" in str(found.attempts[0])
    assert failing.asked[0] is not failing.asked[1]


def test_then_the_next_back_end_is_asked(monkeypatch):
    failing = Answering((Solution(Status.FAILED, message="numbers"),))
    as_default(monkeypatch, failing, "piqp", "highs")
    found = solve(linear().program)
    assert (found.status, found.solver) == (Status.OPTIMAL, "piqp")
    assert [one.solver for one in found.attempts] == ["answering", "answering", "piqp"]
    named = solve(linear().program, Answering(failing.answers))
    assert (named.status, len(named.attempts)) == (Status.FAILED, 2)  # who chose a back end gets its answer


def test_a_crash_of_the_default_goes_to_the_next_one(monkeypatch):
    as_default(monkeypatch, Answering((ValueError("inside"),)), "highs")
    found = solve(linear().program)
    assert (found.status, found.solver) == (Status.OPTIMAL, "highs")
    assert "ValueError: inside" in found.attempts[0].message
    as_default(monkeypatch, Answering((ValueError("inside"),)))
    with pytest.raises(SolverError, match="'answering' crashed on a LP .*inside"):
        solve(linear().program)


def test_no_further_try_where_it_cannot_help():
    licence = Answering((Solution(Status.FAILED, message="no licence", retry=False),))
    assert len(solve(linear().program, licence).attempts) == 1
    stopped = Answering((Solution(Status.FAILED, message="Ctrl-C", interrupted=True),))
    found = solve(linear().program, stopped)
    assert (found.interrupted, len(found.attempts)) == (True, 1)


def test_the_best_of_several_answers_is_returned():
    rough = Solution(Status.OPTIMAL, np.array([2.0, 1.0]), row_duals=np.array([2.0, 0.0]))
    found = solve(linear().program, Answering((rough, Solution(Status.FAILED))))
    assert (found.status, found.claimed) == (Status.FEASIBLE, Status.OPTIMAL)
    assert len(found.attempts) == 2


# ------------------------------------------------------------------------------------------------ scaling


@pytest.mark.parametrize("problem", known_programs(), ids=lambda p: p.name)
@pytest.mark.parametrize("backend", [DAQP(), PIQP(), HiGHS()], ids=lambda b: b.name)
def test_scaled_programs_have_the_same_answers(problem, backend):
    if problem.program.kind not in backend.kinds:
        return
    found = run_solver(problem.program, backend, scaled=True)
    assert found.status is problem.status, found.message
    if problem.status is Status.OPTIMAL:
        assert found.objective == pytest.approx(problem.objective, rel=1e-6, abs=1e-6)
        if problem.program.integer is None:
            assert found.gap <= 1e-6  # so the multipliers came back right, too


def test_scaling_is_by_powers_of_two_and_evens_out():
    random = np.random.default_rng(0)
    matrix = (
        random.normal(size=(40, 12)) * 10.0 ** random.uniform(-6, 6, size=(40, 1)) * 10.0 ** random.uniform(-3, 3, 12)
    )
    hessian = LowRankHessian(10.0 ** random.uniform(-4, 4, 12), random.normal(size=(12, 2)))
    program = Program(gradient=random.normal(size=12), hessian=hessian, matrix=matrix, upper=np.ones(40))
    scale = equilibrate(program)
    for factors in (scale.rows, scale.columns, np.array([scale.cost])):
        np.testing.assert_array_equal(np.exp2(np.round(np.log2(factors))), factors)
    largest = np.abs(scale.program.matrix).max(axis=1)
    assert largest.max() / largest.min() < 100 < np.abs(matrix).max(axis=1).max() / np.abs(matrix).max(axis=1).min()
    point = random.normal(size=12)
    assert scale.program.objective(scale.start(point)) == pytest.approx(scale.cost * program.objective(point))


def test_integer_variables_keep_their_unit():
    for problem in known_programs("MILP"):
        scale = equilibrate(problem.program)
        np.testing.assert_array_equal(scale.columns[problem.program.integer], 1.0)


def test_a_badly_scaled_program_that_fails_as_it_is_succeeds_scaled():
    random = np.random.default_rng(3)
    n, m = 30, 60
    matrix = random.normal(size=(m, n)) * 10.0 ** random.uniform(-7, 7, size=(m, 1))
    inside = random.normal(size=n)
    upper = matrix @ inside + np.abs(matrix).sum(axis=1) * random.exponential(size=m)
    program = Program(
        gradient=random.normal(size=n),
        matrix=matrix,
        upper=upper,
        delta_lower=np.full(n, -1e3),
        delta_upper=np.full(n, 1e3),
    )
    found = solve(program)
    assert found.status is Status.OPTIMAL
    assert found.gap <= 1e-6
    assert found.objective == pytest.approx(run_solver(program, "highs", scaled=True).objective, rel=1e-6)


# ------------------------------------------------------------------------------------------------ memory


def test_what_would_not_fit_is_refused_before_anything_is_allocated():
    n = 60_000
    program = Program(gradient=np.ones(n), hessian=LowRankHessian(np.ones(n), np.zeros((n, 1))))
    with pytest.raises(
        ProgramError, match=r"'piqp' needs about 107\.3 GiB \(115,200,000,000 bytes\) for 60,000 variables"
    ):
        solve(program, "piqp", memory_limit=2**34)
    found = solve(program, memory_limit=2**34)  # left to the core, one that fits is taken
    assert (found.status, found.solver) == (Status.OPTIMAL, "woodbury")


def test_the_limit_is_what_the_machine_has_free(monkeypatch):
    monkeypatch.setattr(memory, "available_memory", lambda: 2.0**27)
    program = Program(gradient=np.ones(3000), hessian=np.eye(3000))
    with pytest.raises(ProgramError, match=r"'piqp' needs about .* MiB .*, and 115.2 MiB .* may be used. Choose fewer"):
        solve(program, "piqp")


def test_free_memory_is_known():
    assert 2**20 < memory.available_memory() < 2**50
    assert memory.readable(12) == "12 bytes"
    assert memory.readable(3 * 2**30) == "3.0 GiB (3,221,225,472 bytes)"


# ------------------------------------------------------------------------------------------------ native output


def test_the_native_log_is_shown_and_kept(capsys):
    found = solve(linear().program, HiGHS(verbose=True))
    assert "HiGHS" in found.log
    assert capsys.readouterr().out == found.log
    assert solve(linear().program, HiGHS()).log == ""
    assert capsys.readouterr().out == ""
