"""What goes wrong beside the bounds is said in the first lines; labels given anywhere are counted everywhere."""

import copy

import numpy as np
import pytest
import torch
from biased_task import task
from torch import nn

from repairopt import SQP, Bound, ErrorRate, GroupGap, KeepLabels, OddsGap, Specification, solve_repair
from repairopt.report import list_warnings
from repairopt.report.text import WIDTH
from repairopt.specify import make_specification
from repairopt.verify import verify

PLAIN = SQP(confidence=None)


def two_groups(count=2000, seed=0):
    """Groups with other shares of the label, and a network that is nearly right: parity costs odds."""
    draw = torch.Generator().manual_seed(seed)
    group = (torch.arange(count) % 2).float()
    merit = torch.randn(count, generator=draw) + 0.9 * group
    x = torch.stack([merit, group], 1)
    y = (merit + 0.3 * torch.randn(count, generator=draw) > 0.4).long()
    model = nn.Linear(2, 2)
    with torch.no_grad():
        model.weight.copy_(torch.tensor([[-2.0, 0.0], [2.0, 0.0]]))
        model.bias.copy_(torch.tensor([0.8, -0.8]))
    return model, x, y


def first_lines(repair):
    """The warnings, which stand before the table."""
    return " ".join(str(repair.report).split("\n\n")[0].split())


# ---------------------------------------------------------------- right answers given up


def test_a_goal_that_costs_many_right_answers_is_said_to_be_dear():
    model, x, y = two_groups(400)
    goal = ErrorRate(x[:30], 1 - y[:30], target=0.2)  # labels against what the others say
    repair = solve_repair(model, goal, data=(x[30:], y[30:]), weights="last", method=PLAIN)
    counts = next(one for one in repair.report.verification.labels if one.name == "data")
    assert counts.accuracy[0] - counts.accuracy[1] > 0.05
    assert "The repair is dear: accuracy on the labels of 'data' fell from" in first_lines(repair)
    assert f"({counts.newly_wrong} newly wrong, {counts.newly_right} newly right)" in first_lines(repair)
    kept = solve_repair(model, goal, [KeepLabels(x[30:], y[30:], tolerance=0.5)], weights="last", method=PLAIN)
    assert "dear" not in first_lines(kept)  # the user said how many may go


# ---------------------------------------------------------------- watched measures


@pytest.fixture(scope="module")
def closed():
    model, x, y = two_groups()
    other = two_groups(seed=1)[1:]
    gap = GroupGap.observed(x, 1, favorable=1, target=0.05)
    return solve_repair(model, gap, data=(x, y), held_out=other, weights="last", method=PLAIN), x, y, other


def test_the_other_kinds_are_watched_and_warned_of(closed):
    repair, x, y, other = closed
    odds = OddsGap.observed(x, y, 1, favorable=1)
    found = repair.report.measure("odds gap")
    assert found.after == pytest.approx(float(odds.value(repair.model)))
    unseen = repair.report.measure("odds gap", held_out=True)
    assert unseen.after == pytest.approx(float(OddsGap.observed(*other, 1, favorable=1).value(repair.model)))
    assert unseen.worse
    assert unseen.after > unseen.before + 0.1
    assert repair.report.measure("sampled gap").brief
    text = first_lines(repair)
    assert f"odds gap rose from {unseen.before:.4f} to {unseen.after:.4f} on held-out data" in text
    assert "add a bound: Bound(OddsGap.observed(inputs, labels, ...), slack=0.01)" in text
    assert not any(claim.name == "odds gap" for claim in repair.report.claims), "nobody typed a bound on it"
    assert "label 1" not in str(repair.report), "one line is enough for what nobody stated"


def test_the_bound_that_the_warning_names_silences_it(closed):
    _, x, y, _ = closed
    gap = GroupGap.observed(x, 1, favorable=1, target=0.25)
    bound = Bound(OddsGap.observed(x, y, 1, favorable=1), slack=0.01, name="odds")
    repair = solve_repair(two_groups()[0], gap, [bound], data=(x, y), weights="last", method=PLAIN)
    assert "odds gap" not in first_lines(repair)
    assert repair.report.measure("odds gap") is None, "it is bounded, so nothing more is watched"


def test_a_change_within_chance_is_no_warning():
    model, x, y = two_groups(200)
    spec = make_specification(GroupGap.observed(x, 1, favorable=1, target=0.3), data=[(x, y)])
    rises = {}
    for shift in np.linspace(-0.6, 0.6, 61):
        moved = copy.deepcopy(model)
        with torch.no_grad():
            moved.bias += torch.tensor([shift, -shift]).float()
        odds = verify(model, moved, spec).measures[1]
        assert odds.name == "odds gap"
        rises[odds.after - odds.before] = odds.worse
    assert any(0.01 < rise < 0.03 for rise in rises)
    assert not any(worse for rise, worse in rises.items() if rise < 0.03), "a row or two"


