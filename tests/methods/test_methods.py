"""The methods: where they must agree, what bisection promises, networks without derivatives, rows in conflict."""

import contextlib
from itertools import pairwise
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from biased_task import Steps, repair as repair_with, task
from scipy.optimize import linprog
from torch import nn

from repairopt import (
    AtMostBroken,
    Bisection,
    Bound,
    Classifier,
    ErrorRate,
    FewWeights,
    FixLabels,
    GroupGap,
    Incremental,
    KeepLabels,
    OneShot,
    RepairError,
    Sequential,
    SpecificationError,
    Status,
    Strictest,
    SurrogateSettings,
    Verdict,
    solve_repair,
)
from repairopt.methods import Method, Outcome, Task
from repairopt.verify import Judge

ALL = Strictest(positive=1, negative=1)
NONE = Strictest(positive=0, negative=0)


def flat(repair):
    """The change over the chosen weights, in the order of the location."""
    positions = repair.report.location.indices
    return np.concatenate([repair.delta[name].flatten()[ix].double().numpy() for name, ix in positions.items()])


def repair(toy, method, **options):
    settings = {"weights": "last", "trust_radius": 1.0, "shrink": False, **options}
    constraints = settings.pop("constraints", [toy.keep()])
    goal = settings.pop("goal", toy.gap())
    return repair_with(toy.model, goal, constraints, method=method, **settings)


def predicted(found):
    return found.report.surrogate.value(flat(found))


@pytest.mark.parametrize("program", ["qp", "lp"])
def test_one_shot_and_cutting_planes_agree_where_all_rows_are_included(program):
    toy = task()
    hard = [toy.keep(0.0)]
    options = {"constraints": hard, "program": program}
    once = repair(toy, OneShot(ALL), **options)
    planes = repair(toy, Incremental(ALL), **options)
    assert once.report.rows_used == planes.report.rows_used == len(once.report.verification.checks[0].before)
    assert predicted(once) == pytest.approx(predicted(planes), abs=1e-9)
    assert predicted(once) < once.report.surrogate.constant
    # From no rows at all, a few at a time: a relaxation that ends feasible, so nearly the same with far fewer rows.
    few = repair(toy, Incremental(NONE, batch=3), **options)
    assert few.report.verification.checks[0].failed == 0
    assert few.report.rows_used < 50
    assert predicted(few) == pytest.approx(predicted(once), abs=0.02 * once.report.surrogate.constant)
    assert predicted(few) <= predicted(once) + 1e-9


@pytest.mark.parametrize(
    "method", [OneShot(), Incremental(), Bisection(), Sequential(), Sequential(objective="property")]
)
@pytest.mark.parametrize("weights", ["last", "all", "0.weight"])
def test_every_method_repairs_the_biased_network(method, weights):
    toy = task()
    found = repair(toy, method, weights=weights, shrink=True, held_out=toy.held_out)
    report = found.report
    if isinstance(method, Sequential):
        assert report.verdict is Verdict.REPAIRED
        assert report.measure().after <= 0.05 + 1e-9 < report.measure().before  # a share is met but for rounding
    assert report.verdict in (Verdict.REPAIRED, Verdict.IMPROVED)
    assert report.measure(held_out=True).after <= 0.5 * report.measure(held_out=True).before
    assert report.verification.checks[0].failed <= 12
    before, after = report.labels(held_out=True).accuracy
    assert after >= before - 0.01
    rates = [pair[1] for name, pair in report.measure().details.items() if name.startswith("favorable rate")]
    assert len(rates) == 2
    assert all(0.1 < rate < 0.9 for rate in rates), "no group gets one answer alone"
    assert set(found.delta) == set(report.location.indices)


@pytest.mark.parametrize("kind", ["full", "gradient_hessian", "hessian", "gauss_newton", "diagonal_low_rank", "linear"])
def test_every_surrogate_serves(kind):
    found = repair(task(), OneShot(), surrogate=kind)
    assert found.report.surrogate.kind == kind
    assert found.report.measure().after < 0.7 * found.report.measure().before


