"""Folders and files as people have them: shared, changed, damaged, full, hostile. Each ends in a message."""

from __future__ import annotations

import gzip
import json
import random
import subprocess
import sys

import numpy as np
import pytest
import torch
from small_spec import SPEC, write_spec

from repairopt.errors import PatchError, RepairError, ResultError, SpecFileError
from repairopt.interfaces.commandline.commands import main
from repairopt.interfaces.commandline.runs.run_folder import REPORT, RESULT, RunFolder
from repairopt.interfaces.commandline.runs.show_run import report_folder
from repairopt.interfaces.commandline.runs.solve_run import Options, solve_spec
from repairopt.interfaces.specfile.opened import open_spec
from repairopt.interfaces.specfile.reader import read_spec
from repairopt.patches import check_archive, read_arrays, save_weights

pytestmark = pytest.mark.slow


def run(*arguments):
    with pytest.raises(SystemExit) as ended:
        main([str(one) for one in arguments])
    return ended.value.code


# ------------------------------------------------------------------------------ one process in a folder

HOLDING = """
import sys
from pathlib import Path
from repairopt.interfaces.commandline.runs.run_folder import RunFolder

with RunFolder(Path(sys.argv[1])).working(resume=False, overwrite=False):
    print("held", flush=True)
    sys.stdin.readline()
"""


