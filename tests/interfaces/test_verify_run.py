"""repairopt verify: in a fresh process, without the code that solves; whatever was tampered with is found."""

from __future__ import annotations

import copy
import json
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from small_spec import SPEC, write_spec

from repairopt.interfaces.commandline.runs.run_folder import RESULT
from repairopt.interfaces.commandline.runs.solve_run import Options, solve_spec
from repairopt.interfaces.commandline.runs.verify_run import check_spec_file, verify_patch
from repairopt.interfaces.specfile.measure import measure_claims
from repairopt.interfaces.specfile.opened import open_spec
from repairopt.patches import Patch

SOLVING = ("pipeline", "solve", "solving", "methods", "sqp", "surrogate", "linearize", "localize", "judge", "evaluate")


def verify(folder: Path, **options):
    return verify_patch(folder / "spec.yaml", folder / "run/patch.safetensors", **options)


def failed(folder: Path, **options) -> dict[str, str]:
    found = verify(folder, **options)
    assert found.exit_code == 1
    assert not found.sound
    return {line.what: line.detail for line in found.checks if line.ok is False}


def forge(folder: Path, change) -> None:
    """A patch with other claims, whose hashes fit, as someone would make it who knows the format."""
    path = folder / "run/patch.safetensors"
    patch = Patch.load(path)
    claims = [dict(claim) for claim in patch.info.claims]
    change(claims)
    Patch(patch.changes, patch.base, patch.repaired, patch.ties, replace(patch.info, claims=claims)).save(path)


def test_an_honest_run_is_sound(folder):
    found = verify(folder, strict=False)
    assert (found.exit_code, found.sound, found.met) == (0, True, True)
    assert [line.what for line in found.checks if line.ok is not True] == ["signature"]
    assert len(found.checks) >= 9  # and the report, where its library is installed


def test_a_fresh_process_uses_none_of_the_code_that_solves(folder):
    code = (
        "import sys\nfrom repairopt.interfaces.commandline.commands import main\n"
        "try:\n    main(sys.argv[1:])\nexcept SystemExit as ended:\n    print('code', ended.code)\n"
        "print([m for m in sys.modules if m.startswith('repairopt.') and m.split('.')[1] in " + repr(SOLVING) + "])"
    )
    command = ["verify", str(folder / "spec.yaml"), "--patch", str(folder / "run/patch.safetensors")]
    found = subprocess.run([sys.executable, "-c", code, *command], capture_output=True, text=True, check=True)
    assert found.stdout.splitlines()[-2:] == ["code 0", "[]"]


def test_the_patch_alone_is_enough(folder, tmp_path):
    shutil.copy(folder / "run/patch.safetensors", tmp_path / "alone.safetensors")
    found = verify_patch(folder / "spec.yaml", tmp_path / "alone.safetensors")
    assert found.exit_code == 0
    assert [line.what for line in found.checks if line.ok is None] == ["result.json", "audit.jsonl", "signature"]


@pytest.mark.parametrize("place", [9, 200, -1])
def test_a_changed_byte_of_the_patch_is_found(folder, place):
    path = folder / "run/patch.safetensors"
    raw = bytearray(path.read_bytes())
    raw[place] ^= 1
    path.write_bytes(raw)
    assert "patch" in failed(folder)


def test_a_truncated_patch_is_found(folder):
    path = folder / "run/patch.safetensors"
    path.write_bytes(path.read_bytes()[:-8])
    assert "cut short" in failed(folder)["patch"]


def test_a_forged_claim_is_found_though_its_hash_fits(folder):
    forge(folder, lambda claims: claims[0].update(value=0.001))
    found = failed(folder)
    assert "states value 0.001, recomputed" in found["claims of the patch"]
    assert "names another patch" in found["result.json"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda claims: claims.pop(), "is missing"),
        (lambda claims: claims.append({**claims[0], "text": "accuracy >= 0.99"}), "is not of the spec"),
        (lambda claims: claims.insert(0, dict(claims[0], value=0.0)), "a claim is stated twice"),
        (lambda claims: claims[0].update(high=0.0), "states high 0.0"),
        (lambda claims: claims[0].update(bound="<= 0.5"), "states bound '<= 0.5'"),
    ],
)
def test_claims_left_out_added_doubled_or_changed_are_found(folder, change, message):
    forge(folder, change)
    assert message in failed(folder)["claims of the patch"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda r: r["claims"][1].update(value=0.99), "states value 0.99"),
        (lambda r: r.update(met=False), "says met: False"),
        (lambda r: r.update(patch="0" * 64), "names another patch"),
        (lambda r: r["inputs"].update({"rows.csv": "0" * 64}), "'rows.csv' is not the file it was"),
        (lambda r: r.update(spec_hash="0" * 64), "is of another spec"),
        (lambda r: r.update(extra=1), "is not what solve writes"),
    ],
)
def test_a_tampered_result_is_found(folder, change, message):
    path = folder / "run" / RESULT
    result = json.loads(path.read_text())
    change(result)
    path.write_text(json.dumps(result))
    found = failed(folder)
    assert message in found["result.json"]


