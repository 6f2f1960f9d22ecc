"""Paths on the command line: what no file can be called is refused before a command begins."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from repairopt.errors import RepairError, path_of


class GivenPath(click.Path):
    """A path; an empty one is a variable of a shell that is not set, mostly, and is refused.

    Args:
        written: Whether the command writes there.
    """

    def __init__(self, written: bool = False) -> None:
        super().__init__(path_type=Path)
        self.written = written

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Path:
        """The path, with ``~`` as the home folder; a usage error where it can be none."""
        try:
            return path_of(value, "", written=self.written)
        except RepairError as error:
            self.fail(str(error).removeprefix(": "), param, ctx)


FILE, NEW = GivenPath(), GivenPath(written=True)
