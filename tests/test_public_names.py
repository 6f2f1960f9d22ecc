"""Whatever a public name is called with, only errors of the library leave it; the names are those of docs/reference."""

from __future__ import annotations

import inspect
import re
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner
from odd_values import ODD, ODD_PATHS
from torch import nn

import repairopt
from repairopt import (
    Bound,
    CalibrationError,
    Data,
    ErrorRate,
    GroupGap,
    KeepLabels,
    OddsGap,
    Program,
    RepairError,
    RowSet,
    Settings,
    Specification,
    Subject,
    WorstGroup,
    bind_statement,
    explain_unmet,
    formulate_repair,
    solve_repair,
    trace_frontier,
    write_html,
)
from repairopt.errors import ForeignError, SpecificationError, path_of, public
from repairopt.interfaces.commandline.commands import cli
from repairopt.interfaces.specfile.onnx_model import load_onnx, write_onnx
from repairopt.patches import (
    Patch,
    apply_all,
    find_conflicts,
    load_patch,
    load_weights,
    read_tensors,
    revert_all,
    save_weights,
)
from repairopt.program import solve

DOCS = Path(__file__).resolve().parents[1] / "docs" / "reference"
BY_ASSERTION = {
    "check_property",
    "check_method",
    "check_solver",
    "assert_bounds",
}  # they are for tests


def _named(name: str) -> Any:
    """What a page of the reference documents."""
    module, _, rest = name.rpartition(".")
    if name == "repairopt.calibrate_margin":  # a module has the name too
        return import_module("repairopt.compare").calibrate_margin
    try:
        return import_module(name)
    except ImportError:
        return getattr(import_module(module), rest)


def _public_names() -> dict[str, Any]:
    """Functions and classes of the reference, by name; not exceptions, protocols and enumerations."""
    names = [name for page in sorted(DOCS.glob("*.md")) for name in re.findall(r"^::: (\S+)", page.read_text(), re.M)]
    found = {name: _named(name) for name in names}
    plain = {"Property", "Constraint", "Kind", "Status", "Verdict", "ProofStatus"}
    return {
        name: item
        for name, item in found.items()
        if callable(item)
        and not (isinstance(item, type) and issubclass(item, Exception))
        and item.__name__ not in plain | BY_ASSERTION
    }


NAMES = _public_names()


def _parameters(item: Any) -> list[inspect.Parameter]:
    several = (inspect.Parameter.VAR_KEYWORD, inspect.Parameter.VAR_POSITIONAL)
    return [one for one in inspect.signature(item).parameters.values() if one.kind not in several]


def _is_path(parameter: inspect.Parameter) -> bool:
    return re.search(r"\bPath\b|PathLike", str(parameter.annotation)) is not None


def _refused(item: Any, given: dict[str, Any]) -> str:
    """The words in which a call is refused; empty where it is not. What is no error of the library passes."""
    try:
        item(**given)
    except RepairError as error:
        return str(error)
    return ""


