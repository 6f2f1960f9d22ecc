"""Linearized margins and rows: exact for the last layer, of second order elsewhere, and never a full Jacobian."""

import numpy as np
import pytest
import torch
from hypothesis import given, strategies as st
from sample_networks import CASES, chain
from torch import nn

from repairopt.errors import SpecificationError
from repairopt.network import Engine
from repairopt.specify import (
    Bound,
    ErrorRate,
    FixLabels,
    GroupGap,
    KeepLabels,
    KeepOutputs,
    OutputBounds,
    anchor,
    margins_at,
    required_margins,
)
from repairopt.surrogate import linearization as stage, linearize

EARLY, LAST = {"2.weight": torch.arange(48), "2.bias": torch.arange(6)}, {"4.weight": torch.arange(18)}


def constraints_for(engine, inputs, labels):
    found = [
        KeepLabels(inputs, labels, weight=2.0),
        FixLabels(inputs, labels),
        KeepOutputs(inputs[:5], 0.1),
        OutputBounds(inputs[3:9], [[1.0, 0.0, -1.0], [0.0, 2.0, 0.0]], [0.3, 1.0]),
        Bound(ErrorRate(inputs, labels), 0.2),
    ]
    return [anchor(c, engine.predict()) for c in found]


def setting(indices, model=None):
    engine = Engine(chain().double().eval() if model is None else model, indices)
    inputs, labels = torch.randn(12, 4, dtype=torch.float64), torch.arange(12) % 3
    return engine, constraints_for(engine, inputs, labels)


def every(lin):
    return {c: np.arange(len(m)) for c, m in enumerate(lin.margins)}


def test_margins_there_are_the_true_ones():
    engine, constraints = setting(EARLY)
    delta = np.random.default_rng(0).normal(size=engine.n)
    lin = linearize(engine, constraints, delta)
    for found, constraint in zip(lin.margins, constraints, strict=True):
        assert found == pytest.approx(constraint.margins(engine.predict(delta)).numpy())
        assert found.dtype == np.float64
    at = margins_at(engine.predict(delta), constraints)
    assert all(np.array_equal(a, b) for a, b in zip(at, lin.margins, strict=True))


def test_rows_are_exact_for_the_last_layer_at_any_distance():
    engine, constraints = setting(LAST)
    constraints = constraints[:4]  # a soft error rate is curved in the logits
    lin = linearize(engine, constraints)
    rows = lin.rows(every(lin))
    for size in (0.1, 10.0, 1000.0):
        step = size * np.random.default_rng(1).normal(size=engine.n)
        true = np.concatenate(margins_at(engine.predict(step), constraints))
        assert np.concatenate(lin.at(step)) == pytest.approx(true, abs=1e-9 * size)
        assert rows.matrix @ step + np.concatenate(lin.margins) == pytest.approx(true, abs=1e-9 * size)