def test_a_harmless_looking_edit_of_the_result_is_found_by_the_log(folder):
    path = folder / "run" / RESULT
    path.write_text(path.read_text().replace('"seed": 0', '"seed": 1', 1))
    assert "was changed or is of another run" in failed(folder)["audit.jsonl"]


def test_a_broken_chain_is_found(folder):
    path = folder / "run/audit.jsonl"
    lines = path.read_text().splitlines(keepends=True)
    path.write_text("".join(lines[:2] + lines[3:]))
    assert "does not follow the line before" in failed(folder)["audit.jsonl"]


def test_a_claim_that_does_not_hold_on_other_data_is_found(folder):
    """The file that the spec names was exchanged after the repair."""
    path = folder / "rows.csv"
    path.write_text(path.read_text().replace("women", "other").replace("men", "women").replace("other", "men"))
    found = failed(folder)
    assert "recomputed" in found["claims of the patch"]
    assert "'rows.csv' is not the file it was" in found["result.json"]


def test_another_spec_other_weights_and_another_hash_are_found(folder):
    assert "has content hash" in failed(folder, expected_hash="0" * 64)["patch"]
    spec = folder / "spec.yaml"
    spec.write_text(SPEC.replace("<= 0.1\n", "<= 0.3\n"))
    assert "made for another spec" in failed(folder)["spec"]
    shutil.copy(write_other_weights(folder), folder / "weights.safetensors")
    assert "does not fit" in failed(folder)["base"]


def write_other_weights(folder: Path) -> Path:
    from repairopt.interfaces.specfile.networks import mlp
    from repairopt.patches import save_weights

    save_weights(mlp([2, 4, 2]), folder / "other.safetensors")
    return folder / "other.safetensors"


def test_a_true_claim_that_is_not_met_is_sound_but_exit_code_1(tmp_path):
    spec = write_spec(tmp_path, SPEC.replace("max_change <= 2", "max_change <= 0.001"))
    solve_spec(spec, tmp_path / "run", Options(report=False))
    found = verify(tmp_path)
    assert found.sound
    assert (found.met, found.exit_code) == (False, 1)


@pytest.mark.parametrize("given", ["yes", "no"])
@pytest.mark.parametrize(
    "goal", ["gap(group) <= 0.1", "gap(decision) <= 0.1", "flip_rate(guard) <= 1", "max_change <= 99"]
)
def test_a_network_that_answers_all_alike_is_not_met_by_any_command(tmp_path, given, goal):
    """The verdict of a repair would be VIOLATED; check and verify say the same of its patch."""
    head, _, _ = SPEC.partition("goal: ")
    text = f"{head}bounds:\n  - {goal}\n"
    spec = open_spec(write_spec(tmp_path, text))
    flat = copy.deepcopy(spec.model)
    with torch.no_grad():
        list(flat.parameters())[-1].add_(torch.tensor([-50.0, 50.0]) * (1 if given == "yes" else -1))
    claims = [claim.model_dump(mode="json") for claim in measure_claims(spec, flat)]
    patch = tmp_path / "patch.safetensors"
    Patch.between(spec.model, flat, spec_hash=spec.file.hash, claims=claims).save(patch)
    for found in (verify_patch(tmp_path / "spec.yaml", patch), check_spec_file(tmp_path / "spec.yaml", patch=patch)):
        assert all(claim.met is not False for claim in found.claims)
        assert (found.exit_code, found.met, found.constant) == (1, False, True)
    assert not check_spec_file(tmp_path / "spec.yaml").constant


@pytest.mark.parametrize("gone", ["evidence.npz", "report.html"])
def test_a_file_that_the_run_wrote_and_is_gone_is_named(folder, gone):
    (folder / "run" / gone).unlink(missing_ok=True)
    lines = {line.what: line.ok for line in verify(folder).checks}
    assert lines.get(gone, "not written") in (None, "not written")
    if gone == "evidence.npz":
        assert lines[gone] is None
