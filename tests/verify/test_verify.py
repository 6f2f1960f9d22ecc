"""verify(): both networks run anew on the whole specification; counts worked out by hand."""

import numpy as np
import pytest
import torch
from torch import nn

from repairopt.specify import Bound, ChangeLimit, ErrorRate, FixLabels, GroupGap, KeepLabels, KeepOutputs, Specification
from repairopt.verify import verify

# Logits are a linear function of the input; class 1 where its first entry is positive.
X = torch.tensor([[-2.0, 0], [-1, 1], [-0.5, 0], [0.5, 1], [1, 0], [2, 1]], dtype=torch.float64)
LABELS = torch.tensor([0, 0, 1, 1, 1, 0])  # samples 2 and 5 are wrong


def network(shift=0.0):
    model = nn.Linear(2, 2).double()
    with torch.no_grad():
        model.weight.copy_(torch.tensor([[0.0, 0.0], [1.0, 0.0]]))
        model.bias.copy_(torch.tensor([0.0, shift]))
    return model


def checked(shift=0.75, constraints=(), held_out=(), watch=(), goal=None, change=None):
    goal = goal or ErrorRate(X, LABELS, target=0.1)
    spec = Specification(goal, tuple(constraints), tuple(held_out), tuple(watch))
    return verify(network(), network(shift), spec, change=change)


def test_goal_watched_and_held_out_measures():
    gap = GroupGap.observed(X, 1, name="gap", favorable=1)
    found = checked(watch=[gap], held_out=[ErrorRate(X[:2], LABELS[:2])])
    goal, watched, held = found.measures
    assert (goal.name, goal.held_out, goal.target) == ("error rate", False, 0.1)
    assert (found.goal_before, found.goal_after) == pytest.approx((2 / 6, 1 / 6))
    assert (watched.name, watched.target) == ("gap", None)
    # favorable rates: group 0 has inputs -2, -0.5, 1 and group 1 has -1, 0.5, 2
    assert (watched.before, watched.after) == pytest.approx((1 / 3, 0.0))
    assert watched.details["favorable rate, column 1 = 0"] == pytest.approx((1 / 3, 2 / 3))
    assert (held.held_out, held.target) == (True, 0.1)  # the twin of the goal by name
    assert (held.before, held.after) == (0.0, 0.0)


def test_checks_count_samples_and_know_wishes():
    keep, fix = KeepLabels(X, LABELS, tolerance=0.25), FixLabels(X, LABELS)
    found = {check.constraint: check for check in checked(shift=1.5, constraints=[keep, fix]).checks}
    assert (found["keep labels"].applied, found["keep labels"].failed, found["keep labels"].allowed) == (4, 1, 1)
    assert found["keep labels"].holds
    assert not found["keep labels"].soft
    assert (found["fix labels"].applied, found["fix labels"].failed, found["fix labels"].allowed) == (2, 1, 2)
    assert found["fix labels"].soft
    assert found["keep labels"].before == pytest.approx([2.0, 1.0, 0.5, 1.0])
    assert found["keep labels"].after == pytest.approx([0.5, -0.5, 2.0, 2.5])


def test_constraints_are_anchored_to_the_original_network():
    outputs, bound = KeepOutputs(X, 1.0), Bound(ErrorRate(X, LABELS))
    found = checked(shift=0.75, constraints=[outputs, bound]).checks
    assert found[0].failed == 0
    assert float(found[0].after.min()) == pytest.approx(0.25)
    assert found[1].after == pytest.approx([2 / 6 - 1 / 6])
    assert (found[1].unit, found[1].applied) == ("rows", 1)
    far = checked(shift=1.25, constraints=[outputs]).checks[0]
    assert far.failed == 6
    assert not far.holds


def test_a_constraint_that_speaks_of_nothing_is_vacuous():
    found = checked(constraints=[KeepLabels(X[[2, 5]], LABELS[[2, 5]])]).checks[0]
    assert (found.applied, found.failed) == (0, 0)