@pytest.mark.parametrize("convexify", ["project", "shift", "abs"])
def test_every_convexification_serves(convexify):
    found = repair(task(), Incremental(), surrogate="hessian", convexify=convexify)
    assert found.report.surrogate.convexification == convexify
    assert found.report.measure().after < found.report.measure().before / 2


def test_a_linear_program_is_one_and_ends_where_scipy_ends(monkeypatch):
    """The linear model within its bounds, on the rows that the quadratic program has too."""
    solved = []

    def kept(self, program):
        solved.append((program, plain(self, program)))
        return solved[-1][1]

    plain = Task.solve_program
    monkeypatch.setattr(Task, "solve_program", kept)
    found, _ = (repair(task(), OneShot(), program=kind) for kind in ("lp", "qp"))
    (linear, solution), (quadratic, _) = solved
    assert found.report.surrogate.kind == "linear"
    assert linear.hessian is None
    assert quadratic.hessian is not None
    np.testing.assert_array_equal(linear.matrix, quadratic.matrix)
    sides = np.concatenate([linear.upper, -linear.lower])
    rows = np.concatenate([linear.matrix, -linear.matrix])[np.isfinite(sides)]
    bounds = np.stack([linear.delta_lower, linear.delta_upper], axis=1)
    known = linprog(linear.gradient, rows, sides[np.isfinite(sides)], bounds=bounds)
    assert linear.gradient @ solution.delta == pytest.approx(known.fun, rel=1e-6)
    assert found.report.measure().after < found.report.measure().before


def test_a_sequence_lowers_its_merit_step_by_step_and_ends_by_the_smallest_step():
    toy = task()
    settings = {"objective": "property", "max_steps": 200, "smallest_step": 1e-3}
    found = repair(toy, Sequential(**settings), goal=toy.gap(0.0), weights="all", trust_radius=0.3)
    count, rounds = len(toy.labels), found.report.rounds

    def merit(goal, broken):
        return goal + Sequential().penalty * max(0, broken - int(0.03 * count)) / count

    merits = [merit(found.report.measure().before, 0), *(merit(r.goal, r.broken) for r in rounds if r.accepted)]
    assert len(merits) > 3
    assert all(later < earlier for earlier, later in pairwise(merits))
    radius = float(rounds[-1].note.removeprefix("radius ").split(",")[0])
    assert len(rounds) < 200
    assert radius < 2e-3  # the next one, half of it, is below the smallest step


# ------------------------------------------------------------------------ bisection


def test_bisection_returns_a_feasible_point_and_is_never_worse_in_the_surrogate(monkeypatch):
    toy = task()
    judged = []
    plain = Judge.__call__
    monkeypatch.setattr(Judge, "__call__", lambda self, delta: judged.append(plain(self, delta)) or judged[-1])
    found = repair(toy, Bisection(halvings=12), constraints=[toy.keep(0.0)], goal=toy.gap(0.0))
    report, change = found.report, flat(found)
    assert report.verification.checks[0].failed == 0
    assert report.measure().after < report.measure().before
    surrogate = report.surrogate
    assert surrogate.value(change) <= surrogate.value(np.zeros_like(change))
    aim = next(j for j in judged if np.any(j.delta))
    shares = [float(j.delta @ aim.delta / (aim.delta @ aim.delta)) for j in judged[1:13]]
    low, high = 0.0, 1.0
    assert not aim.feasible
    for share, trial in zip(shares, judged[1:13], strict=True):
        assert share == pytest.approx((low + high) / 2)
        low, high = (share, high) if trial.feasible else (low, share)
    assert change == pytest.approx(low * aim.delta)


def test_bisection_takes_the_whole_step_where_it_is_feasible():
    toy = task()
    found = repair(toy, Bisection(), constraints=[])
    free = repair(toy, OneShot(use_constraints=False), constraints=[])
    assert flat(found) == pytest.approx(flat(free))
    assert len(found.report.rounds) == 1


def test_bisection_to_random_corners_finds_something_feasible():
    toy = task()
    found = repair(toy, Bisection(start="random", tries=30), seed=1)
    assert found.report.verdict in (Verdict.REPAIRED, Verdict.IMPROVED)
    assert found.report.measure().after < found.report.measure().before
    again = repair(toy, Bisection(start="random", tries=30), seed=1)
    assert np.array_equal(flat(again), flat(found))