def test_all_of_the_reference_is_called():
    assert len(NAMES) > 120
    assert {"solve_repair", "load_patch", "Patch", "Program"} <= {name.rpartition(".")[2] for name in NAMES}


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_only_errors_of_the_library_leave(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # a path that is taken is one in here
    item = NAMES[name]
    needed = [one.name for one in _parameters(item) if one.default is inspect.Parameter.empty]
    calls = [dict.fromkeys(needed, odd) for odd in ODD]
    if not needed:
        calls = [{one.name: odd} for one in _parameters(item) for odd in ODD]
    refused = [words for given in calls if (words := _refused(item, given))]
    assert all(len(words) > 15 for words in refused)


NETWORK = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2)).eval()
X = torch.randn(30, 3, generator=torch.Generator().manual_seed(0))
Y = (X[:, 0] > 0).long()
GROUPS = (X[:, 1] > 0).long().numpy()
REPAIR: dict[str, Any] = {
    "model": NETWORK,
    "goal": ErrorRate(X, Y, target=0.1),
    "constraints": [KeepLabels(X, Y, tolerance=0.5)],
    "settings": Settings(time_limit=0.05),
}
ROWS: dict[str, Any] = {"inputs": X, "sensitive_features": GROUPS}
PARTS: dict[str, Any] = {part: (X + k, Y) for k, part in enumerate(("train", "validation", "repair", "test"))}
FULL = [  # what has required arguments, with right ones, of which one at a time is odd
    (solve_repair, REPAIR | {"weights": "last"}),
    (formulate_repair, REPAIR | {"weights": "last"}),
    (trace_frontier, REPAIR | {"targets": [0.2], "weights": "last"}),
    (explain_unmet, REPAIR | {"most_tries": 1}),
    (solve, {"program": Program([1.0, 1.0], delta_lower=[0.0, 0.0], delta_upper=[1.0, 1.0])}),
    (GroupGap.observed, ROWS),
    (GroupGap.sampled, {"inputs": X, "column": 0, "values": [0.0, 1.0]}),
    (OddsGap.observed, ROWS | {"labels": Y}),
    (WorstGroup.observed, ROWS | {"labels": Y}),
    (CalibrationError.observed, ROWS | {"labels": Y}),
    (bind_statement, {"statement": "accuracy >= 0.9", "data": Data({"repair": RowSet(X, Y)})}),
    (Specification, {"goal": ErrorRate(X, Y), "constraints": [Bound(ErrorRate(X, Y), 0.5)]}),
    (Subject, {"name": "loans", "model": NETWORK, **PARTS}),
    (Subject.divide, {"name": "loans", "model": NETWORK, "inputs": X, "labels": Y}),
    (Patch.between, {"base": NETWORK, "repaired": NETWORK}),
    (apply_all, {"model": NETWORK, "patches": [Patch.between(NETWORK, NETWORK)]}),
    (revert_all, {"model": NETWORK, "patches": [Patch.between(NETWORK, NETWORK)]}),
    (find_conflicts, {"patches": [Patch.between(NETWORK, NETWORK)]}),
]


