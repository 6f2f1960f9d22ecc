"""A run of solve that is killed at any moment leaves no output, or a valid one that can be resumed."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import time
from pathlib import Path

import pytest
import torch
from forked import Fork
from small_spec import SPEC, write_spec

from repairopt import solve_repair
from repairopt.errors import AuditError, ModelError, ResultError
from repairopt.interfaces.commandline.runs.run_folder import AUDIT, CHECKPOINT, PATCH, RESULT, RunFolder, read_result
from repairopt.interfaces.commandline.runs.solve_run import Options, solve_spec
from repairopt.interfaces.commandline.runs.verify_run import verify_patch
from repairopt.interfaces.specfile.opened import open_spec
from repairopt.patches import Patch, load_patch, load_weights, save_weights, verify_log

MOMENTS = 3
PLAIN = Options(report=False)  # where nobody looks at the page


class Stopped(BaseException):
    """Ends a run from within, as a kill would."""


def stop_after(folder: Path, steps: int) -> None:
    """Run solve and end it after some steps."""
    from contextlib import contextmanager

    class Ending:
        count = 0

        @contextmanager
        def stage(self, name, steps_of_it=0):
            def step(text):
                self.count += 1
                if self.count >= steps:
                    raise Stopped

            yield step

    with pytest.raises(Stopped):
        solve_spec(folder / "spec.yaml", folder / "run", PLAIN, Ending())


def test_a_stopped_run_leaves_a_checkpoint_and_is_resumed_from_it(tmp_path):
    write_spec(tmp_path)
    stop_after(tmp_path, 2)
    run = tmp_path / "run"
    assert (run / CHECKPOINT).exists()
    assert not (run / RESULT).exists()
    with pytest.raises(ResultError, match="an unfinished run. Use --resume"):
        solve_spec(tmp_path / "spec.yaml", run)
    result = solve_spec(tmp_path / "spec.yaml", run, Options(resume=True, report=False))
    assert result.verdict == "repaired"
    assert not (run / CHECKPOINT).exists()
    events = [json.loads(line)["event"] for line in (run / AUDIT).read_text().splitlines()]
    assert events[0] == "run started"
    assert "run resumed" in events
    assert verify_patch(tmp_path / "spec.yaml", run / PATCH).exit_code == 0


def begin(folder: Path, steps: int) -> bool:
    """Whether there is a checkpoint after so many steps."""
    shutil.rmtree(folder / "run", ignore_errors=True)
    stop_after(folder, steps)
    return (folder / "run" / CHECKPOINT).exists()


def test_a_run_that_chose_its_weights_itself_is_resumed(tmp_path):
    write_spec(tmp_path, SPEC.replace("change: {layers: last}\n", ""))
    count = next(n for n in range(1, 200) if begin(tmp_path, n))
    assert count > 1
    result = solve_spec(tmp_path / "spec.yaml", tmp_path / "run", Options(resume=True, report=False))
    assert result.met
    assert verify_patch(tmp_path / "spec.yaml", tmp_path / "run" / PATCH).sound


def test_a_finished_run_is_not_repeated(tmp_path):
    write_spec(tmp_path)
    first = solve_spec(tmp_path / "spec.yaml", tmp_path / "run", PLAIN)
    before = (tmp_path / "run" / RESULT).read_bytes()
    again = solve_spec(tmp_path / "spec.yaml", tmp_path / "run", Options(resume=True))
    assert again == first
    assert (tmp_path / "run" / RESULT).read_bytes() == before


def test_same_seed_same_patch(tmp_path):
    write_spec(tmp_path)
    hashes = set()
    for name in ("a", "b"):
        result = solve_spec(tmp_path / "spec.yaml", tmp_path / name, PLAIN)
        hashes.add(result.repaired)
    assert len(hashes) == 1


@pytest.mark.parametrize("other", ["spec", "weights", "seed", "data"])
def test_a_checkpoint_of_another_run_is_refused(tmp_path, other):
    folder = RunFolder(tmp_path)
    state = {"spec": "a", "weights": "b", "seed": 0, "data": {"rows.csv": "c"}}
    folder.save_checkpoint({"w": torch.ones(2)}, state)
    assert torch.equal(folder.load_checkpoint(state)["w"], torch.ones(2))
    with pytest.raises(ResultError, match=f"with another {other}"):
        folder.load_checkpoint({**state, other: "x"})


def test_a_damaged_checkpoint_is_refused(tmp_path):
    folder = RunFolder(tmp_path)
    folder.save_checkpoint({"w": torch.ones(2)}, {})
    (tmp_path / CHECKPOINT).write_bytes((tmp_path / CHECKPOINT).read_bytes()[:-4])
    with pytest.raises(ResultError, match="is no checkpoint"):
        folder.load_checkpoint({})


def test_the_time_limit_of_the_spec_and_of_the_command(tmp_path):
    write_spec(tmp_path, SPEC + "time_limit: 0.000001\n")
    result = solve_spec(tmp_path / "spec.yaml", tmp_path / "run", PLAIN)
    assert result.stopped == "time limit"
    assert result.exit_code == 1
    longer = solve_spec(tmp_path / "spec.yaml", tmp_path / "other", Options(time_limit=600, report=False))
    assert longer.verdict == "repaired"


def check_whole(run: Path) -> None:
    """Every file that is there is whole."""
    if (run / RESULT).exists():
        assert read_result(run / RESULT)[0].verdict
    if (run / PATCH).exists():
        Patch.load(run / PATCH)
    if (run / AUDIT).exists():
        lines = (run / AUDIT).read_bytes().rpartition(b"\n")
        if lines[2]:  # the last line may be unfinished; it is cut off when the run is resumed
            with pytest.raises(AuditError, match="is unfinished"):
                verify_log(run / AUDIT)
        else:
            verify_log(run / AUDIT)


KILLED = """
import gc, sys, os, signal, threading
from repairopt.interfaces.commandline.runs.solve_run import Options, solve_spec
solve_spec(sys.argv[1], sys.argv[2])  # loads every library, which the children share
gc.freeze()  # a collection in a child would copy all that is shared
print("ready", flush=True)
for line in sys.stdin:
    spec, out, resume, report, seconds = line.split()
    child = os.fork()
    if not child:
        solve_spec(spec, out, Options(resume=resume == "1", report=report == "1"))
        os._exit(0)
    timer = threading.Timer(float(seconds), os.kill, (child, signal.SIGKILL))
    timer.start()
    print(os.waitpid(child, 0)[1], flush=True)
    timer.cancel()
