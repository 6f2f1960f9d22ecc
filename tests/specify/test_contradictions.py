"""Rows that are asked for two answers at once are counted and told, whatever set they stand in."""

import pytest
import torch
from torch import nn

from repairopt import ErrorRate, FixLabels, KeepLabels, KeepOutputs, solve_repair
from repairopt.specify import Specification, said_of_contradictions

X = torch.randn(40, 3, generator=torch.Generator().manual_seed(0))
Y = (X[:, 0] > 0).long()


def said(goal, *constraints):
    network = nn.Linear(3, 2)
    with torch.no_grad():
        network.weight.copy_(torch.tensor([[-1.0, 0.0, 0.0], [1.0, 0.0, 0.0]]))  # right on all rows
        network.bias.zero_()
    spec = Specification(goal, constraints).anchored(network)
    return said_of_contradictions(spec.goal, spec.on_outputs)


def test_reported_rows_among_those_to_keep():
    text = said(ErrorRate(X[:6], 1 - Y[:6]), KeepLabels(X, Y, tolerance=0.0))
    assert text.startswith("6 rows of 'keep labels' have another label in 'error rate'")
    assert "tolerance" not in text
    assert "let so many be missed" in text


def test_rows_of_two_constraints():
    text = said(
        ErrorRate(X[:6], Y[:6]),
        FixLabels(X[5:9], 1 - Y[5:9], weight=None, tolerance=0.0, name="new"),
        KeepLabels(X, Y, tolerance=0.0),
    )
    assert "4 rows of 'keep labels' have another label in 'new'" in text
    assert "1 rows of 'new' have another label in 'error rate'" in text


@pytest.mark.parametrize(
    "parts",
    [
        (ErrorRate(X[:6], 1 - Y[:6]), KeepLabels(X[6:], Y[6:], tolerance=0.0)),
        (ErrorRate(X[:6], 1 - Y[:6]), KeepLabels(X, Y, allowed=6)),
        (ErrorRate(X[:6], 1 - Y[:6], target=1.0), KeepLabels(X, Y, tolerance=0.0)),
        (ErrorRate(X[:6], 1 - Y[:6]), KeepLabels(X, Y, tolerance=0.0, weight=1.0)),
        (ErrorRate(X[:6], 1 - Y[:6]), KeepLabels(X[:, :2].repeat(1, 2)[:, :3] + 9, Y, tolerance=0.0)),
        (ErrorRate(X[:6], 1 - Y[:6]), KeepOutputs(X, 1.0)),
        (ErrorRate(X[:6], Y[:6]), KeepLabels(X, Y, tolerance=0.0)),
    ],
)
def test_what_can_hold_together_is_not_warned_of(parts):
    assert said(*parts) == ""


def test_one_row_with_two_labels():
    twice, labels = torch.cat([X[:4], X[:4], X[:1]]), torch.cat([Y[:4], 1 - Y[:4], Y[:1]])
    assert said(ErrorRate(twice, labels)).startswith("4 rows of 'error rate' stand there twice, with another label")
    assert said(ErrorRate(twice, labels, target=0.5)) == ""
    assert said(ErrorRate(torch.cat([X, X]), torch.cat([Y, Y]))) == ""


def test_the_report_says_it_first():
    network = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2))
    old = network(X).argmax(1)
    report = solve_repair(network, ErrorRate(X[:6], 1 - old[:6]), [KeepLabels(X, old, tolerance=0.0)]).report
    assert "! 6 rows of 'keep labels' have another label in 'error rate'" in " ".join(str(report).split())
