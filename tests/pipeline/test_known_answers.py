"""Published answers on real networks: optimal values to be reproduced, and repairs at least as good as the published.

Bars are those of quality; times stand in ``benchmarks/results/solvers.md``. Settings were chosen on data that no bar
sees, see :class:`real_programs.PointRepair`. Drawdown and generalization are points of accuracy lost and gained.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from real_programs import PointRepair, Watermarks, accuracy, digits, network, repair_last_layer, repair_layer

from repairopt import Kind, Status, available_solvers
from repairopt.program import solve, solve_working_set
from repairopt.surrogate import LinearizedRows

pytestmark = pytest.mark.data
SIZES = (1, 2, 3, 4, 5, 6, 7, 25, 50, 75, 100)
SLOW = {"daqp": 7, "piqp": 7, "pyomo": 25}  # sizes above which a back end is slow on the watermarks
REPRODUCED = 1e-6  # relative


@pytest.fixture(scope="module")
def provable(data_dir):
    if not (data_dir / "provable").is_dir():
        pytest.skip(f"no provable/ in {data_dir}")
    return data_dir


# -------------------------------------------------------------------- watermarks (LPAR 2020)


@pytest.fixture(scope="module")
def watermarks(provable):
    return Watermarks.load(provable)


def cases():
    """Every back end for linear programs, every published size; of those at which one is slow, one."""
    for solver in available_solvers(Kind.LP):
        for size in SIZES:
            slow = [pytest.mark.slow] if size > SLOW.get(solver, 100) else []
            if slow and size != 25:
                continue
            yield pytest.param(solver, size, marks=slow, id=f"{solver}-{size}")


@pytest.mark.parametrize(("solver", "size"), list(cases()))
def test_least_change_that_removes_watermarks(watermarks, solver, size):
    """The published optimum of the last set of each size, or of the first: each set meets about half of the solvers."""
    which = (SIZES.index(size) + sum(solver.encode())) % 2 - 1 if size <= SLOW.get(solver, 100) else -1
    found = solve(watermarks.reciprocal(watermarks.sets[size][which]), solver)
    assert found.status is Status.OPTIMAL, found.message
    assert -1.0 / found.objective == pytest.approx(watermarks.optima[size][which], rel=REPRODUCED)


@pytest.mark.parametrize("solver", ["piqp", "highs", "scipy", "clarabel"])
@pytest.mark.parametrize("size", [1, 5, 25, 100])
def test_least_change_as_published(watermarks, solver, size):
    """The same in the published variables, a row for each side of each weight; no watermark keeps its class alone."""
    if solver not in available_solvers(Kind.LP):
        pytest.skip(f"{solver} is not installed")
    samples, optimum = watermarks.sets[size][-1], watermarks.optima[size][-1]
    program = watermarks.program(samples)
    found = solve(program, solver)
    assert found.status is Status.OPTIMAL, found.message
    assert found.objective == pytest.approx(optimum, rel=REPRODUCED)
    assert np.abs(found.delta[:-1]).max() <= found.objective * (1 + 1e-8)
    before, after = watermarks.outputs(samples), watermarks.outputs(samples, found.delta[:-1])
    left = np.take_along_axis(after, before.argmax(axis=1)[:, None], axis=1)[:, 0]
    assert np.all(np.sort(after, axis=1)[:, -1] >= left - 1e-6)
    assert np.all(np.sort(after, axis=1)[:, -2] >= left - 1e-6)


def test_published_sizes_are_all_tested(watermarks):
    assert sorted(watermarks.optima) == list(SIZES)
    assert {size: len(watermarks.sets[size]) for size in SIZES} == dict.fromkeys(SIZES, 1000) | {1: 100, 100: 1}


# -------------------------------------------------------------------- fog (PLDI 2021, 2023), wrong answers (ICLR 2022)


def test_networks_are_the_published_ones(provable):
    """Accuracies of the untouched networks, clean and in fog, as the data's description has them."""
    clean, foggy, labels = digits(provable)
    for name, before, in_fog in (("mnist_relu_3_100", 96.54, 19.22), ("mnist_relu_9_200", 94.95, 17.43)):
        model = network(provable, name)
        assert accuracy(model, clean, labels) == pytest.approx(before, abs=0.005)
        assert accuracy(model, foggy[1100:], labels[1100:]) == pytest.approx(in_fog, abs=0.005)


