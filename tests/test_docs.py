"""The pages of docs/: short, true, and their Python runs as it stands there."""

from __future__ import annotations

import contextlib
import io
import re
import sys
from pathlib import Path
from types import ModuleType

import pytest

DOCS = Path(__file__).resolve().parents[1] / "docs"
PAGES = sorted(DOCS.glob("add_*.md"))  # language.md is generated, and compared with the table that it is from
PRINTS = {
    "add_a_layer": r"^True True$",
    "add_a_measure": r"^unsure\(below=0.8\) repaired$",
    "add_a_property": r"^declaration\n.*lacks on: A held-out column.*\nrepaired 0\.1\d+ {'unsure answers': 0\.01\d+}$",
    "add_a_solver": r"^\['declaration', 'linear: answer',.*\]\noptimal$",
}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_pages_are_short(page):
    assert len(page.read_text(encoding="utf-8").splitlines()) < 40


def test_every_page_is_known():
    assert {page.stem for page in PAGES} == set(PRINTS)


@pytest.mark.slow
@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_pages_run(page, monkeypatch):
    module = ModuleType(f"docs_{page.stem}")
    monkeypatch.setitem(sys.modules, module.__name__, module)  # dataclasses look their module up
    fences = re.findall(r"^```python\n(.*?)^```$", page.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)
    assert len(fences) == 2
    with contextlib.redirect_stdout(io.StringIO()) as output:
        for body in fences:
            exec(compile(body, page.name, "exec"), module.__dict__)
    assert re.search(PRINTS[page.stem], output.getvalue().strip(), flags=re.DOTALL), output.getvalue()


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_files_that_pages_name_exist(page):
    for name in re.findall(r"\b(?:examples|solvers|docs)/\w+\.(?:py|md)\b", page.read_text(encoding="utf-8")):
        assert (DOCS.parent / name).is_file(), name
