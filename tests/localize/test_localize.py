import hashlib
import re
import time
from dataclasses import dataclass

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from repairopt import ErrorRate
from repairopt.errors import ModelError, SpecificationError
from repairopt.localize import Gradient, Inputs, LayerGraph, Location, localize
from repairopt.localize.attribution import care_scores
from repairopt.localize.weight_selectors import CARE, Layers, Neurons
from repairopt.network import Engine


class Functional(nn.Module):
    """Layers defined in another order than they run; activations and one layer as functions."""

    def __init__(self):
        super().__init__()
        self.out = nn.Linear(4, 2)
        self.weight = nn.Parameter(torch.randn(4, 6) / 2)
        self.bias = nn.Parameter(torch.zeros(4))
        self.first = nn.Linear(3, 6)

    def forward(self, x):
        x = F.dropout(F.relu(self.first(x)), training=self.training)
        return self.out(torch.tanh(F.linear(x, self.weight, self.bias)))


class Convolutional(nn.Module):
    def __init__(self, groups=1):
        super().__init__()
        self.conv1 = nn.Conv2d(2, 4, 3, padding=1)
        self.bn = nn.BatchNorm2d(4)
        self.conv2 = nn.Conv2d(4, 6, 3, groups=groups)
        self.fc1 = nn.Linear(6 * 2 * 2, 5)
        self.fc2 = nn.Linear(5, 3)

    def forward(self, x):
        x = F.relu(self.bn(self.conv1(x)), inplace=True)
        x = F.max_pool2d(F.relu(self.conv2(x)), 2)
        return self.fc2(F.relu(self.fc1(x.view(x.size(0), -1))))


