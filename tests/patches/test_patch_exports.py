"""Exports: what other software computes from them is what torch computes."""

from __future__ import annotations

import copy
import json
import os
import warnings
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import torch
from sample_networks import CASES, Functional, ReadsData, Tied, chain
from torch import Tensor, nn

from repairopt.errors import ExportError, MissingExtraError, WrongBaseError
from repairopt.patches import Patch, export_onnx, fingerprint
from repairopt.patches.lora_export import export_lora

BY_NAME = {case.name: case for case in CASES}


class Several(nn.Module):
    """Two inputs, a dict and a tuple of outputs."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(4, 3)

    def forward(self, x: Tensor, y: Tensor) -> tuple[dict[str, Tensor], Tensor]:
        return {"logits": self.fc(x) + y}, x.sum(1)


class Deceptive(nn.Module):
    """Computes something else while it is exported."""

    def forward(self, x: Tensor) -> Tensor:
        return x + 1 if torch.compiler.is_exporting() else x


class FixedBatch(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.reshape(5, -1).sum(1)


needs_onnx = pytest.mark.skipif(
    any(find_spec(name) is None for name in ("onnx", "onnxscript", "onnxruntime")), reason="the extra 'onnx'"
)


def run_onnx(path: Path, *inputs: Tensor) -> list[np.ndarray]:
    import onnxruntime

    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    names = [given.name for given in session.get_inputs()]
    return session.run(None, dict(zip(names, (x.numpy() for x in inputs), strict=True)))


@needs_onnx
@pytest.mark.slow
@pytest.mark.parametrize(
    "name", ["sequential", "functional", "convolutional", "recurrent", "words", "tied", "heaviside"]
)
def test_onnx_computes_what_torch_computes(name, tmp_path, fingerprint):
    case = BY_NAME[name]
    model = case.model(torch.float32)
    before = fingerprint(model)
    found = export_onnx(model, case.inputs(5, torch.float32), tmp_path / "model.onnx")
    assert fingerprint(model) == before
    assert found.largest_difference < 1e-5
    assert os.listdir(tmp_path) == ["model.onnx"]
    for count in (1, 3, 17):
        inputs = case.inputs(count, torch.float32)
        expected = case.logits(model, inputs).detach().numpy()
        np.testing.assert_allclose(run_onnx(found.path, inputs)[0], expected, rtol=1e-4, atol=1e-5)


@needs_onnx
@pytest.mark.slow
def test_onnx_in_float64_is_near_to_the_last_digits(tmp_path):
    model, inputs = chain().double(), torch.randn(6, 4, dtype=torch.float64)
    found = export_onnx(model, inputs, tmp_path / "model.onnx")
    assert found.largest_difference < 1e-14
    assert (found.rtol, found.atol) == (1e-9, 1e-9)


@needs_onnx
@pytest.mark.slow
def test_onnx_of_a_patched_model_names_its_weights(tmp_path):
    import onnx

    model = chain()
    repaired = copy.deepcopy(model)
    with torch.no_grad():
        repaired[4].bias += 1
    patch = Patch.between(model, repaired)
    inputs = torch.randn(4, 4)
    found = export_onnx(patch.apply(model).train(), inputs, tmp_path / "model.onnx")
    np.testing.assert_allclose(run_onnx(found.path, inputs)[0], repaired(inputs).detach().numpy(), rtol=1e-4, atol=1e-5)
    metadata = {entry.key: entry.value for entry in onnx.load(found.path).metadata_props}
    assert metadata["repairopt_weights_sha256"] == patch.repaired.total


@needs_onnx
@pytest.mark.slow
def test_onnx_with_several_inputs_and_outputs(tmp_path):
    model = Several()
    found = export_onnx(model, (torch.randn(3, 4), torch.randn(3, 3)), tmp_path / "model.onnx")
    assert (len(found.inputs), len(found.outputs)) == (2, 2)
    x, y = torch.randn(7, 4), torch.randn(7, 3)
    logits, total = run_onnx(found.path, x, y)
    np.testing.assert_allclose(logits, model(x, y)[0]["logits"].detach().numpy(), rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(total, x.sum(1).numpy(), rtol=1e-4, atol=1e-5)


class ScalesItsInput(nn.Module):
    def __init__(self):
        super().__init__()
        self.inside = nn.Linear(4, 2)

    def forward(self, x):
        x *= 2
        return self.inside(x)


@needs_onnx
@pytest.mark.slow
def test_onnx_of_a_model_that_writes_into_its_input(tmp_path):
    torch.manual_seed(0)
    model, x = ScalesItsInput(), torch.randn(6, 4)
    given = x.clone()
    found = export_onnx(model, given, tmp_path / "model.onnx")
    assert torch.equal(given, x)
    np.testing.assert_allclose(run_onnx(found.path, x)[0], model(x.clone()).detach().numpy(), rtol=1e-4, atol=1e-5)


@needs_onnx
@pytest.mark.slow
def test_weights_too_large_for_one_file_lie_beside_it(tmp_path, monkeypatch):
    monkeypatch.setattr("repairopt.patches.onnx_export._ONE_FILE", 0)
    model, inputs = nn.Linear(100, 50), torch.randn(3, 100)
    found = export_onnx(model, inputs, tmp_path / "model.onnx")
    assert set(os.listdir(tmp_path)) == {"model.onnx", "model.onnx.data"}
    np.testing.assert_allclose(run_onnx(found.path, inputs)[0], model(inputs).detach().numpy(), rtol=1e-4, atol=1e-5)


@needs_onnx
@pytest.mark.slow
@pytest.mark.parametrize(
    ("model", "inputs", "message"),
    [
        (ReadsData(), torch.randn(3, 4), r"model ReadsData: torch cannot export it to ONNX .*control flow"),
        (FixedBatch(), torch.randn(5, 4), r"model FixedBatch: "),
        (
            nn.Conv2d(1, 1, 2).double(),
            torch.randn(3, 1, 4, 4).double(),
            r"ONNX Runtime cannot run .*try model.float\(\)",
        ),
        (Deceptive(), torch.zeros(3, 4), r"output 0: differs from torch's by up to 1, more than atol 1e-05"),
    ],
    ids=lambda value: type(value).__name__,
)
def test_a_model_that_cannot_be_exported_leaves_no_file(model, inputs, message, tmp_path):
    with pytest.raises(ExportError, match=message):
        export_onnx(model, inputs, tmp_path / "model.onnx")
    assert not os.listdir(tmp_path)


@needs_onnx
def test_inputs_of_an_export_are_checked(tmp_path):
    for inputs in (torch.randn(1, 4), (torch.randn(3, 4), torch.randn(2, 4)), torch.tensor(1.0)):
        with pytest.raises(ExportError, match=r"example_inputs: have shapes .* one batch size, of at least 2"):
            export_onnx(chain(), inputs, tmp_path / "model.onnx")
    with pytest.raises(ExportError, match=r"example_inputs: expected a tensor or a sequence"):
        export_onnx(chain(), [[1.0]], tmp_path / "model.onnx")
    with pytest.raises(ExportError, match=r"model of type torch.bfloat16: ONNX Runtime runs"):
        export_onnx(chain().bfloat16(), torch.randn(2, 4), tmp_path / "model.onnx")
    with pytest.raises(ExportError, match=r"there is no folder"):
        export_onnx(chain(), torch.randn(2, 4), tmp_path / "none" / "model.onnx")


def test_a_missing_library_is_named_with_its_extra(monkeypatch, tmp_path):
    monkeypatch.setattr("repairopt.errors.find_spec", lambda name: None if name == "onnxscript" else object())
    with pytest.raises(MissingExtraError, match=r"export_onnx needs onnxscript, .*pip install repairopt\[onnx\]"):
        export_onnx(chain(), torch.randn(2, 4), tmp_path / "model.onnx")


class Branches(nn.Module):
    """Names that end alike, and layers of several ranks."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 8))
        self.fc = nn.Linear(8, 3)
        self.deep = nn.ModuleDict({"fc": nn.Linear(3, 3)})
        self.scale = nn.Parameter(torch.ones(3))

    def forward(self, x: Tensor) -> Tensor:
        return self.deep["fc"](self.fc(torch.relu(self.body(x)))) * self.scale


