"""The network after a changed layer as rows and binary variables, exact for ReLU: for mixed-integer programs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from repairopt.errors import UnsupportedError
from repairopt.methods.task import Task
from repairopt.network import Engine
from repairopt.program import AffineLayer, Array, Program, RectifierLayer

from .least_norm import leads_of
from .output_rows import linear_copy, rows_of_outputs

Form = tuple[dict[int, float], float]  # coefficients by variable, and a constant


@dataclass(frozen=True, eq=False)
class EncodedPoint:
    """One point: what the changed layer reads, and the rows that its outputs must hold ``matrix @ y >= least``."""

    read: Array
    matrix: Array
    least: Array


class Encoding:
    """The network after the changed layer as rows and binary variables."""

    def __init__(self, engine: Engine, points: Task, method: Any, name: str) -> None:
        some: Any = points.constraints[0]
        copy = linear_copy(engine.model, tuple(some.inputs.shape[1:]), method)
        self.layers = copy.layers
        chain = all(layer.inputs == (k,) for k, layer in enumerate(self.layers))
        plain = all(not isinstance(one, RectifierLayer) or one.leak == 0 for one in self.layers)
        if not chain or not plain:
            raise UnsupportedError(f"method {type(method).__name__}: expects a chain of layers with ReLU between them.")
        own = dict(engine.model.named_parameters())[f"{name}.weight"].detach().double().cpu().numpy()
        at = [k for k, one in enumerate(self.layers) if _is_dense(one, own)]
        if not at:
            raise UnsupportedError(f"method {type(method).__name__}: '{name}' is no fully connected layer.")
        self.at, self.engine = at[0], engine
        self.places = _places(engine, name, own.shape)
        self.points: list[EncodedPoint] = []
        for rows in rows_of_outputs(points, leads_of(points, method.buffer)):
            read = self.read(rows.inputs)
            self.points += [EncodedPoint(*one) for one in zip(read, rows.matrix, rows.least, strict=True)]

    def read(self, inputs: Array) -> Array:
        """What the changed layer reads at inputs ``(N, d)``."""
        values = inputs
        for layer in self.layers[: self.at]:
            values = layer.run([values])
        return values

    def program(self, head: Program, size: float, data: tuple[Array, Array] | None = None) -> Program:
        """The whole program, for changes of at most ``size`` each: change and norm first, then the network.

        Args:
            head: What is least of the change, and limits on it.
            size: Largest change of a weight.
            data: What the layer reads at further points ``(N, n)``, and outputs ``(N, k)`` whose mean squared distance
                is added to the objective.
        """
        self.count = head.n
        self.blocks: list[tuple[Any, Any, float, float]] = []  # columns, values, lower, upper
        self.upper: list[float] = []
        self.binary: list[bool] = []
        for point in self.points:
            outputs = self._outputs(point.read, size)
            for row, least in zip(point.matrix, point.least, strict=True):
                terms, constant = _combined(row, outputs, 0.0)
                self._row(terms, least - constant, np.inf)
        distances = []
        for read, wanted in zip(*data, strict=True) if data is not None else ():
            outputs = self._outputs(read, size)
            distances += [(terms, constant - to) for (terms, constant), to in zip(outputs, wanted, strict=True)]
        return self._assemble(head, distances)

    def _outputs(self, read: Array, size: float) -> list[Form]:
        """The outputs at one point as forms in the change and in new variables."""
        first: Any = self.layers[self.at]
        base = first.weight @ read + first.bias
        forms: list[Form] = [
            ({int(p): float(v) for p, v in zip(places, [*read, 1.0], strict=True) if p >= 0}, float(constant))
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
        return forms

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

    def _assemble(self, head: Program, distances: list[Form]) -> Program:
        from scipy import sparse

        more = self.count - head.n
        places = [(k, column) for k, (columns, *_) in enumerate(self.blocks) for column in columns]
        values = [value for _, numbers, *_ in self.blocks for value in numbers]
        rows, columns = zip(*places, strict=True) if places else ((), ())
        own = sparse.csr_matrix((values, (rows, columns)), shape=(len(self.blocks), self.count))
        before = sparse.hstack([sparse.csr_matrix(head.matrix), sparse.csr_matrix((head.m, more))])
        lower, upper = head.bounds()
        factor, shift = np.zeros((len(distances), self.count)), np.array([constant for _, constant in distances])
        for k, (terms, _) in enumerate(distances):
            factor[k, list(terms)] = list(terms.values())
        weight = 2 / max(1, len(distances))  # of half the square, in the mean
        return Program(
            gradient=np.concatenate([head.gradient, np.zeros(more)]) + weight * (factor.T @ shift),
            hessian=weight * factor.T @ factor if distances else None,
            constant=float(weight / 2 * (shift @ shift)) if distances else 0.0,
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
