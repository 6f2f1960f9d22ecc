"""The frontier: a bound swept from loose to tight, thresholds by group as a reference, what is drawn and said."""

import itertools

import numpy as np
import pytest
import torch
from biased_task import task
from torch import nn

from repairopt import (
    Bound,
    ErrorRate,
    Frontier,
    FrontierPoint,
    GroupGap,
    KeepLabels,
    SpecificationError,
    trace_frontier,
)
from repairopt.methods import threshold_frontier


@pytest.fixture(scope="module")
def traced():
    toy = task()
    goal = GroupGap.observed(toy.inputs, 1, target=0.5)
    data = (toy.inputs, toy.labels)
    return trace_frontier(
        toy.model, goal, targets=[0.05, 0.2, 0.1], data=data, held_out=toy.held_out, weights="last"
    ), toy


def test_points_go_from_loose_to_tight_and_say_what_their_networks_do(traced):
    frontier, toy = traced
    goal = GroupGap.observed(toy.inputs, 1)
    other = GroupGap.observed(toy.other_inputs, 1)
    assert [point.target for point in frontier.points] == [0.2, 0.1, 0.05]
    for point in (frontier.original, *frontier.points):
        model = toy.model if point.repair is None else point.repair.model
        assert point.value == pytest.approx(float(goal.value(model)), abs=1e-6)
        assert point.held_out_value == pytest.approx(float(other.value(model)), abs=1e-6)
        right = (model(toy.inputs).argmax(1) == toy.labels).double().mean()
        assert point.accuracy == pytest.approx(float(right))
        right = (model(toy.other_inputs).argmax(1) == toy.other_labels).double().mean()
        assert point.held_out_accuracy == pytest.approx(float(right))
    assert frontier.original.repair is None
    assert frontier.original.met
    assert all(point.met and point.value <= point.target + 1e-6 for point in frontier.points)


def test_the_best_point_is_the_most_accurate_that_is_low_enough(traced):
    frontier, _ = traced
    best = frontier.best(0.1)
    assert best.value <= 0.1
    low = [point for point in frontier.points if point.value <= 0.1]
    assert best.accuracy == max(point.accuracy for point in low)
    assert frontier.best(0.9).accuracy == max(p.accuracy for p in (frontier.original, *frontier.points))
    with pytest.raises(SpecificationError, match=r"frontier of 'group gap': no point reaches -1; the lowest is 0\.\d"):
        frontier.best(-1)


def test_the_table_has_a_line_for_each_point(traced):
    frontier, _ = traced
    lines = str(frontier).splitlines()
    assert lines[0] == "frontier of 'group gap'"
    assert lines[1].split() == ["bound", "value", "accuracy", "held", "out", "accuracy"]
    assert [line.split()[0] for line in lines[2:6]] == ["original", "0.2000", "0.1000", "0.0500"]
    assert float(lines[3].split()[2]) == pytest.approx(frontier.points[0].accuracy, abs=5e-5)
    assert lines[6] == "thresholds by group, on the original scores"
    assert len(lines) == 7 + len(frontier.thresholds) == 10


def test_missed_points_and_missing_held_out_data_are_marked():
    nan = float("nan")
    original = FrontierPoint(0.3, 0.3, 0.9, nan, nan, True)
    frontier = Frontier("gap", original, (FrontierPoint(0.1, 0.2, 0.95, nan, nan, False),))
    lines = str(frontier).splitlines()
    assert len(lines) == 4, "no thresholds, no heading for them"
    assert "nan" not in lines[2]
    assert lines[3].endswith("missed")
    assert frontier.best(0.3) is original, "a point that missed is never the best"


@pytest.mark.parametrize("held_out", [None, False])
def test_curves_are_drawn_from_the_points(traced, held_out):
    matplotlib = pytest.importorskip("matplotlib")
    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    frontier, _ = traced
    axes = frontier.plot(held_out=held_out)
    repairs, thresholds, original = axes.get_lines()
    key, place = ("held_out_value", "held-out") if held_out is None else ("value", "repair")
    assert list(repairs.get_xdata()) == [getattr(point, key) for point in frontier.points]
    assert list(original.get_xdata()) == [getattr(frontier.original, key)]
    assert list(thresholds.get_xdata()) == [getattr(point, key) for point in frontier.thresholds]
    assert axes.get_xlabel() == f"group gap, {place} data"
    same = plt.figure().add_subplot()
    assert frontier.plot(same) is same
    plt.close("all")


@pytest.mark.parametrize(
    ("targets", "message"),
    [
        (0, r"targets=0; expected 1 to 1000 bounds"),
        ([], r"targets=\[\]: expected at least one finite number"),
        ([0.1, float("nan")], r"expected at least one finite number"),
    ],
)
def test_targets_that_are_none_are_refused(targets, message):
    toy = task()
    with pytest.raises(SpecificationError, match=message):
        trace_frontier(toy.model, toy.gap(), targets=targets)


def test_a_number_of_targets_is_spread_below_the_original_value():
    toy = task()
    goal = GroupGap.observed(toy.inputs, 1)
    frontier = trace_frontier(toy.model, goal, targets=2, data=(toy.inputs, toy.labels), weights="last")
    value = float(goal.value(toy.model))
    assert [point.target for point in frontier.points] == pytest.approx([0.9 * value, 0.1 * value])
    assert np.isnan(frontier.points[0].held_out_accuracy)


# ---------------------------------------------------------------- thresholds


