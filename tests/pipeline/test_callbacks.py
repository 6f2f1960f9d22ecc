"""Functions of the user that are told of a repair: what they raise ends none, Ctrl-C in them does."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from repairopt import ErrorRate, KeepLabels, Settings, solve_repair
from repairopt.errors import forgiven

torch.manual_seed(0)
NETWORK = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2)).eval()
X = torch.randn(60, 3)
Y = (X[:, 0] > 0).long()


def repaired(method: str = "auto", **functions):
    goal, kept = ErrorRate(X, Y, target=0.1), [KeepLabels(X, Y, tolerance=0.5)]
    return solve_repair(NETWORK, goal, kept, method=method, settings=Settings(time_limit=3, **functions))


class Failing:
    """A function that fails at each call, as on a full disk."""

    def __init__(self, error: BaseException) -> None:
        self.error, self.calls = error, 0

    def __call__(self, told) -> None:
        self.calls += 1
        raise self.error


@pytest.mark.parametrize("method", ["auto", "one_shot", "train_then_correct", "swarm"])
@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), ZeroDivisionError("x"), StopIteration()])
def test_a_repair_outlives_what_its_functions_raise(method, error):
    plain, progress, checkpoint = repaired(method), Failing(error), Failing(error)
    with pytest.warns(RuntimeWarning) as caught:
        found = repaired(method, progress=progress, checkpoint=checkpoint)
    assert len(caught) == 2
    assert found.report.verdict == plain.report.verdict
    assert all(torch.equal(found.delta[name], plain.delta[name]) for name in plain.delta)
    assert progress.calls == 1  # it is not called again, a disk may be free again
    assert checkpoint.calls >= 1
    notes = [note for note in found.report.notes if f"failed ({type(error).__name__}" in note]
    assert [note.split()[1] for note in notes] == ["progress", "checkpoint"]


@pytest.mark.parametrize("name", ["progress", "checkpoint"])
def test_ctrl_c_in_a_function_ends_the_repair_with_the_best_point(name):
    function = Failing(KeyboardInterrupt())
    found = repaired(**{name: function})
    assert function.calls == 1
    assert found.report.stopped == "interrupted"


def test_what_a_function_does_to_its_tensors_changes_no_repair():
    def zero(change):
        for tensor in change.values():
            tensor.zero_()

    plain, found = repaired(), repaired(checkpoint=zero)
    assert all(torch.equal(found.delta[name], plain.delta[name]) for name in plain.delta)


def test_words_are_told_once():
    told = []
    call = forgiven("progress", Failing(ValueError("no")), again=True, tell=told.append)
    with pytest.warns(RuntimeWarning, match="progress failed"):
        call(1)
    call(2)
    assert told == ["progress failed (ValueError: no); it is called again all the same."]
