"""Intervals too wide for a bound: how wide they are, and that rates go where chance moves them less."""

import numpy as np
import pytest
import torch
from biased_task import repair as repair_with
from torch import nn

from repairopt import SQP, GroupGap, Inputs, OddsGap
from repairopt.methods.sqp.interval_width import (
    IntervalWidth,
    WidthLimit,
    below_half,
    bound_widths,
    shortest_way,
    spread,
)
from repairopt.methods.sqp.limits import Limit
from repairopt.specify import spread_of
from repairopt.specify.groups.gaps import pairwise_differences


def test_the_spread_is_the_standard_error_of_a_difference_times_the_root_of_the_rows():
    rates, counts = torch.tensor([[0.2, 0.5, 0.9]]).double(), torch.tensor([[40, 100, 60]])
    errors = [
        np.sqrt(float(rates[0, a] * (1 - rates[0, a]) / counts[0, a] + rates[0, b] * (1 - rates[0, b]) / counts[0, b]))
        for a, b in [(0, 1), (0, 2), (1, 2)]
    ]
    assert float(spread_of(rates, counts, "max")) / np.sqrt(200) == pytest.approx(max(errors))
    assert float(spread_of(rates, counts, "mean")) / np.sqrt(200) == pytest.approx(np.mean(errors))
    assert pairwise_differences(rates[0]).tolist() == pytest.approx([-0.3, -0.7, -0.4])


def test_a_spread_of_equal_answers_is_nothing_and_has_a_slope():
    rates = torch.zeros(1, 2, requires_grad=True)
    found = spread_of(rates, torch.tensor([[50, 50]]), "max")
    found.backward()
    assert float(found.detach()) < 1e-5
    assert bool(torch.isfinite(rates.grad).all())


def test_rates_a_rounding_error_above_one_have_a_spread():
    assert float(spread_of(torch.tensor([[1.0 + 1e-6, 1.0]]), torch.tensor([[50, 50]]), "max")) < 1e-5


@pytest.mark.parametrize("below", [True, False])
def test_on_the_wrong_side_of_one_half_the_spread_leads_back(below):
    counts, side = torch.tensor([[50, 50]]), torch.tensor([below])
    rates = torch.linspace(0.05, 0.95, 19).requires_grad_()
    found = torch.stack([spread_of(rate.expand(1, 2), counts, "max", side) for rate in rates])
    plain = torch.stack([spread_of(rate.expand(1, 2), counts, "max") for rate in rates])
    right = (rates.detach() <= 0.5) if below else (rates.detach() >= 0.5)
    assert torch.equal(found[right], plain[right])
    assert bool((found.diff() > 0).all() if below else (found.diff() < 0).all())


@pytest.mark.parametrize("kind", ["gap", "odds"])
def test_gaps_say_on_which_side_of_one_half_their_rates_are(kind):
    x = torch.linspace(-1, 1, 100)[:, None]
    group, labels = [k % 2 for k in range(100)], (x[:, 0] > 0).long()
    made = GroupGap.observed if kind == "gap" else OddsGap.observed
    prop = made(*([x] if kind == "gap" else [x, labels]), sensitive_features=group, favorable=1)

    def model(inputs):  # 30 of 100 get label 1: none of label 0, 60 % of label 1
        return torch.cat([0 * inputs, inputs - 0.4], dim=1)

    assert below_half(prop, model).tolist() == ([True] if kind == "gap" else [True, False])


@pytest.mark.parametrize("kind", ["gap", "odds"])
def test_gaps_say_their_spread_by_count_and_by_probabilities(kind):
    draw = torch.Generator().manual_seed(0)
    x = torch.randn(900, 3, generator=draw)
    group, labels = (torch.arange(900) % 3 == 0).long(), (x[:, 0] > 0).long()
    made = GroupGap.observed if kind == "gap" else OddsGap.observed
    prop = made(*([x] if kind == "gap" else [x, labels]), sensitive_features=group.tolist(), favorable=1)
    torch.manual_seed(0)
    model = nn.Linear(3, 2)
    count, soft = float(spread(prop, model)), spread(prop, model, soft=True)
    high, value = prop.interval(model, 0.9).high, prop.interval(model, 0.9).value
    if kind == "gap":
        assert 1.645 * count / 30 == pytest.approx(high - value, rel=0.05), "as wide as the interval"
    assert float(soft.detach()) == pytest.approx(count, rel=0.2)
    soft.backward()
    assert bool(model.weight.grad.abs().sum() > 0)


