"""Patch files: what was saved comes back; whatever else there is is refused, and nothing is ever executed."""

from __future__ import annotations

import json
import os
import pickle
import signal
import time
from pathlib import Path

import pytest
import torch
from forked import Fork
from safetensors import safe_open
from safetensors.torch import save_file
from sample_networks import Tied, chain
from torch import nn

from repairopt.errors import PatchError
from repairopt.patches import Patch, fingerprint, load_weights, save_weights
from repairopt.patches.patch import merged_state_dict

WITHOUT_CLAIMS = {"claims": [], "notes": "none", "created": "2026-01-01T00:00:00+00:00", "versions": {}}
CLAIMS = [{"name": "gap", "value": 0.04, "interval": [0.03, 0.05], "bound": 0.05, "data": "held-out", "met": True}]


def changed(model: nn.Module, scale: float = 0.1) -> dict[str, torch.Tensor]:
    """Sparse and dense differences."""
    state = {name: value.clone() for name, value in model.state_dict().items()}
    state["4.bias"][1] += scale
    state["0.weight"] += scale * torch.randn(8, 4)
    return state


FORMS = {"4.bias": "sparse", "0.weight": "dense"}


@pytest.fixture
def patch() -> Patch:
    model = chain()
    return Patch.between(model, changed(model), form=FORMS, solver="daqp", seed=7, spec="gap <= 0.05", claims=CLAIMS)


@pytest.fixture
def saved(patch, tmp_path) -> Path:
    path = tmp_path / "fix.safetensors"
    patch.save(path)
    return path


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16], ids=str)
def test_what_was_saved_comes_back(dtype, tmp_path):
    model = chain().to(dtype)
    repaired = {name: value.to(dtype) for name, value in changed(chain()).items()}
    patch = Patch.between(model, repaired, form=FORMS, claims=CLAIMS, notes="ünï\ncode", seed=1)
    patch.save(tmp_path / "p.safetensors")
    again = Patch.load(tmp_path / "p.safetensors", expected_hash=patch.content_hash)
    assert again.content_hash == patch.content_hash
    assert str(again) == str(patch)
    assert vars(again.info) == vars(patch.info)
    assert fingerprint(again.apply(model)) == fingerprint(repaired)
    assert fingerprint(again.revert(again.apply(model))) == fingerprint(model)


def test_names_of_any_kind_come_back(tmp_path):
    base = {"a": torch.zeros(2), "a:b": torch.zeros(2), "a:b:before": torch.zeros(2), "ü": torch.zeros(())}
    new = {name: value + 1 for name, value in base.items()}
    Patch.between(base, new, form="sparse").save(tmp_path / "p.safetensors")
    assert fingerprint(Patch.load(tmp_path / "p.safetensors").apply_to_state_dict(base)) == fingerprint(new)


def test_ties_come_back(tmp_path):
    model = Tied()
    state = {name: value.clone() for name, value in model.state_dict().items()}
    state["first.weight"] += 1
    del state["second.weight"]
    Patch.between(model, state).save(tmp_path / "p.safetensors")
    again = Patch.load(tmp_path / "p.safetensors")
    assert again.ties == (("first.weight", "second.weight"),)
    assert again.apply(model).second.weight[0, 0] == model.first.weight[0, 0] + 1


def test_the_header_can_be_read_by_any_tool(saved, patch):
    with safe_open(saved, "pt") as file:
        header = json.loads(file.metadata()["repairopt_patch"])
        before, after = file.get_tensor("4.bias:before"), file.get_tensor("4.bias:after")
    assert header["info"]["claims"] == CLAIMS
    assert header["info"]["solver"] == "daqp"
    assert header["base"]["total"] == patch.base.total
    assert float(after - before) == pytest.approx(0.1)


def test_the_text_for_a_review_says_it_all(patch):
    text = str(patch)
    for expected in ("4.bias  float32 (3,)  1 of 3 entries, largest change 0.1; sparse", "dense"):
        assert expected in text
    for expected in (patch.base.total, patch.repaired.total, patch.content_hash, patch.info.spec_hash, "seed 7"):
        assert expected in text
    assert "claim     gap; met; value 0.0400; interval [0.03, 0.05]; bound 0.0500; data held-out" in text


@pytest.mark.slow
def test_a_file_cut_short_anywhere_is_refused(saved):
    content = saved.read_bytes()
    for length in range(len(content)):
        saved.write_bytes(content[:length])
        with pytest.raises(PatchError, match=r"is not a whole safetensors file.*Nothing was loaded"):
            Patch.load(saved)


