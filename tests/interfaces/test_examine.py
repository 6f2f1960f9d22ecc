"""repairopt doctor: what works on a network is said before any long run, and is what a repair then meets."""

from __future__ import annotations

import json
import math

import pytest
import torch
from small_spec import write_spec
from torch import nn

from repairopt.errors import ModelError, SpecFileError
from repairopt.interfaces import trial_repairs
from repairopt.interfaces.commandline.commands import main
from repairopt.interfaces.commandline.runs.results import DoctorResult, TrialLine
from repairopt.interfaces.commandline.show import doctor_text
from repairopt.interfaces.examine import examine_model
from repairopt.interfaces.specfile.given_model import model_entry
from repairopt.interfaces.specfile.networks import mlp
from repairopt.interfaces.specfile.onnx_model import load_onnx
from repairopt.network import Classifier
from repairopt.patches import export_onnx, save_weights

pytestmark = pytest.mark.slow

X = torch.randn(60, 4, generator=torch.Generator().manual_seed(0))


def small(*sizes):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return mlp(sizes)


def finding(found, what):
    return next(one for one in found.findings if one.what == what)


class Recurrent(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed, self.recur, self.out = nn.Embedding(9, 4), nn.LSTM(4, 5, batch_first=True), nn.Linear(5, 2)

    def forward(self, words):
        return self.out(self.recur(self.embed(words))[0][:, -1])


class Deciding(nn.Module):
    def __init__(self):
        super().__init__()
        self.out = nn.Linear(4, 2)

    def forward(self, x):
        return self.out(x) if float(x.sum()) > -1e9 else x


def test_an_ordinary_network_has_everything():
    model = small(4, 8, 3)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    found = examine_model(model, X, rows=600, weights=["last", "all"])
    assert found.usable
    assert [one.ok for one in found.findings] == [True] * 4
    assert [(one.weights, one.count, one.rows) for one in found.trials] == [("last", 27, 60), ("all", 67, 60)]
    assert 2**26 < found.trials[0].expected_bytes < 2**34  # of the process
    assert found.trials[0].expected_seconds >= found.trials[0].seconds > 0
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_trials_have_more_and_more_rows_and_what_was_tried_is_expected(capsys, monkeypatch):
    rows = torch.randn(500, 4, generator=torch.Generator().manual_seed(0))
    seen = []
    kept = trial_repairs._repair
    monkeypatch.setattr(trial_repairs, "_repair", lambda *a: (seen.append(len(a[2])), kept(*a))[1])
    (whole,) = examine_model(small(4, 8, 3), rows, weights=["last"]).trials
    assert seen[1:] == [50, 200, 500]  # the first one is not timed
    assert (whole.rows, whole.expected_seconds, whole.at_least) == (500, whole.seconds, False)
    (more,) = examine_model(small(4, 8, 3), rows, rows=50_000, weights=["last"]).trials
    assert 10 <= more.expected_seconds / more.seconds <= 1000  # the 0.5th to the 1.5th power of 100 times the rows
    assert more.expected_bytes > 2**26  # of the whole process
    (short,) = examine_model(small(4, 8, 3), rows, weights=["last"], time_limit=1e-9).trials
    assert (short.at_least, short.expected_seconds) == (True, short.seconds)
    fields = {"model": "m", "basis": "", "source": "s", "rows": 500, "usable": True, "findings": []}
    lines = [TrialLine(**vars(one)) for one in (whole, short)]
    text = doctor_text(DoctorResult(exit_code=0, trials=lines, **fields))
    assert text.count(" > 0.0 s") == 1


def test_integer_inputs_and_recurrent_layers_are_said_to_have_no_bounds():
    words = torch.randint(0, 9, (30, 6), generator=torch.Generator().manual_seed(0))
    found = examine_model(Recurrent(), words, weights=["last"])
    assert found.usable
    assert finding(found, "certified bounds").ok is None
    assert "recurrent" in finding(found, "layers").detail


def test_control_flow_on_data_is_named():
    found = examine_model(Deciding(), X, weights=["last"])
    assert finding(found, "layers").ok is None
    assert "cannot trace" in finding(found, "layers").detail


def test_probabilities_are_recognized_and_the_adapter_is_named():
    model = nn.Sequential(small(4, 8, 3), nn.Softmax(1))
    assert "outputs='probabilities'" in finding(examine_model(model, X, weights=[]), "meaning of outputs").detail
    told = examine_model(Classifier(model, outputs="probabilities"), X, weights=[])
    assert all(one.what != "meaning of outputs" for one in told.findings)


@pytest.mark.parametrize(
    ("model", "inputs", "text"),
    [
        (nn.Flatten(), X, "no floating-point parameters"),
        (small(5, 3), X, "cannot run on inputs of shape"),
        (small(4, 3), torch.full((4, 4), torch.nan), "NaN"),
    ],
)
def test_what_cannot_be_repaired_is_a_finding(model, inputs, text):
    found = examine_model(model, inputs)
    assert not found.usable
    assert text in finding(found, "outputs").detail


def test_a_network_that_gives_all_rows_one_class_asks_for_the_scaling():
    model = small(4, 2)
    with torch.no_grad():
        model[-1].bias.copy_(torch.tensor([100.0, 0.0]))
    assert "scaled as in training" in finding(examine_model(model, X, weights=[]), "outputs").detail


def run(capsys, *arguments):
    with pytest.raises(SystemExit) as ended:
        main(["doctor", *map(str, arguments)])
    return ended.value.code, capsys.readouterr()


def test_the_command_takes_a_spec_a_file_of_weights_and_a_function(tmp_path, capsys):
    code, said = run(capsys, write_spec(tmp_path), "--json", "--time-limit", 0.05)
    found = json.loads(said.out)
    assert (code, found["usable"], found["rows"]) == (0, True, 400)
    save_weights(small(4, 8, 3), tmp_path / "w.safetensors")
    code, said = run(capsys, tmp_path / "w.safetensors", "--rows", 1000, "--time-limit", 0.05)
    assert code == 0
    assert "1,000 rows" in said.out
    assert "It can be repaired." in said.out
    code, said = run(capsys, "torch.nn:Flatten", "--shape", "4")
    assert code == 1
    assert "It cannot be repaired as it is." in said.out


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["none.onnx"], "there is no such file"),
        (["rows.csv", "--weights", "weights.safetensors"], "goes with package.module:function"),
        (["layers.safetensors"], "Name the function that builds it"),
        (["rows.csv"], "is no plain state dict"),
        (["repairopt.interfaces.specfile.networks:nothing"], "nothing"),
        (["conv.safetensors"], "Name the function that builds it"),
        (["torch.nn:Identity", "--shape", "three"], "expected whole numbers"),
    ],
)
def test_what_is_no_model_is_a_message(tmp_path, monkeypatch, capsys, arguments, text):
    write_spec(tmp_path)
    save_weights(nn.ModuleDict({"layers": small(4, 3)}), tmp_path / "layers.safetensors")
    save_weights(nn.Sequential(nn.Conv2d(1, 2, 3)), tmp_path / "conv.safetensors")
    monkeypatch.chdir(tmp_path)
    code, said = run(capsys, *arguments)
    assert code == 2
    assert text in said.err


