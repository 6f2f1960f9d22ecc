"""compare_repairs(): methods on subjects, several times each, in a folder that a killed comparison is taken up from."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field, replace
from pathlib import Path
from threading import Event
from typing import Any

import numpy as np
from filelock import FileLock, Timeout

from repairopt.errors import ResultError, SpecificationError, forgiven, path_of, public
from repairopt.patches import whole_file
from repairopt.report import render_comparison, shown_letters
from repairopt.specify import is_sequence

from .blocks import adjust_means
from .cell import Cell, CellOutcome, Job, Limits
from .cell_runner import CellRunner
from .contestants import named_methods
from .fixing_metrics import METRICS, Metric
from .letters import known_values, letter_groups
from .subject import Subject

CELLS, LOCK, PAGE = "cells.jsonl", ".lock", "comparison.html"
MOST_REASON = 220  # characters of a reason in a line
LEAST = 1e-9  # of a figure whose logarithm is compared
Progress = Callable[[int, int, float, Cell], None]  # cells done, of all, seconds left, the last one


@dataclass(frozen=True, eq=False)
class Comparison:
    """Cells of methods and subjects, and what follows from them.

    Attributes:
        cells: All cells, in the order of methods, subjects and repetitions.
        published: Rows of published figures to show beside: subject, system, metric, value.
    """

    cells: tuple[Cell, ...]
    published: tuple[tuple[str, str, str, float], ...] = field(default=(), repr=False)

    @property
    def methods(self) -> list[str]:
        """Labels, in order."""
        return list(dict.fromkeys(cell.method for cell in self.cells))

    @property
    def subjects(self) -> list[str]:
        """Names, in order."""
        return list(dict.fromkeys(cell.subject for cell in self.cells))

    def values(
        self, metric: str, *, relative: bool = False, difference: bool = False
    ) -> dict[str, dict[tuple[str, int], float]]:
        """For each method its figures by subject and repetition; what was not measured is left out.

        Args:
            metric: A name of ``METRICS``.
            relative: Whether figures are changes relative to the original network, ``(new - old) / old``.
            difference: Whether figures are differences from the original network, ``new - old``.
        """
        found: dict[str, dict[tuple[str, int], float]] = {name: {} for name in self.methods}
        for cell in self.cells:
            value = cell.value(metric)
            if relative or difference:
                before = cell.value(f"{metric}_before")
                size = 1.0 if difference else before
                value = (value - before) / size if size else float("nan")
            if np.isfinite(value):
                found[cell.method][cell.subject, cell.repetition] = value
        return found

    def letters(self, metric: str, *, test: str = "blocked") -> dict[str, str]:
        """Letters of the methods, see :func:`letter_groups`, of the values that :meth:`means` are of."""
        return letter_groups(self._compared(metric), better=find_metric(metric).better, test=test)

    def means(self, metric: str) -> dict[str, float]:
        """By method its mean over all networks and repetitions, adjusted for those that were not measured.

        Where the metric says so, figures are differences from the original network, or means are geometric.
        """
        found = adjust_means(known_values(self._compared(metric))).means
        return {name: math.exp(mean) if find_metric(metric).geometric else mean for name, mean in found.items()}

    def _compared(self, metric: str) -> dict[str, dict[tuple[str, int], float]]:
        one = find_metric(metric)
        found = self.values(metric, difference=one.relative)
        if not one.geometric:
            return found
        return {name: {cell: math.log(max(v, LEAST)) for cell, v in own.items()} for name, own in found.items()}

    def outcomes(self, method: str, subject: str) -> list[CellOutcome]:
        """How the cells of a method on a subject ended."""
        return [cell.outcome for cell in self.cells if cell.method == method and cell.subject == subject]

    def mean(self, method: str, subject: str, metric: str) -> tuple[float, float]:
        """Mean of the measured repetitions and its standard error; NaN where there are none, or one."""
        own = [cell.value(metric) for cell in self.cells if cell.method == method and cell.subject == subject]
        known = np.array([value for value in own if np.isfinite(value)])
        if not len(known):
            return float("nan"), float("nan")
        error = float(known.std(ddof=1) / len(known) ** 0.5) if len(known) > 1 else float("nan")
        return float(known.mean()), error

    def measured(self) -> list[Metric]:
        """The metrics that have figures."""
        return [one for one in METRICS if any(np.isfinite(cell.value(one.name)) for cell in self.cells)]

    def __str__(self) -> str:
        lines = []
        for subject in self.subjects:
            lines.append(subject)
            lines.append(f"  {'':24}" + "".join(f"{one.title:>16}" for one in self.measured()))
            for method in self.methods:
                told = [self._cell_text(method, subject, one) for one in self.measured()]
                other = [str(o) for o in self.outcomes(method, subject) if o is not CellOutcome.MEASURED]
                note = f"   {', '.join(dict.fromkeys(other))}" if other else ""
                lines.append(f"  {method[:24]:24}" + "".join(f"{one:>16}" for one in told) + note)
        lines.append("over all: mean and group; methods that share a letter do not differ significantly; a is best")
        letters = {one.name: self.letters(one.name) for one in self.measured()}
        means = {one.name: self.means(one.name) for one in self.measured()}
        for method in self.methods:
            told = [
                f"{means[one.name][method]:.4f} {shown_letters(letters[one.name][method])}"
                if method in means[one.name]
                else "-"
                for one in self.measured()
            ]
            lines.append(f"  {method[:24]:24}{''.join(f'{one:>16}' for one in told)}")
        lines += dict.fromkeys(
            f"not measured: {one.method} on {one.subject}, {one.outcome}: {' '.join(one.reason.split())[:MOST_REASON]}"
            for one in self.cells
            if one.outcome is not CellOutcome.MEASURED
        )
        return "\n".join(lines)

    def _cell_text(self, method: str, subject: str, metric: Metric) -> str:
        mean, error = self.mean(method, subject, metric.name)
        if not np.isfinite(mean):
            return "-"
        return f"{mean:.4f}" + (f"±{error:.4f}" if np.isfinite(error) else "")

    def to_dict(self) -> dict[str, Any]:
        """Everything as plain values."""
        return {
            "format": 1,
            "methods": self.methods,
            "subjects": self.subjects,
            "cells": [json.loads(cell.to_json()) for cell in self.cells],
            "means": {one.name: self.means(one.name) for one in self.measured()},
            "letters": {one.name: self.letters(one.name) for one in self.measured()},
            "paired_letters": {one.name: self.letters(one.name, test="paired") for one in self.measured()},
        }

    def to_html(self, *, title: str = "Comparison of repairs") -> str:
        """One HTML page that needs no network: table with letters, pictures, ranks, figures of papers beside."""
        return render_comparison(self, self.measured(), title=title)

    @public
    def save_html(self, path: str | Path, **options: Any) -> Path:
        """Write the page of :meth:`to_html` to a file, whole or not at all."""
        page = self.to_html(**options)
        with whole_file(path) as file:
            file.write_text(page, encoding="utf-8")
        return Path(path)


def find_metric(name: str) -> Metric:
    """The metric of a name; a SpecificationError where there is none."""
    for one in METRICS:
        if name in (one.name, one.title):
            return one
    raise SpecificationError(f"metric={name!r}; choose one of {', '.join(one.name for one in METRICS)}.")


@public
def compare_repairs(
    subjects: Subject | Sequence[Subject],
    methods: Any = ("auto",),
    *,
    repetitions: int = 3,
    limits: Limits | None = None,
    folder: str | Path | None = None,
    processes: int = 1,
    published: Sequence[tuple[str, str, str, float]] = (),
    progress: Progress | None = None,
) -> Comparison:
    """Repair each subject with each method several times, and measure the outcome on test rows.

    Every cell runs in a process of its own with one thread, so that neither a crash, nor a leak, nor a hang of a
    method reaches another. All methods get the same specification; systems of the literature are measured by their own
    product, the library's own methods by the network that a repair ends with.

    Args:
        subjects: One or several.
        methods: Names of methods or systems (``repairopt compare --list``) and instances, or a dict from labels to
            such.
        repetitions: How often, with random seeds 0, 1 and so on.
        limits: Of each cell; 600 seconds and 4 GiB by default.
        folder: Where cells are kept: what is there from a comparison that was killed, or of fewer methods, is not run
            again. None to keep nothing.
        processes: Cells that run at the same time.
        published: Figures of papers to show beside: subject, system, metric, value.
        progress: Called after each cell: cells done, of all, seconds left, the cell.

    Returns:
        The comparison. What a method cannot do is an outcome of its cell, not an exception.

    Raises:
        SpecificationError: Subjects or methods are malformed, two subjects have one name, or nothing is to be repaired.
        ResultError: Another process works in the folder, or it cannot be written to.

    References:
        A Comprehensive Study of Deep Learning Model Fixing Approaches: protocol, metrics, letter groups.

    Example:
        >>> from repairopt.compare import compare_repairs, Subject  # doctest: +SKIP
        >>> print(compare_repairs(subject, ["sqp", "fine_tune", "Apricot (AP)"], folder="study"))  # doctest: +SKIP
    """
    given = [subjects] if isinstance(subjects, Subject) else list(subjects) if is_sequence(subjects) else []
    if not given or not all(isinstance(one, Subject) for one in given):
        raise SpecificationError("subjects: expected one or several repairopt.compare.Subject.")
    if len({one.name for one in given}) < len(given):
        raise SpecificationError(f"subjects: two have one name, among {[one.name for one in given]}; rename one.")
    for name, count in (("repetitions", repetitions), ("processes", processes)):
        if isinstance(count, bool) or not isinstance(count, int) or count < 1:
            raise SpecificationError(f"{name}={count!r}; expected a whole number, 1 or more.")
    made = named_methods(methods)
    progress = None if progress is None else forgiven("progress", progress)
    for one in given:
        one.specification()  # what is wrong with it is said before anything runs
    digests = {one.name: one.digest() for one in given}
    bound = limits or Limits()
    jobs = [
        Job(label, method, subject, k, bound)
        for label, method in made.items()
        for subject in given
        for k in range(repetitions)
    ]
    keys = [job.key(digests[job.subject.name]) for job in jobs]
    with _working_in(folder) as known:
        done = {key: known[key] for key in keys if key in known}
        for key, cell in _run_all(
            [(key, job) for key, job in zip(keys, jobs, strict=True) if key not in done], processes
        ):
            done[key] = replace(cell, key=key)
            _keep(folder, done[key])
            if progress is not None:
                progress(len(done), len(jobs), _left(done, known, len(jobs), processes), done[key])
    found = Comparison(tuple(done[key] for key in keys), tuple(published))
    if folder is not None:
        found.save_html(Path(folder) / PAGE)
    return found


def _run_all(jobs: Sequence[tuple[str, Job]], processes: int) -> Iterator[tuple[str, Cell]]:
    """Cells as they end; where the caller stops early, those that run are killed and no further one begins."""
    waiting, stop = iter(jobs), Event()
    with CellRunner(stop) as runner, ThreadPoolExecutor(max_workers=processes) as pool:
        running: dict[Future[Cell], str] = {}
        try:
            while True:
                while len(running) < processes and (following := next(waiting, None)) is not None:
                    running[pool.submit(runner.run, following[1])] = following[0]
                if not running:
                    return
                for one in wait(running, return_when=FIRST_COMPLETED).done:
                    yield running.pop(one), one.result()
        finally:
            stop.set()  # what still runs is killed


def _left(done: Mapping[str, Cell], known: Mapping[str, Cell], count: int, processes: int) -> float:
    """Seconds left, from the mean of the cells of this call."""
    own = [cell.seconds for key, cell in done.items() if key not in known and np.isfinite(cell.seconds)]
    return float(np.mean(own)) * (count - len(done)) / processes if own else float("nan")


@contextmanager
def _working_in(folder: str | Path | None) -> Iterator[dict[str, Cell]]:
    """The cells that a folder holds by key, while no other process works in it."""
    if folder is None:
        with nullcontext():
            yield {}
        return
    path = path_of(folder, "folder", written=True)
    try:
        path.mkdir(parents=True, exist_ok=True)
        with FileLock(path / LOCK, timeout=0):
            _end_last_line(path / CELLS)
            yield read_cells(path)
    except Timeout:
        raise ResultError(f"'{path}': another process is at work in it. Wait for its end, or choose another.") from None
    except OSError as error:
        raise ResultError(f"'{path}': cannot be written to ({error.strerror or error}). Choose another.") from error


def read_cells(folder: str | Path) -> dict[str, Cell]:
    """The cells that a folder holds, by key; a line that was cut short by a kill is dropped."""
    path, found = path_of(folder, "folder") / CELLS, dict[str, Cell]()
    if not path.exists():
        return found
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            cell = Cell.from_json(line)
        except (ValueError, TypeError, KeyError):
            continue
        found[cell.key] = cell
    return found


def _end_last_line(path: Path) -> None:
    """End a line that was cut short by a kill, so that what follows is a line of its own."""
    if path.exists() and (text := path.read_bytes()) and not text.endswith(b"\n"):
        with path.open("ab") as file:
            file.write(b"\n")


def _keep(folder: str | Path | None, cell: Cell) -> None:
    if folder is not None:
        with (Path(folder) / CELLS).open("a", encoding="utf-8") as file:
            file.write(cell.to_json() + "\n")
