"""Robustness properties on engines, the known radius of a published network, and a repair that widens the radius."""

import numpy as np
import pytest
import torch
from torch import nn
from torch.func import functional_call, grad

from repairopt import AttackSuccess, solve_repair
from repairopt.errors import SpecificationError
from repairopt.network import Engine, Search, attack
from repairopt.network.engine import Predictor
from repairopt.network.sets.zonotope import certified_margin, certified_radius, last_layer_zonotope
from repairopt.program import Program, solve
from repairopt.specify import AdversarialError, CertifiedRadius, Property, robustness


@pytest.fixture(scope="module")
def digits():
    """A small network trained on digits, inputs in [0, 1]: network, inputs, labels."""
    data = pytest.importorskip("sklearn.datasets").load_digits()
    inputs = torch.tensor(data.data / 16, dtype=torch.float32)
    labels = torch.tensor(data.target)
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(64, 24), nn.ReLU(), nn.Linear(24, 16), nn.ReLU(), nn.Linear(16, 10))
    optimizer = torch.optim.Adam(network.parameters(), lr=0.01)
    for _ in range(150):
        optimizer.zero_grad()
        nn.functional.cross_entropy(network(inputs[:1200]), labels[:1200]).backward()
        optimizer.step()
    return network.double().requires_grad_(False), inputs.double(), labels


@pytest.fixture
def robust(digits):
    """Property on six rightly classified inputs, engine on the last layer."""
    network, inputs, labels = digits
    few = (network(inputs).argmax(1) == labels).nonzero()[:6, 0]
    engine = Engine(network, {"4.weight": torch.arange(160), "4.bias": torch.arange(10)})
    return CertifiedRadius(inputs[few], labels[few], target=1 / 0.05, tol=1e-4), engine


def changes(engine, count, scale=0.05):
    return torch.randn(count, engine.n, generator=torch.Generator().manual_seed(1), dtype=torch.float64) * scale


def test_value_is_one_over_the_radius(robust):
    prop, engine = robust
    assert isinstance(prop, Property)
    for delta in (None, *changes(engine, 3)):
        predict = engine.predict(delta)
        radius = certified_radius(predict.network, prop.inputs, prop.labels, parameters=predict.parameters, tol=1e-4)
        expected = 1 / radius.clamp(min=1e-3)
        assert torch.equal(prop.value(predict), expected.mean())
        largest = CertifiedRadius(prop.inputs, prop.labels, 20.0, aggregate="max", tol=1e-4)
        assert torch.equal(largest.value(predict), expected.max())
        assert torch.equal(prop.value(predict), prop.value(predict))


def test_a_plain_module_will_do_and_a_plain_function_will_not(digits, robust):
    prop, engine = robust
    assert float(prop.value(digits[0])) == float(prop.value(engine.predict()))
    for wrong in (prop, AdversarialError(prop.inputs, prop.labels, 0.1)):
        with pytest.raises(SpecificationError, match=f"'{wrong.name}': needs the network itself"):
            wrong.value(lambda inputs: inputs)


def test_kept_layers_follow_the_network(digits, robust):
    prop, engine = robust
    before = prop.value(engine.predict())
    other = Engine(digits[0], {"0.weight": torch.arange(24 * 64)})
    delta = torch.randn(24 * 64, generator=torch.Generator().manual_seed(0)) * 0.02
    assert prop.value(other.predict(delta)) != before
    assert prop.value(engine.predict()) == before
    network = nn.Sequential(nn.Linear(64, 8), nn.ReLU(), nn.Linear(8, 10)).double().requires_grad_(False)
    engine = Engine(network, {"2.bias": torch.arange(10)})
    first = prop.soft_value(engine.predict())
    network[0].weight.mul_(2)  # in place: what was kept is out of date
    assert prop.soft_value(engine.predict()) != first


def test_wrong_inputs_count_with_the_smallest_radius(robust):
    prop, engine = robust
    wrong = prop.on(prop.inputs, (prop.labels + 1) % 10)
    assert float(wrong.value(engine.predict())) == pytest.approx(1000)
    assert wrong.tol == prop.tol
    assert float(wrong.soft_value(engine.predict())) > wrong.target


def test_soft_value_tells_whether_the_target_is_met(robust):
    prop, engine = robust
    least = float(prop.radii(engine.predict()).min())
    for factor, met in ((0.99, True), (1.02, False)):
        again = CertifiedRadius(prop.inputs, prop.labels, 1 / (factor * least), aggregate="max", tol=1e-4)
        predict = engine.predict()
        assert bool(again.soft_value(predict) <= again.target) is met
        assert bool(again.value(predict) <= again.target) is met


@pytest.mark.parametrize("aggregate", ["mean", "max"])
def test_soft_value_is_differentiable_and_convex_in_the_last_layer(robust, aggregate):
    prop, engine = robust
    prop = CertifiedRadius(prop.inputs, prop.labels, 20.0, aggregate=aggregate)

    def soft(delta):
        return prop.soft_value(Predictor(engine, delta))

    a, b = changes(engine, 2)
    slope = grad(soft)(a)
    quotient = (soft(a + 1e-6 * b) - soft(a - 1e-6 * b)) / 2e-6
    assert float(slope @ b) == pytest.approx(float(quotient), rel=1e-5)
    assert soft((a + b) / 2) <= (soft(a) + soft(b)) / 2 + 1e-12
    assert soft(b) >= soft(a) + slope @ (b - a) - 1e-9