def test_constraints_on_the_change():
    initial = np.array([1.0, 2.0])
    found = checked(constraints=[ChangeLimit(0.5)], change=(initial, np.array([0.5, -0.7]))).checks[0]
    assert (found.failed, found.allowed, found.unit, found.holds) == (1, 0, "rows", False)
    assert found.after == pytest.approx([0.0, -0.2])
    assert checked(constraints=[ChangeLimit(0.5)], change=(initial, np.array([0.5, -0.5]))).checks[0].holds


def test_label_counts_of_repair_and_held_out_data_each_set_once():
    keep, fix = KeepLabels(X, LABELS), FixLabels(X, LABELS)
    other = KeepLabels(X[:4].clone(), LABELS[:4])
    found = checked(shift=0.75, constraints=[keep, fix], held_out=[other]).labels
    assert [(counts.held_out, counts.count) for counts in found] == [(False, 6), (True, 4)]
    counts = found[0]
    assert counts.accuracy == pytest.approx((4 / 6, 5 / 6))
    assert (counts.newly_wrong, counts.newly_right) == (0, 1)
    assert counts.recall == {0: pytest.approx((2 / 3, 2 / 3)), 1: pytest.approx((2 / 3, 1.0))}
    assert counts.balanced_accuracy == pytest.approx((2 / 3, 5 / 6))
    assert counts.rate == {0: pytest.approx((3 / 6, 2 / 6)), 1: pytest.approx((3 / 6, 4 / 6))}


def test_a_network_that_became_constant_is_marked():
    assert checked(shift=100.0).constant
    assert not checked(shift=0.75).constant


def test_nothing_that_was_changed_in_between_is_trusted(fingerprint):
    before, after = network(), network(0.75).train()
    marks = fingerprint(before), fingerprint(after)
    spec = Specification(ErrorRate(X, LABELS), (KeepLabels(X, LABELS),))
    verify(before, after, spec)
    assert (fingerprint(before), fingerprint(after)) == marks
    with torch.no_grad():
        after.bias[1] = 0.0
    assert verify(before, after, spec).goal_after == pytest.approx(2 / 6)


def test_small_memory_gives_the_same_counts():
    spec = Specification(ErrorRate(X, LABELS), (KeepLabels(X, LABELS),))
    large, small = (verify(network(), network(0.75), spec, memory_limit=limit) for limit in (2**30, 1))
    assert large.labels[0] is not small.labels[0]
    assert vars(large.labels[0]) == vars(small.labels[0])
    assert large.goal_after == small.goal_after


def test_figures_that_one_of_the_two_networks_lacks_are_told_as_unknown():
    class Named:
        name, target = "wrong samples", 0.0

        def value(self, predict):
            return (predict(X).argmax(1) != LABELS).double().mean()

        def details(self, predict):
            return {f"{int((predict(X)[:, 1] > 0).sum())} positive": 1.0}

    details = checked(goal=Named()).measures[0].details
    assert list(details) == ["3 positive", "4 positive"]
    assert np.isnan(details["3 positive"][1])
    assert np.isnan(details["4 positive"][0])


@pytest.mark.parametrize(
    ("tolerance", "turned", "holds"),
    [(0.25, 4, True), (0.25, 5, False), (0.0625, 1, True), (0.1, 2, False), (0.05, 1, False), (1.0, 16, True)],
)
def test_a_tolerance_is_a_share_of_the_right_answers_and_holds_at_its_edge(tolerance, turned, holds):
    """Of 20 rows 16 are right; ``turned`` of them turn wrong."""
    x, labels = torch.eye(20), torch.zeros(20, dtype=torch.long)

    def with_wrong(count):
        network = nn.Linear(20, 2, bias=False)
        leads = torch.ones(20).index_fill(0, torch.arange(count), -1.0)
        network.weight.data = torch.stack([leads, -leads])
        return network.eval()

    goal, keep = ErrorRate(x, labels, target=0.5), KeepLabels(x, labels, tolerance=tolerance)
    found = verify(with_wrong(4), with_wrong(4 + turned), Specification(goal, (keep,)))
    assert found.checks[0].holds is holds
    assert found.checks[0].failed == turned
    assert found.goal_after == (4 + turned) / 20
