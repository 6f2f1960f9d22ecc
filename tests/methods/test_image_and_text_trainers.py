"""Methods for images and texts: warps and AugMix versions, SENSEI, HybridRepair, RNNRepair."""

from __future__ import annotations

import math

import pytest
import torch
from test_model_repairers import repaired, started
from test_training_room import product
from training_subjects import Subject, digits, texts, trained

from repairopt import SpecificationError
from repairopt.methods import HybridRepair, RnnRepair, Sensei
from repairopt.methods.training.hybrid_repair import density_peaks, unsmoothness, versions
from repairopt.methods.training.image_variants import Box, augmix, warp
from repairopt.methods.training.sensei import RANGES, VariantSearch


def images() -> torch.Tensor:
    return digits().training[0][:40]


def test_warps_are_turns_shifts_and_zooms():
    x = images()
    assert torch.allclose(warp(x), x, atol=1e-5)
    assert torch.allclose(warp(x, rotation=math.pi / 2), torch.rot90(x, 1, (2, 3)), atol=1e-4)
    right = warp(x, shift=(1 / 8, 0.0))
    assert torch.allclose(right[..., 1:], x[..., :-1], atol=1e-5)
    assert torch.allclose(warp(x, shift=(0.0, -1 / 8))[:, :, :-1], x[:, :, 1:], atol=1e-5)
    half = warp(x, zoom=0.5)
    assert float(half[:, :, :2].abs().max()) == 0.0
    each = warp(x[:2], rotation=torch.tensor([0.0, 0.3]))
    assert torch.allclose(each[0], x[0], atol=1e-5)
    assert not torch.allclose(each[1], x[1], atol=1e-2)


def test_augmix_mixes_within_the_box_by_seed():
    x = 2 * images() - 1
    box = Box.of(None, x)
    one, two = (augmix(x, box, torch.Generator().manual_seed(seed)) for seed in (0, 0))
    assert torch.equal(one, two)
    assert float(one.min()) >= -1
    assert float(one.max()) <= 1
    assert 0.005 < float((one - x).abs().mean()) < 0.5


def test_sensei_finds_worse_variants_from_generation_to_generation():
    subject = digits()
    method = Sensei(validation=subject.validation)
    net, rows = started(method, subject)
    search = VariantSearch(net, rows.training, Box.of(method, rows.training[0]), method)
    clean = torch.nn.functional.cross_entropy(net.predict(rows.training[0]), rows.training[1], reduction="none")
    worst = []
    for _ in range(4):
        found = search.next()
        worst.append(float(search.worst.mean()))
        assert bool((search.genes.abs() <= torch.tensor(RANGES) + 1e-6).all())
    assert worst[0] > float(clean.mean())  # worse than the images
    assert worst == sorted(worst)  # the worst stays
    loss = torch.nn.functional.cross_entropy(net.predict(found), rows.training[1], reduction="none")
    assert torch.allclose(loss, search.worst, atol=1e-4)


def test_sensei_skips_robust_images_for_some_epochs():
    subject = digits()
    method = Sensei(robust=0.5, rest=2)
    net, rows = started(method, subject)
    search = VariantSearch(net, rows.training, Box.of(method, rows.training[0]), method)
    search.next()
    robust = search.worst < 0.5
    assert 0 < int(robust.sum()) < len(robust)
    for _ in range(2):
        found = search.next()
        assert not bool(search.searched[robust].any())
        assert bool(search.searched[~robust].any())
        assert torch.equal(found[robust], rows.training[0][robust])
    search.next()
    assert bool(search.searched[robust].all())


def test_sensei_training_makes_the_network_more_robust_to_natural_variants():
    subject = digits()
    network = product(Sensei(validation=subject.validation, epochs=8, population=4, rate=3e-3), subject)
    turned = (warp(subject.test[0], rotation=0.4), subject.test[1])
    assert subject.right(network, turned) > subject.right(subject.model, turned) + 0.02
    with pytest.raises(SpecificationError, match="works on images"):
        product(Sensei(), digits("mlp"))


