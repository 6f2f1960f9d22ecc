"""The sequence of steps: model, solve, judge, accept by the filter; damped, with second-order corrections.

References:
    Nocedal and Wright, Numerical Optimization, 2006, chapter 18.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from repairopt.methods.outcome import Outcome
from repairopt.methods.task import Task
from repairopt.program import Array, Program, Rows, Solution, Status, solve_working_set
from repairopt.surrogate import LinearizedRows, MostViolated, Picks, Surrogate, select_rows

from .division import TINIEST, rows_of
from .filter import MET, Filter, Pair
from .nonlinear_program import Models, NonlinearProgram, Point
from .step import StepProgram, limit_prices

GAIN, LOSS = 3.0, 4.0  # factors of the damping after a good step and after a rejected one
WIDER, NARROWER = 2.0, 0.35  # factors of the trust radius after a good step that reached it, and after a rejected one
OVERSHOOT = 1e-7  # relative, by which a step goes further than a limit, for back ends that are not exact
PRICE = 20.0  # of a missed limit in a step, for each unit
FIX_PRICE = 100.0  # of each logit that a sample to be fixed shortfall in a step, over the number of samples
STOPPED = 3  # rejections in a row after which the filter decides
REJECTIONS, FEWEST = 8, 5  # in a row, that end a sequence, and one of the fewest rows
HALVINGS = 4  # on the way to a point that misses bounds
ROW_ROUNDS = 8  # solves of a step as rows of samples join


@dataclass(frozen=True, eq=False)
class Step:
    """A solved step program.

    Attributes:
        solution: Its answer.
        program: What was solved; rows of samples that a working set held are left out.
        step: ``(n,)``, or None.
        models: What it was made from.
    """

    solution: Solution
    program: Program
    step: Array | None
    models: Models


class Sequence:
    """One run from the original network.

    Args:
        task: The repair in progress.
        problem: Judges points and makes models.
        settings: The method, whose fields are read.
        at: Where to begin.
        floor: Objective below which falls are compared with it.
    """

    def __init__(self, task: Task, problem: NonlinearProgram, settings: Any, at: Point, floor: float = 0.0) -> None:
        self.task, self.problem, self.settings = task, problem, settings
        self.scale = task.engine.scale.cpu().numpy()
        self.at, self.floor, self.tiny = at, floor, rows_of(task) < TINIEST
        self.best, self.filter = self.at, Filter()
        self.models: Models | None = None
        self.rejected, self.called = 0, ""
        self.last: Step | None = None
        self.damping, self.aims, self.radius = settings.damping, problem.aims.copy(), task.trust_radius

    def run(self, most: int, until: Callable[[Point], bool] | None = None) -> Status:
        """Step until nothing improves; the best point is kept whatever ends it; the status of the last solve.

        Args:
            most: Largest number of steps.
            until: Whether to leave a point that was accepted.
        """
        quiet, status = 0, Status.NO_POINT
        for index in range(most):
            if self.models is None:
                self.models = self.problem.models(self.at)
            found = self._solve(self.models)
            status = found.solution.status
            if found.step is None:
                self.task.record(f"step {index + 1}", None, accepted=False, note=found.solution.message)
                break
            trial, found, how = self._try_step(found)
            predicted = self._predicted(found)
            accepted = how == "part of the way" or self._acceptable(trial, predicted)
            self._note(index, trial, accepted, how)
            moved = float(np.abs(found.step / self.scale).max(initial=0.0)) if found.step is not None else 0.0
            small = moved < min(self.settings.smallest_step, self.settings.smallest_fall)
            if accepted:
                fall = self.at.objective - trial.objective
                still = self.at.violation <= MET and fall < self._smallest_fall
                free = self.rejected <= 1  # a step held back by the damping of rejections tells little
                quiet = quiet + 1 if still else 0
                self._accept(trial, found, predicted)
                if quiet > (0 if free else 1) or (until is not None and until(self.at)):
                    break
            else:
                self.rejected += 1
                self.damping *= LOSS
                self.radius = min(self.radius, moved) * NARROWER
                self.aims = (self.aims + np.maximum(self.problem.aims, self.at.values)) / 2
            wanted = self.at.objective - predicted.objective
            nothing = self.at.violation <= MET and wanted < self._smallest_fall
            if self.rejected >= (FEWEST if self.tiny else REJECTIONS) or (self.rejected >= 2 and (small or nothing)):
                break
        return status

    @property
    def _smallest_fall(self) -> float:
        return float(self.settings.smallest_fall * max(abs(self.at.objective), self.floor))

    # ---------------------------------------------------------------- one step

    def _solve(self, models: Models, lines: Any = None) -> Step:
        """Solve for a step; limits are missed only as far as they must be."""
        return self._with_rows(models, self._step_program(models, lines))

    def _step_program(self, models: Models, lines: Any = None) -> StepProgram:
        box = self.task.box(self.at.delta, min(self.radius, self.task.trust_radius))
        parts = StepProgram(models.objective, self.scale, self.at.delta, self.damping * self._curvature(models), box)
        free = self.problem.by_rows and not self.problem.objective.on_outputs and self.at.violation <= MET
        for k, (limit, line, aim) in enumerate(zip(self.problem.limits, lines or models.lines, self.aims, strict=True)):
            short = aim - OVERSHOOT * (1.0 + abs(aim))
            parts.add_limit(limit.name, line, short, 0.0 if free and k == 0 else PRICE)  # rows hold it, exactly
        parts.add_rows(self.task.change_rows(self.at.delta))
        return parts

    def _with_rows(self, models: Models, parts: StepProgram) -> Step:
        """The step with the rows of samples: strict ones by a working set, others as the true network breaks them."""
        task, lin = self.task, models.linearization
        broken = _broken_rows(models)
        parts.add_rows(replace(fixed := lin.rows(broken), price=np.full(len(fixed), FIX_PRICE / max(1, len(fixed)))))
        program = parts.program()
        task.log.rows_used = max(task.log.rows_used, program.m)
        strict = [c for c in models.strict if len(lin.margins[c])]
        rows = _SatisfiedRows(LinearizedRows(lin, tuple(strict)), broken, strict) if strict else None
        if rows is not None and rows.m:
            with task.timed("solve"):
                tol = 1e-6 if lin.engine.dtype.itemsize <= 4 else 1e-9
                options: Any = {"solver": task.solver, "feasibility_tol": tol, "time_limit": task.judge.time_to_solve()}
                answer: Solution = solve_working_set(program, rows, **options)
            task.log.last = (program.m + rows.m, program.n, answer)
            if answer.delta is None and not answer.interrupted:  # its rows are held at a step of 0: one exists
                everything = rows.rows(np.arange(rows.m))
                answer = task.solve_program(_with_all(program, everything), prove=False)
        else:
            answer = task.solve_program(program, prove=False)
        step = None if answer.delta is None else answer.delta[: parts.n]
        return Step(answer, program, step, models)

    def _curvature(self, models: Models) -> float:
        hessian = models.objective.hessian
        if hessian is None:
            return 1e-6
        return max(1e-12, float(np.mean(np.diag(hessian) * self.scale**2)))

    def _predicted(self, found: Step) -> Pair:
        assert found.step is not None
        return self.problem.predicted(found.models, found.step, self.at.delta)

    def _try_step(self, found: Step) -> tuple[Point, Step, str]:
        """Judge the step; one that misses more for curvature is corrected once, one that breaks samples gets rows.

        Of the fewest rows only the first step from a point is corrected: where that did not help, shorter ones follow.
        """
        assert found.step is not None
        trial = self.problem.point(self.at.delta + found.step)
        if self._acceptable(trial, self._predicted(found)):
            return trial, found, ""
        worse = self.problem.surplus(trial.judged) > self.problem.surplus(self.at.judged)
        again = self._with_broken_samples(found, trial) if worse else None
        if again is None and not (self.tiny and self.rejected):
            again = self._second_order_correction(found, trial)
        note = ""
        if again is not None and again.step is not None:
            other = self.problem.point(self.at.delta + again.step)
            if self._acceptable(other, self._predicted(again)):
                return other, again, "corrected"
            if other.violation < trial.violation:
                trial, found, note = other, again, "corrected"
        part = self._part_of_the_way(trial)
        if part is not None:
            return part, replace(found, step=part.delta - self.at.delta), "part of the way"
        return trial, found, note

    def _part_of_the_way(self, trial: Point) -> Point | None:
        """Bisection on the true network, from a point that meets the bounds towards a better one that misses them."""
        if self.at.violation > MET or trial.objective >= self.at.objective or not np.isfinite(trial.violation):
            return None
        low, high, best = 0.0, 1.0, None
        for _ in range(HALVINGS):
            share = (low + high) / 2
            point = self.problem.point(self.at.delta + share * (trial.delta - self.at.delta))
            if point.violation <= MET:
                low = share
                best = point if best is None or point.objective < best.objective else best
            else:
                high = share
        return best if best is not None and best.objective < self.at.objective else None

    def _with_broken_samples(self, found: Step, trial: Point) -> Step | None:
        """The step again, with rows for the samples that it breaks beyond what constraints allow."""
        models, step = found.models, found.step
        picks: Picks = {}
        lin = models.linearization
        for _ in range(ROW_ROUNDS):
            assert step is not None
            new = select_rows(lin, MostViolated(self.settings.batch), step=step, chosen=picks)
            new = {c: index for c, index in new.items() if c not in models.strict}
            if sum(map(len, new.values())) == 0:
                return found
            picks = self.task.merge(picks, new)
            found = self._resolve(models, lin.rows(picks))
            if found.step is None:
                return None
            step = found.step
            now = self.problem.point(self.at.delta + step)
            if self.problem.surplus(now.judged) <= self.problem.surplus(self.at.judged):
                return found
        return found

    def _resolve(self, models: Models, rows: Rows) -> Step:
        parts = self._step_program(models)
        parts.add_rows(rows)
        return self._with_rows(models, parts)

    def _second_order_correction(self, found: Step, trial: Point) -> Step | None:
        """Second-order correction: the lines moved so that they are right at the trial point."""
        step = found.step
        assert step is not None
        if not np.isfinite(trial.violation) or trial.violation <= self._predicted(found).violation + 1e-6:
            return None
        predict = self.task.engine.predict(trial.delta)
        pairs = zip(found.models.lines, self.problem.limits, strict=True)
        return self._solve(found.models, [line.shifted(step, limit.parts(predict)) for line, limit in pairs])

    # ---------------------------------------------------------------- what becomes of it

    def _acceptable(self, trial: Point, predicted: Pair) -> bool:
        return self.filter.acceptable(self.at.pair, trial.pair, predicted, stopped=self.rejected >= STOPPED)

    def _accept(self, trial: Point, found: Step, predicted: Pair) -> None:
        now = self.at.pair
        if now.violation > MET:
            good = now.merit - trial.pair.merit > 0.5 * (now.merit - predicted.merit)
        else:
            good = now.objective - trial.objective > 0.5 * (now.objective - predicted.objective)
        self.damping = max(self.damping / GAIN, 1e-9) if good else self.damping
        moved = float(np.abs((trial.delta - self.at.delta) / self.scale).max(initial=0.0))
        if good and moved > 0.9 * self.radius:
            self.radius = min(self.task.trust_radius, WIDER * self.radius)
        self.filter.left(now)
        self.at, self.models, self.last, self.aims = trial, None, found, self.problem.aims.copy()
        self.rejected = 0
        if trial.pair < self.best.pair:
            self.best = trial

    def _note(self, index: int, trial: Point, accepted: bool, how: str) -> None:
        text = f"damping {self.damping:.2g}, misses {trial.violation:.3g}, objective {trial.objective:.4f}"
        text += f", {how}" if how else ""
        self.task.record(f"step {index + 1}{self.called}", trial.judged, accepted=accepted, note=text)

    def outcome(self, status: Status) -> Outcome:
        """What the run proposes."""
        last = self.last
        if last is None:
            return Outcome(self.best.delta, status, on_target=True)
        lines, start = last.models.lines[0], last.models.linearization.delta
        slope = lines.slopes[int(np.abs(lines.values).argmax())]
        surrogate = Surrogate(slope, None, float(self.at.values[0]), self.scale, kind="linear")
        prices = limit_prices(last.program, last.solution.row_duals, [limit.name for limit in self.problem.limits])
        return Outcome(
            self.best.delta,
            last.solution.status,
            surrogate,
            last.models.linearization,
            self.best.delta - start,
            on_target=True,
            prices=prices,
            out_of_reach=tuple(name for name, price in prices.items() if price >= PRICE * (1 - 1e-6)),
        )


def _with_all(program: Program, rows: tuple[Any, Array, Array]) -> Program:
    """A program with further rows on its first variables."""
    matrix, lower, upper = rows
    wide = np.zeros((len(lower), program.n))
    wide[:, : matrix.shape[1]] = matrix
    return replace(
        program,
        matrix=wide if program.matrix is None else np.vstack([program.matrix, wide]),
        lower=np.concatenate([program.lower, lower]),
        upper=np.concatenate([program.upper, upper]),
        sources=(),
    )


class _SatisfiedRows:
    """The rows of strict constraints that hold now; those that do not stand in the program, at a price.

    Only the former are counted and numbered, because a working set of few rows gives all of them to the back end.
    """

    def __init__(self, rows: LinearizedRows, broken: Picks, strict: list[int]) -> None:
        start = np.cumsum([0] + [len(rows.linearization.margins[c]) for c in strict])
        held = np.ones(rows.m, dtype=bool)
        for k, c in enumerate(strict):
            held[start[k] + broken.get(c, np.zeros(0, dtype=np.int64))] = False
        self.rows_of, self.held = rows, np.flatnonzero(held)
        self.m = len(self.held)

    def violations(self, delta: Array) -> Array:
        """Margins of the rows that hold now, ``(m,)``."""
        return self.rows_of.violations(delta)[self.held]

    def rows(self, index: Any) -> Any:
        """Rows of the linearization, by number among the rows that hold."""
        return self.rows_of.rows(self.held[np.asarray(index, dtype=np.int64)])


def _broken_rows(models: Models) -> Picks:
    """Rows of strict constraints that do not hold at the point itself: samples that are to be fixed."""
    lin = models.linearization
    return {
        c: np.flatnonzero(lin.margins[c] < lin.required[c] - 1e-9).astype(np.int64)
        for c in models.strict
        if len(lin.margins[c])
    }