@pytest.mark.parametrize(("item", "given"), FULL, ids=[item.__qualname__ for item, _ in FULL])
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_one_odd_argument_among_right_ones(item, given, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    refused = [_refused(item, {**given, one.name: odd}) for one in _parameters(item) for odd in ODD]
    assert sum(map(bool, refused)) > len(ODD) / 2
    assert not [words for words in refused if "No check of the inputs foresaw it" in words]


def _with_paths() -> dict[str, Any]:
    """Functions and methods of public names that take a path, by name."""
    found = {name: item for name, item in NAMES.items() if any(map(_is_path, _parameters(item)))}
    for name, kind in NAMES.items():
        for own in (one for one in dir(kind) if isinstance(kind, type) and not one.startswith("_")):
            method = inspect.getattr_static(kind, own)
            function = getattr(method, "__func__", method)
            if inspect.isfunction(function) and any(map(_is_path, _parameters(function))):
                found[f"{name}.{own}"] = getattr(kind, own)
    more = (save_weights, load_weights, read_tensors, load_onnx, write_onnx)
    return found | {one.__name__: one for one in more}


WITH_PATHS = _with_paths()
SELF = {
    "Patch": Patch.between(NETWORK, NETWORK),
    "Repair": None,
    "Report": None,
}


def test_every_function_that_takes_a_path_is_known():
    assert len(WITH_PATHS) >= 16
    known = {"load_patch", "save", "load", "save_html", "from_vnnlib", "AuditLog", "verify_log", "save_proof"}
    assert known <= {name.rpartition(".")[2] for name in WITH_PATHS}


@pytest.fixture(scope="module")
def repair():
    return solve_repair(**REPAIR, weights="last")


@pytest.mark.parametrize("name", WITH_PATHS)
def test_odd_paths_are_refused_and_nothing_is_written(name, repair, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    item, owners = WITH_PATHS[name], {"Patch": SELF["Patch"], "Repair": repair, "Report": repair.report}
    monkeypatch.setattr(type(repair.report), "to_html", lambda report, **options: "a page")  # what counts is the path
    known: dict[str, Any] = {"result": repair, "weights": NETWORK, "model": NETWORK, "source": {}}
    for odd in ODD_PATHS:
        given = {}
        for one in _parameters(item):
            owner = name.split(".")[-2] if one.name == "self" else ""
            if _is_path(one) or one.default is inspect.Parameter.empty:
                given[one.name] = owners.get(owner) if owner else known.get(one.name, odd)
        if "path" in given or "folder" in given:
            given |= {one: odd for one in ("path", "folder") if one in given}
        if None in (value for one, value in given.items() if one == "self"):
            continue  # made by long runs; what they call is tested above
        if not (words := _refused(item, given)):
            assert odd is None or "folder" in given  # where None means that nothing is written
        else:
            assert len(words) > 20
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "odd", [odd for odd in ODD_PATHS if odd not in ("lines\nof\x1b[31mtext", "run ")], ids=lambda odd: f"{odd!r:.10}"
)
def test_a_path_is_told_from_what_is_none(odd):
    with pytest.raises(SpecificationError, match="patch: path=") as caught:
        path_of(odd, "patch")
    assert "\0" not in str(caught.value)


def test_the_home_folder_is_meant_by_a_tilde(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    save_weights(NETWORK, "~/weights.safetensors")
    assert (tmp_path / "weights.safetensors").is_file()
    assert load_weights(Path("~") / "weights.safetensors").keys() == NETWORK.state_dict().keys()
    assert path_of("~notes.csv", "table") == Path("~notes.csv")


COMMANDS = {
    "demo": [],
    "init": ["model.onnx", "rows.csv"],
    "solve": ["spec.yaml"],
    "frontier": ["spec.yaml"],
    "compare": ["spec.yaml"],
    "apply": ["spec.yaml", "patch"],
    "revert": ["spec.yaml", "patch"],
    "report": ["run"],
}


def test_all_commands_that_write_are_known():
    writing = {name for name, one in cli.commands.items() if any("--out" in part.opts for part in one.params)}
    assert writing == set(COMMANDS)


@pytest.mark.parametrize("command", [*COMMANDS, "check-proof"])
@pytest.mark.parametrize("odd", ["", " ", "run ", "a/ b/c", "line\nbreak", "\x1b[2J", "a" * 300])
def test_commands_write_to_no_odd_path(command, odd, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    option, arguments = ("--picture", ["run"]) if command == "check-proof" else ("--out", COMMANDS[command])
    found = CliRunner().invoke(cli, [command, *arguments, option, odd])
    assert found.exit_code == 2
    assert f"Invalid value for '{option}': path=" in found.output
    assert not list(tmp_path.iterdir())


def test_what_was_wrong_is_named_and_the_native_class_is_kept():
    @public
    def double(count: int, names: list[str], way: str | None = None) -> int:
        return len(names) * count + len(way or "")

    assert double(2, ["a"]) == 2
    with pytest.raises(SpecificationError, match=r"double: names=3; expected list\[str\]") as caught:
        double(2, 3)
    assert isinstance(caught.value, TypeError)
    with pytest.raises(SpecificationError, match="way=7; expected str"):
        double(2, ["a"], way=7)
    with pytest.raises(ForeignError, match="double: TypeError"):
        double()


def test_a_page_of_a_folder_that_is_none(tmp_path):
    for odd in ODD_PATHS:
        with pytest.raises(RepairError):
            write_html(odd, tmp_path / "page.html")
    with pytest.raises(RepairError):
        load_patch(tmp_path)
    assert repairopt.errors.shown("x" * 100) == repr("x" * 50 + " ...")
