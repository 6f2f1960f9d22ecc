"""Many weights: training proposes, unseen rows say how far to go, and a program makes every hard row hold."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from biased_task import repair as repair_with, task
from torch import nn

from repairopt import (
    Bound,
    ErrorRate,
    FlipRate,
    GroupGap,
    KeepLabels,
    OutputBounds,
    Settings,
    SpecificationError,
    TrainThenCorrect,
    Verdict,
    solve_repair,
)
from repairopt.interfaces.testing import check_method
from repairopt.methods import Task
from repairopt.methods.corrections import correct_rows, exact_rows, known_inputs
from repairopt.methods.training import two_sides
from repairopt.methods.training.step_plan import StepPlan
from repairopt.methods.training.way_back import Unseen
from repairopt.network import check_time
from repairopt.pipeline.prepare import prepare_repair
from repairopt.program import Program, solve
from repairopt.specify import Folds, make_specification


def turned(x: torch.Tensor) -> torch.Tensor:
    """What the network was not trained on: two features turned by two thirds of a right angle, the last one moved."""
    turn = torch.tensor([[0.5, 0.87], [-0.87, 0.5]])
    return torch.cat([x[:, :2] @ turn, x[:, 2:5], x[:, 5:] + 4], 1)


def labels_of(x: torch.Tensor) -> torch.Tensor:
    return ((x[:, 0] > 0).long() + 2 * (x[:, 1] + 0.3 * x[:, 2].sin() > 0).long()) % 3


@pytest.fixture(scope="module")
def trained():
    torch.manual_seed(0)
    clean, new = torch.randn(1600, 6), torch.randn(1600, 6)
    model = nn.Sequential(nn.Linear(6, 150), nn.ReLU(), nn.Linear(150, 150), nn.ReLU(), nn.Linear(150, 3))
    optimizer = torch.optim.Adam(model.parameters(), 3e-3)
    for _ in range(150):
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(clean), labels_of(clean)).backward()
        optimizer.step()
    return model.requires_grad_(False), clean, new


def share_right(model, x, y) -> float:
    return float((model(x).argmax(1) == y).double().mean())


@pytest.mark.slow
def test_it_passes_the_checks():
    assert {"gap: better", "points: better", "out of reach: nothing is claimed"} <= set(
        check_method(TrainThenCorrect())
    )


def test_many_weights_are_repaired_by_it_without_breaking_a_guard(trained, fingerprint):
    model, clean, new = trained
    y, there = labels_of(clean), labels_of(new)
    before = fingerprint(model)
    goal = ErrorRate(turned(clean), y, name="errors on turned inputs")
    keep = KeepLabels(clean, y, tolerance=0.0)
    data = [(clean, y), (turned(clean), y)]
    held_out = (turned(new), there)  # which says what is unseen, in place of a second training
    many = solve_repair(model, goal, [keep], data=data, held_out=held_out, weights="all")
    assert "TrainThenCorrect" in many.report.method
    right = model(clean).argmax(1) == y
    assert (many.model(clean).argmax(1) == y)[right].all(), "a guard flipped"
    last = solve_repair(model, goal, [keep], data=data, weights="last")
    assert "SQP" in last.report.method
    gains = [share_right(m, turned(new), there) for m in (model, last.model, many.model)]
    assert gains[2] > gains[1] + 0.05 > gains[0]
    assert share_right(many.model, new, there) >= share_right(last.model, new, there) - 0.01
    assert fingerprint(model) == before


@pytest.mark.slow
def test_a_bound_on_flips_holds_on_new_rows_and_is_claimed(trained):
    model, clean, new = trained
    clean, there = clean[:300], labels_of(new)
    y = labels_of(clean)
    flips = FlipRate(clean, y)
    found = {}
    for limit in (0.01, 1.0):
        bound = Bound(flips, limit=limit, name="flips")
        method = TrainThenCorrect(epochs=2, ways=(0.1, 0.3, 0.6, 1.0), folds=2)
        repair = solve_repair(model, ErrorRate(turned(clean), y), [bound], weights="all", method=method)
        now = (model(new).argmax(1) == there) & (repair.model(new).argmax(1) != there)
        found[limit] = (float(now.double().mean()), repair)
        claim = next(claim for claim in repair.report.claims if claim.source == "cross-validation")
        assert claim.name == "flips"
        assert claim.met == (claim.interval.high <= limit)
    assert found[0.01][0] <= 0.01 < found[1.0][0]
    prices = {limit: repair.report.prices["flips"] for limit, (_, repair) in found.items()}
    assert prices[0.01] > 0.0 == prices[1.0]
    assert "prices, in the objective" in str(found[0.01][1].report)
    steps = {limit: repair.report.rounds[0].step for limit, (_, repair) in found.items()}
    assert steps[1.0].startswith("100 %")
    assert not steps[0.01].startswith("100 %")


def test_the_correction_is_the_smallest_that_makes_the_rows_hold(trained):
    model, clean, _ = trained
    inputs = clean[:60]
    bounds = OutputBounds(inputs, torch.eye(3)[:1], torch.tensor([1.0]), name="first output")
    spec = make_specification(ErrorRate(clean, labels_of(clean), target=0.9), [bounds])
    prepared = prepare_repair(model, spec, weights="4.weight", method=TrainThenCorrect(), started=(0.0, 0.0))
    given: Task = prepared.task
    spec_all = prepare_repair(model, spec, weights="last", method=TrainThenCorrect(), started=(0.0, 0.0))
    found = correct_rows(spec_all.task, np.zeros(spec_all.task.engine.n), 0.5)
    assert found.note == ""
    assert 0 < found.rows < 60
    assert "not all of the last layer" in correct_rows(given, np.zeros(given.engine.n), 0.5).note
    features = torch.cat([model[:-1](inputs), torch.ones(60, 1)], 1).double()
    every = torch.cat([model[:-1](clean), torch.ones(len(clean), 1)], 1).double()
    moment = torch.cat([every, features]).T @ torch.cat([every, features]) / (len(every) + 60)
    moment += 1e-3 * moment.trace() / len(moment) * torch.eye(len(moment))
    now = model(inputs)[:, 0].double().numpy()
    best = solve(
        Program(np.zeros(151), moment.numpy(), matrix=features.numpy(), upper=1.0 - now)
    )  # the first output alone moves, by all 60 rows at once
    step = np.concatenate([found.change[:150], found.change[450:451]])
    assert step @ moment.numpy() @ step == pytest.approx(2 * best.objective, rel=0.02)
    assert np.abs(found.change[150:450]).max() < 1e-9


def test_rows_out_of_reach_of_the_last_layer_move_all():
    draw = torch.Generator().manual_seed(0)
    x = torch.randn(120, 4, generator=draw)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(2)
        model = nn.Sequential(nn.Linear(4, 60), nn.ReLU(), nn.Linear(60, 3), nn.Linear(3, 3)).requires_grad_(False)
    now = model(x)
    order = model[:-1](x)[:, 0].argsort()  # all that the last layer sees
    y = now.argmax(1)
    y[order[40:80:10]] = (y[order[40:80:10]] + 1) % 3  # other labels in between
    wrong = now.argmax(1) != y
    goal, keep = ErrorRate(x[wrong], y[wrong], target=0.0), KeepLabels(x[~wrong], y[~wrong], tolerance=0.0)
    reached = {}
    for weights in ("last", "all"):
        spec = make_specification(goal, [keep])
        given = prepare_repair(model, spec, weights=weights, method=TrainThenCorrect(), started=(0.0, 0.0)).task
        found = correct_rows(given, np.zeros(given.engine.n), 0.01, goal=True)
        reached[weights] = found.note == ""
        if not found.note:
            after = given.engine.predict(found.change)(x).argmax(1)
            assert torch.equal(after, y)
    assert reached == {"last": False, "all": True}


def test_points_of_the_goal_are_mended_in_the_way_that_moves_other_outputs_less(monkeypatch):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 60), nn.ReLU(), nn.Linear(60, 3)).requires_grad_(False)
    x = torch.randn(40, 4)
    y = model(x).argmax(1)
    y[:2] = (y[:2] + 1) % 3
    spec = make_specification(ErrorRate(x, y, target=0.0))
    given = prepare_repair(model, spec, weights="all", method=TrainThenCorrect(), started=(0.0, 0.0)).task

    def corrected():
        found = correct_rows(given, np.zeros(given.engine.n), 0.1, goal=True)
        outputs = given.engine.predict(found.change)(x)
        assert torch.equal(outputs.argmax(1), y)
        return float((outputs - model(x)).square().sum())

    chosen, none = corrected(), exact_rows.Corrected(np.zeros(given.engine.n), note="left out")
    with monkeypatch.context() as patch:
        patch.setattr(exact_rows, "_by_last_layer", lambda *_: none)
        by_all = corrected()
    by_factors = exact_rows._by_factors
    monkeypatch.setattr(
        exact_rows,
        "_by_factors",
        lambda task, engine, *rest: by_factors(task, engine, *rest) if engine is not task.engine else None,
    )
    assert chosen == min(by_all, by_last := corrected())
    assert by_all != by_last


@pytest.mark.parametrize("reach", [0.05, 0.1, 0.3, 0.5, 0.75, 0.95, 1.0])
def test_the_longest_way_whose_hard_rows_are_within_reach_is_found_in_few_trials(trained, monkeypatch, reach):
    model, clean, _ = trained
    y = labels_of(clean)
    spec = make_specification(ErrorRate(turned(clean), y, target=0.0), [KeepLabels(clean, y, tolerance=0.0)])
    method, tried = TrainThenCorrect(), []
    task = prepare_repair(model, spec, weights="last", method=method, started=(0.0, 0.0)).task

    def judged(method, task, change, step):
        tried.append(float(change[0]))
        whole = task.judge.original
        return replace(whole, broken=(0,)) if change[0] <= reach else replace(whole, broken=(1,))

    monkeypatch.setattr(TrainThenCorrect, "_judged", judged)
    method._go(task, np.ones(task.engine.n), 1.0)
    within = [share for share in method.ways if share <= reach]
    assert max((share for share in tried if share <= reach), default=None) == (max(within) if within else None)
    assert tried[0] == 1.0
    assert len(tried) <= 6


def test_only_chosen_weights_move_and_norms_are_frozen(fingerprint):
    torch.manual_seed(1)
    x = task(count=600).inputs.float()
    y = (x[:, 0] + 0.8 * x[:, 1] > 0.4).long()
    model = nn.Sequential(nn.Linear(2, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Dropout(0.5), nn.Linear(8, 2))
    optimizer = torch.optim.Adam(model.parameters(), lr=0.02)
    for _ in range(100):
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(x), y).backward()
        optimizer.step()
    model.requires_grad_(False)
    before = fingerprint(model)
    mask = torch.zeros(8, 2, dtype=torch.bool)
    mask[3:] = True
    gap = GroupGap.observed(x, 1, target=0.1)
    found = repair_with(model, gap, method=TrainThenCorrect(rate=0.02), weights={"0.weight": mask}, data=(x, y))
    assert fingerprint(model) == before
    old, new = model.state_dict(), found.model.state_dict()
    assert {name for name in old if not torch.equal(old[name], new[name])} == {"0.weight"}
    assert torch.equal(old["0.weight"][:3], new["0.weight"][:3])


def test_a_goal_without_labels_is_reached_by_its_multiplier():
    given = task(count=800)
    keep = KeepLabels(given.inputs, given.labels, tolerance=0.1)
    report = repair_with(given.model, given.gap(0.05), [keep], method=TrainThenCorrect(rate=0.02), weights="all").report
    assert report.verdict is Verdict.REPAIRED
    assert report.prices[report.verification.measures[0].name] > 0


@pytest.mark.parametrize(
    "wrong",
    [
        {"epochs": 0},
        {"rate": 0.0},
        {"closeness": -1.0},
        {"temperature": 0.0},
        {"ways": ()},
        {"ways": (0.5, 1.5)},
        {"folds": 1},
        {"confidence": 1.0},
    ],
)
def test_wrong_settings_are_named(wrong):
    with pytest.raises(SpecificationError, match=f"TrainThenCorrect: {next(iter(wrong))}="):
        TrainThenCorrect(**wrong)


def test_a_start_is_for_methods_that_step(trained):
    model, clean, _ = trained
    goal, settings = ErrorRate(clean, labels_of(clean)), Settings(start=np.zeros(150 * 3))
    with pytest.raises(SpecificationError, match="does not use it"):
        solve_repair(model, goal, weights="4.weight", method=TrainThenCorrect(), settings=settings)


def test_the_beginning_of_a_set_is_not_taken_for_the_whole(trained):
    model, clean, _ = trained
    y = labels_of(clean)
    spec = make_specification(ErrorRate(clean, y), [KeepLabels(clean[:60], y[:60], tolerance=0.0)])
    task = prepare_repair(model, spec, weights="last", method=TrainThenCorrect(), started=(0.0, 0.0)).task
    unseen = Unseen(task, Folds(2), [np.zeros(task.engine.n)] * 2, 1.0)
    assert torch.allclose(unseen(clean), model(clean), atol=1e-5)
    assert torch.equal(unseen(clean[:60]), unseen(clean)[:60])
    assert sorted(map(len, known_inputs(task))) == [60, 1600]


@pytest.mark.parametrize(("confidence", "claimed"), [(None, []), (0.3, [0.95]), (0.5, [0.95]), (0.8, [0.8])])
def test_claims_have_a_confidence_above_one_half(trained, confidence, claimed):
    model, clean, _ = trained
    clean, y = clean[:300], labels_of(clean[:300])
    bound = Bound(ErrorRate(clean, y), slack=0.5, name="errors")
    method = TrainThenCorrect(epochs=1, ways=(0.1,), folds=2, confidence=confidence)
    claims = solve_repair(model, ErrorRate(turned(clean), y), [bound], weights="last", method=method).report.claims
    assert [claim.confidence for claim in claims] == claimed
    assert all(claim.interval.low <= claim.interval.value <= claim.interval.high for claim in claims)


def test_points_that_training_leaves_wrong_are_tried_by_programs_too():
    x = torch.randn(60, 4, generator=torch.Generator().manual_seed(1))
    y = (x[:, 0] + x[:, 1] > 0).long() + (x[:, 2] > 1).long()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3))
    optimizer = torch.optim.Adam(model.parameters(), 0.02)
    for _ in range(80):
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(x), y).backward()
        optimizer.step()
    right = model(x).argmax(1) == y
    right[:5] = False  # the points, whose labels are to change
    labels = torch.where(torch.arange(60) < 5, (model(x).argmax(1) + 1) % 3, y)
    wanted = ErrorRate(x[:5], labels[:5], target=0.0), KeepLabels(x[right], y[right])
    trained = solve_repair(model, *wanted, method="train_then_correct", weights="all")
    found = solve_repair(model, *wanted)
    assert trained.report.verdict is not Verdict.REPAIRED  # else this test shows nothing
    assert found.report.verdict is Verdict.REPAIRED
    assert found.report.method == "SQP()"
    assert any(note.startswith("TrainThenCorrect(), tried first") for note in found.report.notes)
    after = found.model(x).argmax(1)
    assert torch.equal(after[:5], labels[:5])
    assert torch.equal(after[right], y[right])


def test_a_constraint_on_no_row_at_all_asks_for_nothing():
    x = torch.randn(20, 4, generator=torch.Generator().manual_seed(0))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3))
    now = model(x).argmax(1)
    wanted = ErrorRate(x[:2], (now[:2] + 1) % 3, target=0.0)
    found = solve_repair(model, wanted, KeepLabels(x[2:], (now[2:] + 2) % 3))  # none is right before
    assert found.report.verdict is Verdict.REPAIRED
    assert torch.equal(found.model(x[:2]).argmax(1), (now[:2] + 1) % 3)


def test_data_with_weights_are_left_to_a_method_that_weighs_them():
    x = torch.randn(40, 4, generator=torch.Generator().manual_seed(0))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3))
    now = model(x).argmax(1)
    wanted = ErrorRate(x[:2], (now[:2] + 1) % 3, target=0.0)
    rows = x[2:], now[2:]
    assert solve_repair(model, wanted, data=rows).report.method == "TrainThenCorrect()"
    weighed = solve_repair(model, wanted, data=(*rows, torch.linspace(0.5, 2.0, 38)))
    assert weighed.report.method == "SQP()"
    assert weighed.report.verdict is Verdict.REPAIRED


def test_a_time_limit_leaves_half_of_it_for_what_is_tried_next(monkeypatch):
    def endless(method, task):
        while True:
            check_time()

    monkeypatch.setattr(TrainThenCorrect, "run", endless)
    x = torch.randn(20, 4, generator=torch.Generator().manual_seed(0))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3))
    wanted = ErrorRate(x[:2], (model(x[:2]).argmax(1) + 1) % 3, target=0.0)
    found = solve_repair(model, wanted, settings=Settings(time_limit=2.0))
    assert found.report.method == "SQP()"
    assert found.report.verdict is Verdict.REPAIRED


@pytest.mark.slow
def test_points_of_a_large_network_are_repaired_in_all_layers_where_that_is_quick(monkeypatch):
    """1,440 weights count as many, 23 rows; three are reported with another label than the network gives."""
    for module in ("stages", "given_points"):
        monkeypatch.setattr(f"repairopt.pipeline.{module}.LARGE", 1000)
    monkeypatch.setattr("repairopt.localize.location.LARGE", 1000)
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(20, 60), nn.ReLU(), nn.Linear(60, 4))
    x = torch.randn(23, 20)
    with torch.no_grad():
        y = model(x).argmax(1)
    wrong = ErrorRate(x[:3], (y[:3] + 1) % 4, target=0.0)
    given = {"constraints": [KeepLabels(x[3:], y[3:])], "data": (x[3:], y[3:])}

    def changed(**settings):
        found = solve_repair(model, wrong, settings=Settings(seed=0, **settings), **given)
        assert found.report.verdict == "repaired"
        return set(found.report.location.indices)

    every = {name for name, _ in model.named_parameters()}
    assert changed() == every
    assert changed(time_limit=60.0) == {"2.weight", "2.bias"}
    monkeypatch.setattr("repairopt.pipeline.given_points.MOST_OPERATIONS", 1e5)  # of a pass: 43 times 2 times 1,504
    assert changed() == {"2.weight", "2.bias"}


def test_to_count_operations_leaves_the_network_as_it_is(monkeypatch, fingerprint):
    """In training mode a pass would move running means, and dropout would draw."""
    for module in ("stages", "given_points"):
        monkeypatch.setattr(f"repairopt.pipeline.{module}.LARGE", 100)
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 30), nn.BatchNorm1d(30), nn.ReLU(), nn.Dropout(0.5), nn.Linear(30, 3))
    x = torch.randn(20, 6)
    with torch.no_grad():
        y = model.eval()(x).argmax(1)
    before, state = fingerprint(model.train()), torch.get_rng_state()
    goal = ErrorRate(x[:2], (y[:2] + 1) % 3, target=0.0)
    found = solve_repair(model, goal, [KeepLabels(x[2:], y[2:])], settings=Settings(seed=0))
    assert found.report.verdict is Verdict.REPAIRED
    assert fingerprint(model) == before
    assert model.training
    assert torch.equal(torch.get_rng_state(), state)


def test_no_further_stage_is_begun_that_would_leave_no_time(monkeypatch):
    """Labels at random, which take a second stage; of 10 s, each stage is made to take 4."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, 2))
    x, y = torch.randn(300, 6), torch.randint(0, 2, (300,))
    with torch.no_grad():
        wrong = model(x).argmax(1) != y
    spec = make_specification(ErrorRate(x[wrong], y[wrong], target=0.0), (), (), [(x, y)])
    options = {"weights": "all", "method": TrainThenCorrect(epochs=1), "settings": Settings(seed=0), "data": [(x, y)]}
    steps, take = {}, two_sides._Run.take
    for seconds in (4.0, 0.0):
        task, now = prepare_repair(model, spec, **options).task, [10.0]

        def timed(run, count, reserved, seconds=seconds, now=now):
            now[0] -= seconds
            steps[seconds] = steps.get(seconds, 0) + 1
            return take(run, count, reserved)

        with monkeypatch.context() as patch:
            patch.setattr(two_sides._Run, "take", timed)
            patch.setattr(two_sides, "time_left", lambda now=now: now[0])
            two_sides.train(task, two_sides.Sides.of(task), TrainThenCorrect(epochs=1))
    assert steps == {4.0: 1, 0.0: 2}