def best_by_trying(score, group, wanted, target):
    """Accuracy of the best pair of thresholds, from all pairs of cuts between sorted scores."""
    best = -1.0
    cuts = [
        np.r_[-np.inf, (np.sort(s)[:-1] + np.sort(s)[1:]) / 2, np.inf] for s in (score[group == 0], score[group == 1])
    ]
    for pair in itertools.product(*cuts):
        favored = score > np.asarray(pair)[group]
        if abs(favored[group == 0].mean() - favored[group == 1].mean()) <= target + 1e-12:
            best = max(best, (favored == wanted).mean())
    return best


@pytest.mark.parametrize("target", [0.0, 0.1, 0.3, 1.0])
@pytest.mark.parametrize("favorable", [0, 1])
def test_thresholds_are_the_best_of_all(target, favorable):
    draw = torch.Generator().manual_seed(2)
    group = torch.randint(2, (40,), generator=draw)
    inputs = torch.stack([torch.randn(40, generator=draw) + group, group.float()], dim=1)
    labels = (inputs[:, 0] + torch.randn(40, generator=draw) > 0.3).long()

    def predict(x):
        return torch.stack([-x[:, 0], x[:, 0]], dim=1)

    goal = GroupGap.observed(inputs, 1, favorable=favorable)
    [found] = threshold_frontier(predict, goal, [target], (inputs, labels), None)
    outputs = predict(inputs).double().numpy()
    score = outputs[:, favorable] - outputs[:, 1 - favorable]
    wanted = labels.numpy() == favorable
    assert found.accuracy == pytest.approx(best_by_trying(score, group.numpy(), wanted, target))
    favored = score > np.asarray(found.thresholds)[group.numpy()]
    rates = [favored[group.numpy() == a].mean() for a in (0, 1)]
    assert found.value == pytest.approx(abs(rates[0] - rates[1]))
    assert found.value <= target + 1e-9
    assert np.isnan(found.held_out_value)


def test_thresholds_are_chosen_on_repair_data_and_judged_on_others():
    toy = task()
    goal = GroupGap.observed(toy.inputs, 1)
    [found] = threshold_frontier(toy.model, goal, [0.05], (toy.inputs, toy.labels), toy.held_out)
    [same] = threshold_frontier(toy.model, goal, [0.05], (toy.inputs, toy.labels), None)
    assert found.thresholds == same.thresholds
    outputs = toy.model(toy.other_inputs).detach().numpy()
    favored = outputs[:, 1] - outputs[:, 0] > np.asarray(found.thresholds)[toy.other_inputs[:, 1].long().numpy()]
    assert found.held_out_accuracy == pytest.approx((favored == toy.other_labels.numpy()).mean())


def test_groups_given_as_arrays_have_twins_and_thresholds_of_their_own():
    toy = task(count=200)
    sides = [(toy.inputs, toy.labels), toy.held_out]
    given, other = (
        GroupGap.observed(x, sensitive_features=["ab"[int(g)] for g in x[:, 1]], target=0.3, name="gap")
        for x, _ in sides
    )
    kept = Bound(ErrorRate(*toy.held_out), slack=0.1, name="errors")
    found = trace_frontier(
        toy.model,
        given,
        [Bound(ErrorRate(*sides[0]), slack=0.1, name="errors")],
        targets=[0.2, 0.1],
        data=sides[0],
        held_out=sides[1],
        held_out_goal=[other, kept],
        weights="last",
    )
    observed = GroupGap.observed(toy.inputs, 1)
    same = threshold_frontier(toy.model, observed, [0.2, 0.1], *sides)
    assert [p.held_out_accuracy for p in found.thresholds] == [p.held_out_accuracy for p in same]
    for point in found.points:
        report = point.repair.report
        assert report.measure(held_out=True).target == point.target
        assert {check.constraint for check in report.verification.checks if check.held_out} == {"errors"}
        assert {claim.name: claim.limit for claim in report.claims}["gap"] == point.target


def test_held_out_rows_make_twins_of_the_constraints():
    toy = task(count=200)
    gap = GroupGap.observed(toy.inputs, 1, target=0.3)
    kept = KeepLabels(toy.inputs, toy.labels, tolerance=0.3)
    found = trace_frontier(toy.model, gap, [kept], targets=[0.1], held_out=toy.held_out, weights="last")
    checks = found.points[0].repair.report.verification.checks
    assert [check.held_out for check in checks if check.constraint == kept.name] == [False, True]


def test_without_groups_labels_or_two_classes_there_is_no_such_reference():
    toy = task()
    data = (toy.inputs, toy.labels)
    observed = GroupGap.observed(toy.inputs, 1)
    three = nn.Linear(2, 3).double()
    assert threshold_frontier(toy.model, ErrorRate(*data), [0.1], data, None) == ()
    assert threshold_frontier(toy.model, toy.gap(), [0.1], data, None) == (), "made rows have no labels"
    assert threshold_frontier(toy.model, observed, [0.1], None, None) == ()
    assert threshold_frontier(three, observed, [0.1], data, None) == ()


def test_a_plain_function_and_frames_will_do():
    pandas = pytest.importorskip("pandas")
    torch.manual_seed(0)
    x = torch.randn(400, 2)
    y = (x[:, 0] > 0).long()
    network = nn.Linear(2, 2)

    def share_of_ones(predict):
        return (predict(x).argmax(-1) == 1).double().mean().item()  # a number without derivatives

    found = trace_frontier(
        network,
        share_of_ones,
        targets=[0.45, 0.3],
        data=(pandas.DataFrame(x.numpy()), pandas.Series(y.numpy())),
        weights="all",
    )
    assert found.name == "share_of_ones"
    assert [point.value <= point.target for point in found.points] == [True, True]
    assert found.thresholds == ()
