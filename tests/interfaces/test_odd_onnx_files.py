"""ONNX files that few exporters write, and wrong arguments beside them: read right, or refused with what to do."""

from __future__ import annotations

import shutil

import numpy as np
import pytest
import torch

from repairopt.errors import ExportError, ModelError, SpecificationError
from repairopt.interfaces.specfile.models import ModelSpec
from repairopt.interfaces.specfile.onnx_model import load_onnx, write_onnx
from repairopt.interfaces.specfile.onnx_positions import load_positions

onnx = pytest.importorskip("onnx")
ort = pytest.importorskip("onnxruntime")
helper, F32, F16, I64 = onnx.helper, onnx.TensorProto.FLOAT, onnx.TensorProto.FLOAT16, onnx.TensorProto.INT64

DRAW = np.random.default_rng(3)
D, H, K = 4, 5, 3
X = torch.tensor(DRAW.normal(size=(12, D)).astype(np.float32))
W1, W2 = (DRAW.normal(size=shape).astype(np.float32) for shape in ((D, H), (H, K)))
WHOLE = np.int8([[1, -2, 3]] * D)


def node(kind, reads, makes, **attributes):
    return helper.make_node(kind, reads.split(), makes.split(), **attributes)


def constant(name, value):
    return node("Constant", "", name, value=onnx.numpy_helper.from_array(np.asarray(value)))


def branch(nodes, output="z", **arrays):
    held = [onnx.numpy_helper.from_array(value, name) for name, value in arrays.items()]
    return helper.make_graph(nodes, "b", [], [helper.make_tensor_value_info(output, F32, None)], held)


def model(nodes, *, outputs=("out",), arrays=None, dtype=F32, inputs=(), opset=16):
    """A model that reads ``x (batch, D)``, with the arrays w1 and w2 where no others are given."""
    arrays = {"w1": W1, "w2": W2} if arrays is None else arrays
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", dtype, ["batch", D]), *inputs],
        [helper.make_tensor_value_info(name, dtype, ["n", "k"]) for name in outputs],
        [onnx.numpy_helper.from_array(value, name) for name, value in arrays.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)


def dense(last="out"):
    return [node("MatMul", "x w1", "h"), node("Relu", "h", "r"), node("MatMul", "r w2", last)]


def by_batch(other):
    """A condition on the size of the batch, whose other branch has a factor."""
    then, otherwise = (branch([node("MatMul", "x w", "z")], w=W1 * factor) for factor in (1, other))
    nodes = [
        node("Shape", "x", "sizes"),
        constant("zero", np.int64(0)),
        node("Gather", "sizes zero", "rows"),
        constant("one", np.int64(1)),
        node("Equal", "rows one", "single"),
        node("If", "single", "out", then_branch=then, else_branch=otherwise),
    ]
    return model(nodes, arrays={})


def with_sparse_array():
    made = model(dense(), arrays={"w1": W1})
    values = onnx.numpy_helper.from_array(np.float32([1, 2, 3]), "w2")
    places = onnx.numpy_helper.from_array(np.int64([0, 4, 8]), "places")
    made.graph.sparse_initializer.append(helper.make_sparse_tensor(values, places, [H, K]))
    return made


def with_own_operator():
    made = model([*dense("z"), helper.make_node("Mine", ["z"], ["out"], domain="mine")])
    made.opset_import.append(helper.make_opsetid("mine", 1))
    return made


def drawing(place):
    """A file that draws numbers, beside its rows or inside a branch."""
    draw = [node("RandomNormalLike", "h", "n"), node("Add", "h n", "z")]
    nodes = draw if place == "beside" else [constant("yes", np.array(True)), node("If", "yes", "z", **both(draw))]
    return model([node("MatMul", "x w1", "h"), *nodes, node("MatMul", "z w2", "out")])


def both(nodes):
    return {"then_branch": branch(nodes), "else_branch": branch([node("Identity", "h", "z")])}


def cast(nodes):
    return [node("Cast", "x", "xh", to=F16), *nodes, node("Cast", "o", "out", to=F32)]


