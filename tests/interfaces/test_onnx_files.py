"""Any ONNX file: read whole or cut, repaired, and written back with nothing else touched."""

from __future__ import annotations

import copy
import csv
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from repairopt import ErrorRate, KeepLabels, solve_repair
from repairopt.errors import ModelError
from repairopt.interfaces.commandline.commands import main
from repairopt.interfaces.specfile.onnx_model import load_onnx, source_of, write_onnx

onnx = pytest.importorskip("onnx")
ort = pytest.importorskip("onnxruntime")
helper, F32, I64 = onnx.helper, onnx.TensorProto.FLOAT, onnx.TensorProto.INT64

DRAW = np.random.default_rng(0)
D, H, K, WORDS, LENGTH = 6, 8, 3, 11, 5
X = torch.tensor(DRAW.normal(size=(40, D)).astype(np.float32))
TOKENS = torch.tensor(DRAW.integers(0, WORDS, (40, LENGTH)))
A = {
    "w1": DRAW.normal(size=(D, H)).astype(np.float32),
    "b1": DRAW.normal(size=(1, H)).astype(np.float32),
    "w2": DRAW.normal(size=(H, K)).astype(np.float32),
    "b2": DRAW.normal(size=(1, K)).astype(np.float32),
    "one": DRAW.normal(size=(H, 1)).astype(np.float32),
    "c1": np.zeros((1, 1), np.float32),
    "table": DRAW.normal(size=(WORDS, D)).astype(np.float32),
    "unit": np.ones(1, np.float32),
}
DENSE = [("MatMul", "x w1", "h0"), ("Add", "h0 b1", "h1"), ("Relu", "h1", "h2")]
SCORES = [*DENSE, ("MatMul", "h2 w2", "z0"), ("Add", "b2 z0", "z")]


def build(path, steps, outputs, inputs=None):
    """A file from steps: operator, inputs and outputs in words, attributes."""
    nodes, inputs = [], inputs or [("x", F32, ["batch", D])]
    for kind, reads, makes, *more in steps:
        domain = {"domain": "ai.onnx.ml"} if kind in ("ZipMap", "Normalizer") else {}
        nodes.append(
            helper.make_node(kind, reads.split(), makes.split(), name=f"n{len(nodes)}", **domain, **dict(*more))
        )
    read = {name for node in nodes for name in node.input}
    arrays = [onnx.numpy_helper.from_array(value, name) for name, value in A.items() if name in read]
    infos = [helper.make_tensor_value_info(name, kind, shape) for name, kind, shape in inputs]
    maps = helper.make_sequence_type_proto(
        helper.make_map_type_proto(I64, helper.make_tensor_type_proto(F32, [])),
    )
    ends = [
        helper.make_value_info(name, maps) if shape is None else helper.make_tensor_value_info(name, kind, shape)
        for name, kind, shape in outputs
    ]
    graph = helper.make_graph(nodes, "g", infos, ends, arrays)
    opsets = [helper.make_opsetid("", 15), helper.make_opsetid("ai.onnx.ml", 1)]
    model = helper.make_model(graph, opset_imports=opsets, producer_name="someone", ir_version=8)
    model.metadata_props.add(key="licence", value="theirs")
    onnx.save(model, str(path))
    return Path(path)


def run(path, rows, output=None, **others):
    session = ort.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    names = [one.name for one in session.get_outputs()]
    feed = {session.get_inputs()[0].name: np.asarray(rows)} | {key: np.asarray(value) for key, value in others.items()}
    return torch.tensor(session.run([output or names[0]], feed)[0])


