from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from infeasible_programs import infeasible_at, proves

from repairopt.certificates.conflict import Conflict, Member, explain_conflict, restricted
from repairopt.certificates.elastic import least_violation, row_violations
from repairopt.certificates.farkas import check_ray, farkas_certificate
from repairopt.errors import ProgramError, SolverError
from repairopt.problems import INF, conflicting_rows, known_programs, linear
from repairopt.program import Program
from repairopt.solve import Status, available_solvers, solve
from repairopt.specify import Source

INFEASIBLE = [p for p in known_programs() if p.status is Status.INFEASIBLE and p.program.integer is None]


@given(st.integers(0, 2**32 - 1), st.sampled_from([1, 1e-3, 1e-6]), st.booleans())
@settings(max_examples=30)
def test_random_conflicts_are_irreducible(seed, depth, boxed):
    program = infeasible_at(depth, boxed=boxed, seed=seed, n=4, m=12)
    conflict = explain_conflict(program)
    assert conflict.irreducible
    assert proves(program, conflict.certificate)
    part, _ = restricted(program, conflict.members)
    assert proves(part, farkas_certificate(part))
    for i in range(len(conflict.members)):
        rest, _ = restricted(program, conflict.members[:i] + conflict.members[i + 1 :])
        assert farkas_certificate(rest) is None
        if rest.m:
            assert solve(rest, "clarabel" if "clarabel" in available_solvers("LP") else "highs").status in (
                Status.OPTIMAL,
                Status.UNBOUNDED,
            )


def hidden_conflict():
    """200 rows of which 3 contradict each other under one bound: a + b >= 3, b - c <= -1, c <= 0.5 - ..., a <= 2.2."""
    random = np.random.default_rng(3)
    n, m = 8, 200
    matrix = random.normal(size=(m, n))
    lower, upper = np.full(m, -INF), np.abs(random.normal(size=m)) + 10
    rows = {17: ([1, 1, 0], 3, INF), 90: ([0, 1, -1], -INF, -1), 151: ([0, 0, 1], -1, 1.5)}
    for i, (entries, low, high) in rows.items():
        matrix[i], lower[i], upper[i] = np.r_[entries, np.zeros(n - 3)], low, high
    sources = tuple(Source("keep label" if i < 100 else "output bound", i, f"row {i}") for i in range(m))
    high = np.full(n, 4.0)
    high[0] = 2.2
    return Program(
        np.ones(n),
        matrix=matrix,
        lower=lower,
        upper=upper,
        delta_lower=np.full(n, -4.0),
        delta_upper=high,
        sources=sources,
    )


def test_three_rows_of_200_and_a_bound():
    program = hidden_conflict()
    assert solve(program, "highs").status is Status.INFEASIBLE
    conflict = explain_conflict(program)
    assert [(m.kind, m.index, m.side, m.limit) for m in conflict.members] == [
        ("row", 17, "lower", 3.0),
        ("row", 90, "upper", -1.0),
        ("row", 151, "upper", 1.5),
        ("bound", 0, "upper", 2.2),
    ]
    assert conflict.irreducible
    assert conflict.constraints == ("keep label", "output bound")
    assert conflict.rows == tuple(program.sources[i] for i in (17, 90, 151))
    assert conflict.bounds == (0,)
    assert str(conflict) == (
        "These 2 constraints cannot hold together within the bounds of 1 variable: 'keep label' (2 rows), "
        "'output bound'.\n"
        "  'keep label', sample 17: row 17: at least 3\n"
        "  'keep label', sample 90: row 90: at most -1\n"
        "  'output bound', sample 151: row 151: at most 1.5\n"
        "  variable 0: at most 2.2\n"
        "If any one of them is dropped, the rest can hold."
    )
    for solver in ("daqp", "clarabel"):
        if solver in available_solvers("LP"):
            assert explain_conflict(program, solver=solver).members == conflict.members


def test_known_conflicts_are_found():
    found = {problem.name: explain_conflict(problem.program) for problem in INFEASIBLE}
    assert found["conflicting rows"].constraints == ("row 0", "row 1", "row 2")
    assert found["quadratic, conflicting rows"].constraints == ("row 0", "row 1", "row 2")
    assert str(found["conflicting rows"]).startswith("These 3 constraints cannot hold together: 'row 0', ")
    assert len(found["row against box"].members) == 4
    assert str(found["row against box"]).startswith("This constraint cannot hold within the bounds of 3 variables: ")


