"""Numbers, classes and functions in statements that mean nothing, or another thing each time, are errors by name."""

import math

import numpy as np
import pytest
import torch
from torch import nn

from repairopt import (
    AccuracyDrop,
    Bound,
    CallableProperty,
    Classifier,
    ConfusionRate,
    ErrorRate,
    FlipRate,
    GroupGap,
    GroupMetrics,
    KeepLabels,
    Layers,
    MissRate,
    ModelError,
    OddsGap,
    RepairError,
    Settings,
    SpecificationError,
    solve_repair,
    trace_frontier,
)
from repairopt.patches import Patch

torch.manual_seed(0)
X = torch.randn(40, 3)
Y = (X[:, 0] > 0).long()
G = np.arange(40) % 2
NETWORK = nn.Linear(3, 2)


def gap(**options):
    return GroupGap.observed(X, sensitive_features=G, **options)


@pytest.mark.parametrize("favorable", [1.0, "yes", [0, 1], True, None, -1, 2])
def test_a_favorable_class_that_is_none_is_refused(favorable):
    with pytest.raises(SpecificationError, match="favorable"):
        gap(favorable=favorable).value(NETWORK)
    with pytest.raises(SpecificationError, match="favorable"):
        solve_repair(NETWORK, OddsGap.observed(X, Y, sensitive_features=G, favorable=favorable), weights="last")


@pytest.mark.parametrize("values", ["01", "a", "", "female", "0"])
def test_groups_to_compare_are_a_list(values):
    with pytest.raises(SpecificationError, match="list of groups"):
        gap(values=values)


@pytest.mark.parametrize(
    "make",
    [
        lambda: Bound(AccuracyDrop(X, Y), limit=2),
        lambda: Bound(ErrorRate(X, Y), limit=20),
        lambda: Bound(FlipRate(X, Y), limit=1.01),
        lambda: Bound(gap(), limit=5),
        lambda: Bound(MissRate(X, Y), limit=math.inf),
        lambda: Bound(OddsGap.observed(X, Y, sensitive_features=G), limit=100),
    ],
)
def test_a_share_above_one_bounds_nothing_and_is_refused(make):
    with pytest.raises(SpecificationError, match="holds of every network"):
        make()


@pytest.mark.parametrize("target", ["0.1", None, True, math.nan, math.inf, 5.0])
def test_targets_are_numbers_that_can_be_missed(target):
    for goal in (ErrorRate(X, Y, target=target), gap(target=target)):
        with pytest.raises(SpecificationError, match="target"):
            solve_repair(NETWORK, goal, weights="last")


@pytest.mark.parametrize("limit", ["0.1", True, math.nan, "x", np.nan, -math.inf])
def test_limits_are_numbers(limit):
    with pytest.raises(SpecificationError, match="limit"):
        Bound(AccuracyDrop(X, Y), limit=limit)


def test_limits_that_say_something_stay_allowed():
    Bound(AccuracyDrop(X, Y), limit=-0.01)
    Bound(ErrorRate(X, Y), limit=1.0)
    Bound(gap(score="kl"), limit=2.0)
    Bound(CallableProperty(lambda predict: predict(X).std()), limit=40.0)


@pytest.mark.parametrize(
    "function",
    [
        lambda predict: None,
        lambda predict: "0.5",
        lambda predict: predict(X).mean() * 1j,
        lambda predict: {"value": 0.1},
        lambda predict: predict(X)[:, 0],
        lambda predict: [0.1],
    ],
)
def test_functions_that_give_no_number_are_refused(function):
    with pytest.raises(SpecificationError, match="returned"):
        solve_repair(NETWORK, CallableProperty(function, 0.1, "mine"), weights="last")


@pytest.mark.parametrize(
    "function",
    [
        lambda predict: torch.rand(()),
        lambda predict: predict(X[torch.randperm(40)[:5]]).abs().mean(),
        lambda predict: (predict(X) + torch.randn(40, 2)).abs().mean(),
        lambda predict: float(np.random.default_rng().normal()),
    ],
)
def test_functions_that_give_another_number_each_time_are_refused(function):
    for goal, bounds in (
        (CallableProperty(function, 0.001, "mine"), ()),
        (ErrorRate(X, Y, target=0.01), [Bound(CallableProperty(function, name="mine"), limit=9.0)]),
    ):
        with pytest.raises(SpecificationError, match="'mine' is .* and then"):
            solve_repair(NETWORK, goal, bounds, weights="last")


