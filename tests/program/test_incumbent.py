"""The first point: feasible, as good as enumeration on small programs, quick on large ones; and the gap beside it."""

import time
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import numpy as np
import pytest
from hypothesis import given, settings, strategies as st
from integer_instances import broken_samples, enumerated, singles, sparse_change, wrong_samples

from repairopt import Kind, Program, Solution, Status, UnsupportedError, available_solvers
from repairopt.program import allow_broken, grid, limit_changes, maximize_fixed, solve, solve_integer
from repairopt.program.integer import mixed_integer
from repairopt.program.integer.incumbent import find_incumbent
from repairopt.program.integer.mixed_integer import groups_bound, relaxation_bound

quadratic = pytest.mark.skipif(not available_solvers("MIQP"), reason="no MIQP back end is installed")


def check(integer, found):
    """Feasible, within the limits, and worth what it says."""
    assert integer.allows(found.chosen)
    assert integer.restricted(found.chosen).violation(found.delta) <= 1e-6
    assert integer.program.violation(integer.lift(found.delta, found.chosen)) <= 1e-6
    assert found.objective == pytest.approx(integer.objective(found.delta, found.chosen))


@given(seed=st.integers(0, 10_000), linear=st.booleans())
@settings(max_examples=15)
def test_few_changes_come_close_to_all_subsets(seed, linear):
    integer = limit_changes(sparse_change(8, seed, rows=12, linear=linear), 3)
    found = find_incumbent(integer)
    check(integer, found)
    assert found.objective <= enumerated(integer) + 0.02 * abs(enumerated(integer)) + 1e-6
    assert np.count_nonzero(found.delta) <= 3


@given(seed=st.integers(0, 10_000), linear=st.booleans())
@settings(max_examples=15)
def test_allowed_breaks_come_close_to_all_subsets(seed, linear):
    integer = allow_broken(broken_samples(10, 5, seed, linear=linear), 2, singles(10))
    found, best = find_incumbent(integer), enumerated(integer)
    check(integer, found)
    assert best - 1e-6 <= found.objective <= best + 0.02 * abs(best) + 1e-6
    assert max(relaxation_bound(integer), groups_bound(integer)) <= best + 1e-6


@pytest.mark.parametrize("seed", range(4))
def test_a_choice_is_found_where_nothing_chosen_is_infeasible(seed):
    program = wrong_samples(40, 6, 6, seed)
    most = solve_integer(maximize_fixed(program, singles(6)), time_limit=10, gap_tol=1e-6)
    integer = allow_broken(program, int(most.objective) + 2, singles(40))
    found = find_incumbent(integer)
    check(integer, found)


def test_weights_that_must_change_together_are_found():
    program = Program(
        np.ones(6),
        matrix=np.array([[0.0, 0.0, 1.0, 0.0, 1.0, 0.0]]),
        lower=np.array([1.8]),
        delta_lower=-np.ones(6),
        delta_upper=np.ones(6),
    )
    integer = limit_changes(program, 3)
    found = find_incumbent(integer)
    check(integer, found)
    assert found.objective == pytest.approx(0.8)
    assert find_incumbent(limit_changes(program, 1)) is None


def test_grid_points_are_found_where_plain_rounding_violates_rows():
    program = sparse_change(24)
    integer = grid(program, 0.05)
    found = find_incumbent(integer)
    assert program.violation(found.delta) <= 1e-6
    assert np.allclose(found.delta / 0.05, np.round(found.delta / 0.05))
    least = solve(program).objective
    assert least <= found.objective <= least + 0.01 * abs(least)


def test_the_same_seed_gives_the_same_choice():
    integer = limit_changes(sparse_change(12, rows=20), 4)
    assert np.array_equal(find_incumbent(integer, seed=3).chosen, find_incumbent(integer, seed=3).chosen)


def test_a_time_limit_returns_the_best_point_so_far():
    integer = limit_changes(sparse_change(60), 8)
    started = time.perf_counter()
    found = find_incumbent(integer, time_limit=0.3)
    assert time.perf_counter() - started < 5.0
    check(integer, found)
    assert find_incumbent(integer, time_limit=0.0) is None


@pytest.mark.slow
def test_two_thousand_rows_take_about_a_second():
    integer = allow_broken(broken_samples(2000), 5, singles(2000))
    started = time.process_time()
    found = find_incumbent(integer)
    assert time.process_time() - started < 6.0
    check(integer, found)
    assert found.objective <= -0.385  # branch and bound has not found as much after a minute
    bound = groups_bound(integer)
    assert found.objective - 0.9 < bound <= found.objective


# ---------------------------------------------------------------- with a proven bound


@quadratic
def test_a_time_limit_gives_the_incumbent_and_its_gap():
    integer = allow_broken(broken_samples(200), 5, singles(200))
    found = solve_integer(integer, time_limit=1.0)
    assert found.status is Status.FEASIBLE
    assert found.seconds < 20.0
    assert found.bound < found.objective
    assert found.gap == pytest.approx((found.objective - found.bound) / abs(found.objective))
    assert integer.restricted(found.chosen).violation(found.delta) <= 1e-6