STEPS = [
    (Bisection(), 0.65),
    (Bisection(start="random", tries=100), 0.2),
    (Incremental(), 0.65),
    (Sequential(objective="property"), 0.2),
    pytest.param("auto", 0.65),
]


@pytest.mark.parametrize(("method", "share"), STEPS)
def test_a_network_with_steps_is_repaired_without_its_derivative(method, share):
    toy = task(Steps())
    found = repair(toy, method, weights="first.weight", shrink=True, held_out=toy.held_out)
    report = found.report
    if report.surrogate is not None:
        assert report.surrogate.kind == ("linear" if method == "auto" else "full")  # fitted to samples of the count
    assert report.measure().after <= share * report.measure().before
    assert report.verdict in (Verdict.REPAIRED, Verdict.IMPROVED)
    assert report.verification.checks[0].failed <= report.verification.checks[0].allowed
    before, after = report.labels(held_out=True).accuracy
    assert after >= before - (0.01 if report.surrogate is not None else 0.05)
    assert not report.verification.constant


# ------------------------------------------------------------------------ rows in conflict


def contradictory():
    """The same inputs with both labels: no weights can get all of them right."""
    toy = task()
    twice = torch.cat([toy.inputs[:15], toy.inputs[:15]])
    labels = torch.cat([toy.labels[:15], 1 - toy.labels[:15]])
    hard = FixLabels(twice, labels, weight=None, tolerance=0.0)
    return SimpleNamespace(toy=toy, hard=hard, inputs=twice)


@pytest.mark.parametrize("method", [OneShot(ALL), Incremental(ALL)])
@pytest.mark.parametrize("program", ["qp", "lp"])
def test_hard_rows_in_conflict_give_way_by_name(method, program):
    case = contradictory()
    found = repair(case.toy, method, constraints=[case.hard], program=program)
    report = found.report
    assert report.verdict is Verdict.INFEASIBLE or not report.verification.checks[0].holds
    assert report.gave_way
    assert {source.constraint for source in report.gave_way} == {"fix labels"}
    assert all(0 <= source.sample < 30 for source in report.gave_way)
    assert "Hard rows that gave way: 'fix labels', sample" in str(report)


def test_what_can_be_satisfied_beside_the_conflict_is():
    case = contradictory()
    keep = case.toy.keep(0.02)
    found = repair(case.toy, Incremental(ALL, max_rounds=4), constraints=[case.hard, keep])
    kept = next(c for c in found.report.verification.checks if c.constraint == "keep labels")
    assert kept.holds


def test_a_bound_on_another_property_is_respected():
    toy = task()
    bound = Bound(ErrorRate(toy.inputs.clone(), toy.labels), buffer=0.005)
    for method in (Incremental(), Sequential()):
        found = repair(toy, method, constraints=[bound, toy.keep()], shrink=True)
        check = next(c for c in found.report.verification.checks if c.constraint == "error rate bounded")
        assert check.holds
        assert found.report.verdict is Verdict.REPAIRED


# ------------------------------------------------------------------------ settings


def test_an_own_method_is_a_class_with_run():
    good = flat(repair(task(), OneShot()))

    class Half:
        def run(self, task):
            return Outcome(good / 2, Status.FEASIBLE)

    assert isinstance(Half(), Method)
    assert flat(repair(task(), Half())) == pytest.approx(good / 2)


def test_a_change_that_gains_nothing_is_not_applied():
    class Nudge:
        def run(self, task):
            return Outcome(np.full(task.engine.n, 1e-9), Status.FEASIBLE)

    found = repair(task(), Nudge())
    assert not flat(found).any()
    assert found.report.verdict is Verdict.UNSOLVED


def test_cutting_planes_keep_to_their_limit_of_rows():
    toy = task()
    found = repair(toy, Incremental(NONE, batch=5, max_rows=8, max_rounds=6), constraints=[toy.keep(0.0)])
    assert found.report.rows_used <= 8
    assert len(found.report.rounds) <= 6


