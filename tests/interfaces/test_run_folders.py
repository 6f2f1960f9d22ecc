"""Folders and files as people have them: shared, changed, damaged, full, hostile. Each ends in a message."""

from __future__ import annotations

import contextlib
import gzip
import io
import json
import os
import pickle
import random
import re
import shutil
import stat
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from forked import Fork
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


def test_a_folder_in_which_another_process_works_is_refused_until_it_ends(tmp_path, monkeypatch):
    spec = write_spec(tmp_path)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "link").symlink_to("run")
    with Fork(HOLDING, tmp_path / "run") as other:  # whose lock ends with it
        assert other.stdout.readline() == "held\n"
        for out in (tmp_path / "run", Path("run"), Path("link"), tmp_path / "link" / ".." / "run"):
            for options in (Options(), Options(overwrite=True), Options(resume=True)):
                with pytest.raises(ResultError, match="another process is at work in it"):
                    solve_spec(spec, out, options)
    solve_spec(spec, tmp_path / "run", Options(report=False))


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    folder = tmp_path_factory.mktemp("finished")
    solve_spec(write_spec(folder), folder / "run", Options(report=False))
    return folder


def other_rows(folder):
    rows = folder / "rows.csv"
    rows.write_text(rows.read_text().replace("0.1", "0.2", 1))


def other_weights(folder):
    save_weights(torch.nn.Sequential(torch.nn.Linear(2, 4), torch.nn.ReLU(), torch.nn.Linear(4, 2)), folder / "new")
    (folder / "new").replace(folder / "weights.safetensors")


def other_text(before, after):
    def change(folder):
        text = (folder / "spec.yaml").read_text()
        assert before in text
        (folder / "spec.yaml").write_text(text.replace(before, after))

    return change


@pytest.mark.parametrize(
    ("change", "options", "message"),
    [
        (lambda folder: None, {"seed": 7}, "was made with another seed"),
        (lambda folder: None, {"solver": "highs"}, "was made with another solver"),
        (other_rows, {}, "was made with another data"),
        (other_weights, {}, "was made with another weights"),
        (other_text("kind=parity) <= 0.1", "kind=parity) <= 0.2"), {}, "was made with another spec"),
        (other_text("layers: last", "layers: all"), {}, "was made with another spec"),
        (other_text('"400:800"', '"400:799"'), {}, "was made with another spec"),
        (lambda folder: (folder / "run" / RESULT).write_text("{}"), {}, "is not what solve writes"),
    ],
    ids=["seed", "solver", "rows", "weights", "target", "layers", "held-out rows", "damaged result"],
)
def test_a_finished_run_is_resumed_for_the_same_task_alone(finished, tmp_path, change, options, message):
    shutil.copytree(finished, tmp_path, dirs_exist_ok=True)
    assert solve_spec(tmp_path / "spec.yaml", tmp_path / "run", Options(resume=True)).verdict
    change(tmp_path)
    with pytest.raises(ResultError, match=message):
        solve_spec(tmp_path / "spec.yaml", tmp_path / "run", Options(resume=True, **options))


@pytest.mark.usefixtures("without_pictures")
def test_an_overwritten_folder_keeps_nothing_of_the_earlier_run(tmp_path):
    spec, out = write_spec(tmp_path), tmp_path / "run"
    solve_spec(spec, out)
    assert (out / "evidence.npz").exists()
    solve_spec(spec, out, Options(overwrite=True, report=False))
    assert not (out / "evidence.npz").exists()
    assert not (out / REPORT).exists()


# ------------------------------------------------------------------------------------ names and texts


@pytest.mark.parametrize("names", [("$a_{b$^", "5 $ to 9 $ {"), (r"\frac$a^$", "$$x$$")])
def test_dollar_signs_in_names_are_drawn_as_they_are(tmp_path, names):
    pytest.importorskip("matplotlib")
    first, second = names
    given = SPEC.replace("[women, men]", f"['{first}', '{second}']").replace("merit:", "merit:  # $")
    write_spec(tmp_path, given)
    rows = tmp_path / "rows.csv"
    rows.write_text(rows.read_text().replace("women", first).replace("men", second))
    result = solve_spec(tmp_path / "spec.yaml", tmp_path / "run")
    assert "report" in result.files
    page = (tmp_path / "run" / REPORT).read_text()
    assert first in page
    assert second in page


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


