"""Constraints: margins, what rows ask for, what the original network anchors, tolerances, other data."""

import numpy as np
import pytest
import torch
from scipy import sparse

from repairopt.errors import SpecificationError
from repairopt.specify import (
    Bound,
    ChangeLimit,
    ErrorRate,
    FixLabels,
    KeepLabels,
    KeepOutputs,
    LinearRows,
    MissRate,
    OutputBounds,
    allowed_samples,
    anchor,
    broken_samples,
    margins_at,
)

OUTPUTS = torch.tensor([[2.0, 1.0, 0.5], [0.0, 3.0, 1.0], [1.0, 1.5, 4.0], [5.0, 0.0, 1.0]], dtype=torch.float64)
LABELS = torch.tensor([0, 1, 0, 2])  # the first two right, the others wrong
identity = lambda inputs: inputs  # noqa: E731


def test_margins_are_leads_over_each_rival_in_ascending_order():
    expected = [[1.0, 1.5], [3.0, 2.0], [-0.5, -3.0], [-4.0, 1.0]]
    for kind in (KeepLabels, FixLabels):
        constraint = kind(OUTPUTS, LABELS)
        assert constraint.margins_of(OUTPUTS, torch.arange(4)).tolist() == expected
        assert constraint.margins(identity).tolist() == sum(expected, [])
        assert constraint.margins_of(OUTPUTS[[3, 1]], torch.tensor([3, 1])).tolist() == [expected[3], expected[1]]
    assert KeepLabels(OUTPUTS, LABELS).describe(2, 0) == "class 0 over class 1"
    assert KeepLabels(OUTPUTS, LABELS).describe(1, 1) == "class 1 over class 2"


def test_keep_labels_speaks_of_what_was_right_and_fix_labels_of_what_was_wrong():
    keep, fix = (kind(OUTPUTS, LABELS).anchor(identity) for kind in (KeepLabels, FixLabels))
    assert keep.samples.tolist() == [0, 1]
    assert fix.samples.tolist() == [2, 3]
    assert keep.margins(identity).tolist() == [1.0, 1.5, 3.0, 2.0]
    assert fix.margins(identity).tolist() == [-0.5, -3.0, -4.0, 1.0]
    original = KeepLabels(OUTPUTS, LABELS, reference="original").anchor(identity)
    assert original.samples.tolist() == [0, 1, 2, 3]
    assert original.labels.tolist() == [0, 1, 2, 0]
    assert bool((original.margins(identity) > 0).all())


def test_rows_never_ask_a_kept_sample_for_more_than_it_has():
    margins = torch.tensor([5.0, 0.3, 0.0])
    assert KeepLabels(OUTPUTS, LABELS, margin=0.5).required(margins).tolist() == pytest.approx([0.5, 0.3, 0.0])
    assert FixLabels(OUTPUTS, LABELS, margin=0.5).required(-margins).tolist() == [0.5] * 3


@pytest.mark.parametrize(
    ("constraint", "allowed"),
    [
        (KeepLabels(OUTPUTS, LABELS, tolerance=0.0), 0),
        (KeepLabels(OUTPUTS, LABELS, tolerance=0.49), 0),  # a share of the two that are right
        (KeepLabels(OUTPUTS, LABELS, tolerance=0.5), 1),
        (KeepLabels(OUTPUTS, LABELS, tolerance=0.99), 1),
        (KeepLabels(OUTPUTS, LABELS, tolerance=0.5, reference="original"), 2),
        (KeepLabels(OUTPUTS, LABELS, allowed=1), 1),
        (KeepLabels(OUTPUTS, LABELS, allowed=7), 2),
        (FixLabels(OUTPUTS, LABELS, weight=None, tolerance=0.5), 1),  # a share of the two that are wrong
        (FixLabels(OUTPUTS, LABELS), 2),  # a wish: all of those that it speaks of may fail
        (FixLabels(OUTPUTS, LABELS, weight=None, tolerance=0.0), 0),
    ],
)
def test_tolerance_is_a_share_of_the_samples(constraint, allowed):
    anchored = anchor(constraint, identity)
    margins = margins_at(identity, [anchored])[0]
    assert allowed_samples(anchored, margins) == allowed
    assert broken_samples(anchored, margins) == (2 if isinstance(constraint, FixLabels) else 0)


