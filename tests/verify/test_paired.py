"""Bounds that are the original network's value: how far chance moves the difference, and what is claimed of it."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from repairopt import SQP, Bound, ErrorRate, FlipRate, GroupGap, MissRate, OddsGap, solve_repair
from repairopt.verify import make_claim
from repairopt.verify.claims import paired_error


def answers(labels):
    """A network that answers row ``i``, whose only column is ``i``, with ``labels[i]``."""

    def predict(inputs):
        return nn.functional.one_hot(labels[inputs[:, 0].long()], 2).float()

    return predict


def drawn(count, seed, *rates):
    """Independent draws of 0 or 1."""
    draw = np.random.default_rng(seed)
    return [torch.tensor((draw.random(count) < rate).astype(np.int64)) for rate in rates]


def test_the_error_of_a_change_of_a_rate_is_that_of_the_points_that_change():
    count = 4000
    truth, before, moved = drawn(count, 0, 0.5, 0.5, 0.05)
    after = torch.where(moved.bool(), 1 - before, before)
    rate = ErrorRate(torch.arange(count)[:, None].float(), truth)
    change = (after != truth).double() - (before != truth).double()
    wanted = float(change.std()) / count**0.5
    assert paired_error(rate, answers(after), answers(before)) == pytest.approx(wanted, rel=0.3)
    assert wanted < 0.5 * float((after != truth).double().std()) / count**0.5, "far less than that of the rate itself"
    assert paired_error(rate, answers(before), answers(before)) == 0.0


@pytest.mark.parametrize("kind", ["gap", "odds", "recall"])
def test_the_error_is_that_over_many_draws(kind):
    """Both networks are drawn anew for each of many samples; the jackknife sees one of them."""
    changes, errors, count = [], [], 1500
    for seed in range(60):
        truth, group, hit, kept = drawn(count, seed, 0.5, 0.4, 0.5, 0.6)
        before = torch.where(group.bool(), hit, hit * drawn(count, 1000 + seed, 0.8)[0])
        after = before * kept
        x = torch.arange(count)[:, None].float()
        made = {
            "gap": lambda x=x, group=group, truth=truth: GroupGap.observed(x, sensitive_features=group.tolist()),
            "odds": lambda x=x, group=group, truth=truth: OddsGap.observed(
                x, truth, sensitive_features=group.tolist(), score="difference"
            ),
            "recall": lambda x=x, group=group, truth=truth: MissRate(x, truth, label=1),
        }
        prop = made[kind]()
        changes.append(float(prop.value(answers(after))) - float(prop.value(answers(before))))
        errors.append(paired_error(prop, answers(after), answers(before)))
    assert np.mean(errors) == pytest.approx(np.std(changes), rel=0.35)


def test_properties_that_hold_no_samples_or_few_have_none():
    class Own:
        name, target = "own", 0.0

        def value(self, predict):
            return predict(torch.zeros(1, 1)).sum()

    few = ErrorRate(torch.arange(50)[:, None].float(), torch.zeros(50, dtype=torch.long))
    labels = torch.zeros(50, dtype=torch.long)
    assert paired_error(Own(), answers(labels), answers(labels)) is None
    assert paired_error(few, answers(labels), answers(labels)) is None


def test_a_value_of_the_original_that_never_moves_leaves_the_interval_of_the_property():
    count = 1000
    before, moved = drawn(count, 3, 0.5, 0.01)
    after = torch.where(moved.bool(), 1 - before, before)
    flips = FlipRate(torch.arange(count)[:, None].float(), before).anchor(answers(before))
    assert float(flips.value(answers(before))) == 0.0
    assert paired_error(flips, answers(after), answers(before)) is None
    options = {"confidence": 0.95, "source": "held-out data"}
    plain = make_claim("flips", flips, 0.0, answers(after), **options)
    assert (
        make_claim("flips", flips, 0.0, answers(after), original=answers(before), **options).interval == plain.interval
    )


def test_a_part_without_rows_of_a_group_has_none():
    count = 400
    features = [0] * (count - 1) + [1]
    gap = GroupGap.observed(torch.arange(count)[:, None].float(), sensitive_features=features)
    labels = torch.arange(count) % 2
    assert paired_error(gap, answers(labels), answers(1 - labels)) is None


def test_a_claim_on_a_bound_of_the_original_counts_what_chance_does_to_both():
    count = 3000
    truth, before, moved = drawn(count, 1, 0.5, 0.5, 0.01)
    better = torch.where(moved.bool(), truth, before)  # a few points are right now
    rate = ErrorRate(torch.arange(count)[:, None].float(), truth, name="errors")
    limit = float(rate.value(answers(before)))
    options = {"confidence": 0.95, "source": "held-out data"}
    plain = make_claim("errors", rate, limit, answers(better), **options)
    paired = make_claim("errors", rate, limit, answers(better), original=answers(before), **options)
    assert plain.interval.value == paired.interval.value < limit
    assert not plain.met, "half a point less is nothing, were the limit a number"
    assert paired.met, "on the same rows it is"
    assert str(paired).endswith(f"limit {limit:.4f} of the original: met with 95 % confidence")
    none = make_claim("errors", rate, limit, answers(before), original=answers(before), **options)
    assert none.interval.high == pytest.approx(limit + 1.645 / count, rel=1e-3), "one sample's worth at least"


def test_a_repair_claims_so_of_its_own_and_of_held_out_rows():
    draw = torch.Generator().manual_seed(0)
    x = torch.randn(2400, 4, generator=draw)
    x[:, 3] = (torch.arange(2400) % 2).float()
    labels = (x[:, 0] + 0.5 * torch.randn(2400, generator=draw) > 0).long()
    model = nn.Linear(4, 2)
    with torch.no_grad():
        model.weight.copy_(torch.tensor([[-1.0, 0.3, 0.0, 0.4], [1.0, -0.3, 0.0, -0.4]]))
        model.bias.zero_()
    own, other = slice(0, 1200), slice(1200, 2400)
    gap, typed = GroupGap.observed(x[own], 3, target=0.1, name="gap"), 0.5
    miss = Bound(MissRate(x[own], labels[own], label=1), name="recall")
    held = [replace(miss, property=MissRate(x[other], labels[other], label=1))]
    numbered = replace(miss, limit=typed, name="typed")
    repair = solve_repair(
        model, gap, [miss, numbered], data=(x[own], labels[own]), held_out=held, weights="all", method=SQP()
    )
    claims = {(claim.name, claim.source): claim for claim in repair.report.claims}
    assert claims["recall", "cross-validation"].relative
    assert claims["recall", "held-out data"].relative
    assert claims["recall", "held-out data"].limit == pytest.approx(float(held[0].property.value(model)))
    assert not claims["typed", "cross-validation"].relative
    assert "of the original" in str(repair.report)
