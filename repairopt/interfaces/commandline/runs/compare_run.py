"""Compare methods on the subjects of a study; a killed comparison is taken up from its folder."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from repairopt.compare import NEEDS, TOOLS, Comparison, Limits, compare_repairs, list_systems, recommend_methods
from repairopt.errors import ResultError, SpecificationError
from repairopt.interfaces.commandline.bars import Bars
from repairopt.interfaces.specfile.study import read_study
from repairopt.patches import whole_file

from .results import CellLine, CompareResult, SystemLine, SystemsResult
from .solve_run import Progress

CELLS, PAGE, RESULT = "cells.jsonl", "comparison.html", "comparison.json"


def compare_study(
    source: str | Path,
    out: str | Path,
    *,
    methods: tuple[str, ...] = (),
    repetitions: int | None = None,
    time_limit: float | None = None,
    memory_limit: float | None = None,
    processes: int = 1,
    needs: tuple[str, ...] = (),
    resume: bool = False,
    progress: Progress | None = None,
) -> CompareResult:
    """Run all cells of a study that its folder does not hold yet, and write page and result.

    Args:
        source: A study, or a spec file.
        out: Folder to write to.
        methods: In place of those of the file.
        repetitions: In place of that of the file.
        time_limit: Seconds of a cell, in place of that of the file.
        memory_limit: GiB of a cell, in place of that of the file.
        processes: Cells at a time.
        needs: What a recommendation is asked for, see :func:`recommend_methods`.
        resume: Whether the folder may hold cells.
        progress: What the user is told meanwhile.

    Raises:
        SpecFileError: The study or a spec is malformed.
        ResultError: The folder holds cells, or something else.
    """
    tell, started, folder = progress or Bars(quiet=True), time.perf_counter(), Path(out)
    if folder.exists() and not folder.is_dir():
        raise ResultError(f"'{folder}' is a file; expected the name of a folder. Give another --out.")
    if (folder / CELLS).exists() and not resume:
        raise ResultError(f"'{folder}' holds a comparison. Use --resume to continue it, or another --out.")
    if unknown := [need for need in needs if need not in NEEDS]:
        raise SpecificationError(f"need {unknown[0]!r}: choose among {', '.join(NEEDS)}.")
    with tell.stage("reading models and data"):
        study = read_study(source, methods)
    seconds = study.limits.seconds if time_limit is None else time_limit
    memory = study.limits.memory if memory_limit is None else int(memory_limit * 2**30)
    count = study.repetitions if repetitions is None else repetitions
    total = len(study.methods) * len(study.subjects) * count
    with tell.stage("repairing", total) as step, _resumable(folder):
        found = compare_repairs(
            study.subjects,
            study.methods,
            repetitions=count,
            limits=Limits(seconds, memory),
            folder=folder,
            processes=processes,
            published=study.published,
            progress=lambda done, of, left, cell: step(
                f"{done}/{of}{'' if math.isnan(left) else f', {left:.0f} s left'}, {cell.method}", done / of
            ),
        )
    result = CompareResult(
        exit_code=0,
        source=str(source),
        out=str(folder / PAGE),
        methods=found.methods,
        subjects=found.subjects,
        cells=[CellLine(**line) for line in found.to_dict()["cells"]],
        letters={one.name: found.letters(one.name) for one in found.measured()},
        advice=_advice(found, needs),
        table=str(found),
        seconds=time.perf_counter() - started,
    )
    with whole_file(folder / RESULT) as part:
        part.write_text(result.model_dump_json(indent=1) + "\n", encoding="utf-8")
    return result


@contextmanager
def _resumable(folder: Path) -> Iterator[None]:
    """Ctrl-C is told what to do with the cells that have ended."""
    try:
        yield
    except KeyboardInterrupt as stop:
        if (folder / CELLS).exists():
            stop.add_note(f"The same command with --resume continues what '{folder}' holds.")
        raise


def _advice(found: Comparison, needs: tuple[str, ...]) -> list[str]:
    """The methods, the most advisable first; why there is no advice where nothing was measured for it."""
    try:
        return [one.to_text() for one in recommend_methods(found, *needs)]
    except SpecificationError as error:
        return [f"none, {error}"]


def list_contestants() -> SystemsResult:
    """All methods and systems that can be compared."""
    lines = [
        SystemLine(
            name=one.name,
            method=one.method,
            family=one.family,
            needs=list(one.needs),
            paper=one.papers,
            what=one.summary,
        )
        for one in list_systems()
    ]
    tools = [
        SystemLine(name=name, method=where, family=family, needs=[], paper="", what="") for name, family, where in TOOLS
    ]
    return SystemsResult(exit_code=0, systems=[*lines, *tools])
