"""Solve in a process of its own, so that a crash or a hang inside a native library costs one status.

The process is started once, kept for the next solve, and replaced after a crash, a time-out or Ctrl-C. It imports
repairopt and the back end's module, nothing of the calling script; so a back end that is defined in a script or a
notebook (in ``__main__``) cannot be sent there.
"""

from __future__ import annotations

import atexit
import contextlib
import os
import pickle
import queue
import signal
import subprocess
import sys
import threading
from dataclasses import replace
from typing import IO, Any

from repairopt.errors import SolverError

from .captured_output import native_output
from .program import Program
from .solution import Solution, Status

GRACE = 5.0  # seconds that a solve may take beyond its time limit before the process is killed
START = 120.0  # seconds that the process may take to start
_BOOT = """
import os, pickle, sys
source = os.fdopen(os.dup(0), "rb")
sink = os.fdopen(os.dup(1), "wb")
os.dup2(2, 1)
sys.path[:] = pickle.load(source)
from repairopt.program.isolate import serve
serve(source, sink)
"""


def solve_isolated(backend: Any, program: Program, time_limit: float | None = None) -> Solution:
    """Run a back end, an instance that pickle can send, in the process; the program's sources stay here.

    The process is killed 5 seconds after the time limit, also for back ends without a limit of their own. FAILED where
    the process died, with the signal in ``message``; NO_POINT where it was killed. A SolverError where the back end
    raised, or cannot be sent.
    """
    try:
        message = pickle.dumps((backend, replace(program, sources=())), protocol=5)
        if getattr(type(backend), "__module__", "") == "__main__":
            raise pickle.PicklingError("it is defined in a script or a notebook")
    except (pickle.PicklingError, TypeError, AttributeError) as error:
        raise SolverError(
            f"'{backend.name}' cannot run in a process of its own: {error}. Define it in a module that can be "
            f"imported, or pass isolate=False."
        ) from error
    with _LOCK:
        return _ask(message, backend.name, None if time_limit is None else time_limit + GRACE)


def _ask(message: bytes, name: str, patience: float | None) -> Solution:
    worker = _running()
    try:
        worker.send(message)
        kind, answer = worker.receive(patience)
    except BaseException:  # Ctrl-C among others: what the process does now is of no use
        worker.kill()
        raise
    if kind == "answer":
        return answer
    if kind == "error":
        raise SolverError(f"'{name}' crashed in its process: {answer}")
    if kind == "time":
        worker.kill()
        return Solution(Status.NO_POINT, message=f"killed after {patience:.3g} s without an answer")
    return Solution(Status.FAILED, message=f"the process of the native library died: {worker.epitaph()}")


class _Worker:
    """The process, with a thread that reads its answers."""

    def __init__(self) -> None:
        group: dict[str, Any] = {"start_new_session": True} if os.name == "posix" else {}  # Ctrl-C is ours alone
        command = [sys.executable, "-c", _BOOT]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, **group)
        self.answers: queue.SimpleQueue[tuple[str, Any]] = queue.SimpleQueue()
        self.reader = threading.Thread(target=self._read, daemon=True)
        self.reader.start()
        self.send(pickle.dumps([os.path.abspath(part) for part in sys.path]))
        kind, _ = self.receive(START)
        if kind != "ready":
            self.kill()
            raise SolverError(f"the process for isolated solves did not start: {self.epitaph()}.")

    def send(self, message: bytes) -> None:
        assert self.process.stdin is not None
        try:
            self.process.stdin.write(message)
            self.process.stdin.flush()
        except OSError:  # it died; the thread that reads says so
            pass

    def receive(self, patience: float | None) -> tuple[str, Any]:
        try:
            return self.answers.get(timeout=patience)
        except queue.Empty:
            return "time", None

    def kill(self) -> None:
        self.process.kill()
        self.close()

    def close(self) -> None:
        """Wait for the end of the process and of the thread that reads, and give back their files."""
        self.process.wait()
        self.reader.join()
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        with contextlib.suppress(OSError):  # what was never sent
            self.process.stdin.close()
        self.process.stdout.close()

    def epitaph(self) -> str:
        self.close()
        code = self.process.returncode
        if code >= 0:
            return f"exit code {code}"
        try:
            return f"signal {signal.Signals(-code).name}"
        except ValueError:
            return f"signal {-code}"

    def _read(self) -> None:
        assert self.process.stdout is not None
        try:
            while True:
                self.answers.put(pickle.load(self.process.stdout))
        except (EOFError, OSError, pickle.UnpicklingError):
            self.answers.put(("died", None))


_LOCK = threading.Lock()
_worker: _Worker | None = None


def _running() -> _Worker:
    global _worker
    if _worker is None:
        atexit.register(stop)
    if _worker is None or _worker.process.poll() is not None:
        _worker = _Worker()
    return _worker


def stop() -> None:
    """End the process, if there is one; the next isolated solve starts another."""
    if _worker is not None and _worker.process.poll() is None:
        _worker.kill()


def serve(source: IO[bytes], sink: IO[bytes]) -> None:
    """What the process does: solve what comes in, until the other end is closed.

    Pickles of a back end and a program each are answered by ``("answer", solution)`` or ``("error", text)``.
    """
    if hasattr(signal, "SIGINT"):
        signal.signal(signal.SIGINT, signal.SIG_IGN)
    answer: tuple[str, Any] = ("ready", None)
    while True:
        sink.write(pickle.dumps(answer, protocol=5))
        sink.flush()
        try:
            try:
                backend, program = pickle.load(source)
            except EOFError:
                return
            with native_output(wanted=bool(getattr(backend, "verbose", False)), echo=False) as printed:
                solution = backend.solve(program)
            answer = ("answer", replace(solution, log=printed.text))
        except Exception as error:
            answer = ("error", f"{type(error).__name__}: {error}")
