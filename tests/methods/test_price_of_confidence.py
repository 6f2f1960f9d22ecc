"""What a label is likely to be, and the price of confidence that is told by it."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from biased_task import task
from torch import nn

from repairopt import GroupGap, solve_repair
from repairopt.methods.sqp.label_chances import chances_of_labels
from repairopt.methods.sqp.price_of_confidence import PriceOfConfidence


def drawn(count, seed=0, classes=3):
    """Outputs that are twice too sure, labels whose first class is rarer in the second group, and their chances."""
    random = np.random.default_rng(seed)
    logits, groups = random.normal(size=(count, classes)), random.integers(0, 2, count)
    true = logits.copy()
    true[groups == 1, 0] -= 1.5
    chances = np.exp(true) / np.exp(true).sum(1, keepdims=True)
    labels = np.array([random.choice(classes, p=row) for row in chances])
    return 2.0 * logits, labels, groups, chances


def test_chances_are_those_that_labels_were_drawn_with():
    logits, labels, groups, true = drawn(20_000)
    found = chances_of_labels(logits, labels, np.eye(2)[groups])
    assert found.sum(1) == pytest.approx(np.ones(len(found)))
    assert np.abs(found - true).mean() < 0.01
    blind = chances_of_labels(logits, labels, np.zeros((len(labels), 0)))
    assert np.abs(blind - true)[groups == 1].mean() > 0.05


def test_few_rows_keep_what_the_network_says():
    logits = np.log([[0.9, 0.1], [0.2, 0.8]])
    assert chances_of_labels(logits, np.array([0, 1]), np.zeros((2, 0))) == pytest.approx(np.exp(logits), abs=0.1)
    one_class = chances_of_labels(np.tile(logits, (50, 1)), np.zeros(100, dtype=int), np.zeros((100, 0)))
    assert np.isfinite(one_class).all()
    assert one_class[:, 0].min() > 0.7


def test_a_bias_that_labels_contradict_is_found_in_the_columns_of_a_table():
    toy = task()  # whose network favors a group, as labels do not
    with torch.no_grad():
        network = toy.model(toy.inputs).double().numpy()
    merit, group = toy.inputs.double().numpy().T
    table = np.stack([merit, group], 1)
    found = chances_of_labels(network, toy.labels.numpy(), (table - table.mean(0)) / table.std(0))
    own = np.exp(network) / np.exp(network).sum(1, keepdims=True)
    favored = group == group.max()
    rate = toy.labels.numpy()[favored].mean()
    assert abs(found[favored, 1].mean() - rate) < 0.02 < 0.04 < abs(own[favored, 1].mean() - rate)


def test_an_expected_price_is_nearer_to_that_of_new_rows_than_a_count(monkeypatch):
    prices = []
    usual = PriceOfConfidence.is_fair

    def keep(price, found, reference, *others):
        prices.append((price.expected_cost(found, reference), found.cost(reference)[0], price, found, reference))
        return usual(price, found, reference, *others)

    monkeypatch.setattr(PriceOfConfidence, "is_fair", keep)
    errors = []
    for seed in range(4):
        random = np.random.default_rng(seed)

        def rows(count, random=random):
            group = random.integers(0, 2, count)
            merit = random.normal(size=count)
            x = torch.tensor(np.stack([merit, group], 1), dtype=torch.float32)
            chance = 1 / (1 + np.exp(-(2 * merit + 0.8 * group)))
            return x, torch.tensor((random.random(count) < chance).astype(np.int64)), group

        torch.manual_seed(seed)
        x, y, _ = rows(4_000)
        model = nn.Sequential(nn.Linear(2, 8), nn.ReLU(), nn.Linear(8, 2))
        optimizer = torch.optim.Adam(model.parameters(), 2e-2)
        for _ in range(150):
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(x), y).backward()
            optimizer.step()
        own, labels, group = rows(1_500)
        goal = GroupGap.observed(own, sensitive_features=group.tolist(), target=0.06)
        prices.clear()
        solve_repair(model, goal, data=(own, labels))
        for expected, counted, price, found, reference in prices:
            true = 1 / (1 + np.exp(-(2 * own[:, 0].numpy() + 0.8 * group)))
            sides = np.stack([1 - true, true], 1)
            at = np.arange(len(true))
            lost = (sides[at, reference.labels[0]] - sides[at, found.labels[0]]).mean()
            errors.append((expected - lost, counted - lost))
            assert price.expected_cost(found, found) == 0.0
    assert len(errors) >= 3, "most of the repairs have a price to be told"
    told, count = np.sqrt((np.array(errors) ** 2).mean(0))
    assert told < 0.7 * count
