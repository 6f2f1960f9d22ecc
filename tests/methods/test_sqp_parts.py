"""The parts of SQP: lines of the limits, the filter, objectives and their models, the program of a step."""

import math

import numpy as np
import pytest
import torch
from scipy.optimize import linprog
from training_subjects import texts

from repairopt import SQP, Bound, ErrorRate, KeepLabels, SpecificationError, Verdict, solve_repair
from repairopt.methods.sqp.filter import Filter, Pair
from repairopt.methods.sqp.limits import Limit, Lines, collect_limits, median_lead
from repairopt.methods.sqp.objectives import ObjectiveModel, SmallestChange, SoftmaxLoss
from repairopt.methods.sqp.step import StepProgram, limit_prices
from repairopt.network import Engine
from repairopt.program import Program, Source, solve

RANDOM = np.random.default_rng(5)
COMBINES = ("max", "max_abs", "mean_abs")
SIZES = {"max": np.max, "max_abs": lambda v: np.abs(v).max(), "mean_abs": lambda v: np.abs(v).mean()}


# ---------------------------------------------------------------- lines


@pytest.mark.parametrize("combine", COMBINES)
def test_shifted_lines_are_exact_at_the_step_and_keep_their_slopes(combine):
    lines = Lines(RANDOM.normal(size=4), RANDOM.normal(size=(4, 6)), combine)
    step, true = RANDOM.normal(size=6), RANDOM.normal(size=4)
    assert lines.at(np.zeros(6)) == pytest.approx(SIZES[combine](lines.values))
    assert lines.at(step) == pytest.approx(SIZES[combine](lines.values + lines.slopes @ step))
    moved = lines.shifted(step, true)
    assert moved.at(step) == pytest.approx(SIZES[combine](true), abs=1e-12)
    further = RANDOM.normal(size=6)
    assert moved.at(step + further) == pytest.approx(SIZES[combine](true + lines.slopes @ further), abs=1e-12)


def test_limits_take_a_buffer_off_and_accept_half_of_it_at_most():
    small, large = Limit("a", None, 0.1, buffer=0.002), Limit("b", None, 0.1, buffer=0.05)
    assert (small.aim, small.accepted) == pytest.approx((0.098, 0.099))
    assert (large.aim, large.accepted) == pytest.approx((0.05, 0.054))


def test_buffers_go_to_the_limits_of_their_names(small_inputs):
    labels = torch.zeros(30, dtype=torch.int64)
    goal = ErrorRate(small_inputs, labels, target=0.2, name="goal")
    bound = Bound(ErrorRate(small_inputs, labels), limit=0.3, buffer=0.01, name="bound")
    found = collect_limits(goal, [bound], {"": 0.02, "goal": 0.05})
    assert [limit.name for limit in found] == ["goal", "bound"]
    assert [limit.buffer for limit in found] == pytest.approx([0.05, 0.03]), "a bound's own buffer is added"
    with pytest.raises(SpecificationError, match=r"no bound called 'gaol'; expected names among 'goal', 'bound'"):
        collect_limits(goal, [bound], {"gaol": 0.05})


def test_a_margin_counts_points_that_lead_by_less_as_wrong_and_leaves_the_property_alone(small_net, small_inputs):
    outputs = small_net(small_inputs).detach()
    labels = outputs.argmax(1)
    labels[:3] = (labels[:3] + 1) % 3
    own = outputs.gather(1, labels[:, None])[:, 0]
    leads = own - outputs.scatter(1, labels[:, None], -torch.inf).amax(1)
    prop = ErrorRate(small_inputs, labels, target=0.2)
    engine = Engine(small_net)
    sure = leads[leads > 0].median()
    assert median_lead(engine, Limit("a", prop, 0.2)) == pytest.approx(float(sure))
    for margin in (0.0, 0.1, float(sure) + 1e-4):
        limit = Limit("a", prop, 0.2, margin=margin)
        assert limit.value(small_net) == pytest.approx(float((leads < margin).double().mean()))
        lowered = outputs - margin * torch.nn.functional.one_hot(labels, outputs.shape[1])
        chance = torch.softmax(lowered, 1).gather(1, labels[:, None]).mean()
        assert limit.soft(small_net).item() == pytest.approx(1 - float(chance), rel=1e-5)
    assert float(prop.value(small_net)) == pytest.approx(float((leads < 0).double().mean()))
    with pytest.raises(SpecificationError, match=r"no bound called 'gaol'"):
        collect_limits(prop, [], {"gaol": 0.05})
    assert collect_limits(prop, [], {}, {"error rate": 0.3})[0].margin == 0.3


# ---------------------------------------------------------------- filter


