"""repairopt init: a spec that check runs at once, whatever the columns are called and however they are encoded."""

from __future__ import annotations

import csv
import json
import re
import warnings
from decimal import Decimal
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from small_spec import write_spec
from torch import nn

from repairopt.compare import train_network
from repairopt.errors import ModelError
from repairopt.interfaces.commandline.commands import main
from repairopt.interfaces.specfile.guessed_columns import label_columns
from repairopt.interfaces.specfile.networks import mlp
from repairopt.interfaces.specfile.onnx_model import load_onnx
from repairopt.interfaces.specfile.opened import open_spec
from repairopt.patches import save_weights

N = 400


def run(capsys, *arguments):
    with pytest.raises(SystemExit) as ended:
        main([str(one) for one in arguments])
    return ended.value.code, capsys.readouterr()


def trained(inputs, labels, sizes):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return train_network(mlp(sizes), inputs, labels)


def write_rows(path, head, rows, separator=","):
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, delimiter=separator)
        writer.writerow(head)
        writer.writerows(rows)


def people():
    """Raw columns age, income, color and the class; and the inputs of a network that reads them scaled."""
    draw = np.random.default_rng(0)
    age, income, color = draw.integers(18, 80, N), draw.normal(30_000, 9_000, N).round(), draw.integers(0, 3, N)
    scaled = [(age - age.mean()) / age.std(), (income - income.mean()) / income.std()]
    labels = torch.tensor(scaled[0] + scaled[1] - color > -1).long()
    return (age, income, color), scaled, labels


def test_the_spec_of_a_small_task_is_written_checked_and_solved(tmp_path, capsys):
    write_spec(tmp_path)
    spec = tmp_path / "first.yaml"
    code, said = run(capsys, "init", tmp_path / "weights.safetensors", tmp_path / "rows.csv", "--out", spec)
    assert code == 0
    assert "gap(group, favorable=yes, kind=parity)" in said.out
    code, said = run(capsys, "check", spec, "--json")
    assert code == 1
    claims = json.loads(said.out)["claims"]
    assert [claim["met"] for claim in claims if claim["role"] == "goal"] == [False, False]
    assert run(capsys, "solve", spec, "--out", tmp_path / "run", "--no-report", "--time-limit", 10)[0] in (0, 1)


@pytest.mark.parametrize(("text", "sizes"), [("categories", [3, 8, 2]), ("one_hot", [5, 8, 2])])
def test_the_encoding_that_the_network_was_trained_with_is_found(tmp_path, capsys, text, sizes):
    (age, income, color), scaled, labels = people()
    coded = [np.eye(3)[color][:, k] for k in range(3)] if text == "one_hot" else [color]
    inputs = torch.tensor(np.stack([*scaled, *coded], 1)).float()
    network = trained(inputs, labels, sizes)
    save_weights(network, tmp_path / "w.safetensors")
    names = np.array(["blue", "green", "red"])[color]
    rows = zip(age, income, names, np.array(["no", "yes"])[labels], strict=True)
    write_rows(tmp_path / "rows.csv", ["age", "income", "color", "approved"], rows)
    out = tmp_path / "spec.yaml"
    assert run(capsys, "init", tmp_path / "w.safetensors", tmp_path / "rows.csv", "--out", out)[0] == 0
    spec = open_spec(out)
    assert spec.file.spec.label.column == "approved"
    assert text in spec.file.spec.inputs["color"].model_dump(exclude_none=True)
    rows = spec.data.sets["repair"]
    right = float((network(rows.inputs).argmax(1) == rows.labels).float().mean())
    assert right == pytest.approx(float((network(inputs).argmax(1) == labels).float().mean()), abs=0.05)


