"""Slices of regions: what is drawn is what the networks answer, where the rows fail, and which leaves are open."""

from importlib.util import find_spec

import numpy as np
import pytest
import torch
from torch import nn

from repairopt import solve_repair
from repairopt.errors import SpecificationError
from repairopt.program import OutputRows, RegionProof, check_proof, dense_layers
from repairopt.report import map_region, picture_bytes, plot_region_map
from repairopt.report.pictures.evidence import Evidence, load_evidence, save_evidence
from repairopt.report.pictures.gallery import draw_gallery
from repairopt.specify import Region

BEFORE = dense_layers([(np.array([[1.0, 0, 0], [0, 1, 0]]), np.array([0.0, 0.0]))])
AFTER = dense_layers([(np.array([[1.0, 0, 0], [0, 1, 0]]), np.array([0.75, 0.0]))])


def checked(depth):
    rows = OutputRows([[1.0, -1.0]], [0.0], [0])
    leaves = np.array([[0, 0, 0], [0, 0.5, 0]]), np.array([[1, 0.5, 2], [1, 1, 2]])
    proof = RegionProof([[0, 0, 0]], [[1, 1, 2]], [rows], *leaves, [0, 0], execution="exact")
    return proof, check_proof(AFTER, proof, samples=0, depth=depth, run=lambda x: np.tile([1.0, 0.0], (len(x), 1)))


def test_a_slice_shows_answers_failures_leaves_and_open_boxes():
    proof, verdict = checked(depth=2)
    assert (verdict.status, len(verdict.open_lower)) == ("undecided", 2)
    found = map_region(BEFORE.run, AFTER.run, proof, verdict, axes=(0, 1), names=("a", "b"))
    assert (found.axes, found.share) == (("a", "b"), verdict.share)
    across, up = np.meshgrid(*[np.linspace(0, 1, len(found.before))] * 2)
    assert np.array_equal(found.before, (up > across).astype(int))
    assert np.array_equal(found.broken_before, up >= across)
    assert np.array_equal(found.broken_after, up >= across + 0.75)
    assert found.leaves.tolist() == [[0, 0, 1, 0.5], [0, 0.5, 1, 1]]
    assert sorted(found.open.tolist()) == [[0, 0.5, 0.5, 0.75], [0, 0.75, 0.5, 1]]
    assert map_region(BEFORE.run, AFTER.run, proof, verdict).axes == ("input 1", "input 2")  # cut most, then widest
    lowest = map_region(BEFORE.run, AFTER.run, proof, verdict, axes=(0, 1), lowest=True)
    assert np.array_equal(lowest.before, (up < across).astype(int))


def test_slices_that_do_not_fit_are_refused():
    proof, verdict = checked(depth=0)
    for options in ({"box": 1}, {"axes": (0, 0)}, {"axes": (0, 7)}, {"through": (2, 0, 0)}, {"through": (0, 0)}):
        with pytest.raises(SpecificationError, match="map of a region"):
            map_region(BEFORE.run, AFTER.run, proof, verdict, **options)


def test_the_report_of_a_repaired_region_has_its_map():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(2, 6), nn.ReLU(), nn.Linear(6, 2)).eval()
    region = Region([-1.0, -1.0], [1.0, 1.0], [[1.0, -1.0]], [-0.1])
    repair = solve_repair(model, region, method="counterexample_guided")
    (found,) = repair.report.evidence.regions
    assert (found.status, found.broken_after.any()) == ("proved", False)
    assert len(found.leaves) == len(repair.report.proof.leaf_lower)


@pytest.mark.skipif(find_spec("matplotlib") is None, reason="Matplotlib is not installed")
def test_a_map_is_drawn_and_kept_as_evidence(tmp_path):
    found = map_region(BEFORE.run, AFTER.run, *checked(depth=2), axes=(0, 1))
    assert picture_bytes(plot_region_map(found), "png")[:4] == b"\x89PNG"
    save_evidence(Evidence(regions=(found,)), tmp_path)
    (again,) = load_evidence(tmp_path).regions
    assert np.array_equal(again.open, found.open)
    (picture,) = draw_gallery(load_evidence(tmp_path))
    assert "before and 3." in picture.alt
