"""Fine-tuning: only what may change does, bounds count, the best epoch is kept."""

import pytest
import torch
from biased_task import repair as repair_with, task
from torch import nn

from repairopt import Bound, CallableProperty, ChangeLimit, FineTune, FlipRate, GroupGap, MissRate, SpecificationError
from repairopt.interfaces.testing import check_method
from repairopt.localize import NewWeights


def normed():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(2, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Dropout(0.5), nn.Linear(8, 2))
    given = task(count=1000)
    inputs, labels = given.inputs.float(), (given.inputs[:, 0] + 0.8 * given.inputs[:, 1] > 0.4).long()
    optimizer = torch.optim.Adam(model.parameters(), lr=0.02)
    for _ in range(100):
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(inputs), labels).backward()
        optimizer.step()
    return model, inputs, given.labels


def test_it_passes_the_checks():
    assert {"gap: better", "points: better", "gap: start"} <= set(check_method(FineTune(epochs=15, rate=0.03)))


@pytest.mark.parametrize("optimizer", ["adam", "sgd"])
def test_only_chosen_weights_move_and_norms_and_dropout_are_frozen(optimizer, fingerprint):
    model, inputs, labels = normed()
    model.train()
    before = fingerprint(model)
    gap = GroupGap.observed(inputs, 1, target=0.1)
    method = FineTune(optimizer=optimizer, rate=0.02)
    found = repair_with(model, gap, method=method, weights="4.weight", data=(inputs, labels))
    assert isinstance(found.candidate, NewWeights)
    assert found.report.verdict == "repaired"
    assert fingerprint(model) == before
    assert found.model.training, "as the model given"
    old, new = model.state_dict(), found.model.state_dict()
    assert {name for name in old if not torch.equal(old[name], new[name])} == {"4.weight"}
    assert found.report.changed == 16


def test_bounds_on_recall_and_flips_hold_where_the_gap_alone_breaks_them():
    given = task(count=800)
    gap, data = given.gap(0.05), (given.inputs, given.labels)
    bounds = [
        Bound(MissRate(*data, label=1), 0.12),
        Bound(FlipRate(*data), 0.04),
        given.keep(0.05),
    ]
    free = repair_with(given.model, gap, method=FineTune(rate=0.05), weights="all").report
    bound = repair_with(given.model, gap, bounds, method=FineTune(rate=0.05), weights="all", data=data).report
    assert free.verdict == bound.verdict == "repaired"
    assert all(check.holds for check in bound.verification.checks)


def test_the_epoch_that_the_judge_likes_best_is_applied():
    given = task()
    report = repair_with(given.model, given.gap(), [given.keep(0.1)], method=FineTune(rate=0.05), weights="all").report
    kept = [entry for entry in report.rounds if entry.accepted]
    assert len(report.rounds) == 31 > len(kept)
    assert kept[-1].goal == pytest.approx(report.verification.goal_after)


def test_without_labels_the_original_is_what_is_learned():
    given = task()
    report = repair_with(given.model, given.gap(0.1), method=FineTune(rate=0.03), weights="all").report
    assert report.verdict == "repaired"


def test_small_batches_divide_gaps_and_rows_by_sample():
    given = task(count=1000)
    method = FineTune(batch=32, epochs=10, rate=0.02)
    report = repair_with(given.model, given.gap(), [given.keep(0.1)], method=method, weights="all").report
    assert report.verdict == "repaired"


def test_limits_on_the_change_hold():
    given = task()
    limits = [ChangeLimit(absolute=0.1)]
    report = repair_with(given.model, given.gap(), limits, method=FineTune(rate=0.1), weights="all").report
    assert 0 < report.largest_change <= 0.1 + 1e-6
    assert report.verdict == "improved"


def test_the_seed_decides_and_limits_stop_it():
    given = task()
    options = {"method": FineTune(batch=64, epochs=3), "weights": "all", "data": (given.inputs, given.labels)}
    runs = [repair_with(given.model, given.gap(), seed=seed, **options).delta["2.weight"] for seed in (0, 0, 1)]
    assert torch.equal(runs[0], runs[1])
    assert not torch.equal(runs[0], runs[2])
    seen = []

    def stop(entry):
        seen.append(entry)
        if len(seen) == 3:
            raise KeyboardInterrupt

    assert repair_with(given.model, given.gap(), progress=stop, **options).report.stopped == "interrupted"
    assert repair_with(given.model, given.gap(), time_limit=1e-6, **options).report.stopped == "time limit"


def test_what_it_cannot_do_is_said():
    given = task()
    count = CallableProperty(lambda predict: (predict(given.inputs).argmax(1) == 1).double().mean(), 0.1, name="share")
    with pytest.raises(SpecificationError, match="'?share'?|differentiable"):
        repair_with(given.model, count, method="fine_tune", weights="all")
    with pytest.raises(SpecificationError, match="method FineTune does not use it"):
        repair_with(given.model, given.gap(), method="fine_tune", solver="daqp")
    for wrong in ({"epochs": 0}, {"rate": 0.0}, {"closeness": 1.5}, {"optimizer": "lbfgs"}):
        with pytest.raises(SpecificationError, match=f"method FineTune: {next(iter(wrong))}="):
            FineTune(**wrong)
