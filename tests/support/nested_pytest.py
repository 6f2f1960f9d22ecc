"""Runs pytest in this process, where torch is loaded, with the plug-in of the library and no other."""

from __future__ import annotations

import contextlib
import io
from pathlib import Path

import pytest

OTHERS = ("cacheprovider", "xdist", "hypothesispytest", "anyio", "unraisableexception")


def run_nested(folder: Path, *options: str) -> tuple[int, str]:
    """Exit code, and what is printed, errors of usage too."""
    quiet = [word for name in OTHERS for word in ("-p", f"no:{name}")]
    text = io.StringIO()
    with contextlib.chdir(folder), contextlib.redirect_stdout(text), contextlib.redirect_stderr(text):
        code = pytest.main(["--capture=no", *quiet, *options])
    return int(code), text.getvalue()
