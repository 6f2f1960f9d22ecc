"""Properties against definitions worked out by hand on small data."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, strategies as st

from repairopt.errors import SpecificationError
from repairopt.network import Engine
from repairopt.specify import ErrorRate, GroupGap, MissRate

# The first columns of the inputs are the logits, so a prediction is the position of the largest of them.
identity = lambda inputs: inputs[..., :3] if inputs.shape[-1] > 3 else inputs  # noqa: E731


def inputs_for(*labels, classes=2, lead=4.0):
    return lead * torch.nn.functional.one_hot(torch.tensor(labels), classes).double()


def gap(groups, classes=2, **options):
    return GroupGap.given([inputs_for(*labels, classes=classes) for labels in groups], favorable=1, **options)


TWO = [(1, 1, 1, 0), (1, 0, 0, 0, 0)]  # favorable rates 0.75 and 0.2
FOUR = [(1, 1, 1, 1), (1, 1, 0, 0), (1, 0, 0, 0), (0, 0)]  # 1, 0.5, 0.25, 0


def test_difference_of_two_and_mean_and_maximum_over_pairs_of_four():
    assert float(gap(TWO).value(identity)) == pytest.approx(0.55)
    pairs = [0.5, 0.75, 1.0, 0.25, 0.5, 0.25]
    assert float(gap(FOUR, score="difference").value(identity)) == pytest.approx(sum(pairs) / 6)
    assert float(gap(FOUR).value(identity)) == pytest.approx(1.0)
    assert gap(FOUR).signed_hard(identity).tolist() == pytest.approx(pairs)
    assert gap(TWO[::-1]).signed_hard(identity).tolist() == pytest.approx([-0.55])


def test_kullback_leibler_with_smoothing_by_hand():
    first, second = (1.5 / 5, 3.5 / 5), (4.5 / 6, 1.5 / 6)  # (count + 1/2) / (N + 2/2) for labels 0 and 1
    forward = sum(a * math.log(a / b) for a, b in zip(first, second, strict=True))
    backward = sum(b * math.log(b / a) for a, b in zip(first, second, strict=True))
    assert float(gap(TWO, score="kl").value(identity)) == pytest.approx((forward + backward) / 2)
    middle = [(a + b) / 2 for a, b in zip(first, second, strict=True)]
    shannon = sum(t * math.log(t / m) for theta in (first, second) for t, m in zip(theta, middle, strict=True)) / 2
    assert float(gap(TWO, score="jensen_shannon").value(identity)) == pytest.approx(shannon)


def test_divergences_of_three_classes_and_groups_that_never_get_a_label():
    groups = [(0, 1, 2, 2), (2, 2, 2), (0, 0)]
    theta = [np.array([1.5, 1.5, 2.5]) / 5.5, np.array([0.5, 0.5, 3.5]) / 4.5, np.array([2.5, 0.5, 0.5]) / 3.5]
    pairs = [float((a * np.log(a / b)).sum()) for i, a in enumerate(theta) for j, b in enumerate(theta) if i != j]
    assert float(gap(groups, 3, score="kl").value(identity)) == pytest.approx(np.mean(pairs))
    middle = np.mean(theta, axis=0)
    shannon = np.mean([(t * np.log(t / middle)).sum() for t in theta])
    assert float(gap(groups, 3, score="jensen_shannon").value(identity)) == pytest.approx(shannon)


@given(st.lists(st.lists(st.integers(0, 2), min_size=1, max_size=12), min_size=2, max_size=5))
def test_scores_stay_in_their_ranges_and_vanish_for_equal_groups(groups):
    q = len(groups)
    values = {score: float(gap(groups, 3, score=score).value(identity)) for score in ("difference", "max_difference")}
    assert 0 <= values["difference"] <= values["max_difference"] + 1e-12 <= 1 + 1e-9
    shannon = float(gap(groups, 3, score="jensen_shannon").value(identity))
    assert -1e-12 <= shannon <= math.log(q) + 1e-12
    assert float(gap(groups, 3, score="kl").value(identity)) >= -1e-12
    for score in ("difference", "max_difference", "kl", "jensen_shannon"):
        assert float(gap([groups[0]] * q, 3, score=score).value(identity)) == pytest.approx(0, abs=1e-12)


@pytest.mark.parametrize("score", ["difference", "max_difference", "kl", "jensen_shannon"])
def test_the_soft_value_tends_to_the_hard_one_as_the_temperature_falls(score):
    inputs = [torch.randn(50, 3, dtype=torch.float64), torch.randn(40, 3, dtype=torch.float64) + 0.5]
    hard = float(GroupGap.given(inputs, favorable=1, score=score).value(identity))
    errors = []
    for temperature in (1.0, 0.1, 0.01, 1e-4):
        soft = float(GroupGap.given(inputs, favorable=1, score=score, temperature=temperature).soft_value(identity))
        errors.append(abs(soft - hard))
    assert errors[-1] < 1e-6
    assert errors[-1] <= errors[0]


def test_residuals_are_the_signed_parts_of_the_soft_difference():
    inputs = [torch.randn(20, 3, dtype=torch.float64) + a / 2 for a in range(4)]
    for temperature in (1.0, None):
        goal = GroupGap.given(inputs, favorable=2, temperature=temperature, score="difference")
        parts = goal.residuals(identity)
        assert parts.shape == (6,)
        assert float(parts.abs().mean()) == pytest.approx(float(goal.soft_value(identity)))
        largest = GroupGap.given(inputs, favorable=2, temperature=temperature)
        assert float(parts.abs().max()) == pytest.approx(float(largest.soft_value(identity)))


def test_without_a_temperature_the_slope_of_the_soft_value_estimates_that_of_the_count():
    logits = torch.randn(40_000, 1, dtype=torch.float64)
    inputs = [torch.cat([torch.zeros_like(logits), logits], 1), torch.cat([torch.zeros_like(logits), logits - 0.5], 1)]
    shift = lambda t: lambda x: x + torch.tensor([0.0, t], dtype=torch.float64)  # noqa: E731
    goal = GroupGap.given(inputs, favorable=1)
    h = 0.1
    soft = float(goal.residuals(shift(h)) - goal.residuals(shift(-h))) / (2 * h)
    density = lambda z: math.exp(-z * z / 2) / math.sqrt(2 * math.pi)  # noqa: E731
    assert soft == pytest.approx(density(0.0) - density(0.5), rel=0.25)


def test_every_part_works_for_many_weight_changes_at_once(small_net):
    groups = [torch.randn(12, 4, dtype=torch.float64) + a for a in range(3)]
    engine = Engine(small_net, {"4.weight": torch.arange(18)})
    deltas = torch.randn(4, 18, dtype=torch.float64)
    for score in ("difference", "max_difference", "kl", "jensen_shannon"):
        goal = GroupGap.given(groups, favorable=1, score=score)
        for part in (goal.value, goal.soft_value, lambda predict, g=goal: g.residuals(predict).square().sum()):
            batch = engine.values(part, deltas)
            loop = [float(part(engine.predict(delta))) for delta in deltas]
            assert batch.tolist() == pytest.approx(loop, abs=1e-6)


def test_rates_and_details():
    goal = gap(TWO)
    assert goal.rates(identity).tolist() == [pytest.approx([0.25, 0.75]), pytest.approx([0.8, 0.2])]
    details = goal.details(identity)
    assert details["favorable rate, group 0"] == pytest.approx(0.75)
    assert details["favorable rate, group 1"] == pytest.approx(0.2)
    assert details["standard error"] == pytest.approx(math.sqrt(0.75 * 0.25 / 4 + 0.2 * 0.8 / 5))


def test_bad_settings_of_a_gap():
    for make, *snippets in [
        (lambda: gap(TWO, score="gini"), "'group gap': score 'gini' is unknown", "jensen_shannon"),
        (lambda: gap(TWO, temperature=0.0), "temperature and smoothing must be above 0"),
        (lambda: gap(TWO, smoothing=0), "must be above 0"),
        (lambda: gap(TWO[:1]), "1 group given", "at least two"),
        (lambda: GroupGap.given([inputs_for(1), torch.zeros(0, 2)]), "'group gap', group 1: no inputs"),
        (lambda: gap(TWO, name="my gap", score="x"), "'my gap'"),
    ]:
        with pytest.raises(SpecificationError) as error:
            make()
        for snippet in snippets:
            assert snippet in str(error.value)


def test_a_favorable_label_that_the_model_does_not_have_is_refused():
    with pytest.raises(SpecificationError, match=r"'group gap': favorable.* 7 .*0 to 1"):
        GroupGap.given([inputs_for(0, 1), inputs_for(1, 1)], favorable=7).value(identity)


def test_error_rate_counts_and_its_soft_value_is_a_mean_probability():
    goal = ErrorRate(inputs_for(0, 1, 2, 1, classes=3, lead=2.0), [0, 1, 1, 0])
    assert float(goal.value(identity)) == 0.5
    right, wrong = math.exp(2) / (math.exp(2) + 2), 1 / (math.exp(2) + 2)
    assert float(goal.soft_value(identity)) == pytest.approx(1 - (2 * right + 2 * wrong) / 4)
    assert goal.details(identity) == {"wrong points": 2.0}
    assert float(goal.on(goal.inputs[:2], goal.labels[:2]).value(identity)) == 0.0


def test_labels_that_the_model_does_not_have_are_refused():
    goal = ErrorRate(inputs_for(0, 1, 1), [0, 1, 2])
    for part in (goal.value, goal.soft_value):
        with pytest.raises(SpecificationError, match="'error rate': label 2 at row 2 is out of range; expected 0 to 1"):
            part(identity)


def test_miss_rate_looks_at_one_class_only():
    goal = MissRate(inputs_for(0, 1, 2, 1, 1, classes=3, lead=2.0), [1, 1, 1, 0, 2], label=1)
    assert float(goal.value(identity)) == pytest.approx(2 / 3)
    right, wrong = math.exp(2) / (math.exp(2) + 2), 1 / (math.exp(2) + 2)
    assert float(goal.soft_value(identity)) == pytest.approx(1 - (right + 2 * wrong) / 3)
    with pytest.raises(SpecificationError, match=r"'miss rate': no row has label 4; its recall is not defined"):
        MissRate(goal.inputs, goal.labels, label=4)
