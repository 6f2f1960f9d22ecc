"""GroupOffsets: nothing changes until a repair sets them; then each group moves by its own; bad input is named."""

import copy

import numpy as np
import pytest
import torch
from biased_task import repair as repair_with, task
from torch import nn

from repairopt import SQP, GroupGap, GroupOffsets, ModelError, SpecificationError
from repairopt.patches import Patch


def rows(count=60, dtype=torch.float32):
    """Column 2 holds 0, 1, 2 or 5; columns 3 to 5 are one-hot."""
    draw = torch.Generator().manual_seed(1)
    x = torch.randn(count, 6, generator=draw, dtype=dtype)
    x[:, 2] = torch.tensor([0.0, 1.0, 2.0, 5.0], dtype=dtype)[torch.arange(count) % 4]
    x[:, 3:] = torch.eye(3, dtype=dtype)[torch.arange(count) % 3]
    return x


def network(outputs=3):
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 5), nn.ReLU(), nn.Dropout(), nn.Linear(5, outputs)).eval()


WAYS = {
    "each value": ({"column": 2}, lambda x: torch.tensor([0, 1, 2, -1, -1, 3])[x[:, 2].long()]),
    "values": ({"column": 2, "values": [0, [1, 5]]}, lambda x: torch.tensor([0, 1, -1, -1, -1, 1])[x[:, 2].long()]),
    "ranges": ({"column": 2, "cuts": [1, 2.5]}, lambda x: torch.tensor([0, 1, 1, -1, -1, 2])[x[:, 2].long()]),
    "one-hot": ({"column": [3, 5]}, lambda x: torch.tensor([0, -1, 1])[x[:, 3:].argmax(1)]),
}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_every_group_is_moved_by_its_offsets_and_others_by_none(way, dtype):
    settings, group_of = WAYS[way]
    x, model = rows(dtype=dtype), network().to(dtype)
    wrapped = GroupOffsets(model, x, **settings)
    assert torch.equal(wrapped(x), model(x)), "at first nothing changes"
    group = group_of(x)
    assert wrapped.offsets.shape == (int(group.max()) + 1, 3)
    with torch.no_grad():
        wrapped.offsets.copy_(torch.arange(wrapped.offsets.numel()).reshape(wrapped.offsets.shape) + 1.0)
    moved = torch.where(group[:, None] >= 0, wrapped.offsets[group.clamp(min=0)], torch.zeros(()).to(dtype))
    assert torch.allclose(wrapped(x), model(x) + moved)
    assert torch.equal(wrapped.membership(x).sum(1) > 0, group >= 0)


def test_values_that_single_precision_rounds_are_found():
    x = rows(dtype=torch.float64)
    x[:, 2] = x[:, 2] / 3
    wrapped = GroupOffsets(network().double(), x, 2)
    assert torch.equal(wrapped.membership(x).sum(1), torch.ones(60))
    single = GroupOffsets(network(), x.float(), 2, values=[1 / 3, 5 / 3])
    assert int(single.membership(x.float()).sum()) == 30


def test_the_network_is_shared_and_left_as_it_was():
    model = network()
    model[2].train()
    before = copy.deepcopy(model.state_dict())
    wrapped = GroupOffsets(model, rows(), 2)
    assert wrapped.network is model
    assert not wrapped.training, "as the network"
    assert [module.training for module in model] == [False, False, True, False]
    assert all(torch.equal(before[key], value) for key, value in model.state_dict().items())


def test_frames_name_the_column():
    frame = pytest.importorskip("pandas").DataFrame(rows().numpy(), columns=list("abcdef"))
    assert GroupOffsets(network(), frame, "c").column == (2,)
    assert GroupOffsets(network(), frame, ["d", "e", "f"]).column == (3, 4, 5)
    with pytest.raises(SpecificationError, match="no column 'g'"):
        GroupOffsets(network(), frame, "g")


