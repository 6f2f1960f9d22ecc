"""Make every hard row hold by the smallest change of the last layer, or of all; a program in violated rows alone."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from repairopt.errors import RepairError
from repairopt.localize import apply, localize
from repairopt.methods.task import Array, Task
from repairopt.network import Engine, LayersOfRows, Whitening, sample_rows, whitening
from repairopt.program import Program
from repairopt.specify import samples_in
from repairopt.verify import Judgement

from .factored_rows import FactoredRows
from .hard_rows import MOST_ROWS, asked_margins, hard_constraints, known_inputs, rows_of_goal, to_correct

ROUNDS = 15
FEW = 500  # weights of a last layer whose program is solved as it is, not by its dual
BEYOND = "Hard rows are out of reach of the last layer alone."
BEYOND_ALL = "Hard rows were not all corrected: they are out of reach of the layers that may change, near the proposal."


@dataclass(frozen=True, eq=False)
class Corrected:
    """The change after the correction, the rows that it took, and what is to be said."""

    change: Array
    rows: int = 0
    note: str = ""


def correct_rows(task: Task, change: Array, margin: float, *, goal: bool = False) -> Corrected:
    """Move weights as little as makes all hard rows hold; of a constraint as many may fail as it allows.

    The last layer is tried first: outputs are linear in it. Where it cannot make the rows hold, all linear and
    convolutional layers that may change as a whole are moved, by rows that are linearized anew in each round. Where
    points of the goal are among the rows, both are tried, and the one that moves outputs on known rows less is taken:
    to mend by the last layer alone a dozen points that training has left wrong cost a ResNet .008 of its accuracy on
    unseen ones, by all layers .001; where derivatives reach less far it is the other way round.

    Args:
        task: The repair.
        change: Where to start, ``(n,)``.
        margin: Logits by which the rows of labels that are corrected lead.
        goal: Whether the points of a goal that none is wrong are hard rows too.

    Returns:
        The new change; the old one, with a note, where the rows cannot be made to hold.
    """
    constraints = hard_constraints(task) + (rows_of_goal(task) if goal else [])
    asked = [asked_margins(task, c, margin) for c in constraints]
    found = _by_last_layer(task, change, constraints, asked)
    if task.engine.exact or not (goal or found.note):
        return found
    more = _by_factors(task, task.engine, change, constraints, asked)
    if more is None:
        return found
    if found.note and more.note:
        return replace(found, note=BEYOND_ALL)
    ways = [way for way in (found, more) if not way.note]
    return min(ways, key=lambda way: _outputs_moved(task, change, way.change)) if len(ways) > 1 else ways[0]


def _outputs_moved(task: Task, before: Array, after: Array) -> float:
    """Sum of the squared changes of outputs on the rows that are known."""
    first, second = task.engine.predict(before), task.engine.predict(after)
    with torch.no_grad():
        return sum(float((second(x) - first(x)).double().square().sum()) for x in known_inputs(task))


def keep_corrected(task: Task, change: Array, margin: float, *, goal: bool = True) -> Judgement | None:
    """Judge what becomes of a proposal whose hard rows are corrected; the judge remembers it where it is the best.

    Where all rows cannot be made to hold, the points of the goal are left as they are, and the rows to keep corrected.

    Args:
        task: The repair.
        change: The proposal, ``(n,)``.
        margin: As for :func:`correct_rows`.
        goal: Whether the points of a goal that none is wrong are hard rows too.

    Returns:
        The judgement of the corrected change; None where there is nothing to correct, or no way to.
    """
    points, hard = goal and bool(rows_of_goal(task)), bool(hard_constraints(task))
    if not points and not hard:
        return None
    with task.timed("linearize"):
        found = correct_rows(task, change, margin, goal=points)
        if found.note and points and hard:
            found = correct_rows(task, change, margin)
    if found.note:
        task.log.note(found.note)
    if not found.rows:
        return None
    judged = task.judge.keep(found.change)
    task.log.rows_used = max(task.log.rows_used, found.rows)
    task.record(f"correction of {found.rows} rows", judged, accepted=task.judge.best is judged)
    return judged


def _by_last_layer(task: Task, change: Array, constraints: list[Any], asked: list[Tensor]) -> Corrected:
    here = apply(task.engine.model, task.location, change)[0]
    try:
        last = localize(here, "last", inputs=constraints[0].inputs[:4], forward_fn=task.engine.forward_fn)
    except RepairError as error:
        return Corrected(change, note=f"Hard rows were not corrected: {error}")
    places = _places(task, last.indices)
    if places is None:
        return Corrected(change, note="Hard rows were not corrected: not all of the last layer may change.")
    engine = Engine(here, last.indices, forward_fn=task.engine.forward_fn, memory_limit=task.engine.memory_limit)
    engine.shards = task.engine.shards
    found = None
    if engine.n > FEW:
        found = _by_factors(task, engine, np.zeros(engine.n), constraints, asked)
    if found is None:
        found = _by_rows(task, engine, constraints, asked)
    moved = change.copy()
    if not found.note:
        moved[places] += found.change
    return Corrected(moved, found.rows, found.note)


def _by_factors(
    task: Task, engine: Engine, change: Array, constraints: list[Any], asked: list[Tensor]
) -> Corrected | None:
    """The correction by products of rows, layer by layer; None where no layer changes as a whole."""
    layers = LayersOfRows(engine)
    if not layers.layers:
        return None
    rows = FactoredRows(task, layers, change, constraints, asked)
    for _ in range(ROUNDS):
        task.judge.check_time()
        state = rows.add_broken()
        if state == "none":
            return Corrected(rows.change, rows.count)
        if state == "stuck" or not rows.solve():
            return Corrected(change, rows.count, BEYOND)
    return Corrected(change, rows.count, "Hard rows were not all corrected.")


def _by_rows(task: Task, engine: Engine, constraints: list[Any], asked: list[Tensor]) -> Corrected:
    """The correction of a small last layer, its rows in one matrix, by a program that tells of conflicts."""
    white = whitening(engine, known_inputs(task))
    matrix, sides = np.zeros((0, engine.n)), np.zeros(0)
    step, seen = np.zeros(engine.n), set[tuple[int, int]]()
    for _ in range(ROUNDS):
        task.judge.check_time()
        broken = [(k, i) for k, c in enumerate(constraints) for i in to_correct(engine.predict(step), c)]
        if not broken:
            return Corrected(step, len(matrix))
        new = [pair for pair in broken if pair not in seen]
        if not new or len(matrix) > MOST_ROWS:
            return Corrected(step, len(matrix), BEYOND)
        seen |= set(new)
        for k, constraint in enumerate(constraints):
            samples = torch.tensor([i for j, i in new if j == k], dtype=torch.int64)
            if len(samples):
                rows, side = _rows(engine, constraint, samples, asked[k])
                matrix, sides = np.vstack([matrix, rows]), np.concatenate([sides, side])
        found = _smallest(task, matrix, sides, white) if len(matrix) <= engine.n else None
        if found is None:  # also of more rows than weights
            return Corrected(step, len(matrix), BEYOND)
        step = found
    return Corrected(step, len(matrix), "Hard rows were not all corrected.")


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
    if rows.shape[1] <= FEW:  # rows may be in conflict, which the program itself tells
        n, sizes = rows.shape[1], np.abs(rows).max(axis=1)
        least: Any = {"lower": sides / sizes, "upper": np.full(len(rows), np.inf)}
        program = Program(np.zeros(n), np.eye(n), matrix=rows / sizes[:, None], **least)
        moved = task.solve_program(program, prove=False).delta
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
