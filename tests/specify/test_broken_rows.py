"""A constraint as the goal of a repair: what must hold on every row, and does not yet."""

from __future__ import annotations

import pytest
import torch
from biased_task import task
from small_spec import SPEC, write_spec
from torch import nn

from repairopt import Bound, ErrorRate, FixLabels, KeepLabels, KeepOutputs, OutputBounds, Verdict, solve_repair
from repairopt.errors import SpecificationError
from repairopt.interfaces.commandline.runs.solve_run import Options, solve_spec
from repairopt.interfaces.commandline.runs.verify_run import check_spec_file
from repairopt.interfaces.testing import check_property
from repairopt.specify import BrokenRows

torch.manual_seed(1)
CONTROLLER = nn.Sequential(nn.Linear(2, 12), nn.Tanh(), nn.Linear(12, 1)).requires_grad_(False)
X, NEW = torch.rand(200, 2), torch.rand(1000, 2)
TOP = float(CONTROLLER(X).quantile(0.8))
BELOW = OutputBounds(X, [[1.0]], [TOP], name="below the top")
TASK = task(count=200)
ZEROS = torch.zeros(200, dtype=torch.long)


def test_its_value_is_counted_as_numpy_counts_it():
    goal = BrokenRows(BELOW)
    assert float(goal.value(CONTROLLER)) == pytest.approx(float((CONTROLLER(X)[:, 0] > TOP).double().mean()))
    assert goal.details(CONTROLLER)["broken rows"] == 40
    done = check_property(goal, CONTROLLER)
    assert {"soft_value: finite and differentiable", "margins_of: negative where the value counts"} <= set(done)


@pytest.mark.parametrize("constraints", [(), (KeepOutputs(X, 0.5),)])
def test_outputs_are_brought_within_bounds(constraints):
    repair = solve_repair(CONTROLLER, BELOW, constraints, held_out=(NEW, torch.zeros(len(NEW), dtype=torch.long)))
    assert repair.report.verdict is Verdict.REPAIRED
    assert float(repair.model(X).max()) <= TOP
    figures = next(m for m in repair.report.verification.measures if m.held_out)
    assert figures.name == "below the top"
    assert figures.after < figures.before


def test_a_share_of_the_rows_may_break_it():
    goal = OutputBounds(X, [[1.0]], [TOP], tolerance=0.1, name="below the top")
    repair = solve_repair(CONTROLLER, goal)
    assert repair.report.verdict is Verdict.REPAIRED
    assert 0 <= float((repair.model(X)[:, 0] > TOP).double().mean()) <= 0.1


def test_wrong_points_and_a_bound_on_a_measure_are_goals_too():
    wrong = (TASK.model(TASK.inputs).argmax(1) != TASK.labels).nonzero()[:6, 0]
    fixed = solve_repair(TASK.model, FixLabels(TASK.inputs[wrong], TASK.labels[wrong], weight=None), weights="all")
    assert (fixed.model(TASK.inputs[wrong]).argmax(1) == TASK.labels[wrong]).all()
    stated = Bound(ErrorRate(TASK.inputs, TASK.labels), limit=0.05, name="few errors")
    assert float(solve_repair(TASK.model, stated).report.verification.measures[0].target) == 0.05


@pytest.mark.parametrize(
    "constraint",
    [KeepLabels(X, torch.zeros(200).long(), weight=1.0), FixLabels(X, torch.zeros(200).long(), weight=2.0)],
)
def test_a_wish_is_no_goal(constraint):
    with pytest.raises(SpecificationError, match="weight=None"):
        solve_repair(CONTROLLER, constraint)


@pytest.mark.parametrize(
    "text",
    [
        'goal: output("no", guard) <= -1\nbounds:\n  - recall("yes") >= 0.6\n',
        'bounds:\n  - max_change <= 3\n  - output("no", guard) <= -1\n  - recall("yes") >= 0.6\n',
        'bounds:\n  - recall("yes") >= 0.9\n  - output([1, -1], guard) >= -9\n',
    ],
)
def test_a_spec_may_state_bounds_alone(tmp_path, text):
    start, end = SPEC.index("goal:"), SPEC.index("watch:")
    write_spec(tmp_path, SPEC[:start] + text + SPEC[end:].replace("layers: last", "layers: all"))
    before = check_spec_file(tmp_path / "spec.yaml")
    roles = [claim.role for claim in before.claims if claim.data != "held_out"]
    assert roles[0] == "goal"
    assert roles.count("goal") == 1
    assert not before.met
    assert solve_spec(tmp_path / "spec.yaml", tmp_path / "run", Options(report=False)).met
