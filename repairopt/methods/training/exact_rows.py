"""Make every hard row hold by the smallest change of the last layer: a quadratic program in the violated rows alone."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from repairopt.errors import RepairError
from repairopt.localize import apply, localize
from repairopt.methods.task import Array, Task
from repairopt.network import Engine, Whitening, identity, sample_rows, whitening
from repairopt.program import Program
from repairopt.specify import (
    SampleConstraint,
    SampleShare,
    ShareRows,
    allowed_samples,
    answers_only,
    labels_of,
    measured,
    price_of,
    samples_in,
    stands_for_population,
)

ROUNDS = 15
HAIR = 1e-3  # of the mean margin, by which rows without labels are met more than exactly
FEW = 500  # weights of a last layer whose program is solved as it is, not by its dual
MOST_ROWS = 4_000  # in one program: more are out of reach of a correction


@dataclass(frozen=True, eq=False)
class Corrected:
    """The change after the correction, the rows that it took, and what is to be said."""

    change: Array
    rows: int = 0
    note: str = ""


def hard_constraints(task: Task) -> list[Any]:
    """Constraints on at least one sample that must hold, but for the number of samples that they allow to fail."""
    known = [c for c in task.constraints if isinstance(c, SampleConstraint) and price_of(c) is None]
    return [c for c in known if len(samples_in(c))]


def rows_of_goal(task: Task) -> list[Any]:
    """A row for each point of a goal that no given point is wrong; none of other goals."""
    goal = task.goal
    if not isinstance(goal, SampleShare) or goal.target > 0 or stands_for_population(goal):
        return []
    rows: Any = ShareRows(goal)
    return [rows] if len(rows.samples) <= MOST_ROWS else []


def correct_rows(task: Task, change: Array, margin: float, *, goal: bool = False) -> Corrected:
    """Move the last layer as little as makes all hard rows hold; of a constraint as many may fail as it allows.

    Args:
        task: The repair.
        change: Where to start, ``(n,)``.
        margin: Logits by which the rows of labels that are corrected lead.
        goal: Whether the points of a goal that none is wrong are hard rows too.

    Returns:
        The new change; the old one, with a note, where the last layer may not change, or cannot make the rows hold.
    """
    constraints = hard_constraints(task) + (rows_of_goal(task) if goal else [])
    here = apply(task.engine.model, task.location, change)[0]
    try:
        last = localize(here, "last", inputs=_example(constraints), forward_fn=task.engine.forward_fn)
    except RepairError as error:
        return Corrected(change, note=f"Hard rows were not corrected: {error}")
    places = _places(task, last.indices)
    if places is None:
        return Corrected(change, note="Hard rows were not corrected: not all of the last layer may change.")
    engine = Engine(here, last.indices, forward_fn=task.engine.forward_fn, memory_limit=task.engine.memory_limit)
    white = whitening(engine, known_inputs(task))
    asked = [_asked(task, c, margin) for c in constraints]
    matrix, sides = np.zeros((0, engine.n)), np.zeros(0)
    step, seen = np.zeros(engine.n), set[tuple[int, int]]()
    for _ in range(ROUNDS):
        task.judge.check_time()
        broken = [(k, i) for k, c in enumerate(constraints) for i in _to_correct(engine, c, step)]
        if not broken:
            break
        new = [pair for pair in broken if pair not in seen]
        if not new or len(matrix) > MOST_ROWS:
            return Corrected(change, len(matrix), "Hard rows are out of reach of the last layer alone.")
        seen |= set(new)
        for k, constraint in enumerate(constraints):
            samples = torch.tensor([i for j, i in new if j == k], dtype=torch.int64)
            if len(samples):
                rows, side = _rows(engine, constraint, samples, asked[k])
                matrix, sides = np.vstack([matrix, rows]), np.concatenate([sides, side])
        found = _smallest(task, matrix, sides, white) if len(matrix) <= engine.n else None
        if found is None:  # also of more rows than weights
            return Corrected(change, len(matrix), "Hard rows are out of reach of the last layer alone.")
        step = found
    else:
        return Corrected(change, len(matrix), "Hard rows were not all corrected.")
    moved = change.copy()
    moved[places] += step
    return Corrected(moved, len(matrix))


def _example(constraints: list[Any]) -> Tensor:
    inputs: Tensor = constraints[0].inputs
    return inputs[:4]


def known_inputs(task: Task) -> list[Tensor]:
    """All rows that the repair knows, whose outputs are to stay."""
    items = [task.goal, *(measured(c) for c in task.constraints)]
    known = [pair[0] for pair in map(labels_of, items) if pair is not None]
    known += [c.inputs for c in hard_constraints(task)] + [x for x, _ in task.data]
    return list({identity(x): x for x in known}.values())


def _places(task: Task, indices: dict[str, Tensor]) -> Any:
    """Positions of the last layer's weights among the chosen ones; None where one may not change."""
    start, found = 0, {}
    for name, positions in task.engine.indices.items():
        if name in indices:
            own = positions.cpu().numpy()
            where = np.searchsorted(own, indices[name].cpu().numpy())
            if np.any(where >= len(own)) or np.any(own[np.minimum(where, len(own) - 1)] != indices[name].cpu().numpy()):
                return None
            found[name] = start + where
        start += len(positions)
    return np.concatenate([found[name] for name in indices]) if set(found) == set(indices) else None


