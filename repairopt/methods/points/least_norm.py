"""The least change of weights that meets linear rows: what methods for points have in common."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch

from repairopt.errors import SpecificationError
from repairopt.methods.settings import Expected, check_settings, is_one_of
from repairopt.methods.task import Task
from repairopt.network import Engine
from repairopt.program import Array, LowRankHessian, Program, Solution, Status, solve_working_set
from repairopt.specify import ChangeBox, SampleConstraint, SampleShare, ShareRows, margins_at, samples_in
from repairopt.verify import Judge

NORMS = ("l1+linf", "l1", "linf", "l2")
MANY, BATCH = 5000, 200  # weights from which on changes are combinations of rows, and rows that are added at a time


@dataclass(frozen=True, kw_only=True)
class LeastNorm:
    """Fields of the methods for points.

    Attributes:
        norm: What is least of the change: ``"l1+linf"`` (mean absolute change plus the largest one, as PRDNN and APRNN
            have it), ``"l1"``, ``"linf"`` or ``"l2"`` (half the mean square).
        limit: Largest change of any weight.
        buffer: Smallest lead that each point is to have, in logits.
    """

    norm: str = "l1+linf"
    limit: float = 3.0
    buffer: float = 0.05

    def __post_init__(self) -> None:
        check_settings(self, {"limit": Expected(above=True), "buffer": Expected()})
        if not is_one_of(self.norm, NORMS):
            raise SpecificationError(
                f"method {type(self).__name__}: norm={self.norm!r}; choose one of {', '.join(NORMS)}."
            )


def points_of(task: Task, method: object) -> Task:
    """The same repair with a hard row for each point of the goal; a SpecificationError where there are no points."""
    name, goal = type(method).__name__, task.goal
    others = [c.name for c in task.constraints if not isinstance(c, SampleConstraint)]
    if others:
        raise SpecificationError(
            f"method {name}: speaks of single points, and '{others[0]}' is no constraint by sample. Leave it out, or "
            f"choose another method, such as sqp."
        )
    rows: list[Any] = [*task.constraints]
    broken = any((m < least).any() for m, least in zip(_margins(task), task.judge.required, strict=True))
    if isinstance(goal, SampleShare):
        taken = any(one.name == goal.name for one in task.spec.constraints)
        rows.append(ShareRows(goal, name=f"{goal.name}, point by point" if taken else ""))
    elif not broken:
        raise SpecificationError(
            f"method {name}: neither the goal '{goal.name}' nor a constraint names points that are wrong. Give "
            f"ErrorRate(inputs, labels, target=0) as the goal, or FixLabels(inputs, labels) among the constraints."
        )
    check_linear(task, rows, name)
    spec = replace(task.spec, constraints=(*rows, *task.change))
    return replace(task, spec=spec, judge=Judge(task.engine, spec, task.judge.deadline))


def check_linear(task: Task, rows: list[Any], name: str) -> None:
    """Margins that are affine in the outputs of their sample, as leads of labels are; else a SpecificationError."""
    draw = torch.Generator().manual_seed(0)
    for constraint in rows:
        few = samples_in(constraint)[:50]
        if not len(few):
            continue
        outputs = task.engine.predict()(constraint.inputs[few.to(constraint.inputs.device)]).detach().cpu().double()
        away = torch.randn(outputs.shape, generator=draw, dtype=torch.float64) * (1 + outputs.abs().max())
        ends = [constraint.margins_of(outputs + shift, few) for shift in (0 * away, away, away / 2)]
        if not torch.allclose((ends[0] + ends[1]) / 2, ends[2], atol=1e-6 * float(away.abs().max())):
            raise SpecificationError(
                f"method {name}: the margins of '{constraint.name}' are not linear in the outputs, as its programs "
                f"need. Choose another method, such as sqp."
            )


def leads_of(task: Task, buffer: float) -> tuple[Array, ...]:
    """The margins that rows ask for: the buffer, but of points that hold no more than they have."""
    return tuple(
        np.maximum(least, np.where(own >= least, np.minimum(buffer, own), buffer))
        for least, own in zip(task.judge.required, _margins(task), strict=True)
    )


def _margins(task: Task) -> tuple[Array, ...]:
    return margins_at(task.engine.predict(), task.constraints)


def one_layer(engine: Engine, method: object) -> str:
    """The name of the one layer whose weights may change; a SpecificationError where there are several."""
    layers = {name.rpartition(".")[0] for name in engine.indices}
    if len(layers) != 1:
        raise SpecificationError(
            f"method {type(method).__name__}: changes one layer, and the chosen weights are of {len(layers)} "
            f"({', '.join(sorted(layers)[:4])}). Name one, such as weights='last'."
        )
    return layers.pop()


def solve_least(task: Task, rows: Any, settings: LeastNorm, *, price: float | None = None) -> Solution:
    """The least change ``(n,)`` that meets the rows of an oracle, and the user's limits on the change.

    Args:
        task: The repair.
        rows: An oracle of rows, see :mod:`repairopt.program`.
        settings: Norm and limit.
        price: Of the mean violation, where rows may be violated; None for hard rows.

    Returns:
        The solution, its ``delta`` cut to the ``n`` weights; of soft rows the status is that of the soft program.
    """
    task.judge.check_time()
    found = least_squares(task, rows, settings) if _many(task, settings, price) else None
    if found is not None:
        solution = found
    elif price is not None:
        solution = task.solve_program(norm_program(task, settings, rows, price))
    else:
        head = norm_program(task, settings)
        with task.timed("solve"):
            options: Any = {"solver": task.solver, "time_limit": task.judge.time_to_solve()}
            solution = solve_working_set(head, rows, feasibility_tol=task.tolerance, **options)
    task.log.last = (rows.m, task.engine.n, solution)
    task.log.rows_used = max(task.log.rows_used, rows.m)
    return solution if solution.delta is None else replace(solution, delta=solution.delta[: task.engine.n])


def _many(task: Task, settings: LeastNorm, price: float | None) -> bool:
    """Whether the least squared change is sought among many weights, without limits of the user."""
    return settings.norm == "l2" and price is None and task.engine.n > MANY and not task.change and task.solver is None


def least_squares(task: Task, rows: Any, settings: LeastNorm) -> Solution | None:
    """The least squared change, as a combination of rows: for many more weights than rows.

    The change is ``A' y`` for the rows ``A`` that it needs, with ``y`` from the dual program
    ``min 1/2 y'AA'y - b'y, y >= 0``, whose size is their number. Rows that the change violates are added until none is.
    None where the limit on a weight is in the way, or the dual program has no solution: then the program itself tells
    why.
    """
    zero = np.zeros(task.engine.n)
    matrix, lower, index = np.zeros((0, task.engine.n)), np.zeros(0), np.zeros(0, dtype=np.int64)
    delta, rounds = zero, 0
    while True:
        with task.timed("solve"):
            lacks = rows.violations(delta)
            new = np.setdiff1d(np.flatnonzero(lacks > task.tolerance), index)
            if not len(new):
                break
            new = new[np.argsort(-lacks[new], kind="stable")[:BATCH]]
            more, least, _ = rows.rows(new)
            length = np.maximum(np.linalg.norm(more, axis=1), 1e-30)
            matrix, lower = np.concatenate([matrix, more / length[:, None]]), np.concatenate([lower, least / length])
            index, rounds = np.concatenate([index, new]), rounds + 1
        size = len(lower)
        dual = Program(gradient=-lower, hessian=matrix @ matrix.T, delta_lower=np.zeros(size))
        found = task.solve_program(dual)
        if found.delta is None or found.status is not Status.OPTIMAL:
            return None
        delta = matrix.T @ np.maximum(found.delta, 0)
    if np.abs(delta).max(initial=0.0) > settings.limit:
        return None
    text = f"least squares; {rounds} rounds, {len(index)} of {rows.m} rows"
    value = float((delta**2).mean() / 2)
    solver = task.log.last[2].solver if task.log.last[2] else ""
    return Solution(Status.OPTIMAL, delta, value, message=text, solver=solver)


def norm_program(task: Task, settings: LeastNorm, soft: Any = None, price: float = 0.0) -> Program:
    """The program of least change without rows of points, or with soft ones."""
    from scipy import sparse

    n, slacks = task.engine.n, soft.m if soft is not None else 0
    lower, upper = np.full(n, -settings.limit), np.full(n, settings.limit)
    initial = task.engine.initial.double().cpu().numpy()
    for constraint in task.change:
        if isinstance(constraint, ChangeBox):
            low, high = constraint.box(initial)
            lower, upper = np.maximum(lower, low), np.minimum(upper, high)
    own = task.change_rows(np.zeros(n))
    sizes, largest = int("l1" in settings.norm) * n, int("linf" in settings.norm)
    eye, count = sparse.identity(n, format="csr"), n + sizes + largest + slacks

    def spread(part: Any, start: int) -> Any:
        part = sparse.csr_matrix(part)
        before = sparse.csr_matrix((part.shape[0], start))
        return sparse.hstack([before, part, sparse.csr_matrix((part.shape[0], count - start - part.shape[1]))])

    blocks, sides = [spread(own.matrix, 0)], [(own.lower, own.upper)]
    above = (np.zeros(n), np.full(n, np.inf))
    if sizes:
        blocks += [spread(eye, n) - spread(eye, 0), spread(eye, n) + spread(eye, 0)]
        sides += [above, above]
    if largest:
        one = spread(np.ones((n, 1)), n + sizes)
        inner = [spread(eye, n)] if sizes else [spread(eye, 0), -spread(eye, 0)]
        blocks += [one - part for part in inner]
        sides += [above] * len(inner)
    if soft is not None:
        matrix, low, high = soft.rows(np.arange(slacks))
        blocks.append(spread(matrix, 0) + spread(sparse.identity(slacks), count - slacks))
        sides.append((low, high))
    costs = (np.zeros(n), np.full(sizes, 1 / n), np.ones(largest), np.full(slacks, price / max(1, slacks)))
    free = np.full(count - n, np.inf)
    curved = np.concatenate([np.full(n, 1 / n), np.zeros(count - n)])
    return Program(
        gradient=np.concatenate(costs),
        hessian=LowRankHessian(curved, np.zeros((count, 0))) if settings.norm == "l2" else None,
        matrix=sparse.vstack(blocks, format="csr"),
        lower=np.concatenate([side[0] for side in sides]),
        upper=np.concatenate([side[1] for side in sides]),
        delta_lower=np.concatenate([lower, np.zeros(count - n)]),
        delta_upper=np.concatenate([upper, free]),
        n_delta=n,
    )