def test_details_hold_a_lower_and_an_upper_bound(robust):
    prop, engine = robust
    figures = prop.details(engine.predict())
    for kind in ("mean", "least"):
        assert 0 < figures[f"{kind} certified radius"] <= figures[f"{kind} attacked radius (upper bound)"] < 1
    assert figures["inputs certified at the target"] == float((prop.radii(engine.predict()) >= 0.05).sum())


def test_error_under_attack(digits):
    network, inputs, labels = digits
    inputs, labels = inputs[:100], labels[:100]
    engine = Engine(network, {"4.weight": torch.arange(160)})
    errors = [float(AdversarialError(inputs, labels, r).value(engine.predict())) for r in (0.0, 0.1, 0.5)]
    assert errors[0] == float((network(inputs).argmax(1) != labels).double().mean())
    assert errors[0] < errors[1] <= errors[2]
    assert errors[2] > 0.9
    prop = AdversarialError(inputs, labels, 0.1, search=Search(steps=5))
    predict = engine.predict()
    assert prop.value(predict) == prop.value(predict)
    found = round(100 * float(prop.value(predict)))
    assert prop.details(predict) == {"attacked points": found, "wrong points": 100 * errors[0]}
    certified = certified_margin(network, inputs, labels, 0.1) > 0
    assert float(prop.value(predict)) <= 1 - float(certified.double().mean())
    points, _ = attack(network, inputs, labels, 0.1, search=Search(steps=5))

    def at_fixed_points(delta):
        logits = functional_call(network, engine.weights(delta), (points,))
        return 1 - torch.softmax(logits, 1).gather(1, labels[:, None]).mean()

    zero = torch.zeros(160, dtype=torch.float64)
    slope = grad(lambda delta: prop.soft_value(Predictor(engine, delta)))(zero)
    torch.testing.assert_close(slope, grad(at_fixed_points)(zero))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"target": 0.0}, "one over the radius"),
        ({"target": 1.0, "aggregate": "sum"}, "aggregate 'sum'"),
        ({"target": 1.0, "tol": 0.0}, "tol is 0.0"),
        ({"target": 1.0, "labels": [0]}, "labels have shape"),
    ],
)
def test_misuse_of_the_radius_is_named(options, message):
    with pytest.raises(SpecificationError, match=message):
        CertifiedRadius(**{"inputs": torch.rand(2, 3), "labels": [0, 1]} | options)


def test_misuse_of_the_attack_is_named():
    with pytest.raises(SpecificationError, match="radius is -1"):
        AdversarialError(torch.rand(2, 3), [0, 1], -1.0)
    with pytest.raises(SpecificationError, match="steps 0"):
        Search(steps=0)


def cut_rows(zonotope, weight, bias, labels):
    """Rows ``(w_y - w_j) . x + b_y - b_j >= t`` at the worst points, over the changes of weight and bias and ``t``."""
    gaps = weight[labels][:, None] - weight
    points = zonotope.lowest(gaps)[1].numpy()
    k, h = weight.shape
    rows, sides = [], []
    for i, label in enumerate(labels.tolist()):
        for j in set(range(k)) - {label}:
            row = np.zeros(k * h + k + 1)
            for unit, sign in ((label, 1), (j, -1)):
                row[unit * h : (unit + 1) * h] += sign * points[i, j]
                row[k * h + unit] += sign
            row[-1] = -1
            rows.append(row)
            sides.append(-float(gaps[i, j] @ torch.from_numpy(points[i, j]) + bias[label] - bias[j]))
    return np.array(rows), np.array(sides)


def test_repair_of_the_last_layer_widens_the_certified_radius(digits, robust):
    network, inputs, labels = digits
    prop, engine = robust
    radius = 1.1 * prop.radii(engine.predict())
    zonotope = last_layer_zonotope(network, prop.inputs, radius)
    n, delta, bounds = engine.n, np.zeros(engine.n), []
    limit = np.append(np.full(n, 0.03), np.inf)
    rows, sides = np.zeros((0, n + 1)), np.zeros(0)
    for _ in range(30):  # cutting planes of a concave function: the program's value is above the true one, and falls
        new = engine.weights(torch.from_numpy(delta))
        matrix, side = cut_rows(zonotope, new["4.weight"], new["4.bias"], prop.labels)
        rows, sides = np.vstack([rows, matrix]), np.append(sides, side + matrix[:, :n] @ delta)
        goal = np.append(np.zeros(n), -1.0)
        upper = np.full(len(sides), np.inf)
        solution = solve(Program(goal, None, 0.0, rows, sides, upper, -limit, limit))
        assert solution.found, solution.message
        delta = solution.delta[:n]
        given = engine.weights(torch.from_numpy(delta))
        reached = certified_margin(network, prop.inputs, prop.labels, radius, parameters=given).min()
        bounds.append((float(reached), float(solution.delta[-1])))
        if bounds[-1][1] - bounds[-1][0] < 1e-3:
            break
    reached, promised = bounds[-1]
    assert promised - reached < 1e-3
    assert all(a >= b - 1e-6 for (_, a), (_, b) in zip(bounds, bounds[1:], strict=False))
    before = float(certified_margin(network, prop.inputs, prop.labels, radius).min())
    assert before < 0 < reached
    after = prop.radii(engine.predict(delta))
    assert bool((after > 1.09 * prop.radii(engine.predict())).all())
    repaired = functional_call(network, engine.weights(torch.from_numpy(delta)), (inputs[1200:],))
    kept = (repaired.argmax(1) == labels[1200:]).double().mean()
    assert kept > (network(inputs[1200:]).argmax(1) == labels[1200:]).double().mean() - 0.03


