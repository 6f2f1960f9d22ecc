"""Proofs of convex hulls: their bounds against linear programs, their verdicts against exact enumeration."""

from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
from linear_regions import is_violated_exactly
from scipy.optimize import linprog

from repairopt.errors import ProofError
from repairopt.program import OutputRows, ProofStatus, RegionProof, check_proof, dense_layers
from repairopt.program.certificates.hulls import Hulls
from repairopt.program.certificates.running_bounds import RunningBounds


def hull_proof(vertices, rows, **options):
    count = len(vertices)
    zeros, ones = np.zeros((1, count)), np.ones((1, count))
    return RegionProof.of_boxes(zeros, ones, [rows], vertices=[vertices], hull=[True], **options)


def random_boxes(draw, count, size):
    """Boxes of weights around weights whose sum is 1."""
    middle = draw.dirichlet(np.ones(size), count)
    half = draw.random((count, size)) * draw.choice([0.05, 0.5, 1.0], (count, 1))
    return np.clip(middle - half, 0, 1), np.clip(middle + half, 0, 1)


@pytest.mark.parametrize("size", [2, 3, 6])
def test_bounds_of_linear_functions_are_those_of_linear_programs(size):
    draw = np.random.default_rng(size)
    lower, upper = random_boxes(draw, 20, size)
    vertices, slopes = draw.normal(size=(20, size, 3)), draw.normal(size=(20, 4, 3))
    hulls = Hulls(lower, upper, vertices, np.ones(20, dtype=bool))
    value, error, pulled = hulls.lowest(slopes)
    assert error.max() < 1e-13
    for b in range(20):
        for s in range(4):
            sides = np.stack([lower[b], upper[b]], 1)
            best = linprog(slopes[b, s] @ vertices[b].T, A_eq=np.ones((1, size)), b_eq=[1.0], bounds=sides)
            assert value[b, s] - error[b, s] <= best.fun + 1e-12
            assert value[b, s] == pytest.approx(best.fun, abs=1e-9)
    corner = hulls.corners(pulled[:, 0])
    np.testing.assert_allclose(corner.sum(1), 1)
    assert ((corner >= lower - 1e-15) & (corner <= upper + 1e-15)).all()
    np.testing.assert_allclose((corner * pulled[:, 0]).sum(1), value[:, 0], atol=1e-12)
    inputs = np.stack([w @ v for w, v in zip(hulls.middles(), vertices, strict=True)])
    low, high = hulls.box()
    assert ((inputs >= low) & (inputs <= high)).all()


def test_boxes_without_weights_of_sum_1_are_told_exactly():
    lower, upper = [[0.5, 0.5], [0.5, np.nextafter(0.5, 1)], [0, 0]], [[1, 1], [1, 1], [0.5, np.nextafter(0.5, 0)]]
    hulls = Hulls(np.array(lower), np.array(upper), np.zeros((3, 2, 1)), np.ones(3, dtype=bool))
    assert hulls.are_empty().tolist() == [False, True, True]


def polygon(draw):
    """Corners in order, and vertices of the hull, some of which may be no corners."""

    def eighths(*size):
        return np.round(draw.normal(size=size) * 8) / 8

    a, u, v = np.zeros((3, 2))
    while u[0] * v[1] == u[1] * v[0]:
        a, u, v = eighths(2), eighths(2), eighths(2)
    if draw.random() < 0.5:
        corners = [a, a + u, a + u + v, a + v]
    else:
        corners = [a, a + u, a + v]
    more = [] if draw.random() < 0.5 else [a + u / 2 + v / 4]
    return corners, np.array([*corners, *more])


def test_no_small_network_is_wrongly_proved_or_refuted_on_a_polygon():
    draw, found = np.random.default_rng(8), []
    for _ in range(120):
        sizes = [2, *draw.integers(2, 5, draw.integers(1, 3)), 3]
        weights = [(np.round(draw.normal(size=(m, n)) * 8) / 8, np.round(draw.normal(size=m) * 8) / 16)
                   for n, m in pairwise(sizes)]  # fmt: skip
        rows = OutputRows(
            np.round(draw.normal(size=(3, 3)) * 8) / 8, np.round(draw.normal(size=3) * 8) / 8 - 1.5, [0, 0, 1]
        )
        corners, vertices = polygon(draw)
        verdict = check_proof(dense_layers(weights), hull_proof(vertices, rows, execution="float64"), samples=200)
        violated = is_violated_exactly(weights, rows, corners)
        assert not (verdict.status is ProofStatus.PROVED and violated)
        assert not (verdict.status is ProofStatus.REFUTED and not violated)
        assert (verdict.share == 1) is (verdict.status is ProofStatus.PROVED)
        found.append(verdict.status)
    assert min(found.count(ProofStatus.PROVED), found.count(ProofStatus.REFUTED)) > 20


