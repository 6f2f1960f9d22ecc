"""Cells in processes of their own, which are watched, and killed at their limits."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import tempfile
import threading
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import IO

from .cell import FINISHED, Cell, CellOutcome, Job, Limits

GRACE, LOADING = 0.25, 60.0  # of the time limit, and seconds, after which a process that does not end is killed
MEASURING = 600.0  # further seconds for figures of what a method has ended with, such as its robustness
UNMEASURED = f"the method ended in time, but its network could not be measured within {MEASURING:g} s more"
LOOK = 0.05  # seconds between looks at a process
LOG = 2000  # characters of what a process wrote that are kept where it failed
FORKS = sys.platform == "linux"  # elsewhere there is no fork, or the system's libraries do not survive it


class CellRunner:
    """Runs cells, from several threads at once; a context, at whose end no process is left.

    On Linux the processes are forked from one that has loaded the libraries and computes nothing, so that a cell begins
    after some hundredths of a second; elsewhere each is started anew.

    Attributes:
        stop: Where it is set, the cells that run are killed.
    """

    def __init__(self, stop: threading.Event) -> None:
        self.stop, self._lock = stop, threading.Lock()
        self._server: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> CellRunner:
        return self

    def __exit__(self, *ended_by: object) -> None:
        if self._server is not None:
            _end(self._server)

    def run(self, job: Job) -> Cell:
        """Run a cell in a process of its own; never raises for what it does.

        The process is killed where it exceeds a limit. Ctrl-C at the terminal reaches the parent alone: a method that
        it ended early would look like one that was done.
        """
        import cloudpickle

        empty = Cell(job.label, job.subject.name, job.repetition, CellOutcome.FAILURE)
        with tempfile.TemporaryDirectory(prefix="repairopt-cell-") as name, (Path(name) / "log").open("w+b") as log:
            folder = Path(name)
            (folder / "job").write_bytes(cloudpickle.dumps(job))
            process = self._start(folder, log)
            try:
                killed = _watch(process, job.limits, self.stop)
            finally:
                process.end()
            if killed:
                return replace(empty, reason=killed)
            try:
                return Cell.from_json((folder / "cell").read_text(encoding="utf-8"))
            except (OSError, ValueError, TypeError, KeyError):
                told = log.read().decode(errors="replace").strip()[-LOG:] or "no message"
                return replace(empty, reason=f"the process ended with code {process.code()}: {told}")

    def _start(self, folder: Path, log: IO[bytes]) -> _Process:
        if not FORKS:
            started = _popen(log, log, str(folder))
            return _Process(started, started.pid, folder)
        with self._lock:
            if self._server is None or self._server.poll() is not None:
                self._server = _popen(subprocess.PIPE, log)
            assert self._server.stdin is not None
            assert self._server.stdout is not None
            with contextlib.suppress(OSError):  # it died, which its answer tells
                self._server.stdin.write(os.fsencode(folder) + b"\n")
                self._server.stdin.flush()
            number = self._server.stdout.readline()
            if not number:
                self._server.wait()
            return _Process(self._server, int(number or self._server.pid), folder)


@dataclass(frozen=True)
class _Process:
    """The process of a cell.

    Attributes:
        started: The process that was started for it, or that it was forked from.
        number: Of the cell's process.
        folder: Of the cell, with its exit code where it was forked and has ended.
    """

    started: subprocess.Popen[bytes]
    number: int
    folder: Path

    def code(self) -> int | None:
        """Its exit code, None while it runs."""
        try:
            return int((self.folder / "code").read_text())
        except FileNotFoundError:
            return self.started.poll()

    def end(self) -> None:
        """Kill it where it runs, and wait for its end."""
        import psutil

        if self.number == self.started.pid:
            return _end(self.started)
        if self.code() is None:
            with contextlib.suppress(psutil.Error):  # it has just ended
                psutil.Process(self.number).kill()
        while self.code() is None:
            time.sleep(LOOK / 5)


def _popen(stdout: int | IO[bytes], stderr: IO[bytes], *arguments: str) -> subprocess.Popen[bytes]:
    """Start Python for cells; it ends with this process, which holds the other side of its standard input."""
    surroundings = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"), "1")
    surroundings["PYTHONPATH"] = os.pathsep.join(filter(None, sys.path))  # classes are found where they are here
    command = [sys.executable, "-m", "repairopt.compare.cell_process", *arguments]
    environment = {**os.environ, **surroundings}
    pipe = subprocess.PIPE
    return subprocess.Popen(command, stdin=pipe, stdout=stdout, stderr=stderr, env=environment, start_new_session=True)


def _watch(process: _Process, limits: Limits, stop: threading.Event) -> str:
    """Wait for the end of a process; why it is to be killed, or empty. A file says that its method has ended."""
    import psutil

    end, told = time.monotonic() + (1 + GRACE) * limits.seconds + LOADING, f"no result within {limits.seconds:g} s"
    while process.code() is None:
        if stop.is_set():
            return "interrupted"
        if time.monotonic() > end:
            if told == UNMEASURED or not (process.folder / FINISHED).exists():
                return told
            end, told = time.monotonic() + MEASURING, UNMEASURED
        with contextlib.suppress(psutil.Error):  # it has just ended
            if limits.memory is not None and psutil.Process(process.number).memory_info().rss > limits.memory:
                return f"more than {limits.memory / 2**30:.1f} GiB of memory"
        time.sleep(LOOK)
    return ""


def _end(process: subprocess.Popen[bytes]) -> None:
    for pipe in (process.stdin, process.stdout):
        if pipe is not None:
            pipe.close()
    process.kill()
    process.wait()
