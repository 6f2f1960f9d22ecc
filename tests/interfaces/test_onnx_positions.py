"""ONNX files that score positions: cut where each is looked at alone, repaired, and written back."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import torch

from repairopt import ErrorRate, KeepLabels, Verdict, solve_repair
from repairopt.errors import ModelError
from repairopt.interfaces.specfile.onnx_model import load_onnx, write_onnx
from repairopt.interfaces.specfile.onnx_positions import load_positions

onnx = pytest.importorskip("onnx")
ort = pytest.importorskip("onnxruntime")
helper, F32 = onnx.helper, onnx.TensorProto.FLOAT

DRAW = np.random.default_rng(3)
T, D, H, K = 7, 5, 6, 4
LINES = torch.tensor(DRAW.normal(size=(30, T, D)).astype(np.float32))
IMAGES = torch.tensor(DRAW.normal(size=(12, D, 4, 6)).astype(np.float32))
A = {
    "w1": DRAW.normal(size=(D, H)),
    "b1": DRAW.normal(size=H),
    "w2": DRAW.normal(size=(H, K)),
    "b2": DRAW.normal(size=K),
    "c1": DRAW.normal(size=(H, D, 3, 3)) / 3,
    "c2": DRAW.normal(size=(K, H, 1, 1)),
    "mix": DRAW.normal(size=(T, T)) / T,
}
MIXED = [("MatMul", "mix x", "m")]  # positions are mixed: not looked at alone
HEAD = [("MatMul", "m w1", "h0"), ("Add", "h0 b1", "h1"), ("Relu", "h1", "h"), ("MatMul", "h w2", "z0")]
LINE = [*MIXED, *HEAD, ("Add", "z0 b2", "z")]
CONV = [("Conv", "x c1", "h0", {"pads": [1, 1, 1, 1]}), ("Tanh", "h0", "h"), ("Conv", "h c2", "z")]
LINE_IN, IMAGE_IN = ["n", T, D], ["n", D, 4, 6]


def build(path, steps, shape, rank=3, output=""):
    """A file from steps: operator, inputs and outputs in words, attributes."""
    nodes = [helper.make_node(kind, reads.split(), [made], **dict(*more)) for kind, reads, made, *more in steps]
    read = {name for node in nodes for name in node.input}
    arrays = [onnx.numpy_helper.from_array(a.astype(np.float32), name) for name, a in A.items() if name in read]
    end = helper.make_tensor_value_info(output or steps[-1][2], F32, [f"d{i}" for i in range(rank)])
    graph = helper.make_graph(nodes, "g", [helper.make_tensor_value_info("x", F32, shape)], [end], arrays)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 15)], ir_version=8)
    model.metadata_props.add(key="character", value="abcd")
    onnx.save(model, str(path))
    return Path(path)


def run(path, inputs):
    session = ort.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    return torch.tensor(session.run(None, {"x": inputs.numpy()})[0])


FILES = {
    "scores of a line": (LINE, LINE_IN, LINES, 3),
    "softmax of a line": ([*LINE, ("Softmax", "z", "p", {"axis": -1})], LINE_IN, LINES, 3),
    "an operator that is not covered before": (
        [*MIXED, ("Softsign", "m", "s"), ("MatMul", "s w1", "h"), ("MatMul", "h w2", "z")],
        LINE_IN,
        LINES,
        3,
    ),
    "cells of an image": (CONV, IMAGE_IN, IMAGES, 4),
    "softmax of cells": ([*CONV, ("Softmax", "z", "p", {"axis": 1})], IMAGE_IN, IMAGES, 4),
    "classes before positions": ([*LINE, ("Transpose", "z", "t", {"perm": [0, 2, 1]})], LINE_IN, LINES, 3),
}


@pytest.mark.parametrize("name", FILES)
def test_the_last_layers_are_repaired_and_written_back(tmp_path, name):
    steps, shape, inputs, rank = FILES[name]
    path = build(tmp_path / "m.onnx", steps, shape, rank)
    wanted = "z" if name == "classes before positions" else None
    found = load_positions(path, inputs[:2], output=wanted)
    rows = found.rows(inputs)
    scores = run(path, inputs)
    last = rank == 3 and name != "classes before positions"
    answers = scores.movedim(-1 if last else 1, -1).flatten(0, -2).argmax(1)
    assert torch.equal(found.network(rows).argmax(1), answers)
    assert found.count == len(rows) // len(inputs)
    leads = found.network(rows).detach()
    close = torch.where(answers == 0, leads[:, 0] - leads[:, 1], torch.inf)
    wrong = close.argsort()[:3]  # three positions are to be read as class 1, which is near
    kept = torch.ones(len(rows), dtype=torch.bool)
    kept[wrong] = False
    goal = ErrorRate(rows[wrong], torch.full((len(wrong),), 1))
    repair = solve_repair(found.network, goal, [KeepLabels(rows[kept], answers[kept], tolerance=0.1)], weights="last")
    assert repair.report.verdict is Verdict.REPAIRED
    assert write_onnx(repair.model, tmp_path / "new.onnx", inputs) < 1e-4
    after = run(tmp_path / "new.onnx", inputs).movedim(-1 if last else 1, -1).flatten(0, -2).argmax(1)
    assert (after[wrong] == 1).all()
    assert (after[kept] == answers[kept]).double().mean() >= 0.9
    old, new = (onnx.load(str(tmp_path / f"{one}.onnx")) for one in ("m", "new"))
    assert [node.name for node in old.graph.node] == [node.name for node in new.graph.node]
    assert old.metadata_props == new.metadata_props
    assert old.opset_import == new.opset_import


def test_what_mixes_positions_names_tensors_before_it(tmp_path):
    path = build(tmp_path / "m.onnx", [*LINE, ("MatMul", "mix z", "y")], LINE_IN)
    with pytest.raises(ModelError, match=r"looks at each position alone.*output=: .*z0, h0"):
        load_positions(path, LINES[:2])
    assert load_positions(path, LINES[:2], output="z").count == T
    with pytest.raises(ModelError, match="makes no tensor 'zz'"):
        load_positions(path, LINES[:2], output="zz")
    with pytest.raises(ModelError, match=r"load_positions\(path, rows\)"):
        load_onnx(path, LINES)
    flat = build(tmp_path / "f.onnx", [*LINE, ("Flatten", "z", "f")], LINE_IN, 2)
    with pytest.raises(ModelError, match="load_onnx reads files with one row"):
        load_positions(flat, LINES[:2])


def test_an_output_without_positions_before_the_scores_is_passed_over(tmp_path):
    means = ("ReduceMean", "h", "means", {"axes": [0, 1, 3], "keepdims": 0})  # (4,), whatever the number of images
    path = build(tmp_path / "m.onnx", [*CONV, means], IMAGE_IN, 1)
    file = onnx.load(str(path))
    file.graph.output.append(helper.make_tensor_value_info("z", F32, [f"e{i}" for i in range(4)]))
    onnx.save(file, str(path))
    found = load_positions(path, IMAGES[:2])
    session = ort.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    scores = torch.tensor(session.run(["z"], {"x": IMAGES.numpy()})[0])
    assert torch.allclose(found.network(found.rows(IMAGES)), scores.movedim(1, -1).flatten(0, -2), atol=1e-5)


@pytest.mark.slow
@pytest.mark.skipif(find_spec("rapidocr_onnxruntime") is None, reason="the wheel rapidocr_onnxruntime is not installed")
def test_a_text_recognizer_from_a_wheel(tmp_path):
    folder = Path(find_spec("rapidocr_onnxruntime").submodule_search_locations[0])
    path = folder / "models" / "ch_PP-OCRv4_rec_infer.onnx"
    images = torch.rand(2, 3, 48, 64, generator=torch.Generator().manual_seed(0))
    found = load_positions(path, images)
    scores = torch.tensor(ort.InferenceSession(str(path)).run(None, {"x": images.numpy()})[0])
    assert torch.equal(found.network(found.rows(images)).argmax(1), scores.flatten(0, 1).argmax(1))


@pytest.mark.parametrize("form", ["array", "list", "float64"])
def test_files_are_named_by_texts_and_rows_come_as_arrays_too(tmp_path, form):
    path = build(tmp_path / "m.onnx", LINE, LINE_IN)
    given = {"array": LINES.numpy(), "list": LINES.tolist(), "float64": LINES.double()}[form]
    found = load_positions(str(path), given)
    torch.testing.assert_close(found.rows(given), load_positions(path, LINES).rows(LINES))
    assert write_onnx(found.network, str(tmp_path / "new.onnx"), given) < 1e-4
    flat = build(tmp_path / "f.onnx", [*LINE, ("Flatten", "z", "f")], LINE_IN, 2)
    torch.testing.assert_close(load_onnx(str(flat), given)(LINES), load_onnx(flat, LINES)(LINES))
