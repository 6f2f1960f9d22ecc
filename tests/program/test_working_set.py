import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings, strategies as st
from row_kinds import FeatureRows, ScreenedRows
from sample_networks import chain
from scipy import sparse

from repairopt.errors import ProgramError
from repairopt.network import Engine
from repairopt.program import Program, Solution, Status, solve, solve_working_set
from repairopt.program.working_sets import working_set
from repairopt.program.working_sets.relaxed_program import certified_gap
from repairopt.program.working_sets.row_oracles import DenseRows, RowOracle
from repairopt.solvers import DAQP, PIQP, HiGHS
from repairopt.specify import KeepLabels, anchor
from repairopt.surrogate import LinearizedRows, linearize

INF = np.inf


def head_and_rows(n, m, seed=0, box=1.0, latent=8):
    """Correlated rows that zero satisfies, a singular Hessian, a box."""
    random = np.random.default_rng(seed)
    mixing = random.normal(size=(latent, n)) / np.sqrt(latent)
    matrix = 0.3 * random.normal(size=(m, n)) + random.normal(size=(m, latent)) @ mixing
    factor = random.normal(size=(n, max(1, n // 3))) / np.sqrt(n)
    bounds = {"delta_lower": np.full(n, -box), "delta_upper": np.full(n, box)}
    head = Program(gradient=random.normal(size=n), hessian=factor @ factor.T, constant=2.0, **bounds)
    return head, matrix, -random.exponential(size=m)


def everything(head, matrix, lower, upper=None, solver=None):
    upper = np.full(len(lower), INF) if upper is None else upper
    return solve(replace(head, matrix=matrix, lower=lower, upper=upper), solver or PIQP())


class Counted:
    """An oracle that counts what is asked of it."""

    def __init__(self, rows):
        self.rows_of, self.m = rows, rows.m
        self.passes, self.built = 0, []

    def violations(self, delta):
        self.passes += 1
        return self.rows_of.violations(delta)

    def rows(self, index):
        self.built.extend(index.tolist())
        return self.rows_of.rows(index)


@pytest.mark.parametrize("solver", [None, "daqp", "piqp", "clarabel", "woodbury"])
@pytest.mark.parametrize(("n", "m"), [(5, 3000), (20, 4000), (40, 3000)])
def test_as_everything_at_once(solver, n, m):
    if solver == "clarabel":
        pytest.importorskip("clarabel")
    head, matrix, lower = head_and_rows(n, m)
    found = solve_working_set(head, DenseRows(matrix, lower), solver=solver, batch=50)
    expected = everything(head, matrix, lower)
    nearly = solver == "clarabel"  # says AlmostSolved in between
    assert found.status is Status.OPTIMAL or (nearly and found.status is Status.FEASIBLE), found.message
    assert found.objective == pytest.approx(expected.objective, rel=1e-7, abs=1e-8)
    assert found.violation <= 1e-9
    assert (lower - matrix @ found.delta).max() <= 1e-9
    assert found.largest < m / 3


def test_multipliers_of_all_rows_prove_the_answer():
    head, matrix, lower = head_and_rows(30, 5000)
    found = solve_working_set(head, DenseRows(matrix, lower))
    program = replace(head, matrix=matrix, lower=lower, upper=np.full(len(lower), INF))
    assert found.row_duals.shape == (5000,)
    assert np.count_nonzero(found.row_duals) <= len(found.working)
    slope = program.hessian @ found.delta + program.gradient + matrix.T @ found.row_duals + found.bound_duals
    assert np.abs(slope).max() < 1e-7
    assert found.row_duals.max() <= 1e-9  # lower sides pull down
    gap = certified_gap(program, found)
    assert gap == pytest.approx(found.distance, abs=1e-10)
    assert 0 <= found.distance <= 1e-8 * (1 + abs(found.objective))
    assert found.bound == found.objective - found.distance
    assert "5000 rows" in found.message


def test_one_pass_a_round_and_only_few_rows_built():
    head, matrix, lower = head_and_rows(30, 20_000)
    oracle = Counted(DenseRows(matrix, lower))
    found = solve_working_set(head, oracle, batch=100)
    assert found.passes == oracle.passes == found.rounds + 1
    assert found.rounds <= 12
    assert len(oracle.built) <= 100 * found.rounds
    assert found.pass_seconds > 0
    assert found.solve_seconds > 0


@pytest.mark.parametrize(("objective", "kept"), [(7.0, 8), (5.0, 8), (7.1, 1)])
def test_rows_are_dropped_only_while_the_objective_rises(objective, kept):
    """Else the same rows may come and go forever; a program on which they did is in test_known_answers.py."""
    head, matrix, lower = head_and_rows(5, 40)
    loop = working_set._Loop(head, DenseRows(matrix, lower), None, 1, 1e-9, 1e-8, np.zeros(5))
    loop.working.add(np.arange(7), loop.oracle.rows(np.arange(7)))
    loop.working.slack_rounds[:] = 5
    loop.excess, loop.dropped_at = np.full(40, -1.0), 7.0
    loop.excess[30] = 1.0
    loop.solution = Solution(Status.OPTIMAL, np.zeros(5), objective)
    loop.update(np.array([30]))
    assert len(loop.working.index) == kept
    assert loop.working.index[-1] == 30
    assert loop.dropped_at == max(7.0, objective)


def test_few_rows_are_given_at_once():
    head, matrix, lower = head_and_rows(30, 140)
    found = solve_working_set(head, DenseRows(matrix, lower), batch=10)
    assert (found.rounds, found.passes, found.largest) == (1, 0, 140)


def test_two_sided_rows_equalities_and_rows_of_the_head():
    head, matrix, lower = head_and_rows(12, 2000)
    upper = 0.2 - lower
    lower[5] = upper[5] = 0.0
    lower[7], upper[8] = -INF, INF
    own = np.ones((1, 12))
    head = replace(head, matrix=own, lower=np.array([-0.2]), upper=np.array([0.2]))
    found = solve_working_set(head, DenseRows(matrix, lower, upper), batch=40)
    whole = replace(
        head,
        matrix=np.vstack([own, matrix]),
        lower=np.concatenate([[-0.2], lower]),
        upper=np.concatenate([[0.2], upper]),
    )
    expected = solve(whole, PIQP())
    assert found.objective == pytest.approx(expected.objective, rel=1e-7)
    assert whole.violation(found.delta) <= 1e-8
    assert found.row_duals.shape == (2001,)
    assert certified_gap(whole, found) <= 1e-7


def test_slack_variables_behind_the_weights():
    head, matrix, lower = head_and_rows(12, 2000)
    wide = replace(
        head,
        gradient=np.append(head.gradient, 1.0),
        hessian=np.pad(head.hessian, (0, 1)),
        matrix=np.append(np.ones(12), 1.0)[None, :],
        lower=np.array([2.0]),
        upper=np.array([INF]),
        delta_lower=np.append(head.delta_lower, 0.0),
        delta_upper=np.append(head.delta_upper, INF),
        n_delta=12,
    )
    rows = np.hstack([matrix, np.zeros((2000, 1))])
    whole = replace(
        wide, matrix=np.vstack([wide.matrix, rows]), lower=np.append(2.0, lower), upper=np.full(2001, INF), n_delta=None
    )
    for oracle in (DenseRows(matrix, lower), SparseRows(sparse.csr_matrix(matrix), lower)):
        found = solve_working_set(wide, oracle, batch=40)
        assert found.objective == pytest.approx(solve(whole, PIQP()).objective, rel=1e-7)


class SparseRows:
    """What a user's own oracle may look like."""

    def __init__(self, matrix, lower):
        self.matrix, self.lower, self.m = matrix, lower, len(lower)

    def violations(self, delta):
        return self.lower - self.matrix @ delta

    def rows(self, index):
        return self.matrix[index], self.lower[index], np.full(len(index), INF)


def test_linear_programs():
    head, matrix, lower = head_and_rows(15, 3000)
    head = replace(head, hessian=None)
    for solver in (None, HiGHS()):
        found = solve_working_set(head, DenseRows(matrix, lower), solver=solver, batch=30)
        assert found.objective == pytest.approx(everything(head, matrix, lower, solver=HiGHS()).objective, rel=1e-7)


def test_unbounded_until_the_rows_hold_it():
    n, m = 6, 4000
    random = np.random.default_rng(1)
    matrix = random.normal(size=(m, n))
    head = Program(gradient=random.normal(size=n))
    # all rows together make a polytope, the 20 tightest leave it open
    lower = -1.0 - random.exponential(size=m)
    found = solve_working_set(head, DenseRows(matrix, lower), batch=3)
    assert found.status is Status.OPTIMAL
    assert found.objective == pytest.approx(everything(head, matrix, lower, solver=HiGHS()).objective, rel=1e-7)
    half = np.abs(matrix)
    found = solve_working_set(replace(head, gradient=np.ones(n)), DenseRows(-half, lower), batch=3)
    assert found.status is Status.UNBOUNDED
    assert found.delta is None


def test_infeasible_with_a_ray_for_all_rows():
    pytest.importorskip("clarabel")
    head, matrix, lower = head_and_rows(8, 3000)
    matrix[2000], matrix[2001] = matrix[1000], -matrix[1000]
    lower[2000] = lower[2001] = 0.5
    found = solve_working_set(head, DenseRows(matrix, lower), solver="clarabel", batch=20)
    assert found.status is Status.INFEASIBLE
    assert found.delta is None
    combined = matrix.T @ found.ray
    least = np.where(combined > 0, -1.0, 1.0) @ combined
    assert least > found.ray @ lower  # no point of the box satisfies the sum of the rows


def test_a_start_that_violates_rows():
    head, matrix, lower = head_and_rows(20, 4000)
    lower += matrix @ np.random.default_rng(1).uniform(-0.5, 0.5, size=20)
    assert lower.max() > 0.5
    found = solve_working_set(head, DenseRows(matrix, lower), batch=40)
    expected = everything(head, matrix, lower)
    assert expected.status is found.status is Status.OPTIMAL
    assert found.objective == pytest.approx(expected.objective, rel=1e-7)
    again = solve_working_set(head, DenseRows(matrix, lower), batch=40, start=found.delta)
    assert again.objective == pytest.approx(found.objective, rel=1e-7)


def test_degenerate_repeated_and_badly_scaled_rows():
    head, matrix, lower = head_and_rows(15, 1000)
    matrix, lower = np.vstack([matrix] * 4), np.concatenate([lower] * 4)
    lower[:50] = 0.0  # tight at the start
    sizes = 10.0 ** np.random.default_rng(0).uniform(-3, 3, size=4000)
    expected = everything(head, matrix, lower)
    found = solve_working_set(head, DenseRows(matrix * sizes[:, None], lower * sizes), batch=30)
    assert found.status is Status.OPTIMAL
    assert found.objective == pytest.approx(expected.objective, rel=1e-5)
    assert found.violation <= 1e-9


def test_a_limit_gives_the_inner_point_and_its_gap():
    head, matrix, lower = head_and_rows(40, 20_000)
    optimum = solve_working_set(head, DenseRows(matrix, lower)).objective
    found = solve_working_set(head, DenseRows(matrix, lower), max_rounds=2, batch=100)
    assert found.status is Status.FEASIBLE
    assert found.rounds == 2
    assert (lower - matrix @ found.delta).max() <= 1e-9
    assert found.bound <= optimum <= found.objective
    assert found.distance == pytest.approx(found.objective - found.bound)
    lower += matrix @ np.full(40, 0.3)
    found = solve_working_set(head, DenseRows(matrix, lower), max_rounds=1)
    assert found.status is Status.NO_POINT
    assert found.delta is None
    found = solve_working_set(head, DenseRows(matrix, lower), time_limit=1e-9, solver="daqp")
    assert found.rounds <= 2


def test_what_the_back_end_says_is_kept():
    head, matrix, lower = head_and_rows(20, 3000)
    found = solve_working_set(head, DenseRows(matrix, lower), solver=PIQP(native={"max_iter": 1}))
    assert found.status in (Status.FEASIBLE, Status.NO_POINT)
    assert "PIQP_MAX_ITER_REACHED" in found.message


class Failing:
    """Fails, so that the next one is tried."""

    name, kinds, requires = "failing", PIQP.kinds, ()

    def solve(self, program):
        return Solution(Status.FAILED, message="no")


def test_another_back_end_where_the_default_fails(monkeypatch):
    import repairopt.program.working_sets.working_set as module

    head, matrix, lower = head_and_rows(20, 3000)
    plain = module.find_solver
    monkeypatch.setattr(module, "find_solver", lambda p, s: Failing() if s is None else plain(p, s))
    found = solve_working_set(head, DenseRows(matrix, lower))
    assert found.status is Status.OPTIMAL
    assert "'failing' failed in round 1" in found.message
    assert solve_working_set(head, DenseRows(matrix, lower), solver=Failing()).status is Status.FAILED


def test_a_loose_back_end_is_asked_for_more_accuracy():
    head, matrix, lower = head_and_rows(40, 6000)
    loose = PIQP(feasibility_tol=1e-6, gap_tol=1e-6)
    rough = solve_working_set(head, DenseRows(matrix, lower), solver=loose, gap_tol=1.0, feasibility_tol=1e-6)
    fine = solve_working_set(head, DenseRows(matrix, lower), solver=loose, gap_tol=1e-8, feasibility_tol=1e-6)
    assert rough.distance > 1e-8 * (1 + abs(rough.objective))
    assert fine.distance <= 1e-8 * (1 + abs(fine.objective))


@given(st.integers(0, 10_000))
@settings(max_examples=15, deadline=None, derandomize=True)
def test_random_programs(seed):
    random = np.random.default_rng(seed)
    n, m = int(random.integers(2, 12)), int(random.integers(300, 900))
    head, matrix, lower = head_and_rows(n, m, seed, box=float(random.choice([0.1, 1.0, 10.0])))
    lower[random.random(m) < 0.02] += 0.5 * float(random.random())
    found = solve_working_set(head, DenseRows(matrix, lower), batch=10, solver=DAQP())
    expected = everything(head, matrix, lower, solver=DAQP())
    assert found.status is expected.status
    if expected.found:
        assert found.objective == pytest.approx(expected.objective, rel=1e-6, abs=1e-7)


def test_float32_screening_is_right_about_signs():
    head, matrix, lower = head_and_rows(60, 4000)
    rows, plain = ScreenedRows(matrix, lower), DenseRows(matrix, lower)
    optimum = solve_working_set(head, plain).delta
    for delta in (optimum, 0.3 * optimum, 1e3 * optimum, np.zeros(60)):
        screened, exact = rows.screen(delta), plain.violations(delta)
        np.testing.assert_array_equal(screened > 0, exact > 0)
        np.testing.assert_allclose(screened, exact, atol=1e-5 * (1 + np.abs(delta).max() * 60))
    assert not hasattr(plain, "screen")
    found = solve_working_set(head, rows)
    assert found.objective == pytest.approx(head.objective(optimum), rel=1e-8)
    np.testing.assert_array_equal(rows.violations(found.delta), plain.violations(found.delta))
    np.testing.assert_allclose(rows.screen(np.full(60, 1e35)), plain.violations(np.full(60, 1e35)))


def test_dense_rows_refuse_what_makes_no_sense():
    matrix = np.ones((3, 2))
    assert isinstance(DenseRows(matrix), RowOracle)
    assert DenseRows(matrix).violations(np.zeros(2)).tolist() == [-INF] * 3
    with pytest.raises(ProgramError, match=r"sides of shape \(2,\) for 3 rows"):
        DenseRows(matrix, np.zeros(2))
    with pytest.raises(ProgramError, match="above its upper"):
        DenseRows(matrix, np.ones(3), np.zeros(3))
    matrix[1, 1] = np.nan
    with pytest.raises(ProgramError, match="not finite"):
        ScreenedRows(matrix)
    head = Program(gradient=np.ones(2), delta_lower=-np.ones(2), delta_upper=np.ones(2))
    matrix = np.vstack([np.eye(2)] * 40)
    matrix[70, 1] = np.nan
    with pytest.raises(ProgramError, match="violation of row 70 is NaN"):
        solve_working_set(head, DenseRows(matrix, np.full(80, -1.0)), batch=1)
    with pytest.raises(ProgramError, match="integer variables"):
        solve_working_set(replace(head, integer=np.ones(2, dtype=bool)), DenseRows(np.ones((3, 2))))


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("pairs", [False, True])
@pytest.mark.parametrize("part", [False, True])
def test_feature_rows_equal_the_dense_jacobian(bias, pairs, part):
    random = np.random.default_rng(0)
    features, classes, m = random.normal(size=(50, 7)), 4, 150
    samples = random.integers(0, 50, size=m)
    wanted = random.integers(0, classes, size=m)
    chosen = np.stack([wanted, (wanted + random.integers(1, classes, size=m)) % classes], axis=1)
    dense_signals = np.eye(classes)[chosen[:, 0]] - np.eye(classes)[chosen[:, 1]]
    if not pairs:
        dense_signals = random.normal(size=(m, classes))
    full = np.einsum("mo,mh->moh", dense_signals, features[samples]).reshape(m, -1)
    full = np.hstack([full, dense_signals]) if bias else full
    columns = np.sort(random.choice(full.shape[1], 9, replace=False)) if part else None
    dense = full if columns is None else full[:, columns]
    lower, upper = -random.random(m), random.random(m)
    signals = chosen if pairs else dense_signals
    rows = FeatureRows(
        features, signals, lower, upper, samples=samples, outputs=classes if pairs else None, bias=bias, columns=columns
    )
    assert isinstance(rows, RowOracle)
    assert rows.n == dense.shape[1]
    delta = random.normal(size=rows.n)
    np.testing.assert_allclose(rows.violations(delta), DenseRows(dense, lower, upper).violations(delta), atol=1e-12)
    index = np.array([3, 140, 7])
    for got, expected in zip(rows.rows(index), (dense[index], lower[index], upper[index]), strict=True):
        np.testing.assert_allclose(got, expected)


def test_a_repair_through_feature_rows():
    random = np.random.default_rng(0)
    count, width, classes = 600, 10, 3
    features, weight = np.maximum(random.normal(size=(count, width)), 0.0), random.normal(size=(classes, width))
    outputs = features @ weight.T
    label = outputs.argmax(1)
    rivals = np.array([[r for r in range(classes) if r != label[i]] for i in range(count)])
    samples = np.repeat(np.arange(count), classes - 1)
    pairs = np.stack([label[samples], rivals.reshape(-1)], axis=1)
    margins = outputs[samples, pairs[:, 0]] - outputs[samples, pairs[:, 1]]
    rows = FeatureRows(features, pairs, -margins, samples=samples, outputs=classes, bias=True)
    head = Program(
        gradient=random.normal(size=rows.n),
        hessian=0.1 * np.eye(rows.n),
        delta_lower=np.full(rows.n, -2.0),
        delta_upper=np.full(rows.n, 2.0),
    )
    found = solve_working_set(head, rows, batch=30)
    moved = found.delta[: classes * width].reshape(classes, width)
    new = features @ (weight + moved).T + found.delta[classes * width :]
    assert found.status is Status.OPTIMAL
    assert (new[samples, pairs[:, 0]] - new[samples, pairs[:, 1]]).min() >= -1e-8
    matrix, lower, upper = rows.rows(np.arange(rows.m))
    assert found.objective == pytest.approx(everything(head, matrix, lower, upper).objective, rel=1e-7)


def test_feature_rows_refuse_what_makes_no_sense():
    features = np.ones((3, 2))
    with pytest.raises(ProgramError, match="need outputs above the largest class"):
        FeatureRows(features, np.array([[0, 4]] * 3), outputs=3)
    with pytest.raises(ProgramError, match="need as many samples"):
        FeatureRows(features, np.ones((4, 2)))


def test_rows_of_a_linearization():
    network, inputs = chain().double().eval(), torch.randn(300, 4, dtype=torch.float64)
    engine = Engine(network, {"4.weight": torch.arange(18)})
    labels = network(inputs).argmax(1)
    kept = KeepLabels(inputs, labels)
    linearization = linearize(engine, [anchor(kept, engine.predict())])
    rows = LinearizedRows(linearization)
    assert rows.m == len(linearization.margins[0])
    random = np.random.default_rng(0)
    head = Program(
        gradient=random.normal(size=engine.n),
        hessian=0.1 * np.eye(engine.n),
        delta_lower=np.full(engine.n, -3.0),
        delta_upper=np.full(engine.n, 3.0),
    )
    counted = Counted(rows)
    found = solve_working_set(head, counted, batch=10)
    matrix, lower, upper = rows.rows(np.arange(rows.m)[::-1])
    assert found.objective == pytest.approx(everything(head, matrix, lower, upper).objective, rel=1e-6)
    np.testing.assert_allclose((lower - matrix @ found.delta)[::-1], rows.violations(found.delta), atol=1e-9)


MEMORY = """
import resource, sys
sys.path.insert(0, sys.argv[1])
import numpy as np
from repairopt.program.program import Program
from row_kinds import FeatureRows
from repairopt.program.working_sets.working_set import solve_working_set
random = np.random.default_rng(0)
features = np.maximum(random.normal(size=(30_000, 64)), 0.0)
outputs = features @ random.normal(size=(64, 10))
label = outputs.argmax(1)
samples = np.repeat(np.arange(30_000), 9)
rival = np.array([[r for r in range(10) if r != l] for l in range(10)])[label].reshape(-1)
pairs = np.stack([label[samples], rival], axis=1)
margins = outputs[samples, pairs[:, 0]] - outputs[samples, pairs[:, 1]]
head = Program(gradient=random.normal(size=640), hessian=np.eye(640), delta_lower=np.full(640, -1.0),
               delta_upper=np.full(640, 1.0))
rows = FeatureRows(features, pairs, -margins, samples=samples, outputs=10)
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
found = solve_working_set(head, rows)
after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
print(found.status, found.violation, (after - before) / 1024)
"""


@pytest.mark.slow
def test_no_dense_jacobian_of_a_last_layer():
    """270,000 rows of 640 weights: 1.3 GiB if they were built."""
    run = subprocess.run(
        [sys.executable, "-c", MEMORY, str(Path(__file__).resolve().parents[1] / "support")],
        capture_output=True,
        text=True,
        check=True,
    )
    status, violation, mebibytes = run.stdout.split()
    assert status == "optimal"
    assert float(violation) <= 1e-9
    assert float(mebibytes) < 160
