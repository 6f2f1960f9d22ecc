"""Proofs of regions: against exact enumeration of linear regions, planted violations, damaged proofs, wrong lines."""

from dataclasses import replace
from fractions import Fraction
from itertools import pairwise

import numpy as np
import pytest
from linear_regions import box, is_violated_exactly

from repairopt.errors import ProofError
from repairopt.program import (
    LayeredNetwork,
    OutputRows,
    ProofStatus,
    RegionProof,
    SmoothLayer,
    check_proof,
    dense_layers,
)
from repairopt.program.certificates import running_bounds
from repairopt.program.certificates.box_tiling import boxes_tile
from repairopt.program.certificates.layered_network import AffineLayer, RectifierLayer, SumLayer
from repairopt.program.certificates.running_bounds import RunningBounds, rectifier_lines
from repairopt.program.certificates.smooth_functions import FUNCTIONS, band, slopes_of

ONE_ROW = OutputRows([[1.0]], [0.0], [0])


def random_case(draw):
    sizes = [2, *draw.integers(2, 5, draw.integers(1, 3)), 3]

    def eighths(*size):
        return np.round(draw.normal(size=size) * 8) / 8

    weights = [(eighths(m, n), eighths(m) / 2) for n, m in pairwise(sizes)]
    rows = OutputRows(eighths(3, 3), eighths(3) - 1.5, [0, 0, 1])
    corner = eighths(2) / 2
    return weights, rows, corner, corner + draw.integers(1, 8, 2) / 8


def test_no_small_network_is_wrongly_proved_or_refuted():
    draw, found = np.random.default_rng(5), []
    for _ in range(200):
        weights, rows, lower, upper = random_case(draw)
        proof = RegionProof.of_boxes([lower], [upper], [rows], execution="float64")
        verdict = check_proof(dense_layers(weights), proof, samples=200)
        violated = is_violated_exactly(weights, rows, box(lower, upper))
        assert not (verdict.status is ProofStatus.PROVED and violated)
        assert not (verdict.status is ProofStatus.REFUTED and not violated)
        assert (verdict.share == 1) is (verdict.status is ProofStatus.PROVED)
        if verdict.status is ProofStatus.REFUTED:
            assert ((verdict.point >= lower) & (verdict.point <= upper)).all()
            assert rows.are_violated(dense_layers(weights).run(verdict.point[None])[0])
        found.append((verdict.status, violated))
    counts = {status: sum(one[0] is status for one in found) for status in ProofStatus}
    assert min(counts[ProofStatus.PROVED], counts[ProofStatus.REFUTED]) > 40
    assert counts[ProofStatus.UNDECIDED] <= 4


def spike(volume):
    """``1 - 2 relu(1 - K|x - a| - K|y - b|)``: at most 0 on a square of this area about a point."""
    slope, (a, b) = np.sqrt(1 / (2 * volume)), (0.3141, 0.2718)
    first = np.array([[1.0, 0], [-1, 0], [0, 1], [0, -1]]), np.array([-a, a, -b, b])
    second = np.full((1, 4), -slope), np.array([1.0])
    return [first, second, (np.array([[-2.0]]), np.array([1.0]))]


@pytest.mark.parametrize("cells", [1, 4, 25])
def test_a_planted_violation_of_volume_1e_9_is_never_proved(cells):
    weights = spike(1e-9)
    network = dense_layers(weights)
    assert network.run(np.array([[0.3141, 0.2718]]))[0, 0] == pytest.approx(-1)
    assert is_violated_exactly(weights, ONE_ROW, box(np.zeros(2), np.ones(2)))
    places = np.linspace(0, 1, cells + 1)
    lower = np.stack(np.meshgrid(places[:-1], places[:-1]), -1).reshape(-1, 2)
    upper = np.stack(np.meshgrid(places[1:], places[1:]), -1).reshape(-1, 2)
    proof = RegionProof([[0, 0]], [[1, 1]], [ONE_ROW], lower, upper, np.zeros(len(lower)), execution="float64")
    for depth in (0, 6, 40):
        verdict = check_proof(network, proof, samples=1000, depth=depth)
        assert verdict.status is not ProofStatus.PROVED
    assert verdict.status is ProofStatus.REFUTED
    assert ONE_ROW.are_violated(network.run(verdict.point[None])[0])


