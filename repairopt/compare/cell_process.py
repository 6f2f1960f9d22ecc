"""The process of a cell: ``python -m repairopt.compare.cell_process FOLDER`` runs the job in it and writes its cell."""

from __future__ import annotations

import os
import pickle
import sys
import threading
from pathlib import Path

from .cell import FINISHED, Job, run_here


def main(folder: Path) -> None:
    """Run the job that the parent wrote; end with the parent, which holds the other side of standard input."""
    threading.Thread(target=_end_with_parent, daemon=True).start()
    job: Job = pickle.loads((folder / "job").read_bytes())  # written by the parent, in a folder of its own
    part = folder / "part"
    part.write_text(run_here(job, (folder / FINISHED).touch).to_json(), encoding="utf-8")
    part.replace(folder / "cell")


def _end_with_parent() -> None:
    sys.stdin.buffer.read()
    os._exit(1)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
