from dataclasses import dataclass, replace
from typing import Any, ClassVar

import numpy as np
import pytest
import torch

from repairopt.interfaces.testing import check_property, check_solver
from repairopt.program import Kind, Solution, Status
from repairopt.solvers import DAQP, PIQP, HiGHS
from repairopt.specify import CallableProperty, rate_interval


@dataclass(frozen=True)
class Faulty:
    """DAQP or HiGHS with one fault, which ``check_solver`` has to find."""

    change: Any
    inner: Any

    requires: ClassVar[tuple[str, ...]] = ()

    @property
    def name(self):
        return "faulty"

    @property
    def kinds(self):
        return self.inner.kinds

    def solve(self, program):
        return self.change(program, self.inner)


def wrong_triangle(program, inner):
    if not isinstance(program.hessian, np.ndarray):
        return inner.solve(program)
    return inner.solve(replace(program, hessian=np.diag(np.diag(program.hessian))))


def writes_into_its_input(program, inner):
    solution = inner.solve(program)
    program.gradient[0] += 1e-12
    return solution


def different_each_time(program, inner):
    solution = inner.solve(program)
    if solution.delta is None:
        return solution
    return replace(solution, delta=solution.delta + 1e-7 * np.random.default_rng().normal(size=program.n))


def of(**changes):
    def change(program, inner):
        solution = inner.solve(program)
        new = {name: make(getattr(solution, name)) for name, make in changes.items()}
        return replace(solution, **{name: value for name, value in new.items() if value is not None})

    return change


def negated(value):
    return None if value is None else -value


def raise_error(program, inner):
    raise OSError("native library not found")


def split_duals(program, inner):
    """Stationary, but with a multiplier on a side that does not hold."""
    solution = inner.solve(program)
    if solution.row_duals is None or not program.m or solution.delta is None:
        return solution
    shift = np.zeros(program.m)
    shift[0] = 0.5
    bound_duals = solution.bound_duals - program.matrix.T @ shift
    return replace(solution, row_duals=solution.row_duals + shift, bound_duals=bound_duals)


FAULTS = {
    "wrong triangle": (wrong_triangle, DAQP(), "'dense quadratic': expected objective"),
    "writes into its input": (writes_into_its_input, DAQP(), "arrays unchanged"),
    "different each time": (different_each_time, PIQP(), "expected two runs to agree; got points"),
    "duals of the other sign": (of(row_duals=negated, bound_duals=negated), DAQP(), "H d .* = 0; got a residual"),
    "duals on idle sides": (split_duals, DAQP(), "dual only where the (upper|lower) side holds; got"),
    "ray of the other sign": (of(ray=negated), HiGHS(), "ray' A d above what the rows allow; got"),
    "always optimal": (of(status=lambda _: Status.OPTIMAL), DAQP(), "expected status infeasible; got failed"),
    "never optimal": (of(status=lambda _: Status.FEASIBLE), DAQP(), "expected status optimal; got feasible"),
    "stops early": (
        of(delta=lambda d: None if d is None else 0 * d),
        DAQP(),
        "'linear': expected objective -10; got 1",
    ),
    "crash": (raise_error, DAQP(), "expected an answer; got SolverError: .*OSError: native library not found"),
}


@pytest.mark.parametrize(("change", "inner", "message"), FAULTS.values(), ids=FAULTS)
def test_check_solver_finds_the_fault(change, inner, message):
    with pytest.raises(AssertionError, match=message) as caught:
        check_solver(Faulty(change, inner))
    assert str(caught.value).startswith("check_solver('faulty') on '")


def test_check_solver_asks_for_an_instance_and_for_kinds():
    with pytest.raises(AssertionError, match="expected an instance with name, kinds"):
        check_solver(DAQP)

    class NoKinds(DAQP):
        kinds = ("LP",)

    with pytest.raises(AssertionError, match="expected kinds that are a non-empty frozenset of Kind"):
        check_solver(NoKinds())


def test_a_solver_without_duals_passes():
    @dataclass(frozen=True)
    class Bare:
        name: ClassVar[str] = "bare"
        kinds: ClassVar[frozenset[Kind]] = frozenset({Kind.LP})
        requires: ClassVar[tuple[str, ...]] = ("daqp",)

        def solve(self, program):
            solution = DAQP().solve(program)
            return Solution(solution.status, solution.delta)

    ran = check_solver(Bare())
    assert "linear: answer" in ran
    assert not any(name.endswith("optimality conditions") or name.endswith("time limit") for name in ran)


INPUTS = torch.linspace(-1, 1, 12).reshape(4, 3)
WEIGHT = torch.tensor([[1.0, -1.0], [0.5, 2.0], [-1.0, 0.25]])


def predict(inputs):
    return inputs @ WEIGHT


