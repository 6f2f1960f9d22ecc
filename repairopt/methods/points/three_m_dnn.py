"""3M-DNN: the smallest change of several layers that makes points right, searched for through values between them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from repairopt.errors import SpecificationError, UnsupportedError
from repairopt.methods.outcome import Outcome
from repairopt.methods.settings import Expected, check_settings, is_one_of
from repairopt.methods.task import Task
from repairopt.program import AffineLayer, Array, Program, RectifierLayer, Status

from .least_norm import leads_of, points_of
from .output_rows import linear_copy, rows_of_outputs

SIZES = (0.0, 0.05, 0.1, 0.2, 0.4, 0.8, 1.6)  # of proposed changes of a value, in units of the rms of its layer


@dataclass(frozen=True, kw_only=True)
class ThreeMDNN:
    """Minimal modification of several layers: each sub-network between separation layers is changed in one layer.

    For the failing points the search proposes other values at the separation layers. The changed layer before a
    separation must reach or surpass each proposed value, in the direction in which it was moved, by the least largest
    change; the last layer must then make every point right for the values that are reached, by the least largest change
    too. Both are linear programs, and what is returned is right on all points. Without a proposal this is the least
    change of the last layer alone. Of all proposals the one with the smallest total change is kept: a grid of sizes
    along the gradient of the smallest lead first, then random changes of the best one.

    Attributes:
        layers: Names of the fully connected layers that change, in order, the last one at the end; None for the last
            two.
        total: ``"max"`` of the largest changes of the layers, or their ``"sum"``.
        proposals: How many values are proposed.
        limit: Largest change of any weight.
        buffer: Smallest lead that each point is to have, in logits.

    References:
        Refaeli and Katz, Minimal Multi-Layer Modifications of Deep Neural Networks, 2021. There the search over values
        is a choice of random, greedy or tree search; here it is greedy, then random. Queries for sub-networks, for
        which the paper asks a verifier, are linear programs, since each changes the layer before its end.
    """

    uses: ClassVar[frozenset[str]] = frozenset({"weights", "solver", "tolerance"})
    default_weights: ClassVar[str] = "all"
    systems: ClassVar[Mapping[str, Mapping[str, Any]]] = {"3M-DNN (3M)": {}}

    layers: Sequence[str] | None = None
    total: str = "max"
    proposals: int = 30
    limit: float = 3.0
    buffer: float = 0.0

    def __post_init__(self) -> None:
        counts = {"proposals": Expected(low=1, whole=True)}
        check_settings(self, {**counts, "limit": Expected(above=True), "buffer": Expected()})
        if not is_one_of(self.total, ("max", "sum")):
            raise SpecificationError(f"method ThreeMDNN: total={self.total!r}; choose max or sum.")

    def run(self, task: Task) -> Outcome:
        """Propose values, solve the programs, keep the smallest total."""
        points = points_of(task, self)
        chain = _Chain(task, points, self)
        draw = np.random.default_rng(task.seed)
        sizes = np.zeros((len(chain.names) - 1, chain.failing))
        grid = [np.full_like(sizes, size) for size in SIZES]
        best: tuple[float, Any, Array] = (np.inf, None, sizes)
        status = Status.NO_POINT
        for k in range(self.proposals):
            task.judge.check_time()
            proposed = grid[k] if k < len(grid) else best[2] * np.exp(draw.normal(0, 0.5, sizes.shape))
            if k >= len(grid) and not proposed.any():
                proposed = SIZES[1] * np.exp(draw.normal(0, 1, sizes.shape))
            found = chain.solve(proposed)
            if isinstance(found, Status):
                status = found if best[1] is None else status
                task.record(f"proposal {k + 1}", accepted=False, note=str(found))
                continue
            size = max(found[1]) if self.total == "max" else sum(found[1])
            better = size < best[0]
            if better:
                best, status = (size, found[0], proposed), Status.FEASIBLE
                task.judge.keep(found[0])
            task.record(f"proposal {k + 1}", task.judge(found[0]), accepted=better, note=f"total change {size:.4g}")
        if best[1] is None:
            return Outcome(np.zeros(task.engine.n), status)
        task.log.note(f"3M-DNN: the total change, {self.total} over {', '.join(chain.names)}, is {best[0]:.4g}.")
        return Outcome(best[1], Status.FEASIBLE, on_target=True, indivisible=True)


class _Chain:
    """The network as layers in NumPy, with the changed ones by name."""

    def __init__(self, task: Task, points: Task, method: ThreeMDNN) -> None:
        some: Any = points.constraints[0]
        copy = linear_copy(task.engine.model, tuple(some.inputs.shape[1:]), method)
        self.task, self.method, self.layers = task, method, copy.layers
        if not all(layer.inputs == (k,) for k, layer in enumerate(self.layers)):
            raise UnsupportedError("method ThreeMDNN: expects a chain of layers with ReLU between them.")
        self.names, self.at = self._changed()
        rows = rows_of_outputs(points, leads_of(points, method.buffer))
        values = np.concatenate([one.inputs for one in rows])
        self.matrix = [row for one in rows for row in one.matrix]
        self.least = [row for one in rows for row in one.least]
        self.wrong = np.flatnonzero(np.concatenate([one.wrong for one in rows]))
        self.failing = len(self.wrong)
        self.values = values

    def _changed(self) -> tuple[list[str], list[int]]:
        own = {
            name.removesuffix(".weight"): parameter.detach().double().cpu().numpy()
            for name, parameter in self.task.engine.model.named_parameters()
            if name.endswith(".weight") and parameter.ndim == 2 and name in self.task.engine.indices
        }
        places: dict[str, int] = {}
        for k, layer in enumerate(self.layers):
            if isinstance(layer, AffineLayer) and isinstance(layer.weight, np.ndarray):
                for name, weight in own.items():
                    if layer.weight.shape == weight.shape and np.array_equal(layer.weight, weight):
                        places.setdefault(name, k)
        found = sorted(places, key=lambda name: places[name])
        names = found[-2:] if self.method.layers is None else list(self.method.layers)
        missing = [name for name in names if name not in places]
        order = [places.get(name, -1) for name in names]
        if missing or order != sorted(order) or order[-1:] != [len(self.layers) - 1]:
            raise SpecificationError(
                f"method ThreeMDNN: layers={names}; expected names of fully connected layers whose weights may change, "
                f"in order, the last layer at the end. Known: {', '.join(found) or 'none'}."
            )
        return names, [places[name] for name in names]

    def solve(self, sizes: Array) -> tuple[Array, list[float]] | Status:
        """The change ``(n,)`` and the largest change of each layer for proposed sizes, or why there is none."""
        delta, largest, values, start = np.zeros(self.task.engine.n), [], self.values, 0
        for level, (name, at) in enumerate(zip(self.names, self.at, strict=True)):
            read = self._run(values, start, at)
            last = level == len(self.names) - 1
            if last:
                matrix, least, which = self.matrix, self.least, np.arange(len(read))
            else:
                matrix, least, which = self._proposed(read, at, sizes[level])
            found = self._least_change(name, at, read, matrix, least, which)
            if isinstance(found, Status):
                return found
            weight, bias, places, change = found
            delta[places] += change
            largest.append(float(np.abs(change).max(initial=0.0)))
            layer: Any = self.layers[at]
            values, start = read @ (layer.weight + weight).T + layer.bias + bias, at + 1
        return delta, largest

    def _run(self, values: Array, start: int, end: int) -> Array:
        for layer in self.layers[start:end]:
            values = layer.run([values])
        return values

    def _proposed(self, read: Array, at: int, sizes: Array) -> tuple[list[Array], list[Array], Any]:
        """Rows on the outputs of a layer: each failing point moves along the gradient of its smallest lead."""
        layer: Any = self.layers[at]
        matrix, least = [], []
        made = read[self.wrong] @ layer.weight.T + layer.bias
        unit = np.sqrt(np.mean(made**2)) or 1.0
        for k, point in enumerate(self.wrong.tolist()):
            self.task.judge.check_time()
            slope = self._slope(made[k], at, point)
            active = np.flatnonzero(np.abs(slope) > 1e-9 * np.abs(slope).max(initial=0.0))
            signs = np.sign(slope[active])
            row = np.zeros((len(active), len(slope)))
            row[np.arange(len(active)), active] = signs
            step = sizes[k] * unit * np.abs(slope[active]) / (np.abs(slope).max(initial=0.0) or 1.0)
            kept = step > 0
            matrix.append(row[kept])
            least.append((signs * made[k][active] + step)[kept])
        return matrix, least, self.wrong

    def _slope(self, made: Array, at: int, point: int) -> Array:
        """Gradient of the smallest lead of a point by the outputs of a layer."""
        values, kept = made[None], []
        for layer in self.layers[at + 1 :]:
            kept.append(values)
            values = layer.run([values])
        leads = self.matrix[point] @ values[0] - self.least[point]
        back: Array = self.matrix[point][int(leads.argmin())]
        for layer, before in zip(reversed(self.layers[at + 1 :]), reversed(kept), strict=True):
            if isinstance(layer, RectifierLayer):
                back = np.where(before[0] > 0, back, layer.leak * back)
            else:
                affine: Any = layer
                back = back * affine.weight if affine.is_diagonal else np.asarray(affine.weight.T @ back).ravel()
        return back

    def _least_change(
        self, name: str, at: int, read: Array, matrix: list[Array], least: list[Array], which: Any
    ) -> tuple[Array, Array, Any, Array] | Status:
        """The least largest change of a layer whose outputs ``y`` are to hold ``matrix[i] @ y >= least[i]``."""
        from scipy import sparse

        layer: Any = self.layers[at]
        shape = layer.weight.shape
        rows, columns, places = self._variables(name, shape)
        lines, sides = [], []
        for part, low, point in zip(matrix, least, which, strict=True):
            self.task.judge.check_time()
            if len(part):
                source = np.append(read[point], 1.0)
                lines.append(sparse.csr_matrix(part[:, rows] * source[columns]))  # most outputs are in no row
                sides.append(low - part @ (layer.weight @ read[point] + layer.bias))
        if not lines or all((side <= 0).all() for side in sides):
            return np.zeros(shape), np.zeros(shape[0]), places, np.zeros(len(places))
        change = self._solve(sparse.vstack(lines, format="csr"), np.concatenate(sides), places)
        if isinstance(change, Status):
            return change
        weight, bias = np.zeros(shape), np.zeros(shape[0])
        inner = columns < shape[1]
        weight[rows[inner], columns[inner]] = change[inner]
        bias[rows[~inner]] = change[~inner]
        return weight, bias, places, change

    def _variables(self, name: str, shape: tuple[int, int]) -> tuple[Any, Any, Any]:
        """Row and column of each weight of a layer that may change, biases last, and its place in the change."""
        rows, columns, places, start = [], [], [], 0
        for parameter, index in self.task.engine.indices.items():
            own = index.cpu().numpy()
            if parameter in (f"{name}.weight", f"{name}.bias"):
                inner = parameter.endswith("weight")
                rows.append(own // shape[1] if inner else own)
                columns.append(own % shape[1] if inner else np.full(len(own), shape[1]))
                places.append(np.arange(start, start + len(own)))
            start += len(own)
        return np.concatenate(rows), np.concatenate(columns), np.concatenate(places)

    def _solve(self, lines: Any, sides: Array, places: Any) -> Array | Status:
        from scipy import sparse

        count = len(places)
        lower, upper = self.task.box(np.zeros(self.task.engine.n), 1e12)
        eye, ones = sparse.identity(count, format="csr"), sparse.csr_matrix(np.ones((count, 1)))
        program = Program(
            gradient=np.append(np.zeros(count), 1.0),
            matrix=sparse.vstack(
                [
                    sparse.hstack([lines, sparse.csr_matrix((len(sides), 1))]),
                    sparse.hstack([-eye, ones]),
                    sparse.hstack([eye, ones]),
                ],
                format="csr",
            ),
            lower=np.concatenate([sides, np.zeros(2 * count)]),
            upper=np.full(len(sides) + 2 * count, np.inf),
            delta_lower=np.append(np.maximum(lower[places], -self.method.limit), 0.0),
            delta_upper=np.append(np.minimum(upper[places], self.method.limit), np.inf),
        )
        solution = self.task.solve_program(program)
        return solution.status if solution.delta is None else solution.delta[:count]
