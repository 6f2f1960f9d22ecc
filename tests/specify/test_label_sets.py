"""Several labels at once: each output is a label of its own."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from repairopt import Classifier, ErrorRate, ModelError, SpecificationError, Verdict, solve_repair
from repairopt.interfaces.testing import check_property
from repairopt.specify import KeepLabelSets, LabelSetErrors

torch.manual_seed(2)
X, NEW = torch.randn(400, 5), torch.randn(400, 5)


def sets_of(x):
    return torch.stack([(x[:, k] + 0.4 * x[:, 4] > 0).long() for k in range(3)], 1)


Y, THERE = sets_of(X), sets_of(NEW)
MODEL = nn.Sequential(nn.Linear(5, 24), nn.ReLU(), nn.Linear(24, 3))
OPTIMIZER = torch.optim.Adam(MODEL.parameters(), 0.02)
for _ in range(150):  # the third label is learned without the last feature
    OPTIMIZER.zero_grad()
    learned = torch.cat([Y[:, :2], (X[:, 2:3] > 0).long()], 1).float()
    nn.functional.binary_cross_entropy_with_logits(MODEL(X), learned).backward()
    OPTIMIZER.step()
MODEL.requires_grad_(False)
CASES = {"several logits": MODEL, "several probabilities": nn.Sequential(MODEL, nn.Sigmoid())}
DECIDED = (MODEL(X) > 0).long()


def test_errors_are_counted_as_by_hand():
    errors, third = LabelSetErrors(X, Y), LabelSetErrors(X, Y, label=2)
    assert float(errors.value(MODEL)) == pytest.approx(float((DECIDED != Y).any(1).double().mean()))
    assert float(third.value(MODEL)) == pytest.approx(float((DECIDED != Y)[:, 2].double().mean()))
    assert errors.details(MODEL)["rows with label 2 wrong"] == int((DECIDED != Y)[:, 2].sum())
    for one in (errors, third, LabelSetErrors(X, Y, target=0.1)):
        done = check_property(one, MODEL)
        assert {"soft_value: finite and differentiable", "margins_of: negative where the value counts"} <= set(done)


@pytest.mark.parametrize("outputs", CASES)
def test_wrong_labels_are_fixed_and_right_ones_kept(outputs):
    network = CASES[outputs]
    model = Classifier(network, outputs=outputs)
    decide = lambda made, x: (made(x) > (0 if outputs == "several logits" else 0.5)).long()  # noqa: E731
    bad = (DECIDED != Y).any(1).nonzero()[:25, 0]
    keep = KeepLabelSets(X, Y, tolerance=0.0)
    repair = solve_repair(model, LabelSetErrors(X[bad], Y[bad]), [keep], weights="all")
    assert repair.report.verdict is Verdict.REPAIRED
    now = decide(repair.model, X)
    assert torch.equal(now[bad], Y[bad])
    assert not ((DECIDED == Y) & (now != Y)).any(), "a right label turned wrong"
    before, after = (float((decide(made, NEW) != THERE).any(1).double().mean()) for made in (network, repair.model))
    assert after < before + 0.05, "25 rows of noise are no pattern, but little is lost"


@pytest.mark.slow
def test_a_share_of_the_rows_is_reached_on_new_ones_too():
    goal = LabelSetErrors(X[:200], Y[:200], label=2, target=0.06)
    keep = KeepLabelSets(X[:200], Y[:200], tolerance=0.05)
    model = Classifier(MODEL, outputs="several logits")
    repair = solve_repair(
        model, goal, [keep], held_out=[LabelSetErrors(NEW, THERE, label=2, target=0.06)], weights="all"
    )
    assert repair.report.verdict is Verdict.REPAIRED
    held_out = next(measure for measure in repair.report.verification.measures if measure.held_out)
    assert held_out.after < held_out.before - 0.02


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: LabelSetErrors(X, Y[:, 0]), "zeros and ones"),
        (lambda: LabelSetErrors(X, Y[:10]), "for 400 inputs"),
        (lambda: LabelSetErrors(X, 2 * Y), "zeros and ones"),
        (lambda: LabelSetErrors(X, Y, label=3), "label=3; expected 0 to 2"),
        (lambda: KeepLabelSets(X, Y.float() + 0.5), "zeros and ones"),
        (lambda: KeepLabelSets(X, Y, tolerance=2.0), "tolerance"),
        (lambda: LabelSetErrors(X, Y[:, :2]).value(MODEL), "one output for each label"),
        (lambda: KeepLabelSets(X, Y[:, :2]).anchor(MODEL), "one output for each label"),
        (lambda: KeepLabelSets(X, Y).margins(MODEL), "anchor"),
    ],
)
def test_mistakes_are_named(make, said):
    with pytest.raises(SpecificationError, match=said):
        make()


def test_one_class_for_each_row_is_refused_where_several_hold():
    with pytest.raises(ModelError, match="one class for each row"):
        solve_repair(Classifier(MODEL, outputs="several logits"), ErrorRate(X, Y[:, 0]), weights="last")
