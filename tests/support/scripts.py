"""Runs a script as ``python script.py`` would, in this process, where the libraries are loaded."""

from __future__ import annotations

import contextlib
import io
import os
import runpy
import sys
import warnings
from pathlib import Path
from unittest import mock


def run_script(path: Path, *options: str, environment: dict[str, str] | None = None) -> str:
    """What the script prints; what it raises is raised, and warnings of the libraries that it uses are no errors."""
    with (
        mock.patch.dict(os.environ, environment or {}),
        mock.patch.multiple(sys, argv=[str(path), *options], path=[str(path.parent), *sys.path]),
        contextlib.redirect_stdout(io.StringIO()) as printed,
        warnings.catch_warnings(),
    ):
        warnings.simplefilter("default")
        runpy.run_path(str(path), run_name="__main__")
    return printed.getvalue()
