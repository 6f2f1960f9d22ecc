"""The smallest change that makes rows hold, by the products of rows with each other: their dual, layer by layer."""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from repairopt.methods.task import Array, Task
from repairopt.network import LayerRows, LayersOfRows
from repairopt.program import Program
from repairopt.specify import samples_in

from .hard_rows import MOST_ROWS, known_inputs, to_correct

HALVINGS = 5
RIDGE = 1e-10  # of the mean squared norm of the rows
MOST_PRICE = 1e6  # of a row, in units of what it is short of, for each unit of its squared norm


class FactoredRows:
    """Rows of constraints by sample that were broken so far, and the smallest change at which they hold.

    Rows of outputs that are not linear in the change are linearized anew in each round; what is smallest is the change
    from the start.

    Attributes:
        change: The weight change ``(n,)`` so far.
        count: Rows so far.
    """

    def __init__(
        self, task: Task, layers: LayersOfRows, start: Array, constraints: list[Any], asked: list[Tensor]
    ) -> None:
        self.task, self.layers, self.constraints, self.asked = task, layers, constraints, asked
        self.start, self.change, self.count = start, start, 0
        self.seen: list[dict[int, set[int]]] = [{} for _ in constraints]  # by sample its columns
        self.metrics = layers.metrics(known_inputs(task), start)

    def add_broken(self) -> Literal["none", "stuck", "more"]:
        """Take up the rows that the network breaks now; whether there are none, none that are new, or some."""
        predict = self.layers.engine.predict(self.change)
        broken, more = False, False
        for k, constraint in enumerate(self.constraints):
            failing = to_correct(predict, constraint)
            broken = broken or bool(failing)
            more = more or any(i not in self.seen[k] for i in failing)
            for i in failing:
                self.seen[k].setdefault(i, set())
        linear = self.layers.engine.exact
        return "none" if not broken else "more" if more or not linear else "stuck"

    def solve(self) -> bool:
        """Move to the smallest change at which the rows hold; whether there is one within reach."""
        parts, sides = self._rows()
        self.count = len(sides)
        if not self.count or self.count > min(MOST_ROWS, self.layers.engine.n):
            return False
        rows = {name: LayerRows.joined([part[name] for part in parts]) for name in parts[0]}
        gram = sum(own.gram(self.metrics[name]) for name, own in rows.items())
        moved = torch.as_tensor(self.change - self.start)
        already = sum(own.times(self.layers.pieces(moved)[name]).double() for name, own in rows.items())
        assert isinstance(gram, Tensor)
        assert isinstance(already, Tensor)
        size = float(gram.trace()) / len(gram)
        if size <= 0:
            return False
        matrix = (gram.cpu() / size).numpy()
        matrix[np.diag_indices(len(matrix))] += RIDGE
        wanted = sides + already.cpu().numpy()
        most = MOST_PRICE * float(np.abs(wanted).max())
        box: Any = {"delta_lower": np.zeros(len(wanted)), "delta_upper": np.full(len(wanted), most)}
        found = self.task.solve_program(Program(gradient=-wanted, hessian=matrix, **box)).delta
        if found is None or float(found.max()) > 0.99 * most:  # of rows in conflict prices grow for ever
            return False
        prices = torch.as_tensor(found / size)
        combined = {name: own.combined(prices.to(own.signals)) for name, own in rows.items()}
        target = self.start + self.layers.change(combined, self.metrics).numpy()
        if self.task.engine.shards is not None:
            target = self.task.engine.shards.of_first(lambda: target)
        if not np.isfinite(target).all():
            return False
        self.change = target if self.layers.engine.exact else self._damped(target)
        return True

    def _damped(self, target: Array) -> Array:
        """The furthest point on the way to a target, by halving, at which the rows are short of less than now."""
        now, point = self._shortage(self.change), target
        for _ in range(HALVINGS):
            if self._shortage(point) < now:
                break
            point = (self.change + point) / 2
        return point

    def _shortage(self, change: Array) -> float:
        """By how much all samples that fail are short of not failing, and those taken up of what they ask for."""
        predict, total = self.layers.engine.predict(change), 0.0
        for k, constraint in enumerate(self.constraints):
            samples = samples_in(constraint)
            with torch.no_grad():
                outputs = predict(constraint.inputs)
                now = constraint.margins_of(outputs[samples.to(outputs.device)], samples).reshape(len(samples), -1)
            short = (-now.cpu()).clamp(min=0)
            order = sorted(self.seen[k])
            asked = self.asked[k] if self.asked[k].ndim == 0 else self.asked[k][order]
            short[order] = (asked - now.cpu()[order]).clamp(min=0).to(short)
            total += float(short.sum())
        return total

    def _rows(self) -> tuple[list[dict[str, LayerRows]], Array]:
        """The rows at the change so far, in parts, and by how much each is short of what it asks for, ``(R,)``."""
        parts: list[dict[str, LayerRows]] = []
        sides = [np.zeros(0)]
        for k, constraint in enumerate(self.constraints):
            order = sorted(self.seen[k])
            if not order:
                continue
            places = torch.tensor(order, dtype=torch.int64)
            samples = samples_in(constraint).cpu()[places]
            asked = self.asked[k] if self.asked[k].ndim == 0 else self.asked[k][places]

            def margins(outputs: Tensor, part: Tensor, constraint: Any = constraint, all_: Tensor = samples) -> Tensor:
                found: Tensor = constraint.margins_of(outputs, all_[part]).reshape(len(part), -1)
                return found

            def short(now: Tensor, part: Tensor, asked: Tensor = asked) -> Tensor:
                return (asked if asked.ndim == 0 else asked[part]) - now

            def wanted(now: Tensor, part: Tensor, k: int = k, order: list[int] = order, short: Any = short) -> Tensor:
                taken = torch.zeros_like(now, dtype=torch.bool)
                for row, place in enumerate(part.tolist()):
                    taken[row, sorted(self.seen[k][order[place]])] = True
                return taken | (short(now, part) > 0)

            for now, where, rows in self.layers.rows(constraint.inputs, samples, self.change, margins, wanted):
                for place, column in where.tolist():
                    self.seen[k][order[place]].add(column)
                own = asked if asked.ndim == 0 else asked[where[:, 0], where[:, 1]]
                parts.append(rows)
                sides.append((own - now).double().numpy())
        return parts, np.concatenate(sides)
