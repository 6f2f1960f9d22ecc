"""Inputs by group: drawn by setting the protected column, or real rows."""

import numpy as np
import pytest
import torch
from hypothesis import given, strategies as st

from repairopt.errors import SpecificationError
from repairopt.specify import GroupGap
from repairopt.specify.groups.samples import GroupSamples, observed_groups, sampled_groups

# Columns: protected (0, 1, 2), a number, and the same number times ten, so that whole rows can be recognized.
ROWS = torch.tensor([[0.0, 1, 10], [0, 2, 20], [1, 3, 30], [1, 4, 40], [1, 5, 50], [2, 6, 60]])


def parts(samples):
    return [samples.inputs[samples.member == a] for a in range(samples.q)]


def whole_rows(part):
    return bool((part[:, 2] == 10 * part[:, 1]).all())


def test_joint_draws_whole_rows_the_same_for_each_group():
    samples = sampled_groups("gap", ROWS, 0, count=300)
    assert samples.paired
    assert samples.names == ("column 0 = 0", "column 0 = 1", "column 0 = 2")
    first, second, third = parts(samples)
    assert first.shape == (300, 3)
    assert whole_rows(first)
    for value, part in enumerate((first, second, third)):
        assert bool((part[:, 0] == value).all())
        assert torch.equal(part[:, 1:], first[:, 1:])
    assert set(first[:, 1].tolist()) == {1, 2, 3, 4, 5, 6}


def test_marginals_draw_each_other_column_on_its_own():
    samples = sampled_groups("gap", ROWS, 0, [0, 2], count=300, rest="marginals")
    first, second = parts(samples)
    assert samples.paired
    assert torch.equal(first[:, 1:], second[:, 1:])
    assert not whole_rows(first)
    assert set(first[:, 2].tolist()) == {10, 20, 30, 40, 50, 60}


def test_conditional_draws_rows_of_the_group_itself():
    samples = sampled_groups("gap", ROWS, 0, count=200, rest="conditional")
    assert not samples.paired
    for value, part in enumerate(parts(samples)):
        assert whole_rows(part)
        own = set(ROWS[ROWS[:, 0] == value][:, 1].tolist())
        assert set(part[:, 1].tolist()) == own


@pytest.mark.parametrize("rest", ["joint", "marginals", "conditional"])
def test_a_seed_decides_the_draw(rest):
    draw = lambda seed: sampled_groups("gap", ROWS, 0, count=50, rest=rest, seed=seed).inputs  # noqa: E731
    assert torch.equal(draw(3), draw(3))
    assert not torch.equal(draw(3), draw(4))


def test_the_data_of_the_user_stay_as_they_are():
    before = ROWS.clone()
    for rest in ("joint", "marginals", "conditional"):
        sampled_groups("gap", ROWS, 0, count=50, rest=rest)
    observed_groups("gap", ROWS, 0)
    assert torch.equal(ROWS, before)


def test_observed_by_column_takes_every_row_of_the_wanted_values():
    samples = observed_groups("gap", ROWS, 0)
    assert samples.counts.tolist() == [2, 3, 1]
    assert torch.equal(samples.inputs, ROWS)
    some = observed_groups("gap", ROWS, 0, [2, 0])
    assert some.names == ("column 0 = 2", "column 0 = 0")
    assert some.counts.tolist() == [1, 2]
    assert len(some.inputs) == 3


def test_observed_by_sensitive_features_of_any_type():
    for features in (list("aabbbc"), np.array(list("aabbbc")), torch.tensor([0, 0, 1, 1, 1, 2])):
        samples = observed_groups("gap", ROWS[:, 1:], None, sensitive_features=features)
        assert samples.counts.tolist() == [2, 3, 1]
        assert samples.inputs.shape == (6, 2)
    some = observed_groups("gap", ROWS[:, 1:], None, ["b", "c"], sensitive_features=list("aabbbc"))
    assert some.names == ("b", "c")
    assert torch.equal(some.inputs, ROWS[2:, 1:])


