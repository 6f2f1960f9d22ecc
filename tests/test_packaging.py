"""The wheel holds what it must, and importing the package loads no more than it must."""

from __future__ import annotations

import configparser
import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

PROJECT = Path(__file__).resolve().parents[1]
NOT_LOADED = [
    *("clarabel", "cvxpy", "daqp", "gurobipy", "highspy", "osqp", "piqp", "proxsuite", "pyomo", "pyscipopt"),
    *("onnx", "onnxruntime", "onnxscript", "peft", "safetensors", "scipy.stats", "sklearn", "torch._dynamo"),
    *("fairlearn", "jinja2", "matplotlib", "pandas", "pydantic", "tensorboard", "transformers"),
]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> zipfile.ZipFile:
    """Built from a copy, so that the checkout stays as it is; without network."""
    source, target = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("wheel")
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(PROJECT / name, source)
    for name in ("repairopt", "solvers"):
        shutil.copytree(PROJECT / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
    options = ["--no-build-isolation", "--no-deps", "--no-index", "--quiet"]
    command = [sys.executable, "-m", "pip", "wheel", *options, "--wheel-dir", str(target), str(source)]
    built = subprocess.run(command, capture_output=True, text=True)
    assert built.returncode == 0, built.stdout + built.stderr
    (found,) = target.glob("*.whl")
    return zipfile.ZipFile(found)


@pytest.mark.slow
def test_wheel_holds_every_module_of_both_folders(wheel):
    names = set(wheel.namelist())
    core = {path.relative_to(PROJECT).as_posix() for path in (PROJECT / "repairopt").rglob("*.py")}
    back_ends = {f"repairopt/solvers/{path.name}" for path in (PROJECT / "solvers").glob("*.py")}
    assert core | back_ends | {"repairopt/py.typed", "repairopt/report/page.html.j2"} <= names
    top = {name.split("/")[0] for name in names}
    assert {name for name in top if not name.endswith(".dist-info")} == {"repairopt"}, "nothing else may be installed"
    assert any(name.endswith("LICENSE") for name in names)


@pytest.mark.slow
def test_wheel_registers_every_back_end(wheel):
    (name,) = [name for name in wheel.namelist() if name.endswith("entry_points.txt")]
    registered = configparser.ConfigParser(delimiters="=")
    registered.optionxform = str
    registered.read_string(wheel.read(name).decode())
    modules = {
        value.split(":")[0].removeprefix("repairopt.solvers.") for value in registered["repairopt.solvers"].values()
    }
    text = {path.stem: path.read_text(encoding="utf-8") for path in (PROJECT / "solvers").glob("*.py")}
    assert modules == {
        stem for stem, source in text.items() if re.search(r"^    requires\b.* = \(", source, re.MULTILINE)
    }


STATEMENTS = (
    "import repairopt",
    "repairopt.available_solvers()",
    "import repairopt.patches",
    "from repairopt import parse",
)


def test_imports_load_no_optional_library():
    """One after the other in one process: what is loaded stays, so that none may load any."""
    look = f"print([name for name in {NOT_LOADED} if name in sys.modules])"
    code = "; ".join(["import sys", *(f"{statement}; {look}" for statement in STATEMENTS)])
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert dict(zip(STATEMENTS, found.stdout.split("\n")[:-1], strict=True)) == dict.fromkeys(STATEMENTS, "[]")
