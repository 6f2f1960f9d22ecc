"""Networks that cannot be traced are split before the module that makes their outputs, and only where that is true."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from repairopt import Classifier, ErrorRate, KeepLabels, solve_repair
from repairopt.network import Engine, jacobian

X = torch.randn(30, 4, generator=torch.Generator().manual_seed(0))


class Base(nn.Module):
    """Something that torch.fx cannot trace, and a head."""

    def __init__(self, head=None):
        super().__init__()
        torch.manual_seed(0)
        self.body, self.head, self.runs = nn.Linear(4, 6), head or nn.Linear(6, 3), 0

    def features(self, x):
        self.runs += 1
        return self.body(x).relu() if float(x.detach().abs().max()) < 1e9 else x

    def forward(self, x):
        return self.head(self.features(x))


class Twice(Base):
    def forward(self, x):
        return self.head(self.features(x)) + 0 * self.head(self.features(x))


class After(Base):
    def forward(self, x):
        return 2 * self.head(self.features(x))


class ReadElsewhere(Base):
    def forward(self, x):
        features = self.features(x)
        return self.head(features + self.head.weight.mean())


class Tied(Base):
    def __init__(self):
        super().__init__(nn.Linear(6, 6))
        self.body = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 6))
        self.body[2].weight = self.head.weight


class Named(Base):
    def forward(self, x):
        return SimpleNamespace(logits=self.head(self.features(x)))


def two_layers():
    torch.manual_seed(1)
    return Base(nn.Sequential(nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 3)))


def everything(model, prefix):
    return {name: torch.arange(p.numel()) for name, p in model.named_parameters() if name.startswith(prefix)}


@pytest.mark.parametrize(
    ("model", "prefix", "split", "exact"),
    [
        (Base(), "head", True, True),
        (Named(), "head", True, True),
        (two_layers(), "head", True, False),
        (two_layers(), "head.2", True, True),
        (Base(), "", False, False),
        (Base(), "body", False, False),
        (Twice(), "head", False, False),
        (After(), "head", False, False),
        (ReadElsewhere(), "head", False, False),
        (Tied(), "body.2", False, False),
    ],
)
def test_the_split_is_where_one_module_makes_the_outputs(model, prefix, split, exact):
    model = model.eval()
    forward = (lambda own, x: own(x).logits) if isinstance(model, Named) else None
    engine = Engine(model, everything(model, prefix), forward_fn=forward)
    engine.predict()(X)
    assert (engine.suffix is not engine.caller) == split
    assert engine.exact == exact
    delta = 0.1 * torch.randn(engine.n, generator=torch.Generator().manual_seed(2))
    weights = {name: value.detach() for name, value in engine.weights(delta).items()}
    plain = torch.func.functional_call(model, weights, (X,))
    plain = plain.logits if isinstance(model, Named) else plain
    assert torch.allclose(engine.predict(delta)(X), plain, atol=1e-5)


def test_derivatives_are_those_of_the_whole_network():
    model = two_layers().eval()
    whole = Engine(After(model.head).eval(), everything(model, "head"))  # the same head, not split
    whole.model.body.load_state_dict(model.body.state_dict())
    engine = Engine(model, everything(model, "head"))

    def loss(scale):
        return lambda predict: F.cross_entropy(scale * predict(X), X.argmax(1) % 3)

    (_, found), (_, expected) = jacobian(engine, loss(2.0)), jacobian(whole, loss(1.0))
    assert torch.allclose(found, expected, atol=1e-6)


def test_what_comes_before_the_module_is_run_a_few_times_in_a_repair():
    model = Base().eval()
    with torch.no_grad():
        order = model(X).argsort(1)
    model.runs = 0
    goal, keep = ErrorRate(X[:2], order[:2, 1]), KeepLabels(X[2:], order[2:, 2], tolerance=0.3)
    repair = solve_repair(Classifier(model), goal, [keep], weights=["head"])
    assert repair.report.verdict == "repaired"
    assert torch.equal(repair.model(X[:2]).argmax(1), order[:2, 1])
    assert not repair.model.head._forward_pre_hooks
    assert not model.head._forward_pre_hooks
