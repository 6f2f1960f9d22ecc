"""Methods that choose: which few weights change, which few samples break, which wrong samples are fixed.

Each solves mixed-integer programs over a linear model of the constraints, judges on the true network, adds the rows
that the step violates most, and solves again. The linear model is exact for the last linear layer.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from repairopt.errors import SpecificationError
from repairopt.methods.method import Method, uses
from repairopt.methods.outcome import Outcome
from repairopt.methods.settings import Expected, SurrogateModel, TrustRegion, check_settings, is_one_of
from repairopt.methods.task import NO_INFLUENCE, Task
from repairopt.network import Engine
from repairopt.program import (
    Array,
    IntegerProgram,
    IntegerSolution,
    Program,
    Rows,
    Solver,
    allow_broken,
    limit_changes,
    maximize_fixed,
    rows_by_sample,
    solve_integer,
)
from repairopt.specify import SampleConstraint, allowed_samples, price_of
from repairopt.surrogate import (
    Linearization,
    MostViolated,
    Picks,
    Strictest,
    Surrogate,
    build_program,
    linearize,
    select_rows,
)
from repairopt.verify import Judge, Judgement, Round, Stop

UNITS = ("weights", "neurons", "layers")
NUMBERS = {
    "batch": Expected(1, whole=True),
    "max_rounds": Expected(1, whole=True),
    "gap_tol": Expected(),
    "seconds": Expected(above=True),
}


@dataclass(frozen=True)
class Choosing(SurrogateModel, ABC):
    """What the methods share.

    Attributes:
        selection: Rows to start from.
        batch: Rows to add in a round.
        max_rounds: Mixed-integer programs at most.
        gap_tol: Relative gap at which a program counts as solved.
        seconds: Time limit for each program; the best point then goes on, with its gap in the report.
        solver: Back end for the mixed-integer programs by name or instance; None chooses one. The settings'
            ``solver`` is for continuous programs.
    """

    selection: Strictest = Strictest()
    batch: int = 100
    max_rounds: int = 10
    gap_tol: float = 0.01
    seconds: float = 60.0
    solver: str | Solver | None = None

    @property
    def uses(self) -> frozenset[str]:
        """What it makes use of: its programs are mixed-integer, for the back end that is named above."""
        return frozenset({"weights"})

    def __post_init__(self) -> None:
        check_settings(self, NUMBERS)

    def run(self, task: Task) -> Outcome:
        """Choose, judge, add rows, again."""
        surrogate, zero, radius = task.fit(), np.zeros(task.engine.n), task.trust_radius
        if not np.any(surrogate.gradient) and surrogate.hessian is None:
            raise Stop(NO_INFLUENCE)
        with task.timed("linearize"):
            linearization = linearize(task.engine, task.constraints, required=task.required)
        with task.timed("select"):
            picks = self._first_picks(linearization)
        best: tuple[Judgement, Outcome] | None = None
        for index in range(self.max_rounds):
            with task.timed("linearize"):
                rows = linearization.rows(picks)
            found = self._solve(task, surrogate, rows, radius)
            if found.delta is None:
                _log(task, f"choice {index + 1}", found, None, rows)
                return Outcome(zero, found.status, surrogate, linearization) if best is None else best[1]
            delta = found.delta[: task.engine.n]
            judged = task.judge.keep(delta)
            promised = surrogate.predicted(zero) - surrogate.predicted(delta)
            outcome = Outcome(delta, found.status, surrogate, linearization, delta, predicted=promised)
            _log(task, f"choice {index + 1}", found, judged, rows)
            if best is None or judged.better_than(best[0]):
                best = (judged, outcome)
            if found.interrupted:
                raise Stop("interrupted")
            if judged.feasible:
                break
            with task.timed("select"):
                new = select_rows(linearization, MostViolated(self.batch), step=delta, chosen=picks)
            if sum(map(len, new.values())) == 0:
                radius /= 2  # the linear model is satisfied, the true network is not: go less far
            picks = task.merge(picks, new)
        assert best is not None
        return self._continue(task, best)

    def _solve(self, task: Task, surrogate: Surrogate, rows: Rows, radius: float) -> IntegerSolution:
        zero = np.zeros(task.engine.n)
        box, change = task.box(zero, radius), task.change_rows(zero)
        task.log.rows_used = max(task.log.rows_used, len(rows) + len(change))
        program = build_program(surrogate, self._priced(task, rows), box=box, change=change, linear=task.linear)
        left = task.judge.time_left()
        limit = self.seconds if left is None else min(self.seconds, max(0.1, left))
        with task.timed("solve"):
            integer = self._formulate(task, program)
            return solve_integer(integer, self.solver, time_limit=limit, gap_tol=self.gap_tol, seed=task.seed)

    @abstractmethod
    def _formulate(self, task: Task, program: Program) -> IntegerProgram:
        """The choice over a program whose rows carry the names of their constraints."""

    def _first_picks(self, linearization: Linearization) -> Picks:
        """The rows to start from."""
        return select_rows(linearization, self.selection)

    def _priced(self, task: Task, rows: Rows) -> Rows:
        """The rows with the prices that this method wants."""
        return rows

    def _continue(self, task: Task, best: tuple[Judgement, Outcome]) -> Outcome:
        """What follows the choice."""
        return best[1]


@dataclass(frozen=True)
class FewWeights(Choosing):
    """At most ``count`` weights, neurons or layers change; which ones is part of the program.

    Attributes:
        count: How many may change.
        groups: What is counted: ``"weights"``; ``"neurons"`` (the weights into one unit, with its bias: entries of a
            layer's parameters with the same index along the first axis, for a convolution those of one output
            channel); or ``"layers"`` (all parameters of one module). Counted within the weights that may change.
        then: A method that goes on with the weights chosen, for example ``Sequential()``; all others stay as they are.
    """

    count: int = 8
    groups: str = "weights"
    then: Method | None = None

    @property
    def uses(self) -> frozenset[str]:
        """With a method that goes on, what that one uses."""
        return super().uses if self.then is None else super().uses | uses(self.then)

    def __post_init__(self) -> None:
        super().__post_init__()
        check_settings(self, {"count": Expected(1, whole=True)})
        if not is_one_of(self.groups, UNITS):
            raise SpecificationError(f"method FewWeights: groups={self.groups!r}; choose one of {', '.join(UNITS)}.")

    def _formulate(self, task: Task, program: Program) -> IntegerProgram:
        return limit_changes(program, self.count, weight_groups(task.engine, self.groups))

    def _continue(self, task: Task, best: tuple[Judgement, Outcome]) -> Outcome:
        judged, outcome = best
        if self.then is None or not np.any(outcome.delta):
            return outcome
        groups = weight_groups(task.engine, self.groups)
        free = np.zeros(task.engine.n, dtype=bool)
        for group in groups:
            free[group] = bool(np.any(outcome.delta[group]))
        masked: Any = _MaskedJudge(task.judge, free)
        model = self.then if isinstance(self.then, TrustRegion) else task.model
        spec = replace(task.spec, constraints=(*task.spec.constraints, _Frozen(free)))
        rest = replace(task, spec=spec, judge=masked, model=model)
        later = self.then.run(rest)
        again = masked.keep(later.delta)
        return replace(later, candidate=again.delta) if again.better_than(judged) else outcome


@dataclass(frozen=True)
class AtMostBroken(Choosing):
    """So many samples may break; which ones is part of the program.

    Other methods keep every row that they know of, and fall short of what a constraint's tolerance would allow.

    Attributes:
        count: How many samples of the hard constraints may break, all together; None for each constraint's own
            tolerance.
    """

    count: int | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        check_settings(self, {"count": Expected(whole=True, none=True)})

    def _formulate(self, task: Task, program: Program) -> IntegerProgram:
        margins = zip(task.constraints, task.required, strict=True)
        hard = {
            c.name: allowed_samples(c, m) for c, m in margins if isinstance(c, SampleConstraint) and not _is_wish(c)
        }
        if self.count is None:
            return allow_broken(program, hard)
        return allow_broken(program, self.count, [rows for name in hard for rows in rows_by_sample(program, name)])


@dataclass(frozen=True)
class MostFixed(Choosing):
    """As many wrong samples as possible get right, while the hard rows hold; which ones is part of the program.

    The wrong samples are those of soft constraints by sample, such as ``FixLabels``; their price does not matter. Of
    the changes that fix the samples chosen, the one that is best for the goal is taken.
    """

    def _formulate(self, task: Task, program: Program) -> IntegerProgram:
        names = [c.name for c in task.constraints if _is_wish(c)]
        if not names:
            raise SpecificationError(
                "method MostFixed: no constraint names wrong samples; expected one by sample with a weight. "
                "Add FixLabels(inputs, labels)."
            )
        return maximize_fixed(program, [rows for name in names for rows in rows_by_sample(program, name)])

    def _first_picks(self, linearization: Linearization) -> Picks:
        picks = select_rows(linearization, self.selection)
        for c, constraint in enumerate(linearization.constraints):
            if _is_wish(constraint):
                picks[c] = np.arange(len(linearization.margins[c]), dtype=np.int64)
        return picks

    def _priced(self, task: Task, rows: Rows) -> Rows:
        names = {c.name for c in task.constraints if _is_wish(c)}
        hard = np.array([source.constraint in names for source in rows.sources], dtype=bool)
        return replace(rows, price=np.where(hard, np.inf, rows.price))


@dataclass(eq=False)
class _Frozen:
    """Weights that were not chosen stay as they are."""

    free: npt.NDArray[np.bool_]
    name: str = "chosen weights"

    def box(self, initial: Array) -> tuple[Array, Array]:
        """Bounds of 0 for what must stay, none for the rest."""
        limit = np.where(self.free, np.inf, 0.0)
        return -limit, limit

    def rows(self, initial: Array) -> tuple[Any, Array, Array]:
        """The same as rows."""
        lower, upper = self.box(initial)
        return np.eye(len(initial)), lower, upper


class _MaskedJudge:
    """Judges changes of the chosen weights alone; solvers leave others at what is not quite 0."""

    def __init__(self, judge: Judge, free: npt.NDArray[np.bool_]) -> None:
        self.judge, self.free = judge, free

    def __call__(self, delta: Array) -> Judgement:
        return self.judge(np.where(self.free, delta, 0.0))

    def keep(self, delta: Array) -> Judgement:
        """As :meth:`Judge.keep`."""
        return self.judge.keep(np.where(self.free, delta, 0.0))

    def bisect(self, start: Array, end: Array, holds: Any, halvings: int) -> Judgement | None:
        """As :meth:`Judge.bisect`."""
        return self.judge.bisect(np.where(self.free, start, 0.0), np.where(self.free, end, 0.0), holds, halvings)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.judge, name)


def weight_groups(engine: Engine, unit: str) -> list[npt.NDArray[np.int64]]:
    """Positions in ``delta`` of the weights of each weight, neuron or layer; see :class:`FewWeights`."""
    shapes = {name: tuple(value.shape) for name, value in engine.model.named_parameters(remove_duplicate=False)}
    found: dict[tuple[str, int], list[int]] = {}
    start = 0
    for name, index in engine.indices.items():
        layer, shape = name.rpartition(".")[0], shapes[name]
        each = int(np.prod(shape[1:]))
        for i, position in enumerate(index.tolist()):
            key = {"weights": (name, position), "neurons": (layer, position // each), "layers": (layer, 0)}[unit]
            found.setdefault(key, []).append(start + i)
        start += len(index)
    return [np.array(group, dtype=np.int64) for group in found.values()]


def _is_wish(constraint: Any) -> bool:
    return isinstance(constraint, SampleConstraint) and price_of(constraint) is not None


def _log(task: Task, step: str, found: IntegerSolution, judged: Judgement | None, rows: Rows) -> None:
    chosen = f"{int(found.chosen.sum())} of {len(found.chosen)} chosen, gap {100 * found.gap:.2g} %"
    entry = Round(
        step=step,
        status=str(found.status),
        rows=len(rows),
        variables=task.engine.n + len(found.chosen),
        solver=found.solver,
        seconds=found.seconds,
        message=found.message,
        goal=float("nan") if judged is None else judged.goal,
        broken=-1 if judged is None else judged.surplus,
        accepted=judged is not None,
        note=found.message if judged is None else chosen,
    )
    task.log.rounds.append(entry)
    if task.progress is not None:
        task.progress(entry)
