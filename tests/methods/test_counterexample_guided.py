"""Counterexample-guided repair and SpecRepair: end with a verified network, or at the limit with a report."""

from dataclasses import replace

import pytest
import torch
from clipped_law import controller
from torch import nn

from repairopt import ErrorRate, Settings, solve_repair
from repairopt.errors import SpecificationError
from repairopt.interfaces.specfile.given_model import load_given
from repairopt.methods import CounterexampleGuided, SpecRepair
from repairopt.report import Verdict
from repairopt.specify import KeepOutputs, Region

RANGE = Region([-1.0, -1.0], [1.0, 1.0], [[1.0], [-1.0]], [-1.03, -1.03], name="range")


def least(model):
    x = 2 * torch.rand(200_000, 2) - 1
    with torch.no_grad():
        return float(1.03 - model(x).abs().max())


@pytest.mark.parametrize(
    ("method", "weights"),
    [
        (CounterexampleGuided(), "last"),
        (CounterexampleGuided(norm="linf"), "last"),
        (CounterexampleGuided(), ["2.weight", "2.bias"]),
        (SpecRepair(), "all"),
    ],
)
def test_a_region_is_repaired_and_proved(method, weights):
    model = controller(150)
    assert least(model) < 0
    repair = solve_repair(model, RANGE, weights=weights, method=method)
    assert repair.report.verdict is Verdict.REPAIRED
    assert least(repair.model) > 0
    assert repair.report.proof is not None
    assert repair.report.rounds[-1].step.startswith("proved")


def test_SpecRepair_removes_counterexamples_at_the_least_change_of_the_outputs_on_data():
    """One point of a linear network: the answer is that of ``min (a^2 + 9 b^2) / 2, a + b >= 1 + margin``."""
    model = nn.Linear(2, 1, bias=False)
    with torch.no_grad():
        model.weight.fill_(1.0)
    data = torch.randn(200, 2, generator=torch.Generator().manual_seed(0)) * torch.tensor([1.0, 3.0])
    above = Region([1.0, 1.0], [1.0, 1.0], [[1.0]], [3.0], name="output of 3 or more")
    labels = torch.zeros(200, dtype=torch.int64)
    repair = solve_repair(model, above, weights="all", data=(data, labels), method=SpecRepair())
    assert repair.report.verdict is Verdict.REPAIRED
    change = repair.delta["weight"][0]
    assert 1.0 < float(change.sum()) < 1.25
    curvature = data.T @ data
    least = torch.linalg.solve(curvature, torch.ones(2))
    least *= change.sum() / least.sum()
    assert float(change @ curvature @ change) < 1.05 * float(least @ curvature @ least)


def test_weights_change_as_much_as_small_units_ask_for_and_a_limit_is_said():
    model = nn.Sequential(nn.Linear(1, 4), nn.Linear(4, 1))
    with torch.no_grad():
        [parameter.mul_(1e-3) for parameter in model[0].parameters()]
    above = Region([0.0], [1.0], [[1.0]], [100.0], name="output of 100 or more")
    found = solve_repair(model, above, weights=["1.weight"], method="counterexample_guided")
    assert found.report.verdict is Verdict.REPAIRED
    assert float(found.delta["1.weight"].abs().max()) > 3
    limited = CounterexampleGuided(limit=3.0)
    notes = solve_repair(model, above, weights=["1.weight"], method=limited).report.notes
    assert any("of at most limit=3 each" in note for note in notes)


def test_rows_of_the_user_are_kept():
    model = controller(150)
    x = torch.rand(300, 2) - 0.5
    keep = KeepOutputs(x, 0.12)
    repair = solve_repair(model, RANGE, [keep], weights="last", method=CounterexampleGuided())
    assert repair.report.verification.checks[0].holds
    with torch.no_grad():
        assert float((repair.model(x) - model(x)).abs().max()) <= 0.12 + 1e-4


def test_the_limit_of_rounds_ends_with_a_report_that_claims_no_proof():
    model = controller(150)
    repair = solve_repair(model, RANGE, weights="last", method=CounterexampleGuided(rounds=1))
    assert repair.report.verdict is not Verdict.REPAIRED
    assert [entry.step for entry in repair.report.rounds][0].startswith("round 1, ")


@pytest.mark.parametrize("method", [CounterexampleGuided(), SpecRepair()])
def test_what_cannot_be_is_not_claimed(method):
    never = Region([-1.0, -1.0], [1.0, 1.0], [[1.0], [-1.0]], [0.5, 0.5], name="above and below at once")
    repair = solve_repair(controller(150), never, weights="last", method=method)
    assert repair.report.verdict is not Verdict.REPAIRED
    assert any("No change of the chosen weights" in note for note in repair.report.notes)


def test_goals_without_regions_are_refused():
    x = torch.randn(5, 3)
    with pytest.raises(SpecificationError, match="have regions"):
        solve_repair(nn.Linear(3, 3), ErrorRate(x, torch.zeros(5).long(), target=0.0), method=CounterexampleGuided())


@pytest.mark.data
@pytest.mark.slow
def test_a_collision_avoidance_network_is_proved(data_dir):
    """Property 2 of ACAS Xu, for a quarter of the angles, of which a hundredth violates it."""
    pytest.importorskip("onnxruntime")
    folder = data_dir / "provable" / "acasxu"
    model = load_given(str(folder / "acasxu_2_1.onnx"), None)
    (region,) = Region.from_vnnlib(folder / "prop_2.vnnlib", shape=(1, 1, 5))
    upper = region.upper.flatten().clone()
    upper[1] = -0.25
    region, settings = replace(region, upper=upper), Settings(time_limit=120)
    repair = solve_repair(model, region, method="counterexample_guided", settings=settings)
    assert repair.report.verdict is Verdict.REPAIRED
