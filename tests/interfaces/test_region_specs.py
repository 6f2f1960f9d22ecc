"""Spec files with regions: an ONNX file and a VNN-LIB file become a repaired ONNX file with a checked proof."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from clipped_law import controller

from repairopt.errors import SpecFileError
from repairopt.interfaces.commandline.commands import main
from repairopt.interfaces.specfile.networks import mlp
from repairopt.interfaces.specfile.opened import open_spec
from repairopt.interfaces.specfile.reader import read_spec
from repairopt.patches import save_weights
from repairopt.specify import UnprovedRegions

RANGE = """
(declare-const X_0 Real)
(declare-const X_1 Real)
(declare-const Y_0 Real)
(assert (>= X_0 -1.0))
(assert (<= X_0 1.0))
(assert (>= X_1 -1.0))
(assert (<= X_1 1.0))
(assert (or (and (>= Y_0 1.03)) (and (<= Y_0 -1.03))))
"""
SPEC = """
model:
  factory: repairopt.interfaces.specfile.networks:mlp
  arguments: {sizes: [2, 16, 16, 1]}
  weights: controller.safetensors
regions: [{vnnlib: range.vnnlib}]
"""


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("regions")
    save_weights(controller(), folder / "controller.safetensors")
    (folder / "range.vnnlib").write_text(RANGE)
    (folder / "spec.yaml").write_text(SPEC)
    assert ran("solve", folder / "spec.yaml", "--out", folder / "run", "--quiet", "--no-report") == 0
    return folder


def ran(*words):
    with pytest.raises(SystemExit) as ended:
        main([str(word) for word in words])
    return ended.value.code


def test_solve_writes_a_proof_that_is_checked_and_verified(run, capsys):
    assert ran("check-proof", run / "run", "--samples", 20000, "--quiet") == 0
    assert capsys.readouterr().out.startswith("PROVED")
    assert ran("verify", run / "spec.yaml", "--patch", run / "run" / "patch.safetensors") == 0
    result = json.loads((run / "run" / "result.json").read_text())
    assert result["verdict"] == "repaired"
    assert result["report"]["proof"]["status"] == "proved"
    assert "proof.safetensors" in result["hashes"]


def test_check_tells_the_original_from_the_repaired_network(run, capsys):
    assert ran("check", run / "spec.yaml") == 1
    assert ran("check", run / "spec.yaml", "--patch", run / "run" / "patch.safetensors") == 0


def test_without_its_proof_a_patch_is_not_believed(run, tmp_path, capsys):
    patch = tmp_path / "patch.safetensors"
    patch.write_bytes((run / "run" / "patch.safetensors").read_bytes())
    proof = run / "run" / "proof.safetensors"
    kept = proof.read_bytes()
    proof.write_bytes(kept[:-8])
    try:
        assert ran("verify", run / "spec.yaml", "--patch", run / "run" / "patch.safetensors") == 1
        assert "regions" in capsys.readouterr().out
    finally:
        proof.write_bytes(kept)


def test_the_repaired_network_is_written_as_onnx(run, capsys):
    pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    import onnxruntime

    target = run / "repaired.onnx"
    patch = run / "run" / "patch.safetensors"
    assert ran("apply", run / "spec.yaml", patch, "--out", target, "--overwrite") == 0
    session = onnxruntime.InferenceSession(str(target))
    x = (2 * np.random.default_rng(0).random((5000, 2)) - 1).astype(np.float32)
    outputs = session.run(None, {session.get_inputs()[0].name: x})[0]
    assert np.abs(outputs).max() < 1.03


def beside_rows(folder: Path, regions: str) -> tuple[np.ndarray, Path]:
    """The inputs of twenty rows, and a spec of a network of two classes with regions beside them."""
    x = np.random.default_rng(0).random((20, 2)).astype(np.float32)
    np.savez(folder / "rows.npz", x=x, y=(x[:, 0] > 0.5).astype(np.int64))
    (folder / "spec.yaml").write_text(
        "model: {factory: 'repairopt.interfaces.specfile.networks:mlp', arguments: {sizes: [2, 8, 2]}}\n"
        f"data: {{repair: rows.npz}}\narray: x\nlabel: {{column: y, classes: [low, high]}}\nregions: {regions}\n"
    )
    return x, folder / "spec.yaml"


def test_balls_around_rows(tmp_path):
    _, path = beside_rows(
        tmp_path, "[{label: high, around: 3, eps: 0.02}, {label: low, around: 4, eps: 0.01, lower: 0, upper: 1}]"
    )
    goal = open_spec(path).goal.as_goal()
    assert isinstance(goal, UnprovedRegions)
    assert [one.name for one in goal.regions] == [
        "class high around row 3 of repair",
        "class low around row 4 of repair",
    ]
    np.testing.assert_allclose(goal.regions[0].upper - goal.regions[0].lower, 0.04, rtol=1e-6)
    assert goal.regions[0].matrix.tolist() == [[-1.0, 1.0]]


def test_polytopes_of_rows_and_of_numbers(tmp_path):
    x, path = beside_rows(tmp_path, "[{label: high, vertices: [3, 5, 9]}, {label: 0, vertices: [[0, 0], [1, 0.5]]}]")
    first, second = open_spec(path).goal.as_goal().regions
    assert (first.name, second.name) == ("class high between rows 3, 5, 9 of repair", "class 0 on polytope 2")
    np.testing.assert_array_equal(first.vertices, x[[3, 5, 9]])
    assert (first.matrix.tolist(), second.matrix.tolist()) == ([[-1.0, 1.0]], [[1.0, -1.0]])
    assert second.vertices.tolist() == [[0, 0], [1, 0.5]]


def test_a_polytope_is_solved_and_its_proof_checked(tmp_path, capsys):
    save_weights(mlp([2, 8, 2]), tmp_path / "own.safetensors")
    (tmp_path / "spec.yaml").write_text(
        "model:\n  factory: repairopt.interfaces.specfile.networks:mlp\n  arguments: {sizes: [2, 8, 2]}\n"
        "  weights: own.safetensors\n"
        "regions: [{label: 0, vertices: [[0, 0], [1, 0], [0, 1]]}, {label: 1, vertices: [[-1, -1], [-0.8, -0.9]]}]\n"
    )
    assert ran("solve", tmp_path / "spec.yaml", "--out", tmp_path / "run", "--quiet") == 0
    capsys.readouterr()
    assert ran("check-proof", tmp_path / "run", "--samples", 2000, "--quiet") == 0
    assert capsys.readouterr().out.startswith("PROVED")
    assert ran("verify", tmp_path / "spec.yaml", "--patch", tmp_path / "run" / "patch.safetensors") == 0
    text = (tmp_path / "spec.yaml").read_text()
    (tmp_path / "spec.yaml").write_text(text.replace("[0, 1]]", "[0, 1.5]]"))
    assert ran("check-proof", tmp_path / "run", "--samples", 2000, "--quiet") == 1
    assert "does not speak of 'class 0 on polytope 1'" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("regions: [{label: 1, vertices: [[0, 0], [1]]}]", "line 7.*as many numbers each"),
        ("regions: [{label: 1, vertices: [[0, 0]]}]", "line 7.*2 or more vertices, here 1"),
        ("regions: [{vertices: [[0, 0], [1, 1]]}]", "line 7.*a polytope needs label and vertices"),
        ("regions: [{label: 1, vertices: [[0, 0], [1, 1]], eps: 0.1}]", "line 7.*expected either vnnlib, or label"),
        ("regions: [{label: 1, vertices: [[0, 0, 0], [1, 1, 1]]}]", "line 7.*inputs of 3 numbers"),
        ("regions: [{label: 1, vertices: [[0, 0], [1, 1]]}]", "line 7.*there is no class 1; expected 0 to 0"),
        ("regions: [{vnnlib: missing.vnnlib}]", "line 7.*there is no file"),
        ("regions: [{label: 1, around: 2}]", "line 7.*needs label, around and eps"),
        ("regions: [{vnnlib: range.vnnlib, eps: 0.1}]", "line 7.*either vnnlib, or label"),
        ("regions: [{vnnlib: broken.vnnlib}]", "line 7.*broken.vnnlib', line 1"),
    ],
)
def test_mistakes_are_told_with_their_line(tmp_path: Path, text, message):
    (tmp_path / "range.vnnlib").write_text(RANGE)
    (tmp_path / "broken.vnnlib").write_text("(declare-const X_0 Real)\n(assert (>= X_0 a))\n")
    spec = SPEC.replace("  weights: controller.safetensors\n", "").replace("regions: [{vnnlib: range.vnnlib}]", text)
    (tmp_path / "spec.yaml").write_text("\n\n" + spec.lstrip("\n").replace("regions", "\nregions"))
    with pytest.raises(SpecFileError, match=message):
        open_spec(tmp_path / "spec.yaml")


@pytest.mark.parametrize(("key", "hint"), [("vnlib", "did you mean 'vnnlib'"), ("size", "known: vnnlib, label")])
def test_an_unknown_key_of_a_region_is_told_with_those_that_are_known(tmp_path, key, hint):
    (tmp_path / "spec.yaml").write_text(f"model: {{onnx: m.onnx}}\nregions: [{{{key}: 1}}]\n")
    with pytest.raises(SpecFileError, match=hint):
        read_spec(tmp_path / "spec.yaml")
