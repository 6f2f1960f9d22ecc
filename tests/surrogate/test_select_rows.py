"""Row selection: the paper's shares and orders, ranking by distance, the most violated of all samples."""

import numpy as np
import pytest
import torch
from hypothesis import given, strategies as st
from torch import nn

from repairopt.errors import SpecificationError
from repairopt.network import Engine
from repairopt.specify import FixLabels, KeepLabels, anchor
from repairopt.surrogate import MostViolated, Strictest, linearize, select_rows


class Given:
    """A constraint with given margins at the start, and rows of given lengths."""

    def __init__(self, margins, lengths=None, name="given", weight=None, required=0.0):
        self.name, self.weight, self.needs = name, weight, required
        self.inputs = torch.ones(len(margins), 1, dtype=torch.float64)
        self.offsets = torch.tensor(margins, dtype=torch.float64)
        self.lengths = torch.ones(len(margins)) if lengths is None else torch.tensor(lengths)

    def margins(self, predict):
        return self.margins_of(predict(self.inputs), torch.arange(len(self.offsets))).flatten()

    def margins_of(self, outputs, samples):
        return (self.offsets[samples] + self.lengths.double()[samples] * outputs[:, 0])[:, None]

    def required(self, margins):
        return torch.full_like(margins, self.needs)


def around(*constraints):
    """A network whose only output is its only weight, which starts at 0."""
    model = nn.Sequential(nn.Linear(1, 2, bias=False)).double()
    with torch.no_grad():
        model[0].weight.zero_()
    return linearize(Engine(model, {"0.weight": torch.tensor([0])}), constraints)


def strictest(margins, lengths=None, **settings):
    return select_rows(around(Given(margins, lengths)), Strictest(**settings))[0].tolist()


MARGINS = [0.5, -0.1, 2.0, 0.0, -3.0, 0.2, 1.0, -1.0, 3.0, 0.7]  # 7 hold, 3 fail


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"positive": 2 / 7, "negative": 0}, [3, 5]),
        ({"positive": 2 / 7, "negative": 0, "order_positive": "easiest"}, [2, 8]),
        ({"positive": 0, "negative": 1 / 3}, [1]),
        ({"positive": 0, "negative": 1 / 3, "order_negative": "worst"}, [4]),
        ({"positive": 0.01, "negative": 0.01}, [1, 3]),  # a share that is not 0 keeps at least one
        ({"positive": 1, "negative": 1}, list(range(10))),
        ({"positive": 0, "negative": 0}, []),
    ],
)
def test_shares_and_orders(settings, expected):
    assert strictest(MARGINS, **settings) == expected


def test_distance_in_weight_space_decides_where_rows_differ_in_length():
    margins, lengths = [1.0, 2.0, -1.0, -2.0], [1.0, 10.0, 1.0, 10.0]
    half = {"positive": 0.5, "negative": 0.5}
    assert strictest(margins, lengths, **half) == [1, 3]
    assert strictest(margins, lengths, normalize=False, **half) == [0, 2]
    assert strictest(margins, lengths, order_positive="easiest", order_negative="worst", **half) == [0, 2]


def test_rows_that_no_weight_influences_are_left_out():
    assert strictest([0.0, 1.0, -0.5, -1.0], [0.0, 1.0, 0.0, 1.0], positive=0.5, negative=0.5) == [1, 3]
    assert strictest([0.0, -0.5], [0.0, 0.0], positive=1, negative=1) == []


def test_the_papers_table_3_in_rows():
    margins = np.concatenate([np.linspace(0.001, 9, 6335), np.linspace(-9, -0.001, 1208)])
    picked = np.array(strictest(margins.tolist(), positive=0.002, negative=0.002))
    assert (picked < 6335).sum() == 13  # 0.2 % of 6,335
    assert (picked >= 6335).sum() == 3
    assert picked[:13].tolist() == list(range(13))
    assert picked[13:].tolist() == [7540, 7541, 7542]


def most(lin, batch=2, step=0.0, chosen=None):
    picks = select_rows(lin, MostViolated(batch), step=np.array([step]), chosen=chosen)
    return {c: index.tolist() for c, index in picks.items()}


