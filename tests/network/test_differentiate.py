"""Derivatives without a matrix, against finite differences, torch.func and closed forms."""

from importlib import import_module

import pytest
import torch
import torch.nn.functional as F
from sample_networks import CASES
from torch import nn

from repairopt.errors import ProgramError, SpecificationError
from repairopt.network import Engine, differentiate, hessian, jacobian, pull_back, sample_rows, tangent

EVERY = pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
STEP = 1e-6
differentiate_module = import_module("repairopt.network.differentiate")  # the door has a function of this name


def setting(case, names=None, **options):
    """Engine, inputs, a point and a direction."""
    model = case.model()
    parameters = dict(model.named_parameters(remove_duplicate=False))
    indices = {name: torch.arange(0, parameters[name].numel(), 2) for name in names or case.early}
    engine = Engine(model, indices, forward_fn=case.forward_fn, **options)
    return engine, case.inputs(), torch.randn(2, engine.n, dtype=torch.float64) / 4


def slope(function, at, way):
    """Central difference of a tensor-valued function along a direction."""
    return (function(at + STEP * way) - function(at - STEP * way)) / (2 * STEP)


@EVERY
@pytest.mark.parametrize("last", [False, True], ids=["early", "last"])
def test_tangent_is_the_derivative_along_a_direction(case, last):
    engine, inputs, (at, way) = setting(case, (case.last,) if last else None)
    expected = slope(lambda d: engine.predict(d)(inputs), at, way)
    torch.testing.assert_close(tangent(engine, inputs, at, way), expected, rtol=1e-6, atol=1e-8)
    pick = torch.tensor([5, 1, 5])
    torch.testing.assert_close(tangent(engine, inputs, at, way, pick), expected[pick], rtol=1e-6, atol=1e-8)


@EVERY
def test_forward_and_double_reverse_products_agree(case):
    engine, inputs, (at, way) = setting(case)
    part = engine.frontier(inputs)
    forward = differentiate._forward_product(engine, part, at, way)
    torch.testing.assert_close(forward, differentiate._double_product(engine, part, at, way))
    torch.testing.assert_close(forward, slope(lambda d: engine.predict(d)(inputs), at, way), rtol=1e-6, atol=1e-8)


@EVERY
@pytest.mark.parametrize("last", [False, True], ids=["early", "last"])
def test_pull_back_and_rows_are_transposes_of_the_tangent(case, last):
    engine, inputs, (at, way) = setting(case, (case.last,) if last else None)
    cotangent = torch.randn(7, 3, dtype=torch.float64)
    moved = tangent(engine, inputs, at, way)
    pulled = pull_back(engine, inputs, cotangent, at)
    torch.testing.assert_close(pulled @ way, (cotangent * moved).sum())
    rows = sample_rows(engine, inputs, torch.arange(7), cotangent, at)
    torch.testing.assert_close(rows @ way, (cotangent * moved).sum(1))
    torch.testing.assert_close(rows.sum(0), pulled)
    repeated = sample_rows(engine, inputs, torch.tensor([6, 0, 6]), cotangent[[6, 0, 1]], at)
    torch.testing.assert_close(repeated[:2], rows[[6, 0]])
    assert sample_rows(engine, inputs, torch.arange(0), cotangent[:0], at).shape == (0, engine.n)


@EVERY
def test_tiny_memory_limits_give_the_same_derivatives(case):
    engine, inputs, (at, way) = setting(case)
    tiny, _, _ = setting(case, memory_limit=1)
    cotangent = torch.randn(7, 3, dtype=torch.float64)
    for function in (
        lambda e: tangent(e, inputs, at, way),
        lambda e: pull_back(e, inputs, cotangent, at),
        lambda e: sample_rows(e, inputs, torch.arange(7), cotangent, at),
    ):
        torch.testing.assert_close(function(tiny), function(engine))


def scores(predict, inputs):
    chance = torch.softmax(predict(inputs), -1)
    return torch.stack([chance[:4, 0].mean() - chance[4:, 0].mean(), chance.square().sum(), predict(inputs)[2, 1]])


@EVERY
def test_jacobian_against_finite_differences_and_autograd(case):
    engine, inputs, (at, way) = setting(case)
    value, rows = jacobian(engine, lambda predict: scores(predict, inputs), at)
    torch.testing.assert_close(value, scores(engine.predict(at), inputs))
    torch.testing.assert_close(
        rows @ way, slope(lambda d: scores(engine.predict(d), inputs), at, way), rtol=1e-6, atol=1e-8
    )

    def direct(delta):
        return scores(lambda x: engine.outputs(x, delta), inputs)

    if case.name != "heaviside":  # autograd refuses it; here a step has derivative 0
        torch.testing.assert_close(rows, torch.autograd.functional.jacobian(direct, at))


