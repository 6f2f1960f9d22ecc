"""Closeness to the original on rows to keep: by hand, within memory, and what it is worth on unseen rows."""

from types import SimpleNamespace

import pytest
import torch
from torch import nn

from repairopt import ErrorRate, TrainThenCorrect, solve_repair
from repairopt.methods.training.distillation import distance, known_answers
from repairopt.network import Engine


def test_the_distance_is_the_divergence_of_softened_answers_on_rows_that_were_right():
    original = torch.tensor([[2.0, 0.0], [0.0, 2.0]])
    outputs = torch.tensor([[0.0, 4.0], [9.0, 0.0]])
    labels = torch.tensor([0, 0])  # the original is wrong on the second row, which does not count
    aim, own = torch.tensor([1.0, 0.0]).softmax(0), torch.tensor([0.0, 2.0]).softmax(0)
    by_hand = 4 * float((aim * (aim / own).log()).sum())
    assert float(distance(outputs, labels, original, 2.0)) == pytest.approx(by_hand)
    assert float(distance(original, labels, original, 2.0)) == pytest.approx(0, abs=1e-6)


def test_answers_of_the_original_are_kept_as_far_as_memory_allows():
    model, rows = nn.Linear(3, 2), torch.randn(10, 3)
    task = SimpleNamespace(engine=Engine(model, {"bias": torch.arange(2)}, memory_limit=4 * 10 * 2 * 4))
    first, second = known_answers(task, [rows, rows.clone()])
    torch.testing.assert_close(first, model(rows).detach())
    assert second is None


@pytest.mark.slow
def test_unseen_answers_that_were_right_change_less():
    torch.manual_seed(0)
    teacher = torch.randn(8, 4)
    x, new = torch.randn(1200, 8), torch.randn(2000, 8)
    model = nn.Sequential(nn.Linear(8, 60), nn.ReLU(), nn.Linear(60, 60), nn.ReLU(), nn.Linear(60, 4))
    optimizer = torch.optim.Adam(model.parameters(), 3e-3)
    for _ in range(40):
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(x[:800]), (x[:800] @ teacher).argmax(1)).backward()
        optimizer.step()
    clean, shifted = x[800:], x[800:] * torch.tensor([-1.0, -1.0, 1, 1, 1, 1, 1, 1]) + 1
    y, was_right = (clean @ teacher).argmax(1), model(new).argmax(1) == (new @ teacher).argmax(1)
    flips = []
    for closeness in (0.0, 0.5):
        method = TrainThenCorrect(epochs=2, keep=1.0, closeness=closeness)
        given = {"data": [(clean, y), (shifted, y)], "held_out": (clean[:1], y[:1]), "weights": "all", "method": method}
        repaired = solve_repair(model, ErrorRate(shifted, y, target=0.0), **given).model
        flips.append(int((was_right & (repaired(new).argmax(1) != (new @ teacher).argmax(1))).sum()))
    assert flips[1] < 0.9 * flips[0]