@pytest.mark.parametrize("activation", [nn.Tanh(), nn.ReLU()], ids=["tanh", "relu"])
def test_the_error_is_of_second_order_for_earlier_layers(activation):
    """Slope 2 on a log-log plot, inside one linear region where the network has regions."""
    torch.manual_seed(2)
    model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 6), activation, nn.Linear(6, 3)).double()
    inputs, labels = torch.randn(20, 4, dtype=torch.float64), torch.arange(20) % 3
    # Weights of two successive layers: their product makes the second order also between kinks.
    engine = Engine(model, {"2.weight": torch.arange(48), "4.weight": torch.arange(18)})
    constraint = KeepLabels(inputs, labels)
    lin = linearize(engine, [constraint])
    way = np.random.default_rng(0).normal(size=engine.n)
    way /= np.linalg.norm(way)
    sizes = np.array([1e-2, 3e-3, 1e-3, 3e-4])
    hidden = model[:3](inputs)
    with torch.no_grad():
        model2 = model[2].weight + sizes[0] * torch.as_tensor(way[:48]).view(6, 8)
        moved = model[:2](inputs) @ model2.T + model[2].bias
    stays = ((hidden > 0) == (moved > 0)).all(1)  # samples that stay in their linear region
    assert int(stays.sum()) >= 10
    keep = stays.repeat_interleave(2).numpy()
    errors = []
    for size in sizes:
        true = margins_at(engine.predict(size * way), [constraint])[0]
        errors.append(np.abs(true - lin.at(size * way)[0])[keep].max())
    slope = np.polyfit(np.log(sizes), np.log(errors), 1)[0]
    assert slope == pytest.approx(2.0, abs=0.05)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_linearized_margins_equal_matrix_times_step(case):
    model, inputs = case.model(), case.inputs()
    parameters = dict(model.named_parameters(remove_duplicate=False))
    engine = Engine(model, {n: torch.arange(parameters[n].numel()) for n in case.early}, forward_fn=case.forward_fn)
    constraints = [anchor(c(inputs, torch.arange(7) % 3), engine.predict()) for c in (KeepLabels, FixLabels)]
    lin = linearize(engine, constraints, np.random.default_rng(0).normal(size=engine.n) / 5)
    rows = lin.rows(every(lin))
    step = np.random.default_rng(1).normal(size=engine.n)
    linear = rows.matrix @ step + np.concatenate(lin.margins)
    assert np.concatenate(lin.at(step)) == pytest.approx(linear)
    assert len(rows) == 7 * 2


def test_rows_say_what_is_missing_at_which_price_and_where_from():
    engine, constraints = setting(EARLY)
    lin = linearize(engine, constraints)
    picks = {0: np.array([1, 0]), 1: np.array([2]), 2: np.array([7]), 3: np.array([5]), 4: np.array([0])}
    rows = lin.rows(picks)
    assert len(rows) == 6
    missing = [lin.required[c][i] - lin.margins[c][i] for c, index in picks.items() for i in index]
    assert rows.lower == pytest.approx(missing)
    assert np.isinf(rows.upper).all()
    kept, fixed = lin.samples(0), lin.samples(1)
    assert kept + fixed == 12
    assert rows.price.tolist() == [2.0 / kept, 2.0 / kept, 0.1 / fixed, np.inf, np.inf, np.inf]
    sample = int(constraints[0].samples[0])
    label = int(constraints[0].labels[sample])
    first, second = (j for j in range(3) if j != label)
    assert str(rows.sources[0]) == f"'keep labels', sample {sample}: class {label} over class {second}"
    assert str(rows.sources[1]) == f"'keep labels', sample {sample}: class {label} over class {first}"
    assert str(rows.sources[3]) == "'keep outputs', sample 1: logit 1 not below its old value by 0.1"
    assert str(rows.sources[4]) == "'output bounds', sample 2: margin 1"
    assert str(rows.sources[5]) == "'error rate bounded'"


def test_no_change_at_all_satisfies_every_row_of_kept_labels():
    engine, constraints = setting(EARLY)
    lin = linearize(engine, constraints[:1])
    assert bool((lin.rows(every(lin)).lower <= 1e-12).all())


def test_the_bound_on_a_property_has_the_slope_of_its_soft_value():
    engine, constraints = setting(EARLY)
    bound = constraints[4]
    row = linearize(engine, [bound]).rows({0: np.array([0])})
    way = np.random.default_rng(0).normal(size=engine.n)
    soft = lambda t: float(bound.property.soft_value(engine.predict(t * way)))  # noqa: E731
    assert float(row.matrix[0] @ way) == pytest.approx(-(soft(1e-5) - soft(-1e-5)) / 2e-5, rel=1e-4)
    assert row.lower[0] == pytest.approx(float(bound.property.value(engine.predict())) - 0.2)  # the hard value itself


def test_required_margins_stay_those_of_the_original_when_they_are_given():
    engine, constraints = setting(EARLY)
    first = linearize(engine, constraints)
    delta = np.full(engine.n, 0.2)
    again = linearize(engine, constraints, delta, required=first.required)
    assert all(a is b for a, b in zip(again.required, first.required, strict=True))
    assert required_margins(object(), np.ones(3)).tolist() == [0, 0, 0]


