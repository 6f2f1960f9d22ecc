"""Solves in a process of their own: crashes, hangs, errors and Ctrl-C cost one status."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from crashing_solvers import Crashing

from repairopt.errors import SolverError
from repairopt.program import Status, isolate, solve
from repairopt.program.examples import conflicting_rows, dense_quadratic, knapsack, linear
from repairopt.solvers import DAQP, HiGHS

pytestmark = pytest.mark.slow
POSIX = pytest.mark.skipif(os.name != "posix", reason="signals are those of POSIX")


@pytest.mark.parametrize("problem", [linear(), dense_quadratic(), knapsack(), conflicting_rows()], ids=lambda p: p.name)
def test_answers_are_the_same(problem):
    inside, apart = solve(problem.program), solve(problem.program, isolate=True)
    assert (apart.status, apart.message) == (inside.status, inside.message)
    if inside.delta is not None:
        assert apart.delta.tolist() == inside.delta.tolist()


@POSIX
def test_a_segmentation_fault_costs_one_status():
    first = solve(linear().program, Crashing("segfault"), isolate=True)
    assert first.status is Status.FAILED
    assert "the process of the native library died: signal SIGSEGV" in first.message
    assert solve(linear().program, DAQP(), isolate=True).status is Status.OPTIMAL  # in a new process
    other = solve(linear().program, Crashing("segfault"), isolate=True, fallback=True)
    assert (other.status, other.solver) == (Status.OPTIMAL, "daqp")


def test_a_hang_ends_at_the_time_limit(monkeypatch):
    monkeypatch.setattr(isolate, "GRACE", 0.5)
    solve(linear().program, isolate=True)  # the process is there
    started = time.perf_counter()
    found = solve(linear().program, Crashing("hang"), isolate=True, time_limit=1.0)
    assert found.status is Status.NO_POINT
    assert "killed after 1.5 s without an answer" in found.message
    assert time.perf_counter() - started < 30


def test_what_a_back_end_raises_is_chained_and_named():
    with pytest.raises(SolverError, match="'crashing' crashed in its process: ValueError: inside"):
        solve(linear().program, Crashing("raise"), isolate=True)


def test_the_native_log_comes_back(capsys):
    found = solve(linear().program, Crashing("answer", verbose=True), isolate=True)
    assert found.log == "native words\n"
    assert capsys.readouterr().out == "native words\n"
    assert "HiGHS" in solve(linear().program, HiGHS(verbose=True), isolate=True).log


def test_what_cannot_be_sent_is_named():
    class Local(Crashing):
        pass

    with pytest.raises(SolverError, match="'crashing' cannot run in a process of its own: .* or pass isolate=False"):
        solve(linear().program, Local("answer"), isolate=True)


@POSIX
def test_ctrl_c_leaves_no_process_behind(tmp_path):
    script = tmp_path / "script.py"
    script.write_text(
        "import signal, sys; sys.path.insert(0, sys.argv[1])\n"
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"  # jobs in the background ignore it
        "from crashing_solvers import Crashing\n"
        "from repairopt.program.examples import linear\n"
        "from repairopt.program.solve_program import solve\n"
        "from repairopt.program import isolate\n"
        "solve(linear().program, isolate=True)\n"
        "print(isolate._worker.process.pid, flush=True)\n"
        "try:\n"
        "    solve(linear().program, Crashing('hang'), isolate=True)\n"
        "except KeyboardInterrupt:\n"
        "    print('interrupted', flush=True)\n",
        encoding="utf-8",
    )
    command = [sys.executable, str(script), str(Path(__file__).resolve().parents[1] / "support")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as run:
        worker = int(run.stdout.readline())
        time.sleep(0.5)
        run.send_signal(signal.SIGINT)
        assert run.stdout.readline() == "interrupted\n"
        assert run.wait(30) == 0
    for _ in range(100):
        if not Path(f"/proc/{worker}").exists():
            break
        time.sleep(0.05)
    assert not Path(f"/proc/{worker}").exists()
