"""The README is true: its Python runs, its report is the one that comes out, its tables match the code."""

from __future__ import annotations

import contextlib
import io
import re
import tomllib
from collections.abc import Iterator
from importlib.metadata import EntryPoint
from pathlib import Path
from typing import Any

import pytest

import repairopt
from repairopt.pipeline.stages import METHODS
from repairopt.program import Kind

PROJECT = Path(__file__).resolve().parents[1]
README = (PROJECT / "README.md").read_text(encoding="utf-8")
METADATA = tomllib.loads((PROJECT / "pyproject.toml").read_text(encoding="utf-8"))["project"]


def blocks(language: str) -> list[str]:
    """Bodies of the fenced blocks of a language, ``""`` for those without one."""
    fences = re.findall(r"^```(\w*)\n(.*?)^```$", README, flags=re.MULTILINE | re.DOTALL)
    return [body for name, body in fences if name == language]


def table(heading: str) -> list[list[str]]:
    """Cells of the first table under a heading, without its head."""
    section = README.split(f"\n## {heading}\n")[1].split("\n## ")[0]
    rows = [line for line in section.splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in re.split(r"(?<!\\)\|", row)[1:-1]] for row in rows[2:]]


@pytest.fixture(scope="module")
def printed(tmp_path_factory) -> Iterator[list[str]]:
    """What each Python block prints; they run in order, in one namespace, in an empty folder, as a reader would."""
    space: dict[str, Any] = {"__name__": "readme"}
    found = []
    with contextlib.chdir(tmp_path_factory.mktemp("reader")):
        for block in blocks("python"):
            with contextlib.redirect_stdout(io.StringIO()) as output:
                exec(compile(block, "README.md", "exec"), space)
            found.append(output.getvalue())
        yield found


def words(text: str) -> list[str]:
    """The lines without their numbers, which differ a little between machines."""
    lines = [re.sub(r"[-+]?\d[\d.]*(e-?\d+)?|\b(holds|FAILS)\b", "", line) for line in text.splitlines()]
    return [" ".join(line.split()) for line in lines]


@pytest.mark.slow
def test_first_example_prints_the_report_that_the_readme_shows(printed):
    (shown,) = (block for block in blocks("") if block.startswith(tuple(str(v).upper() for v in repairopt.Verdict)))
    expected = [line for line in words(shown) if line != "..."]
    assert printed[0].split()[0] == shown.split()[0]
    assert not [line for line in expected if line not in words(printed[0])]


@pytest.mark.slow
def test_every_python_block_runs(printed):
    assert len(printed) == len(blocks("python")) >= 2


@pytest.mark.slow
def test_first_example_writes_a_page(printed):
    assert Path("report.html").read_text(encoding="utf-8").startswith("<!doctype html>")
    assert len(blocks("python")[0].splitlines()) <= 12


def test_first_screen_is_in_order():
    first = README.split("## Install and run")[0]
    order = ["mathematical programming: state", "minimize", "```python", "REPAIRED", "pip install", "![Rates"]
    places = [first.index(part) for part in order]
    assert places == sorted(places)
    assert (PROJECT / "docs" / "report.png").stat().st_size < 100_000


def test_solver_table_matches_the_back_ends():
    rows = {row[0].strip("`"): row for row in table("Solvers")}
    points = METADATA["entry-points"]["repairopt.solvers"]
    assert set(rows) == set(points)
    for name, (_, kinds, _, install) in rows.items():
        named = {kind for kind in Kind if re.search(rf"\b{kind.value}\b", kinds, flags=re.IGNORECASE)}
        if named:
            assert named == set(EntryPoint(name, points[name], "").load().kinds), name
        extra = re.search(r"repairopt\[(\w+)\]", install)
        assert install == "with repairopt" or (extra and extra[1] in METADATA["optional-dependencies"]), name


def test_method_table_matches_the_methods():
    named = {re.match(r'`"(\w+)"`', row[0])[1] for row in table("Which weights, which method")}
    assert named == set(METHODS)


def test_names_in_tables_exist():
    for name in re.findall(r"`([A-Z]\w+)\(", README):
        if name not in ("HiGHS", "CertifiedRadius"):
            assert hasattr(repairopt, name), name


def test_files_that_it_names_exist():
    for name in re.findall(r"\b(?:examples|benchmarks|docs|solvers|tests)/\w+\.(?:py|md|png)\b", README):
        assert (PROJECT / name).is_file(), name


def test_commands_install_what_exists():
    commands = "\n".join(blocks("sh"))
    extras = set(re.findall(r"\.\[(\w+)\]", commands))
    assert {"examples", "test"} <= extras <= set(METADATA["optional-dependencies"])
    assert commands.count("pip install torch==2.13.0 &&") == 2