@pytest.mark.slow
@pytest.mark.parametrize("bit", [1, 128])
def test_no_single_flipped_bit_gets_through(saved, patch, bit):
    content = saved.read_bytes()
    for at in range(len(content)):
        saved.write_bytes(content[:at] + bytes([content[at] ^ bit]) + content[at + 1 :])
        try:
            again = Patch.load(saved)
        except PatchError:
            continue
        assert again.content_hash == patch.content_hash, f"byte {at}"


def rewritten(path: Path, change, sign: bool = True) -> None:
    """The file with another header, with or without a content hash that fits."""
    from repairopt.patches.patch import content_hash

    with safe_open(path, "pt") as file:
        texts = file.metadata()
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    header = json.loads(texts["repairopt_patch"])
    change(header, tensors)
    text = json.dumps(header)
    save_file(
        tensors,
        path,
        {**texts, "repairopt_patch": text, **({"content_sha256": content_hash(text, tensors)} if sign else {})},
    )


def test_edited_claims_are_noticed(saved, patch):
    rewritten(saved, lambda header, tensors: header["info"]["claims"][0].update(value=0.01), sign=False)
    with pytest.raises(PatchError, match=r"its content does not match its hash; it was changed or damaged"):
        Patch.load(saved)


def test_an_edit_with_a_new_hash_is_noticed_by_who_knows_the_old_one(saved, patch):
    rewritten(saved, lambda header, tensors: header["info"]["claims"][0].update(value=0.01))
    assert Patch.load(saved).info.claims[0]["value"] == 0.01
    with pytest.raises(PatchError, match=r"has content hash .*, expected .*\. It is another patch"):
        Patch.load(saved, expected_hash=patch.content_hash)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda h, t: h.update(format=2), r"is a patch of format 2; this version reads 1\. Update"),
        (lambda h, t: h.pop("base"), r"has a malformed header \(KeyError\('base'\)\)"),
        (lambda h, t: h["changes"][0].update(form="magic"), r"malformed header \(KeyError\('magic'\)\)"),
        (lambda h, t: h["changes"][0].update(names=[]), r"malformed header \(IndexError"),
        (lambda h, t: h["info"].update(color="red"), r"malformed header \(TypeError"),
        (lambda h, t: h["base"].update(total="0" * 64), r"hashes of tensors that do not give the total"),
        (lambda h, t: t.pop("4.bias:positions"), r"malformed header \(KeyError\('positions'\)\)"),
        (lambda h, t: t["4.bias:positions"].fill_(3), r"positions that are out of range or not sorted"),
        (lambda h, t: t["4.bias:positions"].fill_(-1), r"positions that are out of range or not sorted"),
        (lambda h, t: t.update({"4.bias:before": torch.zeros(2)}), r"'before' has shape \(2,\)"),
        (lambda h, t: t.update({"4.bias:after": torch.zeros(1).double()}), r"'after' has type torch.float64"),
        (lambda h, t: t.update({"0.weight:flips": torch.zeros(32)}), r"flips of torch.float32"),
        (lambda h, t: t.update({"0.weight:flips": torch.zeros(3, dtype=torch.int32)}), r"'flips' has shape \(3,\)"),
    ],
)
def test_headers_and_tensors_that_make_no_sense_are_refused(saved, change, message):
    rewritten(saved, change)
    with pytest.raises(PatchError, match=message):
        Patch.load(saved)


