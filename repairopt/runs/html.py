"""The report as one HTML file, by the writer of the library where it is installed."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import Any

WRITER = "repairopt.html_report"


def write_report(source: Any, path: Path) -> str:
    """Write ``report.html``.

    Args:
        source: A repair's report, or the folder of a run.
        path: Of the file.

    Returns:
        Why it was not written, or nothing.
    """
    if find_spec(WRITER) is None:
        return "report.html was not written: this build has no writer for it."
    if find_spec("matplotlib") is None:
        return "report.html was not written: it needs matplotlib. Install with: pip install repairopt[html]"
    from importlib import import_module

    import_module(WRITER).write_html(source, path)
    return ""