@pytest.mark.parametrize("kind", ["odds", "drawn"])
def test_each_kind_has_the_others(kind):
    model, x, y = two_groups(600)
    goal = OddsGap.observed(x, y, 1, favorable=1, target=0.3)
    if kind == "drawn":
        goal = GroupGap.sampled(x, 1, count=300, favorable=1, target=0.3)
    repair = solve_repair(model, goal, data=(x, y), weights="last", method=PLAIN)
    names = {m.name for m in repair.report.verification.measures if m.brief}
    assert names == ({"parity gap", "sampled gap"} if kind == "odds" else {"parity gap", "odds gap"})
    parity = float(GroupGap.observed(x, 1, favorable=1).value(repair.model))
    assert repair.report.measure("parity gap").after == pytest.approx(parity)


def test_what_turns_round_is_said_even_where_it_shrinks():
    model, x, y = two_groups()
    with torch.no_grad():
        model.weight[1, 1] = 3.0  # favors group 1 of all merits
    drawn = GroupGap.sampled(x, 1, count=1000, favorable=1, target=0.05)
    parity = GroupGap.observed(x, 1, favorable=1, name="observed")
    spec = Specification(drawn, watch=(parity,))
    repair = solve_repair(model, spec, data=(x, -y + 1), weights=["weight"], method=SQP(confidence=None, buffer=0.0))
    found = repair.report.measure("observed")
    parts = [float(parity.signed_hard(net)[0]) for net in (model, repair.model)]
    assert found.reversed == (parts[0] * parts[1] < 0 and abs(parts[1]) > 0.03)


# ---------------------------------------------------------------- degenerate answers


def plain_of(details=(), balanced=(0.9, 0.9), held_out=False):
    measure = {"name": "gap", "held_out": held_out, "before": 0.2, "after": 0.0, "details": dict(details)}
    counts = {"held_out": held_out, "balanced_accuracy": balanced, "recall": {"0": [0.9, 0.1], "1": [0.9, 0.9]}}
    counts |= {"name": "data", "accuracy": (0.9, 0.9), "newly_wrong": 0, "newly_right": 0}
    return {"measures": [measure], "labels": [counts], "checks": []}


def test_rates_near_0_or_1_and_answers_like_guesses_are_warned_of():
    assert list_warnings(plain_of([("favorable rate, a", (0.4, 0.5))])) == []
    (text,) = list_warnings(plain_of([("favorable rate, a", (0.4, 0.99)), ("favorable rate, b", (0.3, 1.0))]))
    assert "Favorable rate, a: 0.4000 -> 0.9900 on the repair data; Favorable rate, b" in text
    assert list_warnings(plain_of([("favorable rate, a", (0.015, 0.01))])) == [], "it was there before"
    (text,) = list_warnings(plain_of(balanced=(0.8, 0.52), held_out=True))
    assert text.startswith("Balanced accuracy fell from 0.8000 to 0.5200 on held-out data; guessing gives 0.5000")


def test_a_repair_that_gives_all_the_same_answer_says_so_first():
    model, x, y = two_groups()
    yes = ErrorRate(x, torch.ones_like(y), target=0.001, name="refusals")
    spec = Specification(yes, watch=(GroupGap.observed(x, 1, favorable=1, name="gap"),))
    repair = solve_repair(model, spec, data=(x, torch.ones_like(y)), weights=["bias"], method=PLAIN)
    rates = [pair for name, pair in repair.report.measure("gap").details.items() if name.startswith("favorable")]
    assert all(after > 0.98 for _, after in rates)
    assert "Nearly all of a group get one answer" in first_lines(repair)
    assert all(len(line) <= WIDTH for line in str(repair.report).splitlines())


# ---------------------------------------------------------------- labels


def test_labels_of_data_alone_are_counted_on_both_halves():
    toy = task()
    gap = GroupGap.observed(toy.inputs.numpy(), 1, favorable=1, target=0.1)
    given = {"data": (toy.inputs.numpy(), toy.labels.numpy()), "held_out": (toy.other_inputs.numpy(), toy.other_labels)}
    repair = solve_repair(toy.model, gap, weights="last", method=PLAIN, **given)
    sides = [(False, toy.inputs, toy.labels), (True, toy.other_inputs, toy.other_labels)]
    for held_out, inputs, labels in sides:
        (counts,) = (c for c in repair.report.verification.labels if c.held_out == held_out)
        right = [float((net(inputs).argmax(1) == labels).double().mean()) for net in (toy.model, repair.model)]
        assert counts.accuracy == pytest.approx(tuple(right))
        assert set(counts.recall) == {0, 1}
    assert "labels of 'data': 400 and 400" in str(repair.report)


def test_the_same_labels_are_counted_once():
    toy = task()
    gap = GroupGap.observed(toy.inputs, 1, favorable=1, target=0.1)
    data = (toy.inputs.clone(), toy.labels.clone())
    repair = solve_repair(toy.model, gap, [toy.keep()], data=data, weights="last", method=PLAIN, held_out=toy.held_out)
    assert [(c.name, c.held_out) for c in repair.report.verification.labels] == [
        ("keep labels", False),
        ("keep labels", True),
    ]


def test_held_out_labels_that_are_no_classes_are_left_alone():
    toy = task()
    gap = GroupGap.observed(toy.inputs, 1, favorable=1, target=0.1)
    held_out = (toy.other_inputs, np.full(400, 0.5))
    repair = solve_repair(toy.model, gap, weights="last", method=PLAIN, held_out=held_out)
    assert repair.report.measure(held_out=True) is not None
    assert repair.report.labels(held_out=True) is None
