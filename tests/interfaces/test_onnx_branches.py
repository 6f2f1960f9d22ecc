"""ONNX files with conditions, as exporters leave them: the branch that is taken is repaired where it stands."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from repairopt import ErrorRate, KeepLabels, Verdict, solve_repair
from repairopt.errors import ModelError
from repairopt.interfaces.commandline.commands import main
from repairopt.interfaces.specfile.onnx_model import load_onnx, write_onnx
from repairopt.interfaces.specfile.onnx_positions import load_positions

onnx = pytest.importorskip("onnx")
ort = pytest.importorskip("onnxruntime")
helper, F32, I64 = onnx.helper, onnx.TensorProto.FLOAT, onnx.TensorProto.INT64

DRAW = np.random.default_rng(7)
D, H, K = 5, 6, 3
X = torch.tensor(DRAW.normal(size=(40, D)).astype(np.float32))
SHAPES = {"w1": (D, H), "w2": (H, K), "v2": (H, K)}
ARRAYS = {name: DRAW.normal(size=shape).astype(np.float32) for name, shape in SHAPES.items()}


def node(kind, reads, makes, **attributes):
    return helper.make_node(kind, reads.split(), makes.split(), **attributes)


def constant(name, value):
    return node("Constant", "", name, value=onnx.numpy_helper.from_array(np.asarray(value)))


def array(name):
    return onnx.numpy_helper.from_array(ARRAYS[name], name)


def branch(nodes, output, arrays=()):
    return helper.make_graph(nodes, "b", [], [helper.make_tensor_value_info(output, F32, None)], [*arrays])


def save(path, nodes, outputs, arrays=(), inputs=(), rank=2):
    """A file that reads ``x (batch, D)`` and more."""
    ends = [helper.make_tensor_value_info(name, F32, [f"d{i}" for i in range(rank)]) for name in outputs]
    every = [helper.make_tensor_value_info("x", F32, ["batch", D]), *inputs]
    graph = helper.make_graph(nodes, "g", every, ends, [*arrays])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 16)], ir_version=8)
    onnx.checker.check_model(model)
    onnx.save(model, str(path))
    return Path(path)


def whole_network(hidden, rate):
    """A network inside a branch, its weights as a Constant and as an array, the same names in both branches."""
    own = [constant("w", ARRAYS["w2"] * rate), node("MatMul", "x w1", "h0"), node("Relu", "h0", "h")]
    return branch([*own, node("MatMul", "h w", "z")], "z", [onnx.numpy_helper.from_array(ARRAYS["w1"] * hidden, "w1")])


def by_rate(path):
    """All of a network in the branches of a condition on another input, as of a voice detector for two rates."""
    nodes = [
        constant("known", np.int64(16)),
        node("Equal", "rate known", "fast"),
        node("If", "fast", "out", then_branch=whole_network(1, 1), else_branch=whole_network(2, -1)),
    ]
    return save(path, nodes, ["out"], inputs=[helper.make_tensor_value_info("rate", I64, [])])


def by_size(path):
    """A condition on the number of axes inside a condition on their sizes; the arrays stand outside and inside."""
    kept = branch([node("Identity", "h", "kept")], "kept")
    cut = branch([node("Flatten", "h", "kept")], "kept")
    inner = [
        node("Shape", "h", "s"),
        node("Size", "s", "rank"),
        constant("two", np.int64(2)),
        node("Equal", "rank two", "flat"),
        node("If", "flat", "g", then_branch=kept, else_branch=cut),
        node("MatMul", "g v2", "z"),
    ]
    other = branch([node("MatMul", "h w2", "z")], "z")
    nodes = [
        node("MatMul", "x w1", "h0"),
        node("Tanh", "h0", "h"),
        node("Shape", "x", "sizes"),
        constant("one", np.int64(1)),
        node("Gather", "sizes one", "width"),
        constant("wide", np.int64(D)),
        node("Equal", "width wide", "as_read"),
        node("If", "as_read", "out", then_branch=branch(inner, "z", [array("v2")]), else_branch=other),
    ]
    return save(path, nodes, ["out"], [array("w1"), array("w2")])


def after_an_unknown_operator(path):
    """The branch reads an array from outside that the other branch and a second output read too."""
    taken, other = (branch([node("MatMul", "h w2", "z")], "z") for _ in range(2))
    nodes = [
        node("MatMul", "x w1", "h0"),
        node("Softsign", "h0", "h"),
        constant("yes", np.array(True)),
        node("If", "yes", "out", then_branch=taken, else_branch=other),
        node("MatMul", "h0 w2", "second"),
    ]
    return save(path, nodes, ["out", "second"], [array("w1"), array("w2")])


FILES = {"by a rate": (by_rate, {"rate": 16}), "by sizes": (by_size, {}), "cut": (after_an_unknown_operator, {})}


def run(path, rows, output=0, **others):
    session = ort.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    feed = {"x": rows.numpy()} | {name: np.asarray(value) for name, value in others.items()}
    return torch.tensor(session.run(None, feed)[output])


@pytest.mark.parametrize("name", FILES)
def test_what_stands_in_a_branch_is_repaired_there(tmp_path, name):
    build, fixed = FILES[name]
    path = build(tmp_path / "m.onnx")
    network = load_onnx(path, X, fixed=fixed)
    assert torch.allclose(network(X), run(path, X, **fixed), atol=1e-5)
    best = network(X).topk(2)
    wrong, said = (best.values[:, 0] - best.values[:, 1]).argsort() < 3, best.indices[:, 0]
    guard = KeepLabels(X[~wrong], said[~wrong], tolerance=0.3)
    repair = solve_repair(network, ErrorRate(X[wrong], best.indices[wrong, 1]), [guard])
    assert repair.report.verdict is Verdict.REPAIRED
    write_onnx(repair.model, tmp_path / "new.onnx", X)
    assert torch.allclose(run(tmp_path / "new.onnx", X, **fixed), repair.model(X), atol=1e-4)
    before, after = (onnx.load(str(file)).graph for file in (path, tmp_path / "new.onnx"))
    assert [one.op_type for one in after.node] == [one.op_type for one in before.node]  # the branches are still there
    assert [one.name for one in after.input] == [one.name for one in before.input]


def test_the_branch_that_is_not_taken_and_other_outputs_stay(tmp_path):
    path = by_rate(tmp_path / "m.onnx")
    network = load_onnx(path, X, fixed={"rate": 16})
    with torch.no_grad():
        for weight in network.parameters():
            weight += 1
    write_onnx(network, tmp_path / "new.onnx", X)
    assert torch.equal(run(tmp_path / "new.onnx", X, rate=8), run(path, X, rate=8))
    assert not torch.allclose(run(tmp_path / "new.onnx", X, rate=16), run(path, X, rate=16))

    path = after_an_unknown_operator(tmp_path / "cut.onnx")
    network = load_onnx(path, X)
    with torch.no_grad():
        next(network.parameters()).add_(1)
    write_onnx(network, tmp_path / "new.onnx", X)
    assert torch.equal(run(tmp_path / "new.onnx", X, 1), run(path, X, 1))


def test_a_first_spec_fills_the_other_inputs(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    by_rate(tmp_path / "m.onnx")
    np.savez(tmp_path / "rows.npz", sound=X.numpy(), label=run(tmp_path / "m.onnx", X, rate=16).argmax(1).numpy())

    def init(*words):
        with pytest.raises(SystemExit) as ended:
            main(["init", "m.onnx", "rows.npz", "--quiet", *words])
        return ended.value.code, capsys.readouterr().err

    assert init("--fixed", "rate=16")[0] == 0
    text = (tmp_path / "spec.yaml").read_text(encoding="utf-8")
    assert "fixed: {rate: 16}" in text
    assert "right on 100" in text
    for words, said in (
        ([], r"has 2 inputs (x, rate)"),
        (["--fixed", "rate"], "--fixed rate: expected NAME=NUMBER"),
        (["--fixed", "rate=fast"], "--fixed rate=fast: expected NAME=NUMBER"),
        (["--fixed", "speed=1"], "has no input 'speed'; inputs: x, rate"),
    ):
        code, error = init("--overwrite", *words)
        assert code == 2
        assert said in error


def test_a_condition_on_values_stays_with_onnx_runtime(tmp_path):
    turned = branch([node("Neg", "h0", "h")], "h")
    kept = branch([node("Identity", "h0", "h")], "h")
    nodes = [
        node("MatMul", "x w1", "h0"),
        node("ReduceMax", "h0", "top", keepdims=0),
        constant("one", np.float32(1)),
        node("Less", "top one", "low"),
        node("If", "low", "g", then_branch=turned, else_branch=kept),
        node("MatMul", "g w2", "z"),
    ]
    path = save(tmp_path / "m.onnx", nodes, ["z"], [array("w1"), array("w2")])
    tops = [float(run(path, X[i : i + 1]).abs().max()) for i in range(len(X))]
    one_by_one = torch.cat([run(path, X[i : i + 1]) for i in range(len(X))])
    together = run(path, X)
    assert len(set(tops)) > 1
    assert not torch.allclose(one_by_one, together)  # a row changes what another row gives
    with pytest.raises(ModelError, match="depends on the other rows"):
        load_onnx(path, X)
    rows = X[[float((X[i] @ torch.tensor(ARRAYS["w1"])).max()) >= 1 for i in range(len(X))]]
    network = load_onnx(path, rows)
    assert [tuple(weight.shape) for weight in network.parameters()] == [(K, H)]  # what comes before is not covered
    assert torch.allclose(network(X), one_by_one, atol=1e-5)


def test_other_sizes_than_the_branches_were_taken_for_are_refused(tmp_path):
    nodes = [
        node("Transpose", "x", "t", perm=[1, 0]),
        node("Softsign", "t", "u"),
        node("Transpose", "u", "h", perm=[1, 0]),
        node("Shape", "x", "sizes"),
        constant("one", np.int64(1)),
        node("Gather", "sizes one", "width"),
        node("Equal", "width wide", "as_read"),
        constant("axis", np.array([1])),
        node(
            "If",
            "as_read",
            "g",
            then_branch=branch([node("Identity", "h", "b")], "b"),
            else_branch=branch([node("Neg", "h", "b")], "b"),
        ),
        node("ReduceMean", "g", "mean", axes=[1], keepdims=1),
        node("MatMul", "mean row", "z"),
    ]
    nodes.insert(3, constant("wide", np.int64(D)))
    model = save(tmp_path / "m.onnx", nodes, ["z"], [onnx.numpy_helper.from_array(np.ones((1, K), np.float32), "row")])
    file = onnx.load(str(model))
    file.graph.input[0].type.tensor_type.shape.dim[1].dim_param = "width"
    onnx.save(file, str(model))
    network = load_onnx(model, X)
    with pytest.raises(ModelError, match=r"rows of shape \(4,\): the file takes other branches for other sizes"):
        network(X[:, :4])


def test_one_score_a_row_may_come_without_an_axis(tmp_path):
    one = onnx.numpy_helper.from_array(ARRAYS["w2"][:, :1], "one")
    nodes = [
        node("MatMul", "x w1", "h0"),
        node("Relu", "h0", "h"),
        node("MatMul", "h one", "z"),
        constant("axes", np.array([1])),
        node("Squeeze", "z axes", "flat"),
        node("Sigmoid", "flat", "p"),
    ]
    path = save(tmp_path / "m.onnx", nodes, ["p"], [array("w1"), one], rank=1)
    network = load_onnx(path, X)
    assert torch.allclose(torch.softmax(network(X), 1)[:, 1], run(path, X), atol=1e-6)
    with torch.no_grad():
        next(network.parameters()).mul_(1.5)
    write_onnx(network, tmp_path / "new.onnx", X)
    assert torch.allclose(torch.softmax(network(X), 1)[:, 1], run(tmp_path / "new.onnx", X), atol=1e-6)


def test_letters_of_one_line_without_an_axis_of_lines(tmp_path):
    """Scores ``(T, 1, k)`` of one input, which have to be told from ``T`` inputs."""
    steps, letters = 4, torch.tensor(DRAW.normal(size=(9, 4, D)).astype(np.float32))
    nodes = [
        node("Transpose", "x", "t", perm=[1, 0, 2]),  # (T, 1, D)
        node("Softsign", "t", "s"),
        node("MatMul", "s w1", "h0"),
        node("Shape", "h0", "sizes"),
        constant("flat", np.array([-1, H])),
        node("Reshape", "h0", "h1"),
        node("MatMul", "h1 w2", "z0"),
        constant("last", np.array([K])),
        constant("start", np.array([0])),
        constant("stop", np.array([2])),
        node("Slice", "sizes start stop", "first"),
        node("Concat", "first last", "out", axis=0),
        node("Reshape", "z0 out", "z"),
    ]
    nodes[5] = node("Reshape", "h0 flat", "h1")
    path = save(tmp_path / "m.onnx", nodes, ["z"], [array("w1"), array("w2")], rank=3)
    file = onnx.load(str(path))
    file.graph.input[0].CopyFrom(helper.make_tensor_value_info("x", F32, [1, "T", D]))
    onnx.save(file, str(path))
    reader = load_positions(path, letters)
    assert reader.count == steps
    expected = torch.cat([run(path, letters[i : i + 1]).flatten(0, 1) for i in range(len(letters))])
    assert torch.allclose(reader.network(reader.rows(letters)), expected, atol=1e-5)
    with torch.no_grad():
        next(reader.network.parameters()).mul_(1.5)
    write_onnx(reader.network, tmp_path / "new.onnx", letters)
    found = torch.cat([run(tmp_path / "new.onnx", letters[i : i + 1]).flatten(0, 1) for i in range(len(letters))])
    assert torch.allclose(reader.network(reader.rows(letters)), found, atol=1e-4)
    with pytest.raises(ModelError, match="has no output of scores"):
        load_onnx(path, letters)


def test_a_quantized_file_says_what_to_repair_in_its_place(tmp_path):
    weight = onnx.numpy_helper.from_array(DRAW.integers(-9, 9, (D, K)).astype(np.int8), "wq")
    nodes = [
        node("DynamicQuantizeLinear", "x", "xq scale zero"),
        node("MatMulInteger", "xq wq zero", "y"),
        node("Cast", "y", "z0", to=F32),
        node("Mul", "z0 scale", "z1"),
        node("CumSum", "z1 axis", "z"),
        constant("axis", np.int64(1)),
    ]
    nodes.insert(0, nodes.pop())
    with pytest.raises(ModelError, match="quantized.*: repair the file before quantization"):
        load_onnx(save(tmp_path / "m.onnx", nodes, ["z"], [weight]), X)
