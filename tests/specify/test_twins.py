"""Classes that equal the built-in ones line for line, without being them, get the same repair and the same report."""

from __future__ import annotations

import ast
import dataclasses
import importlib
import inspect
import re
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from biased_task import repair as repair_with, task
from torch import Tensor

import repairopt.specify
from repairopt import SQP
from repairopt.interfaces.testing import check_property
from repairopt.network import Search
from repairopt.specify import contracts

MODULES = (
    "properties",
    "bound",
    "constraints",
    "change_limits",
    "robustness",
    "groups.gaps",
    "groups.odds",
    "groups.worst",
    "groups.calibration",
    "costs",
    "specification",
)
PACKAGE = Path(repairopt.__file__).parent
PROTOCOLS = [c for c in vars(contracts).values() if getattr(c, "_is_protocol", False)]


def built_in_classes() -> dict[str, type]:
    """Every dataclass that is a property or a constraint of the library."""
    found: dict[str, type] = {}
    for name in MODULES:
        module = importlib.import_module(f"repairopt.specify.{name}")
        for label, one in inspect.getmembers(module, inspect.isclass):
            offers = any(hasattr(one, method) for method in ("value", "margins", "rows"))
            if one.__module__ == module.__name__ and dataclasses.is_dataclass(one) and offers:
                found[label] = one
    return found


BUILT_IN = built_in_classes()


def twins() -> SimpleNamespace:
    """The same classes made by running the source of their modules under other names."""
    found: dict[str, Any] = {}
    for name in MODULES:
        original = importlib.import_module(f"repairopt.specify.{name}")
        module = ModuleType(f"twin_of_{name.replace('.', '_')}")
        module.__package__ = original.__package__
        sys.modules[module.__name__] = module  # dataclasses look their module up
        exec(compile(inspect.getsource(original), str(original.__file__), "exec"), vars(module))
        own = {label: one for label, one in vars(module).items() if getattr(one, "__module__", "") == module.__name__}
        found |= {label: one for label, one in own.items() if label in BUILT_IN}
    return SimpleNamespace(**{label: found[label] for label in BUILT_IN})


TWINS = twins()
ORIGINALS = SimpleNamespace(**BUILT_IN)


TASK = task(count=240)
X, Y, HELD_OUT = TASK.inputs, TASK.labels, TASK.held_out
FEW = X[:8], Y[:8]
INSIDE: dict[str, Any] = {"lower": -9.0, "upper": 9.0, "search": Search(steps=5, restarts=2)}
FAST: dict[str, Any] = {"max_steps": 6, "restarts": 0}


@dataclasses.dataclass(frozen=True)
class Case:
    """A repair: what is made with the classes of ``lib``, and the options of ``solve_repair``."""

    make: Callable[[Any], tuple[Any, list[Any]]]
    options: dict[str, Any] = dataclasses.field(default_factory=dict)


