"""SQP: typed bounds by sequential quadratic programming; the default wherever a property has a soft value."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import InitVar, dataclass, replace
from typing import Any, ClassVar

from torch import Tensor

from repairopt.errors import SpecificationError
from repairopt.methods.corrections import keep_corrected
from repairopt.methods.method import SOLVING
from repairopt.methods.outcome import Outcome
from repairopt.methods.settings import Expected, TrustRegion, check_settings, is_one_of, take_former
from repairopt.methods.subtask import with_rows_of_goal
from repairopt.methods.task import Task
from repairopt.network import identity
from repairopt.program import Status
from repairopt.specify import (
    Anchored,
    SampleShare,
    inputs_of,
    labelled_data,
    measured,
    of_real_rows,
    stands_for_population,
)
from repairopt.verify import Claim, Judge

from .augmented import run_augmented
from .confident import run_confidently
from .division import TINIEST, rows_of
from .generalization import judge_generalization
from .interval_width import WidthLimit, bound_widths
from .limits import collect_limits, median_lead
from .nonlinear_program import NonlinearProgram
from .objectives import OBJECTIVES, make_objective
from .shortfall import CAUTIOUS, Standard, claims_of_original, is_statistical
from .stages import run_sequence

CLOSENESS, FLIPS_CLOSENESS, MOST_CLOSENESS = 0.15, 0.4, 0.5
FEW_LABELS = 1_000  # labelled rows, of which fewer say less than what the original network has learned
NUMBERS = {
    "closeness": Expected(high=1.0, none=True),
    "ridge": Expected(none=True),
    "confidence": Expected(0.5, 1.0, below=True, none=True),
    "folds": Expected(2, whole=True),
    "lead": Expected(none=True),
    "narrow": Expected(),
    "most_cost": Expected(high=1.0, none=True),
    "max_steps": Expected(1, whole=True),
    "damping": Expected(above=True),
    "restarts": Expected(whole=True),
    "batch": Expected(1, whole=True),
    "largest_dense": Expected(whole=True),
    "outer_steps": Expected(1, whole=True),
    "inner_steps": Expected(1, whole=True),
    "smallest_step": Expected(),
    "smallest_fall": Expected(),
}
MANY_WEIGHTS_RIDGE, MANY_WEIGHTS_LEAD = 1e-2, 1 / 8
LOST = 0.05  # of the rows, of which more that break are not corrected but held from the beginning
LEAD_OF_ROWS = 0.5  # logits by which rows that are corrected lead, where what is stated asks for less


@dataclass(frozen=True)
class SQP(TrustRegion):
    """Every typed bound is a linear constraint at each step, with its value by count and the slope of its soft value.

    A step minimizes a model of the objective subject to the bounds, rows of samples that must not break, and a box. It
    is damped, accepted by a filter on the true network (what the bounds miss, and the objective), and corrected for
    curvature where it is rejected for that. No penalty weighs bounds against the objective.

    Attributes:
        objective: What is kept small: ``"cross_entropy"`` of the labelled data (half of it their error rate);
            ``"closeness"`` to the original network's probabilities on all inputs at hand; ``"l2"``, ``"l1"``,
            ``"linf"`` size of the change, each weight over its natural size; or ``"auto"``: cross-entropy where there
            are labels, else closeness.
        closeness: With cross-entropy, the share of the distance from the original network's probabilities in it. None
            for 0.15, beside gaps of real rows more the fewer labels there are (1,000 over their number, up to 0.5);
            where the goal is an error rate for 0, because the original's answers are what is wrong then, or
            for 0.4 beside a bound on flips, which asks for them.
        ridge: With cross-entropy and closeness, the weight of half the mean squared change, each weight over its size;
            None for 0, and 0.01 above ``largest_dense`` weights, which could fit the noise of samples.
        confidence: Confidence with which goal and bounds that are statistics of a sample are to be met on new data;
            cross-validation sets their buffers. 0.5 for values that meet them on average, None for no such buffers.
        buffer: Taken off the bounds in the rows, for data that the repair does not see: one number for all, or by the
            names of the goal and of the bounds; None for what ``confidence`` asks for.
        lead: Share of the median lead, in logits, of the labelled points that the original network has right, by which
            points must lead to count as right in error rates, miss rates and flip rates; None for 0, and an eighth
            above ``largest_dense`` weights, which could have many points right by a hair. Cross-validation enlarges it.
        narrow: Where chance alone may move a gap by more than three quarters of its bound, rates are moved away from
            one half, which narrows its interval, as long as the objective rises by no more than this share for it; 0
            for no such try.
        most_cost: What ``confidence`` may cost beyond the repair that meets the bounds on average, as a share of
            accuracy and, beyond the buffers themselves, of the rate of each class and group of real rows; where it
            would cost more, less is taken off the bounds, and the report says what showing them costs. 1 for any cost.
            None for 0.02, where bounds are shown only if that costs next to nothing (0.001 of accuracy, 0.002 with the
            buffers that validation asks for) beyond a repair that meets them with a confidence of 80 %, which is taken
            else.
        max_steps: Accepted and rejected steps of a run together; half as many of each stage before its last.
        damping: First damping, relative to the mean curvature.
        restarts: Where a run ends with bounds missed, the sequence starts so often again from the original and goes to
            the bounds by stages, 3 more each time; once, too, by short stages, where they are met but the objective
            rose by more than a fiftieth. The best end is kept.
        largest_dense: Weights above which steps are no longer quadratic programs with a dense Hessian, but L-BFGS steps
            on an augmented Lagrangian.
        inner_steps: Largest number of L-BFGS steps for each update of the multipliers; see ``largest_dense``.
        smallest_fall: Stop when the objective falls by a smaller share, with all bounds met.
    """

    uses: ClassVar[frozenset[str]] = SOLVING | {"start", "sample_weight"}

    objective: str = "auto"
    closeness: float | None = None
    ridge: float | None = None
    confidence: float | None = 0.95
    folds: InitVar[int] = 3  # this one and three below are deprecated, and become constants with the next release
    buffer: float | Mapping[str, float] | None = None
    lead: float | None = None
    narrow: float = 0.1
    most_cost: float | None = None
    max_steps: int = 40
    damping: float = 1e-2
    restarts: int = 2
    batch: InitVar[int] = 100
    largest_dense: int = 400
    outer_steps: InitVar[int] = 8
    inner_steps: int = 30
    smallest_step: InitVar[float] = 1e-3
    smallest_fall: float = 5e-3

    def __post_init__(self, folds: int, batch: int, outer_steps: int, smallest_step: float) -> None:
        take_former(self, folds=folds, batch=batch, outer_steps=outer_steps, smallest_step=smallest_step)
        if not is_one_of(self.objective, ("auto", *OBJECTIVES)):
            raise SpecificationError(f"method SQP: objective={self.objective!r}; choose auto, {', '.join(OBJECTIVES)}.")
        check_settings(self, NUMBERS)
        buffers = (
            self.buffer.values() if isinstance(self.buffer, Mapping) else [0.0 if self.buffer is None else self.buffer]
        )
        if not all(Expected().fits(buffer) for buffer in buffers):
            raise SpecificationError(
                f"method SQP: buffer={self.buffer!r}; expected a number, 0 or more, or one for each name of a bound."
            )

    def run(self, task: Task) -> Outcome:
        """Step until nothing improves; on parts of the rows too where bounds are to hold on new data."""
        inner = with_rows_of_goal(task)
        if inner is task:
            return self._run(task)
        try:
            found = self._with_rows_held(task, inner, self._run(inner))
            if self.confidence is not None and found.delta.any():
                best = inner.judge.best  # what is out of reach is not tried again from several starts for each part
                much = best.met and best.feasible and rows_of(inner) >= TINIEST
                again = self if much else self._with_less_effort(inner)
                folds: int = self.folds  # type: ignore[attr-defined] # a constant of the class, or what was passed
                return replace(
                    found, said_of_unseen=lambda: judge_generalization(task, again._without_data, folds=folds)
                )
            return found
        finally:  # whatever ended it, the best point is known to the repair
            if inner.judge.best is not inner.judge.original:
                task.judge.keep(inner.judge.best.delta)

    def _without_data(self, task: Task) -> Outcome:
        """A repair of some of the points, for what it does to the others."""
        task = replace(task, judge=Judge(task.engine, task.spec, task.judge.deadline), start=None)
        inner = with_rows_of_goal(task)
        found = self.minimize(inner, self.nonlinear_program(inner, self.named_buffers()))
        return self._with_rows_held(task, inner, found)

    def _with_rows_held(self, task: Task, inner: Task, found: Outcome) -> Outcome:
        """Many weights may break what they should keep: then again with those rows in the program, from near by.

        A last layer of very large weights would make the rows right of a network that has lost what it knew.
        """
        if task.engine.n <= self.largest_dense or task.change:
            return found
        problem = self.nonlinear_program(inner, self.named_buffers(), self._leads(inner))
        far = problem.surplus(inner.judge(found.delta)) > LOST * problem.samples
        if not far:
            found = self._corrected(task, inner, found)
        best = inner.judge.best
        if best.met and best.feasible:
            return found
        held = self._corrected(task, inner, run_augmented(inner, problem, self, hold=True))
        best = inner.judge.best
        if best.met and best.feasible:
            return held
        return self._corrected(task, inner, found) if far else found

    def _corrected(self, task: Task, inner: Task, found: Outcome) -> Outcome:
        """Where many weights leave points or rows missed, what is proposed with all of them made to hold.

        Penalties and multipliers come near to rows and stop there; a quadratic program in the rows alone ends it.
        """
        best = inner.judge.best
        if (best.met and best.feasible) or task.engine.n <= self.largest_dense or task.change:
            return found
        task.judge.remember(best)
        corrected = keep_corrected(task, found.delta, LEAD_OF_ROWS)
        if corrected is None or task.judge.best is not corrected:
            return found
        inner.judge.keep(corrected.delta)
        return replace(found, candidate=corrected.delta, status=Status.FEASIBLE)

    def _run(self, task: Task) -> Outcome:
        if self.buffer is None and self.confidence is not None:
            options: Any = {name: getattr(self, name) for name in ("confidence", "folds", "narrow", "most_cost")}
            attempt, leads = self._with_less_effort(task).minimize, self._leads(task)
            found = run_confidently(task, self.nonlinear_program, self.minimize, attempt, leads=leads, **options)
            if found is not None:
                return replace(found.outcome, claims=found.claims, buffers=found.buffers, margins=found.margins)
        leads = self._leads(task)
        outcome = self.minimize(task, self.nonlinear_program(task, self.named_buffers(), leads))
        return replace(outcome, margins=leads)

    def _with_less_effort(self, task: Task) -> SQP:
        """One run each, of a quarter of the steps where the rows are fewest."""
        few = self.max_steps // 4 if rows_of(task) < TINIEST else self.max_steps
        return replace(self, restarts=0, max_steps=max(1, few))

    def _leads(self, task: Task) -> dict[str, float]:
        """By name of goal and bounds, in logits; those that ask for none are left out.

        A bound that the original network nearly uses up, such as that recall must not fall, asks for none where it
        would not hold to begin with.
        """
        share = self.lead
        if share is None:
            share = MANY_WEIGHTS_LEAD if task.engine.n > self.largest_dense else 0.0
        limits, predict, found = collect_limits(task.goal, task.constraints, {}), task.engine.predict(), {}
        for limit in limits if share else []:
            if not limit.takes_margin or not stands_for_population(limit.property):
                continue
            lead = share * median_lead(task.engine, limit)
            within = replace(limit, margin=lead).value(predict) <= limit.limit
            if lead and (limit is limits[0] or within or limit.value(predict) <= limit.limit / 2):
                found[limit.name] = lead
        return found

    def said_of_original(self, task: Task) -> tuple[list[Claim], bool]:
        """Claims about the unchanged network, and whether one is open that more rows are not needed for."""
        if self.buffer is not None or self.confidence is None or self.confidence <= 0.5:
            return [], False
        return claims_of_original(task, collect_limits(task.goal, task.constraints, {}), self.confidence)

    def first_buffers(self, task: Task) -> dict[str, float]:
        """What is taken off goal and bounds at first, by name."""
        if self.buffer is not None or self.confidence is None:
            return self.named_buffers()
        limits = [one for one in collect_limits(task.goal, task.constraints, {}) if is_statistical(one.property)]
        return Standard(task, limits, self.confidence, self.narrow > 0, min(self.confidence, CAUTIOUS)).first_buffers

    def minimize(self, task: Task, problem: NonlinearProgram, start: Any = None) -> Outcome:
        """By quadratic programs where their Hessian is small, else matrix-free; from a point that met easier limits."""
        warm, start = start is not None, task.start if start is None else start
        if task.engine.n > self.largest_dense:
            return run_augmented(task, problem, self, start)
        return run_sequence(task, problem, self, start, warm=warm)

    def named_buffers(self) -> dict[str, float]:
        """What the user wants taken off the limits, by name; ``""`` for all."""
        if self.buffer is None:
            return {}
        return dict(self.buffer) if isinstance(self.buffer, Mapping) else {"": float(self.buffer)}

    def nonlinear_program(
        self,
        task: Task,
        buffers: dict[str, float],
        margins: dict[str, float] | None = None,
        widths: Mapping[str, WidthLimit] | None = None,
    ) -> NonlinearProgram:
        """The objective of a repair and its limits, with what is taken off them, leads and largest widths by name."""
        limits = bound_widths(collect_limits(task.goal, task.constraints, buffers, margins), widths or {})
        data = list(task.data) or labelled_data([*task.constraints, task.goal])
        inputs = _inputs(task, data)
        name = self.objective
        if name == "auto":
            name = "cross_entropy" if data else "closeness" if inputs else "l2"
        if (name == "cross_entropy" and not data) or (name == "closeness" and not inputs):
            raise SpecificationError(
                f"method SQP: objective='{name}' needs samples, got none. Pass data=(inputs, labels) to solve_repair, "
                f"or choose objective='l2'."
            )
        share = self.closeness
        if share is None:
            share = _usual_closeness(task, data)
        ridge = self.ridge
        if ridge is None:
            ridge = 0.0 if task.engine.n <= self.largest_dense else MANY_WEIGHTS_RIDGE
        objective = make_objective(name, task.engine, data, inputs, share=share, ridge=ridge, seed=task.seed)
        return NonlinearProgram(task, limits, objective, inputs)


def _usual_closeness(task: Task, data: list[tuple[Tensor, Tensor]]) -> float:
    """The original's answers are wrong where any sample counts as an error, and wanted where flips are bounded.

    Beside gaps of real rows they count the more the fewer labels there are. (Measured on Adult, a gap within 0.05: of
    2,600 rows a share of 0.4 costs 0.05 points less than one of 0.15 at the same gap, of 500 rows one of 1 costs 0.3 to
    0.5 less.)
    """
    if of_real_rows(task.goal) and data:
        rows = sum(len(inputs) for inputs, _ in data)
        return float(min(MOST_CLOSENESS, max(CLOSENESS, FEW_LABELS / max(1, rows))))
    if not isinstance(task.goal, SampleShare) or task.goal.counted is not None:
        return CLOSENESS
    shares = [one for one in map(measured, task.constraints) if isinstance(one, SampleShare)]
    flips = any(isinstance(one, Anchored) for one in shares)
    return FLIPS_CLOSENESS if flips else 0.0


def _inputs(task: Task, data: list[tuple[Tensor, Tensor]]) -> list[Tensor]:
    """Every set of inputs that the repair knows, each once."""
    found = {identity(inputs): inputs for inputs, _ in data}
    for item in (task.goal, *map(measured, task.constraints)):
        inputs = inputs_of(item)
        if inputs is not None:
            found.setdefault(identity(inputs), inputs)
    return list(found.values())