def test_a_folder_in_which_another_process_works_is_refused_until_it_ends(tmp_path):
    other = subprocess.Popen(
        [sys.executable, "-c", HOLDING, tmp_path / "run"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert other.stdout.readline() == "held\n"
    try:
        with pytest.raises(ResultError, match="another process is at work in it"):
            solve_spec(write_spec(tmp_path), tmp_path / "run", Options(overwrite=True))
    finally:
        other.kill()
        other.communicate()
    solve_spec(tmp_path / "spec.yaml", tmp_path / "run", Options(report=False))


def test_a_finished_run_is_not_resumed_for_other_data_weights_or_seed(tmp_path):
    spec, out = write_spec(tmp_path), tmp_path / "run"
    solve_spec(spec, out, Options(report=False))
    again = solve_spec(spec, out, Options(resume=True))
    assert again.verdict
    with pytest.raises(ResultError, match="was made with another seed"):
        solve_spec(spec, out, Options(resume=True, seed=7))
    rows = tmp_path / "rows.csv"
    rows.write_text(rows.read_text().replace("0.1", "0.2", 1))
    with pytest.raises(ResultError, match="was made with another data"):
        solve_spec(spec, out, Options(resume=True))


def test_an_overwritten_folder_keeps_nothing_of_the_earlier_run(tmp_path):
    spec, out = write_spec(tmp_path), tmp_path / "run"
    solve_spec(spec, out)
    assert (out / "evidence.npz").exists()
    solve_spec(spec, out, Options(overwrite=True, report=False))
    assert not (out / "evidence.npz").exists()
    assert not (out / REPORT).exists()


# ------------------------------------------------------------------------------------ names and texts


@pytest.mark.parametrize("name", ["$a_{b$^", "$", "$$x$$", "5 $ to 9 $ {", r"\frac$a^$", "a$_$b"])
def test_dollar_signs_in_names_are_drawn_as_they_are(tmp_path, name):
    pytest.importorskip("matplotlib")
    write_spec(tmp_path, SPEC.replace("women", f"'{name}'").replace("merit:", "merit:  # $"))
    rows = tmp_path / "rows.csv"
    rows.write_text(rows.read_text().replace("women", name))
    result = solve_spec(tmp_path / "spec.yaml", tmp_path / "run")
    assert "report" in result.files
    assert name in (tmp_path / "run" / REPORT).read_text()


def test_control_characters_of_a_file_do_not_reach_the_terminal(tmp_path, capsys):
    hostile = "\x1b[2J\x9b31m\u202e\rok"
    model = torch.nn.Sequential(torch.nn.Linear(2, 2))
    from repairopt.patches import Patch

    changed = {name: value + 1 for name, value in model.state_dict().items()}
    Patch.between(model.state_dict(), changed, notes=hostile).save(tmp_path / "p.safetensors")
    for options in ([], ["--json"]):
        assert run("show", tmp_path / "p.safetensors", *options) == 0
        shown = capsys.readouterr().out
        assert "ok" in shown
        assert not any(sign in shown for sign in "\x1b\x9b\u202e\r")


# --------------------------------------------------------------------------- changed and damaged files


def leaves(value, path=()):
    for key, item in value.items() if isinstance(value, dict) else enumerate(value[:2]):
        yield (*path, key)
        if isinstance(item, dict | list):
            yield from leaves(item, (*path, key))


def test_a_result_with_any_entry_changed_is_a_message(solved, tmp_path, monkeypatch):
    monkeypatch.setattr("repairopt.report.html_page.draw_gallery", lambda *args: [])  # seconds each, from evidence
    whole = json.loads((solved / "run" / RESULT).read_text())
    (tmp_path / "run").mkdir()
    draw = random.Random(0)
    places = draw.sample([*leaves(whole)], 150)
    refused = 0
    for place in places:
        changed = json.loads(json.dumps(whole))
        at = changed
        for key in place[:-1]:
            at = at[key]
        at[place[-1]] = draw.choice([None, "x", -1, 1e400, [], {}, True, [1], {"a": 1}, "nan"])
        (tmp_path / "run" / RESULT).write_text(json.dumps(changed))
        try:
            report_folder(tmp_path / "run", tmp_path / "page.html")
        except RepairError:
            refused += 1
    assert refused > 50


@pytest.mark.parametrize("damage", ["cut", "empty", "flipped", "text", "other arrays"])
def test_damaged_evidence_is_a_message(solved, tmp_path, damage, capsys):
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / RESULT).write_bytes((solved / "run" / RESULT).read_bytes())
    raw = (solved / "run" / "evidence.npz").read_bytes()
    if damage == "other arrays":
        np.savez(folder / "evidence.npz", tree=np.array('{"class": "Evidence", "rates": 3}'))
    else:
        middle = len(raw) // 2
        bad = {
            "cut": raw[:middle],
            "empty": b"",
            "text": b"hello",
            "flipped": raw[:middle] + bytes([raw[middle] ^ 255]) * 40 + raw[middle + 40 :],
        }
        (folder / "evidence.npz").write_bytes(bad[damage])
    assert run("report", folder) == 2
    assert "evidence" in capsys.readouterr().err


def test_faults_of_the_library_end_with_code_2_and_say_so(monkeypatch, capsys):
    def broken(**options):
        raise ZeroDivisionError("division by zero")

    monkeypatch.setattr("repairopt.interfaces.commandline.runs.solvers_run.list_solvers", broken)
    assert run("solvers") == 2
    assert "ZeroDivisionError: division by zero" in capsys.readouterr().err


def test_a_disk_that_is_full_is_a_message(tmp_path, monkeypatch, capsys):
    def full(*paths):
        raise OSError(28, "No space left on device")

    spec = write_spec(tmp_path)
    monkeypatch.setattr("os.replace", full)
    assert run("solve", spec, "--out", tmp_path / "run", "--no-report") == 2
    assert "No space left on device" in capsys.readouterr().err
    monkeypatch.undo()
    assert solve_spec(spec, tmp_path / "run", Options(resume=True, report=False)).verdict


def test_a_folder_that_cannot_be_written_to_is_a_message(tmp_path, monkeypatch):
    def read_only(*args, **options):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("pathlib.Path.mkdir", read_only)
    with (
        pytest.raises(ResultError, match="cannot be written to .Permission denied"),
        RunFolder(tmp_path / "run").working(resume=False, overwrite=False),
    ):
        pass


# -------------------------------------------------------------------------------------- hostile files


def test_archives_that_unpack_to_far_more_than_they_hold_are_refused(tmp_path):
    zeros = np.zeros(2**27 // 8)
    np.savez_compressed(tmp_path / "a.npz", inputs=zeros)
    with pytest.raises(PatchError, match="unpacks to more than 100 times its size"):
        read_arrays(tmp_path / "a.npz")
    with gzip.open(tmp_path / "a.csv.gz", "wb") as file:
        file.write(b"0,0\n" * 2**25)
    with pytest.raises(PatchError, match="unpacks to more than"):
        check_archive(tmp_path / "a.csv.gz")
    np.savez(tmp_path / "b.npz", inputs=zeros)
    assert read_arrays(tmp_path / "b.npz")["inputs"].shape == zeros.shape
    np.savez_compressed(tmp_path / "c.npz", inputs=zeros[:1000])
    assert read_arrays(tmp_path / "c.npz")["inputs"].shape == (1000,)


@pytest.mark.parametrize("part", ["rows", "weights"])
def test_such_archives_are_refused_in_a_spec_with_its_line(tmp_path, part):
    text = SPEC
    if part == "rows":
        np.savez_compressed(tmp_path / "rows.npz", inputs=np.zeros((2**23, 2)), labels=np.zeros(2**23))
        text = text.replace("rows.csv", "rows.npz")
    else:
        import zipfile

        with zipfile.ZipFile(tmp_path / "w.pt", "w", zipfile.ZIP_DEFLATED) as archive:
            archive.writestr("archive/data/0", bytes(2**27))
        text = text.replace("weights.safetensors", "w.pt")
    write_spec(tmp_path, text)
    with pytest.raises(SpecFileError, match=r"line \d+: .*unpacks to more than 100 times its size"):
        open_spec(tmp_path / "spec.yaml")


def test_an_alias_bomb_and_aliases_in_moderation(tmp_path):
    layers = "".join(f"x{i}: &x{i} [{', '.join([f'*x{i - 1}'] * 9)}]\n" for i in range(1, 9))
    (tmp_path / "bomb.yaml").write_text(f"x0: &x0 [lol]\n{layers}")
    with pytest.raises(SpecFileError, match="aliases written out"):
        read_spec(tmp_path / "bomb.yaml")
    file = write_spec(
        tmp_path,
        SPEC.replace("repair: {file: rows.csv", "repair: {file: &f rows.csv").replace(
            "held_out: {file: rows.csv", "held_out: {file: *f"
        ),
    )
    assert read_spec(file).spec.data["held_out"].file == "rows.csv"


@pytest.mark.parametrize(
    "line",
    [
        "? [a, b]\n: 1",
        "{a: 1}: 2",
        "seed: !!int x",
        "seed: !!float x",
        "x: !!timestamp 2020-99-99",
        "x: 2020-13-45",
        "x: !!binary '***'",
        "x: !!set [a]",
        "x: !!omap {a: 1}",
        "x: !!python/object:os.system [ls]",
        "x: !unknown 1",
        "? &k [1]\n: *k",
        "<<: [1, 2]",
        "<<: 3",
        "x: !!bool maybe",
    ],
)
def test_odd_yaml_is_a_message(tmp_path, line):
    (tmp_path / "odd.yaml").write_text(f"{SPEC}{line}\n")
    with pytest.raises(SpecFileError, match="odd.yaml"):
        read_spec(tmp_path / "odd.yaml")


def test_weights_of_safetensors_that_were_cut_are_a_message(tmp_path):
    save_weights(torch.nn.Linear(2, 2), tmp_path / "w.safetensors")
    write_spec(tmp_path)
    raw = (tmp_path / "weights.safetensors").read_bytes()
    (tmp_path / "weights.safetensors").write_bytes(raw[:-5])
    with pytest.raises(SpecFileError, match="not a whole safetensors file"):
        open_spec(tmp_path / "spec.yaml")
