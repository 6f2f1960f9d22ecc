"""The examples run as scripts, and print what they promise."""

from __future__ import annotations

import json
from importlib.util import find_spec
from pathlib import Path

import pytest
from scripts import run_script

EXAMPLES = Path(__file__).resolve().parents[1] / "examples"
EACH_HALF = {"gap_before", "gap_after", "accuracy_before", "accuracy_after"}
ALTOGETHER = {"weights", "constraints_used", "seconds", "cpu_seconds", "method", "status", "verdict"}


def run(script: str, *options: str, data: Path | None = None) -> str:
    environment = {} if data is None else {"REPAIROPT_DATA": str(data)}
    return run_script(EXAMPLES / script, *options, environment=environment)


@pytest.mark.slow
def test_digits_are_repaired_without_breaking_a_guard():
    found = json.loads(run("digits_failures.py", "--json", "--steps", "5"))
    assert found["verdict"] == "repaired"
    before, after = found["figures"]["original"], found["figures"]["repair, last layer"]
    assert before["efficacy"] == 0
    assert after["efficacy"] == 1
    assert after["broken_guards"] == 0
    assert after["generalization"] > 0.6
    assert after["drawdown"] < 0.02
    assert after["accuracy_rotated"] > before["accuracy_rotated"] + 0.15


@pytest.mark.slow
def test_a_patch_is_shipped_and_taken_back(tmp_path):
    found = json.loads(run("patch_and_revert.py", "--json", "--folder", str(tmp_path)).splitlines()[-1])
    assert found["verdict"] == "repaired"
    assert found["applied_exactly"]
    assert found["reverted_exactly"]
    assert "6 differ: '0.weight'" in found["refused"]
    assert found["conflicts"]
    assert set(found["lora_ranks"]) == {"4"}
    assert found["onnx_difference"] < 1e-4
    assert {path.name for path in tmp_path.iterdir()} == {"adapter", "audit.jsonl", "gap.safetensors", "model.onnx"}
    assert len((tmp_path / "audit.jsonl").read_text().splitlines()) == found["log_lines"]


@pytest.mark.slow
def test_a_page_is_written_and_written_again_from_its_folder(tmp_path):
    pytest.importorskip("matplotlib", reason="the pictures need the extra 'report'")
    picture = tmp_path / "picture.png"
    said = run("report_page.py", "--folder", str(tmp_path / "out"), "--picture", str(picture))
    assert "the same from the folder: True" in said
    assert picture.read_bytes().startswith(b"\x89PNG")
    assert {path.name for path in (tmp_path / "out").iterdir()} == {
        *("report.html", "again.html", "evidence.npz", "result.json"),
    }


@pytest.mark.slow
def test_a_repair_is_logged_to_whatever_tracker_is_there(tmp_path):
    found = json.loads(run("track_repair.py", "--json", "--folder", str(tmp_path)).splitlines()[-1])
    assert found["list"]["rounds"] > 1
    assert found["list"]["metrics"]["repair/group gap/repair/after"] <= 0.05
    for name in ("tensorboard", "mlflow"):
        if find_spec(name) is None:
            assert found[name] == "skipped: not installed"
        else:
            assert found[name]["files"] >= 1, name
            assert found[name]["rounds"] == found["list"]["rounds"]


def test_every_example_is_in_percent_format_and_run_by_a_test():
    tests = "".join(path.read_text(encoding="utf-8") for path in Path(__file__).parent.rglob("test_*.py"))
    for path in sorted(EXAMPLES.glob("*.py")):
        if path.stem == "real_networks":  # what two of them share
            continue
        assert path.read_text(encoding="utf-8").startswith("# %% [markdown]\n# # "), path.name
        assert path.name in tests or f"import {path.stem}" in tests, path.name


@pytest.mark.slow
@pytest.mark.data
@pytest.mark.parametrize(("script", "target"), [("census_fairness.py", 0.07), ("bank_fairness.py", 0.02)])
def test_real_networks_are_repaired(script, target, data_dir):
    found = json.loads(run(script, "--json", data=data_dir))
    here, there = found["repair"], found["held_out"]
    assert set(found) >= ALTOGETHER
    assert set(here) == set(there) >= EACH_HALF
    assert found["verdict"] == "repaired"
    assert here["gap_after"] <= target + 1e-6
    assert there["gap_after"] < there["gap_before"]
    assert there["accuracy_after"] > there["accuracy_before"] - 0.01


@pytest.mark.parametrize("script", ["census_fairness.py", "bank_fairness.py"])
def test_missing_data_are_named(script, tmp_path):
    with pytest.raises(SystemExit, match="REPAIROPT_DATA"):  # a text on the error stream and exit code 1
        run(script, data=tmp_path)