def test_the_most_violated_of_all_constraints_are_added():
    lin = around(Given([0.5, -0.1, -2.0, 1.0], name="a"), Given([-1.0, -0.5, 3.0], name="b"))
    assert most(lin) == {0: [2], 1: [0]}
    assert most(lin, batch=3) == {0: [2], 1: [0, 1]}
    assert most(lin, batch=50) == {0: [1, 2], 1: [0, 1]}  # satisfied rows are never added
    assert most(lin, batch=50, step=-0.75) == {0: [0, 1, 2], 1: [0, 1]}  # 0.5 - 0.75 < 0
    assert most(lin, batch=50, step=5.0) == {0: [], 1: []}


def test_chosen_rows_are_not_returned_again():
    lin = around(Given([0.5, -0.1, -2.0, 1.0]))
    assert most(lin, batch=1, chosen={0: np.array([2])}) == {0: [1]}
    assert most(lin, batch=5, chosen={0: np.array([2, 1])}) == {0: []}


def test_what_counts_is_the_margin_that_the_row_asks_for_and_hard_rows_come_first():
    lin = around(Given([0.5, 0.1], name="a", required=0.3))
    assert most(lin, batch=5) == {0: [1]}
    lin = around(Given([-0.2], name="hard"), Given([-1.0], name="soft", weight=0.1))
    assert most(lin, batch=1) == {0: [0], 1: []}
    assert most(lin, batch=2) == {0: [0], 1: [0]}


def test_linearized_margins_that_the_caller_has_are_used():
    lin = around(Given([0.5, -0.1]))
    picks = select_rows(lin, MostViolated(5), linearized=(np.array([-1.0, 1.0]),))
    assert picks[0].tolist() == [0]


@given(
    st.lists(st.floats(-2, 2), min_size=1, max_size=30),
    st.lists(st.floats(-2, 2), min_size=1, max_size=30),
    st.integers(1, 12),
    st.floats(-1, 1),
)
def test_no_row_that_is_left_out_is_more_violated_than_one_that_is_taken(first, second, batch, step):
    lin = around(Given(first, name="a"), Given(second, name="b"))
    picks = select_rows(lin, MostViolated(batch), step=np.array([step]))
    at = lin.at(np.array([step]))
    taken = np.concatenate([at[c][picks[c]] for c in (0, 1)])
    left = np.concatenate([np.delete(at[c], picks[c]) for c in (0, 1)])
    assert len(taken) == min(batch, int((np.concatenate(at) < -1e-9).sum()))
    assert taken.max(initial=-np.inf) <= min(left.min(initial=np.inf), 0)


@given(st.permutations(range(10)), st.floats(0, 1), st.floats(0, 1))
def test_permuting_the_samples_permutes_the_selection(order, positive, negative):
    plain = strictest(MARGINS, positive=positive, negative=negative)
    permuted = strictest([MARGINS[i] for i in order], positive=positive, negative=negative)
    assert sorted(order[i] for i in permuted) == plain


def test_on_a_real_network_the_strictest_are_nearest_in_weight_space(small_net):
    inputs, labels = torch.randn(200, 4, dtype=torch.float64), torch.arange(200) % 3
    engine = Engine(small_net, {"2.weight": torch.arange(48)})
    lin = linearize(engine, [anchor(kind(inputs, labels), engine.predict()) for kind in (KeepLabels, FixLabels)])
    picks = select_rows(lin, Strictest(0.05, 0.05))
    for c in (0, 1):
        every = np.arange(len(lin.margins[c]))
        distance = np.abs(lin.margins[c]) / lin.norms(c, every)
        for side in (lin.margins[c] >= 0, lin.margins[c] < 0):
            chosen = np.intersect1d(picks[c], every[side])
            assert len(chosen) == np.ceil(0.05 * side.sum())
            rest = np.setdiff1d(every[side], chosen)
            assert distance[chosen].max(initial=0) <= distance[rest].min(initial=np.inf)


@pytest.mark.parametrize(
    ("make", "snippet"),
    [
        (lambda: Strictest(positive=1.2), "positive=1.2 is not a share"),
        (lambda: Strictest(negative=-0.1), "negative=-0.1"),
        (lambda: Strictest(order_positive="worst"), "order_positive='worst'"),
        (lambda: Strictest(order_negative="tightest"), "choose tightest or easiest, and cheap or worst"),
    ],
)
def test_bad_settings_are_named(make, snippet):
    with pytest.raises(SpecificationError, match="selection: ") as error:
        make()
    assert snippet in str(error.value)
