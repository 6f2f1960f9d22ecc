"""Factors of low rank as the weights that change: verdict, report, patch, adapter, and models that peft made."""

from __future__ import annotations

import copy
import sys
import warnings

import numpy as np
import pytest
import torch
from torch import nn

from repairopt import (
    SQP,
    ChangeLimit,
    ErrorRate,
    FineTune,
    KeepLabels,
    LowRank,
    ModelError,
    SpecificationError,
    TrainThenCorrect,
    Verdict,
    solve_repair,
    trace_frontier,
)
from repairopt.localize import localize
from repairopt.patches import ExportError, Patch, export_lora


@pytest.fixture(scope="module")
def peft():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return pytest.importorskip("peft")


def labels_of(x: torch.Tensor) -> torch.Tensor:
    return (x[:, 0] > 0).long() + (x[:, 1] > 0).long()


@pytest.fixture(scope="module")
def trained():
    """A network, and rows with two features turned, which it was not trained on."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        x = torch.randn(300, 6)
        model = nn.Sequential(nn.Linear(6, 40), nn.ReLU(), nn.Linear(40, 30), nn.ReLU(), nn.Linear(30, 3))
        optimizer = torch.optim.Adam(model.parameters(), 5e-3)
        for _ in range(150):
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(x), labels_of(x)).backward()
            optimizer.step()
    turn = torch.tensor([[0.8, 0.6], [-0.6, 0.8]])
    return model, x, torch.cat([x[:, :2] @ turn, x[:, 2:5], x[:, 5:] + 3], 1)


def repair(model, clean, turned, y, **options):
    goal, data = ErrorRate(turned, y, target=0.1), [(clean, y), (turned, y)]
    keep = KeepLabels(clean, y, tolerance=0.0)
    return solve_repair(model, goal, [keep], data=data, held_out=(turned + 0.01, y), **options)


def assert_same(one, other) -> None:
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), other.parameters(), strict=True))


def rank_of(change: torch.Tensor) -> int:
    return int(torch.linalg.matrix_rank(change.double().flatten(1), rtol=1e-5))


@pytest.mark.usefixtures("without_pictures")
def test_factors_are_repaired_by_default_and_merged(peft, trained, fingerprint, tmp_path):
    model, clean, turned = trained
    y, before = labels_of(clean), fingerprint(model)
    right = model(clean).argmax(1) == y
    found = repair(model, clean, turned, y, weights=LowRank(rank=2))
    report = found.report
    assert report.verdict is Verdict.REPAIRED
    assert report.method == "TrainThenCorrect()"
    assert (found.model(clean).argmax(1) == y)[right].all(), "a guard flipped"
    assert type(found.model) is type(model)
    assert set(found.delta) == {"0.weight", "2.weight", "4.weight"}
    assert {name: rank_of(change) for name, change in found.delta.items()} == dict.fromkeys(found.delta, 2)
    count = 2 * (6 + 40 + 40 + 30 + 30 + 3)
    assert f"{count} numbers in factors of rank 2 beside 0, 2, 4" in " ".join(str(report).split())
    assert found.candidate.size() == count
    assert "0.weight" in found.to_html()
    assert fingerprint(model) == before
    assert all(parameter.requires_grad for parameter in model.parameters())
    patch = found.as_patch(model)
    assert_same(patch.apply(model), found.model)
    assert export_lora(patch, model, tmp_path, max_rank=2) == {"0": 2, "2": 2, "4": 2}
    served = peft.PeftModel.from_pretrained(copy.deepcopy(model), tmp_path)
    torch.testing.assert_close(served(turned), found.model(turned), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("method", [SQP(max_steps=4), FineTune(epochs=10, rate=0.1)], ids=lambda m: type(m).__name__)
def test_other_methods_change_factors_too(peft, trained, method):
    model, clean, turned = trained
    y = labels_of(clean)
    goal = ErrorRate(turned, y, target=0.1)
    found = solve_repair(model, goal, data=[(turned, y)], weights=LowRank(1, "2"), method=method)
    assert found.report.verification.goal_after < found.report.verification.goal_before
    assert {name: rank_of(change) for name, change in found.delta.items()} == {"2.weight": 1}


def test_a_frontier_of_factors_is_of_low_rank(peft, trained):
    model, _, turned = trained
    goal, quick = ErrorRate(turned, labels_of(turned)), SQP(max_steps=2, confidence=None)
    traced = trace_frontier(model, goal, targets=[0.5, 0.3], weights=LowRank(1, "2"), method=quick)
    changes = [point.repair.delta for point in traced.points if point.repair is not None]
    assert changes
    assert all(set(change) == {"2.weight"} and rank_of(change["2.weight"]) <= 1 for change in changes)


def test_weights_may_change_beside_factors(peft, trained):
    model, clean, turned = trained
    given, quick = (model, clean, turned, labels_of(clean)), TrainThenCorrect(epochs=1)
    found = repair(*given, weights=[LowRank(2, ["0"]), "4", "2.bias"], method=quick)
    assert found.report.verification.goal_after < found.report.verification.goal_before
    assert set(found.delta) == {"0.weight", "2.bias", "4.weight", "4.bias"}
    assert all(bool(change.any()) for change in found.delta.values())
    assert rank_of(found.delta["0.weight"]) == 2
    beside = repair(*given, weights=[LowRank(2, "2"), "2.bias"], method=quick)
    assert set(beside.delta) == {"2.weight", "2.bias"}
    assert beside.delta["2.bias"].any()


def test_convolutions_have_factors_and_tied_weights_have_none(peft, tmp_path):
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(1, 6, 3, padding=1)
            self.grouped = nn.Conv2d(6, 6, 1, groups=2)
            self.norm = nn.BatchNorm2d(6)
            self.head, self.twin = nn.Linear(6, 3), nn.Linear(6, 3)
            self.twin.weight = self.head.weight

        def forward(self, x):
            x = torch.relu(self.norm(self.grouped(self.conv(x)))).mean((2, 3))
            return self.head(x) + self.twin(x)

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        model, x = Net().eval(), torch.randn(60, 1, 4, 4)
    y = (x.mean((1, 2, 3)) > 0).long() + (x[:, 0, 0, 0] > 0).long()
    quick = TrainThenCorrect(epochs=1)
    found = solve_repair(model, ErrorRate(x, y, target=0.3), weights=LowRank(2), data=[(x, y)], method=quick)
    assert set(found.delta) == {"conv.weight"}
    assert rank_of(found.delta["conv.weight"]) == 2
    assert found.report.verification.goal_after < found.report.verification.goal_before
    assert export_lora(found.as_patch(model), model, tmp_path) == {"conv": 2}
    served = peft.PeftModel.from_pretrained(copy.deepcopy(model), tmp_path)
    torch.testing.assert_close(served(x), found.model(x), rtol=1e-4, atol=1e-4)
    with pytest.raises(ModelError, match="'head' is a Linear; factors go beside .* not tied"):
        solve_repair(model, ErrorRate(x, y), weights=LowRank(2, "head"))


def test_layers_whose_weights_are_read_without_a_call_get_no_factors(peft):
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.block = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
            self.head = nn.Linear(8, 2)

        def forward(self, x):
            return self.head(self.block(x).mean(1))

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model, x = Net().eval(), torch.randn(20, 3, 8)
    y = (x.mean((1, 2)) > 0).long()
    found = solve_repair(model, ErrorRate(x, y, target=0.4), weights=LowRank(2), data=[(x, y)])
    assert set(found.delta) == {"head.weight"}
    with pytest.raises(ModelError, match=r"layer 'block.linear1' is not called; its weight is read by another module"):
        solve_repair(model, ErrorRate(x, y), weights=LowRank(2, "block.linear*"))


def test_the_factors_of_a_model_of_peft_are_weights_like_others(peft, trained, fingerprint, tmp_path):
    base, clean, turned = trained
    config = peft.LoraConfig(r=3, lora_alpha=6, target_modules=["0", "2"], lora_dropout=0.5)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = peft.get_peft_model(copy.deepcopy(base), config).eval()
    before, y = fingerprint(model), labels_of(clean)
    found = repair(model, clean, turned, y, weights="all")
    assert found.report.method == "TrainThenCorrect()"
    assert found.report.verdict is Verdict.REPAIRED
    assert fingerprint(model) == before
    assert all(".lora_" in name for name, change in found.delta.items() if change.any())
    patch = Patch.from_repair(found, model)
    assert export_lora(patch, model, tmp_path) == {"0": 3, "2": 3}
    served = peft.PeftModel.from_pretrained(copy.deepcopy(base), tmp_path).eval()
    torch.testing.assert_close(served(turned), found.model(turned))
    with served.disable_adapter():
        torch.testing.assert_close(served(turned), base(turned))
    with pytest.raises(ModelError, match="has factors of low rank already"):
        solve_repair(model, ErrorRate(turned, y), weights=LowRank(2))
    with pytest.raises(ExportError, match=r"above max_rank=2"):
        export_lora(patch, model, tmp_path, max_rank=2)
    moved = copy.deepcopy(model)
    with torch.no_grad():
        moved.get_parameter("base_model.model.4.weight").add_(1)
    with pytest.raises(ExportError, match=r"'base_model.model.4.weight', which is no part of the adapter 'default'"):
        export_lora(Patch.between(model, moved), model, tmp_path)


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: LowRank(0), SpecificationError, "rank=0; expected a whole number"),
        (lambda: LowRank(1.5), SpecificationError, "rank=1.5; expected a whole number"),
        (lambda: LowRank(2, [3]), SpecificationError, "3 is no name"),
        (lambda: LowRank(2, 3), SpecificationError, "3 is no name"),
        (lambda: LowRank(2, None), SpecificationError, "None is no name"),
        (lambda: LowRank(2, "fc"), ModelError, "no layer is called 'fc'"),
        (lambda: LowRank(2, "1"), ModelError, "'1' is a ReLU; factors go beside"),
        (lambda: [LowRank(2, "0"), LowRank(1, "2")], SpecificationError, "more than one LowRank"),
        (lambda: [LowRank(2, "4"), "last"], SpecificationError, "layer '4' is chosen as a whole and by LowRank"),
    ],
)
def test_wrong_choices_are_explained(trained, make, error, message):
    model, clean, _ = trained
    with pytest.raises(error, match=message):
        solve_repair(model, ErrorRate(clean, labels_of(clean)), weights=make())


def test_frozen_layers_get_factors_only_by_name(peft, trained):
    model, clean, _ = trained
    partly = copy.deepcopy(model)
    partly[0].requires_grad_(False)
    goal, quick = ErrorRate(clean, 1 - labels_of(clean).clamp(max=1)), TrainThenCorrect(epochs=1)
    rank = np.int64(2)  # as it comes out of a search
    for network, weights, changed in (
        (partly, LowRank(rank), {"2.weight", "4.weight"}),
        (partly, LowRank(rank, "0"), {"0.weight"}),
        (copy.deepcopy(model).requires_grad_(False), LowRank(rank), {"0.weight", "2.weight", "4.weight"}),
    ):
        assert set(solve_repair(network, goal, weights=weights, method=quick).delta) == changed


def test_what_factors_cannot_do_is_said(trained, monkeypatch):
    model, clean, _ = trained
    goal = ErrorRate(clean, labels_of(clean))
    with pytest.raises(SpecificationError, match="'change limit': limits the change of weights"):
        solve_repair(model, goal, [ChangeLimit(absolute=0.1)], weights=LowRank(2))
    with pytest.raises(SpecificationError, match="pass it to solve_repair"):
        localize(model, LowRank(2))
    monkeypatch.setitem(sys.modules, "peft", None)
    with pytest.raises(SpecificationError, match=r"needs the library peft; install it with pip install"):
        solve_repair(model, goal, weights=LowRank(2))
