"""One cell of a comparison: one method on one subject once."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from enum import StrEnum
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
FINISHED = "finished"  # name of the file by which a process says that its method has ended


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