class Residual(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem, self.inner = nn.Linear(3, 4), nn.Linear(4, 4)
        self.norm, self.head = nn.LayerNorm(4), nn.Linear(4 + 3, 2)

    def forward(self, x):
        h = F.relu(self.stem(x))
        h = h + F.relu(self.inner(h))
        return self.head(torch.cat([self.norm(h), x], dim=1))


class Recurrent(nn.Module):
    def __init__(self, levels=2):
        super().__init__()
        self.lstm = nn.LSTM(5, 10, num_layers=levels, batch_first=True)
        self.mid, self.out = nn.Linear(10, 4), nn.Linear(4, 2)

    def forward(self, x):
        states, _ = self.lstm(x)
        return states, self.out(F.relu(self.mid(states[:, -1])))


class Untraceable(nn.Module):
    def __init__(self):
        super().__init__()
        self.out, self.first = nn.Linear(4, 2), nn.Linear(3, 4)

    def forward(self, x):
        h = self.first(x)
        if bool((h.sum() > 1e9).any()):
            h = -h
        return self.out(h.relu())


@dataclass
class Gap:
    """Soft gap of class 0 between two sets of inputs."""

    left: torch.Tensor
    right: torch.Tensor
    name: str = "gap"
    target: float = 0.0

    def soft_value(self, predict):
        rates = [predict(x).softmax(-1)[:, 0].mean() for x in (self.left, self.right)]
        return (rates[0] - rates[1]).abs()

    value = soft_value


@dataclass
class Errors:
    inputs: torch.Tensor
    labels: torch.Tensor
    name: str = "errors"
    target: float = 0.0

    def value(self, predict):
        return (predict(self.inputs).argmax(1) != self.labels).float().mean()

    def on(self, inputs, labels):
        return Errors(inputs, labels)


@dataclass
class Keep:
    inputs: torch.Tensor
    name: str = "keep"

    def margins(self, predict):
        return predict(self.inputs)[:, 0]


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


@pytest.fixture
def mlp():
    return nn.Sequential(nn.Linear(3, 6), nn.ReLU(), nn.Linear(6, 4), nn.ReLU(), nn.Dropout(0.5), nn.Linear(4, 2))


def gap(model_inputs=3, rows=40):
    return Gap(torch.randn(rows, model_inputs), torch.randn(rows, model_inputs) + 0.5)


def digest(model):
    raw = b"".join(v.detach().numpy().tobytes() for v in model.state_dict().values())
    modes = [(m.training, getattr(m, "inplace", None), len(m._forward_hooks)) for m in model.modules()]
    return hashlib.sha256(raw).hexdigest(), modes


def flat(location):
    return {name: positions.tolist() for name, positions in location.indices.items()}


def columns(parameter, wanted):
    mask = torch.zeros(parameter.shape, dtype=torch.bool)
    mask[:, wanted] = True
    return mask.flatten().nonzero().flatten().tolist()


def by_loop(model, layers, undesired, inputs, values=16):
    """CARE as published: one intervention after the other, by a hook on the activation's module."""
    scores = {}
    for name, activation in layers.items():
        seen = []
        with torch.no_grad():
            handle = activation.register_forward_hook(lambda m, i, out, seen=seen: seen.append(out))
            for x in inputs:
                model(x)
            handle.remove()
            taken = torch.cat([out.movedim(1, 0).flatten(1) for out in seen], 1)
            score = torch.full((len(taken),), torch.nan, dtype=torch.float64)
            for unit, (low, high) in enumerate(zip(taken.amin(1), taken.amax(1), strict=True)):
                if low == high:
                    continue
                total = 0.0
                for beta in torch.linspace(0, 1, values) * (high - low) + low:

                    def force(m, i, out, unit=unit, beta=beta):
                        out = out.clone()
                        out[:, unit] = beta
                        return out

                    handle = activation.register_forward_hook(force)
                    total += float(undesired(model))
                    handle.remove()
                score[unit] = total / values
        scores[name] = score
    return scores


# ------------------------------------------------------------------ names, masks, unions


def test_last_is_the_last_to_run_not_the_last_defined(mlp):
    assert flat(localize(mlp)) == {"5.weight": list(range(8)), "5.bias": [0, 1]}
    assert list(localize(Functional()).indices) == ["out.weight", "out.bias"]
    assert list(localize(Convolutional(), "last").indices) == ["fc2.weight", "fc2.bias"]
    found = localize(Recurrent(), "last", forward_fn=lambda m, x: m(x)[1])
    assert found.describe() == ["out.weight: 8 of 8", "out.bias: 2 of 2"]
    assert found.method == "last layer (out)"
    assert list(localize(nn.Linear(3, 2)).indices) == ["weight", "bias"]


def test_last_of_a_model_that_cannot_be_traced():
    model = Untraceable()
    assert list(localize(model, "last", goal=gap()).indices) == ["out.weight", "out.bias"]
    assert list(localize(model, "last").indices) == ["first.weight", "first.bias"]  # nothing to run: as defined
    before = digest(model)
    with pytest.raises(ModelError, match=r"torch\.fx cannot trace it.*Name the weights"):
        localize(model, Neurons("first", [0]), goal=gap())
    assert flat(localize(model, Neurons("first", [1], weights="incoming"), goal=gap())) == {"first.weight": [3, 4, 5]}
    assert localize(model, "auto", goal=gap()).method.startswith("Gradient")
    assert digest(model) == before


@pytest.mark.parametrize(
    ("how", "names"),
    [
        ("first", ["first.weight", "first.bias"]),
        ("first.weight", ["first.weight"]),
        ("*.bias", ["out.bias", "first.bias"]),
        ("f*", ["first.weight", "first.bias"]),
        ("all", ["weight", "bias", "out.weight", "out.bias", "first.weight", "first.bias"]),
        (["first.bias", "last"], ["out.weight", "out.bias", "first.bias"]),
        (Layers("first", "out", bias=False), ["out.weight", "first.weight"]),
        (Layers("fir*"), ["first.weight", "first.bias"]),
    ],
)
def test_names_patterns_and_layers(how, names):
    model = Functional()
    found = localize(model, how)
    assert list(found.indices) == names
    assert found.size == sum(dict(model.named_parameters())[name].numel() for name in names)
    assert found.scores is None
    assert Engine(model, found.indices).n == found.size


def test_a_block_of_modules():
    model = nn.Sequential(nn.Sequential(nn.Linear(3, 3), nn.ReLU()), nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 2)))
    for how in ("1", Layers("1"), "1.*", ["1.0", "1.1"]):
        assert list(localize(model, how).indices) == ["1.0.weight", "1.0.bias", "1.1.weight", "1.1.bias"]


