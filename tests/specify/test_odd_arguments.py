"""What no argument can be is refused where it is given, by an error that names it: no TypeError from within."""

import inspect
from fractions import Fraction

import numpy as np
import pandas as pd
import pytest
import torch
from odd_values import ODD

from repairopt import (
    SQP,
    AccuracyDrop,
    AttackSuccess,
    Bound,
    CallableProperty,
    ChangeLimit,
    Classifier,
    ConfusionRate,
    ErrorRate,
    ExpectedCost,
    FixLabels,
    FlipRate,
    GroupMetrics,
    GroupOffsets,
    KeepLabels,
    KeepLowest,
    KeepOutputs,
    LowRank,
    MissRate,
    OnGrid,
    OutputBounds,
    Program,
    Region,
    RegionRepair,
    RepairError,
    RowSet,
    Settings,
    Specification,
    SpecificationError,
    Strictest,
    SurrogateSettings,
    Swarm,
    TrainThenCorrect,
    Vote,
)

X = torch.randn(12, 3, generator=torch.Generator().manual_seed(0))
Y = (X[:, 0] > 0).long()
ROWS = {"inputs": X, "labels": Y}
GIVEN = {
    **dict.fromkeys([ErrorRate, KeepLabels, FixLabels, AccuracyDrop, FlipRate, ConfusionRate, MissRate], ROWS),
    ExpectedCost: ROWS,
    KeepOutputs: {"inputs": X, "distance": 1.0},
    OutputBounds: {"inputs": X, "matrix": [[1.0, -1.0]], "bound": [5.0]},
    KeepLowest: {"inputs": X},
    ChangeLimit: {"absolute": 1.0},
    Bound: {"property": ErrorRate(X, Y), "limit": 0.5},
    Specification: {"goal": ErrorRate(X, Y)},
    AttackSuccess: ROWS | {"radius": 0.1},
    CallableProperty: {"function": lambda predict: 0.0},
    Classifier: {"model": torch.nn.Linear(3, 2)},
    GroupMetrics: {"y_true": Y, "y_pred": Y, "sensitive_features": Y},
    Region: {"lower": [0.0, 0.0], "upper": [1.0, 1.0], "matrix": [[1.0, -1.0]]},
    RowSet: ROWS,
    Strictest: {},
    LowRank: {},
    GroupOffsets: {"network": torch.nn.Linear(3, 2), "inputs": X, "column": 0, "cuts": [0.0]},
    Program: {"gradient": [1.0, 1.0], "matrix": [[1.0, 1.0]], "lower": [0.0]},
    **dict.fromkeys([SQP, OnGrid, RegionRepair, Settings, SurrogateSettings, Swarm, TrainThenCorrect, Vote], {}),
}


@pytest.mark.parametrize("kind", GIVEN, ids=lambda kind: kind.__name__)
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_odd_arguments_are_refused_in_words(kind):
    kind(**GIVEN[kind])
    refused = []
    for name in inspect.signature(kind).parameters:
        for odd in ODD:
            try:
                kind(**{**GIVEN[kind], name: odd})
            except RepairError as error:
                refused.append(str(error))
    assert len(refused) > len(ODD) / 2
    assert min(map(len, refused)) > 20


@pytest.mark.parametrize(
    ("given", "odd"),
    [
        ("time_limit", True),
        ("time_limit", 10**400),
        ("memory_limit", None),
        ("tolerance", None),
        ("progress", 3),
        ("checkpoint", "file"),
    ],
)
def test_settings_say_what_they_expect(given, odd):
    with pytest.raises(SpecificationError, match=f"settings: {given}=.*expected"):
        Settings(**{given: odd})


def test_settings_take_numbers_of_other_libraries():
    found = Settings(time_limit=torch.tensor(2.0), memory_limit=1e9)
    assert found.time_limit == 2.0
    assert found.memory_limit == 10**9
    assert Settings(time_limit=float("inf")).time_limit is None


@pytest.mark.parametrize(
    ("odd", "remedy"),
    [(ErrorRate(X, Y), r"Bound\(ErrorRate"), ("accuracy >= 0.9", "bind_statement"), (3, "ready-made")],
)
def test_what_is_no_constraint_is_told_how_to_become_one(odd, remedy):
    with pytest.raises(SpecificationError, match=remedy):
        Specification(ErrorRate(X, Y), [odd])


@pytest.mark.parametrize("odd", ["a", None, True, float("nan"), -0.1, 1.5, 10**400])
def test_a_tolerance_is_a_share(odd):
    for make in (lambda t: KeepLabels(X, Y, tolerance=t), lambda t: KeepLowest(X, tolerance=t)):
        with pytest.raises(SpecificationError, match=r"tolerance.*share of"):
            make(odd)


@pytest.mark.parametrize("odd", ["a", None, True, float("nan"), float("inf"), -1])
def test_a_distance_is_a_number_from_0(odd):
    with pytest.raises(SpecificationError, match=r"'keep outputs': distance .* must not be negative"):
        KeepOutputs(X, odd)


@pytest.mark.parametrize("odd", [3, "error rate", None, ErrorRate, [ErrorRate(X, Y)]])
def test_a_bound_is_on_a_property(odd):
    with pytest.raises(SpecificationError, match="bound: property is .*expected an object with name, target"):
        Bound(odd, 0.5)


@pytest.mark.parametrize("number", [torch.tensor(0.1), np.float32(0.1), np.array(0.1), Fraction(1, 10), 0.1], ids=repr)
def test_numbers_of_other_libraries_become_pythons(number):
    kept = KeepLabels(X, Y, margin=number, weight=number, tolerance=number)
    bound, change = Bound(ErrorRate(X, Y), number, buffer=number), ChangeLimit(relative=number)
    found = [kept.margin, kept.weight, kept.tolerance, bound.limit, bound.buffer, change.relative]
    found += [KeepOutputs(X, number).distance, KeepLowest(X, weight=number).weight, SQP(damping=number).damping]
    assert found == pytest.approx([0.1] * len(found))
    assert all(isinstance(one, float) for one in found)


def test_what_was_taken_is_taken_still():
    assert KeepLabels(X, Y, allowed=np.floor(2.5)).allowed == 2  # of 0.2 * len(X), say
    assert Bound(ErrorRate(X, Y), relative=np.True_).relative
    frame = pd.DataFrame(X.numpy(), columns=["a", "b", "c"])
    for protected in ([0, 2], (0, 2), np.array([0, 2]), torch.tensor([0, 2]), range(0, 3, 2), pd.Index(["a", "c"])):
        assert Specification(ErrorRate(X, Y), protected=protected, columns=frame.columns).protected == (0, 2)
