"""Ctrl-C, as a real signal to a process of its own: no traceback, exit code 2, and what was found is kept."""

import os
import signal
import subprocess
import sys

import pytest
from biased_task import task
from small_spec import write_spec

from repairopt import Classifier, Settings
from repairopt.compare import explain_unmet, trace_frontier
from repairopt.interfaces.examine import examine_model

posix = pytest.mark.skipif(os.name != "posix", reason="signals are those of POSIX")

COMMAND = """
import signal, sys, time
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell starts jobs in the background without it
from repairopt.interfaces.commandline.bars import Bars
from repairopt.interfaces.commandline.commands import main

stage = Bars.stage
def told(self, name, steps=0):
    if name == sys.argv[1]:
        print("here", flush=True)
        time.sleep(20)  # until the signal comes
    return stage(self, name, steps)
Bars.stage = told
main(sys.argv[2:])
"""


def interrupted(folder, stage, arguments):
    """Run a command, send the signal at the beginning of a stage; exit code, output, errors."""
    command = [sys.executable, "-c", COMMAND, stage, *arguments]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, stdout=pipe, stderr=pipe, text=True, cwd=folder) as run:
        try:
            assert run.stdout.readline() == "here\n"
            run.send_signal(signal.SIGINT)
            out, errors = run.communicate(timeout=60)
        finally:
            run.kill()
    return run.returncode, out, errors


@posix
@pytest.mark.slow
def test_ctrl_c_ends_a_command_with_a_message(tmp_path):
    write_spec(tmp_path)
    code, out, errors = interrupted(tmp_path, "measuring every claim", ["check", "spec.yaml"])
    assert (code, out, errors.strip()) == (2, "", "repairopt: interrupted.")


@posix
@pytest.mark.slow
def test_what_solve_had_found_is_continued(tmp_path):
    write_spec(tmp_path)
    solve = ["solve", "spec.yaml", "--out", "run"]
    code, out, errors = interrupted(tmp_path, "writing", solve)
    assert (code, out) == (2, "")
    assert errors.strip() == "repairopt: interrupted. The same command with --resume continues what 'run' holds."
    command = [sys.executable, "-c", COMMAND, "", *solve, "--resume", "--no-report"]
    ended = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True)
    assert ended.stdout.startswith("REPAIRED")
    assert '"run resumed"' in (tmp_path / "run/audit.jsonl").read_text()


def interrupting(step):
    """Settings whose progress is interrupted, as by Ctrl-C, at the first step that begins so."""

    def progress(entry):
        if entry.step.startswith(step):
            raise KeyboardInterrupt

    return Settings(progress=progress)


def test_a_frontier_that_is_interrupted_has_the_points_found_until_then():
    toy = task()
    options = {"targets": [0.2, 0.15, 0.1, 0.05], "weights": "last", "settings": interrupting("bound 3 of 4")}
    found = trace_frontier(toy.model, toy.gap(), [toy.keep()], **options)
    assert found.stopped == "interrupted"
    assert [point.target for point in found.points][:2] == [0.2, 0.15]
    assert len(found.points) < 4
    assert "Stopped early (interrupted)" in str(found)


def test_runs_of_many_repairs_take_no_interrupted_one_for_an_answer():
    toy = task()
    with pytest.raises(KeyboardInterrupt):
        explain_unmet(toy.model, toy.gap(-1.0), [toy.keep()], weights="last", settings=interrupting("step"))
    calls = 0

    def forward(network, inputs):
        nonlocal calls
        calls += calls > 0
        if calls == 30:
            raise KeyboardInterrupt
        return network(inputs)

    def tell(part):
        nonlocal calls
        calls = int(part == "weights 'last'")  # from here on: the beginning of a trial repair

    with pytest.raises(KeyboardInterrupt):
        examine_model(Classifier(toy.model, forward), toy.inputs, time_limit=5.0, tell=tell)
