"""The command line: every command run, every error provoked, what --json prints validated against its schema."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from small_spec import SPEC, write_spec

from repairopt.interfaces.commandline.commands import cli, main
from repairopt.interfaces.commandline.runs.results import RESULTS, schema_text
from repairopt.interfaces.specfile.networks import mlp
from repairopt.patches import load_weights, save_weights

jsonschema = pytest.importorskip("jsonschema")
pytestmark = pytest.mark.usefixtures("without_pictures")


@pytest.fixture(scope="module")
def solved(tmp_path_factory) -> Path:
    """A folder with a spec and its finished run in ``run``."""
    folder = tmp_path_factory.mktemp("solved")
    with pytest.raises(SystemExit) as ended:
        main(["solve", str(write_spec(folder)), "--out", str(folder / "run"), "--json"])
    assert ended.value.code == 0
    return folder


@pytest.fixture
def run(capsys):
    """A function that runs a command and gives exit code, stdout and stderr."""

    def of(*arguments: object) -> tuple[int, str, str]:
        capsys.readouterr()
        code: Any = 0
        try:
            main([str(argument) for argument in arguments])
        except SystemExit as ended:
            code = ended.code or 0
        out, err = capsys.readouterr()
        return code, out, err

    return of


@pytest.fixture
def run_json(run):
    """The same with --json: exit code and the object, validated against the schema of its command."""

    def of(*arguments: object) -> tuple[int, dict[str, Any]]:
        code, out, _ = run(*arguments, "--json")
        found = json.loads(out)
        jsonschema.validate(found, json.loads(schema_text(found["command"])))
        assert found["exit_code"] == code
        return code, found

    return of


def test_help_loads_neither_torch_nor_pydantic():
    code = (
        "import sys\nfrom repairopt.interfaces.commandline.commands import main\n"
        "try:\n    main(['--help'])\nexcept SystemExit:\n    pass\n"
        "print([n for n in ('torch', 'numpy', 'pydantic', 'yaml', 'pandas') if n in sys.modules])"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.splitlines()[-1] == "[]"
    assert "Exit codes: 0" in found.stdout


@pytest.mark.parametrize("name", sorted(cli.commands))
def test_every_command_has_help_with_an_example(name, run):
    code, out, _ = run(name, "--help")
    assert code == 0
    assert f"  Example:\n    repairopt {name}" in out
    assert name == "schema" or "--json" in out


def test_check_says_what_does_not_hold(run, run_json, folder):
    code, out, _ = run("check", folder / "spec.yaml")
    assert code == 1
    assert "NOT MET   gap(group" in out
    code, found = run_json("check", folder / "spec.yaml", "--patch", folder / "run/patch.safetensors")
    assert (code, found["met"]) == (0, True)
    assert found["rows"]["repair"] == 400
    assert set(found["accuracy"]) == set(found["rows"])
    assert "Accuracy: repair " in out
    assert "worse than one label" not in out


def test_check_says_where_columns_or_classes_may_be_swapped(run, folder):
    text = (folder / "spec.yaml").read_text(encoding="utf-8")
    swapped = text.replace('classes: ["no", "yes"]', 'classes: ["yes", "no"]')
    assert swapped != text
    (folder / "swapped.yaml").write_text(swapped, encoding="utf-8")
    _, out, _ = run("check", folder / "swapped.yaml")
    assert "worse than one label for all rows" in " ".join(out.split())


def test_solve_writes_patch_result_and_log(solved, run_json):
    result = json.loads((solved / "run/result.json").read_text())
    jsonschema.validate(result, json.loads(schema_text("solve")))
    assert result["verdict"] == "repaired"
    assert {"patch.safetensors", "result.json", "audit.jsonl"} <= {p.name for p in (solved / "run").iterdir()}
    assert not list((solved / "run").glob("*checkpoint*"))
    assert all(Path(path).is_file() for path in result["files"].values())
    assert set(result["inputs"]) == {"rows.csv", "weights.safetensors"}


def test_a_bound_that_cannot_be_met_is_exit_code_1(run_json, tmp_path):
    spec = write_spec(tmp_path, SPEC.replace("max_change <= 2", "max_change <= 0.001"))
    options = ("--out", tmp_path / "run", "--seed", 3, "--solver", "piqp", "--no-report")
    code, found = run_json("solve", spec, *options)
    assert code == 1
    assert not found["met"]
    assert found["seed"] == 3
    assert "report" not in found["files"]
    assert not (tmp_path / "run/report.html").exists()


def test_apply_and_revert_are_exact(run_json, folder):
    patch, spec = folder / "run/patch.safetensors", folder / "spec.yaml"
    code, found = run_json("apply", spec, patch, "--out", folder / "new.safetensors")
    assert (code, found["weights"]) == (0, json.loads((folder / "run/result.json").read_text())["repaired"])
    code, _ = run_json(
        "revert", spec, patch, "--weights", folder / "new.safetensors", "--out", folder / "old.safetensors"
    )
    assert code == 0
    old, first = load_weights(folder / "old.safetensors"), load_weights(folder / "weights.safetensors")
    assert all(torch.equal(old[name], value) for name, value in first.items())
    code, found = run_json("apply", spec, patch, "--out", folder / "new.pt")
    state = torch.load(folder / "new.pt", weights_only=True)
    assert all(torch.equal(state[name], value) for name, value in load_weights(folder / "new.safetensors").items())


def test_show_solvers_and_schema(run, run_json, folder):
    _, found = run_json("show", folder / "run/patch.safetensors")
    assert found["changes"][0]["names"] == ["2.weight"]
    assert "content" in run("show", folder / "run/patch.safetensors")[1]
    _, found = run_json("solvers")
    lines = {line["name"]: line for line in found["solvers"]}
    assert lines["daqp"]["installed"]
    assert lines["gurobi"]["licensed"] is None
    assert "daqp" in run("solvers", "--test")[1]
    assert json.loads(run("schema")[1])["title"] == "Spec"
    assert "gap" in run("schema", "--language")[1]
    for name in RESULTS:
        jsonschema.Draft202012Validator.check_schema(json.loads(run("schema", name)[1]))


def test_the_schema_of_specs_takes_the_spec_and_refuses_others(folder):
    import yaml

    schema = json.loads(schema_text())
    spec = yaml.safe_load((folder / "spec.yaml").read_text())
    jsonschema.validate(spec, schema)
    for wrong in (
        {**spec, "desing": 1},
        {**spec, "change": {"minimize": "l3"}},
        {k: spec[k] for k in ("data", "goal")},
    ):
        with pytest.raises(jsonschema.ValidationError):
            jsonschema.validate(wrong, schema)


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-20])


def spec_of(folder: Path, old: str, new: str) -> Path:
    path = folder / "spec.yaml"
    assert old in path.read_text()
    path.write_text(path.read_text().replace(old, new))
    return path


ROWS = """goal: gap(group, favorable="yes", kind=parity) <= 0.1
bounds:
  - recall("yes") >= 0.6
  - flips(guard) <= 3