def test_keep_outputs_measures_the_room_on_both_sides():
    constraint = KeepOutputs(OUTPUTS[:2], 0.5).anchor(identity)
    moved = lambda inputs: inputs + torch.tensor([0.2, -0.7, 0.0])  # noqa: E731
    assert constraint.margins(identity).tolist() == [0.5] * 12
    assert constraint.margins(moved)[:6].tolist() == pytest.approx([0.7, -0.2, 0.5, 0.3, 1.2, 0.5])
    assert broken_samples(constraint, constraint.margins(moved).numpy()) == 2
    assert constraint.describe(0, 1) == "logit 1 not below its old value by 0.5"
    assert constraint.describe(0, 4) == "logit 1 not above its old value by 0.5"
    assert constraint.on(OUTPUTS[2:]).original is None


def test_output_bounds_are_linear_inequalities():
    constraint = OutputBounds(OUTPUTS, [[1.0, -1.0, 0.0], [0.0, 0.0, 1.0]], [1.5, 2.0])
    expected = [[0.5, 1.5], [4.5, 1.0], [2.0, -2.0], [-3.5, 1.0]]
    assert constraint.margins_of(OUTPUTS, torch.arange(4)).tolist() == expected
    assert constraint.margins(identity).tolist() == sum(expected, [])
    assert broken_samples(constraint, constraint.margins(identity).numpy()) == 2
    assert constraint.on(OUTPUTS[:1]).margins(identity).tolist() == expected[0]


def test_bound_is_one_margin_and_takes_its_limit_from_the_original_where_none_is_given():
    goal = ErrorRate(OUTPUTS, LABELS)
    assert Bound(goal, 0.6).margins(identity).tolist() == pytest.approx([0.1])
    assert Bound(goal, 0.6).soft_margins(identity).item() == pytest.approx(0.6 - float(goal.soft_value(identity)))
    anchored = Bound(goal).anchor(identity)
    assert anchored.limit == 0.5
    assert Bound(goal, 0.6).anchor(identity).limit == 0.6
    assert anchored.name == "error rate bounded"
    assert Bound(goal, 0.6, buffer=0.02).required(torch.tensor([0.1])).tolist() == pytest.approx([0.02])
    other = Bound(MissRate(OUTPUTS, LABELS, label=0)).on(OUTPUTS[:2], LABELS[:2])
    assert other.limit is None
    assert other.anchor(identity).limit == 0.0


def test_change_limits_are_the_smaller_of_absolute_and_relative():
    initial = np.array([2.0, -0.1, 0.0])
    for limit, expected in [
        (ChangeLimit(0.5), [0.5, 0.5, 0.5]),
        (ChangeLimit(relative=0.5), [1.0, 0.05, 0.0]),
        (ChangeLimit(0.5, 0.5), [0.5, 0.05, 0.0]),
    ]:
        matrix, lower, upper = limit.rows(initial)
        assert (matrix.toarray() == np.eye(3)).all()
        assert upper.tolist() == pytest.approx(expected)
        assert lower.tolist() == pytest.approx([-e for e in expected])
        assert np.array_equal(limit.box(initial)[1], upper)


def test_own_rows_on_the_change_dense_and_sparse():
    matrix = np.array([[1.0, 1.0, 0.0], [0.0, 0.0, 2.0]])
    for given in (matrix, sparse.csr_matrix(matrix), matrix.tolist()):
        rows, lower, upper = LinearRows(given, -1, [1, 2]).rows(np.zeros(3))
        assert (np.asarray(rows @ np.ones(3)) == [2, 2]).all()
        assert lower.tolist() == [-1, -1]
        assert upper.tolist() == [1, 2]
    one = LinearRows([1.0, 0.0, 0.0], 0, 0).rows(np.zeros(3))
    assert one[0].shape == (1, 3)


