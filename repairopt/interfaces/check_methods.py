"""check_method(): run somebody's repair method on small repairs with known answers."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor, nn

from repairopt.errors import SpecificationError
from repairopt.methods import OPTIONAL, Method, Outcome, Task, uses
from repairopt.network import Candidate
from repairopt.patches import fingerprint
from repairopt.pipeline import Settings, prepare_repair, solve_repair
from repairopt.program import Kind, Program, Solution, Status, solve
from repairopt.report import Repair, Verdict
from repairopt.specify import CallableProperty, ErrorRate, GroupGap, KeepLabels, Specification
from repairopt.verify import Stop

LATE = 2.0  # seconds by which a time limit may be passed
FAIR = {"0.weight": torch.tensor([[0.0, 0.8], [0.0, -0.8]], dtype=torch.float64)}  # change after which groups are alike


@dataclass(frozen=True, eq=False)
class _Case:
    """A repair that can be done, or for ``reachable=False`` one that cannot."""

    name: str
    model: nn.Module
    goal: Any
    constraints: tuple[Any, ...]
    data: tuple[Tensor, Tensor]
    reachable: bool = True

    def prepared(self, method: Method, **settings: Any) -> Task:
        options: Any = {"data": self.data, "weights": "all", "method": method, "settings": Settings(**settings)}
        return prepare_repair(self.model, Specification(self.goal, self.constraints), **options).task

    def repair(self, method: Method, **settings: Any) -> Repair:
        weights = "all" if "weights" in uses(method) else "auto"
        options: Any = {"data": self.data, "weights": weights, "settings": Settings(**settings)}
        return solve_repair(self.model, self.goal, self.constraints, method=method, **options)


@dataclass
class _Counting:
    """Solves with the default back end and counts."""

    count: int = 0

    name: ClassVar[str] = "counting"
    kinds: ClassVar[frozenset[Kind]] = frozenset(Kind)
    requires: ClassVar[tuple[str, ...]] = ()

    def solve(self, program: Program) -> Solution:
        self.count += 1
        return solve(program)


Expect = Callable[[bool, str, object], None]


def check_method(method: Method) -> list[str]:
    """Run a method on small repairs with known answers, and check what it returns and how it behaves.

    Checked: that it returns an :class:`repairopt.methods.Outcome`; that what it returns was kept by the judge, and that
    no constraint is broken by it; that a gap between groups, or wrong answers to some points, become less; that nothing
    is claimed where nothing can be done; that model and data stay as they are; that a second run with the same seed
    agrees; that a time limit is obeyed; that rounds are logged; that the repair becomes a patch; that ``uses`` is true.
    A repair for which the method raises SpecificationError is left out, as long as another one runs. Not checked: how
    good repairs of larger networks are.

    Args:
        method: An instance; need not be registered.

    Returns:
        Names of the checks that ran, each as ``"repair: check"``.

    Raises:
        AssertionError: A check failed; the message names method and repair, what was expected and what came.
    """
    name = type(method).__name__
    expect = _expectation(name)
    instance = isinstance(method, Method) and not isinstance(method, type)
    expect(instance, "an instance with run(task)", repr(method))
    unknown = set(uses(method)) - set(OPTIONAL)
    expect(not unknown, f"uses to be names among {', '.join(OPTIONAL)}", sorted(unknown))
    ran, taken = ["declaration"], 0
    for case in _cases():
        told = _expectation(name, case.name)
        try:
            found = _check_outcome(told, method, case)
        except SpecificationError:
            continue
        taken += case.reachable
        ran += [f"{case.name}: {check}" for check in [*found, *_check_case(told, method, case)]]
    expect(taken > 0, "a repair that it takes: a gap between groups, or wrong points", "SpecificationError for all")
    return ran


def _expectation(name: str, case: str = "") -> Expect:
    where = f"check_method('{name}')" + (f" on '{case}'" if case else "")

    def expect(holds: bool, expected: str, got: object) -> None:
        if not holds:
            raise AssertionError(f"{where}: expected {expected}; got {got}.")

    return expect


def _cases() -> list[_Case]:
    draw = torch.Generator().manual_seed(0)
    merit = torch.randn(150, generator=draw, dtype=torch.float64)
    inputs = torch.cat([torch.stack([merit, torch.full_like(merit, group)], 1) for group in (0.0, 1.0)])
    labels = (inputs[:, 0] > 0).long()
    # class 1 minus class 0: 2 merit + 1.6 group - 0.8, so that the group decides where it must not
    layer = nn.Linear(2, 2).double()
    with torch.no_grad():
        layer.weight.copy_(torch.tensor([[-1.0, -0.8], [1.0, 0.8]]))
        layer.bias.copy_(torch.tensor([0.4, -0.4]))
    model = nn.Sequential(layer).eval()
    keep, data = KeepLabels(inputs, labels, tolerance=0.2), (inputs, labels)
    wrong = ErrorRate(inputs, labels, target=0.1, name="wrong points")
    never = CallableProperty(lambda predict: 1.0 + 0.0 * predict(inputs).sum(), target=0.5, name="constant")
    gap = GroupGap.observed(inputs, 1, target=0.05)
    return [
        _Case("gap", model, gap, (keep,), data),
        _Case("points", model, wrong, (), data),
        _Case("out of reach", model, never, (keep,), data, reachable=False),
    ]


def _check_case(expect: Expect, method: Method, case: _Case) -> list[str]:
    inputs = case.data[0]
    before = (fingerprint(case.model), [m.training for m in case.model.modules()], inputs.clone())
    started = time.perf_counter()
    repair = case.repair(method)
    seconds = time.perf_counter() - started
    same = before[0] == fingerprint(case.model) and before[1] == [m.training for m in case.model.modules()]
    expect(same and torch.equal(before[2], inputs), "model and data as they were", "others")
    ran = ["model unchanged", *_check_verdict(expect, case, repair)]
    if case.reachable:  # where nothing is done two runs agree
        again = case.repair(method)
        with torch.no_grad():
            apart = float((again.model(inputs) - repair.model(inputs)).abs().max())
        expect(apart <= 1e-6, "a second run with the same seed to agree", f"outputs {apart:.3g} apart")
        ran.append("two runs agree")
    _check_time(expect, method, case, seconds)
    ran.append("time limit")
    if "start" in uses(method) and case.name == "gap":
        at_answer = case.repair(method, start=FAIR).report
        expect(
            at_answer.verdict is Verdict.REPAIRED, "a repair that starts at an answer to end there", at_answer.verdict
        )
        ran.append("start")
    return ran


def _check_verdict(expect: Expect, case: _Case, repair: Repair) -> list[str]:
    verdict, changed = repair.report.verdict, repair.report.changed
    expect(verdict is not Verdict.VIOLATED, "constraints that hold", f"a candidate that breaks one ({verdict})")
    if not case.reachable:
        expect(verdict is not Verdict.REPAIRED and verdict is not Verdict.IMPROVED, "no repair", verdict)
        return ["nothing is claimed"]
    expect(verdict in (Verdict.REPAIRED, Verdict.IMPROVED), "a better network", f"{verdict}, {changed} numbers changed")
    expect(len(repair.report.rounds) > 0, "rounds in the log, by task.record(...)", "none")
    patched = repair.as_patch(case.model).apply(case.model)
    expect(
        torch.equal(patched(case.data[0]), repair.model(case.data[0])), "a patch that is the repair", "other outputs"
    )
    return ["better", "rounds", "patch"]


def _check_outcome(expect: Expect, method: Method, case: _Case) -> list[str]:
    """What the method itself returns, and which settings of the task it used on the way."""
    counting = _Counting()
    task = case.prepared(method, solver=counting)
    try:
        outcome = method.run(task)
    except Stop:  # says that nothing can be done
        return []
    expect(isinstance(outcome, Outcome), "an Outcome", type(outcome).__name__)
    expect(isinstance(outcome.status, Status), "a Status as its status", repr(outcome.status))
    found: Any = outcome.candidate
    array = isinstance(found, np.ndarray)
    expect(array or isinstance(found, Candidate), f"a change ({task.engine.n},) or a candidate", type(found).__name__)
    good = not array or (found.shape == (task.engine.n,) and bool(np.isfinite(found).all()))
    expect(good, f"a change of {task.engine.n} finite numbers", getattr(found, "shape", ""))
    kept = not task.judge(found).better_than(task.judge.best)
    expect(kept, "what it returns to be known to task.judge.keep", "a candidate better than any that was kept")
    used = "solver" in uses(method)
    expect(used or not counting.count, "no solve, since 'solver' is not in uses", f"{counting.count} solves")
    if case.reachable:
        expect(counting.count > 0 or not used, "solves with the solver of the user, since 'solver' is in uses", "none")
    return ["outcome", "kept by the judge", "uses"]


def _check_time(expect: Expect, method: Method, case: _Case, seconds: float) -> None:
    for limit in (1e-6, seconds / 2):
        task = case.prepared(method, time_limit=limit)
        task.judge.deadline = (started := time.perf_counter()) + limit
        with contextlib.suppress(Stop):
            method.run(task)
        late = time.perf_counter() - started - limit
        expect(late <= LATE, f"an end within {LATE:g} s of a time limit of {limit:.3g} s", f"{late:.3g} s too late")