"""
ERRORS = {
    "no spec": (lambda f: ["check", f / "no.yaml"], "cannot be read (No such file"),
    "list and file": (lambda f: ["compare", "--list", f / "spec.yaml"], "--list lists all that can run and takes no"),
    "bad YAML": (lambda f: ["check", spec_of(f, "label: {", "label: {]")], "no valid YAML"),
    "unknown key": (lambda f: ["check", spec_of(f, "change:", "chance:")], "did you mean 'change'?"),
    "wrong column": (lambda f: ["check", spec_of(f, "merit:", "merits:")], "did you mean 'merit'?"),
    "missing data": (lambda f: ["check", spec_of(f, "rows.csv", "row.csv")], "did you mean 'rows.csv'?"),
    "bad bound": (lambda f: ["check", spec_of(f, "recall(", "recal(")], "did you mean 'recall'?"),
    "no goal": (lambda f: ["solve", spec_of(f, ROWS, "bounds:\n"), "--out", f / "new"], "has no goal, and no bound"),
    "unknown solver": (
        lambda f: ["solve", f / "spec.yaml", "--out", f / "new", "--solver", "cplx"],
        "No solver is called 'cplx'",
    ),
    "more layers than there are": (
        lambda f: ["solve", spec_of(f, "layers: last", "layers: last7"), "--out", f / "new"],
        "has 2 linear and convolutional layers",
    ),
    "unknown layer": (
        lambda f: ["solve", spec_of(f, "layers: last", "layers: fc9"), "--out", f / "new"],
        "no layer or parameter is called",
    ),
    "no such column to change": (
        lambda f: ["solve", spec_of(f, "layers: last", "columns: grup"), "--out", f / "new"],
        "did you mean 'group'?",
    ),
    "folder in use": (lambda f: ["solve", f / "spec.yaml", "--out", f / "run"], "the result of an earlier run"),
    "folder is a file": (lambda f: ["solve", f / "spec.yaml", "--out", f / "rows.csv"], "is a file"),
    "result of another spec": (
        lambda f: ["solve", spec_of(f, "<= 0.1\n", "<= 0.2\n"), "--out", f / "run", "--resume"],
        "result.json': was made with another spec",
    ),
    "no time": (lambda f: ["solve", f / "spec.yaml", "--out", f / "x", "--time-limit", "0"], "Invalid value"),
    "no out": (lambda f: ["solve", f / "spec.yaml"], "Missing option '--out'"),
    "no such command": (lambda f: ["slove"], "No such command 'slove'"),
    "no such patch": (lambda f: ["verify", f / "spec.yaml", "--patch", f / "no"], "no such file"),
    "patch is a pickle": (
        lambda f: [
            torch.save({}, f / "p.safetensors"),
            "apply",
            f / "spec.yaml",
            f / "p.safetensors",
            "--out",
            f / "x.safetensors",
        ][1:],
        "whose pickle can run any code",
    ),
    "truncated patch": (
        lambda f: [
            cut(f / "run/patch.safetensors"),
            "apply",
            f / "spec.yaml",
            f / "run/patch.safetensors",
            "--out",
            f / "x.safetensors",
        ][1:],
        "cut short",
    ),
    "wrong base": (
        lambda f: [
            save_weights(mlp([2, 4, 2]), f / "weights.safetensors"),
            "apply",
            f / "spec.yaml",
            f / "run/patch.safetensors",
            "--out",
            f / "x.safetensors",
        ][1:],
        "the patch does not fit",
    ),
    "reverted from the base": (
        lambda f: ["revert", f / "spec.yaml", f / "run/patch.safetensors", "--out", f / "x.safetensors"],
        "Give the repaired weights by --weights",
    ),
    "kind of file": (
        lambda f: ["apply", f / "spec.yaml", f / "run/patch.safetensors", "--out", f / "x.bin"],
        "expected .safetensors, .onnx",
    ),
    "file exists": (
        lambda f: ["apply", f / "spec.yaml", f / "run/patch.safetensors", "--out", f / "weights.safetensors"],
        "exists. Use --overwrite",
    ),
    "no folder to report": (lambda f: ["report", f / "no"], "there is no such folder"),
    "no result to report": (lambda f: ["report", f], "cannot be read"),
    "no such schema": (lambda f: ["schema", "solv"], "did you mean 'solve'?"),
}


@pytest.mark.parametrize("name", ERRORS)
def test_every_error_is_a_message_and_exit_code_2(name, run, folder):
    make, message = ERRORS[name]
    code, out, err = run(*make(folder))
    assert code == 2
    assert message in err
    assert out == ""
    assert "Traceback" not in err


@pytest.mark.parametrize("name", ["no spec", "no out", "unknown solver", "wrong base"])
def test_errors_are_json_where_that_is_asked_for(name, run_json, folder):
    make, message = ERRORS[name]
    code, found = run_json(*make(folder))
    assert (code, found["command"]) == (2, "error")
    assert message in found["message"]


@pytest.mark.slow
def test_demo_ends_by_naming_its_files(run, run_json, tmp_path):
    code, found = run_json("demo", "--out", tmp_path / "demo")
    assert (code, found["verdict"]) == (0, "repaired")
    assert {"data", "weights", "spec", "patch", "result", "audit"} <= set(found["files"])
    assert all(Path(path).is_file() for path in found["files"].values())
    code, out, _ = run("verify", found["files"]["spec"], "--patch", found["files"]["patch"])
    assert code == 0
    assert "Nothing that was checked is misstated. Checked: patch, spec, base, weights, changes, claims" in out
    assert "Not checked: signature." in " ".join(out.split())
    assert run("demo", "--out", tmp_path / "demo")[0] == 2


@pytest.mark.slow
def test_an_onnx_classifier_on_a_csv_file_becomes_a_repaired_onnx_file(run, run_json, folder):
    pytest.importorskip("onnxscript")
    onnx = pytest.importorskip("onnxruntime")
    model = torch.nn.Sequential(mlp([2, 4, 2]), torch.nn.Softmax(-1)).eval()
    model[0].load_state_dict(load_weights(folder / "weights.safetensors"))
    from repairopt.patches import export_onnx

    export_onnx(model, torch.randn(4, 2), folder / "model.onnx")
    start = SPEC.split("data:")[0]
    spec = spec_of(folder, start, "model: {onnx: model.onnx}\n")
    code, found = run_json("solve", spec, "--out", folder / "run", "--overwrite", "--no-report")
    assert code == 0
    code, _ = run_json("apply", spec, found["files"]["patch"], "--out", folder / "new.onnx")
    session = onnx.InferenceSession(str(folder / "new.onnx"), providers=["CPUExecutionProvider"])
    outputs = session.run(None, {session.get_inputs()[0].name: torch.randn(5, 2).numpy()})[0]
    assert outputs.sum(1) == pytest.approx(1.0)  # the softmax of the file is there again


@pytest.mark.parametrize(
    ("old", "new", "text"),
    [
        ("watch:", "solver: gurobbi\nwatch:", "gurobbi"),
        ("layers: last", "layers: lats", "lats"),
        ("layers: last", "layers: [last, 9.weight]", "9.weight"),
        ("layers: last", "columns: grup", "did you mean 'group'?"),
        ("watch:", "method: sqq\nwatch:", "sqq"),
        ("layers: last", "layers: last9", "linear and convolutional layers"),
    ],
)
def test_check_looks_at_what_the_repair_would_use(run, folder, old, new, text):
    code, _, err = run("check", spec_of(folder, old, new))
    assert code == 2
    assert text in err