def test_no_more_rows_are_built_than_were_picked(monkeypatch):
    built = []
    original = stage.sample_rows

    def counting(engine, inputs, samples, cotangents, delta=None):
        built.append(len(samples))
        return original(engine, inputs, samples, cotangents, delta)

    monkeypatch.setattr(stage, "sample_rows", counting)
    engine = Engine(chain().double().eval(), EARLY)
    inputs, labels = torch.randn(500, 4, dtype=torch.float64), torch.arange(500) % 3
    lin = linearize(engine, [anchor(KeepLabels(inputs, labels), engine.predict())])
    lin.at(np.ones(engine.n))
    assert built == []
    lin.rows({0: np.array([3, 30, 60])})
    assert built == [3]
    assert len(lin.norms(0, np.arange(40))) == 40
    assert max(built) <= 40


def test_norms_are_lengths_of_rows_in_scaled_coordinates():
    engine, constraints = setting(EARLY)
    lin = linearize(engine, constraints)
    index = np.array([4, 1, 2])
    rows = lin.rows({0: index}).matrix
    assert lin.norms(0, index) == pytest.approx(np.linalg.norm(rows * engine.scale.numpy(), axis=1))
    tiny = linearize(Engine(engine.model, EARLY, memory_limit=1), constraints)
    assert tiny.norms(0, index) == pytest.approx(lin.norms(0, index))
    assert lin.norms(0, index[:0]).shape == (0,)


@given(st.permutations(range(18)))
def test_permuting_the_weights_permutes_the_columns(order):
    torch.manual_seed(0)
    model, inputs, labels = chain().double().eval(), torch.randn(9, 4, dtype=torch.float64), torch.arange(9) % 3
    order = torch.tensor(order)
    plain, permuted = (
        linearize(Engine(model, {"4.weight": ix}), [KeepLabels(inputs, labels)]) for ix in (torch.arange(18), order)
    )
    picks = {0: np.arange(18)}
    assert np.allclose(permuted.rows(picks).matrix, plain.rows(picks).matrix[:, order.numpy()])
    step = np.random.default_rng(0).normal(size=18)
    assert np.allclose(permuted.at(step[order.numpy()])[0], plain.at(step)[0])


class Wrong:
    name = "wrong"

    def __init__(self, margins):
        self.found = margins

    def margins(self, predict):
        return self.found


class WrongSamples:
    name, inputs = "wrong", torch.randn(4, 4, dtype=torch.float64)

    def margins(self, predict):
        return predict(self.inputs)[:, 0]

    def margins_of(self, outputs, samples):
        return outputs[:, 0]


@pytest.mark.parametrize(
    ("constraint", "snippets"),
    [
        (Wrong(torch.zeros(32, 10)), ["'wrong' returned margins of shape (32, 10); expected (m,)", "or flatten"]),
        (Wrong(torch.tensor([0.0, float("nan")])), ["'wrong': margin 1 is NaN", "Look for NaN"]),
        (WrongSamples(), ["margins_of returned shape (4,) for 4 samples; expected (4, p)"]),
    ],
)
def test_malformed_margins_are_named(small_net, constraint, snippets):
    with pytest.raises(SpecificationError) as error:
        linearize(Engine(small_net, LAST), [constraint])
    for snippet in snippets:
        assert snippet in str(error.value)


def test_a_gap_can_be_bounded_too(small_net, small_inputs):
    engine = Engine(small_net, LAST)
    bound = Bound(GroupGap.given([small_inputs, small_inputs + 0.5], favorable=1), weight=3.0).anchor(engine.predict())
    rows = linearize(engine, [bound]).rows({0: np.array([0])})
    assert rows.lower.tolist() == [0.0]  # not worse than before
    assert rows.price.tolist() == [3.0]
    assert np.linalg.norm(rows.matrix) > 0
