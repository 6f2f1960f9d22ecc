"""Input regions: boxes of inputs or convex hulls, and what must hold of the outputs for every one of them."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from repairopt.errors import SpecificationError, public

from .vnnlib import read_vnnlib


@dataclass(frozen=True, eq=False)
class Region:
    """All inputs between ``lower`` and ``upper``, and rows that must hold of the outputs ``y`` for each of them.

    With ``vertices`` it is their convex hull, and ``lower`` and ``upper`` are the box around.

    It holds at ``y`` exactly if for every group some row of the group has ``matrix @ y - offset > 0``.

    Attributes:
        lower: Smallest inputs, ``(d,)`` or of the shape of one input. upper: Largest inputs. matrix: Coefficients of
            the rows, ``(R, k)``. offset: What rows must exceed, ``(R,)``; zeros by default. group: Group of each row,
            ``(R,)``, numbered from 0 on; each row its own group by default, so that all must hold. name: What reports
            call it. shape: Shape of one input; that of ``lower`` by default, found out from the network where that is
            flat. vertices: Of a polytope, ``(V, d)``; see :meth:`polytope`.

    Raises:
        SpecificationError: Sizes disagree, bounds are not finite or in the wrong order, a group is skipped.

    Example:
        >>> region = Region([0.0, 0.0], [1.0, 0.5], matrix=[[1.0, -1.0]], name="the first output leads")
        >>> region.lower.shape, region.group.tolist()
        (torch.Size([2]), [0])
    """

    lower: Any
    upper: Any
    matrix: Any
    offset: Any = None
    group: Any = None
    name: str = "region"
    shape: tuple[int, ...] | None = None
    vertices: Any = None

    def __post_init__(self) -> None:
        lower, upper, matrix = (_numbers(self.name, what, getattr(self, what)) for what in ("lower", "upper", "matrix"))
        rows = len(matrix) if matrix.ndim else 0
        offset = torch.zeros(rows).double() if self.offset is None else _numbers(self.name, "offset", self.offset)
        group = torch.arange(rows) if self.group is None else _numbers(self.name, "group", self.group).to(torch.int64)
        if lower.shape != upper.shape or not lower.numel():
            raise SpecificationError(
                f"region '{self.name}': lower {tuple(lower.shape)} and upper {tuple(upper.shape)}; expected one shape."
            )
        if matrix.ndim != 2 or not rows or offset.shape != (rows,) or group.shape != (rows,):
            raise SpecificationError(
                f"region '{self.name}': matrix {tuple(matrix.shape)}, offset {tuple(offset.shape)} and group "
                f"{tuple(group.shape)} do not fit; expected (R, k), (R,) and (R,) for matrix @ outputs > offset."
            )
        if bool((lower > upper).any()):
            at = int((lower > upper).flatten().to(torch.int8).argmax())
            raise SpecificationError(
                f"region '{self.name}': input {at} has lower {float(lower.flatten()[at]):g} above upper "
                f"{float(upper.flatten()[at]):g}."
            )
        if sorted(set(group.tolist())) != list(range(int(group.max()) + 1)):
            raise SpecificationError(f"region '{self.name}': groups {group.tolist()}; expected 0, 1, ... without gaps.")
        shape = tuple(lower.shape) if lower.ndim > 1 else None
        if self.shape is not None:
            shape = tuple(_numbers(self.name, "shape", self.shape).flatten().long().tolist())
        if shape is not None and int(np.prod(shape)) != lower.numel():
            raise SpecificationError(
                f"region '{self.name}': shape {shape} for {lower.numel()} inputs; expected as many numbers."
            )
        values = {"lower": lower.flatten(), "upper": upper.flatten(), "matrix": matrix, "offset": offset}
        if self.vertices is not None:
            points = _numbers(self.name, "vertices", self.vertices)
            if points.ndim < 2 or not len(points) or points[0].numel() != lower.numel():
                raise SpecificationError(
                    f"region '{self.name}': vertices have shape {tuple(points.shape)}; expected (V, n), one row for "
                    f"each vertex, of {lower.numel()} inputs."
                )
            values["vertices"] = points.flatten(1)
            values["lower"], values["upper"] = values["vertices"].amin(0), values["vertices"].amax(0)
        for name, value in {**values, "group": group, "shape": None if shape is None else tuple(shape)}.items():
            object.__setattr__(self, name, value)

    @classmethod
    def label(
        cls, x: Any, eps: float, y: int, classes: int, *, lower: float = 0.0, upper: float = 1.0, name: str = ""
    ) -> Region:
        """A ball in the maximum norm around an input, on which one class must win.

        Args:
            x: The input, of the shape of one input.
            eps: Radius, in units of the inputs.
            y: The class.
            classes: Number of classes.
            lower: Smallest allowed input; ``-inf`` for none.
            upper: Largest allowed input; ``inf`` for none.
            name: What reports call it.
        """
        center = torch.as_tensor(x).detach().double()
        if not 0 <= y < classes or eps < 0:
            raise SpecificationError(
                f"region: class {y} of {classes}, eps {eps:g}; expected 0 to classes - 1, 0 or more."
            )
        if bool(((center < lower) | (center > upper)).any()):
            raise SpecificationError(
                f"region: inputs from {float(center.min()):.4g} to {float(center.max()):.4g} are not within {lower} to "
                f"{upper}. Pass lower=... and upper=..., infinite where there is none."
            )
        low, high = (center - eps).clamp(min=lower), (center + eps).clamp(max=upper)
        return cls(low, high, leads(y, classes), name=name or f"class {y} within {eps:g}")

    @classmethod
    def polytope(
        cls,
        vertices: Any,
        matrix: Any = None,
        offset: Any = None,
        group: Any = None,
        *,
        y: int | None = None,
        classes: int | None = None,
        name: str = "polytope",
    ) -> Region:
        """The convex hull of points, of any dimension: a segment, a triangle in a plane, a simplex, a rotated box.

        Bounds treat its inputs as what they are, weighted means of the vertices; what is proved holds on the hull and
        needs to hold nowhere else. The work grows with the number of vertices.

        Args:
            vertices: ``(V, d)``, or ``V`` inputs of the network's shape; two or more.
            matrix: Rows that must hold, ``(R, k)``, as in :class:`Region`; or a class that must win, by ``y``.
            offset: ``(R,)``.
            group: ``(R,)``.
            y: The class that must win, in place of rows.
            classes: Number of classes, beside ``y``.
            name: What reports call it.

        Example:
            >>> triangle = Region.polytope([[0.0, 0.0], [1.0, 0.0], [0.0, 1.0]], y=1, classes=2)
            >>> triangle.upper.tolist(), triangle.matrix.tolist()
            ([1.0, 1.0], [[-1.0, 1.0]])
        """
        points = _numbers(name, "vertices", vertices)
        if points.ndim < 2 or len(points) < 2 or not points[0].numel():
            raise SpecificationError(
                f"region '{name}': vertices {tuple(points.shape)}; expected (V, d) with V of 2 or more. A single input "
                f"is a Region whose lower and upper are equal."
            )
        if (matrix is None) == (y is None) or (y is None) != (classes is None):
            raise SpecificationError(f"region '{name}': expected either rows as matrix=, or y= and classes=.")
        if y is not None and classes is not None:
            if not 0 <= y < classes:
                raise SpecificationError(f"region '{name}': class {y} of {classes}; expected 0 to classes - 1.")
            matrix = leads(y, classes)
        return cls(points.amin(0), points.amax(0), matrix, offset, group, name, vertices=points)

    @classmethod
    @public
    def from_vnnlib(cls, path: str | os.PathLike[str], shape: tuple[int, ...] | None = None) -> list[Region]:
        """The regions of a VNN-LIB file, one for each input box; the file's property holds if it holds on all.

        Args:
            path: The file.
            shape: Shape of one input of the network, where that is not flat; found out from the network if not given.

        Raises:
            SpecFileError: The file is malformed, with its line.
        """
        cases, stem = read_vnnlib(path), Path(path).stem
        names = [stem] if len(cases) == 1 else [f"{stem} {k + 1}" for k in range(len(cases))]
        return [
            cls(case.lower, case.upper, case.matrix, case.offset, case.group, name, shape)
            for case, name in zip(cases, names, strict=True)
        ]

    @property
    def rows(self) -> tuple[Tensor, Tensor, Tensor]:
        """``(matrix, offset, group)``."""
        return self.matrix, self.offset, self.group

    @property
    def parameters(self) -> int:
        """Numbers of which an input is made: weights of vertices, or its own numbers."""
        return len(self.lower) if self.vertices is None else len(self.vertices)

    def framed(self, size: int) -> tuple[Tensor, Tensor, Tensor]:
        """As a box of parameters, ``lower (p,)`` and ``upper (p,)``, and a matrix that makes them inputs, ``(p, d)``.

        There are ``size`` of them, the last ones 0 where the region has fewer.
        """
        more = size - self.parameters
        hull = self.vertices is not None
        whole = (torch.zeros(self.parameters).double(), torch.ones(self.parameters).double())
        low, high = whole if hull else (self.lower, self.upper)
        matrix = self.vertices if hull else torch.eye(len(self.lower), dtype=torch.float64)
        pad = torch.nn.functional.pad
        return pad(low, (0, more)), pad(high, (0, more)), pad(matrix, (0, 0, 0, more))

    def draw(self, count: int, generator: torch.Generator) -> Tensor:
        """Inputs ``(count, d)`` of the region, spread over it."""
        noise = torch.rand(count, self.parameters, generator=generator, dtype=torch.float64)
        if self.vertices is None:
            return self.lower + noise * (self.upper - self.lower)
        weights = -torch.log1p(-noise)
        return weights / weights.sum(1, keepdim=True) @ self.vertices

    def holds(self, outputs: Any) -> Tensor:
        """Whether it holds at outputs ``(N, k)``: ``(N,)``."""
        values = torch.as_tensor(outputs).double() @ self.matrix.T - self.offset
        groups = [values[:, self.group == g].amax(1) > 0 for g in range(int(self.group.max()) + 1)]
        return torch.stack(groups).all(0)


def leads(y: int, classes: int) -> Tensor:
    """Rows that ask for one class to win, ``(classes - 1, classes)``."""
    eye = torch.eye(classes, dtype=torch.float64)
    others = [k for k in range(classes) if k != y]
    return eye[y] - eye[others]


def as_regions(what: str, given: Any) -> tuple[Region, ...]:
    """One region or several, checked: all speak of as many inputs and outputs, and bear different names."""
    regions = (given,) if isinstance(given, Region) else tuple(given) if isinstance(given, Sequence) else ()
    if not regions or not all(isinstance(one, Region) for one in regions):
        raise SpecificationError(f"{what}: expected a Region, or a list of these; got {type(given).__name__}.")
    sizes = {(one.lower.numel(), one.matrix.shape[1]) for one in regions}
    if len(sizes) > 1:
        text = ", ".join(f"{d} inputs and {k} outputs" for d, k in sorted(sizes))
        raise SpecificationError(f"{what}: its regions are of different networks: {text}.")
    return regions


def _numbers(name: str, what: str, value: Any) -> Tensor:
    try:
        found = value.detach().cpu() if isinstance(value, Tensor) else torch.tensor(np.asarray(value))
        if found.is_complex():
            raise TypeError("complex numbers")
        found = found.double()
    except (TypeError, ValueError, RuntimeError) as error:
        raise SpecificationError(f"region '{name}': {what} cannot be read as numbers ({error}).") from error
    if not bool(torch.isfinite(found).all()):
        raise SpecificationError(f"region '{name}': {what} has numbers that are not finite.")
    return found