def test_other_data_forget_what_the_original_data_anchored():
    keep = KeepLabels(OUTPUTS, LABELS, margin=0.2, tolerance=0.3, weight=2.0).anchor(identity)
    other = keep.on(OUTPUTS[2:], LABELS[2:])
    assert other.samples is None
    assert (other.margin, other.tolerance, other.weight) == (0.2, 0.3, 2.0)
    assert other.anchor(identity).samples.tolist() == []


@pytest.mark.parametrize(
    ("make", "snippets"),
    [
        (lambda: KeepLabels(OUTPUTS, LABELS, tolerance=1.5), ["'keep labels': tolerance 1.5", "share of the samples"]),
        (lambda: KeepLabels(OUTPUTS, LABELS, tolerance=-0.1), ["tolerance -0.1"]),
        (lambda: KeepLabels(OUTPUTS, LABELS, reference="truth"), ["reference 'truth'; choose from label, original"]),
        (
            lambda: FixLabels(OUTPUTS, LABELS, weight=0.0),
            ["'fix labels': weight 0.0 must be above 0 and finite, or None for hard"],
        ),
        (lambda: KeepOutputs(OUTPUTS, -1.0), ["'keep outputs': distance -1.0 must not be negative"]),
        (lambda: KeepOutputs(OUTPUTS[:0], 1.0), ["'keep outputs': no inputs"]),
        (
            lambda: OutputBounds(OUTPUTS, [[1.0, 0.0]], [1.0, 2.0]),
            ["matrix (1, 2) and bound (2,) do not fit", "(p, k)"],
        ),
        (lambda: OutputBounds(OUTPUTS, [1.0, 0.0], 1.0, name="mine"), ["constraint 'mine'"]),
        (lambda: ChangeLimit(), ["'change limit': give absolute, relative, or both"]),
        (lambda: ChangeLimit(-1.0), ["absolute -1.0 must not be negative"]),
        (lambda: ChangeLimit(relative=float("nan")), ["relative nan"]),
        (
            lambda: LinearRows(np.ones((1, 2)), 0, 1).rows(np.zeros(3)),
            ["matrix has 2 columns, expected 3", "one for each"],
        ),
        (lambda: LinearRows(np.ones((2, 3)), [0, 1, 2], 1).rows(np.zeros(3)), ["lower", "2 rows"]),
        (lambda: LinearRows(np.full((1, 3), np.nan), 0, 1).rows(np.zeros(3)), ["'linear rows'", "NaN"]),
        (
            lambda: KeepLabels(OUTPUTS, [0, 1, 0, 3]).anchor(identity),
            ["label 3 at row 3 is out of range; expected 0 to 2"],
        ),
        (lambda: KeepLabels(OUTPUTS, LABELS, margin=float("nan")), ["'keep labels': margin nan"]),
    ],
)
def test_bad_settings_are_named(make, snippets):
    with pytest.raises(SpecificationError) as error:
        make()
    for snippet in snippets:
        assert snippet in str(error.value)


def test_matrices_that_do_not_fit_the_outputs_are_named():
    with pytest.raises(SpecificationError, match=r"'output bounds': matrix has 2 columns.*3 outputs"):
        OutputBounds(OUTPUTS, [[1.0, 0.0]], [1.0]).margins(identity)


@pytest.mark.parametrize("kind", ["bounds", "kept"])
def test_rounding_is_no_violation_and_more_is(kind):
    """An exact point of a program is off by some 1e-7 in float32: three such are room, ten times more are not."""
    bound, x = 7.3, torch.zeros(3, 1)
    for excess, broken in ((3e-7, 0), (9e-7, 0), (3e-5, 3)):
        if kind == "bounds":
            constraint = OutputBounds(x, [[1.0, 0.0]], [bound])
            outputs = torch.tensor([[bound * (1 + excess), 0.0]]).repeat(3, 1)
        else:
            constraint = KeepOutputs(x, 0.25).anchor(lambda rows: torch.tensor([[bound, 0.0]]).repeat(3, 1))
            outputs = torch.tensor([[(bound + 0.25) * (1 + excess), 0.0]]).repeat(3, 1)
        (margins,) = margins_at(lambda rows, outputs=outputs: outputs, [constraint])
        assert broken_samples(constraint, margins) == broken
        assert (margins.min() < 0) == bool(broken)