def noisy(model: nn.Module, *names: str) -> nn.Module:
    other = copy.deepcopy(model)
    with torch.no_grad():
        for name in names:
            weight = other.get_parameter(name)
            weight += 0.3 * torch.randn(weight.shape).to(weight)
    return other


@pytest.fixture(scope="module")
def peft():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return pytest.importorskip("peft")


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
@pytest.mark.parametrize(
    ("build", "changed", "ranks"),
    [
        (Branches, ("fc.weight", "fc.bias"), {"fc": 3}),
        (Branches, ("fc.weight", "body.2.weight"), {"body.2": 8, "fc": 3}),
        (Branches, ("fc.bias",), {"fc": 1}),
        (Branches, ("deep.fc.weight", "fc.bias"), {"fc": 1, "deep.fc": 3}),
        (chain, ("4.weight",), {"4": 3}),
    ],
    ids=["last layer with bias", "two ranks", "a bias alone", "names that end alike", "numbered"],
)
def test_peft_computes_what_the_repaired_model_computes(peft, build, changed, ranks, dtype, tmp_path):
    model = build().to(dtype).eval()
    repaired = noisy(model, *changed)
    patch = Patch.between(model, repaired)
    assert export_lora(patch, model, tmp_path) == ranks
    inputs = torch.randn(20, 6 if build is Branches else 4).to(dtype)
    before, wanted = model(inputs), repaired(inputs)
    tolerance = {torch.float64: 1e-13, torch.float32: 1e-5, torch.bfloat16: 0.05}[dtype]
    near = {"rtol": tolerance, "atol": tolerance}
    assert not torch.allclose(before, wanted, **near)
    loaded = peft.PeftModel.from_pretrained(copy.deepcopy(model), tmp_path)
    torch.testing.assert_close(loaded(inputs), wanted, **near)
    with loaded.disable_adapter():
        assert torch.equal(loaded(inputs), before)
    merged = loaded.merge_and_unload()
    torch.testing.assert_close(merged(inputs), wanted, **near)
    assert {name: tuple(p.shape) for name, p in merged.named_parameters()} == {
        name: tuple(p.shape) for name, p in model.named_parameters()
    }