def test_held_out_data_are_held_out(provable):
    """No clean image of the figures is kept or used for settings, no foggy one is repaired or used for settings."""
    for task in (PointRepair.fog(provable, "mnist_relu_3_100"), PointRepair.misclassified(provable)):
        seen = {image.numpy().tobytes() for part in (task.fix, task.keep, task.tuning[:2]) for image in part[0]}
        seen |= {image.numpy().tobytes() for image in task.tuning[1]}
        assert not seen & {image.numpy().tobytes() for image in (*task.clean[0], *task.shifted[0])}


def test_fog_small_network(provable):
    """784-100-100-10. Published: drawdown 1.28, generalization 31.5 points; bars 0.25 and 46."""
    task = PointRepair.fog(provable, "mnist_relu_3_100", fix_margin=0.3, keep_margin=5.0)
    model, found = repair_last_layer(task, "daqp")
    assert found.status is Status.OPTIMAL
    assert found.distance <= 1e-8
    assert np.abs(found.delta).max() <= 3.0
    figures = task.measured(model)
    assert figures["efficacy"] == 100.0
    assert figures["drawdown"] <= 0.25
    assert figures["generalization"] >= 46.0


def test_fog_small_network_with_the_published_margin(provable):
    """The published margin of 0.05 and keep rows without a lead: the figures measured before, within a point."""
    task = PointRepair.fog(provable, "mnist_relu_3_100")
    model, _ = repair_last_layer(task, "daqp")
    figures = task.measured(model)
    assert figures["efficacy"] == 100.0
    assert figures["drawdown"] <= 0.25
    assert figures["generalization"] == pytest.approx(46.0, abs=1.0)


def test_all_back_ends_agree_on_the_fog_program(provable):
    """The optimum of the working set, from every back end that is quick enough, is that of all rows at once."""
    task = PointRepair.fog(provable, "mnist_relu_3_100", keep=500, fix_margin=0.3, keep_margin=5.0)
    head, linearization = task.last_layer()
    rows = LinearizedRows(linearization)
    able = [name for name in ("daqp", "woodbury", "clarabel") if name in available_solvers(Kind.QP)]
    values = {name: solve_working_set(head, rows, solver=name, batch=100).objective for name in able}
    matrix, lower, upper = rows.rows(np.arange(rows.m))
    whole = solve(replace(head, matrix=matrix, lower=lower, upper=upper), "woodbury")
    assert whole.status is Status.OPTIMAL
    assert values == {name: pytest.approx(whole.objective, rel=1e-7) for name in able}


def test_rounds_end_where_rows_used_to_come_and_go(provable):
    """A margin so large that rows slack in one round are violated in the next; once 500 rounds without an end."""
    task = PointRepair.fog(provable, "mnist_relu_3_100", fix_margin=4.0)
    model, found = repair_last_layer(task, "daqp")
    assert found.status is Status.OPTIMAL
    assert found.rounds < 30
    assert task.measured(model)["efficacy"] == 100.0


@pytest.mark.slow
def test_fog_deep_network_last_layer(provable):
    """784-(200 x 8)-10, one exact program. Published: drawdown 1.38, generalization 24.7; bars 0.8 and 18.7."""
    task = PointRepair.fog(provable, "mnist_relu_9_200", keep_margin=0.3)
    model, found = repair_last_layer(task, "daqp")
    assert found.status is Status.OPTIMAL
    figures = task.measured(model)
    assert figures["efficacy"] == 100.0
    assert figures["drawdown"] <= 0.8
    assert figures["generalization"] >= 18.7


@pytest.mark.slow
def test_fog_deep_network_third_layer(provable):
    """The same network by a walk in its third layer, which generalizes far better; bars 0.8 and 23."""
    task = PointRepair.fog(provable, "mnist_relu_9_200", fix_margin=0.3, keep_margin=0.3)
    model, steps = repair_layer(task, 4, [0.3] * 3 + [0.6] * 12)
    assert steps < 15
    figures = task.measured(model)
    assert figures["efficacy"] == 100.0
    assert figures["drawdown"] <= 0.8
    assert figures["generalization"] >= 23.0


def test_misclassified_digits(provable):
    """784-256-256-10, 100 wrong answers, all fixed; published with a patch for each. Bar: drawdown 0.32."""
    task = PointRepair.misclassified(provable, keep_margin=4.0)
    model, found = repair_last_layer(task, "daqp")
    assert found.status is Status.OPTIMAL
    figures = task.measured(model)
    assert figures["efficacy"] == 100.0
    assert figures["drawdown"] <= 0.32
