"""Patches that repairopt 0.1 wrote: low-rank differences, which are read and not written any more."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

import repairopt.patches
from repairopt.errors import PatchError
from repairopt.patches import Patch, fingerprint
from repairopt.patches.patch import content_hash
from repairopt.patches.stack import apply_all, find_conflicts, revert_all

FILE = Path(__file__).parents[1] / "landed" / "low_rank.patch.safetensors"
REPAIRED = "118f39f4d163af42cfb5d6f1378fa76cba5c0d6e717c1fc289a27653f48a8c24"
CONTENT = "0b3d6518ab3a850b17d3461eecd201ffba4fe68bfe82fe5a8d80b9a0d9ae6245"


def base() -> dict[str, Tensor]:
    """The weights that the file was made for: one of each type, with entries that are no ordinary numbers."""
    numbers = ((torch.arange(96) * 37) % 101 - 50).double() / 64
    dtypes = (torch.float64, torch.float32, torch.float16, torch.bfloat16)
    shapes = {torch.float32: (8, 3, 2, 2)}
    state = {
        f"of_{str(d).removeprefix('torch.')}": numbers.to(d).reshape(shapes.get(d, (8, 12))).clone() for d in dtypes
    }
    state["of_bfloat16"][0, 0], state["of_float16"][1, 1], state["of_float64"][2, 2] = torch.inf, torch.nan, -0.0
    return {**state, "bias": torch.zeros(3)}


def test_low_rank_differences_apply_and_revert_to_the_bit(tmp_path):
    patch = Patch.load(FILE, expected_hash=CONTENT)
    assert [change.difference.form for change in patch.changes] == ["low_rank"] * 4
    assert "of_float32  float32 (8, 3, 2, 2)  96 of 96 entries, largest change 0.0362; low_rank, 280 bytes" in str(
        patch
    )
    moved = patch.apply_to_state_dict(base())
    assert fingerprint(moved).total == REPAIRED
    assert 0 < float((moved["of_float64"] - base()["of_float64"]).abs().max()) < 0.04
    assert fingerprint(patch.revert_state_dict(moved)) == fingerprint(base())
    patch.save(tmp_path / "again.safetensors")
    assert Patch.load(tmp_path / "again.safetensors").content_hash == CONTENT


def test_they_touch_the_whole_weight():
    model = torch.nn.Module()
    for name, value in base().items():
        model.register_buffer(name, value)
    low, state = Patch.load(FILE), {name: value.clone() for name, value in model.state_dict().items()}
    state["of_float32"].view(-1)[7] = 9.0
    (conflict,) = find_conflicts([low, Patch.between(model, state)])
    assert (conflict.weight, conflict.count, conflict.positions) == ("of_float32", 1, (7,))
    beside = Patch.between(model, {**model.state_dict(), "bias": torch.ones(3)})
    for order in ([low, beside], [beside, low]):
        both = apply_all(model, order, same_base=True)
        assert fingerprint(low.apply(model)).tensors["of_float16"] == fingerprint(both).tensors["of_float16"]
        assert torch.equal(both.bias, torch.ones(3))
        assert fingerprint(revert_all(both, order, same_base=True)) == fingerprint(model)


@pytest.mark.parametrize(
    ("part", "value", "message"),
    [
        ("left", torch.zeros(8, 3), r"factors of shapes \(8, 3\) and \(2, 12\)"),
        ("right", torch.zeros(2, 11), r"factors of shapes \(8, 2\) and \(2, 11\)"),
        ("forward_flips", torch.zeros(1, dtype=torch.int32), "'forward_flips'"),
        ("forward_flips", torch.zeros(1), "flips of torch.float32"),
    ],
)
def test_damaged_ones_are_refused(part, value, message, tmp_path):
    with safe_open(FILE, "pt") as file:
        texts = file.metadata()
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    tensors[f"of_float32:{part}"] = value
    text = json.dumps(json.loads(texts["repairopt_patch"]))
    header = {**texts, "repairopt_patch": text, "content_sha256": content_hash(text, tensors)}
    save_file(tensors, tmp_path / "damaged.safetensors", header)
    with pytest.raises(PatchError, match=message):
        Patch.load(tmp_path / "damaged.safetensors")


@pytest.mark.parametrize("name", ["claims_from_report", "record_repair"])
def test_functions_that_moved_are_found_with_a_warning(name):
    with pytest.warns(DeprecationWarning, match=f"moved to .*{name}"):
        assert callable(getattr(repairopt.patches, name))