@pytest.mark.slow
def test_a_layer_without_bias_gets_an_adapter_too(peft, tmp_path):
    model = nn.Sequential(nn.Linear(4, 8, bias=False), nn.ReLU(), nn.Linear(8, 3, bias=False))
    repaired = noisy(model, "0.weight", "2.weight")
    export_lora(Patch.between(model, repaired), model, tmp_path)
    inputs = torch.randn(5, 4)
    loaded = peft.PeftModel.from_pretrained(copy.deepcopy(model), tmp_path)
    torch.testing.assert_close(loaded.merge_and_unload()(inputs), repaired(inputs))


@pytest.mark.parametrize("stride", [1, 2])
def test_a_convolution_gets_an_adapter_too(peft, stride, tmp_path):
    layers = nn.Conv2d(2, 6, 3, stride=stride, padding=1), nn.ReLU(), nn.Conv2d(6, 4, 1), nn.Flatten()
    model = nn.Sequential(*layers).eval()
    repaired = noisy(model, "0.weight", "0.bias", "2.weight")
    assert export_lora(Patch.between(model, repaired), model, tmp_path) == {"0": 6, "2": 4}
    inputs = torch.randn(5, 2, 6, 6)
    loaded = peft.PeftModel.from_pretrained(copy.deepcopy(model), tmp_path)
    near = {"rtol": 1e-4, "atol": 1e-5}
    torch.testing.assert_close(loaded(inputs), repaired(inputs), **near)
    torch.testing.assert_close(loaded.merge_and_unload()(inputs), repaired(inputs), **near)