def test_weights_of_linear_layers_are_recognized_whatever_their_order(tmp_path):
    save_weights(small(4, 5, 6, 7, 8, 9, 3), tmp_path / "w.safetensors")  # 10.weight is stored before 2.weight
    entry = model_entry(str(tmp_path / "w.safetensors"), None, tmp_path)
    assert entry["arguments"] == {"sizes": [4, 5, 6, 7, 8, 9, 3]}
    assert entry["weights"] == "w.safetensors"
    with pytest.raises(SpecFileError, match="no such file"):
        model_entry("no", None, tmp_path)


def test_answers_of_many_classes_are_told_in_short():
    detail = finding(examine_model(small(4, 50), X, weights=[]), "outputs").detail
    assert "of 50 classes are given, class" in detail
    assert detail.count("times") <= 3


def exported(network, example, target):
    pytest.importorskip("onnxruntime")
    export_onnx(network, example, target)
    return target


@pytest.mark.parametrize(("shape", "dtype"), [((7,), "float32"), ((2, 3), "float32"), ((5,), "int64")])
def test_rows_of_an_onnx_file_are_drawn_as_it_reads_them(tmp_path, capsys, shape, dtype):
    first = [nn.Embedding(2, 3)] if dtype == "int64" else []
    width = math.prod(shape) * (3 if first else 1)
    network = nn.Sequential(*first, nn.Flatten(), nn.Linear(width, 6), nn.ReLU(), nn.Linear(6, 3))
    file = exported(network, torch.zeros(2, *shape, dtype=getattr(torch, dtype)), tmp_path / "m.onnx")
    for options in ([], ["--shape", ",".join(map(str, shape))]):
        code, said = run(capsys, file, "--time-limit", 0.05, *options)
        assert code == 0, said.out + said.err
        assert "(200, 3), float32" in said.out