@pytest.mark.parametrize("text_first", [False, True])
def test_a_label_that_nothing_names_and_columns_in_the_order_of_an_encoder_are_found(tmp_path, capsys, text_first):
    draw = np.random.default_rng(0)
    sex, checks, job = draw.integers(0, 2, N), draw.integers(0, 7, N), draw.integers(0, 3, N)
    rare = checks + job + draw.normal(0, 1, N) > 6
    frame = pd.DataFrame({"released": np.where(rare, "no", "yes"), "checks": checks, "job": np.array([*"abc"])[job]})
    frame = frame.assign(sex=np.array(["F", "M"])[sex], visits=draw.integers(0, 2, N))
    numbers, texts = frame[["checks", "visits"]], pd.get_dummies(frame[["job", "sex"]])
    encoded = pd.concat([texts, numbers] if text_first else [numbers, texts], axis=1)
    labels, inputs = torch.tensor(~rare).long(), torch.tensor(encoded.to_numpy(np.float32))
    save_weights(trained(inputs, labels, [7, 8, 2]), tmp_path / "w.safetensors")
    frame.to_csv(tmp_path / "raw.csv", index=False)
    encoded.assign(released=frame["released"])[["released", *encoded]].to_csv(tmp_path / "encoded.csv", index=False)
    for table, group in (("raw", "sex"), ("encoded", "sex_F")):
        out = tmp_path / f"{table}.yaml"
        assert run(capsys, "init", tmp_path / "w.safetensors", tmp_path / f"{table}.csv", "--out", out)[0] == 0
        spec = open_spec(out)
        assert (spec.file.spec.label.column, spec.file.spec.sensitive_features) == ("released", [group])
        read = torch.cat([rows.inputs for rows in spec.data.sets.values()]).float()
        assert sorted(read.tolist()) == sorted(inputs.tolist())


def test_the_only_texts_of_a_table_are_no_label_where_they_stand_among_inputs(tmp_path, capsys):
    draw = np.random.default_rng(1)
    age, sex, visits = draw.integers(0, 5, N), draw.integers(0, 2, N), draw.integers(0, 3, N)
    bought = (age + visits + 2 * draw.normal(size=N) > 3).astype(int)  # of which little can be known
    inputs = torch.tensor(np.stack([age, sex, visits], 1)).float()
    save_weights(trained(inputs, torch.tensor(bought), [3, 6, 2]), tmp_path / "w.safetensors")
    frame = pd.DataFrame({"age": age, "sex": np.array(["f", "m"])[sex], "visits": visits, "bought": bought})
    frame.to_csv(tmp_path / "rows.csv", index=False)
    likely = [name for name, _ in label_columns({name: frame[name].to_numpy() for name in frame}, None)]
    assert likely == ["bought", "age", "sex", "visits"]  # the last and the first, then texts
    out = tmp_path / "spec.yaml"
    assert run(capsys, "init", tmp_path / "w.safetensors", tmp_path / "rows.csv", "--out", out)[0] == 0
    spec = open_spec(out).file.spec
    assert (spec.label.column, spec.sensitive_features, list(spec.inputs)) == (
        "bought",
        ["sex"],
        ["age", "sex", "visits"],
    )


@pytest.mark.parametrize(
    ("head", "classes", "separator"),
    [
        (["a b", "Was, it $?", "y"], ["bad", "good"], ","),
        (["yes", "no", "true"], ["0: x", "- y"], ";"),
        (["1", "2.5", "label"], ["'q'", '"w"'], "\t"),
        (["ünï", "#c", "null"], ["good", "bad"], "|"),
        (["&a", "*b", "{c}"], ["1", "2"], ","),
        (["a", "b", "class"], ["0", "1"], ","),
    ],
)
def test_any_names_of_columns_and_classes_are_written_as_they_are(tmp_path, capsys, head, classes, separator):
    draw = torch.Generator().manual_seed(0)
    inputs = torch.randn(N, 2, generator=draw)
    labels = (inputs[:, 0] > 0).long()
    save_weights(trained(inputs, labels, [2, 6, 2]), tmp_path / "w.safetensors")
    rows = ([*row, classes[k]] for row, k in zip(inputs.tolist(), labels.tolist(), strict=True))
    write_rows(tmp_path / "rows.csv", head, rows, separator)
    out = tmp_path / "spec.yaml"
    options = ["--label", head[-1], "--out", out]
    code, said = run(capsys, "init", tmp_path / "w.safetensors", tmp_path / "rows.csv", *options)
    assert (code, said.err) == (0, "")
    spec = open_spec(out)
    assert list(spec.file.spec.inputs) == head[:2]
    assert spec.goal is not None
    rows = spec.data.sets["repair"]
    assert float((spec.model(rows.inputs).argmax(1) == rows.labels).float().mean()) > 0.9