def test_a_reach_is_a_limit_of_its_own():
    x = torch.randn(100, 2)
    gap = GroupGap.given([x[:50], x[50:]], target=0.1, name="gap")
    limits = [Limit("gap", gap, 0.1, 0.02), Limit("other", gap, 0.2)]
    assert bound_widths(limits, {}) == limits
    found = bound_widths(limits, {"gap": WidthLimit(0.3, 0.05)})
    assert [limit.name for limit in found] == ["gap", "other", "interval of 'gap'"]
    width = found[-1]
    assert (width.limit, width.buffer) == (0.05, 0.0)
    assert isinstance(width.property, IntervalWidth)
    model = nn.Linear(2, 2)
    assert width.value(model) == pytest.approx(0.3 * float(spread(gap, model)))


class Drawn:
    """A network that gives 45 % of drawn inputs of one group the favorable label, and 30 % of the other.

    Column 0 decides on real rows, where column 1 is 0; on drawn inputs column 1 is 4 and shifts the answers. Column 2
    is the group.
    """

    def __init__(self):
        draw = torch.Generator().manual_seed(2)
        self.real = torch.randn(1500, 3, generator=draw)
        self.real[:, 1], self.real[:, 2] = 0.0, (torch.arange(1500) % 2).float()
        self.labels = (self.real[:, 0] + 0.3 * torch.randn(1500, generator=draw) > 0).long()
        groups = [torch.randn(700, 3, generator=draw) for _ in range(4)]
        for k, inputs in enumerate(groups):
            inputs[:, 1], inputs[:, 2] = 4.0, float(k % 2)
        self.gap = GroupGap.given(groups[:2], favorable=1, target=0.06, name="gap")
        self.other = GroupGap.given(groups[2:], favorable=1, target=0.06, name="gap")
        self.model = nn.Sequential(nn.Linear(3, 2))
        with torch.no_grad():
            self.model[0].weight.copy_(torch.tensor([[-1.0, 0.03, 0.5], [1.0, -0.03, -0.5]]))
            self.model[0].bias.zero_()

    def repaired(self, narrow):
        method = SQP(narrow=narrow)
        options = {"data": (self.real, self.labels), "held_out": [self.other], "weights": [Inputs([1, 2])]}
        return repair_with(self.model, self.gap, method=method, **options)


def test_where_chance_takes_the_bound_rates_move_from_one_half_if_that_is_cheap():
    given = Drawn()
    plain, narrow = given.repaired(0.0), given.repaired(0.1)

    def rates(repair):
        return given.other.rates(repair.model)[:, 1].detach()

    assert bool((rates(plain) > 0.25).all()), "closed near where they were"
    assert bool((rates(narrow) < 0.15).all()), "column 1 is 0 on real rows, so that costs nothing there"
    claims = [next(c for c in r.report.claims if c.source == "cross-validation") for r in (plain, narrow)]
    width = [claim.interval.high - claim.interval.value for claim in claims]
    assert width[1] < 0.8 * width[0]
    assert any("rates were moved" in note for note in narrow.report.notes)
    assert not any("rates were moved" in note for note in plain.report.notes)


def test_each_fold_finds_its_own_way(monkeypatch):
    ways = []

    def recorded(problem, start, end):
        ways.append((len(problem.objective.data[0][0]), start, end))
        return shortest_way(problem, start, end)

    monkeypatch.setattr("repairopt.methods.sqp.confident.shortest_way", recorded)
    Drawn().repaired(0.1)
    assert [count for count, _, _ in ways][0] == 1500
    assert len(ways) == 4
    assert all(900 < count < 1100 for count, _, _ in ways[1:]), "without the rows of the fold"
    moves = [end - start for _, start, end in ways]
    assert all(not np.allclose(moves[0], move) for move in moves[1:])


def test_where_it_is_dear_nothing_is_moved():
    given = Drawn()
    given.real[:, 1] = 4.0  # real rows look like the drawn ones now
    plain, narrow = given.repaired(0.0), given.repaired(0.01)
    assert torch.equal(plain.model[0].weight, narrow.model[0].weight)
    assert not any("rates were moved" in note for note in narrow.report.notes)