def test_what_is_open_is_told_with_its_share_of_the_volume():
    network = dense_layers([(np.array([[1.0, 0.0]]), np.zeros(1))])
    rows = OutputRows([[1.0]], [0.25], [0])
    proof = RegionProof.of_boxes([[0.25, 0]], [[1.25, 1]], [rows], execution="exact")
    verdict = check_proof(network, proof, samples=0, depth=3, run=lambda x: network.run(x) + 1e-3)
    assert verdict.status is ProofStatus.UNDECIDED
    assert verdict.share == pytest.approx(1 - 2**-3)
    assert (verdict.open_lower.tolist(), verdict.open_upper.tolist()) == ([[0.25, 0]], [[0.375, 1]])
    assert verdict.splits == 3


def test_a_run_in_float32_is_covered_where_real_numbers_are_not_enough():
    draw = np.random.default_rng(0)
    weights = [(draw.normal(size=(40, 2)), draw.normal(size=40)), (draw.normal(size=(1, 40)), np.zeros(1))]
    weights = [(w.astype(np.float32).astype(float), b.astype(np.float32).astype(float)) for w, b in weights]
    point = np.array([0.5, 0.25])
    value = float(dense_layers(weights).run(point[None])[0, 0])
    for slack, expected in ((1e-9, False), (1e-3, True)):
        rows = OutputRows([[1.0]], [value - slack], [0])
        for execution, proved in (("exact", True), ("float64", True), ("float32", expected)):
            proof = RegionProof.of_boxes([point], [point], [rows], execution=execution)
            verdict = check_proof(dense_layers(weights), proof, samples=0, depth=0)
            assert (verdict.status is ProofStatus.PROVED) is proved


def test_bounds_hold_for_runs_that_add_in_other_orders_in_float32():
    draw = np.random.default_rng(1)
    weights = [(draw.normal(size=(30, 3)), draw.normal(size=30)), (draw.normal(size=(30, 30)), draw.normal(size=30))]
    weights += [(draw.normal(size=(2, 30)) * 1e3, draw.normal(size=2))]
    weights = [(w.astype(np.float32), b.astype(np.float32)) for w, b in weights]
    lower = draw.normal(size=(20, 3))
    bounds = RunningBounds(dense_layers(weights), lower, lower + 1e-6, "float32")
    rows = np.broadcast_to(np.array([[1.0, 0], [0, -1]]), (20, 2, 2))
    least = bounds.below(rows, np.zeros((20, 2)))[0]
    for _ in range(50):
        value = (lower + 1e-6 * draw.random((20, 3))).astype(np.float32)
        for layer, (weight, bias) in enumerate(weights):
            total = np.zeros((20, len(bias)), dtype=np.float32)
            for place in draw.permutation(weight.shape[1]):
                total = total + value[:, place, None] * weight[:, place]
            value = total + bias
            value = np.maximum(value, 0) if layer < 2 else value
        assert (np.einsum("brk,bk->br", rows, value.astype(float)) >= least).all()


def two_leaves():
    network = dense_layers([(np.array([[1.0, 0.5]]), np.array([2.0]))])
    network = replace(network, fingerprint="a" * 64)
    leaves = [[0.0, 0], [0.375, 0], [0.375, 0.5]], [[0.375, 1], [1, 0.5], [1, 1]]
    return network, RegionProof([[0, 0]], [[1, 1]], [ONE_ROW], *leaves, [0, 0, 0], "a" * 64)


def damaged(proof, how):
    lower, upper, box = proof.leaf_lower.copy(), proof.leaf_upper.copy(), proof.leaf_box
    if how == "missing":
        lower, upper, box = lower[1:], upper[1:], box[1:]
    elif how == "shrunk":
        upper[1, 0] = np.nextafter(1, 0)
    elif how == "moved":
        lower[2, 1] = np.nextafter(0.5, 1)
    elif how == "outside":
        upper[2, 1] = np.nextafter(1, 2)
    elif how == "twice":
        lower, upper, box = (np.concatenate([part, part[:1]]) for part in (lower, upper, box))
    elif how == "none":
        lower, upper, box = lower[:0], upper[:0], box[:0]
    return replace(proof, leaf_lower=lower, leaf_upper=upper, leaf_box=box)


@pytest.mark.parametrize("how", ["missing", "shrunk", "moved", "outside", "twice", "none"])
def test_leaves_that_do_not_tile_the_box_are_refused(how):
    network, proof = two_leaves()
    assert check_proof(network, proof, samples=10).status is ProofStatus.PROVED
    with pytest.raises(ProofError, match="do not tile box 0"):
        check_proof(network, damaged(proof, how), samples=10)


