"""One deadline, looked at by the choice of weights, CARE, derivatives and recurrent layers."""

import time

import pytest
import torch
from torch import nn

from repairopt import ErrorRate, GroupGap, KeepLabels, Region, Settings, UnprovedRegions, Verdict, solve_repair
from repairopt.localize import CARE, Gradient
from repairopt.network import Stop, check_time, is_late, limited
from repairopt.specify import CertifiedRadius

pytestmark = pytest.mark.slow

LIMIT, GRACE = 0.3, 3.0  # seconds


class Recurrent(nn.Module):
    def __init__(self):
        super().__init__()
        self.lstm, self.out = nn.LSTM(4, 32, batch_first=True), nn.Linear(32, 2)

    def forward(self, x):
        return self.out(self.lstm(x)[0][:, -1])


def wide(classes=2):
    return nn.Sequential(nn.Linear(6, 150), nn.ReLU(), nn.Linear(150, 150), nn.ReLU(), nn.Linear(150, classes))


def gap(x, count):
    groups = torch.arange(len(x)) % count
    return GroupGap.observed(x, sensitive_features=groups, score="max_difference", target=0.001)


CASES = {
    "35 groups": (nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, 2)), lambda x, y: gap(x, 35), "auto"),
    "the choice of weights": (wide(), lambda x, y: gap(x, 2), "auto"),
    "CARE on a wide network": (wide(), lambda x, y: gap(x, 3), CARE()),
    "gradients": (wide(), lambda x, y: ErrorRate(x, y, target=0.0), Gradient()),
    "an error rate of zero": (wide(), lambda x, y: ErrorRate(x, y, target=0.0), "auto"),
    "recurrent layers": (Recurrent(), lambda x, y: ErrorRate(x, y, target=0.01), "auto"),
}


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_a_repair_ends_at_its_limit(case):
    net, goal, weights = case
    torch.manual_seed(1)
    x = torch.randn(200, 12, 4) if isinstance(net, Recurrent) else torch.randn(1500, 6)
    y = (x.flatten(1)[:, 0] + 0.3 * torch.randn(len(x)) > 0).long()
    begun = time.perf_counter()
    found = solve_repair(net, goal(x, y), [KeepLabels(x, y)], weights=weights, settings=Settings(time_limit=LIMIT))
    assert time.perf_counter() - begun < LIMIT + GRACE
    assert found.report.verdict is not None


def test_details_are_left_out_once_time_is_up():
    """The value is measured whatever the time; the radius under attack, which no verdict needs, took seconds more."""
    torch.manual_seed(0)
    x = torch.rand(600, 6)
    y = (x.sum(1) > 3).long()
    goal = CertifiedRadius(x, y, target=1e-6)
    begun = time.process_time()
    report = solve_repair(wide(), goal, settings=Settings(time_limit=LIMIT)).report
    assert time.process_time() - begun < LIMIT + GRACE
    assert report.stopped == "time limit"
    assert report.verification.measures[0].details == {}
    assert f"Time was up before the details of '{goal.name}' were measured; its value is." in report.notes


def test_deadlines_nest_and_end():
    with limited(time.perf_counter() - 1.0):
        with limited(None):
            check_time()
        assert is_late()
        with pytest.raises(Stop, match="time limit"):
            check_time()
    check_time()


def test_the_check_of_regions_that_are_not_proved_ends_with_the_limit():
    """It went on for 30 s, whatever the limit; where the search has a proof it still does."""
    torch.manual_seed(0)
    net, region = wide(), Region([-1.0] * 6, [1.0] * 6, [[1.0, -1.0]])
    begun = time.process_time()  # the machine may be busy
    found = solve_repair(net, UnprovedRegions([region]), settings=Settings(time_limit=1.0))
    assert time.process_time() - begun < 1.0 + GRACE
    assert found.report.verdict is not Verdict.REPAIRED or found.report.verification.goal_after == 0


def test_rows_of_many_points_are_made_within_the_limit():
    torch.manual_seed(1)
    x = torch.randn(1500, 6)
    goal, begun = ErrorRate(x, (x[:, 0] > 0).long(), target=0.0), time.perf_counter()
    solve_repair(wide(), goal, method="three_m_dnn", settings=Settings(time_limit=LIMIT))
    assert time.perf_counter() - begun < LIMIT + GRACE
