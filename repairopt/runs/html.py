"""The report as one HTML file, by the writer of the library where it is installed."""

from __future__ import annotations

from collections.abc import Sequence
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

WRITER, EVIDENCE = "repairopt.html_report", "repairopt.pictures.evidence"


def write_report(source: Any, path: Path, features: Sequence[str] = ()) -> str:
    """Write ``report.html``; beside a fresh one also the evidence that it can be made from again.

    Args:
        source: A repair, or the folder of a run.
        path: Of the file.
        features: Names of the input columns.

    Returns:
        Why it was not written, or nothing.
    """
    if find_spec(WRITER) is None:
        return "report.html was not written: this build has no writer for it."
    if find_spec("matplotlib") is None:
        return "report.html was not written: it needs matplotlib. Install with: pip install repairopt[report]"
    if not isinstance(source, Path):
        import_module(EVIDENCE).save_evidence(source.report.evidence, path.parent)
    import_module(WRITER).write_html(source, path, features=list(features))
    return ""
