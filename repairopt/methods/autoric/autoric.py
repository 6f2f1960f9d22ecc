"""The methods of AutoRIC: one-shot, incremental, bisection. The trust-region sequence stands in ``sequential.py``.

Each is a frozen dataclass of settings with one method, ``run(task) -> Outcome``. Anyone's own method is such a class.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import numpy as np

from repairopt.errors import SpecificationError
from repairopt.methods.outcome import Outcome
from repairopt.methods.settings import Expected, SurrogateModel, check_settings, is_one_of
from repairopt.methods.task import Task
from repairopt.program import Array, Rows, Solution, Source, Status
from repairopt.surrogate import Linearization, MostViolated, Picks, Strictest, Surrogate, linearize, select_rows
from repairopt.verify import Judgement


@dataclass(frozen=True)
class OneShot(SurrogateModel):
    """Fit once, select rows once, solve once (AutoRIC, Algorithms 1 to 4).

    Attributes:
        selection: Shares and orders of the rows to keep; see Table 3 of the paper.
        use_constraints: Without, the surrogate alone is minimized in the box (the paper's Table 8).
    """

    systems: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "AutoRIC (QP, constraints)": {},
        "AutoRIC-LP": {"program": "lp"},
    }

    selection: Strictest = Strictest()
    use_constraints: bool = True

    def run(self, task: Task) -> Outcome:
        """One solve."""
        surrogate, radius = _model(task)
        with task.timed("linearize"):
            linearization = linearize(task.engine, task.constraints, required=task.required)
        picks: Picks = {}
        if self.use_constraints:
            with task.timed("select"):
                picks = select_rows(linearization, self.selection)
        with task.timed("linearize"):
            rows = linearization.rows(picks)
        zero = np.zeros(task.engine.n)
        solution, gave_way = task.solve_step(surrogate, rows, task.box(zero, radius), zero)
        if solution.delta is None:
            task.record("one shot", None, accepted=False, note=solution.message)
            return Outcome(zero, solution.status, surrogate, linearization, gave_way=gave_way)
        judged = task.judge.keep(solution.delta)
        task.record("one shot", judged, note=_gave_way(gave_way))
        return _outcome(solution, surrogate, linearization, zero, gave_way)


@dataclass(frozen=True)
class Incremental(SurrogateModel):
    """Cutting planes judged on the true network (the form that AutoRIC's text describes, completed).

    Starts from a few strict rows, and adds the rows that the last step violates most, of all samples, until the true
    network satisfies every constraint. Where the linear model sees no violation but the true network does, the trust
    radius is halved.

    Attributes:
        selection: Rows to start from.
        batch: Rows to add in a round.
        max_rounds: Solves at most.
        max_rows: Rows at most; above, the slackest are dropped. None for 10 for each weight, at least 1,000.
    """

    systems: ClassVar[Mapping[str, Mapping[str, Any]]] = {"AutoRIC incremental (cutting-plane) solving": {}}

    selection: Strictest = Strictest()
    batch: int = 100
    max_rounds: int = 30
    max_rows: int | None = None

    def __post_init__(self) -> None:
        count = Expected(1, whole=True)
        check_settings(self, {"batch": count, "max_rounds": count, "max_rows": replace(count, none=True)})

    def run(self, task: Task) -> Outcome:
        """Solve, judge, add rows, again."""
        surrogate, radius = _model(task)
        zero = np.zeros(task.engine.n)
        with task.timed("linearize"):
            linearization = linearize(task.engine, task.constraints, required=task.required)
        with task.timed("select"):
            picks = select_rows(linearization, self.selection)
        with task.timed("linearize"):
            rows = linearization.rows(picks)
        best: tuple[Judgement, Outcome] | None = None
        conflict: tuple[Source, ...] = ()
        last = Outcome(zero, Status.NO_POINT, surrogate, linearization)
        for index in range(self.max_rounds):
            solution, gave_way = task.solve_step(surrogate, rows, task.box(zero, radius), zero)
            if solution.delta is None:
                task.record(f"round {index + 1}", None, accepted=False, note=solution.message)
                last = Outcome(zero, solution.status, surrogate, linearization, gave_way=gave_way)
                break
            judged = task.judge.keep(solution.delta)
            last = _outcome(solution, surrogate, linearization, zero, gave_way)
            if best is None or judged.better_than(best[0]):
                best = (judged, last)
            task.record(f"round {index + 1}", judged, note=_gave_way(gave_way))
            conflict = gave_way or conflict
            if judged.feasible:
                break
            count = len(rows)
            picks, rows, radius = self._grow(task, linearization, picks, rows, solution.delta, radius)
            if gave_way and len(rows) == count:
                break  # hard rows are in conflict, and no other row helps
        found = last if best is None else best[1]
        return replace(found, gave_way=found.gave_way or conflict)

    def _grow(
        self, task: Task, linearization: Linearization, picks: Picks, rows: Rows, step: Array, radius: float
    ) -> tuple[Picks, Rows, float]:
        with task.timed("select"):
            new = select_rows(linearization, MostViolated(self.batch), step=step, chosen=picks)
        if sum(map(len, new.values())) == 0:
            return picks, rows, radius / 2  # the linear model is satisfied, the true network is not: go less far
        limit = self.max_rows if self.max_rows is not None else max(1000, 10 * task.engine.n)
        merged = task.merge(picks, new)
        with task.timed("linearize"):
            grown = linearization.rows(merged)
            if len(grown) > limit:
                merged = _drop_slack(merged, grown, step, limit)
                grown = linearization.rows(merged)
        return merged, grown, radius


@dataclass(frozen=True)
class Bisection(SurrogateModel):
    """Unconstrained minimum of the surrogate, then the furthest feasible point on the way to it (AutoRIC, section 3.4).

    Ordinary bisection on the true network; the update printed in the paper tends to two thirds of the way whatever the
    tests say. Needs no derivative of the network, so step activations are fine.

    Attributes:
        halvings: How often the segment is halved.
        start: ``"optimum"`` of the surrogate, or ``"random"``: a random corner of the trust box.
        tries: With ``"random"``, how many corners to try; the best feasible point is returned.
    """

    systems: ClassVar[Mapping[str, Mapping[str, Any]]] = {"AutoRIC UOBD (unconstrained optimum + bisection)": {}}

    halvings: int = 10
    start: str = "optimum"
    tries: int = 20

    def __post_init__(self) -> None:
        check_settings(self, dict.fromkeys(("halvings", "tries"), Expected(1, whole=True)))
        if not is_one_of(self.start, ("optimum", "random")):
            raise SpecificationError(f"method Bisection: start={self.start!r}; choose optimum or random.")

    def run(self, task: Task) -> Outcome:
        """Aim, then halve."""
        zero = np.zeros(task.engine.n)
        if self.start == "random":
            draw = np.random.default_rng(task.seed)
            scale = task.engine.scale.cpu().numpy() * task.trust_radius
            for _ in range(self.tries):
                self._search(
                    task,
                    zero,
                    np.clip(draw.choice([-1.0, 1.0], len(scale)) * scale, *task.box(zero, task.trust_radius)),
                )
            return Outcome(task.judge.best.delta, Status.FEASIBLE)
        surrogate, radius = _model(task)
        solution, _ = task.solve_step(surrogate, Rows.empty(task.engine.n), task.box(zero, radius), zero)
        if solution.delta is None:
            task.record("aim", None, accepted=False, note=solution.message)
            return Outcome(zero, solution.status, surrogate)
        found = self._search(task, zero, solution.delta)
        delta = zero if found is None else found.delta
        predicted = surrogate.predicted(zero) - surrogate.predicted(delta)
        return Outcome(delta, solution.status, surrogate, step=delta, predicted=predicted)

    def _search(self, task: Task, zero: Array, end: Array) -> Judgement | None:
        judged = task.judge.keep(end)
        task.record("aim", judged, accepted=judged.feasible)
        if judged.feasible:
            return judged
        found = task.judge.bisect(zero, end, lambda j: j.feasible, self.halvings)
        if found is not None:
            task.judge.keep(found.delta)
            task.record("bisection", found)
        return found


def _model(task: Task) -> tuple[Surrogate, float]:
    """The convex surrogate at the original weights, and the radius within which it is used."""
    raw = task.fit()
    if not raw.trusted:
        error = raw.fit_error
        task.log.notes.append(
            f"The surrogate ({raw.kind}) does not predict fresh samples (rank correlation "
            f"{error.rank_correlation if error else float('nan'):.2f}); its proposals are checked on the true network."
        )
    return raw, min(task.trust_radius, max(raw.positive_radius(), 0.05 * task.trust_radius))


def _outcome(
    solution: Solution, surrogate: Surrogate, linearization: Linearization, start: Array, gave_way: tuple[Source, ...]
) -> Outcome:
    assert solution.delta is not None
    predicted = surrogate.predicted(np.zeros(len(start))) - surrogate.predicted(solution.delta)
    return Outcome(
        candidate=start + solution.delta,
        status=solution.status,
        surrogate=surrogate,
        linearization=linearization,
        step=solution.delta,
        gave_way=gave_way,
        predicted=predicted,
    )


def _gave_way(sources: tuple[Source, ...]) -> str:
    return f"{len(sources)} hard rows gave way, first {sources[0]}" if sources else ""


def _drop_slack(picks: Picks, rows: Rows, step: Array, limit: int) -> Picks:
    """Keep the ``limit`` rows that are tightest at a step."""
    slack = rows.matrix @ step - rows.lower
    keep = np.zeros(len(slack), dtype=bool)
    keep[np.argsort(slack, kind="stable")[:limit]] = True
    kept, start = {}, 0
    for c, index in sorted(picks.items()):
        kept[c] = index[keep[start : start + len(index)]]
        start += len(index)
    return kept