def test_masks_and_positions(mlp):
    mask = torch.zeros(4, 6, dtype=torch.bool)
    mask[1, 2] = mask[3, 0] = True
    for how in (
        {"2.weight": mask},
        {"2.weight": mask.numpy()},
        {"2.weight": [18, 8, 8]},
        Location.from_masks({"2.weight": mask}),
    ):
        found = localize(mlp, how)
        assert flat(found) == {"2.weight": [8, 18]}
        assert found.describe() == ["2.weight: 2 of 24"]
    assert Location.from_masks({"2.weight": mask, "2.bias": np.zeros(4, bool)}).describe() == ["2.weight: 2 of 24"]
    assert Location({"2.weight": torch.tensor([1])}).describe() == ["2.weight: 1"]
    with pytest.raises(SpecificationError, match=r"mask of '2.weight': has type torch\.float32; expected torch\.bool"):
        Location.from_masks({"2.weight": mask.float()})


def test_union_sorts_and_keeps_the_larger_score(mlp):
    one = Location({"0.weight": torch.tensor([4, 1])}, {"0.weight": torch.tensor([0.5, 0.25])}, "mine")
    two = Location({"0.weight": torch.tensor([1, 2])}, {"0.weight": torch.tensor([0.75, 0.125])}, "yours")
    found = localize(mlp, [one, two, {"0.weight": [0], "0.bias": [3]}])
    assert flat(found) == {"0.weight": [0, 1, 2, 4], "0.bias": [3]}
    assert found.scores["0.weight"].nan_to_num(nan=-1).tolist() == [-1.0, 0.75, 0.125, 0.5]
    assert found.scores["0.bias"].isnan().all()
    assert found.method == "mine + yours + given"


