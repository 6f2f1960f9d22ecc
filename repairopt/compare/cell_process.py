"""The processes of cells: ``python -m repairopt.compare.cell_process`` loads the libraries once, for all of them.

Each line that it reads is the folder of a job; it forks, and answers with the number of the new process, which runs the
job. What is forked has computed nothing yet and has one thread, so that a cell finds what a new process would find.
Where the system cannot fork soundly, the folder is the argument, and this process runs its job itself.
"""

from __future__ import annotations

import gc
import os
import pickle
import select
import sys
import threading
from pathlib import Path

import numpy as np
import torch

from .cell import FINISHED, Job, run_here

LOOK = 0.02  # seconds between looks for processes that ended


def main() -> None:
    """Run the job of a folder, in this process or in those that it becomes."""
    if len(sys.argv) > 1:
        _end_with(0)
        return run_job(Path(sys.argv[1]))
    folder = serve_forks()
    if folder is not None:
        run_job(folder)
        sys.stdout.flush()
        os._exit(0)  # to take down all that is loaded costs a second


def run_job(folder: Path) -> None:
    """Run the job that the parent wrote, and write its cell."""
    job: Job = pickle.loads((folder / "job").read_bytes())  # written by the parent, in a folder of its own
    _write(folder / "cell", run_here(job, (folder / FINISHED).touch).to_json())


def serve_forks() -> Path | None:
    """Fork for each folder that is read; in a new process its folder, and None when the input ends.

    The file ``code`` of a folder holds the exit code of its process, when that has ended.
    """
    running: dict[int, Path] = {}
    torch.func.grad(torch.sum)(torch.zeros(1))  # at its first use torch loads a second time as much
    gc.freeze()  # a collection in a new process would copy all that is shared
    alive, held = os.pipe()  # no process but this one holds its writing end
    with open(0, "rb", buffering=0, closefd=False) as orders:
        while True:
            if select.select([orders], [], [], LOOK)[0]:
                folder = Path(os.fsdecode(orders.readline().rstrip(b"\n")))
                if not folder.name:
                    return None
                process = os.fork()
                if not process:
                    os.close(held)
                    _begin(folder, alive)
                    return folder
                running[process] = folder
                print(process, flush=True)
            for process in list(running):
                ended, status = os.waitpid(process, os.WNOHANG)
                if ended:
                    _write(running.pop(process) / "code", str(os.waitstatus_to_exitcode(status)))


def _begin(folder: Path, alive: int) -> None:
    """Take leave of what is shared with other forks: terminal, input and output, and NumPy's random state."""
    os.setsid()
    empty, log = os.open(os.devnull, os.O_RDONLY), os.open(folder / "log", os.O_WRONLY | os.O_CREAT)
    for own, standard in ((empty, 0), (log, 1), (log, 2)):
        os.dup2(own, standard)
    np.random.seed()  # noqa: NPY002 - methods of users may draw from it
    _end_with(alive)


def _end_with(pipe: int) -> None:
    """End this process as soon as nobody holds the writing end of a pipe."""

    def watch() -> None:
        while os.read(pipe, 1):
            pass
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def _write(path: Path, text: str) -> None:
    """Write a file that is seen as a whole."""
    part = path.with_suffix(".part")
    part.write_text(text, encoding="utf-8")
    part.replace(path)


if __name__ == "__main__":
    main()