def test_bytes_of_images_are_scaled_and_shaped(tmp_path, capsys):
    draw = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (N, 4, 4), generator=draw, dtype=torch.uint8)
    inputs = images.flatten(1) / 255
    labels = (inputs[:, 0] > inputs[:, 1]).long() + (inputs[:, 2] > 0.7).long()
    save_weights(trained(inputs, labels, [16, 12, 3]), tmp_path / "w.safetensors")
    np.savez(tmp_path / "rows.npz", images=images.numpy(), label=labels.numpy(), other=np.zeros(3))
    out = tmp_path / "spec.yaml"
    code, said = run(capsys, "init", tmp_path / "w.safetensors", tmp_path / "rows.npz", "--out", out, "--json")
    assert code == 0
    assert [one["measure"].split("(")[0] for one in json.loads(said.out)["candidates"]] == [
        "error_rate",
        "recall",
        "recall",
    ]
    array = open_spec(out).file.spec.array
    assert (array.name, array.scale, array.shape) == ("images", (0, 255), [16])
    values = [one["value"] for one in json.loads(said.out)["candidates"]]
    assert values[0] > 0
    assert max(values[1:]) < 1, "what is at its best is no goal while others have room"


def test_a_column_of_measurements_is_no_label_whatever_its_name():
    draw = np.random.default_rng(0)
    columns = {"income": draw.lognormal(10, 0.5, 300).round(2), "age": draw.integers(18, 80, 300)}
    columns["credit"] = np.where(columns["income"] > 22_000, "good", "bad")
    assert [name for name, _ in label_columns(columns, None)][0] == "credit"
    columns["income"] = columns["income"].round(-3).astype(int)  # repeats, and has many values still
    assert [name for name, _ in label_columns(columns, None)][0] == "credit"
    columns["income"] = np.where(columns["income"] > 50_000, ">50K", "<=50K")
    assert label_columns(columns, None) == [("income", "guessed by the name 'income'")]