def test_an_adapter_names_its_patch_and_its_base(tmp_path):
    from safetensors import safe_open

    model = chain()
    patch = Patch.between(model, noisy(model, "4.weight"))
    export_lora(patch, model, tmp_path / "adapter", base_model="me/digits")
    assert set(os.listdir(tmp_path / "adapter")) == {"adapter_config.json", "adapter_model.safetensors"}
    config = json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == "me/digits"
    with safe_open(tmp_path / "adapter" / "adapter_model.safetensors", "pt") as file:
        assert file.metadata()["repairopt_patch_sha256"] == patch.content_hash


def test_the_rank_is_that_of_the_difference_but_for_rounding(tmp_path):
    model = nn.Sequential(nn.Linear(300, 200))
    repaired = copy.deepcopy(model)
    with torch.no_grad():
        repaired[0].weight += 0.01 * torch.randn(200, 5) @ torch.randn(5, 300)
    patch = Patch.between(model, repaired)
    assert export_lora(patch, model, tmp_path, max_rank=5) == {"0": 5}
    with pytest.raises(ExportError, match=r"layer '0': the difference has a rank above max_rank=4\. Allow more"):
        export_lora(patch, model, tmp_path, max_rank=4)


@pytest.mark.parametrize(
    ("build", "changed", "message"),
    [
        (Branches, ("scale",), r"the patch changes 'scale', which is no weight or bias of an nn.Linear"),
        (Functional, ("weight",), r"the patch changes 'weight', which is no weight"),
        (
            lambda: nn.Sequential(nn.Conv2d(4, 4, 1, groups=2), nn.Flatten()),
            ("0.weight",),
            r"changes '0.weight', .*Ship the patch",
        ),
        (BY_NAME["words"].build, ("embed.weight",), r"changes 'embed.weight'"),
        (lambda: nn.Linear(4, 3), ("weight",), r"changes 'weight', which is no weight .* inside of the model"),
        (lambda: nn.MultiheadAttention(4, 1), ("out_proj.weight",), r"changes 'out_proj.weight'"),
        (Tied, ("first.weight",), r"'first.weight', 'second.weight' are one tied weight"),
        (chain, (), r"the patch changes nothing"),
        (
            lambda: nn.Sequential(nn.Linear(4, 3, bias=False), nn.Linear(3, 3)),
            ("0.weight", "1.bias"),
            r"the patch changes a bias, and '0' have none",
        ),
    ],
)
def test_what_lora_cannot_hold_is_refused(build, changed, message, tmp_path):
    model = build()
    with pytest.raises(ExportError, match=message):
        export_lora(Patch.between(model, noisy(model, *changed)), model, tmp_path / "adapter")
    assert not os.listdir(tmp_path)


def test_an_adapter_needs_the_right_base(tmp_path):
    model = chain()
    patch = Patch.between(model, noisy(model, "4.weight"))
    with pytest.raises(WrongBaseError, match="6 differ"):
        export_lora(patch, chain(), tmp_path)
    assert not os.listdir(tmp_path)


def test_a_difference_that_is_not_finite_has_no_factors(tmp_path):
    model = chain()
    broken = noisy(model, "4.weight")
    broken[4].weight.data[0, 0] = torch.inf
    patch = Patch.between(model, broken)
    assert fingerprint(patch.apply(model)) == fingerprint(broken)
    with pytest.raises(ExportError, match=r"layer '4': the difference is not finite"):
        export_lora(patch, model, tmp_path)