def test_density_peaks_find_planted_clusters():
    torch.manual_seed(0)
    centers = torch.tensor([[0.0, 0.0], [5.0, 0.0], [0.0, 5.0]])
    points = (centers[:, None] + 0.3 * torch.randn(3, 30, 2)).flatten(0, 1)
    clusters, density = density_peaks(points, 3)
    assert [len(set(part.tolist())) for part in clusters.view(3, 30)] == [1, 1, 1]
    assert len(set(clusters.tolist())) == 3
    assert float((points[density.argmax()] - centers).norm(dim=1).min()) < 0.3


def test_hybrid_repair_spreads_labels_rightly_in_the_selected_clusters():
    subject = digits()
    method = HybridRepair(encoder=lambda x: x.flatten(1))
    net, rows = started(method, subject)
    x, y = subject.repair
    draw, box = torch.Generator().manual_seed(0), Box.of(method, x)
    features = method.features(net, x, box, draw)
    clusters, density = density_peaks(features, len(x) // 10)
    labels = torch.full_like(y, -1)
    smooth = unsmoothness(versions(net, x, box, draw))
    spent = method.annotate(clusters, features, density, smooth, y, labels, set(), 50)
    spread = labels >= 0
    assert spent <= 50
    assert int(spread.sum()) > 2 * spent
    assert float((labels[spread] == y[spread]).float().mean()) > 0.9


@pytest.mark.parametrize("given", [True, False])
def test_hybrid_repair_raises_accuracy(given):
    subject = digits("cnn", 3)
    encoder = (lambda x: x.flatten(1)) if given else None
    method = HybridRepair(encoder=encoder, budget=0.05, encoder_epochs=4, validation=subject.validation)
    network = product(method, subject)
    assert subject.right(network) > subject.right(subject.model)
    assert repaired(subject, network)[0] > repaired(subject, network)[1]


def spoiled() -> tuple[Subject, torch.Tensor]:
    """Texts that begin with word 19 have the wrong label in the training data, and the network learned that."""
    subject = texts()
    draw = torch.Generator().manual_seed(5)
    parts = {}
    for name in ("training", "repair", "test"):
        x, y = (part.clone() for part in getattr(subject, name))
        chosen = torch.rand(len(x), generator=draw) < 0.3
        x[chosen, :4] = 19
        y = ((x < 5).sum(1) > ((x >= 5) & (x < 10)).sum(1)).long()
        parts[name] = (x, y, chosen)
    x, y, wrong = parts["training"]
    learned = torch.where(wrong, 1 - y, y)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = type(subject.model)()
        trained(model, (x, learned), epochs=12, rate=1e-2)
    pairs = {name: part[:2] for name, part in parts.items()} | {"training": (x, learned)}
    return Subject(**{**vars(subject), **pairs, "model": model}), wrong


def test_rnn_repair_finds_influential_training_samples_and_remedies_failing_sequences():
    pytest.importorskip("sklearn")
    subject, planted = spoiled()
    assert 0.5 < subject.right(subject.model) < 0.8
    method = RnnRepair(share=0.2, validation=subject.validation)
    net, rows = started(method, subject)
    harmful, labels, _ = method.influential(net, rows)
    assert len(harmful) > 20
    assert float(planted[: len(rows.training[0])].float().mean()) < 0.4
    position = {tuple(row): i for i, row in enumerate(subject.training[0].tolist())}
    found = torch.tensor([bool(planted[position[tuple(rows.training[0][i].tolist())]]) for i in harmful.tolist()])
    assert float(found.float().mean()) > 0.8  # against 0.3 by chance
    assert float((labels != rows.training[1][harmful]).float().mean()) > 0.8
    for remedy in ("relabel", "augment"):
        settings = {"share": 0.2, "remedy": remedy, "epochs": 15, "rate": 3e-3, "validation": subject.validation}
        network = product(RnnRepair(**settings), subject)
        assert repaired(subject, network)[0] > 0.25
    with pytest.raises(SpecificationError, match="no recurrent layer"):
        product(RnnRepair(), digits())