@pytest.mark.parametrize("weights", ["offsets", ["offsets", "network.2.*"], "auto"])
def test_a_gap_is_closed_by_them(weights):
    given = task(count=1500)
    wrapped = GroupOffsets(given.model, given.inputs, 1)
    gap = GroupGap.observed(given.inputs, 1, target=0.05)
    held_out = GroupGap.observed(given.other_inputs, 1, target=0.05)
    options = {"data": (given.inputs, given.labels), "held_out": [held_out], "method": SQP(confidence=None)}
    repair = repair_with(wrapped, gap, weights=weights, **options)
    assert repair.report.verdict == "repaired"
    assert float(held_out.value(wrapped)) > 0.2 > 0.1 > float(held_out.value(repair.model))
    assert not wrapped.offsets.any(), "the user's module is not modified"
    if weights == "offsets":
        assert list(repair.report.location.indices) == ["offsets"]
        inner = repair.model.network.state_dict()
        assert all(torch.equal(inner[name], value) for name, value in given.model.state_dict().items())


def test_a_repair_of_them_is_a_patch_and_goes_through_onnx(tmp_path):
    given = task(count=600, dtype=torch.float32)
    wrapped = GroupOffsets(given.model, given.inputs, 1)
    gap = GroupGap.observed(given.inputs, 1, target=0.05)
    options = {"data": (given.inputs, given.labels), "method": SQP(confidence=None), "weights": "offsets"}
    repair = repair_with(wrapped, gap, **options)
    patch = Patch.from_repair(repair, wrapped)
    patch.save(tmp_path / "gap.safetensors")
    again = Patch.load(tmp_path / "gap.safetensors").apply(GroupOffsets(given.model, given.inputs, 1))
    assert torch.equal(again(given.inputs), repair.model(given.inputs))
    session = pytest.importorskip("onnxruntime").InferenceSession
    pytest.importorskip("onnxscript")
    from repairopt.patches import export_onnx

    export_onnx(repair.model, given.inputs[:2], tmp_path / "gap.onnx")
    ran = session(str(tmp_path / "gap.onnx"))
    answers = ran.run(None, {ran.get_inputs()[0].name: given.inputs.numpy()})[0]
    assert np.allclose(answers, repair.model(given.inputs).detach().numpy(), atol=1e-5)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"column": 6}, r"column=6 does not exist in inputs of shape \(60, 6\); expected 0 to 5"),
        ({"column": True}, "column=True"),
        ({"column": 2.5}, "column"),
        ({"column": "c"}, "no column 'c'"),
        ({"column": 0}, "60 values; expected 2 to 50. Pass values= or cuts="),
        ({"column": 2, "values": [0]}, "at least two groups"),
        ({"column": 2, "values": [0, [0, 1]]}, "none twice"),
        ({"column": 2, "values": [0, []]}, "each with a value or more"),
        ({"column": 2, "values": [0, 7]}, r"no input has a value of \[7.0\]"),
        ({"column": 2, "cuts": []}, "rising numbers"),
        ({"column": 2, "cuts": [2, 1]}, "rising numbers"),
        ({"column": 2, "cuts": 3}, "cuts=3; expected a sequence"),
        ({"column": 2, "cuts": ["a"]}, "cuts holds 'a'; expected finite numbers"),
        ({"column": 2, "cuts": [float("nan")]}, "cuts holds nan"),
        ({"column": 2, "values": 3}, "values=3; expected a sequence"),
        ({"column": 2, "values": "ab"}, "values='ab'; expected a sequence"),
        ({"column": 2, "values": [0, ["a"]]}, "values holds 'a'"),
        ({"column": 2, "cuts": [1], "values": [0, 1]}, "pass one of"),
        ({"column": [3, 4], "cuts": [1]}, "pass one of"),
        ({"column": [3]}, "at least two different columns"),
        ({"column": [3, 3]}, "at least two different columns"),
        ({"column": [1, 3]}, "not one-hot"),
    ],
)
def test_columns_that_do_not_fit_are_named(settings, message):
    with pytest.raises(SpecificationError, match=message):
        GroupOffsets(network(), rows(), **settings)


def test_networks_that_do_not_fit_are_named():
    with pytest.raises(ModelError, match=r"Linear does not take rows of shape \(2, 6\)"):
        GroupOffsets(nn.Linear(4, 2), rows(), 2)
    with pytest.raises(ModelError, match="expected a torch.nn.Module, got function"):
        GroupOffsets(lambda x: x, rows(), 2)
    with pytest.raises(ModelError, match=r"gives shape \(2, 6, 1\); expected outputs \(N, k\)"):
        GroupOffsets(nn.Unflatten(1, (6, 1)), rows(), 2)
    with pytest.raises(SpecificationError, match="expected rows"):
        GroupOffsets(network(), torch.zeros(4, 2, 3), 2)