def test_a_table_of_embeddings_gets_indices(monkeypatch, capsys):
    table = nn.Sequential(nn.Embedding(9, 2), nn.Flatten(), nn.Linear(8, 2))
    monkeypatch.setattr("torch.nn.Table", lambda: table, raising=False)
    code, said = run(capsys, "torch.nn:Table", "--shape", "4", "--time-limit", 0.05)
    assert code == 0, said.out + said.err
    code, said = run(capsys, "torch.nn:Table")
    assert "the shape of one row is not known" in said.err


@pytest.mark.parametrize("width", [6, 8])
def test_rows_of_another_width_than_an_onnx_file_reads_are_told(tmp_path, width):
    file = exported(small(7, 6, 3), torch.zeros(2, 7), tmp_path / "m.onnx")
    with pytest.raises(ModelError, match=rf"reads '.*' of shape \(N, 7\); got rows of shape \({width},\)"):
        load_onnx(file, torch.zeros(5, width))


@pytest.mark.parametrize(
    ("shape", "row"),
    [("3,12,16", (3, 10, 10)), ("3x9x9", (3, 12, 16)), ("7", (5,)), ("2,3,5", (2, 3, 5)), ("1,8,8", (1, 6, 6))],
)
@pytest.mark.filterwarnings("ignore")
def test_a_shape_shows_an_onnx_file_the_sizes_that_it_leaves_open(tmp_path, capsys, shape, row):
    pytest.importorskip("onnxruntime")
    if len(row) == 1:
        network = nn.Sequential(nn.Embedding(9, 4), Mean(), nn.Linear(4, 2)).eval()
        example = torch.zeros(2, *row, dtype=torch.int64)
    else:
        network = nn.Sequential(
            nn.Conv2d(row[0], 4, 3, padding=1), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 2)
        ).eval()
        example = torch.zeros(2, *row)
    open_sizes = {axis: f"size{axis}" for axis in (0, *range(1 if len(row) == 1 else 2, example.ndim))}
    file = tmp_path / "m.onnx"
    options = {"dynamo": False, "input_names": ["rows"], "dynamic_axes": {"rows": open_sizes}}
    torch.onnx.export(network, (example,), str(file), **options)
    code, said = run(capsys, file, "--time-limit", 0.05)
    assert code == 2
    assert "(of doctor: --shape)" in said.err
    code, said = run(capsys, file, "--time-limit", 0.05, "--shape", shape)
    assert code == 0, said.out + said.err


class Mean(nn.Module):
    def forward(self, rows):
        return rows.mean(1)