def test_a_proof_of_other_weights_or_sizes_is_refused():
    network, proof = two_leaves()
    with pytest.raises(ProofError, match="SHA-256 aaaa"):
        check_proof(replace(network, fingerprint="b" * 64), proof)
    with pytest.raises(ProofError, match="2 inputs and 1 outputs"):
        check_proof(dense_layers([(np.ones((1, 3)), np.zeros(1))], "a" * 64), proof)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"leaf_box": [0, 0, 1]}, "leaves of the boxes 0 to 0"),
        ({"lower": [[0, np.nan]]}, "not finite"),
        ({"upper": [[1, 1, 1]]}, "do not fit"),
        ({"execution": "bfloat16"}, "expected lower sides"),
        ({"rows": ()}, "do not fit"),
        ({"upper": [[1, -1]]}, "expected lower sides"),
    ],
)
def test_malformed_proofs_are_refused(change, reason):
    with pytest.raises(ProofError, match=reason):
        replace(two_leaves()[1], **change)


def test_tilings_of_random_cuts_are_recognized_and_pinwheels_not():
    draw = np.random.default_rng(3)
    for dimensions in (1, 2, 5):
        leaves = [(np.zeros(dimensions), np.ones(dimensions))]
        for _ in range(60):
            low, up = leaves.pop(draw.integers(len(leaves)))
            k = draw.integers(dimensions)
            middle = low[k] + (up[k] - low[k]) * draw.random()
            left, right = up.copy(), low.copy()
            left[k] = right[k] = middle
            leaves += [(low, left), (right, up)]
        draw.shuffle(leaves)
        lower, upper = (np.array(side) for side in zip(*leaves, strict=True))
        assert boxes_tile(np.zeros(dimensions), np.ones(dimensions), lower, upper)
        assert not boxes_tile(np.zeros(dimensions), np.ones(dimensions), lower[:-1], upper[:-1])
    pinwheel = np.array([[0, 0, 2, 1], [2, 0, 3, 2], [1, 2, 3, 3], [0, 1, 1, 3], [1, 1, 2, 2]], dtype=float)
    assert not boxes_tile(np.zeros(2), np.full(2, 3.0), pinwheel[:, :2], pinwheel[:, 2:])


def lines_hold(lines, lower, upper, leak):
    """Whether lines lie about the rectifier at the ends and at 0, in rational arithmetic, for one pair of bounds."""
    low, high, shift, leak = (Fraction(float(v)) for v in (lines.low, lines.high, lines.shift, leak))
    ends = [Fraction(float(lower)), Fraction(float(upper))]
    points = [*ends, Fraction(0)] if ends[0] < 0 < ends[1] else ends
    return all(low * x <= max(x, leak * x) <= high * x + shift for x in points)


@pytest.mark.parametrize("leak", [0.0, 0.01, 0.3])
def test_lines_about_rectifiers_hold_exactly(leak):
    draw = np.random.default_rng(2)
    for _ in range(300):
        lower = -draw.random() * 10.0 ** draw.integers(-12, 6)
        upper = draw.random() * 10.0 ** draw.integers(-12, 6)
        for a, b in ((lower, upper), (upper, 2 * upper), (2 * lower, lower)):
            for slope in running_bounds.SLOPES:
                assert lines_hold(rectifier_lines(np.float64(a), np.float64(b), leak, slope), a, b, leak)


MUTATIONS = {
    "slope above 1": lambda lines: replace(lines, low=np.where(lines.shift > 0, 1.1, lines.low)),
    "slope below 0": lambda lines: replace(lines, low=np.where(lines.shift > 0, -0.1, lines.low)),
    "shift too small": lambda lines: replace(lines, shift=0.9 * lines.shift),
    "chord too flat": lambda lines: replace(lines, high=np.where(lines.shift > 0, 0.9 * lines.high, lines.high)),
    "settled neuron changed": lambda lines: replace(lines, high=np.where(lines.shift > 0, lines.high, 0.5)),
}