@pytest.fixture
def any_module(tmp_path, monkeypatch):
    """A folder with rows, and a module that is no plain state dict in all ways in which people keep one."""
    (age, income, color), scaled, labels = people()
    inputs = torch.tensor(np.stack([*scaled, color], axis=1), dtype=torch.float32)
    network = trained(inputs, labels, [3, 8, 2])
    names = np.array(["no", "yes"])[labels]
    write_rows(tmp_path / "rows.csv", ["age", "income", "color", "bought"], zip(age, income, color, names, strict=True))
    torch.jit.script(network).save(str(tmp_path / "TorchScript.pt"))
    rows = torch.export.Dim("rows")
    program = torch.export.export(network, (inputs[:2],), dynamic_shapes=({0: rows},))
    torch.export.save(program, tmp_path / "torch.export.pt2")
    torch.save(network, tmp_path / "pickled.pt")
    monkeypatch.chdir(tmp_path)
    return tmp_path, network


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning", "ignore:`isinstance:FutureWarning")
@pytest.mark.parametrize("file", ["TorchScript.pt", "torch.export.pt2", "pickled.pt"])
def test_a_module_in_a_file_is_named_and_the_line_that_loads_it_works(any_module, capsys, file):
    folder, network = any_module
    code, said = run(capsys, "init", folder / file, folder / "rows.csv")
    assert code == 2
    assert Path(file).stem in said.err
    assert "line 1" not in said.err  # of a spec that is not there
    (line,) = re.findall(r"`(network = lambda: .*?)`", said.err)
    name = f"own_{Path(file).stem.replace('.', '_')}"
    (folder / f"{name}.py").write_text(f"import torch\n{line}\n")
    code, said = run(capsys, "init", f"{name}:network", folder / "rows.csv", "--out", folder / "spec.yaml")
    assert code == 0, said.err
    code, said = run(capsys, "check", folder / "spec.yaml", "--json")
    assert code == 1
    spec = open_spec(folder / "spec.yaml")
    rows = spec.data.sets["repair"]
    right = float((network(rows.inputs).argmax(1) == rows.labels).float().mean())
    assert json.loads(said.out)["accuracy"]["repair"] == pytest.approx(right, abs=0.01)


@pytest.mark.parametrize(
    ("kept", "text"),
    [
        (lambda state: {"epoch": 3, "model_state_dict": state, "optimizer": {"state": {}, "param_groups": []}}, ""),
        (lambda state: {"state_dict": state, "ema": state}, ""),
        (lambda state: {"model": state, "ema": state}, "several state dicts, 'model', 'ema'"),
        (lambda state: {"epoch": 3}, "holds a dict"),
    ],
)
def test_weights_in_a_checkpoint_are_found(tmp_path, capsys, kept, text):
    write_spec(tmp_path)
    torch.save(kept(dict(mlp([2, 4, 2]).state_dict())), tmp_path / "checkpoint.pt")
    out = tmp_path / "first.yaml"
    code, said = run(capsys, "init", tmp_path / "checkpoint.pt", tmp_path / "rows.csv", "--out", out)
    assert code == (2 if text else 0)
    assert text in said.err


@pytest.mark.parametrize(
    ("change", "text"),
    [
        (lambda f: [f / "none.safetensors", f / "rows.csv"], "there is no such file"),
        (lambda f: [f / "weights.safetensors", f / "none.csv"], "there is no such file"),
        (lambda f: [f / "weights.safetensors", f / "rows.csv", "--label", "x"], "there is no such column"),
        (lambda f: [f / "weights.safetensors", f / "rows.csv", "--sensitive", "x"], "there is no such column"),
        (
            lambda f: [f / "weights.safetensors", f / "rows.csv", "--label", "merit"],
            "no way to read it fits",
        ),
        (lambda f: [f / "five.safetensors", f / "rows.csv"], "which reads 5 inputs"),
        (lambda f: [f / "weights.safetensors", f / "spec.yaml"], "unknown kind of file"),
        (lambda f: [f / "weights.safetensors", f / "rows.csv", "--out", f / "rows.csv"], "exists. Use --overwrite"),
    ],
)
def test_what_cannot_be_guessed_is_a_message_and_nothing_is_written(tmp_path, capsys, change, text):
    write_spec(tmp_path)
    save_weights(mlp([5, 3, 2]), tmp_path / "five.safetensors")
    before = sorted(tmp_path.iterdir())
    arguments = change(tmp_path)
    if "--out" not in arguments:
        arguments += ["--out", tmp_path / "new.yaml"]
    code, said = run(capsys, "init", *arguments)
    assert code == 2
    assert text in said.err
    assert sorted(tmp_path.iterdir()) == before


def test_rows_show_the_sizes_that_an_onnx_file_leaves_open(tmp_path, capsys):
    pytest.importorskip("onnxruntime")
    torch.manual_seed(0)
    images = torch.rand(120, 1, 6, 9)
    network = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 2))
    options = {"input_names": ["x"], "output_names": ["z"], "dynamo": False}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(network, (images,), tmp_path / "m.onnx", dynamic_axes={"x": [0, 2, 3], "z": [0]}, **options)
    labels = network(images).argmax(1)
    labels[:30] = 1 - labels[:30]
    np.savez(tmp_path / "rows.npz", images=images.numpy(), label=labels.numpy())
    out = tmp_path / "first.yaml"
    code, _ = run(capsys, "init", tmp_path / "m.onnx", tmp_path / "rows.npz", "--out", out)
    assert code == 0
    assert "{name: images" in out.read_text()
    code, said = run(capsys, "check", out)
    assert code == 1
    assert "NOT MET" in said.out


def loans():
    """A table, and the network that reads its age and income standardized and the place of its sex."""
    draw = np.random.default_rng(1)
    age, income, sex = draw.integers(18, 80, N), draw.normal(50, 15, N).round(2), draw.choice(["F", "M"], N)
    good = income + 5 * (sex == "M") > 50
    table = pd.DataFrame({"age": age, "income": income, "sex": sex, "decision": np.where(good, "yes", "no")})
    inputs = np.stack([(age - age.mean()) / age.std(), (income - income.mean()) / income.std(), sex == "M"], 1)
    return table, trained(torch.tensor(inputs).float(), torch.tensor(good).long(), [3, 8, 2])


def with_missing(table, column):
    return table.assign(**{column: table[column].astype(object).where(np.arange(N) != 3, None)})


KEPT = {
    "the index of the frame": lambda t, path: t.to_csv(path),
    "semicolons and decimal commas": lambda t, path: t.to_csv(path, sep=";", decimal=",", index=False),
    "UTF-16": lambda t, path: t.to_csv(path, index=False, encoding="utf-16"),
    "Windows' letters": lambda t, path: t.replace("F", "Féminin").to_csv(path, index=False, encoding="cp1252"),
    "truth values as labels": lambda t, path: t.assign(decision=t.decision == "yes").to_csv(path, index=False),
    "a missing number": lambda t, path: with_missing(t, "income").to_csv(path, index=False),
    "a number that is NA": lambda t, path: with_missing(t, "income").to_csv(path, index=False, na_rep="NA"),
    "a number that is ?": lambda t, path: with_missing(t, "income").to_csv(path, index=False, na_rep="?"),
    "a missing label": lambda t, path: with_missing(t, "decision").to_csv(path, index=False),
    "a missing group": lambda t, path: with_missing(t, "sex").to_csv(path, index=False),
    "decimals in Parquet": lambda t, path: t.assign(income=t.income.map(lambda v: Decimal(str(v)))).to_parquet(path),
    "nullable numbers in Parquet": lambda t, path: with_missing(t, "age").astype({"age": "Int64"}).to_parquet(path),
}


@pytest.mark.parametrize("kept", KEPT)
def test_a_table_is_read_however_it_was_kept(tmp_path, capsys, kept):
    if "Parquet" in kept:
        pytest.importorskip("pyarrow", reason="the extra tables is not installed")
    table, network = loans()
    save_weights(network, tmp_path / "w.safetensors")
    rows = tmp_path / f"rows.{'parquet' if 'Parquet' in kept else 'csv'}"
    KEPT[kept](table, rows)
    out = tmp_path / "spec.yaml"
    assert run(capsys, "init", tmp_path / "w.safetensors", rows, "--out", out, "--quiet")[0] == 0
    assert run(capsys, "check", out, "--quiet")[0] == 1
    spec = open_spec(out)
    assert list(spec.file.spec.inputs) == ["age", "income", "sex"]
    found = spec.data.sets["repair"]
    assert float((spec.model(found.inputs).argmax(1) == found.labels).float().mean()) > 0.93


REFUSED = {
    "a file without names": (lambda t: t, {"header": False}, "looks like a row"),
    "one class": (lambda t: t.assign(decision="yes"), {}, "1 of the network's 2 classes"),
    "dates": (lambda t: t.assign(age=pd.date_range("2020-01-01", periods=N)), {}, "'age' has 400 texts"),
    "percent signs": (lambda t: t.assign(income=t.income.map("{} %".format)), {}, "'income' has"),
    "one group": (lambda t: t.assign(sex="F"), {}, "'sex' has one value"),
    "lists": (lambda t: t.assign(income=[[1.0, 2.0 + k] for k in range(N)]), None, "'income' has 400 texts"),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_what_no_network_can_read_is_named(tmp_path, capsys, kind):
    (make, options, said), (table, network) = REFUSED[kind], loans()
    if options is None:
        pytest.importorskip("pyarrow", reason="the extra tables is not installed")
    save_weights(network, tmp_path / "w.safetensors")
    rows = tmp_path / ("rows.parquet" if options is None else "rows.csv")
    make(table).to_parquet(rows) if options is None else make(table).to_csv(rows, index=False, **options)
    code, written = run(capsys, "init", tmp_path / "w.safetensors", rows, "--out", tmp_path / "spec.yaml")
    assert code == 2
    assert said in " ".join(written.err.split())
    assert not (tmp_path / "spec.yaml").exists()


@pytest.mark.parametrize(
    "labels",
    [lambda y: y.astype(float), lambda y: y.astype(bool), lambda y: np.array(["a", "b"])[y], lambda y: y.astype("u1")],
)
def test_labels_of_an_array_may_be_numbers_or_texts(tmp_path, capsys, labels):
    inputs = torch.randn(N, 3, generator=torch.Generator().manual_seed(0))
    save_weights(trained(inputs, (inputs[:, 0] > 0).long(), [3, 6, 2]), tmp_path / "w.safetensors")
    np.savez(tmp_path / "rows.npz", x=inputs.numpy(), y=labels((inputs[:, 0] > 0).long().numpy()))
    out = tmp_path / "spec.yaml"
    assert run(capsys, "init", tmp_path / "w.safetensors", tmp_path / "rows.npz", "--out", out)[0] == 0
    rows = open_spec(out).data.sets["repair"]
    assert torch.equal(rows.labels, (rows.inputs[:, 0] > 0).long())


class Features(nn.Module):
    """Gives what its last layer reads beside the scores."""

    def __init__(self, network, first):
        super().__init__()
        self.network, self.first = network, first

    def forward(self, rows):
        features = self.network[:2](rows)
        scores = self.network[2](features)
        return {"features": (features, scores), "scores": (scores, features), "both": (features, scores.softmax(1))}[
            self.first
        ]


@pytest.mark.parametrize("first", ["features", "scores", "both"])
@pytest.mark.filterwarnings("ignore")
def test_rows_show_which_output_of_an_onnx_file_has_the_scores(tmp_path, capsys, first):
    pytest.importorskip("onnx", reason="the extra onnx is not installed")
    pytest.importorskip("onnxruntime", reason="the extra onnx is not installed")
    inputs = torch.randn(N, 4, generator=torch.Generator().manual_seed(0))
    labels = (inputs[:, 0] + inputs[:, 1] > 0).long()
    network = trained(inputs, labels, [4, 8, 2])
    file, out = tmp_path / "m.onnx", tmp_path / "spec.yaml"
    axes = {"input": {0: "n"}, "one": {0: "n"}, "two": {0: "n"}}
    torch.onnx.export(
        Features(network, first),
        (inputs[:3],),
        str(file),
        dynamo=False,
        input_names=["input"],
        output_names=["one", "two"],
        dynamic_axes=axes,
    )
    np.savez(tmp_path / "rows.npz", x=inputs.numpy(), y=labels.numpy())
    assert run(capsys, "init", file, tmp_path / "rows.npz", "--out", out)[0] == 0
    spec = open_spec(out)
    right = (spec.model(inputs).argmax(1) == labels).float().mean()
    assert right > 0.9
    if first != "both":  # probabilities are scores; else the file does not say which of the two they are
        with pytest.raises(ModelError, match=r"several outputs that can be scores: 'one'.*'two'"):
            load_onnx(file)
