"""Processes that begin with torch and the library loaded, in milliseconds: forked from one that does nothing else.

For tests that kill, limit or measure a process of their own; what an import loads is to be seen in a new one.
"""

from __future__ import annotations

import atexit
import contextlib
import json
import os
import select
import signal
import socket
import subprocess
import sys
import traceback
from functools import cache
from typing import Any, NoReturn

MOST = 2**17  # bytes of an order


@cache
def _loaded() -> socket.socket:
    """The connection to the process that is forked; it ends with these tests."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    process = subprocess.Popen([sys.executable, __file__, str(theirs.fileno())], pass_fds=[theirs.fileno()])
    theirs.close()
    atexit.register(lambda: (ours.close(), process.wait()))
    return ours


class Fork:
    """A process that runs Python code, as ``python -c code *arguments`` would; a context that ends it.

    Attributes:
        pid: Its number.
        stdin: What it reads, a text file.
        stdout: What it prints, a text file.
        stderr: What it says of errors, a text file.
    """

    def __init__(self, code: str, *arguments: Any, **environment: str) -> None:
        (own_in, stdin), (stdout, own_out), (stderr, own_err), (status, own_status) = (os.pipe() for _ in range(4))
        order = {"code": code, "arguments": [*map(str, arguments)], "folder": os.getcwd()}
        order["environment"] = {**os.environ, **environment}
        files = [own_in, own_out, own_err, own_status]
        socket.send_fds(_loaded(), [json.dumps(order).encode()], files)
        for one in files:
            os.close(one)
        self.pid, self._status = int(_loaded().recv(MOST)), status
        self.stdin, self.stdout, self.stderr = os.fdopen(stdin, "w"), os.fdopen(stdout), os.fdopen(stderr)
        self._code: int | None = None

    def __enter__(self) -> Fork:
        return self

    def __exit__(self, *ended_by: object) -> None:
        self.kill()
        self.wait()
        for file in (self.stdin, self.stdout, self.stderr):
            file.close()
        os.close(self._status)

    def send_signal(self, number: int) -> None:
        """Send a signal, unless it has ended."""
        if self._code is None and not select.select([self._status], [], [], 0)[0]:
            os.kill(self.pid, number)

    def kill(self) -> None:
        """Kill it, unless it has ended."""
        self.send_signal(signal.SIGKILL)

    def wait(self, timeout: float = 300.0) -> int:
        """Its exit code, minus the number of the signal that ended it."""
        if self._code is None:
            if not select.select([self._status], [], [], timeout)[0]:
                raise TimeoutError(f"process {self.pid} runs after {timeout:g} s")
            self._code = int(os.read(self._status, 16))
        return self._code


def run_forked(code: str, *arguments: Any, **environment: str) -> str:
    """What a process prints that runs Python code and has to end well."""
    with Fork(code, *arguments, **environment) as process:
        printed = process.stdout.read()
        assert process.wait() == 0, process.stderr.read()
        return printed


def _serve(connection: socket.socket) -> None:
    """Fork for each order; a process between waits for the new one and tells its exit code."""
    import gc

    import torch

    import repairopt.interfaces.commandline.runs.solve_run  # noqa: F401

    torch.set_num_threads(1)
    gc.freeze()  # a collection in a fork would copy all that is shared
    while True:
        order, files, *_ = socket.recv_fds(connection, MOST, 4)
        with contextlib.suppress(ChildProcessError):  # so that their time is counted as that of the tests
            while os.waitpid(-1, os.WNOHANG if order else 0)[0]:
                pass
        if not order:
            return
        if not os.fork():
            process = os.fork()
            if not process:
                connection.close()
                os.close(files[3])
                _run(json.loads(order), files[:3])
            for one in files[:3]:
                os.close(one)
            connection.send(str(process).encode())
            _, status = os.waitpid(process, 0)
            os.write(files[3], str(os.waitstatus_to_exitcode(status)).encode())
            os._exit(0)
        for one in files:
            os.close(one)


def _run(order: dict[str, Any], files: list[int]) -> NoReturn:
    for standard, one in enumerate(files):
        os.dup2(one, standard)
        os.close(one)
    os.environ.clear()
    os.environ.update(order["environment"])
    os.chdir(order["folder"])
    sys.argv, code = ["-c", *order["arguments"]], 0
    try:
        exec(compile(order["code"], "<string>", "exec"), {"__name__": "__main__"})
    except SystemExit as ended:
        code = ended.code if isinstance(ended.code, int) else int(ended.code is not None)
    except BaseException:
        traceback.print_exc()
        code = 1
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


if __name__ == "__main__":
    _serve(socket.socket(fileno=int(sys.argv[1])))
