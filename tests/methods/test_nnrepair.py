"""NNRepair: every expert meets the rows that its program states, and the merged network follows the rule of experts."""

import pytest
import torch
from torch import nn

from repairopt import ErrorRate, KeepLabels, Specification, solve_repair
from repairopt.errors import SpecificationError
from repairopt.methods import NNRepair
from repairopt.patches import load_patch
from repairopt.pipeline import prepare_repair


@pytest.fixture
def task():
    """A network trained on four clusters but not on the points of one more, near the first, of which it misses most."""
    torch.manual_seed(0)
    centers = torch.tensor([[0.0, 0], [3, 0], [0, 3], [3, 3]])
    labels = torch.arange(400) % 4
    x = centers[labels] + 0.6 * torch.randn(400, 2)
    model = nn.Sequential(nn.Linear(2, 24), nn.ReLU(), nn.Linear(24, 12), nn.ReLU(), nn.Linear(12, 4))
    optimizer = torch.optim.Adam(model.parameters(), 0.01)
    for _ in range(150):
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(x), labels).backward()
        optimizer.step()
    shifted = torch.tensor([-2.5, 3.0]) + 0.25 * torch.randn(80, 2)
    return model.eval(), (x, labels), (shifted, torch.zeros(80).long())


def right(model, data):
    with torch.no_grad():
        return model(data[0]).argmax(1) == data[1]


def repaired(task, method):
    model, known, new = task
    goal = ErrorRate(new[0][:40], new[1][:40], target=0.0)
    return solve_repair(model, goal, [KeepLabels(*known, tolerance=0.05)], method=method)


@pytest.mark.parametrize("norm", ["l1", "linf"])
def test_an_expert_of_the_last_layer_meets_all_its_rows(task, norm, tmp_path):
    model, known, new = task
    failing = ~right(model, new)[:40]
    assert failing.sum() > 20
    repair = repaired(task, NNRepair(norm=norm))
    network = repair.model
    assert 0 in network.classes
    with torch.no_grad():
        own = network.expert(0, new[0][:40][failing])
        rivals = own[:, 1:].amax(1)
        assert bool((own[:, 0] - rivals >= 0.05 - 1e-4).all())
        kept = right(model, known) & (known[1] != 0)
        outputs = network.expert(0, known[0][kept])
        assert bool((outputs.argmax(1) == known[1][kept]).all())
        assert torch.equal(network.expert_0__4__weight[1:], model[4].weight[1:])
    assert right(network, (new[0][:40], new[1][:40])).double().mean() > right(model, new).double().mean()
    assert right(network, (new[0][40:], new[1][40:])).double().mean() > 0.8  # held out
    assert right(network, known).double().mean() >= right(model, known).double().mean() - 0.01
    repair.as_patch(model).save(tmp_path / "patch.safetensors")
    again = load_patch(tmp_path / "patch.safetensors").apply(model)
    with torch.no_grad():
        assert torch.equal(again(new[0]), network(new[0]))


def test_experts_are_merged_by_confidence(task):
    model, known, _ = task
    network = repaired(task, NNRepair()).model
    with torch.no_grad():
        x, merged = known[0], network(known[0])
        claims = {}
        for number in network.classes:
            own = network.expert(number, x)
            claims[number] = torch.where(own.argmax(1) == number, torch.softmax(own, 1)[:, number], -1.0)
        scores = torch.stack(list(claims.values()), 1)
        best = torch.tensor(list(claims))[scores.argmax(1)]
        expected = torch.where(scores.amax(1) > 0, best, model(x).argmax(1))
        assert torch.equal(merged.argmax(1), expected)


def test_an_intermediate_layer_gives_failing_points_typical_signs(task):
    model, known, new = task
    spec = Specification(ErrorRate(new[0][:40], new[1][:40], target=0.0), (KeepLabels(*known, tolerance=0.05),))
    method = NNRepair(layer="2", margin=0.02)
    network = method.run(prepare_repair(model, spec, method=method).task).candidate.apply(model)
    with torch.no_grad():
        hidden = model[1](model[0](new[0][:40]))
        before = model[2](hidden)
        weight, bias = (getattr(network, f"expert_0__2__{part}") for part in ("weight", "bias"))
        after = hidden @ weight.T + bias
        typical = (model[2](model[1](model[0](known[0][known[1] == 0]))) > 0).double().mean(0)
        moved = (weight != model[2].weight).any(1)
        assert 0 < int(moved.sum()) <= 10
        assert bool(((typical[moved] >= 0.95) | (typical[moved] <= 0.05)).all())
        wanted = typical[moved] > 0.5
        share = [((values[:, moved] > 0) == wanted).double().mean() for values in (before, after)]
        assert share[1] > share[0]
        passing = known[0][right(model, known)]
        inside = model[1](model[0](passing))
        old, now = model[2](inside)[:, moved], (inside @ weight.T + bias)[:, moved]
        assert bool((((old > 0) == (now > 0)) | (old.abs() < 1e-4)).all())


def test_what_it_cannot_repair_is_refused(task):
    with pytest.raises(SpecificationError, match="choose 'last' or one of 0, 2, 4"):
        repaired(task, NNRepair(layer="7"))
    with pytest.raises(SpecificationError, match="norm="):
        NNRepair(norm="l2")


def test_a_network_that_reads_tokens_is_run_on_tokens():
    torch.manual_seed(0)
    network = nn.Sequential(nn.EmbeddingBag(20, 6), nn.ReLU(), nn.Linear(6, 3))
    tokens = torch.randint(0, 20, (40, 5))
    answers = network(tokens).argmax(1)
    goal = ErrorRate(tokens[:2], (answers[:2] + 1) % 3, target=0.0)
    found = solve_repair(network, goal, [KeepLabels(tokens[2:], answers[2:], tolerance=0.9)], method="nnrepair")
    assert found.report.measure().before == 1.0