@EVERY
@pytest.mark.parametrize("last", [False, True], ids=["early", "last"])
def test_hessian_against_autograd_and_finite_differences(case, last):
    engine, inputs, (at, way) = setting(case, (case.last,) if last else None)

    def loss(predict):
        return F.cross_entropy(predict(inputs), torch.arange(7) % 3) + predict(inputs[:2]).square().mean()

    found = hessian(engine, loss, at)
    torch.testing.assert_close(found, found.T)
    expected = slope(lambda d: jacobian(engine, loss, d)[1][0], at, way)
    torch.testing.assert_close(found @ way, expected, rtol=1e-5, atol=1e-7)
    if last or case.name not in ("recurrent", "heaviside"):  # no double derivative, and none at all
        exact = torch.autograd.functional.hessian(lambda d: loss(lambda x: engine.outputs(x, d)), at)
        torch.testing.assert_close(found, exact)


def test_derivatives_equal_those_of_torch_func(small_net, small_inputs):
    engine = Engine(small_net, {"2.weight": torch.arange(48), "4.bias": torch.tensor([0, 2])})
    at, way = torch.randn(2, 50, dtype=torch.float64) / 3

    def outputs(delta):
        return torch.func.functional_call(small_net, engine.weights(delta), (small_inputs,))

    full = torch.func.jacrev(outputs)(at)  # (30, 3, 50)
    torch.testing.assert_close(tangent(engine, small_inputs, at, way), full @ way)
    unit = torch.eye(3, dtype=torch.float64).repeat(30, 1)
    rows = sample_rows(engine, small_inputs, torch.arange(30).repeat_interleave(3), unit, at)
    torch.testing.assert_close(rows, full.reshape(90, 50))


def test_the_last_layer_is_exact_for_any_change(small_net, small_inputs):
    engine = Engine(small_net, {"4.weight": torch.arange(1, 18, 2), "4.bias": torch.tensor([2, 0])})
    engine.predict()(small_inputs)
    assert engine.exact
    far = 100 * torch.randn(engine.n, dtype=torch.float64)
    change = engine.predict(far)(small_inputs) - engine.predict()(small_inputs)
    torch.testing.assert_close(tangent(engine, small_inputs, None, far), change)
    cotangent = torch.randn(30, 3, dtype=torch.float64)
    for at in (None, far):
        rows = sample_rows(engine, small_inputs, torch.arange(30), cotangent, at)
        torch.testing.assert_close(rows @ far, (change * cotangent).sum(1))


def test_float32_derivatives_come_in_the_types_promised(small_inputs):
    engine = Engine(CASES[0].model(torch.float32), {"2.weight": torch.arange(48)})
    inputs = small_inputs.float()
    assert tangent(engine, inputs, None, torch.ones(48)).dtype == torch.float32
    assert sample_rows(engine, inputs, torch.arange(2), torch.ones(2, 3)).dtype == torch.float32
    assert pull_back(engine, inputs, torch.ones(30, 3)).dtype == torch.float64
    assert jacobian(engine, lambda predict: predict(inputs).mean())[1].dtype == torch.float64
    assert not tangent(engine, inputs, None, torch.ones(48)).requires_grad


def test_a_count_has_no_derivative_and_the_message_says_what_to_use(small_net, small_inputs):
    engine = Engine(small_net, {"2.weight": torch.arange(48)})

    def share_of_zero(predict):
        return (predict(small_inputs).argmax(-1) == 0).double().mean()

    for derivative in (jacobian, hessian):
        with pytest.raises(SpecificationError, match=r"share_of_zero: its value does not depend .*soft_value"):
            derivative(engine, share_of_zero)


def test_an_exact_hessian_that_would_not_fit_is_refused_with_its_size(small_net):
    inputs = torch.randn(3000, 4, dtype=torch.float64)
    engine = Engine(small_net, {"2.weight": torch.arange(48)}, memory_limit=2**20)
    with pytest.raises(
        ProgramError, match=r"exact Hessian over 3,000 samples and 48 weights needs 0\.0 GiB.*memory_limit"
    ):
        hessian(engine, lambda predict: predict(inputs).square().mean())


def test_piecewise_linear_outputs_have_no_curvature_of_their_own(small_inputs):
    model = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 2)).double()
    engine = Engine(model, {"0.weight": torch.arange(24)})
    assert not hessian(engine, lambda predict: predict(small_inputs).sum() * 1.0).any()


def test_second_derivatives_end_at_a_deadline(monkeypatch):
    """The deadline passes after the first few of 40 columns."""
    from repairopt.network import Stop, limited

    model = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 2)).double()
    engine, inputs = Engine(model, {"0.weight": torch.arange(32), "0.bias": torch.arange(8)}), torch.randn(20, 4)
    columns, now = [], [0.0]

    def counted(*args, **options):
        columns.append(None)
        now[0] += 1.0
        return derivative(*args, **options)

    derivative = differentiate_module._derivative
    monkeypatch.setattr(differentiate_module, "_derivative", counted)
    monkeypatch.setattr("time.perf_counter", lambda: now[0])
    with pytest.raises(Stop), limited(10.0):
        hessian(engine, lambda predict: predict(inputs.double()).square().mean())
    assert 10 <= len(columns) < 15