def test_a_shared_parameter_is_chosen_once_and_said():
    class Tied(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Linear(3, 3), nn.Linear(3, 3)
            self.b.weight = self.a.weight

        def forward(self, x):
            return self.b(self.a(x).relu())

    for how in ("b.weight", "a.weight", ["a.weight", "b.weight"]):
        found = localize(Tied(), how)
        assert list(found.indices) == ["a.weight"]
        assert found.method.endswith("a.weight is shared as b.weight")
    assert list(localize(Tied(), "last").indices) == ["a.weight", "b.bias"]


# ------------------------------------------------------------------ neurons


def test_neurons_of_an_mlp(mlp):
    assert flat(localize(mlp, Neurons("0", [4, 1]))) == {"2.weight": columns(mlp[2].weight, [1, 4])}
    assert flat(localize(mlp, Neurons("2", [0]))) == {"5.weight": columns(mlp[5].weight, [0])}  # through dropout
    assert flat(localize(mlp, Neurons("2", [3], weights="incoming"))) == {"2.weight": list(range(18, 24))}
    assert flat(localize(mlp, Neurons("2", [3], "incoming", True))) == {"2.weight": list(range(18, 24)), "2.bias": [3]}
    assert flat(localize(mlp, Inputs([2]))) == {"0.weight": columns(mlp[0].weight, [2])}


def test_neurons_of_functional_calls():
    model = Functional()
    assert flat(localize(model, Neurons("first", [5]))) == {"weight": columns(model.weight, [5])}
    assert flat(localize(model, Neurons("weight", [1]))) == {"out.weight": columns(model.out.weight, [1])}
    assert flat(localize(model, Inputs([0], layer="first"))) == {"first.weight": columns(model.first.weight, [0])}
    with pytest.raises(ModelError, match=r"expected 'out' to read input features \[0\], but nothing there reads them"):
        localize(model, Inputs([0], layer="out"))


@pytest.mark.parametrize("groups", [1, 2])
def test_neurons_of_convolutions_map_to_blocks(groups):
    model, x = Convolutional(groups), torch.randn(3, 2, 6, 6)
    assert flat(localize(model, Neurons("conv2", [4]), inputs=x)) == {
        "fc1.weight": columns(model.fc1.weight, range(16, 20))
    }
    read = torch.zeros(model.conv2.weight.shape, dtype=torch.bool)
    if groups == 1:
        read[:, 3] = True
    else:  # channel 3 is the second of the second group: only the last three outputs read it
        read[3:, 1] = True
    expected = read.flatten().nonzero().flatten().tolist()
    assert flat(localize(model, Neurons("conv1", [3]), inputs=x)) == {"conv2.weight": expected}
    assert flat(localize(model, Neurons("conv1", [3], "incoming"), inputs=x)) == {"conv1.weight": list(range(54, 72))}
    assert flat(localize(model, Inputs([1]), inputs=x)) == {"conv1.weight": columns(model.conv1.weight, [1])}
    goal = Gap(torch.randn(8, 2, 6, 6), torch.randn(8, 2, 6, 6))
    assert localize(model, "care", goal=goal).indices.keys() == {"fc2.weight"}  # linear layers, unless one is named
    assert localize(model, CARE(layer="conv1"), goal=goal).indices.keys() == {"conv2.weight"}
    with pytest.raises(ModelError, match=r"shape of its inputs is not known.*Pass inputs="):
        localize(model, Neurons("conv2", [4]))


def test_neurons_through_sums_norms_and_concatenation():
    model = Residual()
    found = flat(localize(model, Neurons("stem", [2])))
    assert found == {"inner.weight": columns(model.inner.weight, [2]), "head.weight": columns(model.head.weight, [2])}
    assert flat(localize(model, Neurons("inner", [0]))) == {"head.weight": columns(model.head.weight, [0])}
    assert flat(localize(model, Inputs([1], layer="head"))) == {"head.weight": columns(model.head.weight, [5])}


def test_gate_rows_of_an_lstm():
    model, call = Recurrent(3), {"forward_fn": lambda m, x: m(x)[1]}
    rows = [7, 11, 15, 19, 25, 28, 35]
    found = localize(model, Neurons("lstm.l2", rows, weights="incoming"), **call)
    assert found.describe() == ["lstm.weight_ih_l2: 70 of 400", "lstm.weight_hh_l2: 70 of 400"]
    assert found.indices["lstm.weight_hh_l2"][:10].tolist() == list(range(70, 80))
    one = localize(Recurrent(1), Neurons("lstm", [0], weights="incoming", bias=True), **call)
    assert list(one.indices) == ["lstm.weight_ih_l0", "lstm.weight_hh_l0", "lstm.bias_ih_l0", "lstm.bias_hh_l0"]
    assert flat(localize(model, Inputs([4]), **call)) == {"lstm.weight_ih_l0": columns(model.lstm.weight_ih_l0, [4])}
    assert flat(localize(model, Neurons("mid", [2]), **call)) == {"out.weight": [2, 6]}
    with pytest.raises(ModelError, match=r"its call returned tuple of shapes.*Choose with Classifier"):
        localize(model, Neurons("mid", [2]))
    with pytest.raises(ModelError, match=r"'lstm': has 3 levels; say which of lstm.l0, lstm.l1, lstm.l2"):
        localize(model, Neurons("lstm", [0], weights="incoming"), **call)
    with pytest.raises(ModelError, match=r"gate rows, which no other layer reads\. Use weights='incoming'"):
        localize(model, Neurons("lstm", [0]), **call)


# ------------------------------------------------------------------ CARE


def test_care_equals_the_published_loop(mlp):
    with torch.no_grad():
        mlp[2].bias[1] = -100.0  # a dead neuron
    goal = gap()
    fast = care_scores(LayerGraph(mlp), goal.soft_value)
    slow = by_loop(mlp.eval(), {"0": mlp[1], "2": mlp[3]}, goal.soft_value, [goal.left, goal.right])
    assert list(fast) == ["0", "2"]
    for name, expected in slow.items():
        torch.testing.assert_close(fast[name], expected, rtol=0, atol=1e-5, equal_nan=True)
    assert fast["2"].isnan().tolist() == [False, True, False, False]


def test_care_equals_the_loop_on_convolutions_and_new_inputs():
    class Net(nn.Sequential):
        pass

    torch.manual_seed(1)
    model = Net(
        nn.Conv2d(1, 3, 3),
        nn.BatchNorm2d(3),
        nn.ReLU(inplace=True),
        nn.Flatten(),
        nn.Linear(12, 4),
        nn.Tanh(),
        nn.Linear(4, 2),
    )
    x = torch.randn(9, 1, 4, 4)

    def undesired(predict):  # asks about inputs made anew each time, as a goal that flips a feature does
        return (predict(x).softmax(1) - predict(x.flip(3)).softmax(1))[:, 0].abs().mean()

    before = digest(model)
    fast = care_scores(LayerGraph(model, example=x), undesired, values=5)
    assert digest(model) == before
    slow = by_loop(model.eval(), {"0": model[2], "4": model[5]}, undesired, [x, x.flip(3)], values=5)
    for name, expected in slow.items():
        torch.testing.assert_close(fast[name], expected, rtol=0, atol=1e-5)


def test_care_of_a_residual_network_and_of_a_goal_that_reads_numbers():
    model, x = Residual(), torch.randn(20, 3)
    soft = care_scores(LayerGraph(model), lambda predict: predict(x).softmax(-1)[:, 0].mean())
    read = care_scores(LayerGraph(model), lambda predict: float(predict(x).softmax(-1)[:, 0].mean()))
    assert list(soft) == ["stem", "inner"]
    for name in soft:
        torch.testing.assert_close(soft[name], read[name], rtol=0, atol=1e-6, equal_nan=True)


def planted():
    """A network where only unit 3 of the second layer reads the protected feature 0; the gap between its values."""
    model = nn.Sequential(nn.Linear(3, 8), nn.ReLU(), nn.Linear(8, 6), nn.ReLU(), nn.Linear(6, 2))
    with torch.no_grad():
        model[0].weight[:, 0] = 0
        model[0].weight[5], model[0].bias[5] = torch.tensor([4.0, 0.0, 0.0]), 0.0
        model[2].weight[:, 5] = 0
        model[2].weight[3], model[2].bias[3] = torch.eye(8)[5] * 3, -2.0
        model[2].bias += torch.tensor([1.0, 1, 1, 0, 1, 1])
        model[4].weight[:, 3] = torch.tensor([0.3, -0.3])
    same = torch.randn(60, 3)
    left, right = same.clone(), same.clone()
    left[:, 0], right[:, 0] = 0.0, 1.0
    return model, Gap(left, right)


def test_care_ranks_a_neuron_that_carries_the_behavior_first():
    model, goal = planted()
    found = localize(model, CARE(count=1, score="removed"), goal=goal)
    assert found.method in ("CARE: outgoing weights of 0[5]", "CARE: outgoing weights of 2[3]")  # one feeds the other
    found = localize(model, CARE(count=1, score="removed", layer="2"), goal=goal)
    assert flat(found) == {"4.weight": [3, 9]}
    clean = float(goal.value(model).detach())
    assert clean > 0.1
    assert found.scores["4.weight"].tolist() == pytest.approx([clean, clean], abs=1e-6)  # without it, no gap is left
    others = care_scores(LayerGraph(model), goal.soft_value, ["2"], score="removed")["2"]
    assert float(others[[0, 1, 2, 4, 5]].nan_to_num(nan=0).max()) < 0.5 * clean


def test_care_ranks_a_neuron_that_sets_the_behavior_off_first(mlp):
    x = torch.randn(50, 3)
    x[0, 0] = 12.0  # a trigger in a single sample
    with torch.no_grad():
        mlp[0].weight[4], mlp[0].bias[4] = torch.tensor([1.0, 0, 0]), -6.0
        mlp[2].weight[1], mlp[2].bias[1] = torch.eye(6)[4], 0.0
        mlp[5].weight[:, 1] = torch.tensor([-5.0, 5.0])

    class Backdoor:
        name, target = "backdoor", 0.0

        def value(self, predict):
            return (predict(x).argmax(1) == 1).double().mean()

        def undesired(self, predict):
            return predict(x).softmax(-1)[:, 1].mean()

    found = localize(mlp, CARE(count=2), goal=Backdoor())
    assert found.method in ("CARE: outgoing weights of 0[4], 2[1]", "CARE: outgoing weights of 2[1], 0[4]")
    assert list(found.indices) == ["2.weight", "5.weight"]
    assert list(localize(mlp, CARE(count=2, weights="incoming"), goal=Backdoor()).indices) == ["0.weight", "2.weight"]
    assert localize(mlp, "auto", goal=Backdoor(), count=2).method == found.method
    assert localize(mlp, "care", goal=Backdoor(), count=2).method == found.method


def test_care_takes_fewer_samples_where_the_goal_allows(mlp):
    asked = []

    class Cut(Errors):
        def subsample(self, count, seed):
            asked.append((count, seed))
            return Cut(self.inputs[:count], self.labels[:count])

    x, y = torch.randn(40, 3), torch.randint(0, 2, (40,))
    found = localize(mlp, CARE(samples=10), goal=Cut(x, y), seed=7)
    assert asked == [(10, 7)]
    assert flat(found) == flat(localize(mlp, CARE(samples=10), goal=Errors(x[:10], y[:10])))
    first, second = (localize(mlp, CARE(samples=10), goal=Errors(x, y), seed=3) for _ in range(2))
    assert flat(first) == flat(second)


# ------------------------------------------------------------------ gradients, counts, auto


def test_gradient_is_derivative_times_size(mlp):
    goal = gap()
    found = localize(mlp.eval(), Gradient(count=5), goal=goal)
    goal.soft_value(mlp).backward()
    score = {}
    for name, p in mlp.named_parameters():
        rms = float(p.detach().square().mean().sqrt())
        score |= {(name, i): float(s) for i, s in enumerate((p.grad.abs() * p.detach().abs().clamp(min=rms)).flatten())}
    best = sorted(score, key=score.get, reverse=True)[:5]
    assert {(name, i) for name, ix in flat(found).items() for i in ix} == set(best)
    for name, ix in flat(found).items():
        assert found.scores[name].tolist() == pytest.approx([score[name, i] for i in ix], rel=1e-4)
    assert found.method == "Gradient: 5 weights with the largest |derivative of 'gap'| times size"


def test_gradient_of_misclassified_samples(mlp):
    goal = Errors(torch.randn(30, 3), torch.randint(0, 2, (30,)))
    wrong = (mlp.eval()(goal.inputs).argmax(1) != goal.labels).nonzero().flatten().tolist()
    found = localize(mlp, Gradient(count=10**6, within="5.weight"), goal=goal)
    total = torch.zeros(2, 4)
    for i in wrong:
        mlp.zero_grad()
        F.cross_entropy(mlp(goal.inputs[i : i + 1]), goal.labels[i : i + 1]).backward()
        total += mlp[5].weight.grad.abs()
    size = mlp[5].weight.detach().abs().clamp(min=float(mlp[5].weight.detach().square().mean().sqrt()))
    expected = (total / len(wrong) * size).flatten()
    got = torch.zeros(8).index_copy(0, found.indices["5.weight"], found.scores["5.weight"].float())
    torch.testing.assert_close(got, expected)
    assert f"on {len(wrong)} misclassified samples" in found.method


def test_gradient_of_neurons_and_constraints(mlp):
    keep = Keep(torch.randn(20, 3))
    found = localize(mlp, Gradient(count=1, of="constraints", granularity="neuron", within="2"), constraints=[keep])
    assert found.describe() == ["2.weight: 6 of 24", "2.bias: 1 of 4"]
    unit = int(found.indices["2.bias"])
    assert found.indices["2.weight"].tolist() == list(range(6 * unit, 6 * unit + 6))
    assert len({*found.scores["2.weight"].tolist(), *found.scores["2.bias"].tolist()}) == 1
    call = {"forward_fn": lambda m, x: m(x)[1], "goal": Gap(torch.randn(8, 4, 5), torch.randn(8, 4, 5))}
    rows = localize(Recurrent(), Gradient(count=2, granularity="neuron", within="lstm"), **call)
    assert rows.size in {2 * (5 + 10 + 2), 2 * (10 + 10 + 2), 5 + 10 + 2 + 10 + 10 + 2}


def test_count_keeps_the_best_of_any_choice(mlp):
    found = localize(mlp, "2.*", goal=gap(), count=3)
    assert found.size == 3
    assert set(found.indices) <= {"2.weight", "2.bias"}
    with pytest.raises(SpecificationError, match=r"Gradient: follows the derivative of a goal.*Pass goal="):
        localize(mlp, "2.*", count=3)


def test_auto(mlp):
    assert localize(mlp, "auto").method == "last layer (5)"
    assert localize(mlp, "auto", goal=gap()).method.startswith("Gradient")
    right = Errors(torch.randn(9, 3), torch.zeros(9, dtype=torch.int64))
    right.labels = mlp.eval()(right.inputs).argmax(1)  # nothing misclassified, and a count has no derivative
    assert localize(mlp, "auto", goal=right).method.startswith("CARE: outgoing weights of ")
    single = nn.Linear(3, 2).eval()  # no hidden layer
    right.labels = single(right.inputs).argmax(1)
    assert localize(single, "auto", goal=right).method.startswith("last layer")
    plain = localize(mlp, "auto", goal=lambda predict: predict(torch.ones(4, 3)).sum())  # a function: value alone
    assert plain.method.startswith("Gradient")


@pytest.mark.parametrize(
    "how", ["last", "all", "care", "gradient", "auto", Neurons("2", [1]), Inputs([0]), {"0.bias": [1]}], ids=str
)
def test_the_model_is_not_modified(mlp, how):
    mlp.train()
    mlp[1].inplace = True
    before = digest(mlp)
    localize(mlp, how, goal=gap())
    assert digest(mlp) == before
    assert all(p.grad is None and p.requires_grad for p in mlp.parameters())


# ------------------------------------------------------------------ messages


@pytest.mark.parametrize(
    ("how", "error", "text"),
    [
        ("0.wieght", ModelError, r"no layer or parameter is called '0.wieght'\. Did you mean '0.weight'"),
        ("fc9.*", ModelError, r"no layer or parameter is called 'fc9\.\*'\. Known: 0.weight, 0.bias"),
        (Layers("7"), ModelError, r"no layer or parameter is called '7'\. Known: 0, 2, 5"),
        (Layers(), SpecificationError, r"names no layer; expected at least one"),
        (Neurons("3", [0]), ModelError, r"calls no layer '3'\. Known: 0, 2, 5"),
        (Neurons("2", [4]), SpecificationError, r"layer '2': unit 4 is out of range; there are 4\. Use 0 to 3"),
        (Neurons("2", []), SpecificationError, r"units=\[\]; expected whole numbers, at least one"),
        (Neurons("2", [1.5]), SpecificationError, r"expected whole numbers"),
        (Neurons("2", [1], weights="both"), SpecificationError, r"weights='both'; expected 'outgoing' or 'incoming'"),
        (Neurons("5", [1]), ModelError, r"no later layer with weights reads layer '5'.*Use weights='incoming'"),
        (Inputs([]), SpecificationError, r"units=\[\]; expected whole numbers, at least one"),
        (Inputs([3]), SpecificationError, r"inputs of model Sequential: unit 3 is out of range; there are 3"),
        ({"5.weight": torch.ones(4, 2, dtype=torch.bool)}, SpecificationError, r"shape \(4, 2\); expected .*\(2, 4\)"),
        ({"5.weight": [8]}, SpecificationError, r"positions in '5.weight'.*a vector of whole numbers below 8"),
        ({"5.weight": [-1]}, SpecificationError, r"below 8"),
        ({"5.weight": [0.5]}, SpecificationError, r"got torch.float32"),
        ({"6.weight": [0]}, ModelError, r"no parameter is called '6.weight'\. Did you mean '5.weight'"),
        (
            {"5.weight": torch.zeros(2, 4, dtype=torch.bool)},
            SpecificationError,
            r"selects no weights; expected at least",
        ),
        ({}, SpecificationError, r"selects no weights"),
        ([], SpecificationError, r"selects no weights"),
        (3, SpecificationError, r"how=3 is a int; expected 'last', 'all'"),
        (
            Location({"5.bias": torch.tensor([0])}, {"5.bias": torch.ones(2)}),
            SpecificationError,
            r"expected 1 scores for",
        ),
        ("care", SpecificationError, r"CARE: measures the undesired behavior of a goal.*Pass goal="),
        (Gradient(of="constraints"), SpecificationError, r"there are no constraints on outputs\. Pass constraints="),
    ],
    ids=lambda value: re.sub(r"\W+", "_", str(value))[:30],
)
def test_messages(mlp, how, error, text):
    with pytest.raises(error, match=text):
        localize(mlp, how)


def test_messages_with_a_goal(mlp):
    for how, error, text in (
        (CARE(layer="5"), ModelError, r"layer '5' has no neurons that a later layer reads.*one of: 0, 2"),
        (CARE(layer="x"), ModelError, r"calls no layer 'x'"),
        (CARE(count=0), SpecificationError, r"count=0; expected 1 or more"),
        (CARE(score="best"), SpecificationError, r"score='best'; expected 'forced' or 'removed'"),
        (Gradient(of="loss"), SpecificationError, r"expected count 1 or more, of='goal' or 'constraints'"),
    ):
        with pytest.raises(error, match=text):
            localize(mlp, how, goal=gap())
    with pytest.raises(SpecificationError, match=r"count=0: expected a whole number"):
        localize(mlp, "care", goal=gap(), count=0)
    with pytest.raises(SpecificationError, match=r"every neuron of 0, 2 is constant on the goal's data"):
        localize(mlp, "care", goal=Gap(torch.ones(4, 3), torch.ones(4, 3)))
    with pytest.raises(SpecificationError, match=r"is zero everywhere, so it singles out no weight"):
        localize(mlp, "gradient", goal=lambda predict: predict(torch.ones(4, 3)).sum() * 0)
    with pytest.raises(SpecificationError, match=r"is nan, ; expected a finite number|is nan"):
        localize(mlp, "care", goal=lambda predict: predict(torch.ones(4, 3)).sum() * float("nan"))


def test_models_without_the_layers_asked_for():
    class Scale(nn.Module):
        def __init__(self):
            super().__init__()
            self.scale = nn.Parameter(torch.ones(2))
            self.step = nn.Parameter(torch.ones(2, dtype=torch.int64), requires_grad=False)

        def forward(self, x):
            return x * self.scale * self.step

    with pytest.raises(ModelError, match=r"no linear or convolutional layer for 'last'\. Name the weights instead"):
        localize(Scale())
    assert list(localize(Scale(), "all").indices) == ["scale"]
    with pytest.raises(ModelError, match=r"'step': is torch\.int64; only floating-point weights can be repaired"):
        localize(Scale(), "step")


# ------------------------------------------------------------------ the paper's network


@pytest.mark.data
def test_care_on_the_census_network(data_dir):
    folder = data_dir / "autoric"
    with np.load(folder / "census.npz") as d, np.load(folder / "census_m1.npz") as w:
        goal = Gap(*(torch.from_numpy(d[f"sample_{sex}_x"][:1000]) for sex in ("male", "female")))
        weights = {name: torch.from_numpy(w[name]) for name in w.files}
    sizes = [14, 64, 32, 16, 8, 4, 2]
    model = nn.Sequential()
    for i in range(6):
        model.add_module(f"fc{i + 1}", nn.Linear(sizes[i], sizes[i + 1]))
        model.add_module(f"act{i + 1}", nn.ReLU() if i < 5 else nn.Identity())
    model.load_state_dict(weights)

    begin = time.process_time()
    graph = LayerGraph(model)
    scores = care_scores(graph, goal.soft_value)
    seconds = time.process_time() - begin
    assert [len(score) for score in scores.values()] == sizes[1:6]
    with torch.no_grad():
        x, constant = torch.cat([goal.left, goal.right]), {}
        for name, module in model.named_children():
            x = module(x)
            constant[name.replace("act", "fc")] = x.amin(0) == x.amax(0)
    for name, score in scores.items():
        assert score.isnan().equal(constant[name])
        assert bool(((score >= 0) & (score <= 1))[~constant[name]].all())
    slow = by_loop(model, {"fc3": model.act3}, goal.soft_value, [goal.left, goal.right], values=16)
    torch.testing.assert_close(scores["fc3"], slow["fc3"], rtol=0, atol=1e-5, equal_nan=True)

    order = scores["fc3"].nan_to_num(nan=-1).argsort(descending=True).tolist()
    ranks = {unit: order.index(unit) + 1 for unit in (6, 10, 11)}
    print(f"CARE: 124 neurons in {seconds:.2f} CPU s; fc3 order {order}; the paper's units rank {ranks} of 16")
    assert ranks[10] <= 3  # one of the paper's three is among the first three; 6 and 11 are not, on these samples
    found = localize(model, CARE(layer="fc3"), goal=goal)
    assert found.describe() == ["fc4.weight: 24 of 128"]
    assert seconds < 5


@pytest.mark.parametrize("count", [None, 7])
def test_of_a_large_network_automatic_weights_are_in_the_last_layer(count):
    large = nn.Sequential(nn.Linear(4, 500), nn.ReLU(), nn.Linear(500, 500), nn.ReLU(), nn.Linear(500, 3))
    x = torch.randn(30, 4)
    goal = ErrorRate(x, (large(x).argmax(1) + 1) % 3)
    found = localize(large, "auto", goal=goal, count=count)
    assert set(found.indices) <= {"4.weight", "4.bias"}
    assert found.size == (1503 if count is None else count)
    assert "a network of 254,503 weights" in found.method
    small = nn.Sequential(nn.Linear(4, 50), nn.ReLU(), nn.Linear(50, 3))
    assert "last layer" not in localize(small, "auto", goal=ErrorRate(x, (small(x).argmax(1) + 1) % 3)).method
