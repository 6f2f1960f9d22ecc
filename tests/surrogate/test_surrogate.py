"""Acceptance checks 1 to 3 of the surrogate, the ladder of kinds, and the messages."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings, strategies as st
from torch import nn

from repairopt.errors import SpecificationError
from repairopt.network import Engine
from repairopt.program import LowRankHessian
from repairopt.surrogate import Surrogate, SurrogateSettings, fit_surrogate
from repairopt.surrogate.convexify import convex_matrix, sufficient_radius
from repairopt.surrogate.least_squares import fit_diagonal_low_rank, fit_samples, rank_correlation, unknowns
from repairopt.surrogate.surrogate_kinds import KINDS, choose_kind

SMOOTH = [kind for kind in KINDS if kind not in ("gauss_newton", "linear")]


def random_quadratic(n, seed, convex=False):
    rng = np.random.default_rng(seed)
    matrix = rng.normal(size=(n, n))
    matrix = matrix @ matrix.T if convex else matrix + matrix.T
    return matrix, rng.normal(size=n), float(rng.normal())


def at(points, model):
    matrix, gradient, constant = model
    return 0.5 * np.einsum("mi,ij,mj->m", points, matrix, points) + points @ gradient + constant


@dataclass(frozen=True, eq=False)
class SquaredError:
    """Mean squared output error: quadratic in the weights of the last layer."""

    inputs: torch.Tensor
    wanted: torch.Tensor
    name: str = "squared error"
    target: float = 0.0

    def value(self, predict):
        return (predict(self.inputs) - self.wanted).square().mean()

    def soft_value(self, predict):
        return self.value(predict)

    def residuals(self, predict):
        difference = predict(self.inputs) - self.wanted
        return difference.flatten() / difference.numel() ** 0.5


@dataclass(frozen=True, eq=False)
class Gap:
    """Difference of the rates of class 1 between two groups, by count and soft."""

    first: torch.Tensor
    second: torch.Tensor
    name: str = "gap"
    target: float = 0.0

    def value(self, predict):
        return self.signed_hard(predict).abs().sum()

    def signed_hard(self, predict):
        rates = [(predict(x).argmax(-1) == 1).double().mean() for x in (self.first, self.second)]
        return (rates[0] - rates[1])[None]

    def residuals(self, predict):
        rates = [torch.softmax(predict(x), -1)[:, 1].mean() for x in (self.first, self.second)]
        return (rates[0] - rates[1])[None]

    def soft_value(self, predict):
        return self.residuals(predict).abs().sum()


class Only:
    """A goal with only some of the methods of another."""

    def __init__(self, goal, *methods):
        self.name, self.target, self.value = goal.name, goal.target, goal.value
        for method in methods:
            setattr(self, method, getattr(goal, method))


class Sign(nn.Module):
    def forward(self, inputs):
        return torch.sign(inputs)


def last_layer(n_in=5, n_out=2, seed=0):
    """Network, engine over the n_in * n_out weights of its last layer, and a goal quadratic in them."""
    torch.manual_seed(seed)
    net = nn.Sequential(nn.Linear(3, n_in), nn.Tanh(), nn.Linear(n_in, n_out)).double()
    goal = SquaredError(torch.randn(40, 3, dtype=torch.float64), torch.randn(40, n_out, dtype=torch.float64))
    return Engine(net, {"2.weight": torch.arange(n_in * n_out)}), goal


def biased(activation=nn.ReLU, dtype=torch.float32):
    """Network whose decisions depend on the group column, and an engine over 12 weights of its middle layer."""
    torch.manual_seed(3)
    net = nn.Sequential(nn.Linear(4, 8), activation(), nn.Linear(8, 6), nn.Tanh(), nn.Linear(6, 2)).to(dtype)
    x = torch.randn(600, 4, dtype=dtype)
    with torch.no_grad():
        net[0].weight[:, 3] += 0.8
        net[2].weight *= 1.5
        net[4].bias -= net(x).mean(0)
    groups = [torch.cat([x[:, :3], torch.full((600, 1), v, dtype=dtype)], 1) for v in (-0.7, 0.7)]
    return Engine(net, {"2.weight": torch.arange(0, 48, 4)}), Gap(*groups)


# ------------------------------------------------------------------ check 1: the fit


def fit_quadratic(points, values, *, ridge=0.0, center_weight=1.0):
    return fit_samples(points, values, ridge=ridge, center_weight=center_weight)[:3]


@pytest.mark.parametrize("count", [28, 40, 90])
@pytest.mark.parametrize("center_weight", [1.0, 7.0, np.inf])
def test_recovers_a_known_quadratic(count, center_weight):
    model = random_quadratic(6, 0)
    points = np.random.default_rng(1).uniform(-1, 1, size=(count, 6))
    points[-1] = 0.0
    found = fit_quadratic(points, at(points, model), center_weight=center_weight)
    for got, expected in zip(found, model, strict=True):
        np.testing.assert_allclose(got, expected, atol=1e-8)
    residual = at(points, found) - at(points, model)
    row, column = np.triu_indices(6)
    normal = np.concatenate([residual @ (points[:, row] * points[:, column]), residual @ points, [residual.sum()]])
    assert np.abs(normal).max() < 1e-8


def test_normal_equations_hold_with_noise():
    rng = np.random.default_rng(2)
    points = rng.uniform(-1, 1, size=(60, 6))
    values = rng.normal(size=60)
    residual = at(points, fit_quadratic(points, values)) - values
    row, column = np.triu_indices(6)
    assert np.abs(residual @ (points[:, row] * points[:, column])).max() < 1e-8
    assert np.abs(residual @ points).max() < 1e-8
    assert abs(residual.sum()) < 1e-8


def test_cross_validation_is_exact_without_noise_and_helps_with_it():
    rng = np.random.default_rng(3)
    model = random_quadratic(6, 3)
    points = rng.uniform(-1, 1, size=(40, 6))
    np.testing.assert_allclose(fit_quadratic(points, at(points, model), ridge=None)[0], model[0], atol=1e-8)
    noisy = at(points, model) + 3.0 * rng.normal(size=40)
    error = {ridge: np.linalg.norm(fit_quadratic(points, noisy, ridge=ridge)[0] - model[0]) for ridge in (0.0, None)}
    assert error[None] < 0.7 * error[0.0]


def test_refuses_what_cannot_be_fitted():
    with pytest.raises(SpecificationError, match="no sample is at the origin"):
        fit_quadratic(np.ones((9, 1)), np.zeros(9), center_weight=np.inf)


def test_too_few_samples_refused_by_name_and_switched_by_auto():
    engine, goal = last_layer()
    goal = Only(goal)
    with pytest.raises(SpecificationError, match="'full': 60 samples for 66 unknowns .* samples=99.*kind='auto'"):
        fit_surrogate(engine, goal, SurrogateSettings(kind="full", samples=60))
    assert fit_surrogate(engine, goal, SurrogateSettings(samples=60)).kind == "diagonal_low_rank"
    assert fit_surrogate(engine, goal, SurrogateSettings(samples=20)).kind == "linear"
    assert fit_surrogate(engine, goal, SurrogateSettings(samples=99)).kind == "full"


# ------------------------------------------------------------------ check 2: convexity


def fitted(kind, seed=0):
    n, rng = 24, np.random.default_rng(seed)
    matrix, gradient, constant = random_quadratic(n, seed)
    scale = np.exp(rng.normal(size=n))
    if kind == "dense":
        hessian = matrix
    elif kind == "low rank":
        hessian = LowRankHessian(rng.normal(size=n), rng.normal(size=(n, 3)))
    else:
        hessian = None
    return Surrogate(gradient, hessian, constant, scale)


@pytest.mark.parametrize("kind", ["dense", "low rank", "linear"])
@pytest.mark.parametrize("how", ["project", "shift", "abs", "none"])
def test_convexified_keeps_value_and_gradient(kind, how):
    before = fitted(kind)
    after = before.convexified(how)
    zero = np.zeros(24)
    assert after.convexification == how
    assert abs(after.value(zero) - before.value(zero)) <= 1e-12
    step = 1e-6 * np.eye(24)
    slopes = [(model.values(step) - model.values(-step)) / 2e-6 for model in (before, after)]
    np.testing.assert_allclose(slopes[0], slopes[1], atol=1e-8)
    np.testing.assert_array_equal(after.gradient, before.gradient)
    if how == "none" or kind == "linear":
        assert after.hessian is before.hessian
        assert after.shift == 0.0
        return
    dense = after.hessian if kind == "dense" else after.hessian.dense()
    scaled = dense * np.outer(after.scale, after.scale)
    assert np.linalg.eigvalsh(scaled)[0] >= 0
    assert after.shift > 0
    if kind == "low rank":
        np.testing.assert_array_equal(after.hessian.factor, before.hessian.factor)


@given(st.integers(2, 24), st.integers(0, 10_000))
@settings(max_examples=30, deadline=None)
def test_projection_is_nearer_than_shift(n, seed):
    matrix = random_quadratic(n, seed)[0]
    lowest = np.linalg.eigvalsh(matrix)[0]
    made = {how: convex_matrix(matrix, how) for how in ("project", "shift", "abs")}
    for convex, _ in made.values():
        assert np.linalg.eigvalsh(convex)[0] >= 0
    error = {how: np.linalg.norm(convex - matrix) for how, (convex, _) in made.items()}
    assert error["project"] <= error["shift"] + 1e-9
    assert error["project"] <= error["abs"] + 1e-9
    size = np.abs(np.linalg.eigvalsh(matrix)).max()
    assert made["shift"][1] == pytest.approx(max(0.0, -lowest) + 1e-8 * max(1.0, size), rel=1e-9)


def test_tiny_negative_eigenvalue_is_still_repaired():
    matrix = np.diag([1.0, -1e-12])
    for how in ("project", "shift", "abs"):
        assert np.linalg.eigvalsh(convex_matrix(matrix, how)[0])[0] >= 0


def test_unknown_way_and_bad_sizes_refused():
    with pytest.raises(SpecificationError, match="how='flip'; expected one of project, shift, abs, none"):
        fitted("dense").convexified("flip")
    with pytest.raises(SpecificationError, match="expected \\(3, 3\\)"):
        Surrogate(np.zeros(3), np.zeros((2, 2)))


# ------------------------------------------------------------------ check 3: the box


def lowest_over_box(model, radius, seed=0):
    """Minimum over a box in scaled coordinates: samples, corners, and descent from the best of them."""
    rng = np.random.default_rng(seed)
    offsets = rng.uniform(-1, 1, size=(3000, model.n))
    offsets = radius * np.vstack([offsets, np.sign(offsets), -np.sign(model.gradient)])
    values = model.values(offsets * model.scale)
    dense = np.zeros((model.n, model.n)) if model.hessian is None else model.hessian
    dense = dense.dense() if isinstance(dense, LowRankHessian) else dense
    matrix, slope = dense * np.outer(model.scale, model.scale), model.gradient * model.scale
    u, size = offsets[int(np.argmin(values))], max(1e-12, np.abs(np.linalg.eigvalsh(matrix)).max())
    for _ in range(3000):
        u = np.clip(u - (matrix @ u + slope) / size, -radius, radius)
    return min(float(values.min()), model.value(u * model.scale))


@pytest.mark.parametrize("kind", ["dense", "low rank", "linear"])
@pytest.mark.parametrize("seed", range(4))
def test_positive_on_the_box(kind, seed):
    model = replace(fitted(kind, seed), constant=2.0)
    safe = model.positive_radius()
    assert 0 < safe < np.inf
    assert lowest_over_box(model, safe) >= -1e-12
    convex = model.convexified("project")
    assert lowest_over_box(convex, convex.positive_radius()) >= -1e-9


def test_box_of_special_models():
    model = fitted("linear")
    assert replace(model, constant=0.0).positive_radius() == 0.0
    expected = 2.0 / np.abs(model.gradient * model.scale).sum()
    assert replace(model, constant=2.0).positive_radius() == pytest.approx(expected)
    assert Surrogate(np.ones(2), np.eye(2), 0.5, kind="gauss_newton").positive_radius() == np.inf
    assert sufficient_radius(1.0, 2.0, 0.0) == 0.5
    assert sufficient_radius(1.0, 1.0, 4.0) == pytest.approx(0.5)


# ------------------------------------------------------------------ exactness


@given(st.integers(1, 4), st.integers(1, 3), st.integers(0, 1000), st.sampled_from(SMOOTH))
@settings(max_examples=25, deadline=None)
def test_quadratic_property_is_fitted_exactly(n_in, n_out, seed, kind):
    engine, goal = last_layer(n_in, n_out, seed)
    rank = SurrogateSettings(kind=kind, seed=seed, rank=2 * n_in * n_out)
    found = fit_surrogate(engine, goal, rank)
    steps = np.random.default_rng(seed).normal(size=(20, engine.n)) * found.scale
    truth = engine.values(goal.value, torch.as_tensor(steps)).numpy()
    tolerance = 1e-2 if kind == "diagonal_low_rank" else 1e-8
    np.testing.assert_allclose(found.values(steps), truth, rtol=tolerance, atol=tolerance)
    np.testing.assert_allclose([found.value(s) for s in steps], found.values(steps), rtol=1e-9)
    assert found.trusted
    assert found.fit_error.r2 > 0.99
    assert found.constant == pytest.approx(float(goal.value(engine.predict())), rel=1e-9)


def test_gauss_newton_is_exact_for_linear_residuals_and_models_the_value_itself():
    engine, goal = last_layer()
    found = fit_surrogate(engine, goal)
    steps = np.random.default_rng(0).normal(size=(20, engine.n))
    assert (found.kind, found.power) == ("gauss_newton", 1)
    np.testing.assert_allclose(found.values(steps), engine.values(goal.value, torch.as_tensor(steps)), rtol=1e-9)


@pytest.mark.parametrize("methods", [("residuals", "soft_value"), ("residuals",)])
def test_gauss_newton_equals_finite_differences(methods):
    engine, goal = biased(dtype=torch.float64)
    found = fit_surrogate(engine, Only(goal, *methods), SurrogateSettings(kind="gauss_newton"))
    steps = 1e-5 * np.eye(engine.n)
    values = [engine.values(lambda p: goal.residuals(p)[0], torch.as_tensor(s * steps)).numpy() for s in (1, -1)]
    slope = (values[0] - values[1]) / 2e-5
    start = float(goal.residuals(engine.predict())[0])
    assert found.power == 2
    np.testing.assert_allclose(found.hessian, 2 * np.outer(slope, slope), atol=1e-6)
    np.testing.assert_allclose(found.gradient, 2 * start * slope, atol=1e-6)
    assert found.constant == pytest.approx(start**2)


def test_gauss_newton_starts_at_the_value_by_count():
    engine, goal = biased()
    found = fit_surrogate(engine, goal)
    hard = float(goal.value(engine.predict()))
    assert (found.kind, found.power) == ("gauss_newton", 2)
    assert found.predicted(np.zeros(engine.n)) == pytest.approx(hard, rel=1e-6)
    assert found.positive_radius() == np.inf
    assert min(found.values(np.random.default_rng(0).normal(size=(500, engine.n)))) >= -1e-12


def test_large_gauss_newton_is_low_rank():
    torch.manual_seed(0)
    net = nn.Linear(300, 2).double()
    groups = torch.randn(2, 50, 300, dtype=torch.float64) + torch.tensor([0.0, 0.2], dtype=torch.float64)[:, None, None]
    engine, goal = Engine(net, {"weight": torch.arange(600)}), Gap(*groups)
    found = fit_surrogate(engine, goal, SurrogateSettings(kind="gauss_newton"))
    assert isinstance(found.hessian, LowRankHessian)
    assert found.hessian.factor.shape == (600, 1)
    assert found.convexified().hessian.diagonal.min() > 0
    step = np.random.default_rng(0).normal(size=600)
    assert found.value(step) == pytest.approx(found.values(step[None])[0])


def test_fits_at_a_given_change():
    engine, goal = last_layer()
    delta0 = np.random.default_rng(0).normal(size=engine.n)
    steps = np.random.default_rng(1).normal(size=(10, engine.n))
    truth = engine.values(goal.value, torch.as_tensor(delta0 + steps)).numpy()
    for kind in ("full", "hessian", "gauss_newton"):
        found = fit_surrogate(engine, goal, SurrogateSettings(kind=kind), delta0=delta0)
        np.testing.assert_allclose(found.values(steps), truth, rtol=1e-7)


@pytest.mark.parametrize("kind", ["full", "gradient_hessian", "hessian", "gauss_newton"])
def test_permuting_the_weights_permutes_the_fit(kind):
    engine, goal = last_layer(4, 1)
    order = torch.tensor([2, 0, 3, 1])
    net = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 1)).double()
    state = {name: value.clone() for name, value in engine.model.state_dict().items()}
    state.update({"0.weight": state["0.weight"][order], "0.bias": state["0.bias"][order]})
    net.load_state_dict({**state, "2.weight": state["2.weight"][:, order]})
    other = Engine(net, {"2.weight": torch.arange(4)})
    first, second = (fit_surrogate(e, goal, SurrogateSettings(kind=kind)) for e in (engine, other))
    np.testing.assert_allclose(second.hessian, first.hessian[np.ix_(order, order)], atol=1e-8)
    np.testing.assert_allclose(second.gradient, first.gradient[order], atol=1e-8)


def test_diagonal_and_low_rank_are_told_apart():
    rng = np.random.default_rng(0)
    diagonal, factor = rng.uniform(0.5, 4.0, size=200), rng.normal(size=(200, 4))
    probes = rng.choice([-0.1, 0.1], size=(200, 12))
    found = fit_diagonal_low_rank(probes, diagonal[:, None] * probes + factor @ (factor.T @ probes), 4)
    np.testing.assert_allclose(found[0], diagonal, atol=1e-3)
    np.testing.assert_allclose(found[1] @ found[1].T, factor @ factor.T, atol=1e-3)


@pytest.mark.parametrize("soft", [True, False])
def test_large_models_stay_matrix_free(soft):
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(40, 20), nn.Tanh(), nn.Linear(20, 1)).double()
    inputs = torch.randn(30, 40, dtype=torch.float64)
    goal = SquaredError(inputs, torch.randn(30, 1, dtype=torch.float64))
    engine = Engine(net, {"0.weight": torch.arange(800)})
    samples = None if soft else 601
    found = fit_surrogate(engine, Only(goal, "soft_value") if soft else Only(goal), SurrogateSettings(samples=samples))
    assert found.kind == ("diagonal_low_rank" if soft else "linear")
    assert found.hessian is None or isinstance(found.hessian, LowRankHessian)
    assert found.fit_error.rank_correlation > (0.95 if soft else 0.5)
    assert found.trusted


# ------------------------------------------------------------------ the ladder on a network


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("value", ["hard", "soft"])
def test_every_kind_follows_the_gap(kind, value):
    engine, goal = biased()
    found = fit_surrogate(engine, goal, SurrogateSettings(kind=kind, value=value))
    hard = float(goal.value(engine.predict()))
    assert hard > 0.05
    assert found.kind == kind
    assert found.predicted(np.zeros(engine.n)) == pytest.approx(hard, rel=1e-5)
    assert found.trusted
    assert found.fit_error.rank_correlation > (0.9 if value == "soft" else 0.5)
    assert found.fit_error.fresh >= 64
    assert found.fit_error.evaluations > found.fit_error.fresh
    convex = found.convexified()
    step = -0.1 * found.scale * np.sign(found.gradient)
    reached = float(goal.value(engine.predict(step)))
    assert convex.predicted(step) < hard
    assert reached < hard


def test_value_by_count_only():
    engine, goal = biased()
    found = fit_surrogate(engine, Only(goal))
    assert found.kind == "full"
    assert found.trusted
    assert found.fit_error.samples >= 1.5 * unknowns(engine.n)
    assert found.fit_error.ridge > 0
    assert found.constant == pytest.approx(float(goal.value(engine.predict())), rel=1e-6)
    loose = fit_surrogate(engine, Only(goal), SurrogateSettings(center_weight=1.0))
    assert loose.constant == pytest.approx(found.constant, abs=0.05)
    assert loose.constant != found.constant


def test_step_activations_fall_back_to_samples():
    engine, goal = biased(Sign)
    engine = Engine(engine.model, {"0.weight": torch.arange(0, 32, 4)})  # before the step: no derivative
    found = fit_surrogate(engine, goal)
    assert found.kind == "full"
    assert found.fit_error.samples > 50


def test_flat_counts_grow_the_radius():
    engine, goal = biased()
    found = fit_surrogate(engine, Only(goal), SurrogateSettings(radius=2e-3))
    assert found.fit_error.radius > 2e-3


def test_constant_property_is_not_trusted():
    engine, goal = biased()

    @dataclass
    class Constant:
        name: str = "constant"
        target: float = 0.0

        def value(self, predict):
            return predict(goal.first).sum() * 0 + 1.0

    found = fit_surrogate(engine, Constant())
    assert not found.trusted
    assert found.fit_error.rank_correlation == 0.0
    assert fit_surrogate(engine, Constant(), SurrogateSettings(validation=0)).fit_error is None


def test_same_seed_same_surrogate():
    engine, goal = biased()
    fits = [fit_surrogate(engine, Only(goal), SurrogateSettings(seed=seed)) for seed in (5, 5, 6)]
    np.testing.assert_array_equal(fits[0].hessian, fits[1].hessian)
    assert fits[0].fit_error == fits[1].fit_error
    assert np.any(fits[0].hessian != fits[2].hessian)


def test_auto_takes_the_richest_kind():
    _, goal = biased()
    soft, hard = Only(goal, "soft_value"), Only(goal)
    given = SurrogateSettings()
    assert choose_kind(goal, 10_000, given) == "gauss_newton"
    assert [choose_kind(soft, n, given) for n in (24, 300, 301)] == ["hessian", "hessian", "diagonal_low_rank"]
    assert choose_kind(soft, 301, SurrogateSettings(samples=80_000)) == "gradient_hessian"
    kinds = [choose_kind(hard, n, given) for n in (24, 71, 72, 1500, 1700)]
    assert kinds == ["full", "full", "diagonal_low_rank", "diagonal_low_rank", "linear"]


# ------------------------------------------------------------------ messages and ranks


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("kind", "cubic", "expected one of auto, full"),
        ("samples", 2, "at least 3"),
        ("samples", 10.0, "whole number"),
        ("radius", 0.0, "positive"),
        ("seed", -1, "at least 0"),
        ("value", "mean", "'hard' or 'soft'"),
        ("ridge", -1.0, ">= 0"),
        ("validation", 1.5, "between 0 and 1"),
        ("min_rank_correlation", 2.0, "between -1 and 1"),
        ("center_weight", 0.0, "positive"),
        ("rank", -1, "at least 0"),
    ],
)
def test_settings_name_the_field(field, value, message):
    with pytest.raises(SpecificationError, match=f"{field}=.*{message}"):
        SurrogateSettings(**{field: value})


def test_missing_methods_are_named():
    engine, goal = biased()
    for kind in ("hessian", "gradient_hessian"):
        with pytest.raises(SpecificationError, match=r"goal 'gap'.*soft_value\(predict\).*kind='auto'"):
            fit_surrogate(engine, Only(goal), SurrogateSettings(kind=kind))
    with pytest.raises(SpecificationError, match=r"residuals\(predict\)"):
        fit_surrogate(engine, Only(goal), SurrogateSettings(kind="gauss_newton"))
    with pytest.raises(SpecificationError, match=r"value='soft' needs soft_value"):
        fit_surrogate(engine, Only(goal), SurrogateSettings(value="soft"))


def test_nan_and_wrong_sizes_are_named():
    engine, goal = biased()
    broken = Only(goal)
    broken.value = lambda predict: predict(goal.first).sum() * float("nan")
    with pytest.raises(SpecificationError, match="goal 'gap': value is NaN or infinite in 1 of 1"):
        fit_surrogate(engine, broken)
    with pytest.raises(SpecificationError, match="delta0 has shape \\(3,\\) for 12 weights"):
        fit_surrogate(engine, goal, delta0=np.zeros(3))
    wrong = Only(goal, "residuals")
    wrong.signed_hard = lambda predict: torch.zeros(2)
    with pytest.raises(SpecificationError, match="signed_hard returned 2 numbers and residuals 1"):
        fit_surrogate(engine, wrong)


def test_rank_correlation_shares_ties():
    from scipy.stats import spearmanr

    rng = np.random.default_rng(0)
    a, b = rng.integers(0, 5, size=40).astype(float), rng.normal(size=40)
    assert rank_correlation(a, b) == pytest.approx(spearmanr(a, b).statistic)
    assert rank_correlation(a, np.exp(a)) == pytest.approx(1.0)
    assert rank_correlation(a, np.ones(40)) == 0.0
