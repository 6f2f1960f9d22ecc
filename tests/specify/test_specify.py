"""The specification: what counts as a property or constraint, and messages for what does not."""

import numpy as np
import pytest
import torch

from repairopt import KeepLabels, solve_repair
from repairopt.errors import RepairError, SpecificationError
from repairopt.network import check_inputs
from repairopt.program import Source
from repairopt.specify import (
    Bound,
    CallableProperty,
    ChangeConstraint,
    ChangeLimit,
    Constraint,
    ErrorRate,
    GroupGap,
    LinearRows,
    OutputBounds,
    Property,
    SampleConstraint,
    Specification,
)

X, Y = torch.randn(6, 4), torch.tensor([0, 1, 2, 0, 1, 2])


class Mine:
    """The least that a goal needs."""

    name, target = "mine", 0.5

    def value(self, predict):
        return predict(X).mean()


class Margins:
    """The least that a constraint needs."""

    name = "positive"

    def margins(self, predict):
        return predict(X)[:, 0]


def test_protocols_are_told_apart():
    assert isinstance(Mine(), Property)
    assert isinstance(Margins(), Constraint)
    assert not isinstance(Margins(), SampleConstraint)
    assert isinstance(KeepLabels(X, Y), SampleConstraint)
    assert isinstance(OutputBounds(X, torch.eye(3), torch.ones(3)), SampleConstraint)
    assert isinstance(Bound(Mine()), Constraint)
    assert not isinstance(Bound(Mine()), SampleConstraint)
    for change in (ChangeLimit(1.0), LinearRows(np.eye(2), -1, 1)):
        assert isinstance(change, ChangeConstraint)
        assert not isinstance(change, Constraint)
    spec = Specification(Mine(), [Margins(), ChangeLimit(1.0), KeepLabels(X, Y)])
    assert [c.name for c in spec.on_outputs] == ["positive", "keep labels"]
    assert [c.name for c in spec.on_change] == ["change limit"]


def test_a_single_constraint_needs_no_list():
    assert len(Specification(Mine(), Margins()).constraints) == 1
    assert len(Specification(Mine(), watch=Mine()).watch) == 1


def test_a_plain_function_becomes_a_property():
    def unfairness(predict):
        return 0.1

    goal = Specification(unfairness).goal
    assert isinstance(goal, CallableProperty)
    assert (goal.name, goal.target) == ("unfairness", 0.0)
    assert goal.value(None).dtype == torch.float64
    assert float(goal.value(None)) == 0.1
    assert CallableProperty(lambda predict: torch.tensor(2.0), name="two").name == "two"


def test_sources_read_in_the_words_of_the_user():
    assert str(Source("keep labels", 7, "class 3 over class 8")) == "'keep labels', sample 7: class 3 over class 8"
    assert str(Source("goal")) == "'goal'"


class NoTarget:
    name = "no target"

    def value(self, predict):
        return torch.zeros(())


class Endless(Mine):
    target = float("nan")


@pytest.mark.parametrize(
    ("make", "snippets"),
    [
        (
            lambda: Specification(NoTarget()),
            ["goal", "expected an object with name, target and value", "NoTarget", "ready-made"],
        ),
        (lambda: Specification(3), ["goal 3", "got int"]),
        (lambda: Specification(Endless()), ["goal 'mine'", "target is nan", "expected a finite number"]),
        (
            lambda: Specification(Mine(), [object()]),
            ["constraint", "expected an object with name and margins", "got object"],
        ),
        (lambda: Specification(Mine(), 5), ["constraints: expected a list or tuple, got int"]),
        (
            lambda: Specification(Mine(), [KeepLabels(X, Y), KeepLabels(X, Y)]),
            ["the name 'keep labels' is used 2 times", "told apart by name", "Pass name="],
        ),
    ],
)
def test_what_is_no_specification(make, snippets):
    with pytest.raises(SpecificationError) as error:
        make()
    for snippet in snippets:
        assert snippet in str(error.value)


NAN = X.clone()
NAN[4, 2] = float("nan")
INFINITE = X.clone()
INFINITE[0] = float("inf")
OWNERS = [
    ("constraint 'keep labels'", lambda x, y: KeepLabels(x, y)),
    ("'error rate'", lambda x, y: ErrorRate(x, y)),
]


@pytest.mark.parametrize(("owner", "make"), OWNERS, ids=["KeepLabels", "ErrorRate"])
@pytest.mark.parametrize(
    ("inputs", "labels", "snippets"),
    [
        (X[:0], Y[:0], ["no inputs, shape (0, 4)", "expected (N, ...)"]),
        (torch.tensor(3.0), Y, ["no inputs, shape ()"]),
        (NAN, Y, ["1 of 6 inputs hold NaN", "the first is row 4", "Drop or impute"]),
        (INFINITE, Y, ["1 of 6 inputs hold NaN or infinite", "row 0"]),
        (X, Y[:5], ["labels have shape (5,), expected (6,)"]),
        (X, torch.nn.functional.one_hot(Y), ["labels have shape (6, 3), expected (6,)", "pass labels.argmax(1)"]),
        (X, Y - 1, ["label -1 at row 0 is out of range; expected 0 or more"]),
        (X, Y + 0.5, ["labels are not whole numbers"]),
    ],
)
def test_bad_data_is_named_in_the_words_of_the_user(owner, make, inputs, labels, snippets):
    with pytest.raises(SpecificationError) as error:
        make(inputs, labels)
    assert isinstance(error.value, RepairError | ValueError)
    assert str(error.value).startswith(owner)
    for snippet in snippets:
        assert snippet in str(error.value)


def test_labels_above_the_number_of_outputs_are_found_once_the_model_is_known(small_net, small_inputs):
    labels = torch.zeros(30, dtype=torch.int64)
    labels[11] = 3
    wanted = "constraint 'keep labels': label 3 at row 11 is out of range; expected 0 to 2, for a model with 3 outputs"
    goal = GroupGap.given([small_inputs, small_inputs + 1])
    with pytest.raises(SpecificationError, match=wanted):
        solve_repair(small_net, goal, [KeepLabels(small_inputs, labels)], weights="last")


def test_inputs_keep_their_type_where_it_is_a_floating_one():
    assert check_inputs("x", np.ones((2, 3)))[0].dtype == torch.float64
    assert check_inputs("x", np.ones((2, 3), dtype=np.float32))[0].dtype == torch.float32
    huge = torch.full((4, 2), 3e38)  # finite, though their sum is not
    assert torch.equal(check_inputs("x", huge)[0], huge)
    x, y = check_inputs("x", np.ones((2, 3), dtype=np.uint8), np.array([1.0, 0.0]), integers=True)
    assert x.dtype == torch.uint8  # the engine decides: an embedding wants whole numbers
    assert check_inputs("x", np.ones((2, 3), dtype=np.uint8))[0].dtype == torch.float32
    assert y.tolist() == [1, 0]
    assert check_inputs("x", [[1, 2], [3, 4]], [1, 0])[1].dtype == torch.int64
