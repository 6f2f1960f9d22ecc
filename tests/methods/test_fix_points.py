"""Points to be fixed one by one: far off, few, out of a constant network; and what that says of others."""

import numpy as np
import pytest
import torch
from torch import nn

from repairopt import SQP, ErrorRate, KeepLabels, Verdict, calibrate_margin, explain_unmet, solve_repair
from repairopt.errors import SpecificationError

QUIET = SQP(confidence=None)


def shifting_line():
    """The lead of class 1 over class 0 is ``x + bias``; the bias alone may change."""
    network = nn.Sequential(nn.Linear(1, 1, bias=False), nn.Linear(1, 2))
    with torch.no_grad():
        network[0].weight.fill_(1.0)
        network[1].weight.copy_(torch.tensor([[0.0], [1.0]]))
        network[1].bias.zero_()
    return network


def point(x, label, name="fix"):
    return ErrorRate(torch.tensor([[x]]), torch.tensor([label]), target=0.0, name=name)


def guard(x, label, margin=1e-3):
    return KeepLabels(torch.tensor([[x]]), torch.tensor([label]), tolerance=0.0, margin=margin, name="keep")


def test_a_point_farther_off_than_one_trust_radius_is_fixed():
    kept = guard(6.0, 1)  # keeps the network from being constant
    found = solve_repair(shifting_line(), point(-2.0, 1), [kept], weights="1.bias", method=QUIET)
    assert found.report.verdict is Verdict.REPAIRED
    assert float(found.delta["1.bias"][1] - found.delta["1.bias"][0]) > 2.0


def test_a_network_that_is_constant_on_the_data_is_led_out_of_it():
    found = solve_repair(shifting_line(), point(-2.0, 1), [guard(-6.0, 0)], weights="1.bias", method=QUIET)
    assert found.report.verification.constant_before
    assert not found.report.verification.constant
    assert found.report.verdict is Verdict.REPAIRED


def test_a_lead_that_only_rows_ask_for_proves_nothing():
    """Rows keep a lead of 5, which leaves no room; but a bias of 3 meets all that was asked for."""
    network = shifting_line()
    found = explain_unmet(network, point(-2.0, 1), [guard(-6.0, 0, margin=5.0)], weights="1.bias")
    assert found.conflict == ("fix", "keep")
    assert not found.proved
    with torch.no_grad():
        network[1].bias[1] = 3.0
    assert network(torch.tensor([[-2.0], [-6.0]])).argmax(1).tolist() == [1, 0]


def test_what_no_bias_can_do_is_proved():
    found = explain_unmet(shifting_line(), point(-6.0, 1), [guard(-2.0, 0)], weights="1.bias")
    assert found.conflict == ("fix", "keep")
    assert found.proved


def trained(label):
    """A network trained on 800 points, and 400 others."""
    torch.manual_seed(0)
    x = torch.randn(1200, 6)
    y = label(x)
    network = nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, 2))
    optimizer = torch.optim.Adam(network.parameters(), lr=0.02)
    for _ in range(100):
        optimizer.zero_grad()
        nn.functional.cross_entropy(network(x[:800]), y[:800]).backward()
        optimizer.step()
    return network, x, y


def said_of_others(found):
    (note,) = [note for note in found.report.notes if "had not seen them" in note]
    return note


def test_mistakes_with_a_pattern_are_said_to_generalize_and_do():
    network, x, y = trained(lambda x: (x[:, 0] + x[:, 1] > 0).long())
    z = torch.randn(400, 6)
    z[:, 2] = 2.0 + torch.rand(400)  # a region of its own, where the label is always 1
    wrong = z[network(z).argmax(1) == 0]
    usual = x[:, 2] < 1.5
    keep = KeepLabels(x[usual], y[usual], tolerance=0.02)
    goal = ErrorRate(wrong[:20], torch.ones(20, dtype=torch.long), target=0.0)
    found = solve_repair(network, goal, [keep], weights="all")
    assert "Expect about as much on similar inputs" in said_of_others(found)
    assert float((found.model(wrong[20:]).argmax(1) == 1).double().mean()) > 0.5  # none of these was right before


def test_mistakes_without_a_pattern_are_said_to_be_so_or_out_of_reach():
    network, x, y = trained(lambda x: (x[:, 0] + x[:, 1] > 0).long())
    x_new, answers = x[800:816], network(x[800:816]).argmax(1)
    goal = ErrorRate(x_new, 1 - answers, target=0.0)  # labels turned round at random points
    found = solve_repair(network, goal, [KeepLabels(x[:800], y[:800], tolerance=0.05)], weights="all")
    assert "have no pattern" in said_of_others(found)


def test_few_points_say_nothing_of_others():
    found = solve_repair(shifting_line(), point(-2.0, 1), [guard(6.0, 1)], weights="1.bias")
    assert not [note for note in found.report.notes if "had not seen" in note]


def test_the_margin_that_is_taken_is_the_smallest_that_keeps_the_limit():
    network, x, _ = trained(lambda x: (x[:, 0] + x[:, 1] > 0).long())
    z = torch.randn(300, 6)
    z[:, 2] = 2.0 + torch.rand(300)
    goal = ErrorRate(z, torch.ones(300, dtype=torch.long), target=0.1)
    keep = KeepLabels(x[:600], network(x[:600]).argmax(1), tolerance=0.0)
    once = {"weights": "last", "method": SQP(confidence=None, restarts=0)}
    found = calibrate_margin(network, goal, keep, margins=(0.0, 2.0), folds=2, **once)
    flips = {one.margin: one.flips for one in found.tried}
    assert flips[2.0] < flips[0.0]
    assert found.keep.margin == 2.0
    assert keep.margin != 2.0  # the user's own is not changed
    few = ErrorRate(z[:60], torch.ones(60, dtype=torch.long), target=0.1)
    loose = calibrate_margin(
        network,
        few,
        KeepLabels(x[:100], network(x[:100]).argmax(1)),
        limit=1.0,
        margins=(0.0, 2.0),
        folds=2,
        weights="last",
    )
    assert loose.keep.margin == 0.0
    assert all(np.isfinite(one.goal) for one in found.tried)


def test_margins_and_folds_are_checked():
    with pytest.raises(SpecificationError, match="0 margins, 3 folds; expected 1 and 2 at least"):
        calibrate_margin(shifting_line(), point(-2.0, 1), guard(6.0, 1), margins=())