def judged(now, trial, predicted, *, stopped=False, before=()):
    filter_ = Filter([Pair(*pair) for pair in before])
    return filter_.acceptable(Pair(*now), Pair(*trial), Pair(*predicted), stopped=stopped)


def test_where_bounds_are_met_they_stay_met_and_the_objective_falls_by_a_share_of_what_was_promised():
    assert judged((0, 1.0), (0, 0.9), (0, 0.5))
    assert not judged((0, 1.0), (0, 0.96), (0, 0.5)), "less than a tenth of the predicted fall"
    assert not judged((0, 1.0), (1e-3, 0.2), (0, 0.5)), "a bound is missed now"
    assert not judged((0, 1.0), (1e-3, 0.2), (0, 0.5), stopped=True)
    assert not judged((0, 1.0), (0, 1.0), (0, 1.2)), "no fall"


def test_where_bounds_are_missed_both_together_fall():
    assert judged((0.1, 1.0), (0.05, 1.2), (0.0, 1.2)), "0.5 less missed, weighted, for 0.2"
    assert not judged((0.1, 1.0), (0.099, 1.2), (0.0, 1.0))
    assert not judged((0.1, 1.0), (0.1, 0.99), (0.0, 1.0)), "a tenth of the predicted fall is more"
    assert judged((0.1, 1.0), (0.12, 0.2), (0.1, 0.2)), "more missed, for a much better objective"


def test_once_stopped_the_filter_decides_but_takes_no_pair_that_an_earlier_one_dominates():
    dear = (0.05, 9.0)
    assert not judged((0.1, 1.0), dear, (0.0, 1.0))
    assert judged((0.1, 1.0), dear, (0.0, 1.0), stopped=True)
    assert not judged((0.1, 1.0), (0.095, 0.99), (0.0, 0.0), stopped=True), "hardly less missed"
    assert not judged((0.1, 1.0), dear, (0.0, 1.0), stopped=True, before=[(0.04, 2.0)])
    assert not judged((0.1, 1.0), (float("nan"), 0.0), (0.0, 0.0), stopped=True)
    assert not judged((float("inf"), 1.0), (float("inf"), 0.0), (0.0, 0.0), stopped=True)


def test_the_filter_forgets_what_is_dominated_and_points_that_met_the_bounds():
    filter_ = Filter()
    for pair in [Pair(0.5, 1.0), Pair(0.2, 3.0), Pair(0.0, 9.0), Pair(0.1, 0.5)]:
        filter_.left(pair)
    assert filter_.entries == [Pair(0.1, 0.5)]
    assert filter_.accepts(Pair(0.09, 9.0))
    assert filter_.accepts(Pair(0.5, 0.4))
    assert not filter_.accepts(Pair(0.095, 0.5))
    assert Pair(0.0, 9.0) < Pair(0.1, 0.0), "what is missed comes first"


# ---------------------------------------------------------------- objectives

INDICES = {"2.weight": torch.arange(5, 30), "4.bias": torch.arange(3)}
LAST = {"4.weight": torch.arange(18), "4.bias": torch.arange(3)}


def softmax_loss(model, inputs, share, indices=INDICES):
    engine = Engine(model, indices)
    labels = (inputs[:, 0] > 0).long() + (inputs[:, 1] > 1).long()
    data = [(inputs[:20], labels[:20]), (inputs[20:], labels[20:])]
    return SoftmaxLoss(engine, data, share, ridge=0.1), labels