def test_members_of_long_conflicts_are_not_all_listed():
    members = tuple(Member("row", i, "upper", 0.0, Source("c", i)) for i in range(30))
    text = str(Conflict(members, False, None))
    assert "  and 10 more\nNot all may be needed." in text


def test_time_limit_returns_what_is_known():
    program = infeasible_at(1.0, boxed=True, n=40, m=120)
    conflict = explain_conflict(program, time_limit=0.05)
    assert proves(program, conflict.certificate)
    part, _ = restricted(program, conflict.members)
    assert proves(part, farkas_certificate(part))


def test_integer_conflict():
    matrix = np.array([[1.0, -1], [2, 2], [1, 1], [1, 3]])
    program = Program(
        np.ones(2),
        matrix=matrix,
        lower=np.array([-9.0, 5, -INF, -INF]),
        upper=np.array([9.0, 5, 9, 9]),
        delta_lower=np.full(2, -9.0),
        delta_upper=np.full(2, 9.0),
        integer=np.ones(2, dtype=bool),
    )
    conflict = explain_conflict(program)
    assert [(m.index, m.side) for m in conflict.members] == [(1, "lower"), (1, "upper")]
    assert conflict.irreducible
    assert conflict.certificate is None
    assert str(conflict).startswith("The rows of this constraint cannot hold together: 'row 1'.")
    with pytest.raises(ProgramError, match="not found to be infeasible"):
        explain_conflict(replace(program, lower=np.full(4, -INF)))


@pytest.mark.parametrize(("measure", "value"), [("sum", 2.4), ("max", 1.5)])
def test_least_violation_by_hand(measure, value):
    """The corner (1.2, 1.4) misses x + y >= 5 by 2.4; spread evenly, x + 2y <= 5.5, 3x + y <= 6.5, x + y >= 3.5."""
    program = replace(conflicting_rows().program, sources=tuple(Source("c", i) for i in range(3)))
    found = least_violation(program, measure=measure)
    assert found.value == pytest.approx(value)
    np.testing.assert_allclose(found.violations, row_violations(program, found.delta), atol=1e-8)
    assert found.sources[0] in program.sources
    assert "remains" in str(found)


@given(st.integers(0, 2**32 - 1), st.sampled_from(["sum", "max"]))
@settings(max_examples=20)
def test_least_violation_is_least(seed, measure):
    program = infeasible_at(1.0, boxed=True, seed=seed)
    found = least_violation(program, measure=measure)
    others = np.clip(found.delta + 0.1 * np.random.default_rng(seed).normal(size=(50, program.n)), -10, 10)
    for point in others:
        worse = row_violations(program, point)
        assert (worse.sum() if measure == "sum" else worse.max()) >= found.value - 1e-8
    other = "clarabel" if "clarabel" in available_solvers("LP") else "scipy"
    assert least_violation(program, measure=measure, solver=other).value == pytest.approx(found.value, rel=1e-6)


def test_rows_are_added_where_there_are_many():
    random = np.random.default_rng(0)
    n, m = 30, 20_000
    program = Program(
        np.ones(n),
        matrix=random.normal(size=(m, n)),
        upper=random.exponential(size=m) + 0.5,
        delta_lower=np.full(n, -1.0),
        delta_upper=np.full(n, 1.0),
    )
    shifted = replace(
        program, lower=np.where(np.arange(m) == 7, 6.0, -INF), upper=program.upper + 7.0 * (np.arange(m) == 7)
    )
    proof = farkas_certificate(shifted)
    assert proves(shifted, proof)
    assert np.count_nonzero(proof.ray) <= n + 1
    least = least_violation(shifted, measure="max")
    assert 0 < least.value < 6
    known = check_ray(shifted, proof.ray)
    assert least.value >= known.margin / np.abs(known.ray).sum() - 1e-9
    assert least_violation(program).value == 0
    assert str(least_violation(program)) == "All rows can hold together."


def test_a_feasible_program_has_no_violation_and_limits_are_named():
    assert least_violation(linear().program).value == 0
    random = np.random.default_rng(0)
    program = Program(
        np.ones(200),
        matrix=random.normal(size=(300, 200)),
        upper=random.normal(size=300) - 1,
        delta_lower=-np.ones(200),
    )
    with pytest.raises(SolverError, match="Raise time_limit"):
        least_violation(program, time_limit=1e-9)
