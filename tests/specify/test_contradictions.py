"""Rows that are asked for two answers at once are counted and told, whatever set they stand in."""

import time

import pytest
import torch
from torch import nn

from repairopt import ConfusionRate, ErrorRate, FixLabels, KeepLabels, KeepOutputs, MissRate, solve_repair
from repairopt.specify import Specification, said_of_contradictions

X = torch.randn(40, 3, generator=torch.Generator().manual_seed(0))
Y = (X[:, 0] > 0).long()


def said(goal, *constraints, double=False):
    network = nn.Linear(3, 3, dtype=torch.float64 if double else torch.float32)
    with torch.no_grad():
        network.weight.copy_(torch.tensor([[-1.0, 0.0, 0.0], [1.0, 0.0, 0.0], [0.0, 0.0, 0.0]]))  # right on all rows
        network.bias.copy_(torch.tensor([0.0, 0.0, -99.0]))
    spec = Specification(goal, constraints).anchored(network)
    return said_of_contradictions(spec.goal, spec.on_outputs, double=double)


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


KEPT, OTHER = KeepLabels(X, Y, tolerance=0.0), 1 - Y
ONE_OTHER = torch.cat([OTHER[:1], Y[1:]])
COPIES = KeepLabels(X[:1].repeat(9, 1), Y[:1].repeat(9), allowed=0)


@pytest.mark.parametrize(
    "parts",
    [
        (MissRate(torch.cat([X, X[:1] + 9]), torch.cat([OTHER, Y[:1] * 0 + 2]), label=2), KEPT),
        (ConfusionRate(X, Y * 0, label=0, answer=1), FixLabels(X, Y * 0 + 2, weight=None, tolerance=0.0)),
        (ErrorRate(X, ONE_OTHER, sample_weight=(ONE_OTHER == Y).float()), KEPT),
        (ErrorRate(X[:2], ONE_OTHER[:2], target=0.01, sample_weight=torch.tensor([1.0, 99.0])), KEPT),
        (ErrorRate(torch.cat([X, X, X[:20]]), torch.cat([OTHER[:29], Y[29:], Y, Y[:20]]), target=0.29), KEPT),
        (ErrorRate(X[:2], ONE_OTHER[:2], target=0.5), COPIES),
    ],
    ids=["other class", "no label leads", "weight 0", "light", "0.29 of 100", "copies"],
)
def test_rows_that_need_not_get_their_label_are_not_warned_of(parts):
    assert said(*parts) == ""


def test_rows_differ_as_the_network_reads_them():
    fine, ids = X.double(), torch.arange(120).reshape(40, 3) + 2**24
    goal, near = ErrorRate(fine, OTHER), KeepLabels(fine + 1e-12, Y, tolerance=0.0)
    assert said(goal, near, double=True) == ""
    assert said(goal, KeepLabels(fine, Y, tolerance=0.0), double=True).startswith("40 rows")
    spec = Specification(ErrorRate(ids, OTHER), [FixLabels(ids + 1, Y, weight=None, tolerance=0.0)])
    assert said_of_contradictions(spec.goal, spec.on_outputs) == ""


def test_a_million_rows_take_seconds():
    rows = torch.randn(1_000_000, 2, generator=torch.Generator().manual_seed(0))
    labels = torch.zeros(len(rows), dtype=torch.int64)
    spec = Specification(ErrorRate(rows, 1 - labels), [FixLabels(rows, labels, weight=None, tolerance=0.0)])
    began = time.process_time()
    assert said_of_contradictions(spec.goal, spec.on_outputs).startswith("1,000,000 rows of 'fix labels'")
    assert time.process_time() - began < 5


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
