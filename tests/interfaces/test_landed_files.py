"""Files that repairopt 0.1 wrote are read: a spec, its run with patch, result, log and evidence."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
from small_spec import write_spec

from repairopt.interfaces.commandline.runs.move_run import move_patch
from repairopt.interfaces.commandline.runs.run_folder import read_result
from repairopt.interfaces.commandline.runs.verify_run import verify_patch
from repairopt.report.pictures.evidence import load_evidence
from repairopt.report.repair import write_html

RUN = Path(__file__).parents[1] / "landed" / "run"


def test_result_and_evidence_are_read():
    result = read_result(RUN / "result.json")[0]
    evidence = load_evidence(RUN)
    assert (result.verdict, result.met) == ("repaired", True)
    kinds = {name: len(getattr(evidence, name)) for name in ("rates", "margins", "slacks", "layers", "tables")}
    assert kinds == {"rates": 6, "margins": 3, "slacks": 2, "layers": 2, "tables": 2}
    assert sum(layer.changed for layer in evidence.layers) == result.weights.changed
    assert evidence.progress.goal[0] == pytest.approx(result.claims[0].before)
    assert np.isfinite(evidence.rates[0].low).all()


def test_the_page_has_all_pictures(tmp_path):
    pytest.importorskip("matplotlib", reason="the pictures need the extra 'report'")
    page = write_html(RUN, tmp_path / "page.html").read_text(encoding="utf-8")
    assert page.count("<img") >= 10
    assert "demographic parity difference" in page
    assert "are missing" not in page


@pytest.mark.filterwarnings("ignore:repairopt.specfile:DeprecationWarning")
def test_the_run_is_verified_from_its_files(tmp_path):
    spec = write_spec(tmp_path)
    former = spec.read_text().replace("repairopt.interfaces.specfile.networks", "repairopt.specfile.networks")
    spec.write_text(former)
    shutil.copy(RUN / "weights.safetensors", tmp_path)  # the order of its header is not always the same
    found = verify_patch(spec, RUN / "patch.safetensors")
    assert [line.detail for line in found.checks if line.ok is False] == []
    assert found.sound
    assert found.met
    moved = move_patch(spec, RUN / "patch.safetensors", tmp_path / "repaired.safetensors")
    assert moved.weights == read_result(RUN / "result.json")[0].repaired