MATRIX_FREE = {"method": SQP(largest_dense=1, inner_steps=5, **FAST)}
NO_BUFFER = {"method": SQP(confidence=None, **FAST)}
CASES = {
    "no given point wrong": Case(lambda lib: (lib.ErrorRate(*FEW), [lib.KeepLabels(X, Y, tolerance=0.2)])),
    "error rate": Case(lambda lib: (lib.ErrorRate(X, Y, target=0.1), [])),
    "error rate, flips bounded": Case(
        lambda lib: (lib.ErrorRate(X, Y, target=0.08), [lib.Bound(lib.FlipRate(X, Y), limit=0.02)]), MATRIX_FREE
    ),
    "as few errors as can be": Case(lambda lib: (lib.ErrorRate(X, Y), []), MATRIX_FREE),
    "misses of a class": Case(lambda lib: (lib.MissRate(X, Y, target=0.1), [lib.Bound(lib.ErrorRate(X, Y))])),
    "one entry of the confusion matrix": Case(
        lambda lib: (lib.ErrorRate(X, Y, target=0.1), [lib.Bound(lib.ConfusionRate(X, Y, answer=0), limit=0.1)])
    ),
    "misses, matrix-free": Case(lambda lib: (lib.MissRate(X, Y, target=0.1), []), MATRIX_FREE),
    "accuracy drop": Case(
        lambda lib: (lib.GroupGap.observed(X, 1, target=0.1), [lib.Bound(lib.AccuracyDrop(X, Y), limit=0.05)])
    ),
    "outputs kept": Case(
        lambda lib: (lib.ErrorRate(X, Y, target=0.1), [lib.KeepOutputs(X[:20], 0.9), lib.Bound(lib.FlipRate(X, Y))])
    ),
    "drawn groups": Case(
        lambda lib: (
            lib.GroupGap.sampled(X, 1, count=100, target=0.02),
            [lib.KeepLabels(X, Y, tolerance=0.1), lib.ChangeLimit(absolute=0.5)],
        )
    ),
    "largest gap, mean gap, divergence": Case(
        lambda lib: (
            lib.GroupGap.observed(X, 1, target=0.1, score="max_difference"),
            [
                lib.Bound(lib.GroupGap.observed(X, 1, score="difference", name="mean"), limit=0.1),
                lib.Bound(lib.GroupGap.observed(X, 1, score="kl", name="kl"), limit=0.1),
            ],
        ),
        NO_BUFFER,
    ),
    "equalized odds": Case(
        lambda lib: (lib.OddsGap.observed(X, Y, 1, target=0.1), [lib.FixLabels(X, Y), lib.KeepLabels(X, Y)])
    ),
    "worst group, cost and calibration bounded": Case(
        lambda lib: (
            lib.WorstGroup.observed(X, Y, 1, target=0.1),
            [
                lib.Bound(lib.ExpectedCost(X, Y, [[0, 1], [2, 0]]), limit=0.4),
                lib.Bound(lib.CalibrationError.observed(X, Y, 1), limit=0.3),
            ],
        )
    ),
    "certified radius": Case(
        lambda lib: (lib.CertifiedRadius(*FEW, target=1 / 0.05, **INSIDE), [lib.KeepLabels(*FEW, tolerance=0.5)]),
        NO_BUFFER,
    ),
    "under attack": Case(
        lambda lib: (
            lib.AdversarialError(*FEW, radius=0.1, target=0.1, **INSIDE),
            [lib.KeepLabels(*FEW, tolerance=0.5)],
        ),
        NO_BUFFER,
    ),
    "rows on outputs and weights": Case(
        lambda lib: (
            lib.CallableProperty(lambda predict: predict(X).std(), target=0.1, name="spread"),
            [
                lib.OutputBounds(X[:30], torch.eye(2), torch.full((2,), 4.0)),
                lib.LinearRows(np.ones((1, 10)), -1.0, 1.0),
            ],
        )
    ),
    "one shot": Case(
        lambda lib: (lib.GroupGap.observed(X, 1), [lib.KeepLabels(X, Y, tolerance=0.1), lib.FixLabels(X, Y)]),
        {"method": "one_shot"},
    ),
    "sequential": Case(
        lambda lib: (lib.OddsGap.observed(X, Y, 1), [lib.KeepLabels(X, Y, tolerance=0.1)]), {"method": "sequential"}
    ),
}


def plain(value: Any) -> Any:
    """Reports and evidence as plain values, without what two runs of one repair differ in."""
    if isinstance(value, dict):
        return {k: plain(v) for k, v in value.items() if "second" not in k and k != "versions"}
    if isinstance(value, list | tuple):
        return [plain(one) for one in value]
    if dataclasses.is_dataclass(value):
        return plain(vars(value))
    return value.tolist() if isinstance(value, np.ndarray) else value


def repair(case: Case, lib: Any) -> Any:
    goal, constraints = case.make(lib)
    options = {"method": SQP(**FAST), "weights": "last", "held_out": HELD_OUT, "seed": 1, **case.options}
    return repair_with(TASK.model, goal, constraints, **options)


def test_a_twin_is_made_of_every_class_and_is_no_instance_of_it():
    assert len(BUILT_IN) == 23
    for label, one in BUILT_IN.items():
        assert not issubclass(getattr(TWINS, label), one)
        assert not issubclass(one, getattr(TWINS, label))


