"""solve_repair from end to end: what it leaves alone, how it can end, what it says to bad input."""

import numpy as np
import pytest
import torch
from biased_task import ramps, repair as repair_with, task
from sample_networks import CASES
from torch import nn

from repairopt import (
    Bisection,
    ChangeLimit,
    ErrorRate,
    FixLabels,
    GroupGap,
    Incremental,
    KeepLabels,
    LinearRows,
    ModelError,
    OneShot,
    RepairFailedError,
    Sequential,
    SpecificationError,
    Status,
    Verdict,
)

NAN = torch.tensor([[float("nan"), 0.0]])


def says(found, words):
    """Whether the printed report says so, wherever its lines break."""
    return words in " ".join(str(found.report).split())


def quick(toy=None, **options):
    toy = toy or task()
    settings = {"weights": "last", "trust_radius": 1.0, **options}
    goal, constraints = settings.pop("goal", toy.gap()), settings.pop("constraints", [toy.keep()])
    return repair_with(settings.pop("model", toy.model), goal, constraints, **settings)


# ------------------------------------------------------------------------ the model is left alone


@pytest.mark.parametrize("method", ["one_shot", "incremental", "bisection", "sequential"])
def test_the_model_and_the_data_are_left_alone(method, fingerprint):
    toy = task()
    toy.model.train()
    toy.model[0].requires_grad_(False)
    before, inputs, labels = fingerprint(toy.model), toy.inputs.clone(), toy.labels.clone()
    found = quick(toy, method=method, held_out=toy.held_out, weights="all")
    assert fingerprint(toy.model) == before
    assert torch.equal(toy.inputs, inputs)
    assert torch.equal(toy.labels, labels)
    assert found.model.training
    assert [p.requires_grad for p in found.model.parameters()] == [False, False, True, True]
    assert found.model is not toy.model


def test_the_change_is_the_difference_of_the_models():
    toy = task()
    found = quick(toy, weights=["2.weight", "0.bias"])
    assert set(found.delta) == {"2.weight", "0.bias"}
    for (name, old), (_, new) in zip(toy.model.named_parameters(), found.model.named_parameters(), strict=True):
        change = found.delta.get(name, torch.zeros_like(old))
        assert torch.equal(new.detach(), old.detach() + change)
    assert any(bool(change.any()) for change in found.delta.values())


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["float32", "float64"])
def test_types_are_kept_and_what_is_reported_is_what_the_copy_does(dtype):
    toy = task(dtype=dtype)
    found = quick(toy, held_out=toy.held_out)
    assert all(p.dtype == dtype for p in found.model.parameters())
    right = (found.model(toy.other_inputs).argmax(1) == toy.other_labels).float().mean()
    assert found.report.labels(held_out=True).accuracy[1] == pytest.approx(float(right), abs=1e-9)
    assert found.report.measure().after == pytest.approx(float(toy.gap().value(found.model)), abs=1e-6)


def test_a_seed_gives_the_same_repair_again():
    first, second = (quick(weights="auto", seed=3) for _ in range(2))
    assert all(torch.equal(first.delta[name], second.delta[name]) for name in first.delta)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
@pytest.mark.parametrize("weights", ["early", "last"])
def test_every_kind_of_network_goes_through(case, weights):
    model, inputs = case.model(), case.inputs(40)
    best = case.logits(model, inputs).detach().topk(2)
    order = (best.values[:, 0] - best.values[:, 1]).argsort()
    inputs, labels = inputs[order], best.indices[order, 0]
    labels[:4] = best.indices[order[:4], 1]  # the four points next to a boundary are to lie on its other side
    goal = ErrorRate(inputs[:4], labels[:4], target=0.5)
    keep = KeepLabels(inputs, labels, tolerance=0.1)
    names = list(case.early) if weights == "early" else case.last
    options = {"weights": names, "forward_fn": case.forward_fn, "trust_radius": 2.0}
    found = repair_with(model, goal, [keep], method=Bisection(), **options)
    assert found.report.verification.goal_before == 1.0
    assert found.report.verdict in (Verdict.REPAIRED, Verdict.IMPROVED, Verdict.UNSOLVED)
    if weights == "last":
        found = repair_with(model, goal, [keep], **options)
        assert found.report.verdict is Verdict.REPAIRED