@given(st.integers(2, 4), st.integers(1, 5), st.booleans())
def test_means_by_group_equal_a_loop(q, each, paired):
    values = torch.randn(q * each, 2, dtype=torch.float64)
    member = torch.arange(q).repeat_interleave(each)
    if not paired:
        member = member[torch.randperm(len(member))]
    samples = GroupSamples(torch.zeros(len(member), 1), member, tuple("abcd"[:q]), paired=paired)
    expected = torch.stack([values[member == a].mean(0) for a in range(q)])
    torch.testing.assert_close(samples.mean_by_group(values), expected)
    batched = torch.vmap(samples.mean_by_group)(torch.stack([values, 2 * values]))
    torch.testing.assert_close(batched, torch.stack([expected, 2 * expected]))


def test_subsample_keeps_pairs_together():
    samples = sampled_groups("gap", ROWS, 0, count=100)
    few = samples.subsample(10)
    first, second, third = parts(few)
    assert first.shape == (10, 3)
    assert torch.equal(first[:, 1:], third[:, 1:])
    assert torch.equal(first[:, 1:], second[:, 1:])
    some = observed_groups("gap", ROWS, 0).subsample(2)
    assert some.counts.tolist() == [2, 2, 1]


def test_the_same_gap_on_other_rows():
    other = ROWS[1:5] + torch.tensor([0.0, 100, 1000])
    observed = GroupGap.observed(ROWS, 0, [0, 1], favorable=0).on(other)
    assert torch.equal(observed.samples.inputs, other)
    assert observed.samples.counts.tolist() == [1, 3]
    sampled = GroupGap.sampled(ROWS, 0, count=40, favorable=0).on(other)
    assert sampled.samples.names == ("column 0 = 0", "column 0 = 1", "column 0 = 2")  # the groups of the first rows
    assert sampled.samples.counts.tolist() == [40, 40, 40]
    assert float(sampled.samples.inputs[:, 1].min()) > 100
    with pytest.raises(SpecificationError, match="given as arrays, so other rows cannot be divided"):
        GroupGap.given([ROWS, ROWS]).on(other)
    with pytest.raises(SpecificationError, match=r"column 0 = 0 has no rows"):
        GroupGap.observed(ROWS, 0, [0, 1]).on(ROWS[2:])


@pytest.mark.parametrize(
    ("make", "snippets"),
    [
        (lambda: sampled_groups("sex gap", ROWS, 3), ["'sex gap': column 3 does not exist", "(6, 3)", "column 0 to 2"]),
        (lambda: sampled_groups("sex gap", ROWS, -1), ["column -1 does not exist"]),
        (lambda: sampled_groups("sex gap", ROWS[:2], 0), ["column 0 has only one value, [0.0]", "needs two groups"]),
        (lambda: sampled_groups("sex gap", ROWS, 0, rest="all"), ["rest='all'; choose from joint, marginals"]),
        (lambda: sampled_groups("sex gap", ROWS, 0, [0, 7], rest="conditional"), ["no row has value 7 in column 0"]),
        (lambda: observed_groups("sex gap", ROWS, 0, [0, 7]), ["group column 0 = 7 has no rows. Leave it out"]),
        (lambda: observed_groups("sex gap", ROWS, None), ["pass either column or sensitive_features"]),
        (lambda: observed_groups("sex gap", ROWS, 0, sensitive_features=[1] * 6), ["pass either column or"]),
        (
            lambda: observed_groups("sex gap", ROWS, None, sensitive_features=[1, 2]),
            ["2 sensitive_features for 6 inputs"],
        ),
        (lambda: observed_groups("sex gap", ROWS, None, sensitive_features=["a"] * 6), ["only one group, ['a']"]),
        (lambda: GroupSamples(ROWS, torch.zeros(6, dtype=torch.int64), ("a", "b")), ["group 'b' has no rows"]),
        (lambda: sampled_groups("sex gap", ROWS[:0], 0), ["'sex gap': no inputs"]),
        (lambda: sampled_groups("sex gap", ROWS, 0, count=0), ["'sex gap': count=0", "1 or more"]),
    ],
)
def test_bad_groups_are_named(make, snippets):
    with pytest.raises(SpecificationError) as error:
        make()
    for snippet in snippets:
        assert snippet in str(error.value)
