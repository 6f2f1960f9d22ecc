"""Which weights: the model of expected gain against a solver, and the column that carries a gap."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from scipy.optimize import LinearConstraint, minimize
from torch import nn

from repairopt import SQP, GroupGap, KeepLabels, Settings, Specification, SpecificationError, Verdict, solve_repair
from repairopt.localize import Gradient, Inputs, localize
from repairopt.methods import GainModel, cannot_be_shown, steepest_sides, value_without_noise
from repairopt.methods.sqp.expected_gain import DAMPING
from repairopt.methods.sqp.limits import Limit, Lines
from repairopt.pipeline import weight_choice as choose_weights
from repairopt.pipeline.prepare import prepare_repair, with_weights
from repairopt.pipeline.weight_groups import find_groups
from repairopt.program import Kind, Solution, Status
from repairopt.specify import make_specification


def random_model(seed, limits=3, n=12, rows=30):
    random = np.random.default_rng(seed)
    return GainModel(random.normal(size=(rows, n)), random.normal(size=(limits, n)), random.normal(size=limits))


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("flat", [False, True], ids=["curved", "equal curvature"])
def test_the_cost_is_that_of_the_quadratic_program(seed, flat):
    model = random_model(seed)
    model = GainModel(model.rows[:0], model.slopes, model.needs) if flat else model
    chosen = np.array([1, 4, 5, 9, 11])
    part, slopes = model.rows[:, chosen], model.slopes[:, chosen]
    curvature = np.eye(5) / 5 if flat else part.T @ part
    curvature = curvature + DAMPING * np.trace(curvature) / 5 * np.eye(5)
    known = minimize(
        lambda d: 0.5 * d @ curvature @ d,
        np.zeros(5),
        jac=lambda d: curvature @ d,
        method="SLSQP",
        constraints=LinearConstraint(slopes, -np.inf, -model.needs),
        options={"ftol": 1e-10, "maxiter": 500},
    )
    assert known.success
    assert model.cost(chosen) == pytest.approx(known.fun, rel=1e-5, abs=1e-9)


def test_what_need_not_fall_costs_nothing_and_what_cannot_move_is_of_no_use():
    model = random_model(0)
    assert GainModel(model.rows, model.slopes, -np.ones(3)).cost(np.arange(4)) == 0.0
    still = model.slopes.copy()
    still[0, :3] = 0.0
    stuck = GainModel(model.rows, still, np.ones(3))
    assert stuck.cost(np.arange(3)) == np.inf
    costs = [stuck.cost(np.arange(3, stop)) for stop in (6, 8, 10)]
    ranked = stuck.ranked([np.arange(3), np.arange(3, 6), np.arange(3, 8), np.arange(3, 10), np.arange(0)], 0.0)
    assert ranked == [int(k) + 1 for k in np.argsort(costs)], "useless and empty groups are left out"
    assert stuck.ranked([np.arange(3, 6), np.arange(3, 8)], 1e9) == [0, 1], "at a high price the smallest comes first"


def test_limits_are_taken_on_the_side_on_which_they_are_larger():
    slopes = np.array([[1.0, 0.0], [0.0, 2.0]])
    two_sided = Lines(np.array([-0.3, 0.2]), slopes, "max_abs")
    mean = Lines(np.array([-0.3, 0.2]), slopes, "mean_abs")
    found, needs = steepest_sides([two_sided, mean], np.array([0.05, 0.05]))
    assert np.allclose(found, [[-1, 0], [0, 2], [-0.5, 1.0]])
    assert np.allclose(needs, [0.25, 0.15, 0.2])


def biased_network(rows):
    """Eight features, of which the last is the group; a network that has learned a fair task, then favors a group."""
    torch.manual_seed(3)
    x = torch.randn(rows, 8)
    x[:, 7] = (x[:, 7] > 0).float()
    y = (x[:, 0] + 0.5 * x[:, 1] + 0.3 * torch.randn(rows) > 0).long()
    model = nn.Sequential(nn.Linear(8, 12), nn.ReLU(), nn.Linear(12, 2))
    optimizer = torch.optim.Adam(model.parameters(), lr=0.02)
    for _ in range(120):
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(x), y).backward()
        optimizer.step()
    with torch.no_grad():  # through the weights of one column alone
        model[0].weight[:, 7] += 0.5 * torch.sign(model[2].weight[1] - model[2].weight[0])
    return model.eval(), x, y


def test_the_column_that_carries_the_gap_is_found():
    model, x, y = biased_network(1000)
    gap = GroupGap.observed(x, 7, target=0.05)
    keep = KeepLabels(x, y, tolerance=0.1)
    found = solve_repair(model, gap, [keep], method=SQP(confidence=None))
    location = found.report.location
    assert found.report.verdict is Verdict.REPAIRED
    assert found.report.measure().before > 0.1
    assert location.method.startswith("expected gain: input 7")
    columns = [int(position) % 8 for position in location.indices["0.weight"]]
    assert columns.count(7) == 12
    assert len(columns) in (24, 60), "two columns with the last layer, or five"


def test_for_next_to_no_rows_the_choice_is_the_usual_one():
    model, x, y = biased_network(60)
    gap = GroupGap.observed(x, 7, target=0.1)
    keep = KeepLabels(x, y, tolerance=0.2)
    found = solve_repair(model, gap, [keep], method=SQP(confidence=None))
    usual = solve_repair(model, gap, [keep], method="sequential").report.location
    assert not found.report.location.method.startswith("expected gain")
    assert found.report.location.method == usual.method
    assert all(torch.equal(found.report.location.indices[name], ix) for name, ix in usual.indices.items())


class Ending:
    """A back end whose every solve ends badly."""

    name, kinds, requires = "ending", frozenset({Kind.LP, Kind.QP}), ()

    def __init__(self, answer):
        self.answer, self.solves = answer, 0

    def solve(self, program):
        self.solves += 1
        if isinstance(self.answer, BaseException):
            raise self.answer
        return self.answer


@pytest.mark.parametrize(
    "answer", [Solution(Status.NO_POINT, interrupted=True), KeyboardInterrupt()], ids=["in a back end", "between"]
)
def test_ctrl_c_in_the_search_ends_the_repair_and_loses_nothing(answer):
    model, x, y = biased_network(1000)
    solver = Ending(answer)
    gap = GroupGap.observed(x, 7, target=0.05)
    found = solve_repair(
        model, gap, [KeepLabels(x, y, tolerance=0.1)], method=SQP(confidence=None), settings=Settings(solver=solver)
    )
    assert found.report.stopped == "interrupted"
    assert solver.solves == 1, "the search went on"
    assert all(torch.equal(a, b) for a, b in zip(found.model.parameters(), model.parameters(), strict=True))


def drawn_groups(count, far):
    """Inputs of both groups that look like the rows, but for a column that is 3 deviations off where ``far``."""
    draw = torch.Generator().manual_seed(5)
    groups = [torch.randn(count, 8, generator=draw) for _ in range(2)]
    for k, inputs in enumerate(groups):
        inputs[:, 5], inputs[:, 7] = inputs[:, 5] + (3.0 if far else 0.0), float(k)
    return groups


@pytest.mark.parametrize("far", [True, False])
def test_columns_in_which_the_goals_inputs_lie_far_from_the_data_are_tried(far, monkeypatch):
    tried = []

    def spied(groups, ranked, found):
        choices = choose(groups, ranked, found)
        tried.append(([groups[k].name for k in found], [choice.method for choice in choices]))
        return choices

    choose = choose_weights._choices
    monkeypatch.setattr(choose_weights, "_choices", spied)
    model, x, y = biased_network(600)
    gap = GroupGap.given(drawn_groups(400, far), favorable=1, target=0.05)
    solve_repair(model, gap, data=(x, y), method=SQP(confidence=None))
    assert float(gap.value(model)) > 0.1
    columns, choices = tried[0]
    assert columns == (["input 5"] if far else [])
    with_far = [name for name in choices if name == "expected gain: input 7, input 5, 2"]
    assert len(with_far) == (1 if far else 0)


def test_a_choice_whose_bound_cannot_be_shown_counts_as_dearer():
    model, x, y = biased_network(1500)
    few, many = drawn_groups(150, False), drawn_groups(40_000, False)
    for groups, expected in ((few, True), (many, False)):
        gap = GroupGap.given(groups, favorable=1, target=0.05)
        limits = [Limit("gap", gap, 0.05)]
        task = SimpleNamespace(new_counts={})
        assert cannot_be_shown(task, limits, model, 0.95) is expected
        assert not cannot_be_shown(task, limits, model, 0.5), "on average chance does not matter"


@pytest.mark.parametrize(("rows", "told"), [(400, True), (1_200, False)])
def test_below_a_thousand_real_rows_the_column_that_tells_two_groups_apart_changes_alone(rows, told):
    model, x, y = biased_network(rows)
    gap = GroupGap.observed(x, 7, favorable=1, target=0.05)
    found = solve_repair(model, gap, data=(x, y), method=SQP(confidence=None)).report.location
    columns = {int(position) % 8 for position in found.indices.get("0.weight", ())}
    assert (columns == {7} and list(found.indices)[1:] == ["2.bias"]) is told
    assert (found.size == 14) is told, "with the level of all answers"


def test_groups_that_no_column_tells_apart_leave_the_choice_to_trials():
    model, x, y = biased_network(400)
    unseen = torch.arange(400) % 2
    groups = [SimpleNamespace(unit=k) for k in range(8)]
    none = GroupGap.observed(x, sensitive_features=unseen.tolist(), favorable=1, target=0.05)
    told = GroupGap.observed(x, sensitive_features=(x[:, 2] > 0.3).tolist(), favorable=1, target=0.05)
    three = GroupGap.observed(x, sensitive_features=(torch.arange(400) % 3).tolist(), favorable=1, target=0.05)
    assert choose_weights._telling_column(none, groups, range(8)) is None
    assert choose_weights._telling_column(told, groups, range(8)) == 2
    assert choose_weights._telling_column(three, groups, range(8)) is None, "more than two groups"


def test_a_trial_shares_what_does_not_depend_on_the_weights():
    model, x, y = biased_network(600)
    spec = make_specification(GroupGap.observed(x, 7, favorable=1, target=0.05), [KeepLabels(x, y, tolerance=0.1)])
    options = {"data": (x, y), "method": SQP()}
    usual = prepare_repair(model, spec, weights="auto", **options)
    where = localize(model, "last")
    short, whole = with_weights(usual, where), prepare_repair(model, spec, weights=where, **options)
    assert short.task.engine.n == whole.task.engine.n == 26
    assert short.task.judge.original.goal == whole.task.judge.original.goal
    assert short.task.judge.required[0] == pytest.approx(whole.task.judge.required[0])
    delta = 0.3 * np.random.default_rng(0).normal(size=26)
    mine, other = short.task.judge(delta), whole.task.judge(delta)
    assert (mine.goal, mine.broken, mine.error) == (other.goal, other.broken, other.error)
    assert usual.task.judge.best is usual.task.judge.original, "the repair itself knows nothing of it"


@pytest.mark.parametrize("chosen", [[0, 3], [2, 5, 7, 8]])
def test_one_limit_costs_what_its_closed_form_says(chosen):
    model = random_model(4, limits=1)
    model = GainModel(model.rows, model.slopes, np.abs(model.needs) + 0.1)
    two = GainModel(model.rows, np.vstack([model.slopes, -model.slopes]), np.append(model.needs, -9.0))
    assert model.cost(np.array(chosen)) == pytest.approx(two.cost(np.array(chosen)), rel=1e-5), "the other is slack"


def test_columns_of_few_rows_and_of_other_protected_attributes_are_left_alone():
    draw = torch.Generator().manual_seed(0)
    x = torch.randn(800, 5, generator=draw)
    x[:, 1], x[:, 2], x[:, 3] = 0.0, (torch.arange(800) % 2).float(), (torch.arange(800) % 3 == 0).float()
    x[:8, 1] = 1.0  # as a category of 8 rows
    y = (x[:, 0] > 0).long()
    model = nn.Sequential(nn.Linear(5, 6), nn.ReLU(), nn.Linear(6, 2))
    gap = GroupGap.observed(x, 2, favorable=1, target=0.02)
    names = ("income", "job=none", "sex", "race", "age")
    spec = Specification(gap, protected=("race",), columns=names)
    assert spec.protected == (3,)
    options = {"data": (x, y), "method": SQP(), "weights": "auto"}
    prepared = prepare_repair(model, make_specification(spec), **options)
    groups = [group.name for group in find_groups(prepared) if group.column]
    assert groups == ["income", "sex", "age"]
    unnamed = prepare_repair(model, make_specification(gap), **options)
    assert [g.name for g in find_groups(unnamed) if g.column] == [f"input {k}" for k in (0, 2, 3, 4)]
    with pytest.raises(SpecificationError, match="there is no input column 'colour'"):
        Specification(gap, protected=("colour",), columns=names)


@pytest.mark.parametrize(
    "how", ["auto", "all", "gradient", "care", "deepfault", ["last", "0"], Gradient(60), "0.weight"]
)
def test_no_choice_takes_weights_of_protected_columns_but_one_that_names_them(how):
    draw = torch.Generator().manual_seed(0)
    x = torch.randn(400, 5, generator=draw)
    x[:, 2], x[:, 3] = (torch.arange(400) % 2).float(), (torch.arange(400) % 3 == 0).float()
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(5, 6), nn.ReLU(), nn.Linear(6, 2))
    gap = GroupGap.observed(x, 2, favorable=1, target=0.02)
    kept = KeepLabels(x, (x[:, 0] > 0).long(), tolerance=1.0)
    spec = Specification(gap, [kept], protected=(3,))
    of_race = set(range(3, 30, 5))  # flat positions of column 3 in the first layer
    found = localize(model, how, goal=spec).indices
    assert found
    assert not of_race & set(found.get("0.weight", torch.zeros(0)).tolist())
    free = localize(model, how, goal=Specification(gap, [kept])).indices
    assert how in ("care", "deepfault") or of_race & set(free["0.weight"].tolist()), "else this shows nothing"
    asked = localize(model, [how, Inputs([3])], goal=spec).indices
    assert of_race <= set(asked["0.weight"].tolist())
    assert set(localize(model, Gradient(3, within=Inputs([3])), goal=spec).indices["0.weight"].tolist()) <= of_race
    alone = Specification(GroupGap.observed(x[:, 2:3], 0, favorable=1), protected=(0,))
    with pytest.raises(SpecificationError, match="beside those of protected columns"):
        localize(nn.Linear(1, 2, bias=False), "all", goal=alone)


def test_where_rows_are_few_so_are_the_weights():
    draw = torch.Generator().manual_seed(3)
    x = torch.randn(160, 6, generator=draw)
    x[:, 5] = (torch.arange(160) % 2).float()
    y = (x[:, 0] + x[:, 1] > 0).long()
    torch.manual_seed(1)
    model = nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, 2))
    optimizer = torch.optim.Adam(model.parameters(), 1e-2)
    favored = (x[:, 0] + x[:, 1] + 1.2 * x[:, 5] > 0.6).long()
    for _ in range(150):
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(x), favored).backward()
        optimizer.step()
    gap = GroupGap.observed(x, 5, favorable=1, target=0.05)
    found = solve_repair(model, gap, data=(x, y))
    assert found.report.location.method.startswith("expected gain")
    assert found.report.location.size <= 3 * 16 + 2, "some columns and a bias, not 100 weights by gradient"
    assert set(found.report.location.indices) <= {"0.weight", "2.bias"}


def test_noise_is_taken_off_the_size_of_a_difference():
    draw = np.random.default_rng(0)
    values, plain = [], []
    for _ in range(200):
        hits = torch.tensor((draw.random(200) < 0.5).astype(np.int64))
        gap = GroupGap.observed(torch.arange(200)[:, None].float(), sensitive_features=[0, 1] * 100, favorable=1)

        def predict(rows, hits=hits):
            return nn.functional.one_hot(hits[rows[:, 0].long()], 2).float()

        values.append(value_without_noise(Limit("gap", gap, 0.1), predict))
        plain.append(float(gap.value(predict)))
    assert np.mean(plain) > 0.05, "of a true gap of 0"
    assert np.mean(values) < 0.6 * np.mean(plain)
    assert np.median(values) == 0.0
