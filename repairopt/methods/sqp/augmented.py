"""The same repair where the weights are too many for a dense quadratic program: augmented Lagrangian and L-BFGS.

The smooth objective, the limits and the rows of samples that must not break make one function, with a penalty and
multipliers for each limit and each row. Its gradient costs one pass forward and one back over the samples, whatever the
number of weights; nothing of the size of weights squared or of samples times weights is made. A limit enters with its
soft value, moved so that it equals the value by count at the last outer point: the same pair of hard value and soft
slope as in the quadratic programs. Points are judged on the true network, by count.

For a last linear layer the weights are taken in coordinates in which its features are white, which makes the loss
nearly round, so that few iterations do.

References:
    Nocedal and Wright, Numerical Optimization, 2006, chapters 7 and 17.
    Bohning, Multinomial logistic regression algorithm, 1992, for the curvature that whitening takes away.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from repairopt.methods.outcome import Outcome
from repairopt.methods.task import Task
from repairopt.network import Engine, Predict, Whitening, jacobian, whitening
from repairopt.program import Array, Status
from repairopt.specify import SampleShare, has_signed_parts, price_of, samples_in

from .filter import MET
from .limits import Limit
from .nonlinear_program import NonlinearProgram

STIFFER = 4.0  # factor of a penalty whose bound is not nearer
FIRST_PENALTY = 20.0  # of a limit, for each unit squared of what it is missed by, over its size
ROW_PENALTY = 10.0  # of a row of a sample, for each logit squared, as a mean over the samples
CLOSE = 1e-4  # what a limit or a row may be missed by, below which it asks for nothing further
NEARER = 0.9  # share of what was missed, below which an outer step was worth its time
FIRST_REACH, WIDER = 0.1, 2.0  # natural sizes by which weights move in the first outer step; its growth
MEMORY = 10  # pairs of L-BFGS


@dataclass(eq=False)
class _Penalized:
    """One limit, or all rows of one constraint: its slack-like terms, multipliers and penalty.

    Attributes:
        terms: From ``predict`` to what has to be at most 0, ``(m,)``, differentiable.
        weight: Weight of each term, so that rows count as a mean.
        penalty: Penalty of squared violations.
        multipliers: ``(m,)``.
        price: Of a violation, for each unit and term, beyond which no multiplier goes; infinite for what must hold.
        allowed: How many samples may fail; those that miss most are let go in each outer step.
        samples: How many samples the terms are of, each of as many terms.
        held: Which terms count, ``(m,)``, as 1 or 0.
        before: Largest violation after the last outer step.
    """

    terms: Callable[[Predict], Tensor]
    weight: float
    penalty: float
    multipliers: Tensor
    price: float = float("inf")
    allowed: int = 0
    samples: int = 1
    held: Tensor | None = None
    before: float = float("inf")

    def value(self, predict: Predict) -> Tensor:
        """The term of the augmented Lagrangian: the largest of ``p t - (p - multiplier)^2 / (2 penalty)``."""
        terms = self.terms(predict)
        pushed = self._pushed(terms)
        if self.price == float("inf") and self.held is None:  # the same, with fewer roundings
            return self.weight * ((pushed**2 - self.multipliers**2).sum() / (2.0 * self.penalty))
        each = pushed * terms - (pushed - self.multipliers) ** 2 / (2.0 * self.penalty)
        return self.weight * (each if self.held is None else each * self.held).sum()

    def _pushed(self, terms: Tensor) -> Tensor:
        most = self.price / self.weight if self.weight else self.price
        return torch.clamp(self.multipliers + self.penalty * terms, min=0.0, max=most)

    def update(self, predict: Predict) -> None:
        """New multipliers; a stiffer penalty where the violation did not fall by half."""
        with torch.no_grad():
            terms = self.terms(predict)
        if self.allowed:
            worst = terms.view(self.samples, -1).amax(1)
            let_go = worst.topk(min(self.allowed, len(worst))).indices
            held = torch.ones_like(terms).view(self.samples, -1)
            held[let_go[worst[let_go] > 0]] = 0.0
            self.held = held.flatten()
            terms = torch.where(self.held > 0, terms, torch.full_like(terms, -1.0))
        self.multipliers = self._pushed(terms)
        now = float(terms.clamp(min=0.0).max()) if len(terms) else 0.0
        if now > 0.5 * self.before and now > CLOSE:
            self.penalty *= STIFFER
        self.before = now


@dataclass(eq=False)
class _Loop:
    task: Task
    problem: NonlinearProgram
    settings: Any
    white: Whitening | None
    scale: Array
    box: tuple[Array, Array] | None
    pieces: list[_Penalized] = field(default_factory=list)

    def to_delta(self, u: Array) -> Array:
        """From the coordinates of the search to a weight change."""
        return self.white.colored(u) if self.white is not None else u * self.scale

    def from_delta(self, delta: Array) -> Array:
        """The other way."""
        return self.white.whitened(delta) if self.white is not None else delta / self.scale

    def function(self, u: Array) -> tuple[float, Array]:
        """Augmented Lagrangian and its gradient."""
        self.task.judge.check_time()
        delta, objective = self.to_delta(u), self.problem.objective

        def total(predict: Predict) -> Tensor:
            value: Tensor = objective.soft(predict)
            for piece in self.pieces:
                if piece.weight:
                    value = value + piece.value(predict)
            return value

        value, slope = objective.change(delta)
        if self.pieces or objective.on_outputs:
            found, rows = jacobian(self.task.engine, total, delta)
            value, slope = value + float(found[0]), slope + rows[0].cpu().numpy()
        back = self.white.pulled(slope) if self.white is not None else slope * self.scale
        return value, back

    def minimize(self, u: Array, reach: float) -> Array:
        """L-BFGS from a point, within so many natural sizes of each weight around it."""
        from scipy.optimize import minimize

        bounds = None
        if self.box is not None:
            low, high = (side / self.scale for side in self.box)
            bounds = list(zip(np.clip(u - reach, low, high), np.clip(u + reach, low, high), strict=True))
        options = {"maxiter": self.settings.inner_steps, "maxcor": MEMORY, "ftol": 0.1 * self.settings.smallest_fall}
        found = minimize(self.function, u, jac=True, method="L-BFGS-B", bounds=bounds, options=options)
        return np.asarray(found.x, dtype=np.float64)


def run_augmented(
    task: Task, problem: NonlinearProgram, settings: Any, start: Array | None = None, *, hold: bool = False
) -> Outcome:
    """Minimize the objective subject to limits and strict rows, matrix-free.

    Args:
        task: The repair in progress.
        problem: Judges points; its limits and objective.
        settings: The method, whose fields are read.
        start: Where to begin; None for no change.
        hold: Whether rows of which some may fail are rows of the program too, and weights move little at first.
            Without, right answers are kept by the labelled data alone, and may come back from far away.

    Returns:
        The best point by count: bounds met first, then the smallest objective.
    """
    loop = _loop(task, problem, settings, hold)
    point = problem.point(np.zeros(task.engine.n) if start is None else start)
    best, quiet, lost = point, 0, 0
    for outer in range(settings.outer_steps):
        _offsets(loop, problem, task.engine, point.delta)
        with task.timed("solve"):
            u = loop.minimize(loop.from_delta(point.delta), FIRST_REACH * WIDER**outer if hold else np.inf)
        trial = problem.point(loop.to_delta(u))
        note = f"misses {trial.violation:.3g}, objective {trial.objective:.4f}"
        task.record(f"outer step {outer + 1}", trial.judged, accepted=trial.pair < best.pair, note=note)
        fall = best.objective - trial.objective
        size = max(abs(best.objective), problem.objective.typical if hold else 0.0)
        small = fall < settings.smallest_fall * size
        wish = bool(loop.pieces) and not loop.pieces[0].weight
        enough = trial.judged.feasible and (trial.judged.met or wish)  # by count: what is missed is lead or buffer
        still = small and (
            max(trial.violation, best.violation) <= MET or (enough and trial.violation > NEARER * best.violation)
        )
        quiet = quiet + 1 if still else 0
        best = min(best, trial, key=lambda p: p.pair)
        predict = task.engine.predict(trial.delta)
        for piece in loop.pieces:
            piece.update(predict)
        missed = float(np.maximum(0.0, trial.values - problem.accepted).sum())
        asks = missed > MET or any(piece.before > CLOSE for piece in loop.pieces if piece.weight)
        quiet += small and not asks and not hold  # rows that nothing asks for are not met by further steps
        point = trial if np.isfinite(trial.violation) else best
        lost += not np.isfinite(trial.violation)
        if quiet >= 1 or lost > 1 or (not loop.pieces and outer == 0):
            break
    prices = {
        limit.name: float(piece.weight * piece.multipliers.sum())
        for limit, piece in zip(problem.limits, loop.pieces, strict=False)
    }
    status = Status.FEASIBLE if best.violation <= MET else Status.NO_POINT
    return Outcome(best.delta, status, on_target=True, prices=prices)


def _loop(task: Task, problem: NonlinearProgram, settings: Any, hold: bool) -> _Loop:
    engine = task.engine
    low, high = task.box(np.zeros(engine.n), task.trust_radius)
    scale = engine.scale.cpu().numpy()
    free = not task.change and problem.objective.on_outputs
    white = whitening(engine, problem.inputs) if free else None
    loop = _Loop(task, problem, settings, white, scale, None if white is not None else (low, high))
    for limit in problem.limits:
        count = len(limit.parts(engine.predict()))
        double = 2 if has_signed_parts(limit.property) else 1
        size = FIRST_PENALTY / max(1e-3, abs(limit.limit) + 0.05)
        by_rows = hold and problem.by_rows and limit is problem.limits[0]  # rows ask for the same, and for no more
        weight = 0.0 if by_rows or _is_wish(limit, problem) else 1.0
        loop.pieces.append(_Penalized(lambda p: torch.zeros(0), weight, size, torch.zeros(double * count).double()))
    loop.pieces += [_rows(task, c) for c in (problem.by_sample if hold else problem.strict)]
    return loop


def _is_wish(limit: Limit, problem: NonlinearProgram) -> bool:
    """Whether a limit asks for no error at all among many points whose loss is minimized: as few as that leads to."""
    prop: Any = limit.property
    if not isinstance(prop, SampleShare) or prop.counted is not None or limit.aim > 0 or problem.by_rows:
        return False
    data = getattr(problem.objective, "data", ())
    return any(
        labels is not None
        and inputs.shape == prop.inputs.shape
        and (inputs.data_ptr() == prop.inputs.data_ptr() or torch.equal(inputs, prop.inputs))
        for inputs, labels in data
    )


def _offsets(loop: _Loop, problem: NonlinearProgram, engine: Engine, delta: Array) -> None:
    """Limits as their soft values, moved to equal those by count at a point."""
    predict = engine.predict(delta)
    for limit, piece in zip(problem.limits, loop.pieces, strict=False):
        with torch.no_grad():
            soft = _soft_parts(limit, predict)
        hard = torch.as_tensor(limit.parts(predict), dtype=soft.dtype, device=soft.device)
        piece.terms = _terms(limit, hard - soft)
        piece.multipliers = piece.multipliers.to(soft)


def _terms(limit: Limit, offset: Tensor) -> Callable[[Predict], Tensor]:
    def terms(predict: Predict) -> Tensor:
        parts = _soft_parts(limit, predict) + offset
        if not has_signed_parts(limit.property):
            return parts - limit.aim
        if limit.property.combine == "mean" and len(parts) > 1:
            sizes = torch.sqrt(parts**2 + 1e-8)
            return torch.cat([(sizes.mean() - limit.aim)[None], torch.zeros(2 * len(parts) - 1).to(parts)])
        return torch.cat([parts - limit.aim, -parts - limit.aim])

    return terms


def _soft_parts(limit: Limit, predict: Predict) -> Tensor:
    prop: Any = limit.property
    if has_signed_parts(prop):
        return torch.atleast_1d(prop.residuals(predict))
    return limit.soft(predict).reshape(1)


def _rows(task: Task, c: int) -> _Penalized:
    """All margins of a constraint by sample as terms."""
    constraint: Any = task.constraints[c]
    required = torch.as_tensor(task.required[c])
    samples = samples_in(constraint)

    def terms(predict: Predict) -> Tensor:
        outputs = predict(constraint.inputs)
        margins = constraint.margins_of(outputs[samples.to(outputs.device)], samples).flatten()
        return required.to(margins) - margins

    price = price_of(constraint)
    return _Penalized(
        terms,
        1.0 / max(1, len(samples)),
        ROW_PENALTY,
        torch.zeros(len(required)),
        price=float("inf") if price is None else price,
        allowed=0 if price is not None else task.judge.original.allowed[c],
        samples=max(1, len(samples)),
    )
