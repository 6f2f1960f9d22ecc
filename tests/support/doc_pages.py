"""Runs the code of a Markdown page in order, as a reader would, in the current folder.

A fence says in its title what becomes of it:

* ``python`` without a title is executed; all of a page share one namespace.
* ``sh`` without a title runs ``repairopt`` line by line; a line may end with ``  # exit code 1``.
* A title that is a file name, as in ``yaml title="spec.yaml"``, writes that file.
* ``title="not run: why"`` leaves the fence alone, and tells readers why.
* ``text`` after a fence that ran shows its output: each line must occur in it, numbers aside.
"""

from __future__ import annotations

import contextlib
import io
import re
import shlex
from dataclasses import dataclass
from importlib.metadata import entry_points
from pathlib import Path
from types import ModuleType

FENCE = re.compile(r'^```(\w*)(?: title="([^"]*)")?\n(.*?)^```$', flags=re.MULTILINE | re.DOTALL)
RUN = ("python", "sh")


@dataclass(frozen=True)
class Fence:
    """A fenced block of a page."""

    language: str
    title: str
    body: str

    @property
    def runs(self) -> bool:
        """Whether its body is executed."""
        return self.language in RUN and not self.title


def fences(text: str) -> list[Fence]:
    """All fenced blocks of a page."""
    return [Fence(*match) for match in FENCE.findall(text)]


def table(text: str, heading: str) -> list[list[str]]:
    """Cells of the first table under a heading of the second level, without its head."""
    section = text.split(f"\n## {heading}\n")[1].split("\n## ")[0]
    (rows, *_) = [block.splitlines() for block in re.findall(r"(?:^\|.*\n)+", section + "\n", flags=re.MULTILINE)]
    return [[cell.strip() for cell in re.split(r"(?<!\\)\|", row)[1:-1]] for row in rows[2:]]


def words(text: str) -> list[str]:
    """The lines without their numbers, which differ a little between machines."""
    lines = [re.sub(r"[-+]?\d[\d.]*(e-?\d+)?|\b(holds|FAILS)\b", "", line) for line in text.splitlines()]
    return [" ".join(line.split()) for line in lines]


def missing_lines(shown: str, printed: str) -> list[str]:
    """The lines of a shown output that the printed one does not have, or begin; dots stand for any others."""
    found = words(printed)
    return [line for line in words(shown) if line != "..." and not any(other.startswith(line) for other in found)]


def run_page(path: Path, module: ModuleType) -> list[str]:
    """Run a page.

    Args:
        path: The page.
        module: Namespace of its Python; in ``sys.modules``, because dataclasses look their module up.

    Returns:
        What each fence that ran has printed.
    """
    printed: list[str] = []
    last: Fence | None = None
    for fence in fences(path.read_text(encoding="utf-8")):
        if fence.title and not fence.title.startswith("not run: "):
            Path(fence.title).parent.mkdir(parents=True, exist_ok=True)
            Path(fence.title).write_text(fence.body, encoding="utf-8")
        elif fence.runs:
            printed.append(_run(fence, path, module))
        elif fence.language == "text" and last is not None and last.runs:
            lost = missing_lines(fence.body, printed[-1])
            assert not lost, f"{path.name} shows lines that were not printed: {lost}\n{printed[-1]}"
        last = fence
    return printed


def _run(fence: Fence, path: Path, module: ModuleType) -> str:
    if fence.language == "sh":
        return "".join(_command(line) for line in fence.body.splitlines() if line.strip())
    with contextlib.redirect_stdout(io.StringIO()) as output:
        exec(compile(fence.body, path.name, "exec"), module.__dict__)
    return output.getvalue()


def _command(line: str) -> str:
    """Run the command line of the library in this process, which has torch loaded; what it prints."""
    command, _, comment = line.partition("  #")
    name, *arguments = shlex.split(command)
    assert name == "repairopt", f"{line}: say in the title of the fence why it is not run"
    (script,) = entry_points(group="console_scripts", name="repairopt")
    code = 0
    with contextlib.redirect_stdout(io.StringIO()) as output, contextlib.redirect_stderr(io.StringIO()) as errors:
        try:
            script.load()(arguments)
        except SystemExit as stop:
            code = int(stop.code or 0)
    wanted = re.search(r"exit code (\d)", comment)
    assert code == (int(wanted[1]) if wanted else 0), f"{line}\n{output.getvalue()}\n{errors.getvalue()}"
    return output.getvalue()
