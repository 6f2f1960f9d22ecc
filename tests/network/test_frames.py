"""Bounds on convex hulls in the search: below every value, exact for linear functions, cuts for all weights."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from repairopt.network import (
    Frame,
    Leaves,
    NetworkSteps,
    RegionSearch,
    RowGroups,
    attack_regions,
    divided,
    own_last_layer,
    relax,
)

HULL, BOX = [[0.0, 0, 0], [1, 0, 0.5], [0, 1, -0.5], [0.2, 0.3, 2]], torch.eye(3).tolist()


def frame() -> Frame:
    padded = torch.tensor([HULL, [*BOX, [0.0] * 3]], dtype=torch.float64)
    return Frame(padded, torch.tensor([True, False]), torch.arange(2))


def sides() -> tuple[torch.Tensor, torch.Tensor]:
    lower = torch.tensor([[0.0, 0, 0, 0], [-1, 0, 0.5, 0]], dtype=torch.float64)
    return lower, torch.tensor([[1.0, 1, 1, 1], [0, 0.5, 1, 0]], dtype=torch.float64)


def network(seed: int = 0) -> NetworkSteps:
    torch.manual_seed(seed)
    return NetworkSteps(
        nn.Sequential(nn.Linear(3, 12), nn.ReLU(), nn.Linear(12, 10), nn.ReLU(), nn.Linear(10, 4)), (3,)
    )


def points(own: Frame, lower: torch.Tensor, upper: torch.Tensor, count: int) -> torch.Tensor:
    """Inputs of each region, ``(Q, count, d)``."""
    draw = torch.Generator().manual_seed(1)
    drawn = [own.draw(q, lower[q], upper[q], count, draw) for q in range(len(lower))]
    return own.inputs(torch.stack(drawn))


def test_linear_functions_are_bounded_exactly() -> None:
    own, (lower, upper) = frame(), sides()
    affine = NetworkSteps(nn.Linear(3, 2), (3,))
    with torch.no_grad():
        directions = torch.randn(5, 2, dtype=torch.float64)
        low, _, value, corner = relax(affine, lower, upper, frame=own).below(directions, 1, points=True)
        vertices = affine.forward(own.vertices[0]) @ directions.T
    torch.testing.assert_close(low[0], vertices.amin(0))
    torch.testing.assert_close((value * directions).sum(-1), low)
    assert bool(((corner[1] >= lower[1, :3]) & (corner[1] <= upper[1, :3])).all())


@pytest.mark.parametrize("seed", range(5))
def test_bounds_are_below_every_value_and_cuts_hold(seed: int) -> None:
    own, (lower, upper), steps = frame(), sides(), network(seed)
    with torch.no_grad():
        boxes = relax(steps, lower, upper, alternatives=1, frame=own)
        last = own_last_layer(steps)[0]
        rows = torch.randn(6, 4, dtype=torch.float64)
        value, features = boxes.lowest(rows @ last.weight)
        torch.testing.assert_close(value, (features * (rows @ last.weight)).sum(-1), atol=1e-12, rtol=1e-12)
        other = rows @ (last.weight + torch.randn_like(last.weight))
        assert bool((boxes.lowest(other)[0] <= (features * other).sum(-1) + 1e-12).all())
        low = boxes.below(rows, steps.output)[0]
        outputs = steps.forward(points(own, lower, upper, 2000).flatten(0, 1)) @ rows.T
    assert bool((low <= outputs.unflatten(0, (2, 2000)).amin(1) + 1e-12).all())


def test_halves_tile_and_splitting_proves() -> None:
    own, (lower, upper), steps = frame(), sides(), network(2)
    last = own_last_layer(steps)[0]
    with torch.no_grad():
        worst = steps.forward(points(own, lower, upper, 5000).flatten(0, 1))[:, 0].unflatten(0, (2, 5000)).amin(1)
        groups = RowGroups.of([([[1.0, 0, 0, 0]], [float(least) - 0.02], [0]) for least in worst])
        leaves = Leaves.of(steps, lower, upper, groups, torch.arange(2), own)
        assert bool((leaves.least(last) <= 0).any())
        found = divided(leaves, last, torch.ones(2, dtype=torch.bool), 20_000)
        assert bool((found.least(last) > 0).all())
        share = torch.zeros(2).double().index_add(0, found.region, found.volume())
        torch.testing.assert_close(share, torch.ones(2).double())
    low, high = found.boxes.frame.tight(found.boxes.lower, found.boxes.upper)
    assert bool((low <= high).all()), "no leaf of a hull is empty"


def test_an_attack_finds_a_violation_in_a_corner_and_stays_inside() -> None:
    own, (lower, upper) = frame(), sides()
    affine = NetworkSteps(nn.Linear(3, 1), (3,))
    affine.refresh({"weight": torch.tensor([[0.0, 0, -1]]).double(), "bias": torch.tensor([1.999]).double()})
    groups = RowGroups.of([([[1.0]], [0.0], [0])] * 2)
    found, region, least = attack_regions(affine, lower, upper, groups, RegionSearch(starts=200), frame=own)
    assert region.unique().tolist() == [0]
    assert float(least[0]) == pytest.approx(-0.001, abs=1e-6)
    assert bool((found[:, 2] > 1.998).all())
