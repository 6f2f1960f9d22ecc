"""Bounds as tests: assert_bounds, and the option of the pytest plug-in."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml
from nested_pytest import run_nested
from small_spec import SPEC

from repairopt.interfaces.specfile.opened import open_spec
from repairopt.interfaces.testing import assert_bounds
from repairopt.patches import Patch


def run_pytest(folder: Path, *options: str) -> tuple[int, str]:
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *options]
    found = subprocess.run(command, cwd=folder, capture_output=True, text=True)
    return found.returncode, found.stdout + found.stderr


def test_assert_bounds_shows_the_table_of_claims(solved):
    with pytest.raises(AssertionError) as caught:
        assert_bounds(None, solved / "spec.yaml")
    assert str(caught.value).startswith('not met: gap(group, favorable="yes", kind=parity) <= 0.1\n')
    assert 'met       recall("yes") on repair' in str(caught.value)


def test_assert_bounds_takes_the_repaired_network_and_leaves_it_alone(solved, fingerprint):
    original = open_spec(solved / "spec.yaml").model
    repaired = Patch.load(solved / "run/patch.safetensors").apply(original).train()
    before = fingerprint(repaired)
    claims = assert_bounds(repaired, solved / "spec.yaml")
    assert fingerprint(repaired) == before
    assert {claim.met for claim in claims if claim.role != "watch" and claim.data != "held_out"} == {True}


def test_assert_bounds_takes_a_dict(solved, monkeypatch):
    monkeypatch.chdir(solved)
    content = yaml.safe_load(SPEC)
    del content["goal"]
    assert len(assert_bounds(None, content)) >= 3


def test_strict_counts_held_out_rows(solved):
    torch.manual_seed(0)
    content = yaml.safe_load(SPEC)
    content["bounds"] = ['recall("yes") >= 0.83']  # .8235 on the repair rows, .8558 on the others
    content["data"]["repair"], content["data"]["held_out"] = content["data"]["held_out"], content["data"]["repair"]
    for entry in content["data"].values():
        entry["file"] = str(solved / "rows.csv")
    content["model"]["weights"] = str(solved / "weights.safetensors")
    del content["goal"]
    assert_bounds(None, content)
    with pytest.raises(AssertionError, match="recall"):
        assert_bounds(None, content, strict=True)


@pytest.mark.slow
def test_every_bound_is_a_test(solved):
    code, text = run_pytest(solved, "--repairopt-spec", "spec.yaml")
    assert code == 1
    assert "1 failed, 3 passed" in text
    assert "NOT MET   gap(group" in text
    assert "Traceback" not in text
    patched = ("--repairopt-spec", "spec.yaml", "--repairopt-patch", "run/patch.safetensors", "--repairopt-strict")
    code, text = run_nested(solved, *patched)
    assert (code, "6 passed" in text) == (0, True)


@pytest.mark.slow
def test_a_spec_that_cannot_be_read_is_an_error_of_usage(solved, tmp_path):
    code, text = run_nested(solved, "--repairopt-spec", "no.yaml")
    assert (code, "there is no such file" in text) == (4, True)
    (tmp_path / "spec.yaml").write_text("desing: 1\n")
    code, text = run_nested(tmp_path, "--repairopt-spec", "spec.yaml")
    assert (code, "line 1: unknown key 'desing'" in text) == (4, True)


def test_the_plug_in_loads_nothing_heavy():
    code = "import sys, repairopt.interfaces.pytest_plugin\n"
    code += "print([n for n in ('torch', 'pydantic', 'numpy') if n in sys.modules])"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"