EMPTY = {"zero": np.int64([0]), "one": np.int64([1])}
HALF = {"w1": W1.astype(np.float16), "w2": W2.astype(np.float16)}
REFUSED = {
    "no output": (model(dense(), outputs=()), "has no output"),
    "an output without columns": (
        model([node("Slice", "x zero zero one", "out")], arrays=EMPTY),
        r"outputs: out \(3, 0\)",
    ),
    "an operator of its own": (with_own_operator(), "ONNX Runtime .* cannot read the file"),
    "a later opset": (model(dense(), opset=99), "ONNX Runtime .* cannot read the file|no valid ONNX file"),
    "a sparse array": (with_sparse_array(), "its array 'w2' is sparse; expected dense arrays"),
    "numbers that are drawn": (drawing("beside"), "operator RandomNormalLike draws numbers"),
    "numbers that a branch draws": (drawing("inside"), "operator RandomNormalLike draws numbers"),
    "a factor of nothing": (model([node("Gemm", "x w1", "out", alpha=0.0)]), "multiplies its input by alpha=0"),
    "a condition on the batch": (by_batch(-1), "depends on the other rows"),
    "a condition on the batch, of one answer": (by_batch(1), "operator If makes its scores and is not covered"),
    "half precision inside": (
        model(cast([node("MatMul", "xh w1", "h"), node("MatMul", "h w2", "o")]), arrays=HALF),
        r"float16: repair the file in float32",
    ),
    "weights of integers": (
        model(
            [
                constant("s", np.float32(0.1)),
                node("DequantizeLinear", "wq s", "w"),
                node("MatMul", "x w", "z"),
                constant("axis", np.int64(1)),
                node("CumSum", "z axis", "out"),
            ],
            arrays={"wq": WHOLE},
        ),
        "quantized.*: repair the file before quantization",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_a_file_that_cannot_be_repaired_is_refused(tmp_path, name):
    made, said = REFUSED[name]
    onnx.save(made, str(tmp_path / "m.onnx"))
    with pytest.raises(ModelError, match=said):
        load_onnx(tmp_path / "m.onnx", X)


def nested(factor):
    inside = {key: branch([node("MatMul", "h w", "z")], w=W2 * factor * sign) for key, sign in SIDES.items()}
    return branch([constant("no", np.array(False)), node("If", "no", "z2", **inside)], "z2")


SIDES = {"then_branch": 1, "else_branch": -1}
TWO = {"w1": W1, "ww": np.concatenate([W2, -2 * W2])}
READ = {
    "weights that are the parts of an array": model(
        [
            node("MatMul", "x w1", "h"),
            node("Split", "ww", "wa wb", axis=0),
            node("MatMul", "h wa", "a"),
            node("MatMul", "h wb", "b"),
            node("Add", "a b", "out"),
        ],
        arrays=TWO,
    ),
    "names that a copy would take": model(
        [
            constant("w", W2),
            constant("w_before", np.ones(K, np.float32)),
            node("MatMul", "x w1", "h"),
            node("MatMul", "h w", "z"),
            node("Add", "z w_before", "out"),
        ],
        arrays={"w1": W1},
    ),
    "one number as bias": model(
        [node("Gemm", "x w1 b", "h", alpha=0.5, beta=0.0), node("Gemm", "h w2 b", "out", alpha=2.0, beta=3.0)],
        arrays={"w1": W1, "w2": W2, "b": np.float32(2)},
    ),
    "a condition in a condition": model(
        [
            node("MatMul", "x w1", "h"),
            constant("yes", np.array([True])),
            node("If", "yes", "out", then_branch=nested(1), else_branch=nested(2)),
        ],
        arrays={"w1": W1},
    ),
}


def normalized(reads="h s b", shape=(), scale=(H,), **attributes):
    """A normalization between two layers, of rows or of what they are reshaped to."""
    there = [node("Reshape", "h to", "g"), node("Flatten", "n", "f")] if shape else [node("Identity", "n", "f")]
    last = W2 if not shape else DRAW.normal(size=(int(np.prod(shape)), K)).astype(np.float32)
    first = W1 if not shape else DRAW.normal(size=(D, int(np.prod(shape)))).astype(np.float32)
    norm = node("LayerNormalization", reads.replace("h", "g") if shape else reads, "n", **attributes)
    arrays = {name: 1 + 0.3 * DRAW.normal(size=scale).astype(np.float32) for name in reads.split()[1:]}
    arrays |= {"w1": first, "w2": last} | ({"to": np.int64([-1, *shape])} if shape else {})
    steps = [node("MatMul", "x w1", "h"), *there[:-1], norm, there[-1], node("MatMul", "f w2", "out")]
    return model(steps, arrays=arrays, opset=17)


READ |= {
    "a normalization of rows": normalized(),
    "a normalization without bias": normalized("h s"),
    "a normalization with its own epsilon": normalized(epsilon=0.1),
    "a normalization from axis 1": normalized(axis=1),
    "a normalization of steps": normalized(shape=(3, 4), scale=(4,), axis=-1),
    "a normalization of planes": normalized(shape=(2, 3, 4), scale=(4,), axis=3),
}


def answers(path):
    return torch.tensor(ort.InferenceSession(str(path)).run(["out"], {"x": X.numpy()})[0])


@pytest.mark.parametrize("name", READ)
def test_a_file_is_read_and_each_of_its_weights_written_back(tmp_path, name):
    onnx.save(READ[name], str(tmp_path / "m.onnx"))
    network = load_onnx(tmp_path / "m.onnx", X)
    assert torch.allclose(network(X), answers(tmp_path / "m.onnx"), atol=1e-4)
    with torch.no_grad():
        for i, weight in enumerate(network.parameters()):
            weight += 0.1 * (i + 1) * torch.rand(weight.shape)
    write_onnx(network, tmp_path / "new.onnx", X)
    assert torch.allclose(network(X), answers(tmp_path / "new.onnx"), atol=1e-3)


@pytest.mark.parametrize("read", [load_onnx, load_positions])
@pytest.mark.parametrize("rows", [X[:0], torch.tensor(1.0)], ids=["none", "a number"])
def test_rows_that_are_none_are_refused(tmp_path, read, rows):
    onnx.save(model(dense()), str(tmp_path / "m.onnx"))
    with pytest.raises(SpecificationError, match=r"expected rows \(N, ...\), N at least 1"):
        read(tmp_path / "m.onnx", rows)


@pytest.mark.parametrize("value", [16.5, float("nan"), float("inf"), 1e300, None, "fast", [1, 2]], ids=repr)
def test_another_input_is_filled_with_a_number_of_its_type(tmp_path, value):
    fast, slow = (branch([node("MatMul", "x w", "z")], w=W1 * factor) for factor in (1, 2))
    nodes = [
        constant("known", np.int64(16)),
        node("Equal", "rate known", "is_fast"),
        node("If", "is_fast", "out", then_branch=fast, else_branch=slow),
    ]
    onnx.save(model(nodes, inputs=[helper.make_tensor_value_info("rate", I64, [])]), str(tmp_path / "m.onnx"))
    load_onnx(tmp_path / "m.onnx", X, fixed={"rate": 16.0})
    with pytest.raises(ModelError, match="input 'rate': is filled with .*; expected one number that int64 holds"):
        load_onnx(tmp_path / "m.onnx", X, fixed={"rate": value})
    with pytest.raises(ModelError, match=r"numbers fill all of its inputs \(x, rate\)"):
        load_onnx(tmp_path / "m.onnx", X, fixed={"x": 0, "rate": 16})


def test_a_file_that_went_or_changed_meanwhile_is_named(tmp_path):
    path = tmp_path / "m.onnx"
    onnx.save(model(dense()), str(path))
    network = load_onnx(path, X)
    with pytest.raises(SpecificationError, match="N at least 1"):
        write_onnx(network, tmp_path / "new.onnx", X[:0])
    shutil.move(path, tmp_path / "moved.onnx")
    with pytest.raises(ModelError, match=r"m\.onnx.*No such file"):
        write_onnx(network, tmp_path / "new.onnx", X)
    onnx.save(READ["a condition in a condition"], str(path))
    with pytest.raises(ExportError, match="is another file now"):
        write_onnx(network, tmp_path / "new.onnx", X)
    assert not (tmp_path / "new.onnx").exists()


# ---------------------------------------------------------------------------- what sure answers do not show


@pytest.mark.parametrize("ending", ["Softmax", "Sigmoid", "decomposed", "shifted"])
def test_a_bias_is_kept_where_all_known_answers_are_sure(tmp_path, ending):
    count = 1 if ending == "Sigmoid" else 2
    wide, bias = np.float32([[4, -4]] * D)[:, :count], np.float32([0.5, -0.5])[:count]
    nodes = [node("MatMul", "x w", "a"), node("Add", "a b", "z")]
    if ending in ("Softmax", "Sigmoid"):
        nodes += [node(ending, "z", "out", **({"axis": 1} if ending == "Softmax" else {}))]
    else:  # as older exporters write softmax, with the largest number taken off
        nodes += [node("ReduceMax", "z", "top", axes=[1], keepdims=1), node("Sub", "z top", "s")]
        nodes += [node("Softmax", "s", "out", axis=1)] if ending == "shifted" else []
    if ending == "decomposed":
        nodes += [node("Exp", "s", "e"), node("ReduceSum", "e one", "sum", keepdims=1), node("Div", "e sum", "out")]
    arrays = {"w": wide, "b": bias} | ({"one": np.int64([1])} if ending == "decomposed" else {})
    file = tmp_path / "sure.onnx"
    onnx.save(model(nodes, arrays=arrays), file)
    sure = torch.tensor([[9.0] * D, [-9.0] * D] * 10)
    made, own = load_onnx(file, sure), torch.randn(50, D, generator=torch.Generator().manual_seed(0)) / 9
    (expected,) = ort.InferenceSession(file).run(None, {"x": own.numpy()})
    with torch.no_grad():
        logits = made(own)
        logits = torch.nn.functional.pad(logits, (1, 0)) if logits.shape[1] == 1 else logits
        shares = logits.softmax(1)
    found = shares[:, 1:] if count == 1 else shares
    assert found.numpy() == pytest.approx(expected, abs=1e-5)
    assert sum(value.numel() for value in made.parameters()) == wide.size + bias.size


def test_shares_that_are_no_softmax_are_not_read_as_one_where_they_are_sure(tmp_path):
    wide, top = np.float32([[20, 0]] * D), np.float32([0.0, 0.0])
    nodes = [node("MatMul", "x w", "a"), node("Add", "a b", "z"), node("Abs", "z", "m")]
    nodes += [node("ReduceSum", "m one", "sum", keepdims=1), node("Div", "m sum", "out")]
    file = tmp_path / "shares.onnx"
    onnx.save(model(nodes, arrays={"w": wide, "b": top, "one": np.int64([1])}), file)
    with pytest.raises(ModelError, match="operator Div makes its scores and is not covered"):
        load_onnx(file, torch.full((20, D), 2.0))


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_weights_in_nodes_of_constants_are_replaced_where_they_stand(tmp_path, dtype):
    """Paddle writes weights so: names, nodes and arrays are those of the file afterwards, but for the values."""
    nodes = [constant("w1", W1.astype(dtype)), constant("w2", W2.astype(dtype)), *dense()]
    kind = {np.float32: F32, np.float64: onnx.TensorProto.DOUBLE}[dtype]
    made = model(nodes, arrays={}, dtype=kind)
    made.graph.output[0].type.tensor_type.elem_type = kind
    onnx.save(made, str(tmp_path / "m.onnx"))
    rows = X.to(torch.float64) if dtype is np.float64 else X
    network = load_onnx(tmp_path / "m.onnx", rows)
    with torch.no_grad():
        [*network.parameters()][-1].add_(0.5)
    write_onnx(network, tmp_path / "new.onnx", rows)
    before, after = (onnx.load(str(tmp_path / name)).graph for name in ("m.onnx", "new.onnx"))
    told = [[(item.op_type, [*item.input], [*item.output]) for item in graph.node] for graph in (before, after)]
    assert told[0] == told[1]
    assert len(after.initializer) == 0
    values = [onnx.numpy_helper.to_array(graph.node[1].attribute[0].t) for graph in (before, after)]
    assert values[0].dtype == values[1].dtype
    assert not np.array_equal(*values)


def test_tensors_with_numbers_for_names_need_no_quotes_in_a_spec():
    """Messages write ``output: 10``, which YAML reads as a number."""
    said = ModelSpec(onnx="m.onnx", output=10, fixed={3: 0.5})
    assert (said.output, said.fixed) == ("10", {"3": 0.5})
    with pytest.raises(ValueError, match="output"):
        ModelSpec(onnx="m.onnx", output=True)
