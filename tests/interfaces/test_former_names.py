"""Names of the version before work on, with a warning that says the new one."""

from __future__ import annotations

import importlib
import sys
from dataclasses import fields, replace

import pytest
from biased_task import task

from repairopt import SQP, OneShot, Settings, Verdict, solve_repair
from repairopt.errors import SpecificationError
from repairopt.interfaces.former_names import MOVED

SAMPLES = {
    "properties": "ErrorRate",
    "constraints": "KeepLabels",
    "robustness": "CertifiedRadius",
    "problems": "loan_decisions",
    "solve": "solve",
    "evaluate": "Engine",
    "conclude": "Repair",
    "frontier": "trace_frontier",
    "testing": "check_solver",
    "track": "track_rounds",
}


@pytest.mark.parametrize(("module", "name"), SAMPLES.items())
def test_a_former_module_gives_its_names_with_a_warning(module, name):
    sys.modules.pop(f"repairopt.{module}", None)
    with pytest.warns(DeprecationWarning, match=rf"repairopt\.{module} is deprecated; import from repairopt\."):
        former = importlib.import_module(f"repairopt.{module}")
    homes = [importlib.import_module(f"repairopt.{place}") for place in MOVED[module]]
    assert getattr(former, name) in [getattr(home, name, None) for home in homes]
    with pytest.raises(AttributeError, match="has no attribute 'nothing'"):
        _ = former.nothing


def test_former_keywords_give_the_repair_of_the_new_ones():
    toy = task(count=200)
    new = solve_repair(
        toy.model, toy.gap(), [toy.keep()], weights="last", method=OneShot(trust_radius=0.5), settings=Settings(seed=3)
    )
    with pytest.warns(DeprecationWarning, match=r"trust_radius= is deprecated|seed= is deprecated"):
        old = solve_repair(
            toy.model, toy.gap(), [toy.keep()], weights="last", method="one_shot", trust_radius=0.5, seed=3
        )
    assert all(bool((new.delta[name] == old.delta[name]).all()) for name in new.delta)
    assert new.report.verdict is old.report.verdict is not Verdict.UNSOLVED


def test_a_keyword_that_the_method_would_ignore_is_refused():
    toy = task(count=200)
    with (
        pytest.warns(DeprecationWarning, match="convexify= is deprecated"),
        pytest.raises(SpecificationError, match="method SQP does not use it. Methods that do: .*one_shot"),
    ):
        solve_repair(toy.model, toy.gap(), [toy.keep()], convexify="shift")
    with pytest.raises(TypeError, match="unexpected keyword argument 'wieghts'"):
        solve_repair(toy.model, toy.gap(), [toy.keep()], wieghts="last")


def test_settings_that_became_constants_are_taken_with_a_warning():
    with pytest.warns(DeprecationWarning, match=r"SQP\(folds=...\) is deprecated.*leave it out; it is 3 for all"):
        method = SQP(folds=4, max_steps=7)
    with pytest.warns(DeprecationWarning, match="folds"):
        assert replace(method, restarts=0).folds == 4, "what is derived from it keeps it"
    with pytest.warns(DeprecationWarning, match="batch"), pytest.raises(SpecificationError, match="batch=0; expected"):
        SQP(batch=0)
    assert SQP().folds == SQP(folds=3).folds == 3
    assert "folds" not in {field.name for field in fields(SQP)}


def test_settings_of_another_kind_are_refused():
    toy = task(count=200)
    with pytest.raises(SpecificationError, match=r"settings: got a dict; expected repairopt\.Settings"):
        solve_repair(toy.model, toy.gap(), [toy.keep()], settings={"seed": 1})
