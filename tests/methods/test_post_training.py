"""DARE and FMT: references, slices, loss, and what they gain; each ablation switch switches."""

from __future__ import annotations

from functools import cache

import pytest
import torch
from test_training_room import GROUP, moved, product
from torch import nn
from training_subjects import Subject, digits, divided, loans, texts, trained

from repairopt import SpecificationError
from repairopt.compare import group_rates
from repairopt.methods import DARE, FMT
from repairopt.methods.training.attacks import CarliniWagner, attacked, find_attack
from repairopt.methods.training.fmt import attributes_of
from repairopt.methods.training.trainee import Trainee
from repairopt.pipeline import prepare_repair
from repairopt.specify import ErrorRate, Specification

ROWS = 150


def history() -> Subject:
    return digits("mlp", 12)


@cache
def tuned(row: str, epochs: int = 12) -> nn.Module:
    subject = history()
    settings = {"rates": (1e-3,), "epochs": epochs, **DARE.systems[row]}
    return product(DARE(history=subject.history, validation=subject.validation, **settings), subject)


@cache
def points() -> tuple[torch.Tensor, ...]:
    subject = history()
    x, y = subject.test[0][:ROWS], subject.test[1][:ROWS]
    attacks = [find_attack(name, 0.08) for name in ("fgsm", "pgd", "jsma")] + [CarliniWagner(searches=3, steps=30)]
    return tuple(attacked(made, subject.model, x, y) for made in attacks)


def robustness(model: nn.Module) -> float:
    labels = history().test[1][:ROWS]
    with torch.no_grad():
        return sum(float((model(x).argmax(1) == labels).float().mean()) for x in points()) / 4


def test_dare_raises_the_mean_robustness_over_four_attacks_and_keeps_clean_accuracy():
    subject = history()
    assert robustness(tuned("DARE")) > robustness(subject.model) + 0.03
    assert subject.right(tuned("DARE")) > 0.9 * subject.right(subject.model)
    changed = moved(subject, tuned("DARE"))
    assert set(changed) == {"0.weight", "0.bias", "2.weight", "2.bias"}  # layers behind the references stay, bit by bit


def references(method, subject):
    spec = Specification(ErrorRate(*subject.repair, target=0.0), ())
    task = prepare_repair(subject.model, spec, data=subject.training, method=method).task
    net = Trainee(task, subject.training[0])
    rows = method.material(task, failing=False)
    layer = net.hidden()[-1]
    return method.references(task, net, rows, layer.node, layer.axis), rows


def test_dare_references_come_from_later_networks_that_are_right_and_more_confident():
    subject = history()
    found, rows = references(DARE(history=subject.history, validation=subject.validation), subject)
    with torch.no_grad():
        now = torch.softmax(subject.model(found.inputs), 1)
        own = torch.where(now.argmax(1) == found.labels, now.gather(1, found.labels[:, None])[:, 0], 0.0)
    assert bool((found.chances > own).all())
    late = []
    for state in subject.history[6:]:
        model = nn.Sequential(nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 16), nn.ReLU(), nn.Linear(16, 10))
        model.load_state_dict(state)
        with torch.no_grad():
            late.append((torch.softmax(model(rows.training[0]), 1), model[:4](rows.training[0])))
    row = int((rows.training[0] == found.inputs[0]).all(1).nonzero()[0])
    label = found.labels[0]
    best = max(late, key=lambda one: float(one[0][row, label]) * (int(one[0][row].argmax()) == label))
    assert torch.allclose(found.values[0], best[1][row], atol=1e-6)


@pytest.mark.parametrize("row", ["DARE_-s", "DARE_-sl", "DARE_last", "DARE_rand"])
def test_dare_ablation_switches(row):
    subject = history()
    given = {"history": subject.history, "validation": subject.validation, "rates": (1e-3,), "epochs": 2, "keep": 0.7}
    one, full = product(DARE(**given, **DARE.systems[row]), subject), product(DARE(**given), subject)
    changed = moved(subject, one)
    if row == "DARE_-s":  # plain squares over the layer: more entries move
        assert changed["0.weight"] > moved(subject, full)["0.weight"]
        assert "4.weight" not in changed
    elif row == "DARE_-sl":  # the original loss reaches the last layer
        assert "4.weight" in changed
    elif row == "DARE_last":  # p = 0: the output layer is in it, by its slice
        assert 0 < changed["4.weight"] <= 160
    else:
        assert any(not torch.equal(a, b) for a, b in zip(one.parameters(), full.parameters(), strict=True))
        assert one.notes == full.notes  # the same number of references


