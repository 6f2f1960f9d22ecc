"""Points of a last layer with many weights: penalties stop short of the rows, a program in the rows ends it."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from repairopt import ErrorRate, KeepLabels, Verdict, solve_repair

ROWS, WIDE, WRONG = 160, 201, 16


def ill_conditioned(seed):
    """A layer of 404 weights, features whose sizes fall like 1 / k^2, and labels of which some are against it."""
    draw = torch.Generator().manual_seed(seed)
    x = torch.randn(ROWS, WIDE, generator=draw) * torch.arange(1, WIDE + 1) ** -2.0
    model = nn.Linear(WIDE, 2)
    with torch.no_grad():
        model.weight.copy_(torch.randn(2, WIDE, generator=draw))
        model.bias.zero_()
        y = model(x).argmax(1)
    wrong = torch.zeros(ROWS, dtype=torch.bool)
    wrong[torch.randperm(ROWS, generator=draw)[:WRONG]] = True
    return model, x, torch.where(wrong, 1 - y, y), wrong


@pytest.mark.parametrize(("weights", "seed"), [("auto", 0), ("all", 1)])
def test_every_point_of_a_single_layer_is_fixed_and_no_guard_is_lost(weights, seed):
    model, x, y, wrong = ill_conditioned(seed)
    keep = KeepLabels(x[~wrong], y[~wrong], tolerance=0.0)
    repair = solve_repair(model, ErrorRate(x[wrong], y[wrong]), [keep], weights=weights)
    assert repair.report.verdict is Verdict.REPAIRED
    assert torch.equal(repair.model(x).argmax(1), y)


def test_rows_in_conflict_leave_the_guards_kept():
    model, x, y, wrong = ill_conditioned(2)
    both = torch.cat([x[~wrong][:5], x[wrong]])  # the first five are guards as well
    labels = torch.cat([1 - y[~wrong][:5], y[wrong]])
    keep = KeepLabels(x[~wrong], y[~wrong], tolerance=0.0)
    repair = solve_repair(model, ErrorRate(both, labels), [keep], weights="all")
    assert repair.report.verdict is Verdict.IMPROVED
    assert torch.equal(repair.model(x[~wrong]).argmax(1), y[~wrong])