class Bomb:
    """Writes a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return (Path.write_text, (self.path, "executed"))


@pytest.mark.parametrize("kind", ["torch.save", "torch.save, old format", "pickle", "pickle of protocol 0"])
@pytest.mark.parametrize("load", [Patch.load, load_weights], ids=["patch", "weights"])
def test_a_pickle_is_refused_and_nothing_in_it_runs(kind, load, tmp_path):
    marker, path = tmp_path / "marker", tmp_path / "weights.safetensors"
    content = {"w": torch.zeros(2), "bomb": Bomb(marker)}
    if kind.startswith("torch"):
        torch.save(content, path, _use_new_zipfile_serialization=kind == "torch.save")
    else:
        path.write_bytes(pickle.dumps(content, protocol=0 if kind.endswith("0") else 4))
    said = "is not a whole safetensors file" if kind.endswith("0") else "can run any code when it is loaded"
    with pytest.raises(PatchError, match=rf"weights.safetensors': .*{said}.*Nothing was loaded"):
        load(path)
    assert not marker.exists()
    unsafe = path.rename(tmp_path / "weights.pt")
    torch.load(unsafe, weights_only=False) if kind.startswith("torch") else pickle.loads(unsafe.read_bytes())
    assert marker.exists(), "the bomb works, it only was not touched"


def test_other_files_are_named_for_what_they_are(saved, tmp_path):
    model = chain()
    save_weights(model, tmp_path / "weights.safetensors")
    with pytest.raises(PatchError, match=r"is a safetensors file, but no patch of repairopt\. load_weights reads"):
        Patch.load(tmp_path / "weights.safetensors")
    with pytest.raises(PatchError, match=r"is a patch, not weights\. Patch.load reads it"):
        load_weights(saved)
    with pytest.raises(PatchError, match=r"none.safetensors': no such file"):
        Patch.load(tmp_path / "none.safetensors")
    with pytest.raises(PatchError, match=r"is a folder; expected a safetensors file"):
        Patch.load(tmp_path)
    (tmp_path / "empty").touch()
    with pytest.raises(PatchError, match=r"is not a whole safetensors file"):
        Patch.load(tmp_path / "empty")


def test_merged_weights_load_strictly_and_share_nothing(tmp_path):
    model = Tied()
    repaired = Tied()
    patch = Patch.between(model, repaired)
    merged = merged_state_dict(model, patch)
    pointers = [value.data_ptr() for value in merged.values()]
    assert len(set(pointers)) == len(pointers)
    assert not set(pointers) & {p.data_ptr() for p in model.parameters()}
    save_weights(merged, tmp_path / "merged.safetensors")
    fresh = Tied()
    fresh.load_state_dict(load_weights(tmp_path / "merged.safetensors"))
    assert fingerprint(fresh) == fingerprint(repaired)
    assert fingerprint(merged_state_dict(model.state_dict(), patch)) == fingerprint(repaired)


def test_changed_weights_are_noticed(tmp_path):
    path = tmp_path / "weights.safetensors"
    save_weights(chain(), path)
    content = path.read_bytes()
    path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    with pytest.raises(PatchError, match=r"its weights do not match their hash"):
        load_weights(path)


def test_weights_of_other_tools_load(tmp_path):
    save_file({"w": torch.ones(2)}, tmp_path / "other.safetensors")
    assert load_weights(tmp_path / "other.safetensors")["w"].tolist() == [1, 1]


def test_files_get_the_usual_permissions(saved):
    plain = saved.with_name("plain")
    plain.touch()
    assert saved.stat().st_mode == plain.stat().st_mode


def test_a_write_that_fails_leaves_the_old_file_and_nothing_else(saved, patch, monkeypatch):
    before = saved.read_bytes()

    def full(*paths):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(PatchError, match="cannot be written .No space left"):
        Patch.between(chain(), chain()).save(saved)
    assert saved.read_bytes() == before
    assert os.listdir(saved.parent) == [saved.name]


def test_a_folder_that_is_missing_is_named(patch, tmp_path):
    with pytest.raises(PatchError, match=r"there is no folder '.*none'\. Make it before"):
        patch.save(tmp_path / "none" / "p.safetensors")


SAVING = """
import os, sys, torch
from repairopt.patches import Patch
base = {"w": torch.zeros(2**18)}
patches = [Patch.between(base, {"w": torch.full((2**18,), value)}, notes="x" * int(value)) for value in (1.0, 2.0)]
for _ in sys.stdin:
    child = os.fork()
    if not child:
        while True:
            for patch in patches:
                patch.save(sys.argv[1])
    print(child, flush=True)
    os.waitpid(child, 0)
    print("ended", flush=True)
"""


@pytest.mark.slow
@pytest.mark.skipif(os.name != "posix", reason="kill -9")
def test_a_killed_process_leaves_a_whole_file(tmp_path):
    """The processes are forked from one that has loaded the libraries."""
    path = tmp_path / "p.safetensors"
    with Fork(SAVING, path) as server:
        for wait in (0.0, 0.013, 0.029):
            path.unlink(missing_ok=True)
            print("go", file=server.stdin, flush=True)
            child = int(server.stdout.readline())
            while not path.exists():
                time.sleep(0.001)
            time.sleep(wait)
            os.kill(child, signal.SIGKILL)
            assert server.stdout.readline() == "ended\n"
            assert Patch.load(path).info.notes in ("x", "xx")