@pytest.mark.slow
@quadratic
def test_eight_of_twenty_four_weights_are_proven_to_one_percent():
    found = solve_integer(limit_changes(sparse_change(24), 8), gap_tol=0.01)
    assert found.status is Status.OPTIMAL
    assert found.gap <= 0.01
    assert found.objective == pytest.approx(-7.38737, abs=1e-4)


def test_what_no_choice_can_satisfy_is_infeasible():
    program = Program(
        np.ones(3), matrix=np.ones((1, 3)), lower=np.array([2.5]), delta_lower=-np.ones(3), delta_upper=np.ones(3)
    )
    found = solve_integer(limit_changes(program, 2), time_limit=10)
    assert found.status is Status.INFEASIBLE
    assert found.delta is None
    assert np.isnan(found.objective)


def test_a_bound_of_the_relaxation_can_be_proof_enough():
    found = solve_integer(allow_broken(broken_samples(30, 4), 30, singles(30)))
    assert found.status is Status.OPTIMAL
    assert found.solver == "incumbent"
    assert found.message == ""


def test_a_back_end_that_cannot_take_the_kind_is_refused_before_the_search():
    with pytest.raises(UnsupportedError, match="daqp"):
        solve_integer(limit_changes(sparse_change(24), 8), "daqp")


@dataclass(frozen=True)
class Recording:
    """Remembers what it was given, and proves little."""

    start: Any = None
    gap_tol: float = 1e-6
    time_limit: float | None = None

    name: ClassVar[str] = "recording"
    kinds: ClassVar[frozenset[Kind]] = frozenset(Kind)
    requires: ClassVar[tuple[str, ...]] = ()
    seen: ClassVar[list[Any]] = []

    def solve(self, program):
        self.seen.append((self, program))
        return Solution(Status.FEASIBLE, self.start, bound=program.objective(self.start) - 0.5, message="stopped")


def test_a_back_end_with_start_and_gap_gets_both():
    integer = limit_changes(sparse_change(24), 8)
    found = solve_integer(integer, Recording(), gap_tol=0.005, time_limit=20.0)
    given_, program = Recording.seen[-1]
    assert given_.gap_tol == 0.005
    assert given_.time_limit < 20.0
    assert program.violation(given_.start) <= 1e-6
    assert found.status is Status.FEASIBLE
    assert found.bound == pytest.approx(found.objective - 0.5)
    assert found.message == "stopped"
    kept = solve_integer(integer, Recording(gap_tol=0.2), gap_tol=0.005, time_limit=20.0)
    assert Recording.seen[-1][0].gap_tol == 0.2
    assert kept.objective == pytest.approx(found.objective)


@dataclass(frozen=True)
class Sloppy(Recording):
    """Claims a choice that only big numbers and tolerances allow."""

    name: ClassVar[str] = "sloppy"

    def solve(self, program):
        delta = np.concatenate([np.full(24, 1e-9), np.zeros(24)])
        return Solution(Status.OPTIMAL, delta, bound=-1e3)


def test_points_of_a_back_end_count_only_with_their_choice_fixed():
    integer = limit_changes(sparse_change(24), 8)
    best = find_incumbent(integer)
    found = solve_integer(integer, Sloppy(), time_limit=20.0)
    assert found.objective == pytest.approx(best.objective)
    assert found.solver == "incumbent"


def test_sparse_rows_give_the_same_as_dense_ones():
    from scipy import sparse

    program = broken_samples(12, 5, 2)
    dense = find_incumbent(allow_broken(program, 2, singles(12)))
    other = replace(program, matrix=sparse.csr_matrix(program.matrix))
    integer = allow_broken(other, 2, singles(12))
    assert find_incumbent(integer).objective == pytest.approx(dense.objective, abs=1e-7)
    assert groups_bound(integer) == pytest.approx(groups_bound(allow_broken(program, 2, singles(12))), abs=1e-6)


def test_bounds_end_at_the_limit_too(monkeypatch):
    """The relaxation of a choice among 1,100 weights took 90 s where a repair had one."""
    given = []
    monkeypatch.setattr(mixed_integer, "solve", lambda *args, **kwargs: given.append(kwargs) or solve(*args, **kwargs))
    integer, started = limit_changes(sparse_change(300, 0, rows=200), 20), time.perf_counter()
    assert relaxation_bound(integer, time_limit=1e-3) == -np.inf or time.perf_counter() - started < 2.0
    assert groups_bound(allow_broken(broken_samples(30, 8, 1), 2, singles(30)), time_limit=0.5) > -np.inf
    solve_integer(limit_changes(sparse_change(8, 3, rows=12), 3), time_limit=2.0)
    assert len(given) >= 4
    limits = [one["time_limit"] for one in given]
    assert all(limit is not None and 0 < limit <= 2.0 for limit in limits), limits


def test_no_back_end_is_asked_when_the_time_is_up(monkeypatch):
    integer = limit_changes(sparse_change(30, 0, rows=20), 5)
    monkeypatch.setattr(mixed_integer, "relaxation_bound", lambda *_, **__: time.sleep(0.3) or -np.inf)
    found = solve_integer(integer, time_limit=0.25)
    assert found.status is Status.FEASIBLE
    assert found.message == "time limit"
    check(integer, found)
