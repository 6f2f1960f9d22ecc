"""Attacks make valid points on which the network errs, as those of foolbox do; tuning on them helps against them."""

from __future__ import annotations

import pytest
import torch
from test_training_room import product
from torch import nn
from training_subjects import digits, texts

from repairopt import ModelError, SpecificationError
from repairopt.methods import AdversarialTraining
from repairopt.methods.training.attacks import (
    ATTACKS,
    BIM,
    FGSM,
    JSMA,
    PGD,
    CarliniWagner,
    attacked,
    find_attack,
)

RADIUS = 0.08
ROWS = {"cw": 60, "jsma": 200}


def errors(network: nn.Module, points: torch.Tensor, labels: torch.Tensor) -> float:
    with torch.no_grad():
        return float((network(points).argmax(1) != labels).float().mean())


@pytest.mark.parametrize("row", sorted(AdversarialTraining.systems))
def test_adversarial_training_makes_valid_points_and_gains_against_that_attack(row):
    subject = digits("mlp", 12)
    name = AdversarialTraining.systems[row]["attack"]
    made, few = find_attack(name, RADIUS), ROWS.get(name, 400)
    x, y = subject.test[0][:few], subject.test[1][:few]
    points = attacked(made, subject.model, x, y)
    assert points.shape == x.shape
    assert float(points.min()) >= 0
    assert float(points.max()) <= 1
    change = points - x
    if name in ("fgsm", "bim", "pgd"):
        assert float(change.abs().max()) <= RADIUS + 1e-6
    if name == "jsma":
        assert int((change != 0).sum(1).max()) <= round(0.145 * 64)
    before = errors(subject.model, points, y)
    assert before > errors(subject.model, x, y) + 0.2
    part = type(subject)(**{**vars(subject), "training": tuple(one[: ROWS.get(name, 600)] for one in subject.training)})
    attack = CarliniWagner(searches=4, steps=30) if name == "cw" else name
    method = AdversarialTraining(attack=attack, radius=RADIUS, epochs=10, rate=3e-3, validation=subject.validation)
    network = product(method, part)
    assert errors(network, points, y) < before - 0.1  # on the points made against the original
    assert errors(network, x, y) < errors(subject.model, x, y) + 0.05


def test_carlini_and_wagner_find_nearer_points_than_one_step():
    subject = digits("mlp", 12)
    x, y = subject.test[0][:60], subject.test[1][:60]
    near = attacked(CarliniWagner(), subject.model, x, y)
    far = attacked(FGSM(radius=0.3), subject.model, x, y)
    assert errors(subject.model, near, y) > 0.95  # points lie at the boundary, within rounding
    assert float((near - x).norm(dim=1).mean()) < 0.3 * float((far - x).norm(dim=1).mean())
    ball = attacked(CarliniWagner(radius=RADIUS), subject.model, x, y)
    assert float((ball - x).abs().max()) <= RADIUS + 1e-6
    assert errors(subject.model, ball, y) >= errors(subject.model, attacked(PGD(radius=RADIUS), subject.model, x, y), y)


def test_attacks_agree_with_those_of_foolbox():
    foolbox = pytest.importorskip("foolbox")
    subject = digits("mlp", 12)
    x, y = subject.test[0][:40], subject.test[1][:40]
    model = foolbox.PyTorchModel(subject.model, bounds=(float(x.min()), float(x.max())))
    theirs = {
        FGSM(radius=RADIUS): foolbox.attacks.LinfFastGradientAttack(random_start=False),
        BIM(radius=RADIUS): foolbox.attacks.LinfBasicIterativeAttack(random_start=False),
    }
    for mine, their in theirs.items():
        points = their(model, x, y, epsilons=RADIUS)[1]
        assert torch.allclose(attacked(mine, subject.model, x, y), points, atol=1e-6)
    found = foolbox.attacks.L2CarliniWagnerAttack(steps=100)(model, x, y, epsilons=None)[1]
    mine_near = attacked(CarliniWagner(), subject.model, x, y)
    assert float((mine_near - x).norm(dim=1).mean()) < 1.05 * float((found - x).norm(dim=1).mean())


def test_jsma_raises_the_feature_with_the_largest_saliency():
    network = nn.Linear(3, 2)
    with torch.no_grad():
        network.weight.copy_(torch.tensor([[-1.0, -3.0, 1.0], [1.0, 2.0, 5.0]]))
        network.bias.copy_(torch.tensor([1.0, 0.0]))
    inputs = torch.tensor([[0.1, 0.1, 0.0], [1.0, 0.0, 0.1]])
    points = attacked(JSMA(size=0.5, most=0.4), network, inputs, torch.zeros(2).long())
    assert points.tolist()[0] == pytest.approx([0.1, 0.6, 0.0])


class Lengths(nn.Module):
    """Reads the place that the last channel counts, as networks of padded sequences do."""

    def forward(self, x):
        return x[torch.arange(len(x)), x[..., 2].sum(1).long() - 1, :2]


@pytest.mark.parametrize("name", ["fgsm", "pgd", "cw"])
def test_a_network_that_does_not_take_attacked_points_is_named(name):
    x = torch.rand(6, 5, 3)
    x[..., 2] = 1.0
    with pytest.raises(ModelError, match="does not take what they make: IndexError.*no measurements, such as a mask"):
        attacked(find_attack(name, 0.9), Lengths(), torch.cat([x, torch.full((1, 5, 3), 9.0)]), torch.zeros(7).long())


def test_attacks_refuse_what_they_cannot_take():
    with pytest.raises(SpecificationError, match="choose fgsm"):
        AdversarialTraining(attack="none")
    with pytest.raises(SpecificationError, match="Text has none"):
        product(AdversarialTraining(), texts())
    for wrong in ({"radius": -1.0}, {"radius": "large"}):
        with pytest.raises(SpecificationError, match="radius"):
            FGSM(**wrong)
    assert set(ATTACKS) == {"fgsm", "bim", "pgd", "cw", "cw_linf", "jsma"}
