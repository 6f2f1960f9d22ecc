"""The report as one HTML file, beside it the evidence that it can be made from again."""

from __future__ import annotations

from collections.abc import Sequence
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

WRITER, EVIDENCE = (
    "repairopt.report.html_file",
    "repairopt.report.pictures.evidence",
)  # loaded late, so that verify runs without


def write_report(source: Any, path: Path, features: Sequence[str] = ()) -> str:
    """Write ``report.html`` of a repair or of the folder of a run; returns what is missing in it, or nothing."""
    if not isinstance(source, Path):
        import_module(EVIDENCE).save_evidence(source.report.evidence, path.parent)
    import_module(WRITER).write_html(source, path, features=list(features))
    if find_spec("matplotlib") is None:
        return "report.html has no pictures: they need matplotlib. Install with: pip install repairopt[report]"
    return ""
