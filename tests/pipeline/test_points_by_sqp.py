"""Which weights SQP changes, asked for by name, where given points are to become right."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from repairopt import SQP, ErrorRate, KeepLabels, Settings, Verdict, solve_repair


@pytest.fixture(scope="module")
def images():
    torch.manual_seed(3)
    x = torch.randn(240, 1, 8, 8)
    model = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(144, 3)).eval()
    return model, x, model(x).argmax(1)


def points(images):
    model, x, y = images
    goal = ErrorRate(x[:5], (y[:5] + 1) % 3, target=0.0)
    return model, goal, KeepLabels(x[5:], y[5:], tolerance=0.02)


def test_all_weights_of_a_small_network_of_images(images, fingerprint):
    model, goal, keep = points(images)
    before = fingerprint(model)
    repair = solve_repair(model, goal, [keep], method=SQP(), settings=Settings(seed=0))
    assert set(repair.report.location.indices) == {name for name, _ in model.named_parameters()}
    assert repair.report.verdict is Verdict.REPAIRED
    assert (repair.model(goal.inputs).argmax(1) == goal.labels).all()
    assert fingerprint(model) == before


def test_the_last_layer_where_that_is_too_many(images, monkeypatch):
    monkeypatch.setattr("repairopt.pipeline.given_points.ALL_FOR_POINTS", 100)
    model, goal, keep = points(images)
    repair = solve_repair(model, goal, [keep], method="sqp")
    assert set(repair.report.location.indices) == {"3.weight", "3.bias"}


@pytest.mark.parametrize("held", [True, False])
def test_the_last_layer_is_tried_where_all_weights_leave_points_wrong(held, monkeypatch):
    """All weights make these right where other rows are held; without that, or a correction, some are left."""
    plain, last = SQP._with_rows_held, 435  # weights

    def uncorrected(self, task, inner, found):
        return plain(self, task, inner, found) if task.engine.n == last else found

    if not held:
        monkeypatch.setattr(SQP, "_with_rows_held", uncorrected)
    torch.manual_seed(3)
    x = torch.rand(240, 1, 8, 8)  # of one class, as the network sees them
    model = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(144, 3)).eval()
    goal = ErrorRate(x[:5], (model(x[:5]).argmax(1) + 1) % 3, target=0.0)
    keep = KeepLabels(x[5:], model(x[5:]).argmax(1), tolerance=0.02)
    alone = solve_repair(model, goal, [keep], method="sqp", weights="all")
    repair = solve_repair(model, goal, [keep], method="sqp")
    assert (alone.report.verdict is Verdict.REPAIRED) == held
    assert repair.report.verdict is Verdict.REPAIRED
    assert (set(repair.report.location.indices) == {"3.weight", "3.bias"}) == (not held)


def test_other_goals_and_tables_keep_the_choice_by_trial(images):
    model, x, y = images
    rate = ErrorRate(x[:5], (y[:5] + 1) % 3, target=0.4)
    table = nn.Sequential(nn.Linear(6, 12), nn.ReLU(), nn.Linear(12, 3))
    rows = torch.randn(60, 6, generator=torch.Generator().manual_seed(0))
    given = ErrorRate(rows[:3], (table(rows[:3]).argmax(1) + 1) % 3, target=0.0)
    for network, goal in ((model, rate), (table, given)):
        found = solve_repair(network, goal, method=SQP(max_steps=2, confidence=None))
        assert sum(map(len, found.report.location.indices.values())) <= 100