# ------------------------------------------------------------------------ how it can end


def test_a_target_that_is_met_already_changes_nothing():
    found = quick(target=0.9)
    assert found.report.verdict is Verdict.REPAIRED
    assert found.report.changed == 0
    assert not any(bool(change.any()) for change in found.delta.values())
    assert says(found, "met by the original network already")
    assert found.report.rounds == ()


@pytest.mark.parametrize("method", ["one_shot", "incremental", "sequential"])
def test_a_goal_that_no_weight_can_influence_is_said_so(method):
    toy = task()

    def constant(predict):
        return 0.4

    for goal in (constant, GroupGap.given([toy.inputs[:20], toy.inputs[:20]], target=-0.1)):
        found = quick(toy, goal=goal, target=-0.1, method=method)
        assert found.report.verdict is Verdict.UNSOLVED
        assert found.report.changed == 0
        assert says(found, "no chosen weight influences the goal")


@pytest.mark.parametrize("method", ["one_shot", "incremental", "sequential"])
def test_weights_that_nothing_reads_are_said_to_have_no_influence(method):
    toy = task()
    with torch.no_grad():
        toy.model[2].weight.zero_()  # nothing of the first layer arrives
        toy.model[2].weight[1, 0] = 0.0
    labels = torch.ones_like(toy.labels)
    goal = ErrorRate(toy.inputs, labels, target=0.1)
    found = quick(toy, goal=goal, constraints=[KeepLabels(toy.inputs, labels)], weights="0.weight", method=method)
    assert found.report.verdict is Verdict.UNSOLVED
    assert says(found, "no chosen weight influences the goal")


def test_a_constant_network_is_never_a_success():
    toy = task()
    for method in ("one_shot", "incremental", "bisection", "sequential"):
        found = quick(toy, goal=toy.gap(0.0), constraints=[], method=method, trust_radius=5.0)
        predictions = found.model(toy.inputs).argmax(1)
        assert len(predictions.unique()) == 2
        assert not found.report.verification.constant


class Flat:
    """Proposes a constant classifier."""

    def run(self, task):
        from repairopt.methods import Outcome

        return Outcome(np.array([0.0] * 8 + [-1e3, 1e3]), Status.OPTIMAL)


def test_a_method_that_proposes_a_constant_network_is_overruled():
    found = quick(constraints=[], method=Flat(), weights=["2.weight", "2.bias"])
    assert not found.report.verification.constant
    assert found.report.verdict is not Verdict.VIOLATED


def test_an_original_that_is_constant_is_not_taken_for_fair():
    toy = task()
    with torch.no_grad():
        toy.model[2].bias[1] += 100
    found = quick(toy)
    assert found.report.measure().before == 0.0
    assert found.report.verification.constant_before
    assert found.report.verdict is Verdict.REPAIRED  # a gap of 0 is not "met already": the network decides again
    assert not found.report.verification.constant
    before, after = found.report.labels().balanced_accuracy
    assert after > before + 0.2


def test_points_of_one_class_may_all_get_their_label():
    toy = task()
    points = toy.inputs[(toy.labels == 1) & (toy.inputs[:, 1] == 0)][:20]
    labels = torch.ones(20, dtype=torch.int64)
    assert float(ErrorRate(points, labels).value(toy.model)) > 0
    found = quick(toy, goal=ErrorRate(points, labels), constraints=[], trust_radius=2.0)
    assert found.report.measure().after == 0.0
    assert found.report.verdict is Verdict.REPAIRED


