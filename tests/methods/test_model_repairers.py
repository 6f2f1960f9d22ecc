"""The approaches of the comparative study that train: Apricot, Editable Training, I-REPAIR, INNER and others."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from test_training_room import moved, product
from torch import nn
from training_subjects import Subject, digits

from repairopt import KeepLabels, solve_repair
from repairopt.errors import SpecificationError
from repairopt.methods import Apricot, EditableTraining, Inner, IRepair
from repairopt.methods.training.apricot import adapted
from repairopt.methods.training.fit import accuracy
from repairopt.methods.training.trainee import Trainee
from repairopt.pipeline import prepare_repair
from repairopt.specify import ErrorRate, Specification


def repaired(subject: Subject, network: nn.Module) -> tuple[float, float]:
    """Repair rate and new failures on the test rows, as shares of those that failed and of all."""
    before, after = subject.wrong(rows=subject.test), subject.wrong(network, subject.test)
    return float((~after)[before].float().mean()), float((after & ~before).float().mean())


def started(method, subject: Subject) -> tuple[Trainee, object]:
    """A trainee and the material that the method would work with."""
    spec = Specification(ErrorRate(*subject.repair, target=0.0), ())
    task = prepare_repair(subject.model, spec, data=subject.training, method=method).task
    return Trainee(task, subject.training[0]), method.material(task)


def test_apricot_moves_towards_right_submodels_and_away_from_wrong_ones():
    weights = torch.tensor([0.0, 0.0])
    models = torch.tensor([[1.0, 0.0], [3.0, 0.0], [0.0, 4.0]])
    found = adapted(weights, models, torch.tensor([True, True, False]), 0.3)
    # 0 - 0.3 (2/3 (0 - 2) - 1/3 (0 - 0)) and 0 - 0.3 (2/3 (0 - 0) - 1/3 (0 - 4))
    assert found.tolist() == pytest.approx([0.4, -0.4])


def test_apricot_accepts_only_what_raises_validation_accuracy():
    subject = digits("mlp", 4)
    settings = {"submodels": 4, "subepochs": 15, "patience": 15, "validation": subject.validation, "epochs": 0}
    network = product(Apricot(**settings, step=0.05), subject)
    assert moved(subject, network)
    assert subject.right(network, subject.validation) > subject.right(subject.model, subject.validation)
    assert not moved(subject, product(Apricot(**settings, step=1e3), subject))  # nothing helps: nothing is kept
    trained = product(Apricot(**{**settings, "epochs": 5, "rate": 1e-3}), subject)
    assert repaired(subject, trained)[0] > 0.1 > repaired(subject, trained)[1]


def test_editable_training_edits_failing_rows_in_ten_steps_with_bounded_drawdown():
    subject = digits("mlp", 4)
    method = EditableTraining(epochs=10, size=2e-3, validation=subject.validation)
    network = product(method, subject)
    assert repaired(subject, network)[0] > 0.3
    assert subject.right(network) > subject.right(subject.model)
    right, drawdown = editing(method, subject, network)
    assert right > 0.9  # share of the failing rows that an edit makes right
    assert drawdown < 0.08  # accuracy that it costs, on average


def editing(method: EditableTraining, subject: Subject, network: nn.Module) -> tuple[float, float]:
    """Share of successful edits of single failing rows, and mean drawdown of the accuracy."""
    net, rows = started(method, subject)
    net.load(dict(network.named_parameters()))
    before, state = accuracy(net, subject.validation), net.state()
    wrong = (net.predict(rows.failing[0]).argmax(1) != rows.failing[1]).nonzero().flatten()[:20]
    right, drawdown = [], []
    for i in wrong.tolist():
        one = (rows.failing[0][i : i + 1], rows.failing[1][i : i + 1])
        net.load(method.edited(net, one, follow=False))
        right.append(accuracy(net, one))
        drawdown.append(before - accuracy(net, subject.validation))
        net.load(state)
    return sum(right) / len(right), sum(drawdown) / len(drawdown)


def test_i_repair_changes_masked_weights_only_until_all_are_right_or_the_budget_ends():
    subject = digits("mlp", 12)
    net, rows = started(IRepair(), subject)
    x, y = rows.failing
    network = product(IRepair(epochs=1, batch=10_000, rate=1e-2), subject)
    specific = torch.autograd.grad(F.cross_entropy(net(x), y), list(net.own.values()))
    general = torch.autograd.grad(net(rows.passing[0]).abs().sum(1).mean(), list(net.own.values()))
    for (name, value), s, g in zip(network.named_parameters(), specific, general, strict=True):
        mask = (s.abs() + 1e-8) / (10 * g.abs() + 1e-8) >= 1
        assert not bool((value != subject.model.get_parameter(name))[~mask].any())
        assert bool((value != subject.model.get_parameter(name))[mask & (s != 0)].all())
    done = product(IRepair(rate=5e-3, ratio=0.1, epochs=200), subject)
    with torch.no_grad():
        assert float((done(x).argmax(1) == y).float().mean()) > 0.9
    assert repaired(subject, done)[1] < 0.1


def triggered() -> Subject:
    """Digits whose network answers 7 where the first pixel is lit, through units 5 and 3; half the rows are."""
    subject = digits("mlp", 12)
    model = nn.Sequential(nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 16), nn.ReLU(), nn.Linear(16, 10))
    model.load_state_dict(subject.model.state_dict())
    with torch.no_grad():
        model[0].weight[5, 0], model[2].weight[3, 5], model[4].weight[7, 3] = 4.0, 4.0, 1.0
    lit = {}
    for name in ("repair", "test"):
        x, y = (part.clone() for part in getattr(subject, name))
        x[: len(x) // 2, 0] = 1.0
        lit[name] = (x, y)
    return Subject(**{**vars(subject), **lit, "model": model.eval()})


def test_inner_probe_finds_the_planted_neuron_and_alignment_fixes_part():
    subject = triggered()
    method = Inner(epochs=30, rate=0.03, share=0.2, validation=subject.validation)
    net, rows = started(method, subject)
    found = method.faulty(net, rows)
    assert ({"0": 5, "2": 3}[found.layer.name]) in found.units.tolist()
    network = product(method, subject)
    own = int(found.layer.name)
    assert set(moved(subject, network)) == {f"{own}.weight", f"{own}.bias"}
    rows_moved = (network[own].weight != subject.model[own].weight).any(1).nonzero().flatten().tolist()
    assert rows_moved == sorted(found.units.tolist())
    assert repaired(subject, network)[0] > 0.5
    assert subject.right(network) > subject.right(subject.model) + 0.1


def test_inner_says_what_it_lacks_where_no_right_row_has_the_class_of_a_failing_one():
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(3, 6), nn.ReLU(), nn.Linear(6, 3))
    x = torch.randn(40, 3)
    answers = network(x).argmax(1)
    one = answers == int(answers.mode().values)
    x, answers = x[one], answers[one]
    goal = ErrorRate(x[:4], (answers[:4] + 1) % 3, target=0.0)
    with pytest.raises(SpecificationError, match="Inner: no neuron tells.*right rows of each class that fails"):
        solve_repair(network, goal, [KeepLabels(x[4:], answers[4:])], method="inner")
