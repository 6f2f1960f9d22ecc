"""Conclude a repair: settle on a point, write it into a copy, verify the true networks, report."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any

import numpy as np
from torch import Tensor, nn

from repairopt.localize import WeightChange, changed_parameters, gather_moved
from repairopt.methods import Outcome, Task
from repairopt.network import Candidate, Remembering
from repairopt.patches import library_versions
from repairopt.program import Status
from repairopt.report import Repair, Report, ReportSources, Trust, Verdict
from repairopt.specify import Detailed, beyond, margins_at
from repairopt.verify import Check, Judge, Judgement, Verification, both_networks, verify

from .new_data import claims_on
from .prepare import Prepared

CONFIDENCE = 0.95  # of claims about held-out data


def conclude_repair(
    prepared: Prepared,
    outcome: Outcome,
    *,
    method: str,
    shrink: bool = True,
    stopped: str = "",
    confidence: float = CONFIDENCE,
) -> Repair:
    """From what a method proposes to the repaired copy and its report.

    Args:
        prepared: The repair.
        outcome: What the method proposes.
        method: What the report calls the method.
        shrink: Where the method overshot the target, go back as far as the target stays met.
        stopped: Why it ended early, or empty.
        confidence: Confidence of the claims about held-out data, one-sided.

    Returns:
        The repaired copy, its change and the report.
    """
    task, deadline = prepared.task, prepared.task.judge.deadline
    final = _settle(task, outcome, shrink, stopped)
    ending = _end_at(prepared, final, deadline)
    verdict = _verdict(ending.verification, outcome, ending.changed)
    if verdict in (Verdict.UNSOLVED, Verdict.INFEASIBLE) and ending.changed and not _is_better(ending.verification):
        final = task.judge.original  # a change that gains nothing is not applied
        ending = _end_at(prepared, final, deadline)
        verdict = _verdict(ending.verification, outcome, ending.changed)
    goal = prepared.specification.goal
    if isinstance(goal, Detailed) and not ending.verification.measures[0].details:
        task.log.note(f"Time was up before the details of '{goal.name}' were measured; its value is.")
    candidate, repaired, delta = ending.candidate, ending.repaired, ending.delta
    report = Report(
        verdict=verdict,
        verification=ending.verification,
        location=prepared.location,
        candidate=candidate.describe(),
        changed=ending.count,
        largest_change=max((float(c.abs().max()) for c in delta.values() if c.numel()), default=0.0),
        status=outcome.status,
        method=method,
        surrogate=outcome.surrogate,
        rounds=tuple(task.log.rounds),
        rows_used=task.log.rows_used,
        gave_way=outcome.gave_way,
        infeasible=task.log.infeasible,
        prices=outcome.prices,
        out_of_reach=outcome.out_of_reach,
        claims=claims_on(prepared, outcome, final, ending.both, confidence),
        buffers=outcome.buffers,
        margins=outcome.margins,
        proof=outcome.proof if final.candidate is outcome.candidate else None,
        proof_verdict=outcome.proof_verdict if final.candidate is outcome.candidate else None,
        trust=_trust(task, outcome, final),
        seconds={**task.log.seconds, "total": time.perf_counter() - prepared.started[0]},
        cpu_seconds=time.process_time() - prepared.started[1],
        stopped=stopped,
        notes=tuple(task.log.notes),
        seed=task.seed,
        versions=library_versions(),
        subjects=ReportSources(
            prepared.model,
            repaired,
            delta,
            prepared.specification,
            task.engine.forward_fn,
            task.engine.memory_limit,
        ),
    )
    return Repair(repaired, delta, report, candidate)


@dataclass(frozen=True, eq=False)
class _Ending:
    """A candidate applied to a copy, and what the true networks do."""

    candidate: Candidate
    repaired: nn.Module
    delta: dict[str, Tensor]
    both: tuple[Remembering, Remembering]
    verification: Verification

    @property
    def changed(self) -> bool:
        """Whether anything differs from the original."""
        return self.count > 0

    @property
    def count(self) -> int:
        """Weights that differ from the original's once they are written in its precision; or numbers that are added."""
        differ = sum(int((change != 0).sum()) for change in self.delta.values())
        return differ if self.delta or isinstance(self.candidate, WeightChange) else self.candidate.size()


