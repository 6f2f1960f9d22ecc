"""Forgeries whose hashes fit: of the header of a patch, of the log, of report and pictures; and signatures."""

from __future__ import annotations

import hashlib
import json
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

from repairopt.errors import ResultError
from repairopt.interfaces.commandline.runs.show_run import report_folder
from repairopt.interfaces.commandline.runs.verify_run import verify_patch
from repairopt.interfaces.commandline.show import verify_text
from repairopt.patches import read_tensors, write_tensors
from repairopt.patches.patch import CONTENT, HEADER, content_hash

OWN = ("created", "notes", "versions", "solver", "seed")  # of info: nothing to recompute them from


def failed(folder: Path, **options: Any) -> dict[str, str]:
    found = verify_patch(folder / "spec.yaml", folder / "run/patch.safetensors", **options)
    return {line.what: line.detail for line in found.checks if line.ok is False}


def leaves(value: Any, where: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [leaf for key, item in items for leaf in leaves(item, (*where, key))] or [where]


def other(value: Any) -> Any:
    if isinstance(value, bool) or value is None:
        return not value
    if isinstance(value, int | float):
        return value + 1
    return value[:-1] + ("0" if value[-1:] != "0" else "1") if isinstance(value, str) else ["x"]


def forge(path: Path, where: tuple[Any, ...]) -> None:
    """Change one entry of the header of a patch, and its hash with it."""
    tensors, texts = read_tensors(path)
    header = json.loads(texts[HEADER])
    at = header
    for key in where[:-1]:
        at = at[key]
    at[where[-1]] = other(at[where[-1]])
    text = json.dumps(header)
    write_tensors(path, tensors, {HEADER: text, CONTENT: content_hash(text, tensors)})


def test_every_field_of_the_header_of_a_patch_alone_is_recomputed(folder):
    path = folder / "run/patch.safetensors"
    for left in ("result.json", "audit.jsonl", "report.html", "evidence.npz"):
        (folder / "run" / left).unlink(missing_ok=True)
    whole, passed = path.read_bytes(), []
    places = [where for where in leaves(json.loads(read_tensors(path)[1][HEADER])) if where[:2] != ("info", "claims")]
    places += [("info", "claims", 0, key) for key in ("value", "before", "low", "bound", "met", "name", "text", "data")]
    assert len(places) > 30
    for where in places:
        forge(path, where)
        passed += [] if failed(folder) else [where]
        path.write_bytes(whole)
    assert {where[:1] + where[1:2] for where in passed} <= {("info", key) for key in OWN}


@pytest.mark.parametrize("key", ["created", "notes", "solver", "seed"])
def test_what_cannot_be_recomputed_is_found_by_the_result(folder, key):
    forge(folder / "run/patch.safetensors", ("info", key))
    assert "names another patch" in failed(folder)["result.json"]


@pytest.mark.parametrize("name", ["report.html", "evidence.npz"])
@pytest.mark.parametrize("change", [lambda raw: raw + b" ", lambda raw: raw[:-1], lambda raw: b""])
def test_report_and_pictures_are_hashed(folder, name, change):
    path = folder / "run" / name
    if not path.is_file():
        pytest.skip("the report is not written without its library")
    path.write_bytes(change(path.read_bytes()))
    assert failed(folder) == {name: "is not the file that was written"}


@pytest.mark.usefixtures("without_pictures")
def test_a_report_that_is_written_anew_is_hashed_too(folder):
    pytest.importorskip("matplotlib", reason="the pictures need the extra 'report'")
    report_folder(folder / "run")
    assert failed(folder) == {}
    with (folder / "run/report.html").open("a") as file:
        file.write("<p>best of all</p>")
    assert "report.html" in failed(folder)


def rehash(path: Path, change) -> None:
    """A log with other entries whose chain is whole."""
    previous, lines = "0" * 64, []
    for line in path.read_text().splitlines():
        entry = json.loads(line)
        change(entry)
        entry["previous"] = previous
        entry.pop("hash")
        text = lambda: json.dumps(entry, sort_keys=True, separators=(",", ":"))  # noqa: E731, B023
        entry["hash"] = previous = hashlib.sha256(text().encode()).hexdigest()
        lines.append(text())
    path.write_text("\n".join(lines) + "\n")


def changed_in(event: str, change):
    return lambda entry: change(entry["data"]) if entry["event"] == event else None


@pytest.mark.parametrize(
    "change",
    [
        changed_in("round", lambda data: data.update(goal=0.0)),
        changed_in("run started", lambda data: data.update(seed=7)),
        changed_in("run started", lambda data: data["inputs"].update({"rows.csv": "0" * 64})),
        changed_in("repair ended", lambda data: data.update(verdict="unsolved")),
        changed_in("repair ended", lambda data: data["claims"][0].update(value=0.0)),
        changed_in("repair ended", lambda data: data["notes"].append("audited")),
        changed_in("result", lambda data: data.update(met=False)),
        lambda entry: entry.update(time="2020-01-01T00:00:00.000+00:00"),
    ],
)
def test_a_log_that_was_written_anew_is_found(folder, change):
    rehash(folder / "run/audit.jsonl", change)
    assert "audit.jsonl" in failed(folder)


def test_the_last_line_of_the_log_may_be_known(folder):
    last = json.loads((folder / "run/audit.jsonl").read_text().splitlines()[-1])["hash"]
    assert failed(folder, expected_log=last) == {}
    assert "no line has the hash" in failed(folder, expected_log="0" * 64)["audit.jsonl"]


@pytest.mark.parametrize(("key", "value"), [("changed", 1), ("largest_change", 1e-9)])
def test_a_result_that_makes_the_change_smaller_is_found(folder, key, value):
    path = folder / "run/result.json"
    result = json.loads(path.read_text())
    result["weights"][key] = value
    path.write_text(json.dumps(result))
    assert "names another" in failed(folder)["result.json"]


def test_the_text_says_what_was_checked(folder):
    text = " ".join(verify_text(verify_patch(folder / "spec.yaml", folder / "run/patch.safetensors")).split())
    assert "Nothing that was checked is misstated. Checked: patch, spec, base, weights, changes, claims" in text
    assert "Not checked: signature." in text
    forge(folder / "run/patch.safetensors", ("changes", 0, "count"))
    text = " ".join(verify_text(verify_patch(folder / "spec.yaml", folder / "run/patch.safetensors")).split())
    assert "NOT what is stated: changes, result.json, audit.jsonl." in text


@pytest.mark.skipif(shutil.which("ssh-keygen") is None, reason="signatures need ssh-keygen of OpenSSH")
def test_a_signature_covers_all_files(folder, tmp_path):
    for name in ("key", "stranger"):
        subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", tmp_path / name], check=True)
    (tmp_path / "signers").write_text(f"jo@example.org {(tmp_path / 'key.pub').read_text()}")
    options = {"signers": tmp_path / "signers", "signer": "jo@example.org"}
    assert "there is no" in failed(folder, **options)["signature"]
    for name, found in (("stranger", ["signature"]), ("key", [])):
        (folder / "run/result.json.sig").unlink(missing_ok=True)
        sign = ["ssh-keygen", "-q", "-Y", "sign", "-f", tmp_path / name, "-n", "repairopt", folder / "run/result.json"]
        subprocess.run(sign, check=True, capture_output=True)
        assert list(failed(folder, **options)) == found
    assert "signature" in failed(folder, **{**options, "signer": "someone@example.org"})
    with pytest.raises(ResultError, match="both"):
        failed(folder, signer="jo@example.org")
    path = folder / "run/result.json"
    path.write_text(path.read_text().replace('"seed": 0', '"seed": 1', 1))
    assert "signature" in failed(folder, **options)