@pytest.mark.parametrize("share", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("indices", [INDICES, LAST], ids=["several layers", "last layer"])
def test_the_gradient_of_the_loss_is_that_of_finite_differences(small_net, small_inputs, share, indices):
    loss, _ = softmax_loss(small_net, small_inputs, share, indices)
    engine, delta = loss.engine, 0.05 * RANDOM.normal(size=28 if indices is INDICES else 21)

    def value(point):  # the error rate has no slope
        return float(loss.soft(engine.predict(point))) + loss.change(point)[0]

    step = 1e-6
    slope = [(value(delta + step * e) - value(delta - step * e)) / (2 * step) for e in np.eye(engine.n)]
    model = loss.model(delta)
    assert np.allclose(model.gradient, slope, atol=1e-8)
    assert model.constant == loss.value(delta) == model.at(np.zeros(engine.n))
    ridge = loss.change(delta)
    eyes = np.eye(engine.n) * step
    assert np.allclose(
        ridge[1], [(loss.change(delta + e)[0] - loss.change(delta - e)[0]) / 2 / step for e in eyes], atol=1e-8
    )


def test_the_value_counts_errors_and_measures_the_distance_from_the_original(small_net, small_inputs):
    loss, labels = softmax_loss(small_net, small_inputs, 0.25)
    delta = 0.3 * RANDOM.normal(size=loss.engine.n)
    outputs, before = loss.engine.predict(delta)(small_inputs), small_net(small_inputs).detach()
    entropy = float(torch.nn.functional.cross_entropy(outputs, labels))
    errors = float((outputs.argmax(1) != labels).double().mean())
    logs = before.log_softmax(1)
    distance = float((logs.exp() * (logs - outputs.log_softmax(1))).sum(1).mean())
    size = 0.5 * 0.1 * np.mean((delta / loss.scale) ** 2)
    assert loss.value(delta) == pytest.approx(0.75 * (entropy + errors) / 2 + 0.25 * distance + size)


@pytest.mark.parametrize("share", [0.0, 1.0])
def test_the_curvature_is_gauss_newtons(small_net, small_inputs, share):
    """For the last layer, linear in the weights, it is the exact Hessian of the cross-entropy."""
    loss, _ = softmax_loss(small_net, small_inputs, share, LAST)
    delta = torch.tensor(0.1 * RANDOM.normal(size=21))
    features = torch.hstack([small_net[:4](small_inputs), torch.ones(30, 1)]).detach()

    def entropy(flat):
        weight = torch.hstack([small_net[4].weight, small_net[4].bias[:, None]]).detach()
        weight = weight + torch.hstack([flat[:18].reshape(3, 6), flat[18:, None]])
        return -(features @ weight.T).log_softmax(1)[:, 0].mean()  # the curvature is the same for every label

    exact = torch.autograd.functional.hessian(entropy, delta).numpy()
    ridge = np.diag(0.1 / 21 / loss.scale**2)
    factor = 1.0 if share else 0.5
    found = loss.model(delta.numpy()).hessian
    assert np.allclose(found, factor * exact + ridge, atol=1e-9)
    assert np.linalg.eigvalsh(found).min() > 0


@pytest.mark.parametrize("norm", ["l2", "l1", "linf"])
def test_sizes_of_the_change_and_their_slopes(small_net, norm):
    engine = Engine(small_net, INDICES)
    size, scale = SmallestChange(engine, norm), engine.scale.numpy()
    delta = RANDOM.normal(size=engine.n)
    known = {
        "l2": 0.5 * np.mean((delta / scale) ** 2),
        "l1": np.mean(np.abs(delta / scale)),
        "linf": np.abs(delta / scale).max(),
    }
    value, slope = size.change(delta)
    assert value == size.value(delta) == pytest.approx(known[norm])
    eyes = 1e-6 * np.eye(engine.n)
    assert np.allclose(slope, [(size.value(delta + e) - size.value(delta - e)) / 2e-6 for e in eyes], atol=1e-7)
    step = RANDOM.normal(size=engine.n)
    if norm == "l2":
        assert size.model(delta).at(step) == pytest.approx(size.value(delta + step)), "the model is exact"
    else:
        assert size.model(delta).norm == norm


# ---------------------------------------------------------------- the program of a step


@pytest.mark.parametrize("combine", COMBINES)
@pytest.mark.parametrize("norm", ["l1", "linf"])
def test_the_program_of_a_step_states_norm_and_limit_exactly(combine, norm):
    """The least norm of the whole change under a limit, against a program of scipy's over other variables."""
    n, p, aim = 5, 3, 0.4
    delta, scale = 0.2 * RANDOM.normal(size=n), 0.5 + RANDOM.random(n)
    lines = Lines(1.0 + RANDOM.random(p), RANDOM.normal(size=(p, n)), combine)
    box = (-9.0 * np.ones(n), 9.0 * np.ones(n))
    parts = StepProgram(ObjectiveModel(np.zeros(n), None, 0.0, norm), scale, delta, 0.0, box)
    slack = parts.add_limit("limit", lines, aim, 1e3)
    program: Program = parts.program()
    assert program.hessian is None
    found = solve(program, "highs")
    step = found.delta[:n]
    size = np.abs((delta + step) / scale)
    assert parts.slack(slack, found.delta) == pytest.approx(0.0, abs=1e-9)
    assert lines.at(step) <= aim + 1e-7
    signs = [np.ones(p)] if combine == "max" else [np.array(s) for s in np.ndindex(2, 2, 2)]
    signs = signs if combine == "max" else [2.0 * s - 1.0 for s in signs]
    rows, sides = [], []
    for sign in signs:
        if combine == "mean_abs":  # every choice of signs of the parts
            rows.append(sign @ lines.slopes / p)
            sides.append(aim - sign @ lines.values / p)
        else:
            rows += list(sign[:, None] * lines.slopes)
            sides += list(aim - sign * lines.values)
    extra = np.eye(n) if norm == "l1" else np.ones((n, 1))
    bounds = np.vstack([np.hstack([s * np.diag(1 / scale), -extra]) for s in (1, -1)])
    matrix = np.vstack([np.hstack([rows, np.zeros((len(rows), extra.shape[1]))]), bounds])
    side = np.concatenate([sides, -delta / scale, delta / scale])
    cost = np.concatenate([np.zeros(n), np.full(extra.shape[1], 1.0 / extra.shape[1])])
    known = linprog(cost, matrix, side, bounds=[(-9, 9)] * n + [(0, None)] * extra.shape[1])
    assert known.status == 0
    assert (size.mean() if norm == "l1" else size.max()) == pytest.approx(known.fun, abs=1e-7)


def test_a_limit_out_of_reach_is_missed_as_little_as_must_be():
    box = (-np.ones(1), np.ones(1))
    parts = StepProgram(ObjectiveModel(np.zeros(1), np.eye(1), 0.0), np.ones(1), np.zeros(1), 0.0, box)
    slack = parts.add_limit("limit", Lines(np.array([3.0]), np.array([[1.0]])), 0.0, 20.0)
    found = solve(parts.program())
    assert found.delta[0] == pytest.approx(-1.0, abs=1e-6)
    assert parts.slack(slack, found.delta) == pytest.approx(2.0, abs=1e-6)


def test_prices_are_taken_together_by_name_and_rows_of_samples_left_out():
    sources = (Source("gap"), Source("gap"), Source("gap", 3), Source("size of the change"), Source("error"))
    program = Program(np.zeros(1), matrix=np.zeros((5, 1)), lower=np.zeros(5), upper=np.ones(5), sources=sources)
    duals = np.array([-0.5, -0.25, -7.0, -9.0, 0.1])
    assert limit_prices(program, duals, ["gap", "error"]) == {"gap": 0.75, "error": 0.0}
    assert limit_prices(program, None, ["gap"]) == {"gap": 0.0}


# ---------------------------------------------------------------- settings


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"objective": "l3"}, r"objective='l3'; choose auto, cross_entropy"),
        ({"closeness": 1.5}, r"closeness=1\.5; expected a number, 0 or more, at most 1, or None"),
        ({"confidence": 0.4}, r"confidence=0\.4; expected a number, 0\.5 or more, below 1, or None"),
        ({"lead": -0.5}, r"lead=-0\.5; expected a number, 0 or more, or None"),
        ({"buffer": -0.1}, r"buffer=-0\.1; expected a number, 0 or more, or one for each name"),
        ({"buffer": {"gap": float("nan")}}, r"buffer={'gap': nan}; expected"),
        ({"buffer": math.inf}, r"buffer=inf; expected"),
        ({"buffer": "much"}, r"buffer='much'; expected"),
        ({"confidence": "0.9"}, r"confidence='0\.9'; expected a number, 0\.5 or more, below 1, or None"),
        ({"lead": "x"}, r"lead='x'; expected a number, 0 or more, or None"),
        ({"inner_steps": 2.5}, r"inner_steps=2\.5; expected a whole number, 1 or more"),
        ({"damping": None}, r"damping=None; expected a number above 0"),
        ({"restarts": True}, r"restarts=True; expected a whole number, 0 or more"),
        ({"smallest_fall": float("nan")}, r"smallest_fall=nan; expected"),
        ({"damping": 0.0}, r"damping=0\.0; expected a number above 0"),
    ],
)
def test_settings_out_of_range_are_refused(settings, message):
    with pytest.raises(SpecificationError, match=message):
        SQP(**settings)


# ---------------------------------------------------------------- many weights


def test_right_answers_of_which_some_may_be_lost_are_held_where_many_weights_change():
    """The first run ends far away, with a tenth of the answers lost; held from the beginning they stay."""
    subject = texts()
    x, y = (torch.cat(pair) for pair in zip(subject.repair, subject.test, strict=True))
    wrong = subject.wrong(rows=(x, y))
    goal, keep = ErrorRate(x[wrong], y[wrong], target=0.0), KeepLabels(x[~wrong], y[~wrong], tolerance=0.01)
    method = SQP(confidence=None)
    found = solve_repair(subject.model, goal, [keep], method=method, weights="all", data=subject.training)
    assert found.report.location.size > method.largest_dense
    assert found.report.verdict is Verdict.REPAIRED
    assert found.report.verification.checks[0].failed <= 0.01 * int((~wrong).sum())
    assert subject.right(found.model, subject.validation) >= subject.right(subject.model, subject.validation)
    before = subject.model.state_dict()
    size, change = (sum(float(v.square().sum()) for v in one.values()) ** 0.5 for one in (before, found.delta))
    assert change < 0.1 * size