def test_the_cases_use_every_class():
    used = set(re.findall(r"lib\.(\w+)", inspect.getsource(sys.modules[__name__])))
    inner = {"ShareRows", "_Labels", "Specification"}  # made by methods; shared by two classes; made of any goal
    inner |= {"_AttackedPoints"}  # what a surrogate samples in place of an error under attack
    assert used >= set(BUILT_IN) - inner


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_twins_get_the_same_repair_and_the_same_report(case):
    first, second = repair(case, ORIGINALS), repair(case, TWINS)
    for name, delta in first.delta.items():
        assert torch.equal(delta, second.delta[name])
    assert any(bool(delta.any()) for delta in first.delta.values())
    assert first.report.verdict is second.report.verdict
    assert first.report.buffers == second.report.buffers
    assert repr(plain(first.report.to_dict())) == repr(plain(second.report.to_dict()))
    assert repr(plain(first.report.evidence)) == repr(plain(second.report.evidence))


def test_what_a_class_lacks_makes_a_difference():
    """So the comparison above would notice a class that is asked for by name."""

    @dataclasses.dataclass(frozen=True, eq=False)
    class Plain:
        inputs: Tensor
        labels: Tensor
        target: float = 0.2
        name: str = "error rate"

        def value(self, predict):
            return (predict(self.inputs).argmax(-1) != self.labels).float().mean()

        def soft_value(self, predict):
            return 1 - torch.softmax(predict(self.inputs), dim=-1).gather(1, self.labels[:, None]).mean()

    first = repair(CASES["error rate"], ORIGINALS)
    second = repair(Case(lambda lib: (Plain(X, Y), []), {"held_out": ()}), ORIGINALS)
    assert first.report.buffers
    assert not second.report.buffers
    assert not torch.equal(first.delta["2.weight"], second.delta["2.weight"])


GOALS = {
    "error rate": lambda: ORIGINALS.ErrorRate(X, Y),
    "miss rate": lambda: ORIGINALS.MissRate(X, Y),
    "accuracy drop": lambda: ORIGINALS.AccuracyDrop(X, Y),
    "flip rate": lambda: ORIGINALS.FlipRate(X, Y),
    "group gap": lambda: ORIGINALS.GroupGap.observed(X, 1),
    "odds gap": lambda: ORIGINALS.OddsGap.observed(X, Y, 1),
    "radius": lambda: ORIGINALS.CertifiedRadius(*FEW, target=10.0, **INSIDE),
    "attack": lambda: ORIGINALS.AdversarialError(*FEW, radius=0.1, **INSIDE),
}


@pytest.mark.parametrize("make", GOALS.values(), ids=GOALS)
def test_every_built_in_goal_keeps_its_contract(make):
    ran = check_property(make(), TASK.model)
    offered = [one for one in ran if not one.startswith("lacks ")]
    assert len(offered) >= 7
    assert len(ran) > len(offered)


def asked(path: Path) -> set[str]:
    """Classes in ``isinstance`` and ``issubclass``, and members in ``hasattr`` and ``getattr``, of one file."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and len(node.args) > 1:
            if node.func.id in ("isinstance", "issubclass"):
                found |= {n.id for n in ast.walk(node.args[1]) if isinstance(n, ast.Name)}
                found |= {n.attr for n in ast.walk(node.args[1]) if isinstance(n, ast.Attribute)}
            elif node.func.id in ("hasattr", "getattr") and isinstance(node.args[1], ast.Constant):
                found.add(str(node.args[1].value))
    return found


OUTSIDE = [p for p in sorted(PACKAGE.rglob("*.py")) if p.relative_to(PACKAGE).parts[0] != "specify"]


def test_no_file_asks_for_a_built_in_class_or_looks_for_a_member_of_a_contract():
    members = {name for one in PROTOCOLS for name in (*vars(one), *one.__annotations__) if not name.startswith("_")}
    members -= {"name", "target"}  # of anything, for messages
    known = set(BUILT_IN) | members | {"statistical", "soft_margins", "weight", "tolerance"}
    frontier = {"value"}  # of the points of a frontier, which plots draw
    found = {p.name: asked(p) & (known - frontier if p.stem in ("plots", "gallery") else known) for p in OUTSIDE}
    assert not {name: names for name, names in found.items() if names}