@pytest.mark.parametrize(("rows", "stages"), [(two_sides.FEW_TAUGHT - 1, 1), (two_sides.FEW_TAUGHT, 2)])
def test_few_rows_that_are_learned_slowly_get_no_further_stage(rows, stages, monkeypatch):
    """The first stage leaves two thirds of the rows wrong, which may be noise where rows are few."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2))
    x = torch.randn(rows, 3)
    y = 1 - model(x).argmax(1)
    spec = make_specification(ErrorRate(x, y, target=0.0), (), (), [(x, y)])
    options = {"weights": "all", "method": TrainThenCorrect(), "settings": Settings(seed=0), "data": [(x, y)]}
    task, left = prepare_repair(model, spec, **options).task, []

    def two_thirds(run, count, reserved):
        left.append(0.0 if left else 2 / 3)
        return left[-1]

    monkeypatch.setattr(two_sides._Run, "take", two_thirds)
    two_sides.train(task, two_sides.Sides.of(task), TrainThenCorrect())
    assert len(left) == stages


def test_whether_small_steps_go_on_is_told_by_the_mean_of_their_weights(monkeypatch):
    """Steps of four rows at a high rate, whose single weights get other rows wrong than the mean that is delivered."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, 3))
    x = torch.randn(300, 6)
    spec = make_specification(ErrorRate(x, labels_of(x), target=0.0), (), (), [(x, labels_of(x))])
    method = TrainThenCorrect(rate=0.3)
    options = {"weights": "all", "method": method, "settings": Settings(seed=0), "data": [(x, labels_of(x))]}
    task, told, take = prepare_repair(model, spec, **options).task, [], two_sides._Run.take
    monkeypatch.setattr(two_sides, "plan_steps", lambda *_, **__: StepPlan(100, 4, 1.0))
    monkeypatch.setattr(two_sides._Run, "take", lambda *given: told.append(take(*given)) or told[-1])
    change = two_sides.train(task, two_sides.Sides.of(task), method).change
    assert told[-1] > 0
    assert told[-1] == pytest.approx(1 - share_right(task.engine.predict(change), x, labels_of(x)))


def test_training_that_takes_its_share_of_the_time_ends_with_what_it_has(monkeypatch):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, 2))
    x = torch.randn(300, 6)
    with torch.no_grad():
        y = model(x).argmax(1)
    y[:10] = 1 - y[:10]
    spec = make_specification(ErrorRate(x[:10], y[:10], target=0.0), (), (), [(x, y)])
    options = {"weights": "all", "method": TrainThenCorrect(), "settings": Settings(seed=0), "data": [(x, y)]}
    task, asked = prepare_repair(model, spec, **options).task, [0]

    def left():  # 10 s at first, of which every look takes 0.05
        asked[0] += 1
        return 10.0 - 0.05 * asked[0]

    monkeypatch.setattr(two_sides, "time_left", left)
    trained = two_sides.train(task, two_sides.Sides.of(task), TrainThenCorrect())
    assert 0.4 * 10 - 0.5 <= left() <= 0.4 * 10 + 0.1, "as much is left as others need"
    assert trained.change.any()