@pytest.mark.parametrize(
    "goal",
    [
        ErrorRate(X, torch.zeros(40)),
        gap(favorable=0),
        MissRate(X, torch.zeros(40), label=0),
        AccuracyDrop(X, torch.zeros(40)),
        OddsGap.observed(X, torch.zeros(40), sensitive_features=G, favorable=0, given=(0,)),
    ],
)
@pytest.mark.parametrize("outputs", [1, 3])
def test_numbers_are_no_classes(goal, outputs):
    adapted = Classifier(nn.Linear(3, outputs), outputs="regression")
    with pytest.raises(ModelError, match="speaks of classes"):
        solve_repair(adapted, goal, weights="last")
    number = CallableProperty(lambda predict: predict(X).abs().mean(), 0.1)
    with pytest.raises(ModelError, match="speaks of classes"):
        solve_repair(adapted, number, [KeepLabels(X, torch.zeros(40))], weights="last")


@pytest.mark.parametrize(
    "options",
    [{"seed": -1}, {"seed": 1.5}, {"seed": 2**64}, {"seed": True}, {"isolate": "yes"}, {"memory_limit": "1GB"}],
)
def test_settings_that_mean_nothing_are_refused(options):
    with pytest.raises(SpecificationError, match=next(iter(options))):
        Settings(**options)
    assert Settings(seed=np.int64(3)).seed == 3


@pytest.mark.parametrize("goal", [ErrorRate, GroupGap, int, [ErrorRate(X, Y)], "error_rate <= 0.1", None])
def test_a_goal_that_is_none_is_refused(goal):
    with pytest.raises(SpecificationError, match="goal"):
        solve_repair(NETWORK, goal, weights="last")


@pytest.mark.parametrize("names", [(["fc1"],), (1,), (None,), (nn.Linear(1, 1),), ("fc1", 2)])
def test_layers_have_names(names):
    with pytest.raises(SpecificationError, match="is no name"):
        Layers(*names)


@pytest.mark.parametrize(
    "state", [lambda: torch.autocast("cpu", torch.bfloat16), lambda: torch.autocast("cpu", torch.float16)]
)
def test_gaps_are_exact_under_autocast(state):
    answers = torch.nn.functional.one_hot(Y, 2).float()
    expected = abs(Y[G == 0].double().mean() - Y[G == 1].double().mean())
    with state():
        found = gap().value(lambda inputs: answers)
    assert float(found) == pytest.approx(float(expected), abs=1e-6)


def test_a_keyword_that_nobody_knows_is_refused():
    with pytest.raises(TypeError, match="points"):
        trace_frontier(NETWORK, ErrorRate(X, Y), points=3)


@pytest.mark.parametrize("classes", [3, 4, 5, 10, 100])
def test_more_than_two_classes_need_a_favorable_one(classes):
    network = nn.Linear(3, classes)
    odds = OddsGap.observed(X, Y, sensitive_features=G)
    for goal in (gap(), gap(score="kl"), odds):
        with pytest.raises(SpecificationError, match="no favorable class is stated"):
            solve_repair(network, goal, weights="last")
        goal.value(NETWORK)  # two classes
    assert 0 <= float(gap(favorable=2).value(network)) <= 1


@pytest.mark.parametrize("label", ["1", 1.0, True, None, -1])
def test_a_class_is_an_index(label):
    with pytest.raises(SpecificationError, match="index of a class"):
        MissRate(X, Y, label=label)
    with pytest.raises(SpecificationError, match="index of a class"):
        ConfusionRate(X, Y, label=1, answer=label)


@pytest.mark.parametrize("answer", [2, 3, 9, 100, 10**6])
def test_an_answer_that_the_network_cannot_give_is_refused(answer):
    with pytest.raises(SpecificationError, match="out of range"):
        ConfusionRate(X, Y, label=1, answer=answer).value(NETWORK)
    with pytest.raises(SpecificationError, match="out of range"):
        MissRate(X, torch.where(Y == 1, answer, 0), label=answer).value(NETWORK)


@pytest.mark.parametrize(
    "scores",
    [
        torch.rand(40),
        torch.rand(40, requires_grad=True),
        np.linspace(0, 1, 40),
        list(np.linspace(-1, 1, 40)),
        torch.randn(40),
    ],
)
def test_scores_are_no_answers(scores):
    with pytest.raises(SpecificationError, match="expected answers"):
        GroupMetrics(Y, scores, G).demographic_parity_difference()


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (lambda: solve_repair(ErrorRate(X, Y), NETWORK), "in this order"),
        (lambda: GroupGap.observed(X, Y), "a Tensor"),
        (lambda: GroupGap.observed(X, G), "a ndarray"),
        (lambda: GroupGap.sampled(X, column=[1]), "a list"),
        (lambda: Patch.from_repair(NETWORK, NETWORK), "in this order|expected a repair"),
        (lambda: solve_repair(NETWORK, ErrorRate(X, Y), heldout=(X, Y)), "help"),
    ],
)
def test_arguments_in_the_wrong_place_are_said_to_be_so(call, said):
    with pytest.raises(RepairError, match=said):
        call()