LIMITED = """
import resource, signal, sys
from repairopt.interfaces.commandline.commands import main

signal.signal(signal.SIGXFSZ, signal.SIG_IGN)  # the write fails instead
sys.dont_write_bytecode = True  # compiled modules would be cut too
for size, run in ((0, sys.argv[2]), (3_000, sys.argv[3])):
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, resource.RLIM_INFINITY))
    try:
        main(["solve", sys.argv[1], "--out", run, "--quiet", "--no-report"])
    except SystemExit as ended:
        print(ended.code, file=sys.stderr)
"""


def test_files_that_cannot_grow_are_a_message_and_the_run_goes_on_elsewhere(finished, tmp_path):
    """Files of no byte cut the lock, those of 3,000 the result."""
    shutil.copytree(finished, tmp_path, dirs_exist_ok=True, ignore=shutil.ignore_patterns("run"))
    runs = [tmp_path / name for name in ("lock", "result")]
    with Fork(LIMITED, tmp_path / "spec.yaml", *runs) as limited:
        said = limited.stderr.read()
        assert limited.wait() == 0
    assert len(re.findall(r"^.*File too large.*\n2$", said, flags=re.MULTILINE)) == 2, said
    assert "Traceback" not in said
    assert "Warning" not in said
    for run in runs:
        assert solve_spec(tmp_path / "spec.yaml", run, Options(resume=True, report=False)).verdict


@pytest.mark.parametrize(
    "command", [["solvers"], ["schema"], ["show", "patch"], ["solve", "--help"], ["check", "spec"]]
)
def test_output_that_cannot_be_written_is_a_message(finished, monkeypatch, capsys, command):
    known = {"patch": finished / "run" / "patch.safetensors", "spec": finished / "spec.yaml"}
    full = open("/dev/full", "w", encoding="utf-8")  # noqa: SIM115 (what is left in its buffer has nowhere to go)
    monkeypatch.setattr(sys, "stdout", full)
    assert run(*[known.get(one, one) for one in command]) == 2
    monkeypatch.undo()
    with contextlib.suppress(OSError):
        full.close()
    assert capsys.readouterr().err == "repairopt: standard output: No space left on device.\n"


@pytest.mark.parametrize("place", ["rows.csv", "rows.csv/run", "dangling", "a" * 300, "null", "pipe"])
def test_what_is_no_folder_is_a_message(finished, tmp_path, place):
    shutil.copytree(finished, tmp_path, dirs_exist_ok=True)
    (tmp_path / "dangling").symlink_to(tmp_path / "nowhere")
    (tmp_path / "null").symlink_to("/dev/null")
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(ResultError, match="expected the name of a folder|cannot be written to"):
        solve_spec(tmp_path / "spec.yaml", tmp_path / place, Options(report=False))


def test_a_folder_that_cannot_be_written_to_is_a_message(tmp_path, monkeypatch):
    def read_only(*args, **options):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("pathlib.Path.mkdir", read_only)
    with (
        pytest.raises(ResultError, match="cannot be written to .Permission denied"),
        RunFolder(tmp_path / "run").working(resume=False, overwrite=False),
    ):
        pass


@pytest.mark.usefixtures("without_pictures")
def test_devices_and_pipes_stay_and_links_lead_to_what_is_replaced(finished, tmp_path):
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "link").symlink_to("pipe")
    for name in ("pipe", "link"):
        with pytest.raises(PatchError, match="is a device or a pipe"):
            report_folder(finished / "run", tmp_path / name)
    assert stat.S_ISFIFO((tmp_path / "link").stat().st_mode)
    page, folder = tmp_path / "page.html", tmp_path / "other"
    folder.mkdir()
    page.symlink_to(folder / "real.html")
    report_folder(finished / "run", page)
    assert page.is_symlink()
    assert (folder / "real.html").read_text().startswith("<!doctype html>")


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