@pytest.mark.parametrize(
    ("make", "snippet"),
    [
        (lambda: Incremental(batch=0), "method Incremental: batch=0; expected a whole number, 1 or more"),
        (lambda: Incremental(max_rounds=2.5), "method Incremental: max_rounds=2.5; expected a whole number"),
        (lambda: Incremental(max_rows="all"), "max_rows='all'; expected a whole number, 1 or more, or None"),
        (lambda: Incremental(Strictest(positive="half")), "selection: positive='half' is not a share"),
        (lambda: Bisection(start="anywhere"), "start='anywhere'; choose optimum or random"),
        (lambda: Bisection(halvings=0), "method Bisection: halvings=0; expected a whole number, 1 or more"),
        (lambda: Bisection(tries="many"), "method Bisection: tries='many'; expected a whole number"),
        (lambda: Sequential(objective="loss"), "objective='loss'; choose from"),
        (lambda: Sequential(buffer=-0.1), "method Sequential: buffer=-0.1; expected a number, 0 or more"),
        (lambda: Sequential(penalty=0), "method Sequential: penalty=0; expected a number above 0"),
        (lambda: Sequential(damping=None), "method Sequential: damping=None; expected a number above 0"),
        (lambda: FewWeights(count=True), "method FewWeights: count=True; expected a whole number, 1 or more"),
        (lambda: FewWeights(groups="filters"), "groups='filters'; choose one of weights, neurons, layers"),
        (lambda: FewWeights(seconds="60"), "method FewWeights: seconds='60'; expected a number above 0"),
        (lambda: AtMostBroken(count=-1), "method AtMostBroken: count=-1; expected a whole number, 0 or more, or None"),
        (
            lambda: repair(task(), "newton"),
            "method='newton'; choose auto, adversarial_training, apricot, aprnn, arachne",
        ),
        (lambda: repair(task(), Incremental), "expected a name or an instance"),
        (lambda: repair(task(), OneShot(), program="milp"), "program='milp'; choose qp or lp"),
        (lambda: repair(task(), OneShot(), trust_radius=0.0), "trust_radius=0.0; expected a number above 0"),
        (lambda: repair(task(), OneShot(), surrogate=SurrogateSettings(kind="spline")), "spline"),
        (
            lambda: repair(task(), Sequential(objective="cross_entropy"), constraints=[]),
            "objective='cross_entropy' needs labelled samples",
        ),
    ],
)
def test_bad_settings_are_named(make, snippet):
    with pytest.raises(SpecificationError) as error:
        make()
    assert snippet in str(error.value)


def test_soft_rows_ask_for_repair_of_single_samples():
    toy = task()
    wrong = ErrorRate(toy.inputs, toy.labels, target=0.06)
    found = repair(toy, Incremental(), goal=wrong, constraints=[KeepLabels(toy.inputs, toy.labels, tolerance=0.03)])
    assert found.report.measure().after <= 0.06


class Counted(nn.Module):
    """A layer whose forward writes into its buffer."""

    def __init__(self):
        super().__init__()
        self.register_buffer("runs", torch.zeros(1))

    def forward(self, x):
        self.runs += 1
        return x


@pytest.mark.parametrize("method", ["aprnn", "nnrepair", "thresholds", "vote", "offsets", "reject_option"])
@pytest.mark.parametrize("outputs", ["logits", "one logit"])
def test_buffers_of_a_network_in_training_mode_stay_as_they_are(method, outputs, fingerprint):
    torch.manual_seed(0)
    x = torch.randn(160, 3)
    x[:, 2] = (x[:, 2] > 0).float()
    y = (x[:, 0] > 0.3).long()
    width = 2 if outputs == "logits" else 1
    network = nn.Sequential(nn.Linear(3, 6), nn.BatchNorm1d(6), nn.ReLU(), Counted(), nn.Linear(6, width)).train()
    model = network if outputs == "logits" else Classifier(network, outputs=outputs)
    before, points = fingerprint(network), method in ("aprnn", "nnrepair")
    goal = ErrorRate(x[:6], 1 - y[:6], target=0.0) if points else GroupGap.observed(x, 2, favorable=1, target=0.01)
    with contextlib.suppress(RepairError):  # some take logits alone
        solve_repair(model, goal, data=(x, y), method=method)
    assert fingerprint(network) == before
    assert network.training
