"""Repair of a quantized last layer: whole steps, codes within their range, judged on the true network."""

import numpy as np
import pytest
import torch
from biased_task import task

from repairopt import (
    ErrorRate,
    KeepLabels,
    OnGrid,
    SpecificationError,
    Strictest,
    Verdict,
    available_solvers,
    solve_repair,
)
from repairopt.methods.choosing.on_grid import weight_grid
from repairopt.network import Engine

pytestmark = pytest.mark.skipif(not available_solvers("MIQP"), reason="no MIQP back end is installed")


def quantized(bits=6):
    """The small task, its last layer on a grid with one scale for each output."""
    toy = task()
    weight = toy.model[2].weight
    with torch.no_grad():
        step = weight.abs().amax(1, keepdim=True) / (2 ** (bits - 1) - 1)
        weight.copy_((weight / step).round() * step)
    return toy, step


def test_weights_stay_on_their_grid_and_within_their_codes():
    toy, step = quantized()
    method = OnGrid(bits=6, selection=Strictest(positive=1, negative=1), seconds=20)
    found = solve_repair(toy.model, toy.gap(), [toy.keep()], weights=["2.weight"], method=method)
    codes = (found.model[2].weight / step).detach()
    assert float((codes - codes.round()).abs().max()) < 1e-9
    assert codes.min() >= -32 - 1e-9
    assert codes.max() <= 31 + 1e-9
    assert int((found.delta["2.weight"] != 0).sum()) > 0
    measure = found.report.verification.measures[0]
    assert measure.after < 0.6 * measure.before
    assert all(check.holds for check in found.report.verification.checks)
    assert found.report.verdict in (Verdict.REPAIRED, Verdict.IMPROVED)


def test_what_breaks_constraints_is_not_taken_by_half():
    toy, _ = quantized()
    wrong = 1 - toy.labels[:50]
    nothing = KeepLabels(toy.inputs, toy.labels, tolerance=0.0)
    method = OnGrid(bits=6, max_rounds=1, seconds=2)
    found = solve_repair(toy.model, ErrorRate(toy.inputs[:50], wrong), [nothing], weights=["2.weight"], method=method)
    change = found.delta["2.weight"]
    assert found.report.verification.checks[0].holds
    assert bool((change == 0).all()) or found.report.verdict in (Verdict.IMPROVED, Verdict.REPAIRED)


def test_steps_by_name_by_shape_and_of_the_whole_tensor():
    toy, step = quantized()
    engine = Engine(toy.model, {"2.weight": torch.arange(8)})
    for given in ({"2.weight": step}, {"2.weight": step.numpy()}, None):
        sizes, codes = weight_grid(engine, given, 6)
        np.testing.assert_allclose(sizes, step.expand(2, 4).flatten())
        np.testing.assert_allclose(codes * sizes, toy.model[2].weight.detach().flatten())
    with torch.no_grad():
        toy.model[2].weight.copy_(torch.tensor([[127.0, 3, -4, 5], [2, 1, 0, -7]]) * 0.01)
    sizes, codes = weight_grid(engine, None, 8)
    np.testing.assert_allclose(sizes, 0.01)
    np.testing.assert_allclose(codes, [127, 3, -4, 5, 2, 1, 0, -7])


@pytest.mark.parametrize(
    ("step", "text"),
    [
        (0.0123, "entry .* of '2.weight' is .* steps off its grid; expected whole steps. Pass step="),
        (-1.0, "a step of '2.weight' is not above 0"),
        ({"2.weight": np.ones(3)}, r"the step of '2.weight' has shape \(3,\); expected a number, or a shape that"),
    ],
)
def test_wrong_steps_are_named(step, text):
    toy, _ = quantized()
    with pytest.raises(SpecificationError, match=text):
        solve_repair(toy.model, toy.gap(), [toy.keep()], weights=["2.weight"], method=OnGrid(step=step, bits=6))
    with pytest.raises(SpecificationError, match="bits=1; expected a whole number, 2 or more, at most 16"):
        OnGrid(bits=1)
