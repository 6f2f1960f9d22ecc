"""apply(): the change written into a copy, exactly there and nowhere else."""

import numpy as np
import pytest
import torch
from sample_networks import CASES, Tied, chain
from torch import nn

from repairopt.errors import ModelError
from repairopt.localize import Location, apply, localize
from repairopt.network import Engine


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_the_copy_computes_what_the_engine_computed(case, fingerprint):
    model, inputs = case.model(), case.inputs()
    before = fingerprint(model)
    for names in (case.early, (case.last,)):
        location = localize(model, list(names), inputs=inputs, forward_fn=case.forward_fn)
        delta = np.random.default_rng(0).normal(size=location.size)
        changed, _ = apply(model, location, delta)
        engine = Engine(model, location.indices, forward_fn=case.forward_fn)
        torch.testing.assert_close(case.logits(changed, inputs).detach(), engine.predict(delta)(inputs))
        assert fingerprint(model) == before


def test_only_the_chosen_positions_change():
    model = chain().double()
    location = Location({"2.weight": torch.tensor([3, 40]), "4.bias": torch.tensor([1])})
    changed, delta = apply(model, location, np.array([0.5, -1.0, 2.0]))
    for (name, old), (_, new) in zip(model.named_parameters(), changed.named_parameters(), strict=True):
        difference = (new - old).detach().flatten()
        at = location.indices.get(name, torch.zeros(0, dtype=torch.int64))
        assert set(difference.nonzero().flatten().tolist()) == set(at.tolist())
        if name in delta:
            assert delta[name].shape == old.shape
            assert torch.equal(delta[name].flatten(), difference)
    assert set(delta) == {"2.weight", "4.bias"}


def test_no_change_gives_an_equal_copy_that_shares_nothing():
    model = chain()
    changed, delta = apply(model, Location({"2.weight": torch.arange(48)}), np.zeros(48))
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), changed.parameters(), strict=True))
    pointers = {p.data_ptr() for p in model.parameters()}
    assert not any(p.data_ptr() in pointers for p in changed.parameters())
    assert not delta["2.weight"].any()


def test_what_is_returned_is_the_change_after_rounding_to_the_models_type():
    model = nn.Linear(2, 1)
    with torch.no_grad():
        model.weight.fill_(1e6)
    changed, delta = apply(model, Location({"weight": torch.tensor([0, 1])}), np.array([1e-3, 1.0]))
    assert delta["weight"].tolist() == [[0.0, 1.0]]  # 1e-3 is below the resolution of float32 at 1e6
    assert torch.equal(changed.weight, model.weight + delta["weight"])


def test_mode_and_gradient_flags_stay():
    model = chain().train()
    model[0].requires_grad_(False)
    changed, _ = apply(model, Location({"0.weight": torch.tensor([0])}), np.array([1.0]))
    assert changed.training
    assert [p.requires_grad for p in changed.parameters()] == [False, False, True, True, True, True]
    assert not apply(model.eval(), Location({"0.weight": torch.tensor([0])}), np.array([1.0]))[0].training


def test_tied_parameters_stay_tied():
    changed, _ = apply(Tied(), Location({"first.weight": torch.arange(16)}), np.ones(16))
    assert changed.second.weight is changed.first.weight


def test_gradients_and_hooks_of_the_model_do_not_matter():
    model = chain()
    model(torch.randn(3, 4)).sum().backward()
    changed, _ = apply(model, Location({"4.bias": torch.arange(3)}), np.ones(3))
    assert torch.equal(changed[4].bias, model[4].bias + 1)


@pytest.mark.parametrize("delta", [np.zeros(3), np.zeros((1, 2)), np.array([1.0, np.nan]), np.array([np.inf, 0.0])])
def test_a_change_of_another_size_or_with_nan_is_refused(delta):
    with pytest.raises(ModelError, match=r"delta has shape .*; expected \(2,\) finite numbers"):
        apply(chain(), Location({"4.bias": torch.tensor([0, 2])}), delta)
