"""3M-DNN and VeRe: what the table of systems asks of each."""

import copy

import pytest
import torch
from digits import proposal
from torch import nn

from repairopt import ErrorRate, KeepLabels, Settings, SpecificationError, methods, solve_repair
from repairopt.errors import RepairError
from repairopt.methods import MDNN
from repairopt.patches import load_patch


def _points(seed):
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 3)).double().eval()
    x = torch.randn(6, 4, dtype=torch.float64)
    return model, x, (model(x).argmax(1) + torch.tensor([1, 1, 0, 0, 0, 0])) % 3


@pytest.mark.parametrize("seed", [0, 1])
def test_3M_DNN_needs_no_more_than_the_best_single_layer(seed):
    model, x, y = _points(seed)
    goal = ErrorRate(x, y, target=0.0)
    single = []
    for layer in ("0", "2"):
        _, outcome, changed = proposal(MDNN(limit=10.0), model, goal, weights=layer)
        assert torch.equal(changed(x).argmax(1), y)
        single.append(abs(outcome.delta).max())
    _, outcome, changed = proposal(methods.ThreeMDNN(limit=10.0), model, goal)
    assert torch.equal(changed(x).argmax(1), y)
    moved = [float((a - b).detach().abs().max()) for a, b in zip(changed.parameters(), model.parameters(), strict=True)]
    assert max(moved) == pytest.approx(abs(outcome.delta).max())
    assert max(moved) < min(single) * (1 - 1e-4), "two layers help here"
    assert moved[0] > 0
    assert moved[2] > 0


def test_3M_DNN_without_a_proposal_is_the_least_change_of_the_last_layer():
    model, x, y = _points(2)
    least = abs(proposal(MDNN(limit=10.0), model, ErrorRate(x, y, target=0.0), weights="2")[1].delta).max()
    method = methods.ThreeMDNN(proposals=1, limit=10.0)
    assert abs(proposal(method, model, ErrorRate(x, y, target=0.0))[1].delta).max() == pytest.approx(least, rel=1e-5)
    with pytest.raises(SpecificationError, match="layers="):
        proposal(methods.ThreeMDNN(layers=("2", "0")), model, ErrorRate(x, y, target=0.0))


@pytest.fixture(scope="module")
def backdoor(digits):
    """A network that calls every digit with a bright corner a 0, and the digits with that corner."""

    def stamped(x):
        x = x.clone()
        x[:, [0, 1, 8, 9]] = 1.0
        return x

    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(64, 24), nn.ReLU(), nn.Linear(24, 10))
    x, y = digits.training
    x, y = torch.cat([x, stamped(x[:300])]), torch.cat([y, torch.zeros(300, dtype=torch.int64)])
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    for _ in range(120):
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(x), y).backward()
        optimizer.step()
    return model.eval(), stamped


def test_VeRe(digits, backdoor):
    model, stamped = backdoor
    x, y = digits.repair
    rows = (torch.cat([stamped(x[:200]), x]), torch.cat([y[:200], y]))
    keep = [KeepLabels(*digits.training, tolerance=0.02)]
    _, _, repaired = proposal(methods.VeRe(), model, ErrorRate(*rows), constraints=keep)
    held_out = (stamped(digits.test[0]), digits.test[1])
    before, after = (digits.wrong(one, held_out).double().mean() for one in (model, repaired))
    assert float(before) > 0.7
    assert float(after) < 0.6 * float(before)
    clean = [float(digits.wrong(one, digits.test).double().mean()) for one in (model, repaired)]
    assert clean[1] <= clean[0] + 0.01
    right = ~digits.wrong(model, digits.repair)
    assert float((right & digits.wrong(repaired, digits.repair)).double().mean()) < 0.02


PEERS = {"three_m_dnn": methods.ThreeMDNN(proposals=3, limit=10.0), "vere": methods.VeRe(rounds=2)}


@pytest.mark.parametrize("name", PEERS)
def test_both_are_methods_like_the_others(name, digits, fingerprint, tmp_path):
    model = copy.deepcopy(digits.model)
    wrong = digits.wrong(model, digits.repair)
    rows = torch.cat([wrong.nonzero().flatten()[:3], (~wrong).nonzero().flatten()[:20]])
    goal = ErrorRate(digits.repair[0][rows], digits.repair[1][rows], target=0.0)
    before = fingerprint(model)
    runs = [solve_repair(model, goal, method=PEERS[name], settings=Settings(seed=2)) for _ in range(2)]
    assert fingerprint(model) == before
    assert runs[0].report.verdict in ("repaired", "improved")
    assert [r.goal for r in runs[0].report.rounds] == [r.goal for r in runs[1].report.rounds]
    runs[0].as_patch(model).save(tmp_path / "patch.safetensors")
    applied = load_patch(tmp_path / "patch.safetensors").apply(model)
    assert torch.equal(applied(digits.test[0]), runs[0].model(digits.test[0]))
    late = solve_repair(model, goal, [KeepLabels(*digits.test)], method=PEERS[name], settings=Settings(time_limit=1e-3))
    assert late.report.stopped == "time limit"


@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("ThreeMDNN", {"total": "mean"}),
        ("ThreeMDNN", {"proposals": 0}),
        ("VeRe", {"neurons": 0}),
        ("VeRe", {"step": 2.0}),
        ("VeRe", {"widen": -1.0}),
    ],
)
def test_wrong_settings_are_refused(name, settings):
    with pytest.raises(SpecificationError, match=next(iter(settings))):
        getattr(methods, name)(**settings)


def test_convolutions_have_no_neurons_that_vere_can_repair(digits):
    model = nn.Sequential(nn.Unflatten(1, (1, 8, 8)), nn.Conv2d(1, 2, 3), nn.ReLU(), nn.Flatten(), nn.Linear(72, 10))
    with pytest.raises(RepairError, match="fully connected"):
        solve_repair(model, ErrorRate(*digits.repair), method="vere")