def _end_at(prepared: Prepared, final: Judgement, deadline: float | None) -> _Ending:
    task = prepared.task
    candidate = prepared.as_candidate(final.candidate)
    repaired = candidate.apply(prepared.model)
    delta = changed_parameters(prepared.model, repaired, prepared.location)
    both = both_networks(
        prepared.model, repaired, forward_fn=task.engine.forward_fn, memory_limit=task.engine.memory_limit
    )
    with task.timed("verify"):
        initial = task.engine.initial.double().cpu().numpy()
        moved = final.delta if isinstance(final.candidate, np.ndarray) else gather_moved(task.location, delta)
        options: Any = {"change": (initial, moved), "both": both, "deadline": deadline}
        verification = verify(prepared.model, repaired, prepared.specification, **options)
    return _Ending(candidate, repaired, delta, both, verification)


def _settle(task: Task, outcome: Outcome, shrink: bool, stopped: str) -> Judgement:
    """From the proposed candidate to the one that is applied: fall back to a feasible one, then shrink the change."""
    judge = task.judge
    judge.deadline = None
    with task.timed("fall back"):
        proposed = judge(outcome.candidate)
        breaks = proposed.surplus > judge.original.surplus or proposed.constant or not proposed.change_holds
        if not isinstance(outcome.candidate, np.ndarray):
            return judge.best if breaks or judge.best.feasible > proposed.feasible else proposed
        if outcome.indivisible:
            return judge.original if breaks else proposed
        if breaks:
            zero, original = np.zeros_like(outcome.delta), judge.original
            fits = lambda j: j.surplus <= original.surplus and not j.constant  # noqa: E731
            shorter = judge.bisect(zero, outcome.delta, fits, 10)
            task.log.note("The proposed step breaks a constraint on the true network; a shorter step was taken.")
            proposed = shorter if shorter is not None and shorter.better_than(judge.best) else judge.best
        elif not proposed.feasible and judge.best.feasible:
            proposed = judge.best
        whole = shrink and not outcome.on_target and not stopped and proposed.met and proposed.feasible
        if whole and np.any(proposed.delta):
            proposed = _shrunk(judge, proposed)
    return proposed


def _shrunk(judge: Judge, found: Judgement) -> Judgement:
    """The smallest share of the change, by bisection, that still meets the goal with no more failing samples."""
    low, high = 0.0, 1.0
    best = found
    for _ in range(6):
        middle = (low + high) / 2
        trial = judge(middle * found.delta)
        if trial.met and trial.feasible and trial.error <= best.error:
            high, best = middle, trial
        else:
            low = middle
    return best


def _trust(task: Task, outcome: Outcome, final: Judgement) -> Trust:
    fit = outcome.surrogate.fit_error if outcome.surrogate is not None else None
    error, ratio = float("nan"), float("nan")
    lin = outcome.linearization
    if lin is not None and isinstance(final.candidate, np.ndarray) and np.any(final.delta != lin.delta):
        with task.timed("verify"):
            true = margins_at(Remembering(task.engine, final.delta), lin.constraints)
            linear = lin.at(final.delta - lin.delta)
        error = max((float(np.abs(a - b).max(initial=0.0)) for a, b in zip(true, linear, strict=True)), default=0.0)
    if outcome.predicted > 1e-9:
        ratio = (task.judge.original.goal - task.judge(outcome.candidate).goal) / outcome.predicted
    return Trust(1 - fit.r2 if fit is not None else float("nan"), error, ratio)


def _is_better(verification: Verification) -> bool:
    """Whether the goal is nearer, or what failed on the original network holds now, or answers differ again.

    Of a network that gave all rows one label other answers are no gain where the goal is further off.
    """
    goal = verification.measures[0]
    varied = verification.constant_before and not verification.constant
    if goal.after < goal.before or (varied and goal.after <= goal.before):
        return True
    return any(check.holds and check.failed_before > check.allowed for check in _hard(verification))


def _hard(verification: Verification) -> list[Check]:
    return [check for check in verification.checks if not check.soft and not check.held_out]


def _verdict(verification: Verification, outcome: Outcome, changed: bool) -> Verdict:
    goal = verification.measures[0]
    became_constant = verification.constant and not verification.constant_before
    if became_constant or not all(check.holds for check in _hard(verification)):
        conflict = bool(outcome.gave_way) or (not changed and outcome.status is Status.INFEASIBLE)
        return Verdict.INFEASIBLE if conflict else Verdict.VIOLATED
    assert goal.target is not None
    if not beyond(goal.after, goal.target) and not verification.constant:
        return Verdict.REPAIRED
    if changed and _is_better(verification):
        return Verdict.IMPROVED
    return Verdict.INFEASIBLE if outcome.gave_way or outcome.status is Status.INFEASIBLE else Verdict.UNSOLVED
