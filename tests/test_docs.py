"""The pages of docs/: true, complete, and their code runs as it stands there."""

from __future__ import annotations

import re
import sys
import tomllib
from importlib.metadata import EntryPoint
from pathlib import Path
from types import ModuleType

import pytest
from doc_pages import fences, run_page, table

import repairopt
from repairopt import available_methods
from repairopt.program import Kind

PROJECT = Path(__file__).resolve().parents[1]
DOCS = PROJECT / "docs"
METADATA = tomllib.loads((PROJECT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
PAGES = {path.relative_to(DOCS).with_suffix("").as_posix(): path for path in sorted(DOCS.rglob("*.md"))}
TEXT = {name: path.read_text(encoding="utf-8") for name, path in PAGES.items()}
RUN = [name for name, text in TEXT.items() if any(fence.runs for fence in fences(text))]
EXTEND = [name for name in PAGES if name.startswith("add_")]
NEEDS = {"howto/onnx": ("onnx", "onnxscript", "onnxruntime"), "howto/tools": ("sklearn",)}
NEEDS["tutorials/reported_failures"] = ("sklearn",)
NEEDS["tutorials/text_classifier"] = ("transformers", "peft")
NEEDS["howto/methods"] = ("peft",)
PRINTS = {
    "add_a_layer": r"^True True$",
    "add_a_localizer": r"^Loud: outgoing weights of .*\[\d+\]$",
    "add_a_measure": r"^unsure\(below=0.8\) repaired$",
    "add_a_property": r"^declaration\n.*lacks on: A held-out column.*\nrepaired 0\.1\d+ {'unsure answers': 0\.01\d+}$",
    "add_a_solver": r"^\['declaration', 'linear: answer',.*\]\noptimal$",
    "tutorials/text_classifier": r"repaired\nplain 1.000, with 'not' (0\.9\d+|1.000)\n{'classifier': \d} True\nTrue$",
    "add_a_method": r"^True\n(repaired|improved)$",
}


@pytest.mark.parametrize("name", EXTEND)
def test_pages_on_extending_are_short(name):
    assert len(TEXT[name].splitlines()) < 40


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")  # peft reads it of transformers
@pytest.mark.parametrize("name", RUN)
def test_pages_run(name, tmp_path, monkeypatch, request):
    for library in NEEDS.get(name, ()):
        pytest.importorskip(library, reason=f"docs/{name}.md needs {library}")
    if name != "index":  # whose report has pictures; to draw them is most of the time of other pages
        request.getfixturevalue("without_pictures")
    module = ModuleType("docs_" + name.replace("/", "_"))
    monkeypatch.setitem(sys.modules, module.__name__, module)  # dataclasses look their module up
    monkeypatch.chdir(tmp_path)
    printed = "".join(run_page(PAGES[name], module))
    assert re.search(PRINTS.get(name, "."), printed.strip(), flags=re.DOTALL), printed


@pytest.mark.parametrize("name", [name for name in PAGES if name.startswith("tutorials/")])
def test_tutorials_show_what_their_code_prints(name):
    found = fences(TEXT[name])
    for fence, after in zip(found, [*found[1:], None], strict=True):
        if fence.runs and re.search(r"\bprint\(|repairopt (check|solve|verify)", fence.body):
            assert after is not None, fence.body
            assert after.language == "text", fence.body


def test_code_that_is_not_run_says_why():
    titles = [fence.title for text in TEXT.values() for fence in fences(text) if fence.title]
    assert titles
    for title in titles:
        assert re.fullmatch(r"not run: \w.+|[\w./-]+\.\w+", title), title


def test_files_that_pages_name_exist():
    for name, text in TEXT.items():
        for file in re.findall(r"\b(?:examples|solvers|docs)/\w+\.(?:py|md)\b", text):
            assert (PROJECT / file).is_file(), (name, file)


def test_every_page_is_in_the_navigation():
    navigation = (PROJECT / "mkdocs.yml").read_text(encoding="utf-8").split("\nnav:\n")[1]
    assert set(re.findall(r"([\w/]+)\.md$", navigation, flags=re.MULTILINE)) == set(PAGES)


def test_every_public_name_is_in_the_reference():
    listed = re.findall(r"^::: repairopt\.(\w+)$", "\n".join(TEXT.values()), flags=re.MULTILINE)
    assert not set(repairopt.__all__) - set(listed)
    assert len(listed) == len(set(listed))


def test_solver_table_matches_the_back_ends():
    page = TEXT["howto/solvers"].replace("# Solvers\n", "\n## Solvers\n", 1)
    rows = {row[0].strip("`"): row for row in table(page, "Solvers")}
    points = METADATA["entry-points"]["repairopt.solvers"]
    assert set(rows) == set(points)
    for name, (_, kinds, _, install) in rows.items():
        named = {kind for kind in Kind if re.search(rf"\b{kind.value}\b", kinds, flags=re.IGNORECASE)}
        if named:
            assert named == set(EntryPoint(name, points[name], "").load().kinds), name
        extra = re.search(r"repairopt\[(\w+)\]", install)
        assert install == "with repairopt" or (extra and extra[1] in METADATA["optional-dependencies"]), name


def test_method_table_matches_the_methods():
    named = {re.match(r'`"(\w+)"`', row[0])[1] for row in table(TEXT["howto/methods"], "Which method")}
    assert named <= {*available_methods(), "auto"}
    assert {"sqp", "sequential", "incremental", "one_shot", "bisection"} <= named
    assert {"swarm", "fine_tune", "offsets", "thresholds", "vote"} <= named


def test_names_in_the_table_of_problems_exist():
    named = re.findall(
        r"`([A-Z]\w+)[(.]", "\n".join("|".join(row) for row in table(TEXT["howto/problems"], "Overview"))
    )
    assert len(named) > 8
    for name in set(named) - {"CertifiedRadius"}:  # not at the top of the package
        assert hasattr(repairopt, name), name
