"""The audit log: every line is on the disk, and no line can be touched without notice."""

from __future__ import annotations

import json
import os
import time
from datetime import datetime

import numpy as np
import pytest
import torch
from biased_task import task
from forked import Fork, run_forked
from hypothesis import given, strategies as st

from repairopt import Settings, solve_repair
from repairopt.errors import AuditError
from repairopt.patches import AuditLog, fingerprint, verify_log
from repairopt.report.as_patch import record_repair


@pytest.fixture
def path(tmp_path):
    return tmp_path / "audit.jsonl"


@pytest.fixture
def written(path):
    log = AuditLog(path)
    for number in range(4):
        log.append("step", accepted=number % 2 == 0, residual=10.0**-number)
    return log


def lines(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_each_line_holds_the_hash_of_the_one_before(written, path):
    entries = lines(path)
    assert [entry["number"] for entry in entries] == [0, 1, 2, 3]
    assert entries[0]["previous"] == "0" * 64
    assert [entry["previous"] for entry in entries[1:]] == [entry["hash"] for entry in entries[:-1]]
    assert entries[2]["data"] == {"accepted": True, "residual": 0.01}
    assert datetime.fromisoformat(entries[0]["time"]).utcoffset().total_seconds() == 0
    assert verify_log(path) == written.end
    assert written.end.count == 4


def test_a_log_goes_on_where_it_ended(written, path):
    end = AuditLog(path).append("later")
    assert verify_log(path) == end
    assert lines(path)[-1]["number"] == 4
    assert written.append("the first object sees it").count == 6
    assert verify_log(path).count == 6


@pytest.mark.parametrize("number", [1, 2, 3, 4])
def test_a_changed_line_is_named(written, path, number):
    content = path.read_text().splitlines(keepends=True)
    content[number - 1] = content[number - 1].replace('"accepted":', '"Accepted":')
    path.write_text("".join(content))
    with pytest.raises(AuditError, match=rf"line {number}: does not have the hash of its content"):
        verify_log(path)
    with pytest.raises(AuditError, match=rf"line {number}:"):
        AuditLog(path)


@pytest.mark.parametrize(
    ("edit", "number"),
    [
        (lambda c: c[1:], 1),
        (lambda c: [c[0], *c[2:]], 2),
        (lambda c: [c[0], c[2], c[1], c[3]], 2),
        (lambda c: [c[0], c[0], *c[1:]], 2),
        (lambda c: [*c, c[-1]], 5),
        (lambda c: [c[0], "\n", *c[1:]], 2),
        (lambda c: [c[0].replace(" ", "").replace(":", ": ", 1), *c[1:]], 1),
        (lambda c: [*c[:3], '{"data":{}}\n'], 4),
        (lambda c: [*c[:3], "NaN\n"], 4),
        (lambda c: ["[" * 100_000 + "\n"], 1),
    ],
)
def test_lines_that_are_removed_moved_or_added_are_named(written, path, edit, number):
    path.write_text("".join(edit(path.read_text().splitlines(keepends=True))))
    before = path.read_bytes()
    with pytest.raises(AuditError, match=rf"line {number}: "):
        verify_log(path)
    with pytest.raises(AuditError, match=rf"line {number}: "):
        AuditLog(path)
    assert path.read_bytes() == before, "a broken log is left as it is"


@given(data=st.data())
def test_no_single_changed_byte_gets_through(tmp_path_factory, data):
    path = tmp_path_factory.mktemp("log") / "audit.jsonl"
    log = AuditLog(path)
    for number in range(3):
        log.append("step", number=number)
    content = bytearray(path.read_bytes())
    at = data.draw(st.integers(0, len(content) - 1))
    content[at] ^= data.draw(st.integers(1, 255))
    path.write_bytes(bytes(content))
    with pytest.raises(AuditError):
        verify_log(path)


def test_lines_cut_off_at_the_end_are_noticed_by_who_knows_the_last_hash(written, path):
    path.write_text("".join(path.read_text().splitlines(keepends=True)[:-1]))
    assert verify_log(path).count == 3
    with pytest.raises(AuditError, match=rf"no line has the hash {written.end.hash}\. Lines were cut off"):
        verify_log(path, expected=written.end.hash)
    with pytest.raises(AuditError, match="became shorter since it was opened"):
        written.append("after the cut")


def test_an_unfinished_last_line_is_cut_off_and_that_is_logged(written, path):
    whole = path.read_bytes()
    last = whole.splitlines(keepends=True)[-1]
    for length in range(1, len(last)):
        path.write_bytes(whole + last[:length])
        with pytest.raises(AuditError, match=r"line 5: is unfinished"):
            verify_log(path)
        log = AuditLog(path)
        entry = lines(path)[-1]
        assert entry["event"] == "an unfinished line was cut off"
        assert entry["data"]["bytes"] == length
        assert verify_log(path) == log.end
        assert log.end.count == 5


def test_another_file_is_neither_cut_nor_written_to(path):
    path.write_text("precious notes without a newline")
    with pytest.raises(
        AuditError, match=r"line 1: is neither finished nor the start of an entry; this is no audit log"
    ):
        AuditLog(path)
    assert path.read_text() == "precious notes without a newline"


WRITING = """
import os, sys
from repairopt.patches import AuditLog

def write(name, count):
    log = AuditLog(sys.argv[1])
    for number in range(count):
        log.append("step", writer=name, number=number)

if sys.argv[2] == "both":
    for name in "ab":
        if not os.fork():
            write(name, 100)
            os._exit(0)
    sys.exit(any(os.wait()[1] for _ in "ab"))
write("killed", 10**6)
"""


@pytest.mark.slow
@pytest.mark.skipif(os.name != "posix", reason="forks")
def test_a_killed_process_leaves_a_chain_that_goes_on(path):
    with Fork(WRITING, path, "killed") as process:
        while not path.exists() or path.stat().st_size < 10_000:
            time.sleep(0.001)
        process.kill()
    end = AuditLog(path).append("went on")
    assert verify_log(path) == end
    assert end.count > 20


@pytest.mark.slow
@pytest.mark.skipif(os.name != "posix", reason="forks")
def test_two_processes_write_one_chain(path):
    run_forked(WRITING, path, "both")
    assert verify_log(path).count == 200
    for name in ("a", "b"):
        assert [e["data"]["number"] for e in lines(path) if e["data"]["writer"] == name] == list(range(100))


def test_lines_of_others_are_checked_before_the_next_one_is_written(written, path):
    with path.open("a") as file:
        file.write("\n")
    with pytest.raises(AuditError, match=r"line 5: is not JSON"):
        written.append("after a blank line")


def test_numbers_of_every_kind_are_logged(path):
    log = AuditLog(path)
    log.append(
        "numbers", nan=float("nan"), inf=-float("inf"), numpy=np.float32(0.5), torch=torch.tensor(3), pair=(1, [2.0])
    )
    assert lines(path)[0]["data"] == {"nan": "nan", "inf": "-inf", "numpy": 0.5, "torch": 3, "pair": [1, [2.0]]}


def test_data_that_are_not_json_are_refused_and_nothing_is_written(path):
    log = AuditLog(path)
    with pytest.raises(AuditError, match=r"audit event 'step': 'model' is not JSON"):
        log.append("step", model=torch.nn.Linear(1, 1))
    assert not path.read_bytes()
    assert verify_log(path).count == 0


def test_missing_files_and_folders_are_named(path, tmp_path):
    with pytest.raises(AuditError, match=r"audit.jsonl': cannot be read"):
        verify_log(path)
    with pytest.raises(AuditError, match=r"there is no folder"):
        AuditLog(tmp_path / "none" / "audit.jsonl")


def test_a_repair_is_logged_round_by_round(path):
    toy = task(count=200)
    report = solve_repair(
        toy.model, toy.gap(), [toy.keep()], weights="last", held_out=toy.held_out, settings=Settings(seed=5)
    ).report
    log = AuditLog(path)
    record_repair(log, report, model=toy.model, inputs={"inputs": toy.inputs})
    verify_log(path)
    start, *rounds, end = lines(path)
    assert start["data"]["model"] == fingerprint(toy.model).total
    assert start["data"]["inputs"] == {"inputs": fingerprint({"x": toy.inputs}).tensors["x"]}
    assert start["data"]["seed"] == 5
    assert "torch" in start["data"]["versions"]
    assert len(rounds) == len(report.rounds) >= 1
    assert [entry["data"]["round"] for entry in rounds] == list(range(len(rounds)))
    for entry, done in zip(rounds, report.rounds, strict=True):
        assert entry["data"]["status"] == done.status
        assert entry["data"]["accepted"] == done.accepted
    residuals = [entry["data"]["violation"] for entry in rounds if entry["data"]["status"] == "optimal"]
    assert residuals
    assert all(0 <= residual < 1e-3 for residual in residuals)
    assert end["data"]["verdict"] == report.verdict
    assert {check["constraint"] for check in end["data"]["checks"]} >= {"keep labels"}


def test_rounds_can_be_logged_as_they_are_done(path):
    toy, log = task(count=200), AuditLog(path)
    report = solve_repair(
        toy.model,
        toy.gap(),
        [toy.keep()],
        weights="last",
        settings=Settings(progress=lambda entry: log.append("round", **vars(entry))),
    ).report
    assert verify_log(path).count == len(report.rounds) >= 1


def test_a_log_that_cannot_be_written_says_so(tmp_path):
    with pytest.raises(AuditError, match=r"audit log '.*': cannot be written to .*Give another path"):
        AuditLog(tmp_path)
