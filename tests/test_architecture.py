"""The house: twelve rooms, who may import whom, doors, no circles, nothing too long."""

from __future__ import annotations

import ast
import graphlib
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path

PROJECT = Path(__file__).resolve().parents[1]
PACKAGE = PROJECT / "repairopt"

# What each room may import, directly; the floors are read from top to bottom.
MAY_IMPORT = {
    "interfaces": "pipeline report methods verify localize surrogate specify network program patches errors compare",
    "compare": "pipeline report methods verify localize surrogate specify network program patches errors",
    "pipeline": "report methods verify localize surrogate specify network program patches errors",
    "report": "verify localize surrogate specify network program patches errors",
    "methods": "verify localize surrogate specify network program patches errors",
    "verify": "specify network program patches errors",
    "localize": "specify network program patches errors",
    "surrogate": "specify network program patches errors",
    "specify": "network program patches errors",
    "network": "errors",
    "program": "errors",
    "patches": "errors",
    "errors": "",
}
SOLVERS_MAY_IMPORT = {"errors", "program"}
LOADED_LATE = {
    "clarabel",
    "cvxpy",
    "daqp",
    "gurobipy",
    "highspy",
    "fairlearn",
    "jinja2",
    "matplotlib",
    "onnx",
    "onnxruntime",
    "onnxscript",
    "osqp",
    "pandas",
    "peft",
    "piqp",
    "psutil",
    "pyomo",
    "pyscipopt",
    "safetensors",
    "scipy",
    "sklearn",
    "yaml",
    "mlflow",
    "tensorboard",
    "transformers",
    "vnnlib",
}
FILE_LINES, FUNCTION_LINES = 400, 60

CORE = sorted(PACKAGE.rglob("*.py"))
BACK_ENDS = sorted((PROJECT / "solvers").glob("*.py"))
SCRIPTS = sorted((PROJECT / "examples").glob("*.py")) + sorted((PROJECT / "benchmarks").glob("*.py"))
MODULES = {".".join(path.relative_to(PROJECT).with_suffix("").parts).removesuffix(".__init__"): path for path in CORE}
NAMES = {path: name for name, path in MODULES.items()}


@cache
def tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"), str(path))


@cache
def imports(path: Path) -> list[tuple[str, str]]:
    """``(module, name)`` of each name that a file imports, those for type checkers and within functions too."""
    return list(_imports(path))


def _imports(path: Path) -> Iterator[tuple[str, str]]:
    package = path.relative_to(PROJECT).parent.parts
    for node in ast.walk(tree(path)):
        if isinstance(node, ast.Import):
            yield from ((alias.name, "") for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else ()
            module = ".".join([*base, *([node.module] if node.module else [])])
            yield from ((module, alias.name) for alias in node.names)


@cache
def within(path: Path) -> list[tuple[str, str]]:
    """The imports from this package; a module that is imported as a name stands in the first place."""
    return [
        (f"{module}.{name}", "") if f"{module}.{name}" in MODULES else (module, name)
        for module, name in imports(path)
        if module.split(".")[0] == "repairopt" and not module.startswith("repairopt.solvers")
    ]


def room(module: str) -> str:
    """The room of a module; empty for the package's own face."""
    found = module.split(".")[1] if "." in module else ""
    return "" if found == "__main__" else found


def module_of(path: Path) -> str:
    return NAMES[path]


@cache
def behind_door(door: str, name: str) -> str:
    """The file that a name of a door comes from."""
    if MODULES.get(door, Path()).name != "__init__.py":
        return door
    return next((module for module, found in within(MODULES[door]) if found == name), door)


def named(path: Path) -> str:
    return path.relative_to(PROJECT).as_posix()


def top_level(path: Path) -> set[str]:
    """Libraries that a file imports when it is imported itself."""

    def found(body: list[ast.stmt]) -> Iterator[str]:
        for node in body:
            if isinstance(node, ast.Import):
                yield from (alias.name for alias in node.names)
            elif isinstance(node, ast.ImportFrom) and not node.level:
                yield str(node.module)
            elif not isinstance(node, ast.FunctionDef) and not (
                isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test)
            ):
                parts = [getattr(node, name, []) for name in ("body", "orelse", "handlers", "finalbody")]
                yield from found([child for part in parts for child in part])

    return {name.split(".")[0] for name in found(tree(path).body)}


