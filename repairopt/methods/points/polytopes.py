"""Segments and polygons of inputs, divided into the linear regions of a network, as rows on a change of one layer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from repairopt.errors import SpecificationError
from repairopt.network import Engine
from repairopt.program import Array, DenseRows, LayeredNetwork, RectifierLayer
from repairopt.specify import Region
from repairopt.surrogate import linearize

from .region_vertices import vertices_of

MOST = 100_000  # linear regions of all polytopes
THIN = 1e-12  # relative size of pieces that are left out: points of their neighbors


@dataclass(frozen=True, eq=False)
class Polytope:
    """A segment (2 vertices) or a plane convex polygon (3 or more, in order), on all of which rows must hold.

    Attributes:
        vertices: ``(V, d)``, or of the shape of inputs.
        matrix: Rows ``(R, k)`` of outputs.
        offset: ``matrix @ y > offset``, ``(R,)``.
    """

    vertices: Any
    matrix: Any
    offset: Any

    def __post_init__(self) -> None:
        given = (self.vertices, self.matrix, self.offset)
        vertices, matrix, offset = (np.asarray(one, dtype=np.float64) for one in given)
        vertices = vertices.reshape(len(vertices), -1)
        if len(vertices) < 2 or matrix.ndim != 2 or offset.shape != matrix.shape[:1]:
            raise SpecificationError(
                f"polytope: vertices {vertices.shape}, matrix {matrix.shape}, offset {offset.shape}; expected 2 or "
                f"more vertices, (R, k) and (R,)."
            )
        _, sizes, _ = np.linalg.svd(vertices - vertices.mean(0), full_matrices=False)
        if len(sizes) > 2 and sizes[2] > 1e-9 * sizes[0]:
            raise SpecificationError("polytope: its vertices do not lie in one plane.")
        for name, value in (("vertices", vertices), ("matrix", matrix), ("offset", offset)):
            object.__setattr__(self, name, value)

    @classmethod
    def label(cls, vertices: Any, y: int, classes: int) -> Polytope:
        """One on which class ``y`` of so many must win."""
        rivals = np.delete(np.eye(classes), y, axis=0)
        return cls(vertices, np.eye(classes)[y] - rivals, np.zeros(classes - 1))


def plane_polytope(region: Region, method: object) -> Polytope:
    """A region as a segment or a plane polygon with its vertices in order."""
    vertices = vertices_of(region, method).numpy()
    center = vertices.mean(0)
    _, sizes, axes = np.linalg.svd(vertices - center, full_matrices=False)
    flat = [k for k, size in enumerate(sizes) if size > 1e-9 * max(sizes[0], 1e-300)]
    if len(flat) > 2:
        raise SpecificationError(
            f"method {type(method).__name__}: '{region.name}' has {len(flat)} dimensions, and linear regions are "
            f"enumerated in 1 or 2. Choose method='regions' or method='aprnn'."
        )
    if len(flat) == 1:
        along = (vertices - center) @ axes[0]
        vertices = vertices[[along.argmin(), along.argmax()]]
    elif len(flat) == 2:
        from scipy.spatial import ConvexHull

        vertices = vertices[ConvexHull((vertices - center) @ axes[:2].T).vertices]
    return Polytope(vertices, region.matrix, region.offset)


def linear_pieces(copy: LayeredNetwork, vertices: Array) -> list[Array]:
    """A segment or polygon divided into the linear regions of a piecewise linear network, exact but for rounding.

    What a rectifier reads is affine on each piece of the layers before it, so its sign changes along a straight cut.

    Returns:
        Vertices ``(V, d)`` of each piece.
    """
    pieces, size = [vertices], float(np.ptp(vertices, axis=0).max())
    for layer in copy.layers:
        if isinstance(layer, RectifierLayer):
            before = copy.layers[: layer.inputs[0]]  # what makes the value that it reads
            run = LayeredNetwork(copy.inputs, before).run if before else np.asarray
            pieces = [part for piece in pieces for part in _divided(piece, run(piece), size)]
            if len(pieces) > MOST:
                raise SpecificationError(f"polytope: has more than {MOST:,} linear regions; expected smaller ones.")
    return pieces


def _divided(piece: Array, read: Array, size: float) -> list[Array]:
    """A piece cut where one of the numbers that a layer reads changes its sign; ``read`` is ``(V, m)``."""
    waiting = [np.concatenate([piece, read], axis=1)]
    for column in range(piece.shape[1], piece.shape[1] + read.shape[1]):
        cut = []
        for one in waiting:
            values = one[:, column]
            if values.min() >= 0 or values.max() <= 0:
                cut.append(one)
            else:
                halves = [half for half in (_half(one, values), _half(one, -values)) if len(half) > 1]
                cut += [half for half in halves if np.ptp(half[:, : piece.shape[1]], 0).max() > THIN * size]
        waiting = cut
    return [one[:, : piece.shape[1]] for one in waiting]


def _half(points: Array, values: Array) -> Array:
    """The part of a convex polygon, or a segment, where affine values at its vertices are at least 0."""
    found = []
    closed = len(points) > 2
    for k in range(len(points)):
        if values[k] >= 0:
            found.append(points[k])
        after = (k + 1) % len(points)
        if (closed or after) and values[k] * values[after] < 0:
            share = values[k] / (values[k] - values[after])
            found.append(points[k] + share * (points[after] - points[k]))
    return np.array(found).reshape(-1, points.shape[1])


class _Inside:
    """Points inside of pieces, with rows of outputs, as a constraint by sample."""

    name = "polytopes"

    def __init__(self, inputs: Tensor, matrix: Tensor) -> None:
        self.inputs, self.matrix = inputs, matrix

    def margins_of(self, outputs: Tensor, samples: Tensor) -> Tensor:
        return torch.einsum("brk,bk->br", self.matrix[samples].to(outputs), outputs)

    def margins(self, predict: Any) -> Tensor:
        return self.margins_of(predict(self.inputs), torch.arange(len(self.inputs))).flatten()


def rows_of_polytopes(
    engine: Engine, copy: LayeredNetwork, polytopes: Sequence[Polytope], shape: tuple[int, ...], buffer: float
) -> DenseRows:
    """Rows on a change of one layer of a decoupled network that make rows of outputs hold on whole polytopes.

    On a linear region the decoupled network is affine in its input for every change, so rows at the vertices suffice.
    There derivatives belong to the region, not to the point: they are extrapolated from its inside,
    ``2 J((v + c) / 2) - J(c)`` for a vertex ``v`` and the center ``c``.
    """
    slopes, lower = [], []
    for polytope in polytopes:
        for piece in linear_pieces(copy, polytope.vertices):
            center = piece.mean(0)
            points = np.concatenate([center[None], (piece + center) / 2])
            inputs = torch.from_numpy(points).to(engine.dtype).unflatten(1, shape)
            matrix = torch.from_numpy(polytope.matrix).expand(len(points), *polytope.matrix.shape)
            here = linearize(engine, [_Inside(inputs, matrix)])
            count = len(polytope.matrix)
            own = here.rows({0: np.arange(len(points) * count)}, named=False).matrix.reshape(len(points), count, -1)
            values = here.margins[0].reshape(len(points), count)
            slopes.append((2 * own[1:] - own[0]).reshape(-1, own.shape[2]))
            lower.append((polytope.offset + buffer - (2 * values[1:] - values[0])).ravel())
    return DenseRows(np.concatenate(slopes), np.concatenate(lower))
