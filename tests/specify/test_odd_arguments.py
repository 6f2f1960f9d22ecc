"""What no argument can be is refused where it is given, by an error that names it: no TypeError from within."""

import inspect

import pytest
import torch

from repairopt import (
    SQP,
    AccuracyDrop,
    Bound,
    ChangeLimit,
    ConfusionRate,
    ErrorRate,
    ExpectedCost,
    FixLabels,
    FlipRate,
    KeepLabels,
    KeepLowest,
    KeepOutputs,
    MissRate,
    OnGrid,
    OutputBounds,
    RepairError,
    Settings,
    Specification,
    SpecificationError,
    SurrogateSettings,
    Swarm,
    TrainThenCorrect,
    Vote,
)

X = torch.randn(12, 3, generator=torch.Generator().manual_seed(0))
Y = (X[:, 0] > 0).long()
ODD = [
    10**400,
    "a",
    "",
    None,
    True,
    float("nan"),
    float("inf"),
    -1,
    -0.5,
    2.5,
    0,
    [],
    {},
    (1, 2),
    object(),
    1 + 2j,
    b"x",
]
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
    **dict.fromkeys([SQP, OnGrid, Settings, SurrogateSettings, Swarm, TrainThenCorrect, Vote], {}),
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


def test_numbers_of_numpy_and_torch_are_numbers():
    for number in (torch.tensor(0.1), torch.tensor(0.1).numpy()[()], 0.1):
        assert float(KeepLabels(X, Y, tolerance=number).tolerance) == pytest.approx(0.1)
        assert Bound(ErrorRate(X, Y), limit=number).limit == pytest.approx(0.1)
