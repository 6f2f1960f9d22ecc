"""Metrics by group mean what fairlearn means by them."""

from __future__ import annotations

import math

import numpy as np
import pytest

from repairopt import GroupGap, OddsGap, SpecificationError
from repairopt.errors import MissingExtraError
from repairopt.specify import GroupMetrics
from repairopt.specify.groups import metrics as group_metrics


def drawn(seed: int):
    """Labels, answers and up to four groups, at random; in every third draw one group lacks a label."""
    draw = np.random.default_rng(seed)
    y_true, y_pred, groups = draw.integers(0, 2, 80), draw.integers(0, 2, 80), draw.integers(0, 2 + seed % 3, 80)
    if seed % 3 == 0:
        y_true[groups == 1] = 0
    return y_true, y_pred, np.array(["a", "b", "c", "d"])[groups]


@pytest.mark.parametrize("seed", range(9))
@pytest.mark.parametrize("method", ["between_groups", "to_overall"])
def test_disparities_are_fairlearns(seed, method):
    fairlearn = pytest.importorskip("fairlearn.metrics", reason="the extra 'fairlearn'")
    y_true, y_pred, groups = drawn(seed)
    found = GroupMetrics(y_true, y_pred, groups)
    options = {"sensitive_features": groups, "method": method}
    parity = fairlearn.demographic_parity_difference(y_true, y_pred, **options)
    assert found.demographic_parity_difference(method) == pytest.approx(parity)
    opportunity = fairlearn.equal_opportunity_difference(y_true, y_pred, **options)
    assert found.equal_opportunity_difference(method) == pytest.approx(opportunity)
    for agg in ("worst_case", "mean"):
        odds = fairlearn.equalized_odds_difference(y_true, y_pred, agg=agg, **options)
        assert found.equalized_odds_difference(method, agg) == pytest.approx(odds)


@pytest.mark.parametrize("seed", range(16))  # with the ones above more than 1,050 comparisons
def test_a_metric_frame_of_the_same_functions_agrees(seed, monkeypatch):
    fairlearn = pytest.importorskip("fairlearn.metrics", reason="the extra 'fairlearn'")
    y_true, y_pred, groups = drawn(seed)
    found = GroupMetrics(y_true, y_pred, groups)
    theirs = {
        "count": fairlearn.count,
        "accuracy_score": lambda true, pred: np.mean(true == pred),
        "selection_rate": fairlearn.selection_rate,
        "true_positive_rate": fairlearn.true_positive_rate,
        "false_positive_rate": fairlearn.false_positive_rate,
    }
    frame = fairlearn.MetricFrame(metrics=theirs, y_true=y_true, y_pred=y_pred, sensitive_features=groups)
    own = found.frame()
    for name in theirs:
        assert found.overall[name] == pytest.approx(frame.overall[name])
        assert found.by_group[name] == pytest.approx(frame.by_group[name].to_dict())
        assert own.by_group[name].to_dict() == pytest.approx(frame.by_group[name].to_dict())
        for method in group_metrics.METHODS:
            wanted = {"difference": frame.difference(method=method)[name], "ratio": frame.ratio(method=method)[name]}
            for what, value in wanted.items():
                assert getattr(found, what)(method)[name] == pytest.approx(value, nan_ok=True)
                with monkeypatch.context() as without:
                    without.setattr(group_metrics, "find_spec", lambda name: None)
                    assert getattr(found, what)(method)[name] == pytest.approx(value, nan_ok=True)


def test_gaps_that_are_repaired_are_the_same_figures(small_net, small_inputs):
    inputs = small_inputs.repeat(4, 1)
    inputs[:, 3] = (inputs[:, 0] > 0).double()
    labels = (inputs[:, 1] > 0).long()
    found = GroupMetrics(labels, small_net(inputs).argmax(1), inputs[:, 3])
    gap = GroupGap.observed(inputs, column=3, favorable=1, score="max_difference")
    assert float(gap.value(small_net)) == pytest.approx(found.demographic_parity_difference())
    odds = OddsGap.observed(inputs, labels, column=3, favorable=1)
    assert float(odds.value(small_net)) == pytest.approx(found.equalized_odds_difference())
    chance = OddsGap.observed(inputs, labels, column=3, favorable=1, given=(1,))
    assert float(chance.value(small_net)) == pytest.approx(found.equal_opportunity_difference())


def test_a_group_without_positives_has_rate_0_and_a_ratio_of_nothing_is_nan():
    found = GroupMetrics([0, 0, 1, 1], [0, 0, 0, 0], ["a", "a", "b", "b"])
    assert found.by_group["true_positive_rate"] == {"a": 0.0, "b": 0.0}
    assert math.isnan(found.ratio()["selection_rate"])


def test_mistakes_are_explained(monkeypatch):
    with pytest.raises(SpecificationError, match=r"have shapes \(3,\), \(2,\), \(3,\); expected \(N,\)"):
        GroupMetrics([0, 1, 1], [0, 1], [0, 0, 1])
    found = GroupMetrics([0, 1, 1], [0, 1, 0], [0, 0, 1])
    with pytest.raises(SpecificationError, match="method='worst'; choose between_groups or to_overall"):
        found.difference("worst")
    with pytest.raises(SpecificationError, match="agg='max'; choose worst_case or mean"):
        found.equalized_odds_difference(agg="max")
    monkeypatch.setattr("repairopt.errors.find_spec", lambda name: None)
    with pytest.raises(MissingExtraError, match=r"pip install repairopt\[fairlearn\]"):
        found.frame()