@pytest.mark.data
def test_published_network_has_its_known_radius(data_dir):
    folder = data_dir / "autoric"
    with np.load(folder / "mnist_nets.npz") as nets, np.load(folder / "mnist_deepz_cases.npz") as cases:
        state = {
            key.split("/layers.")[1]: torch.from_numpy(nets[key]) for key in nets.files if key.startswith("conv4/")
        }
        rows = [int(np.flatnonzero((cases["net"] == "conv4") & (cases["index"] == i))[0]) for i in (0, 1)]
        inputs = torch.from_numpy(cases["image"][rows])[:, None]
        labels = torch.from_numpy(cases["label"][rows].astype(np.int64))

    class Normalize(nn.Module):
        def forward(self, x):
            return (x - 0.1307) / 0.3081

    conv = [nn.Conv2d(1, 32, 4, 2, 1), nn.ReLU(), nn.Conv2d(32, 64, 4, 2, 1), nn.ReLU(), nn.Flatten()]
    dense = [nn.Linear(3136, 100), nn.ReLU(), nn.Linear(100, 100), nn.ReLU(), nn.Linear(100, 10)]
    network = nn.Sequential(Normalize(), *conv, *dense)
    network.load_state_dict(state)
    radius = certified_radius(network, inputs[1:], labels[1:], tol=4e-4)
    assert radius.tolist() == pytest.approx([0.1219], abs=4e-4)

    with np.load(folder / "mnist_reference.npz") as repaired:  # four columns of the published repair
        weight = network[6].weight.detach().clone()
        weight[:, repaired["opt_columns"].astype(np.int64)] = torch.from_numpy(repaired["opt_values"]).float()
    engine = Engine(network, {"6.weight": torch.arange(weight.numel())})
    predict = engine.predict((weight - network[6].weight).detach().flatten())
    prop = CertifiedRadius(inputs[:1], labels[:1], target=1 / 0.13, tol=4e-4)
    assert float(prop.value(predict)) == pytest.approx(1 / 0.1316, rel=4e-3)


def test_a_step_that_samples_asks_for_few_attacks(monkeypatch):
    calls = []
    attack = robustness.attack
    monkeypatch.setattr(robustness, "attack", lambda *given, **named: calls.append(1) or attack(*given, **named))
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(3, 6), nn.ReLU(), nn.Linear(6, 2)).eval()
    x = torch.randn(40, 3)
    y = network(x).argmax(1)
    for kind in (AdversarialError, AttackSuccess):
        found = solve_repair(network, kind(x, y, radius=0.2, target=0.0, lower=-9.0, upper=9.0), method="one_shot")
        verification = found.report.verification
        assert verification.goal_after <= verification.goal_before
    assert len(calls) < 40  # it was one for each of 2,600 sampled weights


def test_what_was_found_is_of_the_network_as_it_is_now():
    torch.manual_seed(0)
    network, x = nn.Sequential(nn.Linear(3, 2)).eval(), torch.rand(20, 3)
    with torch.no_grad():
        y = network(x).argmax(1)
    for prop in (AdversarialError(x, y, radius=0.01), CertifiedRadius(x, y, target=10.0)):
        before = float(prop.value(network))
        network[0].weight.data.mul_(-1)  # which torch does not count as a change
        network[0].bias.data.mul_(-1)
        assert float(prop.value(network)) > before
        network[0].weight.data.mul_(-1)
        network[0].bias.data.mul_(-1)
        assert float(prop.value(network)) == before


def test_runs_of_a_search_find_the_same_together_as_one_by_one(monkeypatch):
    """Few rows run all restarts in one batch; each goes for classes of its own."""
    from repairopt.network.sets import counterexamples

    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(5, 12), nn.ReLU(), nn.Linear(12, 4)).double().eval()
    x, y = torch.rand(30, 5, dtype=torch.float64), torch.arange(30) % 4
    together = counterexamples.attack(network, x, y, 0.1)
    monkeypatch.setattr(counterexamples, "FEW", 1)
    alone = counterexamples.attack(network, x, y, 0.1)
    for one, other in zip(together, alone, strict=True):
        torch.testing.assert_close(one, other)
    nearest = counterexamples.attack(network, x, y, 0.1, search=Search(restarts=1))
    assert (together[1] <= nearest[1] + 1e-12).all()