def test_a_change_limit_and_own_rows_hold_to_the_last_digit():
    limit = ChangeLimit(0.05)
    pairs = LinearRows(np.hstack([np.eye(4), np.eye(4)]), 0.0, 0.0, name="columns sum to what they were")
    for method in (OneShot(), Incremental(), Bisection(), Sequential()):
        found = quick(constraints=[task().keep(), limit, pairs], method=method, weights="2.weight")
        change = found.delta["2.weight"]
        assert float(change.abs().max()) <= 0.05 + 1e-6
        assert float(change.sum(0).abs().max()) <= 1e-6
        names = {check.constraint: check.holds for check in found.report.verification.checks}
        assert names == {"keep labels": True, "change limit": True, "columns sum to what they were": True}
        assert found.report.measure().after < found.report.measure().before


# ------------------------------------------------------------------------ held-out data, raise_if_failed


def test_a_pair_of_held_out_data_makes_twins_of_goal_and_constraints():
    toy = task()
    gap = GroupGap.observed(toy.inputs, 1, name="observed gap", favorable=1)
    found = quick(toy, constraints=[toy.keep(), FixLabels(toy.inputs, toy.labels)], held_out=toy.held_out, watch=[gap])
    report = found.report
    assert report.measure("observed gap", held_out=True) is not None
    assert report.measure(held_out=True).before == pytest.approx(float(toy.gap().on(toy.other_inputs).value(toy.model)))
    held = {check.constraint: check for check in report.verification.checks if check.held_out}
    assert set(held) == {"keep labels", "fix labels"}
    right = int((toy.model(toy.other_inputs).argmax(1) == toy.other_labels).sum())
    assert held["keep labels"].applied == right
    assert held["fix labels"].applied == 400 - right


def test_raise_if_failed():
    assert quick(method="incremental").report.raise_if_failed().verdict is Verdict.REPAIRED
    with pytest.raises(RepairFailedError, match="repair ended 'improved'.*Try") as error:
        quick(goal=task().gap(0.0), constraints=[task().keep(0.0)], method="bisection").report.raise_if_failed()
    assert error.value.report.verdict is Verdict.IMPROVED


@pytest.mark.parametrize(
    ("options", "kind", "snippets"),
    [
        ({"model": ramps().half()}, ModelError, ["parameter '0.weight' is torch.float16", "model.float()"]),
        ({"model": nn.Sequential(ramps(), nn.Softmax(0)).double()}, ModelError, ["others in its batch"]),
        ({"model": nn.Linear(5, 2).double()}, ModelError, ["cannot run on inputs of shape", "Check the shape"]),
        ({"weights": "9.weight"}, ModelError, ["9.weight", "2.weight"]),
        (
            {"weights": {"2.weight": torch.zeros(3, 3, dtype=torch.bool)}},
            SpecificationError,
            ["shape (3, 3)", "(2, 4)"],
        ),
        ({"target": float("nan")}, SpecificationError, ["target is nan"]),
        ({"goal": None}, SpecificationError, ["goal None", "NoneType"]),
        pytest.param({"time_limit": -1.0}, SpecificationError, ["time_limit=-1.0"]),
        ({"solver": "cplex"}, LookupError, ["cplex"]),
        ({"surrogate": "spline"}, SpecificationError, ["spline"]),
        pytest.param({"method": OneShot(convexify="maybe")}, SpecificationError, ["maybe"]),
        ({"constraints": [LinearRows(np.eye(3), 0, 1)]}, SpecificationError, ["3 columns", "10"]),
        (
            {"goal": lambda predict: predict(NAN.double()).mean()},
            SpecificationError,
            ["<lambda>", "nan", "finite number"],
        ),
    ],
)
def test_bad_input_is_named(options, kind, snippets):
    with pytest.raises(kind) as error:
        quick(**options)
    for snippet in snippets:
        assert snippet in str(error.value)
