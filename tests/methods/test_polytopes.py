"""Convex hulls as regions: repaired and proved by the default call, alone and beside boxes."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from clipped_law import controller
from torch import nn

from repairopt import Settings, solve_repair
from repairopt.errors import SpecificationError
from repairopt.methods import CounterexampleGuided
from repairopt.report import Verdict
from repairopt.specify import KeepRegions, Region, UnprovedRegions, place_in
from repairopt.verify import check_deployed, load_proof, save_proof

CORNER = [[1.0, 1.0], [1.0, 0.2], [0.3, 1.0]]  # a triangle in which the command is too large


def within(bound: float, vertices: list[list[float]] = CORNER) -> Region:
    return Region.polytope(vertices, [[1.0], [-1.0]], [-bound, -bound], name="the command stays in its range")


def worst(model: nn.Module, region: Region, count: int = 100_000) -> float:
    x = region.draw(count, torch.Generator().manual_seed(9))
    x = torch.cat([x, region.vertices]) if region.vertices is not None else x
    with torch.no_grad():
        values = model(x.float()).double() @ region.matrix.T - region.offset
    return float(values.min())


def test_default_call_proves_a_triangle(tmp_path) -> None:
    model, region = controller(), within(1.02)
    assert worst(model, region) < 0
    repair = solve_repair(model, region)
    assert repair.report.verdict is Verdict.REPAIRED
    assert worst(repair.model, region) > 0
    details = repair.report.verification.measures[0].details
    assert details["share of the volume proved"] == (details["share of the volume proved"][0], 1.0)
    assert details["share of the volume proved"][0] < 1
    assert "PROVED. The property holds for every input" in repair.report.to_html()
    save_proof(repair.report.proof, tmp_path / "proof.safetensors")
    proof = load_proof(tmp_path / "proof.safetensors")
    assert check_deployed(repair.model, proof, samples=1000).status == "proved"
    assert place_in(proof, region) == 0
    assert place_in(proof, within(1.02, [[1.0, 1.0], [1.0, 0.2], [0.3, 0.9]])) is None
    assert place_in(proof, Region([0.0, 0.0], [1.0, 1.0], region.matrix, region.offset)) is None


def test_polytopes_and_boxes_together() -> None:
    model = controller()
    box = Region([-0.1, -0.1], [0.1, 0.1], [[1.0]], [-0.5], name="near zero")
    segment = within(1.02, [[1.0, 1.0], [-1.0, -1.0]])
    repair = solve_repair(model, UnprovedRegions([box, within(1.02)]), [KeepRegions(segment)], method="regions")
    assert repair.report.verdict is Verdict.REPAIRED
    assert repair.report.verification.checks[0].holds
    assert min(worst(repair.model, one) for one in (box, within(1.02), segment)) > 0


def test_counterexamples_in_a_polytope() -> None:
    repair = solve_repair(controller(), within(1.02), method=CounterexampleGuided())
    assert repair.report.verdict is Verdict.REPAIRED
    assert repair.report.proof_verdict is not None
    assert repair.report.proof_verdict.status == "proved"
    assert worst(repair.model, within(1.02)) > 0


def test_the_hull_is_repaired_and_not_the_box_around_it() -> None:
    """On the diagonal of a box the answer can change, while it stays what it is in the corners beside."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(2, 24), nn.ReLU(), nn.Linear(24, 2))
    with torch.no_grad():
        model[2].weight.zero_()
        model[2].bias.copy_(torch.tensor([0.3, 0.0]))
    region = Region.polytope([[-1.0, -1.0], [1.0, 1.0]], y=1, classes=2)
    aside = [
        Region([-1.0, 0.8], [-0.8, 1.0], [[1.0, -1.0]], name="above"),
        Region([0.8, -1.0], [1.0, -0.8], [[1.0, -1.0]], name="below"),
    ]
    repair = solve_repair(model.eval(), [region, *aside], settings=Settings(time_limit=60.0))
    assert repair.report.verdict is Verdict.REPAIRED
    assert min(worst(repair.model, one) for one in (region, *aside)) > 0


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ({"vertices": [[0.0, 1.0]], "matrix": [[1.0]]}, "V of 2 or more"),
        ({"vertices": [0.0, 1.0], "matrix": [[1.0]]}, "V of 2 or more"),
        ({"vertices": CORNER}, "either rows as matrix=, or y= and classes="),
        ({"vertices": CORNER, "matrix": [[1.0]], "y": 0}, "either rows"),
        ({"vertices": CORNER, "y": 3, "classes": 3}, "class 3 of 3"),
        ({"vertices": [[0.0, float("nan")], [0, 1]], "y": 0, "classes": 3}, "not finite"),
        ({"vertices": [[0.0, 1.0], [0.0]], "y": 0, "classes": 3}, "cannot be read as numbers"),
    ],
)
def test_malformed_polytopes_are_refused(arguments: dict, text: str) -> None:
    with pytest.raises(SpecificationError, match=text):
        Region.polytope(**arguments)


def test_vertices_of_the_shape_of_images() -> None:
    images = np.random.default_rng(0).random((3, 1, 2, 2))
    region = Region.polytope(images, y=1, classes=3)
    assert region.shape == (1, 2, 2)
    assert region.vertices.shape == (3, 4)
    model = nn.Sequential(nn.Conv2d(1, 2, 2), nn.Flatten(), nn.ReLU(), nn.Linear(2, 3)).eval()
    repair = solve_repair(model, region)
    assert repair.report.verdict is Verdict.REPAIRED
    assert worst(nn.Sequential(nn.Unflatten(1, (1, 2, 2)), repair.model), region) > 0