@pytest.mark.parametrize("mutation", MUTATIONS)
def test_a_checker_with_wrong_lines_refuses_to_prove(monkeypatch, mutation):
    def mutated(lower, upper, leak, slope):
        return MUTATIONS[mutation](rectifier_lines(lower, upper, leak, slope))

    draw = np.random.default_rng(0)
    network = dense_layers([(draw.normal(size=(8, 2)), np.zeros(8)), (draw.normal(size=(1, 8)), np.array([50.0]))])
    proof = RegionProof.of_boxes([[-1, -1]], [[1, 1]], [ONE_ROW])
    assert check_proof(network, proof, samples=10).status is ProofStatus.PROVED
    wrong = mutated(np.float64(-1.0), np.float64(2.0), 0.0, "parallel")
    if mutation != "settled neuron changed":
        assert not lines_hold(wrong, -1.0, 2.0, 0.0)
    monkeypatch.setattr(running_bounds, "rectifier_lines", mutated)
    if mutation == "settled neuron changed":
        proof = RegionProof.of_boxes([[0.5, 0.5]], [[0.6, 0.6]], [ONE_ROW])
    with pytest.raises(ProofError, match="lines about an activation do not hold"):
        check_proof(network, proof, samples=10)


def test_numbers_that_overflow_prove_nothing():
    """Values are of usual size; the products of weights that bounds are passed back through are not."""
    inner = np.array([[1.0, -1.0], [1.0, 1.0]])
    weights = [(np.array([[1.0], [-1.0]]), np.zeros(2)), (1e200 * inner, np.zeros(2)), (1e150 * inner, np.zeros(2))]
    weights += [(1e-150 * np.array([[1.0, -1.5]]), np.array([0.5]))]
    network, lower, upper = dense_layers(weights), np.array([-1e-200]), np.array([1e-200])
    assert network.run(lower + (upper - lower) * np.linspace(0, 1, 11)[:, None]).min() < 0
    proof = RegionProof.of_boxes([lower], [upper], [ONE_ROW], execution="float64")
    verdict = check_proof(network, proof, samples=0, depth=3, run=lambda x: np.ones((len(x), 1)))
    assert verdict.status is ProofStatus.UNDECIDED


def test_sums_too_long_to_bound_are_refused():
    long = AffineLayer((0,), np.ones(3), np.zeros(3), 10**7, np.zeros(3))
    network = LayeredNetwork(3, (long,))
    with pytest.raises(ProofError, match="10,000,000 terms"):
        check_proof(network, RegionProof.of_boxes([[1.0] * 3], [[2.0] * 3], [OutputRows([[1.0, 0, 0]], [0.0], [0])]))


@pytest.mark.parametrize("name", FUNCTIONS)
def test_bands_about_smooth_functions_hold_between_grid_points(name):
    function, draw = FUNCTIONS[name], np.random.default_rng(0)
    fine = np.linspace(-12, 12, 400_001)
    curvature = np.diff(function.value(fine), 2) / (fine[1] - fine[0]) ** 2
    assert 0.9 * function.curvature < np.abs(curvature).max() <= function.curvature * (1 + 1e-4)
    slopes = np.diff(function.value(fine)) / (fine[1] - fine[0])
    assert np.allclose(slopes, function.slope((fine[1:] + fine[:-1]) / 2), atol=1e-6)
    lower = draw.normal(size=200) * 3
    upper = lower + 10.0 ** draw.uniform(-6, 1, 200)
    inside = np.sort(lower + (upper - lower) * draw.random((3000, 200)), axis=0)
    for slope in slopes_of(function, lower, upper).values():
        least, most = band(function, lower, upper, slope, 0.0)
        rest = function.value(inside) - slope * inside
        assert (rest >= least).all()
        assert (rest <= most).all()
        own = 1.05 * (rest.max(0) - rest.min(0)) + 5e-3 * (upper - lower) + 1e-13
        assert (most - least - 2 * function.apart <= own).all()


def test_a_network_with_smooth_activations_is_proved():
    draw = np.random.default_rng(0)
    weights = [(draw.normal(size=(6, 2)), draw.normal(size=6)), (draw.normal(size=(1, 6)), np.zeros(1))]
    plain = dense_layers(weights)
    network = LayeredNetwork(2, (plain.layers[0], SmoothLayer((1,), 6, "tanh"), plain.layers[2]))
    grid = np.stack(np.meshgrid(*[np.linspace(-1, 1, 201)] * 2), -1).reshape(-1, 2)
    least = float(network.run(grid).min())
    for slack, status in ((0.05, ProofStatus.PROVED), (-0.05, ProofStatus.REFUTED)):
        rows = OutputRows([[1.0]], [least - slack], [0])
        assert check_proof(network, RegionProof.of_boxes([[-1, -1]], [[1, 1]], [rows]), samples=2000).status is status


