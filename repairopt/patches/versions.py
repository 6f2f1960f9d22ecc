"""Versions of the libraries that decide a result."""

from __future__ import annotations

import functools
import platform
from importlib.metadata import PackageNotFoundError, version


def library_versions() -> dict[str, str]:
    """Versions of Python and of the libraries that decide a result."""
    return dict(_read())


@functools.cache  # each name costs milliseconds, and what is imported does not change
def _read() -> dict[str, str]:
    found = {"python": platform.python_version()}
    for name in ("repairopt", "torch", "numpy", "scipy", "daqp", "piqp", "highspy"):
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found