def test_the_tree_is_twelve_rooms_and_the_errors():
    entries = {path.name for path in PACKAGE.iterdir() if path.name != "__pycache__"}
    rooms = {name for name in entries if (PACKAGE / name).is_dir()}
    assert rooms == set(MAY_IMPORT) - {"errors"}
    assert entries - rooms == {"errors.py", "__init__.py", "__init__.pyi", "__main__.py", "py.typed"}


def test_imports_run_one_way():
    upward = {
        f"{named(path)} -> {module}"
        for path in CORE
        for module, _ in within(path)
        if room(module_of(path)) and room(module) != room(module_of(path))
        if room(module) not in MAY_IMPORT[room(module_of(path))].split()
    }
    assert not upward, "a room imports only the rooms that stand in its line"


def test_the_picture_of_imports_has_few_rooms_and_floors():
    arrows: dict[str, set[str]] = {}
    for path in CORE:
        own = room(module_of(path))
        arrows.setdefault(own, set()).update({room(module) for module, _ in within(path)} - {own})
    floors: dict[str, int] = {}
    for name in graphlib.TopologicalSorter(arrows).static_order():
        floors[name] = 1 + max((floors[other] for other in arrows.get(name, ())), default=0)
    assert len(floors) <= 16
    assert max(floors.values()) <= 9


def test_no_file_depends_on_itself():
    graph: dict[str, set[str]] = {}
    for path in CORE:
        if path.name != "__init__.py" and path.name != "__main__.py":
            own = module_of(path)
            graph[own] = {behind_door(module, name) for module, name in within(path)} - {own}
    graphlib.TopologicalSorter(graph).prepare()  # raises CycleError, which names the circle


def test_other_rooms_come_in_through_doors():
    past = {
        f"{named(path)}: from {module} import {name}"
        for path in CORE
        for module, name in within(path)
        if room(module_of(path)) and room(module) != room(module_of(path)) and module.count(".") > 1
    }
    assert not past, "import from repairopt.<room>, and let its __init__.py name what others may use"


def test_private_names_stay_in_their_file():
    crossing = {
        f"{named(path)}: {name}"
        for path in CORE + BACK_ENDS
        for module, name in imports(path)
        if module.split(".")[0] in ("repairopt", "solvers") and name.startswith("_") and not name.startswith("__")
    }
    assert not crossing


def test_doors_hold_a_docstring_and_names():
    """And the function that finds names from before, where there is one."""
    allowed = (ast.Import, ast.ImportFrom, ast.Expr, ast.Assign)
    wrong = []
    for path in CORE:
        if path.name == "__init__.py":
            rest = [node for node in tree(path).body if not isinstance(node, allowed)]
            only = all(isinstance(node, ast.FunctionDef) and node.name == "__getattr__" for node in rest)
            wrong += [] if only and ast.get_docstring(tree(path)) else [named(path)]
    assert not wrong, "a door says in a sentence what is behind it, and names it"


def test_no_public_function_bears_the_name_of_its_module():
    same = {
        named(path)
        for path in CORE + BACK_ENDS
        for node in tree(path).body
        if isinstance(node, ast.FunctionDef) and node.name == path.stem
    }
    assert not same


def test_programs_are_solved_without_torch():
    code = (
        "import sys; from repairopt.program import solve; from repairopt.program.examples import linear; "
        "solve(linear().program, 'daqp'); print([m for m in sys.modules if m.split('.')[0] == 'torch'])"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"


def test_back_ends_know_programs_alone():
    assert {room(module) for path in BACK_ENDS for module, _ in within(path)} <= SOLVERS_MAY_IMPORT


def test_no_heavy_library_is_imported_at_module_level():
    early = {named(path): found for path in CORE + BACK_ENDS if (found := top_level(path) & LOADED_LATE)}
    assert not early


def test_files_are_short():
    lines = {named(path): len(path.read_text(encoding="utf-8").splitlines()) for path in CORE + BACK_ENDS + SCRIPTS}
    assert not {name: count for name, count in lines.items() if count > FILE_LINES}


def test_functions_are_short():
    long = {}
    for path in CORE + BACK_ENDS + SCRIPTS:
        for node in ast.walk(tree(path)):
            if isinstance(node, ast.FunctionDef):
                body = node.body[1:] if ast.get_docstring(node) is not None else node.body
                if body and body[-1].end_lineno - body[0].lineno + 1 > FUNCTION_LINES:
                    long[f"{named(path)}: {node.name}"] = body[-1].end_lineno - body[0].lineno + 1
    assert not long, f"split functions of more than {FUNCTION_LINES} lines"
