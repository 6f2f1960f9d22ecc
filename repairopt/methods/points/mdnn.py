"""MDNN: the smallest change of one layer that makes points right, proved: a linear or a mixed-integer program."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, ClassVar

import numpy as np

from repairopt.errors import SpecificationError, UnsupportedError
from repairopt.methods.outcome import Outcome
from repairopt.methods.task import Task
from repairopt.network import Engine
from repairopt.program import AffineLayer, Array, Program, RectifierLayer, Solution, Status
from repairopt.surrogate import LinearizedRows, linearize

from .least_norm import LeastNorm, leads_of, norm_program, one_layer, points_of, solve_least
from .output_rows import linear_copy, rows_of_outputs

GROWTH, FIRST = 4.0, 0.125  # of the largest change that an integer program allows, as a share of the limit
Form = tuple[dict[int, float], float]  # coefficients by variable, and a constant


@dataclass(frozen=True, kw_only=True)
class MDNN(LeastNorm):
    """Minimal modification of one layer, for few points.

    For the last layer outputs are affine in the change, and the least one is a linear program. For an earlier layer
    every ReLU after it, at each point, is a binary variable with exact big-M rows; the optimum is proved by branch and
    bound, whatever patterns change. Its time grows fast with points and neurons. Programs are solved for small changes
    first: what is least among these is least of all, where the norm is the largest change.

    References:
        Goldberger, Katz, Adi, Keshet, Minimal Modifications of Deep Neural Networks using Verification, LPAR 2020.
        There the least largest change is found by bisection with a verifier; here by mixed-integer programs with the
        same optimum.

    Example:
        >>> MDNN().norm
        'linf'
    """

    uses: ClassVar[frozenset[str]] = frozenset({"weights", "solver", "tolerance"})

    norm: str = "linf"
    buffer: float = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.norm == "l2":
            raise SpecificationError("method MDNN: norm='l2'; choose one of l1+linf, l1, linf.")

    def run(self, task: Task) -> Outcome:
        """Solve for the least change, judge it."""
        points = points_of(task, self)
        name = one_layer(task.engine, self)
        if task.engine.exact:
            linearization = linearize(task.engine, points.constraints, required=leads_of(points, self.buffer))
            rows = LinearizedRows(linearization, tuple(range(len(points.constraints))))
            solution = solve_least(task, rows, self)
        else:
            solution = self._solve_integer(task, points, name)
        if solution.delta is None:
            task.record("least change", accepted=False, note=str(solution.status))
            return Outcome(np.zeros(task.engine.n), solution.status)
        judged = task.judge.keep(solution.delta)
        task.record("least change", judged)
        if solution.status is Status.OPTIMAL:
            task.log.note(f"No change of '{name}' with a smaller {self.norm} norm makes all points right; proved.")
        return Outcome(solution.delta, solution.status, indivisible=True)

    def _solve_integer(self, task: Task, points: Task, name: str) -> Solution:
        encoding = _Encoding(task.engine, points, self, name)
        size = self.limit * (FIRST if self.norm == "linf" else 1.0)
        while True:
            settings = replace(self, limit=size)
            program = encoding.program(norm_program(task, settings), size)
            solution = task.solve_program(program)
            if solution.status is not Status.INFEASIBLE or size >= self.limit:
                found = solution.delta
                return solution if found is None else replace(solution, delta=found[: task.engine.n])
            size = min(self.limit, GROWTH * size)


@dataclass(frozen=True, eq=False)
class _Point:
    """One point: what the changed layer reads, and the rows that its outputs must hold ``matrix @ y >= least``."""

    read: Array
    matrix: Array
    least: Array


class _Encoding:
    """The network after the changed layer as rows and binary variables."""

    def __init__(self, engine: Engine, points: Task, method: MDNN, name: str) -> None:
        some: Any = points.constraints[0]
        copy = linear_copy(engine.model, tuple(some.inputs.shape[1:]), method)
        self.layers = copy.layers
        chain = all(layer.inputs == (k,) for k, layer in enumerate(self.layers))
        plain = all(not isinstance(one, RectifierLayer) or one.leak == 0 for one in self.layers)
        if not chain or not plain:
            raise UnsupportedError("method MDNN: expects a chain of layers with ReLU between them.")
        own = dict(engine.model.named_parameters())[f"{name}.weight"].detach().double().cpu().numpy()
        at = [k for k, one in enumerate(self.layers) if _is_dense(one, own)]
        if not at:
            raise UnsupportedError(f"method MDNN: '{name}' is no fully connected layer.")
        self.at, self.engine = at[0], engine
        self.places = _places(engine, name, own.shape)
        self.points: list[_Point] = []
        for rows in rows_of_outputs(points, leads_of(points, method.buffer)):
            read = rows.inputs
            for layer in self.layers[: self.at]:
                read = layer.run([read])
            self.points += [_Point(*one) for one in zip(read, rows.matrix, rows.least, strict=True)]

    def program(self, head: Program, size: float) -> Program:
        """The whole program, for changes of at most ``size`` each: change and norm first, then the network."""
        self.count = head.n
        self.blocks: list[tuple[Any, Any, float, float]] = []  # columns, values, lower, upper
        self.upper: list[float] = []
        self.binary: list[bool] = []
        for point in self.points:
            self._add_point(point, size)
        return self._assemble(head)

    def _add_point(self, point: _Point, size: float) -> None:
        first: Any = self.layers[self.at]
        base = first.weight @ point.read + first.bias
        forms = [
            ({int(p): float(v) for p, v in zip(places, [*point.read, 1.0], strict=True) if p >= 0}, float(constant))
            for places, constant in zip(self.places, base, strict=True)
        ]
        spread = size * np.array([sum(abs(v) for v in terms.values()) for terms, _ in forms])
        low, high = base - spread, base + spread
        for layer in self.layers[self.at + 1 :]:
            if isinstance(layer, RectifierLayer):
                forms = [self._rectified(*form, *ends) for form, *ends in zip(forms, low, high, strict=True)]
                low, high = np.maximum(low, 0), np.maximum(high, 0)
                continue
            affine: Any = layer
            weight = np.diag(affine.weight) if affine.is_diagonal else affine.weight
            weight = weight if isinstance(weight, np.ndarray) else weight.toarray()
            forms = [_combined(row, forms, constant) for row, constant in zip(weight, affine.bias, strict=True)]
            above, below = np.maximum(weight, 0), np.minimum(weight, 0)
            low, high = above @ low + below @ high + affine.bias, above @ high + below @ low + affine.bias
        for row, least in zip(point.matrix, point.least, strict=True):
            terms, constant = _combined(row, forms, 0.0)
            self._row(terms, least - constant, np.inf)

    def _rectified(self, terms: dict[int, float], constant: float, low: float, high: float) -> Form:
        """``relu(form)`` as a form: exact, with a binary variable where the sign is open."""
        if low >= 0:
            return terms, constant
        if high <= 0:
            return {}, 0.0
        value, active = self._variable(high, False), self._variable(1.0, True)
        less = {place: -number for place, number in terms.items()}
        self._row({**less, value: 1.0}, constant, np.inf)  # v >= z
        self._row({**less, value: 1.0, active: -low}, -np.inf, constant - low)  # v <= z - low (1 - a)
        self._row({value: 1.0, active: -high}, -np.inf, 0.0)  # v <= high a
        return {value: 1.0}, 0.0

    def _variable(self, upper: float, is_binary: bool) -> int:
        self.upper.append(upper)
        self.binary.append(is_binary)
        self.count += 1
        return self.count - 1

    def _row(self, terms: dict[int, float], lower: float, upper: float) -> None:
        self.blocks.append((list(terms), list(terms.values()), lower, upper))

    def _assemble(self, head: Program) -> Program:
        from scipy import sparse

        more = self.count - head.n
        places = [(k, column) for k, (columns, *_) in enumerate(self.blocks) for column in columns]
        values = [value for _, numbers, *_ in self.blocks for value in numbers]
        rows, columns = zip(*places, strict=True) if places else ((), ())
        own = sparse.csr_matrix((values, (rows, columns)), shape=(len(self.blocks), self.count))
        before = sparse.hstack([sparse.csr_matrix(head.matrix), sparse.csr_matrix((head.m, more))])
        lower, upper = head.bounds()
        return Program(
            gradient=np.concatenate([head.gradient, np.zeros(more)]),
            matrix=sparse.vstack([before, own], format="csr"),
            lower=np.concatenate([head.lower, [block[2] for block in self.blocks]]),
            upper=np.concatenate([head.upper, [block[3] for block in self.blocks]]),
            delta_lower=np.concatenate([lower, np.zeros(more)]),
            delta_upper=np.concatenate([upper, self.upper]),
            integer=np.concatenate([np.zeros(head.n, dtype=bool), np.array(self.binary, dtype=bool)]),
            n_delta=head.n_delta,
        )


def _combined(row: Array, forms: list[Form], constant: float) -> Form:
    """A linear function of forms as a form."""
    terms: dict[int, float] = {}
    for factor, (own, shift) in zip(row.tolist(), forms, strict=True):
        if factor:
            constant += factor * shift
            for place, value in own.items():
                terms[place] = terms.get(place, 0.0) + factor * value
    return terms, float(constant)


def _is_dense(layer: Any, weight: Array) -> bool:
    dense = isinstance(layer, AffineLayer) and isinstance(layer.weight, np.ndarray)
    return dense and layer.weight.shape == weight.shape and np.array_equal(layer.weight, weight)


def _places(engine: Engine, name: str, shape: tuple[int, ...]) -> Any:
    """For each output of the layer the variables of its weights and of its bias, ``(m, n + 1)``; -1 for fixed ones."""
    found = np.full((shape[0], shape[1] + 1), -1)
    start = 0
    for parameter, index in engine.indices.items():
        own = index.cpu().numpy()
        variables = np.arange(start, start + len(own))
        if parameter == f"{name}.weight":
            found[own // shape[1], own % shape[1]] = variables
        else:
            found[own, shape[1]] = variables
        start += len(own)
    return found
