"""What every repair method works with: the engine, the judge, the settings, and one way to solve for a step."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt
from torch import Tensor

from repairopt.localize import Location
from repairopt.network import Engine
from repairopt.program import Program, Rows, Solution, Solver, Source, Status, solve, stack_rows
from repairopt.specify import ChangeBox, ChangeConstraint, Constraint, Property, Specification
from repairopt.surrogate import Picks, Surrogate, SurrogateSettings, build_program, fit_surrogate
from repairopt.verify import Judge, Judgement, Round, Stop

from .settings import SurrogateModel, TrustRegion

Array = npt.NDArray[np.float64]
NO_INFLUENCE = "no chosen weight influences the goal; choose other weights, or widen the trust radius"
FLAT = 1e-7  # change of the goal for a change of a weight by its natural size
ELASTIC_PRICE = 1e4  # of a violated hard row in the elastic program, relative to the objective's slope


@dataclass(eq=False)
class Log:
    """What happened in a repair so far; the one thing about a task that changes.

    Attributes:
        rounds: Every step.
        seconds: Wall time of each stage.
        notes: What the report shall say.
        rows_used: Most rows in one program.
        infeasible: The last program that was found to have no solution.
        last: The last solve: rows, variables, solution.
        latest: What a method had in hand when it was recorded last; its product where it is stopped.
    """

    rounds: list[Round] = field(default_factory=list)
    seconds: dict[str, float] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    rows_used: int = 0
    infeasible: Program | None = None
    last: tuple[int, int, Solution | None] = (0, 0, None)
    latest: Any = None

    def note(self, text: str) -> None:
        """Keep a note, once."""
        if text and text not in self.notes:
            self.notes.append(text)


@dataclass(frozen=True, eq=False)
class Task:
    """A repair in progress. All that changes in it is its log, and what its judge was told to keep.

    Attributes:
        engine: The network and the ``n`` weights.
        spec: Goal and constraints, anchored.
        judge: Judges points on the true network.
        new_counts: For goal and bounds by name how many samples (of the smallest group) they will be measured on, where
            that is known; a bound is then to be met on so many, not on the whole population.
        data: Labelled samples whose loss is kept small; empty to take those of constraints and goal.
        location: The ``n`` weights.
        model: How the method models the goal and how far it trusts the model.
        solver: Back end, or None.
        isolate: Whether back ends run in a process of their own.
        tolerance: Largest relative violation of a row that counts as feasible.
        seed: For everything that draws.
        progress: Called with each round, or None.
        start: Weight change to begin at, ``(n,)``; None for no change.
        checkpoint: Called with each weight change that is kept, ``(n,)``, or None.
        log: What happened so far.
    """

    engine: Engine
    spec: Specification
    judge: Judge
    location: Location
    model: TrustRegion = TrustRegion()
    solver: str | Solver | None = None
    isolate: bool = False
    tolerance: float = 1e-6
    data: tuple[tuple[Tensor, Tensor], ...] = ()
    new_counts: dict[str, int] = field(default_factory=dict)
    seed: int = 0
    progress: Callable[[Round], None] | None = None
    start: Array | None = None
    checkpoint: Callable[[Array], None] | None = None
    log: Log = field(default_factory=Log)

    @cached_property
    def goal(self) -> Property:
        """What must become true."""
        return self.spec.goal

    @cached_property
    def constraints(self) -> tuple[Constraint, ...]:
        """The constraints on outputs."""
        return self.spec.on_outputs

    @cached_property
    def change(self) -> tuple[ChangeConstraint, ...]:
        """The constraints on the weight change."""
        return self.spec.on_change

    @property
    def required(self) -> tuple[Array, ...]:
        """Smallest margin that the rows of each constraint on outputs ask for."""
        return self.judge.required

    @property
    def trust_radius(self) -> float:
        """Largest change of a weight in one step, in units of its natural size."""
        return self.model.trust_radius

    @property
    def surrogate(self) -> SurrogateSettings:
        """How the goal is modelled."""
        return self.model.surrogate_settings(self.seed)

    @property
    def linear(self) -> bool:
        """Whether steps are linear programs (AutoRIC's LP variant)."""
        return isinstance(self.model, SurrogateModel) and self.model.program == "lp"

    @contextmanager
    def timed(self, stage: str) -> Iterator[None]:
        """Add the wall time of a block to a stage."""
        started = time.perf_counter()
        try:
            yield
        finally:
            self.log.seconds[stage] = self.log.seconds.get(stage, 0.0) + time.perf_counter() - started

    def fit(self, delta: Array | None = None) -> Surrogate:
        """A convex model of the property around ``delta``."""
        self.judge.check_time()
        with self.timed("surrogate"):
            settings = replace(self.surrogate, kind="linear") if self.linear else self.surrogate
            fitted = fit_surrogate(self.engine, self.goal, settings, delta)
            if is_flat(fitted):
                raise Stop(NO_INFLUENCE)
            way = self.model.convexify if isinstance(self.model, SurrogateModel) else "project"
            return fitted if self.linear else fitted.convexified(way)

    def box(self, delta: Array, radius: float) -> tuple[Array, Array]:
        """Bounds of a step from ``delta``: the trust box, and the user's limits on the change where they are bounds."""
        scale = self.engine.scale.cpu().numpy()
        lower, upper = -radius * scale, radius * scale
        initial = self.engine.initial.double().cpu().numpy()
        for constraint in self.change:
            if isinstance(constraint, ChangeBox):
                low, high = constraint.box(initial)
                lower, upper = np.maximum(lower, low - delta), np.minimum(upper, high - delta)
        return np.minimum(lower, 0.0), np.maximum(upper, 0.0)

    def change_rows(self, delta: Array) -> Rows:
        """The user's rows on the change, as rows on a step from ``delta``."""
        found = Rows.empty(self.engine.n)
        initial = self.engine.initial.double().cpu().numpy()
        for constraint in self.change:
            if isinstance(constraint, ChangeBox):
                continue
            matrix, lower, upper = constraint.rows(initial)
            at = matrix @ delta
            price = np.full(len(lower), np.inf)
            sources = tuple(Source(constraint.name, -1, f"row {i}") for i in range(len(lower)))
            found = stack_rows(found, Rows(matrix, lower - at, upper - at, price, sources))
        return found

    def solve_step(
        self,
        surrogate: Surrogate,
        rows: Rows,
        box: tuple[Array, Array],
        delta: Array,
        *,
        extra: Rows | None = None,
        proximal: float = 0.0,
    ) -> tuple[Solution, tuple[Source, ...]]:
        """Solve for a step; where hard rows are in conflict, solve the elastic program and name the rows that gave way.

        Args:
            surrogate: Convex model of the objective.
            rows: Rows from the constraints.
            box: Bounds of the step.
            delta: The point that the step starts from.
            extra: Further rows on the step.
            proximal: Weight of the squared scaled step.

        Returns:
            The solution, its ``delta`` cut to the ``n`` weights, and the hard rows that gave way.
        """
        change = self.change_rows(delta)
        if extra is not None and len(extra):
            change = stack_rows(change, extra)
        self.log.rows_used = max(self.log.rows_used, len(rows) + len(change))
        program = build_program(surrogate, rows, box=box, change=change, linear=self.linear, proximal=proximal)
        solution = self.solve_program(program)
        gave_way: tuple[Source, ...] = ()
        if solution.status is Status.INFEASIBLE:
            slope = max(1e-6, float(np.abs(surrogate.gradient * surrogate.scale).max(initial=0.0)))
            elastic = replace(rows, price=np.where(np.isfinite(rows.price), rows.price, ELASTIC_PRICE * slope))
            program = build_program(surrogate, elastic, box=box, change=change, linear=self.linear, proximal=proximal)
            solution = self.solve_program(program)
            if solution.delta is not None:
                lack = elastic.lower - elastic.matrix @ solution.delta[: self.engine.n]
                hard = ~np.isfinite(rows.price)
                gave_way = tuple(rows.sources[i] for i in np.flatnonzero(hard & (lack > 1e-6)))
        if solution.delta is not None:
            solution = replace(solution, delta=solution.delta[: self.engine.n])
        return solution, gave_way

    def solve_program(self, program: Program, *, prove: bool = True) -> Solution:
        """Solve a program within the time left; trouble is noted, Ctrl-C ends the repair.

        A step that one back end does not find is not worth a proof that there is none: ``prove=False``.
        """
        limit, shards = self.judge.time_to_solve(), self.engine.shards
        options: Any = {"feasibility_tol": self.tolerance, "time_limit": limit, "isolate": self.isolate, "prove": prove}
        with self.timed("solve"):
            if shards is None:
                solution = solve(program, self.solver, **options)
            else:
                solution = shards.of_first(lambda: solve(program, self.solver, **options))
        self.log.last = (program.m, program.n, solution)
        if len(solution.attempts) > 1:
            self.log.note(f"Trouble in a solve: {'; then '.join(map(str, solution.attempts))}.")
        if solution.status is Status.INFEASIBLE:
            self.log.infeasible = program
        if solution.interrupted:
            raise Stop("interrupted")
        return solution

    def record(self, step: str, judged: Judgement | None = None, *, accepted: bool = True, note: str = "") -> None:
        """Log the last solve and what the true network said."""
        m, n, solution = self.log.last
        entry = Round(
            step=step,
            status=str(solution.status) if solution is not None else "",
            rows=m,
            variables=n,
            solver=solution.solver if solution is not None else "",
            seconds=solution.seconds if solution is not None else 0.0,
            message=solution.message if solution is not None else "",
            log=solution.log if solution is not None else "",
            goal=judged.goal if judged is not None else float("nan"),
            broken=judged.surplus if judged is not None else -1,
            accepted=accepted,
            note=note,
            violation=solution.violation if solution is not None else float("nan"),
        )
        self.log.rounds.append(entry)
        if self.progress is not None:
            self.progress(entry)
        if self.checkpoint is not None and accepted and isinstance(self.judge.best.candidate, np.ndarray):
            self.checkpoint(self.judge.best.delta)

    def merge(self, picks: Picks, new: Picks) -> Picks:
        """Union of two selections, order kept."""
        none: Any = np.zeros(0, dtype=np.int64)
        return {c: np.concatenate([picks.get(c, none), new.get(c, none)]) for c in sorted({*picks, *new})}


def is_flat(surrogate: Surrogate) -> bool:
    """Whether no weight changes the modelled property by more than rounding, over its natural size."""
    slope = np.abs(surrogate.gradient * surrogate.scale).max(initial=0.0)
    curve = np.abs(_diagonal(surrogate) * surrogate.scale**2).max(initial=0.0)
    return bool(max(slope, curve) < FLAT)


def _diagonal(surrogate: Surrogate) -> Array:
    hessian = surrogate.hessian
    if hessian is None:
        return np.zeros(1)
    return np.diag(hessian) if isinstance(hessian, np.ndarray) else hessian.diagonal + (hessian.factor**2).sum(1)
