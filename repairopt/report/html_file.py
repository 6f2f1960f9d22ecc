"""write_html(): a repair, or the folder that holds its result, as one HTML page with pictures."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from repairopt.errors import SpecificationError
from repairopt.patches import whole_file
from repairopt.report.pictures.collect import evidence_from_dict
from repairopt.report.pictures.evidence import FILE, Evidence, load_evidence

from .html_page import render_page
from .repair import Repair
from .report import Report

RESULT = "result.json"
NEEDED = ("verdict", "meaning", "measures", "checks", "labels", "rounds", "weights")


def write_html(
    result: Repair | Report | str | Path,
    path: str | Path,
    *,
    title: str = "Repair report",
    frontier: Any = (),
    features: Sequence[str] = (),
) -> Path:
    """Write a report as one HTML page that needs no network.

    Args:
        result: A repair, its report, or a folder that holds ``result.json`` (a report as JSON, from
            :meth:`repairopt.Report.to_dict`, or an object that has it under ``"report"``) and, for pictures of samples,
            weights and inputs, ``evidence.npz`` (from :func:`repairopt.report.pictures.evidence.save_evidence`).
        path: Of the page; whole or not there at all.
        title: Heading of the page.
        frontier: From :func:`repairopt.trace_frontier`, or points with ``value`` and ``accuracy``.
        features: Names of the input columns.

    Raises:
        SpecificationError: The folder holds no result, or one that is not a report.
        PatchError: The folder of the page does not exist.
    """
    options: dict[str, Any] = {"title": title, "frontier": frontier, "features": features}
    if isinstance(result, Repair | Report):
        page = result.to_html(**options)
    elif isinstance(result, str | Path):
        plain, evidence, complete = _read(Path(result))
        page = render_page(plain, evidence, complete=complete, **options)
    else:
        raise SpecificationError(
            f"write_html: got a {type(result).__name__}; expected a Repair, a Report, or a folder with {RESULT}."
        )
    with whole_file(path) as file:
        file.write_text(page, encoding="utf-8")
    return Path(path)


def _read(folder: Path) -> tuple[dict[str, Any], Evidence, bool]:
    """Report, evidence, and whether that was collected from networks and data."""
    file = folder / RESULT
    try:
        plain = json.loads(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise SpecificationError(
            f"'{folder}': holds no readable {RESULT} ({error}). Pass the folder that a solve wrote to."
        ) from error
    except ValueError as error:
        raise SpecificationError(f"'{file}': is not JSON ({error}). Get it again, or run the repair again.") from error
    if isinstance(plain, dict) and isinstance(plain.get("report"), dict):
        plain = plain["report"]
    missing = [name for name in NEEDED if not isinstance(plain, dict) or name not in plain]
    if missing:
        raise SpecificationError(
            f"'{file}': is not the report of a repair; it lacks {', '.join(missing)}. Write it with "
            f"json.dumps(repair.report.to_dict())."
        )
    if (folder / FILE).is_file():
        return plain, load_evidence(folder), True
    return plain, evidence_from_dict(plain), False