"""


@pytest.mark.slow
@pytest.mark.skipif(os.name != "posix", reason="kill -9")
def test_kill_9_at_random_moments_leaves_nothing_or_a_resumable_run(tmp_path):
    """Moments over the length of a run; loaded libraries are shared by forking, so that it takes seconds."""
    few = SPEC.replace("0:400", "0:120").replace("400:800", "400:450")
    spec = write_spec(tmp_path, few.replace('  - recall("yes") >= 0.6\n', ""))
    with Fork(KILLED, spec, tmp_path / "first") as server:
        assert server.stdout.readline() == "ready\n"

        def solve(out: Path, resume: bool, seconds: float, report: bool = False) -> int:
            server.stdin.write(f"{spec} {out} {int(resume)} {int(report)} {seconds}\n")
            server.stdin.flush()
            return int(server.stdout.readline())

        started = time.monotonic()
        assert solve(tmp_path / "whole", False, 600) == 0
        length = time.monotonic() - started
        moments, killed = random.Random(0), 0
        for i in range(MOMENTS):
            out = tmp_path / f"run{i}"
            report = i % 4 == 0  # some while the pictures are made, which is longer than the rest
            whole = 3 * length if report else length
            killed += solve(out, False, moments.uniform(0.05, 1.0) * whole, report) == signal.SIGKILL
            check_whole(out)
            assert solve(out, True, 600) == 0
            check_whole(out)
            assert read_result(out / RESULT)[0].met
            assert not [p.name for p in out.iterdir() if "unfinished" in p.name or "checkpoint" in p.name]
            assert verify_patch(spec, out / PATCH).sound
        assert killed >= MOMENTS // 3, "enough of the moments lie within the run, however busy the machine is"


def test_a_spec_says_what_one_output_means(tmp_path):
    text = SPEC.replace("sizes: [2, 4, 2]", "sizes: [2, 4, 1]")
    write_spec(tmp_path, text)
    state = load_weights(tmp_path / "weights.safetensors")
    for name in ("2.weight", "2.bias"):
        state[name] = (state[name][1:] - state[name][:1]).contiguous()
    save_weights(state, tmp_path / "weights.safetensors")
    with pytest.raises(ModelError, match="one logit"):
        solve_spec(tmp_path / "spec.yaml", tmp_path / "run")
    text = text.replace("weights: weights.safetensors", "weights: weights.safetensors\n  outputs: one logit")
    (tmp_path / "spec.yaml").write_text(text, encoding="utf-8")
    result = solve_spec(tmp_path / "spec.yaml", tmp_path / "run", Options(overwrite=True, report=False))
    assert result.verdict == "repaired"
    assert all(claim.met is not False for claim in result.claims)
    verified = verify_patch(tmp_path / "spec.yaml", tmp_path / "run" / PATCH)
    assert verified.sound
    assert verified.met


def test_reported_rows_and_guards_are_weighed_as_in_python(tmp_path):
    text = SPEC.replace('repair: {file: rows.csv, rows: "0:400"}', 'repair: {file: rows.csv, rows: "400:440"}')
    text = text.replace('goal: gap(group, favorable="yes", kind=parity) <= 0.1', "goal: error_rate <= 0")
    text = text.replace('  - recall("yes") >= 0.6\n', "").replace("  - max_change <= 2\n", "") + "method: sqp\n"
    write_spec(tmp_path, text)
    solve_spec(tmp_path / "spec.yaml", tmp_path / "run", PLAIN)
    spec = open_spec(tmp_path / "spec.yaml")
    assert spec.goal is not None
    bounds = [bound.as_constraint() for bound in spec.bounds]
    own = solve_repair(spec.model, spec.goal.as_goal(), bounds, weights="last", method="sqp")  # no data=
    theirs = load_patch(tmp_path / "run" / PATCH).apply(spec.model).state_dict()
    for name, value in own.model.state_dict().items():
        torch.testing.assert_close(theirs[name], value)
    guard = spec.data.sets["guard"]
    assert not torch.equal(own.model(guard.inputs), spec.model(guard.inputs))


@pytest.mark.usefixtures("without_pictures")
def test_held_out_rows_are_told_of_where_the_goal_speaks_of_other_rows(tmp_path):
    text = SPEC.replace('goal: gap(group, favorable="yes", kind=parity) <= 0.1', "goal: error_rate(guard) <= 0.05")
    solve_spec(write_spec(tmp_path, text), tmp_path / "run")
    page = (tmp_path / "run" / "report.html").read_text(encoding="utf-8")
    assert "On data that the repair never saw, accuracy goes from " in page
    assert "No held-out data were given" not in page
    assert "was not tried on data" not in page
