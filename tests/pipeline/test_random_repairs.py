"""Random small repairs with a time limit: the verdict is computed anew in NumPy, and none runs on.

The environment variable ``REPAIROPT_FUZZ`` multiplies their number; CONTRIBUTING.md names the nightly one.
"""

import time

import numpy as np
import pytest
import torch
from fuzzing import rounds
from torch import nn

from repairopt import ErrorRate, GroupGap, KeepLabels, OutputBounds, Settings, Verdict, solve_repair
from repairopt.localize import CARE
from repairopt.specify import ROUNDING

COUNT, PARTS = rounds(25), 12
LIMIT, GRACE = 0.15, 2.0  # seconds of a repair, and those for what it cannot do without


def a_task(seed):
    """A small trained network, its data, a goal within or out of reach, perhaps a constraint."""
    random = np.random.default_rng(seed)
    torch.manual_seed(seed)
    n, width = int(random.integers(10, 121)), int(random.integers(2, 6))
    x = torch.tensor(random.normal(size=(n, width)), dtype=torch.float32)
    y = torch.tensor((x[:, 0].numpy() + random.normal(size=n) * 0.5 > 0).astype(np.int64))
    hidden = int(random.integers(3, 9))
    net = nn.Sequential(nn.Linear(width, hidden), nn.ReLU(), nn.Linear(hidden, 2))
    optimizer = torch.optim.Adam(net.parameters(), 2e-2)
    for _ in range(30):
        optimizer.zero_grad()
        nn.functional.cross_entropy(net(x), y).backward()
        optimizer.step()
    groups = torch.arange(n) % 2
    before = float((net(x).argmax(1) != y).float().mean())
    target = float(random.choice([0.0, 0.5 * before, 0.8 * before]))
    goal = ErrorRate(x, y, target=target)
    if random.random() < 0.4:
        goal = GroupGap.observed(x, sensitive_features=groups, target=float(random.choice([0.0, 0.05, 0.2])))
    keep = [KeepLabels(x, y, tolerance=0.1)] if random.random() < 0.5 else []
    if random.random() < 0.4:  # a lead that some rows exceed, so that rows are what a step ends at
        lead = outputs(net, x) @ np.array([1.0, -1.0])
        keep = [OutputBounds(x, [[1.0, -1.0]], [float(np.quantile(lead, random.uniform(0.7, 1.0)))])]
    return net, x, y, groups, goal, keep


def outputs(net, x):
    """The network in float64 NumPy, from its weights alone."""
    values = x.numpy().astype(np.float64)
    for layer in net:
        if isinstance(layer, nn.Linear):
            values = values @ layer.weight.detach().numpy().T.astype(np.float64) + layer.bias.detach().numpy()
        else:
            values = np.maximum(values, 0.0)
    return values


def measured(goal, net, x, y, groups):
    """The value of the goal, and which labels are near a tie, by NumPy."""
    values = outputs(net, x)
    answers, close = values.argmax(1), bool((np.abs(values[:, 0] - values[:, 1]) < 1e-5).any())
    if isinstance(goal, ErrorRate):
        return float((answers != y.numpy()).mean()), close
    rates = [float((answers[groups.numpy() == k] == 1).mean()) for k in (0, 1)]
    return abs(rates[0] - rates[1]), close


@pytest.mark.slow
@pytest.mark.parametrize("part", range(PARTS))
def test_verdicts_are_those_of_numpy_and_no_repair_runs_on(part):
    faults = []
    for seed in range(part * COUNT, (part + 1) * COUNT):
        net, x, y, groups, goal, keep = a_task(seed)
        weights = ["auto", CARE()][seed % 2]
        old = outputs(net, x).argmax(1) == y.numpy()
        begun = time.process_time()
        found = solve_repair(net, goal, keep, weights=weights, settings=Settings(time_limit=LIMIT))
        spent = time.process_time() - begun
        value, close = measured(goal, found.model, x, y, groups)
        after = outputs(found.model, x)
        lost = int((old & (after.argmax(1) != y.numpy())).sum())
        labelled = isinstance(goal, ErrorRate) or any(isinstance(one, KeepLabels) for one in keep)
        one_class = labelled and len(set(y.tolist())) < 2  # then one answer to all may be right, else it is no repair
        met = value <= goal.target + 1e-12 and (len(set(after.argmax(1))) > 1 or one_class)
        if keep and isinstance(keep[0], OutputBounds):
            (bound,) = keep[0].bound.tolist()
            excess = ((after[:, 0] - after[:, 1]).max() - bound) / (1 + abs(bound))
            close, met = close or abs(excess - ROUNDING) < ROUNDING, met and excess <= ROUNDING
        elif keep:
            met = met and lost <= 0.1 * len(y)
        said = found.report.verdict is Verdict.REPAIRED
        if not close and said != met:
            faults.append(
                f"{seed}: {found.report.verdict}, goal {value} for {goal.target}, {lost} lost, numpy says {met}"
            )
        if spent > LIMIT + GRACE:
            faults.append(f"{seed}: {spent:.1f} processor seconds")
    assert not faults


@pytest.mark.parametrize("seed", [127, 130])
def test_where_the_goal_is_met_the_weights_are_those_that_mend_broken_constraints(seed):
    net, _, _, _, goal, keep = a_task(seed)
    found = solve_repair(net, goal, keep)
    assert found.report.verification.goal_before <= goal.target
    assert (found.report.verification.checks[0].before < 0).any()
    assert found.report.verdict is Verdict.REPAIRED
