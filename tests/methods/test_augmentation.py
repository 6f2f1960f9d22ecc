"""Augmentation: definitions of the operations, styles and clusters, and that training with each works."""

from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from digits import learned, proposal
from torch import nn

from repairopt import ErrorRate, Settings, SpecificationError, methods, solve_repair
from repairopt.methods.training import image_operations as operations
from repairopt.methods.training.augment import divergence
from repairopt.methods.training.fsgmix import fitted, mixtures, statistics
from repairopt.methods.training.style import cluster_chances, color_transfer, haar, inverse_haar, wavelet_transfer
from repairopt.patches import load_patch


@pytest.fixture(scope="module")
def images():
    torch.manual_seed(0)
    convolutions = [nn.Conv2d(1, 6, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(6, 12, 3, padding=1)]
    return learned(nn.Sequential(*convolutions, nn.ReLU(), nn.Flatten(), nn.Linear(192, 10)), (1, 8, 8), steps=60)


def _draw(seed=0):
    return torch.Generator().manual_seed(seed)


def _contrast(x):
    return 0.5 + 0.25 * (x - 0.5)


def _failures(images, change):
    x, y = change(images.repair[0]), images.repair[1]
    wrong = images.wrong(images.model, (x, y))
    return ErrorRate(x[wrong], y[wrong])


def _residual(images, model, change):
    """Accuracy on test rows with the pattern that the original gets wrong."""
    rows = (change(images.test[0]), images.test[1])
    failing = images.wrong(images.model, rows)
    return float((~images.wrong(model, rows))[failing].double().mean())


@pytest.mark.parametrize("operation", operations.OPERATIONS)
def test_operations_keep_shape_and_grow_with_their_level(operation):
    x = torch.rand(40, 3, 12, 12, generator=_draw())
    small, large = (operation(x, torch.full((40,), level), _draw(1)) for level in (0.1, 9.0))
    assert small.shape == x.shape
    assert torch.isfinite(small).all()
    if operation not in (operations.autocontrast, operations.equalize):
        assert float((small - x).abs().mean()) < float((large - x).abs().mean())
    row = operation(x[3:4], torch.full((1,), 0.1), _draw(1))
    if operation in (operations.autocontrast, operations.equalize, operations.posterize, operations.solarize):
        torch.testing.assert_close(row[0], small[3], msg="an image does not depend on the others")


def test_operations_by_hand():
    ramp = torch.linspace(0.2, 0.6, 16).view(1, 1, 4, 4)
    stretched = operations.autocontrast(ramp, torch.zeros(1), _draw())
    assert (float(stretched.min()), float(stretched.max())) == pytest.approx((0.0, 1.0))
    flat = operations.equalize(ramp, torch.zeros(1), _draw()).flatten()
    torch.testing.assert_close(flat.sort().values, torch.linspace(0, 1, 16), atol=0.02, rtol=0)
    kept = operations.posterize(ramp, torch.full((1,), 5.0), _draw())  # two bits
    assert set((kept.flatten() * 255).round().tolist()) <= {0.0, 64.0, 128.0, 192.0}
    inverted = operations.solarize(ramp, torch.full((1,), 5.0), _draw())
    torch.testing.assert_close(inverted, torch.where(ramp >= 128 / 255, 1 - ramp, ramp))
    moved = operations.translate_x(F.pad(torch.ones(1, 1, 6, 2), (2, 2)), torch.full((1,), 10.0), _draw())
    assert moved[0, 0, 0].sum() in (0.0, 2.0)


def test_Cutout(images):
    mask = operations.box_mask(500, (8, 8), (4.0, 4.0), _draw())
    area = mask.sum((1, 2, 3))
    assert area.max() == 16
    assert (area >= 4).all()
    _check_training(images, methods.Cutout(epochs=5))


def test_Mixup(images, digits):
    _check_training(images, methods.Mixup(epochs=6, rate=0.05))
    _, _, found = proposal(methods.Mixup(epochs=3), digits.model, ErrorRate(*digits.repair), data=digits.training)
    assert not torch.equal(found[0].weight, digits.model[0].weight), "rows of any shape can be mixed"


def test_CutMix(images):
    _check_training(images, methods.CutMix(epochs=6, rate=0.05))


def _of_units(mixed):  # image k has its pixel k alone, so that a mixture shows what it is made of
    return mixed.flatten(1)


def _of_flat_images(mixed):  # image k has the value k everywhere, so that areas can be counted
    return (mixed.flatten(1)[:, :, None] == torch.arange(12.0)).float().mean(1)


@pytest.mark.parametrize(
    ("method", "x", "shares"),
    [
        (methods.Mixup(), torch.eye(12).view(12, 1, 3, 4), _of_units),
        (methods.CutMix(), torch.arange(12.0).view(12, 1, 1, 1).expand(12, 1, 8, 8), _of_flat_images),
    ],
)
def test_labels_count_by_the_share_of_their_rows(method, x, shares, images):
    y, logits, seen = torch.arange(12) % 10, torch.randn(12, 10, generator=_draw(1)), []
    task = proposal(methods.Cutout(epochs=1), images.model, _failures(images, _contrast), data=images.training)[0]
    mixed_in = []
    for seed in range(6):
        net = lambda inputs: seen.append(inputs) or logits  # noqa: E731
        recipe = method.recipe(replace(task, seed=seed), net, (x, y), (x, y), _draw(seed))
        loss = recipe.loss(x, y)
        share = shares(seen[-1])
        torch.testing.assert_close(share.sum(1), torch.ones(12))
        assert int((share > 1e-6).sum(1).max()) <= 2, "pairs are mixed"
        costs = F.cross_entropy(logits.repeat_interleave(12, 0), y.repeat(12), reduction="none").view(12, 12)
        torch.testing.assert_close(loss, (share * costs).sum(1).mean())
        mixed_in.append(1 - float(share.diagonal().min()))
    assert max(mixed_in) - min(mixed_in) > 0.3, "the share is drawn anew"


def test_AugMix(images):
    x = torch.rand(30, 1, 8, 8, generator=_draw())
    weights = torch.full((30, 3), 1 / 3)
    assert torch.equal(operations.mix_chains(x, weights, torch.zeros(30), 3.0, _draw()), x)
    mixed = operations.mix_chains(x, weights, torch.full((30,), 0.5), 3.0, _draw())
    assert 0 < float((mixed - x).abs().mean()) < 0.4
    logits = torch.randn(3, 5, 4, generator=_draw()).unbind()
    p = [torch.softmax(one, 1) for one in logits]
    m = sum(p) / 3
    by_hand = sum((one * (one / m).log()).sum(1).mean() for one in p) / 3
    torch.testing.assert_close(divergence(logits), by_hand)
    assert float(divergence((logits[0],) * 3)) == pytest.approx(0.0, abs=1e-6)
    _check_training(images, methods.AugMix(epochs=3))


def _check_training(images, method):
    """Fixes a good part of residual failures with a pattern that is learned, at a bounded loss on clean images."""
    goal = _failures(images, _contrast)
    _, _, found = proposal(method, images.model, goal, data=images.training)
    assert _residual(images, found, _contrast) > 0.3
    clean = [float(images.wrong(one, images.test).double().mean()) for one in (images.model, found)]
    assert clean[1] < clean[0] + 0.1


def test_FSGMix_has_other_weights_than_a_Dirichlet_distribution(images):
    pytest.importorskip("sklearn", reason="the extra sklearn is not installed")
    goal = _failures(images, _contrast)
    method = methods.FSGMix(epochs=3)
    kept = {}

    class Watched(methods.FSGMix):
        def weights(self, *given):
            kept["drawn"] = super().weights(*given)
            return kept["drawn"]

    _, _, found = proposal(Watched(epochs=method.epochs), images.model, goal, data=images.training)
    assert _residual(images, found, _contrast) > 0.3
    weights = kept["drawn"](4000).numpy()
    np.testing.assert_allclose(weights.sum(1), 1.0)
    uniform = np.random.default_rng(0).dirichlet(np.ones(3), 4000)
    from scipy.stats import ks_2samp

    assert min(ks_2samp(weights[:, k], uniform[:, k]).pvalue for k in range(3)) < 1e-6


def test_mixtures_of_statistics_are_found_again():
    draw = np.random.default_rng(0)
    given, true = draw.normal(size=(20, 3, 8)), draw.dirichlet(np.ones(3), 20)
    found = mixtures(np.einsum("nm,nms->ns", true, given), given)
    np.testing.assert_allclose(found, true, atol=5e-3)
    assert statistics(torch.rand(4, 3, 8, 8)).shape == (4, 10)
    pytest.importorskip("sklearn", reason="the extra sklearn is not installed")
    two = np.concatenate([draw.dirichlet([50, 1, 1], 60), draw.dirichlet([1, 1, 50], 60)])
    assert fitted(two, np.ones(120), 5, 0).n_components >= 2


def test_WCT2_moves_the_style_and_keeps_the_content():
    x = torch.rand(4, 3, 8, 9, generator=_draw())
    torch.testing.assert_close(inverse_haar(haar(x[..., :8])), x[..., :8])
    style = 0.3 * torch.rand(4, 3, 8, 9, generator=_draw(1)) + torch.tensor([0.1, 0.5, 0.3])[:, None, None]
    found = color_transfer(x, style).flatten(2)
    torch.testing.assert_close(found.mean(2), style.flatten(2).mean(2), atol=1e-4, rtol=1e-3)
    for own, wanted in zip(found, style.flatten(2), strict=True):
        torch.testing.assert_close(torch.cov(own), torch.cov(wanted), atol=2e-3, rtol=0.05)
    sharp = (torch.rand(6, 1, 16, 16, generator=_draw(2)) > 0.5).float()
    soft = F.avg_pool2d(sharp.flip(0), 3, stride=1, padding=1)
    moved = wavelet_transfer(sharp, soft)
    assert moved.shape == sharp.shape
    detail = [float(haar(one)[3].std()) for one in (sharp, moved, soft)]
    assert abs(detail[1] - detail[2]) < 0.1 * abs(detail[0] - detail[2]), "blur is carried over"
    related = torch.corrcoef(torch.stack([haar(sharp)[0].flatten(), haar(moved)[0].flatten()]))[0, 1]
    assert float(related) > 0.8, "the content stays"
    torch.testing.assert_close(wavelet_transfer(x, x), x, atol=2e-3, rtol=1e-2)


def test_references_come_from_clusters():
    draw = _draw(3)
    x = torch.cat([torch.rand(30, 1, 4, 4, generator=draw) * 0.1, 1 - torch.rand(50, 1, 4, 4, generator=draw) * 0.1])
    for weight in ("printed", "softmax"):
        found = cluster_chances(x, 2, 0, weight)
        assert sorted(len(own) for own, _ in found) == [30, 50]
        for own, chance in found:
            assert float(chance.sum()) == pytest.approx(1.0)
            far = (x[own].flatten(1) - x[own].flatten(1).mean(0)).norm(dim=1)
            assert chance.argmax() == far.argmin()
    ((own, chance),) = cluster_chances(x, 0, 0)
    assert len(own) == 80
    assert torch.allclose(chance, chance[0])
    assert len(cluster_chances(x[:1].expand(5, 1, 4, 4), 3, 0)) == 1


@pytest.mark.parametrize("clusters", [5, 0])
def test_DeepRepair(images, clusters):
    goal = _failures(images, _contrast)
    method = methods.DeepRepair(epochs=3, clusters=clusters)
    _, _, found = proposal(method, images.model, goal, data=images.training)
    assert _residual(images, found, _contrast) > 0.3
    seen = []

    def plugged(content, references):
        seen.append((content.shape, references.shape))
        return references

    rows = (images.training[0][:200], images.training[1][:200])
    proposal(methods.DeepRepair(epochs=1, transfer=plugged), images.model, goal, data=rows)
    assert seen
    assert all(one == other for one, other in seen)


@pytest.mark.slow
def test_DeepRepair_is_above_AugMix_for_half_of_the_patterns(images):
    """Both learn the training and the failing images."""
    patterns = [lambda x: F.avg_pool2d(x, 3, stride=1, padding=1), _contrast]
    above = 0
    for change in patterns:
        found = []
        for method in (methods.AugMix(epochs=3), methods.DeepRepair(epochs=3, include_failures=True)):
            repaired = proposal(method, images.model, _failures(images, change), data=images.training)[2]
            found.append(_residual(images, repaired, change))
        above += found[1] > found[0]
    assert above >= len(patterns) / 2


@pytest.mark.parametrize("name", ["cutout", "mixup", "cutmix", "augmix", "fsgmix", "deep_repair"])
def test_each_is_a_method_like_the_others(name, images, fingerprint, tmp_path):
    if name == "fsgmix":
        pytest.importorskip("sklearn", reason="the extra sklearn is not installed")
    kinds = {"cutout": "Cutout", "mixup": "Mixup", "cutmix": "CutMix", "augmix": "AugMix", "fsgmix": "FSGMix"}
    method = getattr(methods, kinds.get(name, "DeepRepair"))(epochs=1, rate=0.03)
    assert name in methods.available_methods()
    goal, before = _failures(images, _contrast), fingerprint(images.model)
    rows = (images.training[0][:150], images.training[1][:150])
    runs = [solve_repair(images.model, goal, method=method, data=rows, settings=Settings(seed=4)) for _ in range(2)]
    assert fingerprint(images.model) == before
    x = images.test[0]
    assert torch.equal(runs[0].model(x), runs[1].model(x))
    runs[0].as_patch(images.model).save(tmp_path / "patch.safetensors")
    assert torch.equal(load_patch(tmp_path / "patch.safetensors").apply(images.model)(x), runs[0].model(x))
    late = solve_repair(images.model, goal, method=method, data=rows, settings=Settings(time_limit=1e-3))
    assert late.report.stopped == "time limit"


def test_training_that_diverges_is_told(images):
    goal, method = _failures(images, _contrast), methods.Cutout(epochs=3, rate=1e30)
    task, _, found = proposal(method, images.model, goal, data=images.training)
    assert any("diverged" in note for note in task.log.notes)
    assert all(bool(one.isfinite().all()) for one in found.parameters())


@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("Cutout", {"side": 2.0}),
        ("Mixup", {"alpha": 0.0}),
        ("CutMix", {"alpha": -1.0}),
        ("AugMix", {"severity": 11.0}),
        ("AugMix", {"width": 0}),
        ("FSGMix", {"components": 0}),
        ("DeepRepair", {"weight": "equal"}),
        ("DeepRepair", {"clusters": -1}),
    ],
)
def test_wrong_settings_are_refused(name, settings):
    with pytest.raises(SpecificationError, match=next(iter(settings))):
        getattr(methods, name)(**settings)


def test_rows_that_are_no_images_are_refused(digits):
    with pytest.raises(SpecificationError, match="augments images"):
        proposal(methods.AugMix(), digits.model, ErrorRate(*digits.repair), data=digits.training)
