"""Methods that select rows, and those that treat neurons or groups: MODE, HUDD, BIRDNN, FairNeuron, RUNNER."""

from __future__ import annotations

import pytest
import torch
from test_model_repairers import repaired, started
from test_training_room import GROUP, product
from torch import nn
from training_subjects import Subject, digits, loans, texts, trained

from repairopt import GroupGap, SpecificationError
from repairopt.methods import HUDD, MODE, BirdnnRT, FairNeuron, Runner
from repairopt.methods.training.birdnn import held
from repairopt.methods.training.fair_neuron import paths, rare_paths
from repairopt.methods.training.hudd import root_causes
from repairopt.methods.training.pool import labelled_pool
from repairopt.methods.training.runner import importance_gaps
from repairopt.specify import Region, UnprovedRegions


def gap_of(model: nn.Module) -> float:
    return float(GroupGap.observed(loans().test[0], GROUP, favorable=1, target=0.0).value(model))


def test_mode_selects_by_the_differential_heat_map_and_retraining_gains():
    subject = digits("mlp", 4)
    method = MODE(validation=subject.validation, share=0.2)
    net, rows = started(method, subject)
    pool = labelled_pool(method, net.task, rows)
    chosen = method.selected(net, rows, pool)
    failing = torch.bincount(rows.failing[1], minlength=10).double() / len(rows.failing[1])
    share = torch.bincount(pool[1][chosen], minlength=10).double() / len(chosen)
    assert float(torch.corrcoef(torch.stack([failing, share]))[0, 1]) > 0.5  # more of the classes that fail more
    network = product(method, subject)
    assert repaired(subject, network)[0] > 0.2
    assert subject.right(network) > subject.right(subject.model) + 0.02
    with pytest.raises(SpecificationError, match="with labels"):
        product(MODE(pool=subject.test[0]), subject)


def two_causes() -> tuple[Subject, torch.Tensor]:
    """Digits whose network answers 7 where the first pixel is lit, and 2 where the last one is; and which are."""
    subject = digits("mlp", 12)
    model = nn.Sequential(nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 16), nn.ReLU(), nn.Linear(16, 10))
    model.load_state_dict(subject.model.state_dict())
    with torch.no_grad():
        for pixel, first, second, answer in ((0, 5, 3, 7), (56, 9, 8, 2)):
            model[0].weight[first, pixel], model[2].weight[second, first] = 4.0, 4.0
            model[4].weight[answer, second] = 1.0
    x, y = (part.clone() for part in subject.repair)
    cause = torch.arange(len(x)) % 4
    x[cause == 1, 0], x[cause == 2, 56] = 1.0, 1.0
    return Subject(**{**vars(subject), "repair": (x, y), "model": model.eval()}), cause


def test_hudd_clusters_match_planted_causes():
    subject, cause = two_causes()
    net, rows = started(HUDD(), subject)
    planted = subject.wrong() & (cause > 0) & (cause < 3)
    found = root_causes(net, subject.repair[0][planted], 10)
    own, pure = cause[planted], 0
    for cluster in range(int(found.clusters.max()) + 1):
        pure += int(torch.bincount(own[found.clusters == cluster]).max())
    assert pure / len(own) > 0.95
    assert len(found.medoids) >= 2
    inside = found.maps - found.maps[found.medoids[found.clusters]]
    assert bool((inside.norm(dim=1) <= found.radii[found.clusters] + 1e-6).all())


def test_hudd_retraining_on_selected_rows_raises_accuracy():
    subject = digits("mlp", 4)
    network = product(HUDD(validation=subject.validation), subject)
    assert repaired(subject, network)[0] > 0.3
    assert subject.right(network) > subject.right(subject.model) + 0.05
    texts_too = product(HUDD(validation=texts().validation), texts())  # what the head reads, behind the LSTM
    assert texts().right(texts_too) > texts().right(texts().model) - 0.01


def test_birdnn_samples_that_violate_imitate_and_the_violation_rate_falls():
    torch.manual_seed(0)
    x = torch.randn(600, 2)
    y = (x.sum(1) > 0.3).long()
    model = nn.Sequential(nn.Linear(2, 16), nn.ReLU(), nn.Linear(16, 2))
    trained(model, (x, y), epochs=8)
    region = Region([-0.3, -0.3], [0.6, 0.6], matrix=[[-1.0, 1.0]], name="one wins")
    points = torch.rand(2000, 2) * 0.9 - 0.3
    subject = Subject(model, (x, y), (x, y), (x, y), (x, y), ())
    network = product(BirdnnRT(samples=400, epochs=10, rate=1e-2), subject, UnprovedRegions(region))
    with torch.no_grad():
        before, after = (float((~held(region, m(points))).double().mean()) for m in (model, network))
    assert before > 0.2
    assert after < 0.7 * before  # the labels of the data contradict the region in part


def test_birdnn_rows_that_fail_imitate_right_rows_of_their_class():
    subject = digits("mlp", 4)
    network = product(BirdnnRT(validation=subject.validation), subject)
    assert repaired(subject, network)[0] > 0.2
    assert repaired(subject, network)[1] < 0.05


def test_fair_neuron_finds_rare_paths():
    net, _ = started(FairNeuron(), loans())
    found = paths(net, loans().training[0], 0.9)
    weights = [loans().model[i].weight for i in (2, 4)]
    with torch.no_grad():
        first = loans().model[:2](loans().training[0][:1])[0]
        second = (loans().model[2](first)).relu()
        answer = int(loans().model[4](second).argmax())
    before = weights[1][answer] * second
    order = before.argsort(descending=True)
    needed = int((before[order].cumsum(0) - before[order] < 0.9 * before.sum()).sum())
    assert sorted(found[0, 16:].nonzero().flatten().tolist()) == sorted(order[:needed].tolist())
    for unit in order[:needed].tolist():
        assert bool(found[0, int((weights[0][unit] * first).argmax())])  # the largest contribution to each
    rare = rare_paths(found, 0.01)
    assert 0 < int(rare.sum()) < len(rare) / 2


def test_fair_neuron_selective_dropout_lowers_the_gap():
    gap = GroupGap.observed(loans().repair[0], GROUP, favorable=1, target=0.0)
    settings = {"thetas": (0.1, 0.01), "gammas": (0.9, 0.7), "epochs": 8, "floor": 0.04}
    network = product(FairNeuron(validation=loans().validation, **settings), loans(), gap)
    assert float(gap.value(network)) < 0.95 * float(gap.value(loans().model))
    assert loans().right(network) > loans().right(loans().model) - 0.06
    with pytest.raises(SpecificationError, match="dense layers"):
        product(FairNeuron(validation=digits().validation), digits())


def test_runner_lowers_the_importance_gap_of_unfair_neurons_and_the_group_gap():
    method = Runner(protected=(GROUP,), strength=3.0, validation=loans().validation)
    network = product(method, loans())
    net, _ = started(method, loans())
    x = loans().test[0]
    nodes = [(layer.node, layer.axis) for layer in net.hidden()]
    before = importance_gaps(net, nodes, x, x[:, GROUP].long(), 2)
    worst = before.topk(2).indices
    net.load(dict(network.named_parameters()))
    after = importance_gaps(net, nodes, x, x[:, GROUP].long(), 2)
    assert float(after[worst].sum()) < 0.7 * float(before[worst].sum())
    assert gap_of(network) < 0.85 * gap_of(loans().model)
    assert loans().right(network) > loans().right(loans().model) - 0.02
