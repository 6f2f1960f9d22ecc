"""A repair of reported points says what it does to points and right answers that it has not seen."""

from __future__ import annotations

import re

import pytest
import torch
from torch import nn

from repairopt import ErrorRate, KeepLabels, SolverError, Status, solve_repair
from repairopt.methods import Outcome

SAID = r"had (\d+) of its (\d+) points right, and lost (\d+) of its (\d+) right answers"


@pytest.fixture(scope="module")
def noisy():
    """A network that is as right as labels allow, a tenth of which were drawn, and the rows that it gets wrong."""
    draw = torch.Generator().manual_seed(0)
    x = torch.randn(900, 8, generator=draw)
    y = (x[:, 0] + x[:, 1] > 0).long()
    flipped = torch.rand(900, generator=draw) < 0.1
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 24), nn.ReLU(), nn.Linear(24, 24), nn.ReLU(), nn.Linear(24, 2))
    optimizer = torch.optim.Adam(model.parameters(), 3e-3)
    for _ in range(200):
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(x), y).backward()
        optimizer.step()
    y = torch.where(flipped, 1 - y, y)
    return model, x, y, model(x).argmax(1) != y


def notes(model, x, y, wrong, **options) -> str:
    found = solve_repair(model, ErrorRate(x[wrong], y[wrong]), [KeepLabels(x[~wrong], y[~wrong])], **options)
    assert int((found.model(x[wrong]).argmax(1) == y[wrong]).sum()) > 0.9 * int(wrong.sum())
    return " ".join(found.report.notes)


def test_points_without_a_cause_in_common_are_dear(noisy):
    model, x, y, wrong = (noisy[0], *(rows[:500] for rows in noisy[1:]))
    said = notes(model, x, y, wrong)
    fixed, points, lost, kept = map(int, re.search(SAID, said).groups())
    assert 5 <= points <= 25
    assert 60 <= kept <= 110
    assert fixed / points < 0.6
    assert lost / kept > 0.03
    assert "That is a high price" in said
    assert ("fewer of these rows are right than before" in said) == (lost > fixed)


def test_a_repair_that_misses_its_target_says_it_too(noisy):
    """Of every second point both labels are asked for, so that a third of the goal is out of reach."""
    model, x, y, wrong = (noisy[0], *(rows[:500] for rows in noisy[1:]))
    points, labels = x[wrong], y[wrong]
    both = ErrorRate(torch.cat([points, points[::2]]), torch.cat([labels, 1 - labels[::2]]), target=0.0)
    report = solve_repair(model, both, [KeepLabels(x[~wrong], y[~wrong])]).report
    assert 0.2 < report.measure().after < report.measure().before
    assert re.search(SAID, " ".join(report.notes))


def test_points_of_one_cause_are_right_unseen_too(noisy):
    model, x, _, _ = noisy
    y = torch.where(x[:, 2] > 1, torch.ones(900, dtype=torch.int64), model(x).argmax(1))  # a rule that it never learned
    said = notes(model, x, y, model(x).argmax(1) != y)
    fixed, points, lost, kept = map(int, re.search(SAID, said).groups())
    assert fixed / points > 0.6
    assert lost / kept < 0.05
    assert "high price" not in said


def test_held_out_data_say_it_themselves(noisy):
    model, x, y, wrong = noisy
    said = notes(model, x[:300], y[:300], wrong[:300], held_out=(x[600:], y[600:]))
    assert "without a fifth of the rows" not in said


def test_only_the_method_that_is_taken_is_asked(monkeypatch):
    draw = torch.Generator().manual_seed(1)
    x, y = torch.randn(60, 3, generator=draw), torch.randint(0, 2, (60,), generator=draw)  # noise: none is met
    torch.manual_seed(1)
    model = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2))
    kept = [KeepLabels(torch.randn(80, 3, generator=draw), torch.zeros(80, dtype=torch.int64), tolerance=0.5)]
    asked = []
    for room in ("sqp.method.judge_generalization", "training.train_then_correct.said_of_unseen_rows"):
        monkeypatch.setattr(
            f"repairopt.methods.{room}", lambda *_, room=room, **__: asked.append(room) or "It is told."
        )
    report = solve_repair(model, ErrorRate(x, y, target=0.0), kept).report
    assert len(asked) == 1
    assert report.notes.count("It is told.") == 1


def test_ctrl_c_while_others_are_judged_keeps_the_repair(noisy, monkeypatch):
    def stop(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr("repairopt.methods.training.train_then_correct.said_of_unseen_rows", stop)
    model, x, y, wrong = (noisy[0], *(rows[:250] for rows in noisy[1:]))
    found = solve_repair(model, ErrorRate(x[wrong], y[wrong]), [KeepLabels(x[~wrong], y[~wrong])])
    assert "interrupted" in str(found.report)
    assert int((found.model(x[wrong]).argmax(1) == y[wrong]).sum()) > 0.9 * int(wrong.sum())


@pytest.mark.parametrize("error", [SolverError, MemoryError, ValueError, KeyboardInterrupt])
def test_what_fails_while_others_are_judged_is_told_and_the_repair_kept(error):
    class Own:
        def run(self, task):
            def fail():
                raise error("no room")

            return Outcome(task.judge.original.candidate, Status.FEASIBLE, said_of_unseen=fail)

    model, x = nn.Linear(3, 2), torch.eye(3)
    report = solve_repair(model, ErrorRate(x, 1 - model(x).argmax(1)), method=Own()).report
    assert f"{error.__name__}: no room" in " ".join(report.notes) or report.stopped == "interrupted"