BY_HAND = [  # softmax as an exporter writes it that knows no softmax
    ("ReduceMax", "z", "top", {"axes": [1], "keepdims": 1}),
    ("Sub", "z top", "low"),
    ("Exp", "low", "e"),
    ("ReduceSum", "e axis", "sum"),
    ("Div", "e sum", "p"),
]
A["axis"] = np.array([1], np.int64)
P = [("p", F32, ["batch", K])]
CASES = {
    "scores": (SCORES, [("z", F32, ["batch", K])], "same"),
    "softmax": ([*SCORES, ("Softmax", "z", "p", {"axis": 1})], P, "softmax"),
    "softmax by hand": ([*SCORES, *BY_HAND], P, "softmax"),
    "an operator that is not covered before the last layer": (
        [*DENSE[:2], ("Softsign", "h1", "h2"), *SCORES[3:], ("Softmax", "z", "p", {"axis": 1})],
        P,
        "softmax",
    ),
    "one probability": (
        [*DENSE, ("MatMul", "h2 one", "z0"), ("Add", "z0 c1", "z"), ("Sigmoid", "z", "p")],
        [("p", F32, ["batch", 1])],
        "sigmoid",
    ),
    "two probabilities of one logit": (
        [
            *DENSE,
            ("MatMul", "h2 one", "z0"),
            ("Add", "z0 c1", "z"),
            ("Sigmoid", "z", "s"),
            ("Sub", "unit s", "r"),
            ("Concat", "r s", "p", {"axis": 1}),
        ],
        [("p", F32, ["batch", 2])],
        "pair",
    ),
    "labels and dicts, as scikit-learn exports them": (
        [
            *SCORES,
            ("Softmax", "z", "p", {"axis": 1}),
            ("ArgMax", "p", "label", {"axis": 1, "keepdims": 0}),
            ("ZipMap", "p", "maps", {"classlabels_int64s": [0, 1, 2]}),
        ],
        [("label", I64, ["batch"]), ("maps", F32, None)],
        "softmax",
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_logits_are_found_however_the_file_ends(tmp_path, name):
    steps, outputs, ending = CASES[name]
    network = load_onnx(build(tmp_path / "m.onnx", steps, outputs), X)
    source = source_of(network)
    assert source["ending"] == ending
    assert hasattr(network, "onnx_prefix") == (name == "an operator that is not covered before the last layer")
    if ending != "same" and outputs[-1][0] == "p":
        shares = torch.softmax(network(X), 1)
        expected = run(tmp_path / "m.onnx", X)
        assert torch.allclose(shares[:, 1:] if ending == "sigmoid" else shares, expected, atol=1e-6)


def embedding(path):
    """Words in, a table of vectors, their mean, scores out: the table lies before the cut."""
    steps = [
        ("Gather", "table words", "v", {"axis": 0}),
        ("ReduceMean", "v", "x", {"axes": [1], "keepdims": 0}),
        *SCORES,
        ("Softmax", "z", "p", {"axis": 1}),
        ("Identity", "h2", "features"),
    ]
    outputs = [*P, ("features", F32, ["batch", H])]
    return build(path, steps, outputs, inputs=(("words", I64, ["batch", LENGTH]),))


def test_a_network_of_integers_is_cut_repaired_and_written_back(tmp_path):
    path = embedding(tmp_path / "m.onnx")
    before = path.read_bytes()
    network = load_onnx(path, TOKENS)
    assert torch.allclose(torch.softmax(network(TOKENS), 1), run(path, TOKENS), atol=1e-6)
    answers = network(TOKENS).argmax(1)
    second = network(TOKENS).argsort(1)[:, -2]
    goal = ErrorRate(TOKENS[:2], second[:2])
    repair = solve_repair(network, goal, KeepLabels(TOKENS[2:], answers[2:], tolerance=0.2), weights="last")
    assert repair.report.verdict == "repaired"
    apart = write_onnx(repair.model, tmp_path / "new.onnx", TOKENS)
    assert apart < 1e-5
    assert path.read_bytes() == before
    assert torch.equal(run(tmp_path / "new.onnx", TOKENS).argmax(1), repair.model(TOKENS).argmax(1))
    assert torch.equal(run(tmp_path / "new.onnx", TOKENS)[:2].argmax(1), second[:2])
    old, new = onnx.load(str(path)), onnx.load(str(tmp_path / "new.onnx"))
    changed = [a.name for a, b in zip(old.graph.initializer, new.graph.initializer, strict=True) if a != b]
    assert set(changed) <= {"w2", "b2"}
    for item in (old, new):
        item.graph.ClearField("initializer")
    assert old.SerializeToString() == new.SerializeToString()  # names, operators, opset, metadata, other outputs


def test_a_weight_that_two_nodes_read_is_written_apart(tmp_path):
    steps = [
        ("MatMul", "x w", "h0"),
        ("Relu", "h0", "h1"),
        ("MatMul", "h1 w", "h2"),
        ("Relu", "h2", "h3"),
        ("MatMul", "h3 w", "z"),
    ]
    A["w"] = DRAW.normal(size=(D, D)).astype(np.float32)
    path = build(tmp_path / "m.onnx", steps, [("z", F32, ["batch", D])])
    network = load_onnx(path, X)
    with torch.no_grad():
        [*network.parameters()][-1].add_(0.5)
    write_onnx(network, tmp_path / "new.onnx", X)
    assert torch.allclose(run(tmp_path / "new.onnx", X), network(X), atol=1e-4)
    new = {
        item.name: onnx.numpy_helper.to_array(item) for item in onnx.load(str(tmp_path / "new.onnx")).graph.initializer
    }
    assert np.array_equal(new["w"], A["w"])
    assert len(new) == 2


def test_weights_that_nodes_compute_are_replaced(tmp_path):
    A["wt"] = np.ascontiguousarray(A["w2"].T)
    steps = [*DENSE, ("Transpose", "wt", "turned", {"perm": [1, 0]}), ("MatMul", "h2 turned", "z")]
    path = build(tmp_path / "m.onnx", steps, [("z", F32, ["batch", K])])
    network = load_onnx(path, X)
    with torch.no_grad():
        [*network.parameters()][-1].mul_(2.0)
    write_onnx(network, tmp_path / "new.onnx", X)
    assert torch.allclose(run(tmp_path / "new.onnx", X), network(X), atol=1e-4)


def test_gemm_with_factors_is_written_as_it_stood(tmp_path):
    A["wt"], A["bk"] = np.ascontiguousarray(A["w2"].T), A["b2"].reshape(-1)
    steps = [*DENSE, ("Gemm", "h2 wt bk", "z", {"transB": 1, "alpha": 0.5, "beta": 2.0})]
    path = build(tmp_path / "m.onnx", steps, [("z", F32, ["batch", K])])
    network = load_onnx(path, X)
    assert torch.allclose(network(X), run(path, X), atol=1e-5)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(0.25)
    write_onnx(network, tmp_path / "new.onnx", X)
    assert torch.allclose(run(tmp_path / "new.onnx", X), network(X), atol=1e-4)


def test_other_inputs_are_filled_with_fixed_numbers(tmp_path):
    steps = [
        ("Mul", "x gain", "x1"),
        ("Add", "x1 state", "x2"),
        ("Cast", "x2", "x3", {"to": F32}),
        *[(kind, reads.replace("x w1", "x3 w1"), makes) for kind, reads, makes in SCORES],
    ]
    inputs = (("x", F32, ["batch", D]), ("gain", F32, []), ("state", F32, ["batch", D]))
    path = build(tmp_path / "m.onnx", steps, [("z", F32, ["batch", K])], inputs)
    with pytest.raises(ModelError, match=r"has 3 inputs \(x, gain, state\).*fixed: \{name: 0\}"):
        load_onnx(path, X)
    with pytest.raises(ModelError, match="has no input 'rate'; inputs: x, gain, state"):
        load_onnx(path, X, fixed={"rate": 1})
    network = load_onnx(path, X, fixed={"gain": 2.0, "state": 0.5})
    expected = run(path, X, gain=np.float32(2), state=np.full((len(X), D), 0.5, np.float32))
    assert torch.allclose(network(X), expected, atol=1e-5)


def test_a_batch_that_the_file_fixes_is_filled_up(tmp_path):
    steps = [*DENSE[:2], ("Softsign", "h1", "h2"), *SCORES[3:]]
    path = build(tmp_path / "m.onnx", steps, [("z", F32, [4, K])], (("x", F32, [4, D]),))
    network = load_onnx(path, X)
    expected = torch.cat([run(path, X[i : i + 4]) for i in range(0, 40, 4)])
    assert torch.allclose(network(X[:7]), expected[:7], atol=1e-5)


def test_a_cut_network_is_copied_and_pickled(tmp_path):
    network = load_onnx(embedding(tmp_path / "m.onnx"), TOKENS)
    prefix = network.onnx_prefix
    for one in (copy.deepcopy(prefix), pickle.loads(pickle.dumps(prefix))):
        assert torch.equal(one(TOKENS), prefix(TOKENS))
    assert prefix(TOKENS[:0]).shape == (0, *prefix(TOKENS).shape[1:])
    digest = network.state_dict()["onnx_prefix.sha256"]
    A["table"] = A["table"] + 1
    other = load_onnx(embedding(tmp_path / "o.onnx"), TOKENS)
    assert not torch.equal(other.state_dict()["onnx_prefix.sha256"], digest)


@pytest.mark.parametrize(
    ("steps", "outputs", "text"),
    [
        ([("Sigmoid", "x", "z")], [("z", F32, ["batch", D])], "no layer with weights"),
        ([*SCORES, ("TopK", "z two", "v i")], [("v", F32, ["batch", 2])], "operator TopK makes its scores"),
        ([("Unsqueeze", "x axis", "z")], [("z", F32, ["batch", 1, D])], r"has no output of scores, \(N, k\)"),
        ([("ArgMax", "x", "z", {"axis": 1})], [("z", I64, ["batch", 1])], "has no output of scores"),
    ],
)
def test_what_cannot_be_repaired_says_why(tmp_path, steps, outputs, text):
    A["two"] = np.array([2], np.int64)
    path = build(tmp_path / "m.onnx", steps, outputs)
    with pytest.raises(ModelError, match=text):
        load_onnx(path, X)
    (tmp_path / "m.onnx").write_bytes(b"no onnx")
    with pytest.raises(ModelError, match="is no valid ONNX file"):
        load_onnx(path, X)


def test_other_networks_are_not_written_into_a_file(tmp_path):
    with pytest.raises(ModelError, match="was not read from an ONNX file"):
        write_onnx(nn.Linear(2, 2), tmp_path / "x.onnx", X)


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_a_classifier_of_scikit_learn_is_repaired_from_the_command_line(tmp_path, capsys):
    pytest.importorskip("skl2onnx")
    from skl2onnx import to_onnx
    from sklearn.neural_network import MLPClassifier

    rows = DRAW.normal(size=(300, 2)).astype(np.float32)
    labels = (rows[:, 0] + 0.5 * rows[:, 1] > 0).astype(int)
    model = MLPClassifier((8,), max_iter=400, random_state=0).fit(rows, np.where(rows[:, 0] > 0, 1, 0))
    (tmp_path / "m.onnx").write_bytes(to_onnx(model, rows[:1]).SerializeToString())
    with (tmp_path / "rows.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["a", "b", "label"])
        writer.writerows([*row, label] for row, label in zip(rows.tolist(), labels.tolist(), strict=True))
    spec = "model: {onnx: m.onnx}\ndata: {repair: rows.csv}\ninputs: [a, b]\nlabel: label\ngoal: error_rate <= 0.05\n"
    (tmp_path / "spec.yaml").write_text(spec)
    for arguments in (
        ["solve", tmp_path / "spec.yaml", "--out", tmp_path / "run", "--no-report"],
        ["apply", tmp_path / "spec.yaml", tmp_path / "run/patch.safetensors", "--out", tmp_path / "new.onnx"],
    ):
        with pytest.raises(SystemExit) as ended:
            main([str(one) for one in arguments])
        assert ended.value.code == 0, capsys.readouterr().err
    found = run(tmp_path / "new.onnx", rows, "output_label")
    assert float((found.numpy() != labels).mean()) <= 0.05