@cache
def favored() -> Subject:
    """A network that learned decisions of the past, which favored one group, and rows with fair labels."""
    draw = torch.Generator().manual_seed(0)
    x = torch.randn(3000, 6, generator=draw)
    x[:, GROUP] = (x[:, GROUP] > 0).float()
    merit = x[:, 0] + x[:, 1] + 0.3 * torch.randn(3000, generator=draw)
    past = (merit + 0.8 * (x[:, GROUP] - 0.5) > 0).long()
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, 8), nn.ReLU(), nn.Linear(8, 2))
        trained(model, divided(x, past, 1200)[0], epochs=8)
    return Subject(model, *divided(x, (merit > 0).long(), 1200, 400, 400, 1000), ())


def unfairness(model: nn.Module) -> dict[str, float]:
    x, y = favored().test
    with torch.no_grad():
        answers = model(x).argmax(1).numpy()
    return group_rates(answers, y.numpy(), x[:, GROUP].numpy(), 1)


@pytest.mark.parametrize("row", ["FMT_s", "FMT_d"])
def test_fmt_lowers_the_gaps_at_little_accuracy(row):
    subject = favored()
    method = FMT(protected=(GROUP,), validation=subject.validation, rates=(1e-3,), epochs=12, **FMT.systems[row])
    network = product(method, subject)
    before, after = unfairness(subject.model), unfairness(network)
    for name in ("average_odds", "opportunity"):
        assert after[name] < 0.65 * before[name]
    assert subject.right(network) >= subject.right(subject.model) - 0.01
    assert set(moved(subject, network)) == {"0.weight", "0.bias", "2.weight", "2.bias"}


@pytest.mark.parametrize("pairs", ["single", "double"])
def test_fmt_pairs_differ_in_the_protected_attribute_alone(pairs):
    subject = loans()
    found, rows = references(FMT(protected=(GROUP,), pairs=pairs, validation=subject.validation), subject)
    count = len(rows.training[0])
    assert len(found) == (count if pairs == "single" else 2 * count)
    turned = found.inputs[:count].clone()
    turned[:, GROUP] = 1 - turned[:, GROUP]
    with torch.no_grad():
        own, other = (torch.softmax(subject.model(x), 1).amax(1) for x in (found.inputs[:count], turned))
        hidden = subject.model[:4](turned)
    assert bool((other >= own).all())  # the reference is the more confident one
    assert torch.allclose(found.values[:count], hidden, atol=1e-6)
    assert torch.equal(found.slices[:count].float(), found.inputs[:count, GROUP])
    if pairs == "double":
        assert torch.equal(found.inputs[count:], turned)


def test_fmt_variants_switch():
    subject = loans()
    given = {"protected": (GROUP,), "validation": subject.validation, "rates": (1e-3,), "epochs": 1}
    full = moved(subject, product(FMT(**given), subject))
    assert moved(subject, product(FMT(**given, slicing=False), subject))["0.weight"] > full["0.weight"]
    assert "4.weight" in moved(subject, product(FMT(**given, slicing=False, loss="label"), subject))
    assert "4.weight" in moved(subject, product(FMT(**given, layer="last"), subject))
    one, other = (product(FMT(**given, draw=draw), subject) for draw in ("data", "random"))
    assert any(not torch.equal(a, b) for a, b in zip(one.parameters(), other.parameters(), strict=True))


def test_one_hot_columns_are_drawn_as_one_attribute():
    hot = torch.nn.functional.one_hot(torch.tensor([0, 1, 2, 1]), 3).float()
    flag, number = torch.tensor([[0.0], [1.0], [1.0], [0.0]]), torch.tensor([[0.3], [0.1], [1.0], [2.0]])
    assert attributes_of(torch.cat([number, hot, flag], 1)) == [[0], [1, 2, 3], [4]]


def test_what_they_need_is_said():
    with pytest.raises(SpecificationError, match="earlier epochs"):
        product(DARE(), history())
    with pytest.raises(SpecificationError, match="does not fit"):
        product(DARE(history=[{"other": torch.zeros(1)}]), history())
    with pytest.raises(SpecificationError, match="protected columns"):
        product(FMT(), loans())
    with pytest.raises(SpecificationError, match="hidden|dense and convolutional"):
        product(DARE(history=texts().history), texts())
