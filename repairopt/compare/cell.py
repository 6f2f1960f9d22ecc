"""One cell of a comparison: one method on one subject once, run in a process of its own, within limits."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from enum import StrEnum
from pathlib import Path
from typing import Any

from repairopt.errors import ModelError, RepairError, SpecificationError, UnsupportedError
from repairopt.methods import Method, uses
from repairopt.patches import library_versions
from repairopt.pipeline import Settings, propose_candidate, solve_repair

from .contestants import is_published
from .fixing_metrics import measure_fixing
from .stated import hash_stated
from .subject import Subject

CORRUPTING = 0.1  # share of the accuracy, above whose loss a network counts as corrupted
GRACE, LOADING = 0.25, 60.0  # of the time limit, and seconds, after which a process that does not end is killed
MEASURING = 600.0  # further seconds for figures of what a method has ended with, such as its robustness
UNMEASURED = f"the method ended in time, but its network could not be measured within {MEASURING:g} s more"
FINISHED = "finished"  # name of the file by which a process says that its method has ended
LOOK = 0.05  # seconds between looks at the memory of a process
LOG = 2000  # characters of what a process wrote that are kept where it failed


class CellOutcome(StrEnum):
    """How a cell ended; only measured ones have figures that count."""

    MEASURED = "measured"
    CORRUPTED = "corrupted"
    FAILURE = "failure"
    UNADAPTABLE = "unadaptable"


@dataclass(frozen=True)
class Cell:
    """One method on one subject, once.

    Attributes:
        method: Label of the method.
        subject: Name of the subject.
        repetition: Which time; also the random seed.
        outcome: How it ended: measured; corrupted (it lost more than a tenth of the accuracy); failure (a crash, no
            memory, no time); unadaptable (structure or data do not fit the method).
        reason: Why, where it is not measured; else a remark, or empty.
        metrics: Figures by name, see ``METRICS``; those of the original network end in ``_before``.
        seconds: Wall time of the method.
        key: Hash of all that the outcome depends on.
    """

    method: str
    subject: str
    repetition: int
    outcome: CellOutcome
    reason: str = ""
    metrics: dict[str, float] | None = None
    seconds: float = float("nan")
    key: str = ""

    def to_json(self) -> str:
        """One line."""
        known = {name: value for name, value in (self.metrics or {}).items() if math.isfinite(value)}
        seconds = round(self.seconds, 4) if math.isfinite(self.seconds) else None
        return json.dumps({**asdict(self), "metrics": known, "seconds": seconds}, sort_keys=True)

    @classmethod
    def from_json(cls, line: str) -> Cell:
        """The cell of a line; a ValueError or TypeError where it is none."""
        found = json.loads(line)
        seconds = float("nan") if found["seconds"] is None else float(found["seconds"])
        return cls(**{**found, "outcome": CellOutcome(found["outcome"]), "seconds": seconds})

    def value(self, metric: str) -> float:
        """A figure, NaN where there is none or the cell does not count."""
        if self.outcome is not CellOutcome.MEASURED or self.metrics is None:
            return float("nan")
        return self.metrics.get(metric, float("nan"))


@dataclass(frozen=True)
class Limits:
    """Limits of a cell: seconds for the method, bytes of the process; None for no limit of memory."""

    seconds: float = 600.0
    memory: int | None = 4 * 2**30

    def __post_init__(self) -> None:
        if not self.seconds > 0 or (self.memory is not None and self.memory < 2**28):
            raise SpecificationError(f"limits: {self}; expected seconds above 0, and 256 MiB of memory or more.")


@dataclass(frozen=True, eq=False)
class Job:
    """What a process is given.

    Attributes:
        label: Of the method.
        method: An instance, or ``"auto"``.
        subject: The subject.
        repetition: Which time; also the random seed.
        limits: Of time and memory.
    """

    label: str
    method: Method | str
    subject: Subject
    repetition: int
    limits: Limits

    def key(self, digest: str) -> str:
        """Hash of all that the outcome depends on; ``digest`` is that of the subject."""
        version = library_versions().get("repairopt", "")
        return hash_stated(self.label, self.method, digest, self.repetition, self.limits, version)


def run_here(job: Job, finished: Callable[[], None] = lambda: None) -> Cell:
    """Run and measure a cell in this process; whatever the method raises is an outcome.

    Args:
        job: What to run.
        finished: Called when the method has ended, before its network is measured.
    """
    subject, settings = job.subject, Settings(seed=job.repetition, time_limit=job.limits.seconds)
    started, cpu = time.perf_counter(), time.process_time()

    def ended(outcome: CellOutcome, reason: str = "", metrics: dict[str, float] | None = None) -> Cell:
        return Cell(job.label, subject.name, job.repetition, outcome, reason, metrics, spent)

    spent = float("nan")
    try:
        spec = subject.specification()
        method = subject.given_to(job.method)
        given: Any = {"data": subject.data, "method": method, "settings": settings}
        if "weights" in uses(method):
            given["weights"] = subject.weights
        if is_published(method):
            proposal = propose_candidate(subject.model, spec, **given)
            fixed, stopped = proposal.apply(), proposal.stopped
        else:
            repair = solve_repair(subject.model, spec, **given)
            fixed, stopped = repair.model, repair.report.stopped
        spent, used = time.perf_counter() - started, time.process_time() - cpu
        finished()
        metrics = measure_fixing(subject, subject.network, fixed, job.repetition) | {"cpu_seconds": used}
    except (SpecificationError, ModelError, UnsupportedError) as error:
        return ended(CellOutcome.UNADAPTABLE, str(error))
    except (RepairError, ArithmeticError, LookupError, TypeError, ValueError, RuntimeError, MemoryError) as error:
        return ended(CellOutcome.FAILURE, f"{type(error).__name__}: {error}")
    if metrics["accuracy"] < (1 - CORRUPTING) * metrics["accuracy_before"]:
        lost = f"accuracy fell from {metrics['accuracy_before']:.4f} to {metrics['accuracy']:.4f}"
        return ended(CellOutcome.CORRUPTED, lost, metrics)
    return ended(CellOutcome.MEASURED, f"ended by: {stopped}" if stopped else "", metrics)


def run_apart(job: Job, stop: threading.Event) -> Cell:
    """Run a cell in a process of its own; never raises for what it does.

    The process is killed where it exceeds a limit or ``stop`` is set. Ctrl-C at the terminal reaches the parent alone:
    a method that it ended early would look like one that was done.
    """
    import cloudpickle

    with tempfile.TemporaryDirectory(prefix="repairopt-cell-") as name:
        folder = Path(name)
        (folder / "job").write_bytes(cloudpickle.dumps(job))
        surroundings = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"), "1")
        surroundings["PYTHONPATH"] = os.pathsep.join(filter(None, sys.path))  # classes are found where they are here
        command = [sys.executable, "-m", "repairopt.compare.cell_process", str(folder)]
        with (folder / "log").open("wb") as log:
            process = subprocess.Popen(
                command,
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=log,
                env={**os.environ, **surroundings},
                start_new_session=True,
            )
            try:
                killed = _watch(process, job.limits, stop, folder / FINISHED)
            finally:
                _kill(process)
        empty = Cell(job.label, job.subject.name, job.repetition, CellOutcome.FAILURE)
        if killed:
            return replace(empty, reason=killed)
        try:
            return Cell.from_json((folder / "cell").read_text(encoding="utf-8"))
        except (OSError, ValueError, TypeError, KeyError):
            told = (folder / "log").read_text(encoding="utf-8", errors="replace").strip()[-LOG:]
            return replace(empty, reason=f"the process ended with code {process.returncode}: {told or 'no message'}")


def _watch(process: subprocess.Popen[bytes], limits: Limits, stop: threading.Event, finished: Path) -> str:
    """Wait for the end of a process; why it is to be killed, or empty. A file says that its method has ended."""
    import psutil

    end, told = time.monotonic() + (1 + GRACE) * limits.seconds + LOADING, f"no result within {limits.seconds:g} s"
    watched = psutil.Process(process.pid)
    while process.poll() is None:
        if stop.is_set():
            return "interrupted"
        if time.monotonic() > end:
            if told == UNMEASURED or not finished.exists():
                return told
            end, told = time.monotonic() + MEASURING, UNMEASURED
        try:
            size = watched.memory_info().rss
        except psutil.Error:
            break  # it has just ended
        if limits.memory is not None and size > limits.memory:
            return f"more than {limits.memory / 2**30:.1f} GiB of memory"
        time.sleep(LOOK)
    process.wait()
    return ""


def _kill(process: subprocess.Popen[bytes]) -> None:
    if process.stdin is not None:
        process.stdin.close()
    if process.poll() is None:
        process.kill()
        process.wait()
