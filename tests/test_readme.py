"""The README is true: its Python runs, its report is the one that comes out, what it names exists."""

from __future__ import annotations

import re
import sys
import tomllib
from pathlib import Path
from types import ModuleType

import pytest
from doc_pages import fences, missing_lines, run_page, table

import repairopt

PROJECT = Path(__file__).resolve().parents[1]
PATH = PROJECT / "README.md"
README = PATH.read_text(encoding="utf-8")
METADATA = tomllib.loads((PROJECT / "pyproject.toml").read_text(encoding="utf-8"))["project"]


def blocks(language: str) -> list[str]:
    """Bodies of the fenced blocks of a language, ``""`` for those without one."""
    return [fence.body for fence in fences(README) if fence.language == language]


@pytest.mark.slow
def test_the_example_prints_the_report_that_the_readme_shows(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    module = ModuleType("readme")
    monkeypatch.setitem(sys.modules, module.__name__, module)
    page = tmp_path / "README.md"
    page.write_text(README.split("## Install and run")[0], encoding="utf-8")  # its commands install; CI runs them
    (printed,) = run_page(page, module)
    (shown,) = blocks("")[:1]
    assert printed.split()[0] == shown.split()[0] == "REPAIRED"
    assert not missing_lines(shown, printed)
    assert (tmp_path / "report.html").read_text(encoding="utf-8").startswith("<!doctype html>")


def test_first_screen_is_in_order():
    first = README.split("## Install and run")[0]
    order = ["A trained neural network can break a rule", "```python", "REPAIRED", "![Rates"]
    places = [first.index(part) for part in order]
    assert places == sorted(places)
    assert len(blocks("python")) == 1
    assert len(blocks("python")[0].splitlines()) <= 12
    assert len(README.splitlines()) <= 180
    assert (PROJECT / "docs" / "report.png").stat().st_size < 100_000


def test_names_in_tables_exist():
    named = re.findall(r"`([A-Z]\w+)[(.]", "\n".join("|".join(row) for row in table(README, "I have this problem")))
    assert len(named) > 8
    for name in set(named) - {"CertifiedRadius", "Patch"}:  # not at the top of the package
        assert hasattr(repairopt, name), name


def test_files_that_it_names_exist():
    links = [target for target in re.findall(r"\]\(([^)#]+)", README) if "://" not in target]
    named = re.findall(r"\b(?:examples|benchmarks|docs|solvers|tests)/[\w/]+\.(?:py|md|png)\b", README)
    named += re.findall(r"`([A-Z]+\.md)`", README)
    assert len(links) > 20
    for name in [*links, *named]:
        assert (PROJECT / name).is_file(), name


def test_commands_install_what_exists():
    commands = "\n".join(blocks("sh"))
    extras = set(re.findall(r"\.\[(\w+)\]", README))
    assert {"examples", "test", "report", "docs"} <= extras <= set(METADATA["optional-dependencies"])
    assert commands.count("pip install torch==2.13.0 &&") == 2