def test_branches_and_leaks_are_bounded():
    draw = np.random.default_rng(4)

    def affine(parent, m, n, sparse=False):
        weight, bias = draw.normal(size=(m, n)), draw.normal(size=m)
        if sparse:
            from scipy.sparse import csr_array

            weight = csr_array(np.where(draw.random((m, n)) < 0.5, weight, 0))
        return AffineLayer((parent,), weight, bias, n + 2, np.abs(bias))

    diagonal, shift = draw.normal(size=6), draw.normal(size=6)
    layers = (
        affine(0, 6, 3),
        RectifierLayer((1,), 6, 0.1),
        affine(2, 6, 6, sparse=True),
        SumLayer((2, 3), 6),
        RectifierLayer((4,), 6),
        AffineLayer((5,), diagonal, shift, 3, np.abs(shift)),
        SumLayer((6, 2, 2), 6),
        affine(7, 2, 6),
    )
    network = LayeredNetwork(3, layers)
    lower = draw.normal(size=(30, 3))
    bounds = RunningBounds(network, lower, lower + 0.5, "float32")
    rows = np.broadcast_to(draw.normal(size=(4, 2)), (30, 4, 2))
    least = bounds.below(rows, np.zeros((30, 4)))[0]
    points = lower[:, None] + 0.5 * draw.random((30, 500, 3))
    values = network.run(points.reshape(-1, 3)).reshape(30, 500, 2) @ rows[0].T
    gap = values.min(1) - least
    assert (gap >= 0).all()
    assert np.median(gap) < 1  # not vacuous


@pytest.mark.parametrize("seed", range(5))
def test_slopes_of_a_proof_help_and_cannot_harm(seed):
    draw = np.random.default_rng(seed)
    sizes = [3, 8, 6, 2]
    weights = [(draw.normal(size=(m, n)), draw.normal(size=m)) for n, m in pairwise(sizes)]
    network, lower = dense_layers(weights), draw.normal(size=(6, 3))
    upper = lower + 0.8
    rows, offset = draw.normal(size=(6, 4, 2)), np.zeros((6, 4))
    usual = RunningBounds(network, lower, upper, "float64").below(rows, offset)[0]
    points = lower[:, None] + 0.8 * draw.random((6, 4000, 3))
    values = np.einsum("brk,bnk->bnr", rows, network.run(points.reshape(-1, 3)).reshape(6, 4000, 2))
    better = 0
    for hints in (np.zeros((6, 14)), np.ones((6, 14)), *draw.random((20, 6, 14)), np.full((6, 14), 7.0)):
        found = RunningBounds(network, lower, upper, "float64", hints=hints).below(rows, offset)[0]
        assert (found >= usual).all()
        assert (values.min(1) >= found).all()
        better += (found > usual + 1e-9).sum()
    assert better > 0


def test_a_proof_may_need_its_slopes_and_slopes_that_do_not_fit_are_refused():
    """``relu(x) - x / 2 + 0.01`` on [-1, 1.5]: a lower slope of 1/2 proves it; 0, 1 and that of the chord do not."""
    first = (np.array([[1.0], [1.0]]), np.array([0.0, 10.0]))
    network = dense_layers([first, (np.array([[1.0, -0.5]]), np.array([5.01]))])
    proof = RegionProof.of_boxes([[-1.0]], [[1.5]], [ONE_ROW], execution="float64")
    assert check_proof(network, proof, samples=100, depth=0).status is ProofStatus.UNDECIDED
    hinted = replace(proof, leaf_slopes=np.array([[128, 0]], dtype=np.uint8))
    found = check_proof(network, hinted, samples=100, depth=0)
    assert (found.status, found.splits) == (ProofStatus.PROVED, 0)
    with pytest.raises(ProofError, match="slopes of 3 rectifiers, the network 2"):
        check_proof(network, replace(proof, leaf_slopes=np.zeros((1, 3), dtype=np.uint8)))
    for slopes in (np.zeros((2, 2), dtype=np.uint8), np.zeros((1, 2))):
        with pytest.raises(ProofError, match="do not fit its leaves"):
            replace(proof, leaf_slopes=slopes)