def _asked(task: Task, constraint: Any, margin: float) -> Tensor:
    """Smallest margins that the rows ask for, by sample of the constraint."""
    samples = samples_in(constraint)
    k = next((k for k, one in enumerate(task.constraints) if one is constraint), None)
    if k is None:  # the points of the goal
        return torch.tensor(margin)
    required = torch.as_tensor(task.required[k]).reshape(len(samples), -1)
    if answers_only(constraint):
        return required.clamp(min=margin)
    with torch.no_grad():
        now = constraint.margins_of(task.engine.predict()(constraint.inputs)[samples], samples)
    return required + HAIR * float(now.double().abs().mean())  # a row that is met exactly fails by rounding


def _to_correct(engine: Engine, constraint: Any, step: Array) -> list[int]:
    """Positions, among the constraint's samples, of those that fail, without the worst ones that it allows to."""
    samples = samples_in(constraint)
    with torch.no_grad():
        outputs = engine.predict(step)(constraint.inputs)
        margins = constraint.margins_of(outputs[samples.to(outputs.device)], samples)
    least = margins.reshape(len(samples), -1).amin(1).cpu()
    worst_first = least.argsort()[: int((least < 0).sum())].tolist()
    return sorted(worst_first[allowed_samples(constraint, margins.cpu().numpy()) :])


def _rows(engine: Engine, constraint: Any, places: Tensor, asked: Tensor) -> tuple[Array, Array]:
    """Rows ``matrix @ step >= side`` of some samples, linear in the change of the last layer."""
    samples = samples_in(constraint).cpu()[places]
    with torch.no_grad():
        outputs = engine.predict()(constraint.inputs)[samples.to(engine.device)]

    def margins(one: Tensor) -> Tensor:
        found: Tensor = constraint.margins_of(one, samples).reshape(len(samples), -1)
        return found

    moving = outputs.clone().requires_grad_()
    with torch.enable_grad():
        now = margins(moving)
        columns = [torch.autograd.grad(now[:, j].sum(), moving, retain_graph=True)[0] for j in range(now.shape[1])]
    parts = [sample_rows(engine, constraint.inputs, samples, cotangent) for cotangent in columns]
    matrix = torch.stack(parts, 1).flatten(0, 1).double().cpu().numpy()
    wanted = asked if asked.ndim == 0 else asked[places]
    short = (wanted.to(now.device).double() - now.detach().double()).flatten().cpu().numpy()
    used = np.any(matrix != 0, axis=1)
    return matrix[used], short[used]


def _smallest(task: Task, matrix: Array, sides: Array, white: Whitening | None) -> Array | None:
    """The smallest step with ``matrix @ step >= sides``, by its dual where rows are fewer; None where there is none."""
    rows = matrix if white is None else np.stack([white.pulled(row) for row in matrix])
    if rows.shape[1] <= FEW:  # rows may be in conflict, which the program itself proves
        n, sizes = rows.shape[1], np.abs(rows).max(axis=1)
        least: Any = {"lower": sides / sizes, "upper": np.full(len(rows), np.inf)}
        program = Program(np.zeros(n), np.eye(n), matrix=rows / sizes[:, None], **least)
        moved = task.solve_program(program).delta
        return moved if white is None or moved is None else white.colored(moved)
    gram = rows @ rows.T
    size = float(np.trace(gram)) / len(gram)
    gram[np.diag_indices(len(gram))] += 1e-10 * size
    program = Program(gradient=-sides, hessian=gram / size, delta_lower=np.zeros(len(sides)))
    found = task.solve_program(program).delta
    if found is None:
        return None
    moved = rows.T @ found / size
    return moved if white is None else white.colored(moved)
