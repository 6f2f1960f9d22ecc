"""ArchRepair: the relaxed block begins as the original, the search finds operations, and the result is a file."""

import copy
from collections import OrderedDict

import pytest
import torch
from digits import learned, proposal
from torch import nn

from repairopt import ErrorRate, ModelError, Settings, SpecificationError, methods, solve_repair
from repairopt.localize import NewArchitecture
from repairopt.methods.architecture.bilevel import Schedule, search_cell
from repairopt.methods.architecture.cell import RelaxedCell, node_shapes, segments_of
from repairopt.methods.architecture.operations import OPERATIONS, make_operation
from repairopt.methods.architecture.rebuilt import replace_block
from repairopt.patches import export_onnx, load_patch


def _stage():
    return nn.Sequential(nn.Conv2d(8, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 8, 3, padding=1), nn.ReLU())


@pytest.fixture(scope="module")
def images():
    """A convolutional network that learned clean digits, and blurred digits that it gets wrong."""
    torch.manual_seed(0)
    parts = {"stem": nn.Conv2d(1, 8, 3, padding=1), "act": nn.ReLU(), "stage1": _stage(), "stage2": _stage()}
    parts |= {"pool": nn.MaxPool2d(2), "flat": nn.Flatten(), "head": nn.Linear(128, 10)}
    own = learned(nn.Sequential(OrderedDict(parts)), (1, 8, 8), steps=35)
    return own


def _blurred(x):
    return nn.functional.avg_pool2d(x, 3, stride=1, padding=1) * 1.5


def _goal(images):
    x, y = images.repair
    return ErrorRate(_blurred(x), y)


SHORT = {"epochs": 6, "patience": 6, "batch": 128, "top": 10}


def test_the_relaxed_block_matches_the_original_at_step_0(images):
    model = copy.deepcopy(images.model)
    x, y = images.test
    with torch.no_grad():
        before = model(x)
        segments = segments_of(model.stage2)
        assert len(segments) == 2
        shapes = node_shapes(segments, model.stage1(model.act(model.stem(x[:2]))))
        cell = RelaxedCell(segments, shapes).eval()
        assert len(cell.edges) == 3
        replace_block(model, "stage2", cell)
        after = model(x)
    assert abs(float((before.argmax(1) == y).double().mean()) - float((after.argmax(1) == y).double().mean())) <= 0.01
    assert float((before - after).abs().max()) < 0.1 * float(before.abs().max())
    assert [one["operation"] for one in cell.genotype()] == ["original", "original"]


def test_ArchRepair_beats_its_layer_level_variant(images):
    errors = {}
    for level in ("block", "layer"):
        own = (_blurred(images.training[0][:200]), images.training[1][:200])
        blocks = ("stage1", "stage2")
        method = methods.ArchRepair(level=level, blocks=blocks, validation=own, **SHORT)
        _, outcome, found = proposal(method, images.model, _goal(images), data=images.training)
        assert isinstance(outcome.candidate, NewArchitecture)
        assert outcome.candidate.size() == sum(one.numel() for one in outcome.candidate.tensors.values())
        held_out = (_blurred(images.test[0]), images.test[1])
        errors[level] = [float(images.wrong(one, held_out).double().mean()) for one in (images.model, found)]
        clean = [float(images.wrong(one, images.test).double().mean()) for one in (images.model, found)]
        assert clean[1] <= clean[0] + 0.01
        name = outcome.candidate.settings["name"]
        assert (name in blocks) == (level == "block")
    assert errors["block"][1] < errors["block"][0]
    assert errors["block"][1] < errors["layer"][1]


def test_PC_DARTS_picks_the_known_best_operation():
    """The labels are those of a network with a maximum pool; every operation begins alike."""
    draw = torch.Generator().manual_seed(0)
    x = (torch.rand(600, 4, 6, 6, generator=draw) > 0.9).float()
    head = nn.Sequential(nn.Flatten(), nn.Linear(4 * 36, 2))
    with torch.no_grad():
        head[1].weight.copy_(torch.randn(2, 144, generator=draw))
        y = head(nn.functional.max_pool2d(x, 3, stride=1, padding=1)).argmax(1)
    torch.manual_seed(0)
    segment = nn.Conv2d(4, 4, 1)
    cell = RelaxedCell([segment], [(4, 6, 6), (4, 6, 6)], start=0.0)
    next(iter(cell.edges.values())).mask.fill_(1.0)
    network = nn.Sequential(cell, head).requires_grad_(False)
    cell.requires_grad_(True)
    schedule = Schedule(epochs=25, patience=25, batch=50, rate=1e-3, decay=0.0, alpha_rate=0.05, alpha_decay=0.0)
    search_cell(network, cell, (x[:300], y[:300]), (x[300:], y[300:]), schedule)
    assert cell.genotype()[0]["operation"] == "max_pool"


@pytest.mark.parametrize("name", OPERATIONS)
def test_every_operation_maps_between_shapes(name):
    for given, out in (((3, 8, 8), (3, 8, 8)), ((3, 8, 8), (5, 4, 4)), ((4, 7, 7), (2, 5, 5))):
        made = make_operation(name, given, out).eval()
        assert made(torch.rand(2, *given)).shape == (2, *out)


def test_it_is_a_method_like_the_others(images, fingerprint, tmp_path):
    before = fingerprint(images.model)
    method = methods.ArchRepair(block="stage2", epochs=2, finetune="all")
    options = {"method": method, "data": images.training}
    runs = [solve_repair(images.model, _goal(images), settings=Settings(seed=1), **options) for _ in range(2)]
    assert fingerprint(images.model) == before
    x = images.test[0]
    assert runs[0].report.verdict in ("improved", "repaired")
    assert "new architecture of 'stage2'" in runs[0].report.candidate
    assert torch.equal(runs[0].model(x), runs[1].model(x))
    runs[0].as_patch(images.model).save(tmp_path / "block.safetensors")
    patch = load_patch(tmp_path / "block.safetensors")
    assert torch.equal(patch.apply(images.model)(x), runs[0].model(x))
    assert torch.equal(patch.revert(runs[0].model)(x), images.model(x))
    late = solve_repair(images.model, _goal(images), settings=Settings(time_limit=1e-3), **options)
    assert late.report.stopped == "time limit"


@pytest.mark.slow
def test_a_new_architecture_is_exported(images, tmp_path):
    pytest.importorskip("onnxscript", reason="the extra onnx is not installed")
    pytest.importorskip("onnxruntime", reason="the extra onnx is not installed")
    _, _, found = proposal(methods.ArchRepair(epochs=1), images.model, _goal(images), data=images.training)
    assert export_onnx(found, images.test[0][:8], tmp_path / "block.onnx").largest_difference < 1e-3


def test_what_it_cannot_do_is_told(images, digits):
    for name, settings in (("level", {"level": "row"}), ("finetune", {"finetune": "none"}), ("rate", {"rate": 0.0})):
        with pytest.raises(SpecificationError, match=name):
            methods.ArchRepair(**settings)
    with pytest.raises(ModelError, match="no module of that name"):
        proposal(methods.ArchRepair(block="stage9"), images.model, _goal(images), data=images.training)
    with pytest.raises(ModelError, match="feature maps"):
        proposal(methods.ArchRepair(), digits.model, ErrorRate(*digits.repair), data=digits.training)