def zipped_rows(path):
    np.savez_compressed(path, inputs=np.zeros((2**23, 2)), labels=np.zeros(2**23))


def packed_text(path):
    with gzip.open(path, "wb") as file:
        file.write(b"0,0\n" * 2**25)


def constant_table(path):
    parquet = pytest.importorskip("pyarrow.parquet")
    arrow = pytest.importorskip("pyarrow")
    parquet.write_table(arrow.table({"merit": np.zeros(2**24)}), path)


def said_to_be_large(path):
    header = io.BytesIO()
    np.lib.format.write_array_header_2_0(header, {"descr": "<f8", "fortran_order": False, "shape": (10**11, 2)})
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("inputs.npy", header.getvalue())


def no_arrays(path):
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("../../outside.txt", b"x")


def objects(path):
    np.savez(path, inputs=np.array([{1: 2}], dtype=object))


def zipped_weights(path):
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data/0", bytes(2**27))


def code(path):
    path.write_bytes(pickle.dumps({"a": os.system}))


def large_header(path):
    path.write_bytes((2**62).to_bytes(8, "little") + b"{}")


def large_tensor(path):
    header = json.dumps({"0.weight": {"dtype": "F32", "shape": [2**40], "data_offsets": [0, 2**42]}}).encode()
    path.write_bytes(len(header).to_bytes(8, "little") + header)


TOO_LARGE = "unpacks to more than 100 times its size"


@pytest.mark.parametrize(
    ("name", "write", "message"),
    [
        ("rows.npz", zipped_rows, TOO_LARGE),
        ("rows.csv.gz", packed_text, TOO_LARGE),
        ("rows.parquet", constant_table, TOO_LARGE),
        ("rows.npz", said_to_be_large, "no whole archive of arrays"),
        ("rows.npz", no_arrays, "no whole archive of arrays"),
        ("rows.npz", objects, "pickles, which are refused"),
        ("w.pt", zipped_weights, TOO_LARGE),
        ("w.pt", code, "nothing in it was executed"),
        ("w.safetensors", large_header, "not a whole safetensors file"),
        ("w.safetensors", large_tensor, "not a whole safetensors file"),
    ],
)
def test_hostile_files_are_refused_in_a_spec_with_its_line(tmp_path, name, write, message):
    write_spec(tmp_path, SPEC.replace("rows.csv" if name.startswith("rows") else "weights.safetensors", name))
    write(tmp_path / name)
    with pytest.raises(SpecFileError, match=rf"line \d+: .*{message}"):
        open_spec(tmp_path / "spec.yaml")


def grown(first, make, times=8):
    """Nine times as much with each line."""
    return f"x0: &x0 {first}\n" + "".join(f"x{i}: &x{i} {make(f'*x{i - 1}')}\n" for i in range(1, times + 1))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (grown("[lol]", lambda x: f"[{', '.join([x] * 9)}]"), "aliases written out"),
        (grown("{a: 1}", lambda x: f"{{{', '.join(f'k{k}: {x}' for k in range(9))}}}"), "aliases written out"),
        (grown("{a: 1}", lambda x: f"\n  <<: [{', '.join([x] * 9)}]\n  b: 1"), "aliases written out"),
        (grown("a" * 10_000, lambda x: f"[{', '.join([x] * 9)}]"), "aliases written out"),
        (grown("[1]", lambda x: f"[{', '.join([x] * 99)}]", 4), "aliases written out"),
        ("a: &a [*a]\n", "nested more than 20 levels deep"),
        ("a: &a {b: *a}\n", "nested more than 20 levels deep"),
        (f"a: {'[' * 5_000}{']' * 5_000}\n", "recursion depth"),
        (f"seed: {'9' * 10_000}\n", "digits"),
    ],
    ids=["lists", "maps", "merged maps", "texts", "wide", "of itself", "map of itself", "deep", "long number"],
)
def test_bombs_of_yaml_are_a_message(tmp_path, text, message):
    (tmp_path / "bomb.yaml").write_text(text)
    with pytest.raises(SpecFileError, match=message):
        read_spec(tmp_path / "bomb.yaml")


def test_aliases_in_moderation_are_read(tmp_path):
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