@pytest.mark.parametrize("execution", ["float32", "float64"])
def test_bounds_hold_for_runs_at_rounded_points(execution):
    draw, dtype = np.random.default_rng(3), np.dtype(execution).type
    weights = [(draw.normal(size=(m, n)).astype(dtype), draw.normal(size=m).astype(dtype)) for n, m in ((4, 9), (9, 2))]
    vertices = 3 * draw.normal(size=(5, 4))
    hulls = Hulls(np.zeros((1, 5)), np.ones((1, 5)), vertices[None], np.array([True]))
    rows = np.array([[[1.0, -1.0], [0.5, 1.0]]])
    bound = RunningBounds(dense_layers(weights), *np.zeros((2, 1, 4)), execution, hulls).below(rows, np.zeros((1, 2)))[
        0
    ]
    points = (draw.dirichlet(np.full(5, 0.3), 20_000) @ vertices).astype(dtype)
    hidden = np.maximum(points @ weights[0][0].T + weights[0][1], 0)
    values = (hidden @ weights[1][0].T + weights[1][1]).astype(float) @ rows[0].T
    assert (values >= bound).all()


def damaged(proof, how):
    lower, upper = proof.leaf_lower.copy(), proof.leaf_upper.copy()
    if how == "shrunk":
        upper[0, 0] = np.nextafter(upper[0, 0], 0)
    keep = slice(1 if how == "missing" else 0, None)
    return replace(proof, leaf_lower=lower[keep], leaf_upper=upper[keep], leaf_box=proof.leaf_box[keep])


@pytest.mark.parametrize("how", ["missing", "shrunk"])
def test_damaged_proofs_are_refused(how):
    network = dense_layers([(np.eye(2), np.zeros(2)), (np.ones((1, 2)), np.ones(1))])
    whole = hull_proof([[0.0, 0], [1, 0], [0, 1]], OutputRows([[1.0]], [0.0], [0]))
    leaves = {"leaf_lower": [[0, 0, 0], [0.5, 0, 0]], "leaf_upper": [[0.5, 1, 1], [1, 1, 1]], "leaf_box": [0, 0]}
    split = replace(whole, **leaves)
    assert check_proof(network, split, samples=100).status is ProofStatus.PROVED
    with pytest.raises(ProofError, match="do not tile"):
        check_proof(network, damaged(split, how))


def test_malformed_hulls_are_refused():
    rows = OutputRows([[1.0]], [0.0], [0])
    with pytest.raises(ProofError, match="do not fit"):
        RegionProof.of_boxes(np.zeros((1, 3)), np.ones((1, 3)), [rows], vertices=np.zeros((1, 2, 2)), hull=[True])
    with pytest.raises(ProofError, match="weights of a hull"):
        RegionProof.of_boxes(np.zeros((1, 2)), 2 * np.ones((1, 2)), [rows], vertices=np.zeros((1, 2, 2)), hull=[True])


def test_a_violation_beside_the_polytope_is_none_of_it():
    """x + y below 1 holds on the triangle below the diagonal, and not on the box around."""
    network = dense_layers([(np.array([[-1.0, -1.0]]), np.array([1.001]))])
    rows = OutputRows([[1.0]], [0.0], [0])
    inside = hull_proof([[0.0, 0], [1, 0], [0, 1]], rows)
    assert check_proof(network, inside, samples=1000).status is ProofStatus.PROVED
    around = RegionProof.of_boxes([[0.0, 0]], [[1.0, 1]], [rows])
    assert check_proof(network, around, samples=1000).status is ProofStatus.REFUTED
    wider = hull_proof([[0.0, 0], [1, 0.01], [0, 1]], rows)
    found = check_proof(network, wider, samples=1000)
    assert found.status is ProofStatus.REFUTED
    assert found.point_box == 0
    assert found.point.sum() > 1.001
