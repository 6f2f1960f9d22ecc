"""Networks whose forward writes: into its input, into values on the way, into buffers, into parameters."""

import copy
import io

import pytest
import torch
from torch import nn

from repairopt import CallableProperty, ErrorRate, ModelError, Settings, solve_repair
from repairopt.network import Engine, pull_back
from repairopt.specify import AdversarialError, AttackSuccess, anchor


class Two(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(3, 4), nn.Linear(4, 2)


class ScalesItsInput(Two):
    def forward(self, x):
        x.mul_(0.5)
        return self.b(torch.tanh(self.a(x)))


class ClampsData(Two):
    def forward(self, x):
        x.data.clamp_(-1, 1)
        return self.b(torch.tanh(self.a(x)))


class ShiftsHidden(Two):
    def forward(self, x):
        h = torch.sin(self.a(x))
        h.add_(1)
        return self.b(h)


class ShiftsAfterUse(Two):
    def forward(self, x):
        h = torch.sin(self.a(x))
        z = self.b(h)
        h.add_(1)
        return z + h[:, :2]


class WritesThroughAView(Two):
    def forward(self, x):
        h = torch.sin(self.a(x))
        h[:, :2].mul_(2)
        return self.b(h)


class SetsColumns(Two):
    def forward(self, x):
        x[:, 0] = 0
        return self.b(torch.tanh(self.a(x)))


class StartsInPlace(Two):
    def forward(self, x):
        y = nn.functional.relu(x, inplace=True)
        return self.b(torch.tanh(self.a(x))) + y[:, :2]


WRITERS = [ScalesItsInput, ClampsData, ShiftsHidden, ShiftsAfterUse, WritesThroughAView, SetsColumns, StartsInPlace]


@pytest.mark.parametrize("name", ["a.weight", "b.weight"])
@pytest.mark.parametrize("kind", WRITERS)
def test_the_engine_runs_what_the_model_runs(kind, name):
    model, rows = kind().eval(), 3 * torch.randn(40, 3)
    kept, size = rows.clone(), dict(model.named_parameters())[name].numel()
    engine = Engine(model, {name: torch.arange(size)})
    for delta in (torch.zeros(size), 0.3 * torch.randn(size), 0.3 * torch.randn(size)):
        changed = copy.deepcopy(model)
        parameter = dict(changed.named_parameters())[name]
        parameter.data.add_(delta.view(parameter.shape))
        expected = changed(kept.clone()).detach()
        assert torch.allclose(engine.predict(delta)(rows), expected, atol=1e-5)
    assert torch.equal(rows, kept), "the user's rows were written into"


@pytest.mark.parametrize("kind", WRITERS)
def test_derivatives_are_those_of_the_model(kind):
    model, rows = kind().double().eval(), 3 * torch.randn(10, 3).double()
    engine = Engine(model, {"b.weight": torch.arange(8), "b.bias": torch.arange(2)})
    cotangent = torch.randn(10, 2).double()
    if kind is ShiftsAfterUse:  # torch cannot differentiate it either
        with pytest.raises(RuntimeError, match="inplace"):
            pull_back(engine, rows, cotangent)
        return
    steps = 1e-6 * torch.eye(10).double()
    value = lambda delta: (engine.predict(delta)(rows) * cotangent).sum()  # noqa: E731
    differences = torch.stack([(value(step) - value(-step)) / 2e-6 for step in steps])
    assert torch.allclose(pull_back(engine, rows, cotangent), differences, atol=1e-6)


class Counts(Two):
    def __init__(self):
        super().__init__()
        self.register_buffer("calls", torch.zeros(()))
        self.register_buffer("last", torch.zeros(4))

    def forward(self, x):
        self.calls += 1
        h = torch.tanh(self.a(x))
        self.last.copy_(h[0].detach())
        return self.b(h)


class Remembers(Two):
    """Its forward writes into a buffer, in one of the ways that modules do."""

    def __init__(self):
        super().__init__()
        self.register_buffer("seen", torch.zeros(4))

    def write(self, h):
        raise NotImplementedError

    def forward(self, x):
        h = torch.tanh(self.a(x))
        self.write(h.detach())
        return self.b(h)


class Assigns(Remembers):
    def write(self, h):
        self.seen = self.seen + h.mean(0)


class WritesAtAPlace(Remembers):
    def write(self, h):
        self.seen[0] += 1


class WritesIntoData(Remembers):
    def write(self, h):
        self.seen.data.add_(h[0])


class Averages(Remembers):
    def write(self, h):
        self.seen.lerp_(h.mean(0), 0.1)


class WritesUnsaved(Remembers):
    """A buffer that ``state_dict`` leaves out."""

    def __init__(self):
        super().__init__()
        self.register_buffer("steps", torch.zeros((), dtype=torch.long), persistent=False)

    def write(self, h):
        self.steps += 1


class WritesThroughAView(Remembers):
    def write(self, h):
        self.seen.view(2, 2)[0].copy_(h[0, :2])


class KeepsWhatItSaw(Remembers):
    """An attribute, which is no buffer, as of modules whose activations are looked at later."""

    def write(self, h):
        self.activations = h


class TakesAnother(Remembers):
    """A new tensor stands in the old one's place."""

    def write(self, h):
        self._buffers["seen"] = h[-1].clone()


FILLERS = [
    Counts,
    Assigns,
    WritesAtAPlace,
    WritesIntoData,
    Averages,
    WritesUnsaved,
    WritesThroughAView,
    KeepsWhatItSaw,
    TakesAnother,
]


@pytest.mark.parametrize("kind", FILLERS)
def test_buffers_of_the_original_stay(kind):
    model, x = kind().eval(), torch.randn(50, 3)
    held = dict(model.named_buffers())
    before = {name: tensor.clone() for name, tensor in held.items()}
    goal = ErrorRate(x, (x[:, 0] > 0).long(), target=0.1)
    found = solve_repair(model, goal, weights="last", settings=Settings(time_limit=3))
    for network in (model, found.model):
        assert all(torch.equal(tensor, before[name]) for name, tensor in network.named_buffers())
    assert all(tensor is held[name] for name, tensor in model.named_buffers())
    assert not hasattr(model, "activations")
    torch.save(found.model, io.BytesIO())


class ClampsItsWeights(Two):
    def write(self):
        self.b.weight.data.clamp_(-0.1, 0.1)

    def forward(self, x):
        self.write()
        return self.b(torch.tanh(self.a(x)))


class ScalesItsWeights(ClampsItsWeights):
    def write(self):
        with torch.no_grad():
            self.b.weight.mul_(0.9)


class LimitsNorms(ClampsItsWeights):
    def write(self):
        self.b.weight.data.copy_(self.b.weight.data.renorm(2, 0, 0.1))


class CutsAWeight(ClampsItsWeights):
    def write(self):
        with torch.no_grad():
            self.b.weight[0, 0] = 0.0


class ShiftsWeights(ClampsItsWeights):
    def write(self):
        self.b.weight.detach().add_(0.01)


@pytest.mark.parametrize("kind", [ClampsItsWeights, ScalesItsWeights, LimitsNorms, CutsAWeight, ShiftsWeights])
def test_a_forward_that_writes_into_parameters_is_refused_and_undone(kind):
    model, x = kind().eval(), torch.randn(20, 3)
    before = model.b.weight.detach().clone()
    with pytest.raises(ModelError, match=r"writes into its parameter 'b.weight'"):
        solve_repair(model, CallableProperty(lambda predict: predict(x).square().mean(), 0.01), weights="last")
    assert torch.equal(model.b.weight, before)


def rows_of_users():
    torch.manual_seed(1)
    x = 2 * torch.randn(40, 3)
    return x, (x[:, 0] > 0).long()


@pytest.mark.parametrize("kind", [ScalesItsInput, ClampsData, StartsInPlace])
@pytest.mark.parametrize("method", ["train_then_correct", "fine_tune", "gradient_repair", "hard_voting", "sqp"])
def test_no_method_writes_into_the_rows_of_the_user(kind, method):
    torch.manual_seed(0)
    x, y = rows_of_users()
    given = x.clone()
    goal, settings = ErrorRate(given, y, target=0.1), Settings(time_limit=1)
    repair = solve_repair(kind(), goal, method=method, settings=settings)
    assert torch.equal(given, x)
    wrong = float((repair.model(x.clone()).argmax(1) != y).double().mean())
    assert repair.report.verification.goal_after == pytest.approx(wrong, abs=1e-12)


@pytest.mark.parametrize("kind", [ScalesItsInput, ClampsData, StartsInPlace])
@pytest.mark.parametrize("goal", [AdversarialError, AttackSuccess])
def test_attacks_leave_the_rows_of_the_user_alone(kind, goal):
    torch.manual_seed(0)
    x, y = rows_of_users()
    given, network = x.clone(), kind()
    asked = anchor(goal(given, y, radius=0.0, lower=-9.0, upper=9.0), network)
    wrong = float((network(x.clone()).argmax(1) != y).double().mean())
    found = float(asked.value(network))  # within radius 0 the wrong rows are what an attack finds, the right ones none
    assert found == pytest.approx(wrong if goal is AdversarialError else 0.0, abs=1e-6)
    solve_repair(network, goal(given, y, radius=0.1, lower=-9.0, upper=9.0), settings=Settings(time_limit=0.5))
    assert torch.equal(given, x)
