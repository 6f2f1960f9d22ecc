"""What the tests of this room share: the small spec, solved once in each process."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from small_spec import write_spec

from repairopt.interfaces.commandline.runs.solve_run import solve_spec


@pytest.fixture(scope="session")
def solved(tmp_path_factory) -> Path:
    """A folder with the small spec and all that it names, and its repair in ``run``; not to be written to."""
    folder = tmp_path_factory.mktemp("solved")
    solve_spec(write_spec(folder), folder / "run")
    return folder


@pytest.fixture
def folder(solved, tmp_path) -> Path:
    """A copy of it to write to."""
    shutil.copytree(solved, tmp_path / "copy")
    return tmp_path / "copy"
