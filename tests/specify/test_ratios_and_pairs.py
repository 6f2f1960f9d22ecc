"""The ratio of favorable rates, and one entry of the confusion matrix, as goals and bounds."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from repairopt import Bound, ConfusionRate, GroupGap, KeepLabels, Verdict, solve_repair
from repairopt.errors import SpecificationError
from repairopt.interfaces.specfile.language.bind import bind_statement
from repairopt.interfaces.specfile.language.row_sets import Data, RowSet
from repairopt.interfaces.testing import check_property
from repairopt.specify import GroupMetrics, MissRate

torch.manual_seed(3)
X = torch.randn(600, 4)
Y = (X[:, :3] + 0.6 * torch.randn(600, 3)).argmax(1)
GROUP = (X[:, 3] > 0).long().tolist()
MODEL = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3))
with torch.no_grad():
    MODEL[0].weight[:4] = torch.eye(4)
    MODEL[0].weight[4:] = -torch.eye(4)
    MODEL[0].bias.zero_()
    MODEL[2].weight[:] = torch.tensor(
        [[1.0, 0, 0, 0.7, -1, 0, 0, 0], [0, 1, 0, 0, 0, -1, 0, 0], [0, 0, 1, 0, 0, 0, -1, 0]]
    )
    MODEL[2].bias.zero_()


@pytest.mark.parametrize("favorable", [0, 1, 2])
def test_the_ratio_is_that_of_the_group_metrics(favorable):
    answers = MODEL(X).argmax(1).numpy()
    gap = GroupGap.observed(X, sensitive_features=GROUP, favorable=favorable, score="ratio")
    metrics = GroupMetrics(Y.numpy(), answers, GROUP, pos_label=favorable)
    ratio = metrics.ratio()["selection_rate"]
    assert float(gap.value(MODEL)) == pytest.approx(1 - ratio, abs=1e-6)
    assert gap.interval(MODEL).low <= 1 - ratio <= gap.interval(MODEL).high
    assert "soft_value: finite and differentiable" in check_property(gap, MODEL)


def test_the_ratio_of_rates_that_are_all_0_is_no_gap():
    never = lambda x: torch.stack([x[:, 0] * 0 + 1, x[:, 0] * 0], 1)  # noqa: E731
    assert float(GroupGap.observed(X, sensitive_features=GROUP, favorable=1, score="ratio").value(never)) == 0.0


@pytest.mark.parametrize(("label", "answer"), [(0, 1), (0, 2), (1, 0), (2, 1), (2, 0)])
def test_a_confusion_is_counted_as_numpy_counts_it(label, answer):
    answers, own = MODEL(X).argmax(1).numpy(), Y.numpy() == label
    made = ConfusionRate(X, Y, label=label, answer=answer)
    assert float(made.value(MODEL)) == pytest.approx(np.mean(answers[own] == answer))
    margins = made.margins_of(MODEL(X), torch.arange(len(X)))
    assert ((margins < 0)[:, 0].numpy() == (answers == answer)).all()
    assert "margins_of: negative where the value counts" in check_property(made, MODEL)
    assert "class" in made.describe(0, 0)


def test_all_confusions_of_a_class_are_its_miss_rate():
    parts = [float(ConfusionRate(X, Y, label=0, answer=b).value(MODEL)) for b in (1, 2)]
    assert sum(parts) == pytest.approx(float(MissRate(X, Y, label=0).value(MODEL)))


def test_both_are_repaired():
    for goal in (
        GroupGap.observed(X, sensitive_features=GROUP, favorable=0, score="ratio", target=0.2),
        ConfusionRate(X, Y, label=1, answer=0, target=0.05),
    ):
        keep = [KeepLabels(X, Y, tolerance=0.15), Bound(ConfusionRate(X, Y, label=2, answer=1), slack=0.1)]
        report = solve_repair(MODEL, goal, keep, weights="last").report
        assert report.measure().before > goal.target
        assert report.verdict is Verdict.REPAIRED


def test_the_language_has_both():
    data = Data({"repair": RowSet(X, Y, {"g": GROUP})}, ["a", "b", "c"], list("wxyz"))
    ratio = bind_statement("demographic_parity_ratio(g, favorable=b) >= 0.8", data)
    assert ratio.item.target == pytest.approx(0.2)
    assert ratio.shown(float(ratio.item.value(MODEL))) == pytest.approx(1 - float(ratio.item.value(MODEL)))
    pair = bind_statement("confusion(a, answer=c) <= 0.1", data).as_constraint()
    assert (pair.property.label, pair.property.answer, pair.limit) == (0, 2, 0.1)


@pytest.mark.parametrize(
    ("label", "answer", "said"), [(1, 1, "expected two classes"), (1, 7, "answer 7 is out of range")]
)
def test_pairs_that_are_none_are_refused(label, answer, said):
    with pytest.raises(SpecificationError, match=said):
        ConfusionRate(X, Y, label=label, answer=answer).value(MODEL)