@dataclass
class Share:
    """Share of inputs of class 1, with everything optional that a property may have."""

    name: str = "share"
    target: float = 0.2

    def value(self, predict):
        return (predict(INPUTS).argmax(1) == 1).float().mean()

    def soft_value(self, predict):
        return predict(INPUTS).softmax(1)[:, 1].mean()

    def residuals(self, predict):
        return predict(INPUTS)[:, 1] - 1.0

    def details(self, predict):
        return {"inputs": 4.0}


def test_check_property_lists_what_it_checked_and_what_would_be_gained():
    ran = check_property(Share(), predict)
    assert [one for one in ran if not one.startswith("lacks ")] == [
        "declaration",
        "value: scalar and finite",
        "value: deterministic",
        "soft_value: finite and differentiable",
        "residuals: finite and differentiable",
        "details: text to number",
    ]
    assert "lacks interval: Claims about new data and, with where, buffers from cross-validation." in ran
    assert any(one.startswith("lacks signed_hard: A row for each part and sign") for one in ran)


def test_check_property_takes_a_plain_function_and_leaves_out_what_is_not_there():
    ran = check_property(CallableProperty(lambda predict: float(predict(INPUTS).mean()), name="mean"), predict)
    assert ran[:3] == ["declaration", "value: scalar and finite", "value: deterministic"]
    assert all(one.startswith("lacks ") for one in ran[3:])


PROPERTY_FAULTS = {
    "no target": ({"target": float("nan")}, "expected a finite target; got nan"),
    "target as text": ({"target": "0.2"}, "expected a finite target; got 0.2"),
    "no name": ({"name": ""}, "expected a name that is a non-empty text"),
    "one value an input": ({"value": lambda p: p(INPUTS)[:, 0]}, r"value to be a scalar, shape \(\); got shape \(4,\)"),
    "infinite": ({"value": lambda p: p(INPUTS).sum() / 0}, "expected value to be finite"),
    "random": ({"value": lambda p: torch.rand(())}, "expected the same value from the same predict; got"),
    "soft value of counts": (
        {"soft_value": lambda p: (p(INPUTS)[:, 0] > 0).float().mean()},
        "expected soft_value to be differentiable; got a result that no gradient",
    ),
    "soft value with no gradient at 0": (
        {"soft_value": lambda p: (p(INPUTS) * 0).sum().sqrt()},
        "expected soft_value with a finite gradient; got nan",
    ),
    "scalar residuals": ({"residuals": lambda p: p(INPUTS).sum()}, "expected residuals with 1 dimensions; got"),
    "signed parts of another number": (
        {"signed_hard": lambda p: p(INPUTS).sum()[None]},
        r"expected signed_hard of shape \(4,\), as residuals; got \(1,\)",
    ),
    "signed parts of another size": (
        {"combine": "max", "signed_hard": lambda p: p(INPUTS)[:, 1] * 0 + 3},
        "expected the max size of signed_hard to be the value, 0.75; got 3",
    ),
    "a share without negative margins": (
        {"inputs": INPUTS, "counted": None, "margins_of": lambda outputs, samples: outputs * 0 + 1},
        "expected a value above 0 exactly where a margin is negative; got 0.75, least margin 1",
    ),
    "margins of all samples": (
        {"inputs": INPUTS, "counted": None, "margins_of": lambda outputs, samples: outputs - outputs.amax()},
        "expected margins_of to look at each sample alone",
    ),
    "an interval elsewhere": (
        {"interval": lambda p, confidence: rate_interval(0, 4, confidence)},
        "expected an interval of the value, 0.75; got 0",
    ),
    "other data make another property": (
        {"inputs": INPUTS, "on": lambda inputs, labels: Share("other")},
        "expected on to keep name and target; got 'other'",
    ),
    "all samples are not all": (
        {"where": lambda keep: CallableProperty(lambda p: 0.0, 0.2, "share")},
        "expected all samples to give the value, 0.75; got 0",
    ),
    "negative radii": ({"radii": lambda p: p(INPUTS)[:, 0] * 0 - 1}, r"expected radii \(N,\) from 0"),
    "rates above 1": (
        {
            "combine": "max",
            "interval": lambda p, confidence: rate_interval(3, 4, confidence),
            "compared": lambda p, soft: (torch.full((1, 2), 2.0), torch.ones(1, 2)),
        },
        "expected compared to return rates, 0 to 1",
    ),
    "details that are text": ({"details": lambda p: {"rate": "high"}}, "expected details that are a dict from text to"),
}


@pytest.mark.parametrize(("methods", "message"), PROPERTY_FAULTS.values(), ids=PROPERTY_FAULTS)
def test_check_property_finds_the_fault(methods, message):
    prop = Share()
    for name, method in methods.items():
        setattr(prop, name, method)
    with pytest.raises(AssertionError, match=message) as caught:
        check_property(prop, predict)
    assert str(caught.value).startswith("check_property('")


def test_check_property_asks_for_a_property():
    with pytest.raises(AssertionError, match="expected name, target and value.predict.; got a int without one of them"):
        check_property(3, predict)
