"""A proof that a network has a property on whole boxes of inputs.

The proof is a list of smaller boxes, the leaves. Its check (:mod:`.check_region`) trusts nothing of the search that
made it: leaves that are too large only cost time, or leave it undecided.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from fractions import Fraction
from typing import Any

import numpy as np

from repairopt.errors import ProofError, public
from repairopt.program.program import Array

from .hulls import Hulls
from .running_bounds import UNITS


class ProofStatus(StrEnum):
    """What the check of a proof found. ``.meaning`` says it in words."""

    PROVED = "proved"
    REFUTED = "refuted"
    UNDECIDED = "undecided"

    @property
    def meaning(self) -> str:
        """One sentence."""
        return _MEANING[self]


_MEANING = {
    ProofStatus.PROVED: "The property holds for every input of every box.",
    ProofStatus.REFUTED: "The property does not hold: the network, run on a point of a box, violates it.",
    ProofStatus.UNDECIDED: "Neither was shown: on some boxes the bounds are too weak, and no violation was found.",
}


def _as_array(name: str, value: Any, kind: type) -> Array:
    try:
        found = np.asarray(value, dtype=np.float64)
        if not np.isfinite(found).all():
            raise ValueError("some are not finite")
        return found if kind is np.float64 else np.asarray(value, dtype=kind)
    except (TypeError, ValueError, OverflowError) as error:
        raise ProofError(f"proof of a region: {name} is no array of numbers ({error}).") from error


@public
@dataclass(frozen=True, eq=False)
class OutputRows:
    """Rows of outputs: they hold at ``y`` if for every group some row of it has ``matrix @ y - offset > 0``.

    Attributes:
        matrix: ``(R, k)``.
        offset: ``(R,)``.
        group: ``(R,)``, whole numbers from 0 on without gaps.
    """

    matrix: Array
    offset: Array
    group: Array

    def __post_init__(self) -> None:
        for name, kind in (("matrix", np.float64), ("offset", np.float64), ("group", np.int64)):
            object.__setattr__(self, name, _as_array(name, getattr(self, name), kind))
        count = self.offset.size
        shapes = (
            self.offset.ndim == 1
            and self.matrix.ndim == 2
            and self.matrix.shape[0] == count
            and self.group.shape == (count,)
        )
        if not count or not shapes or set(self.group.tolist()) != set(range(int(self.group.max()) + 1)):
            raise ProofError(
                f"rows of a region: matrix {self.matrix.shape}, offset {self.offset.shape}, groups "
                f"{sorted(set(self.group.ravel().tolist()))}; expected (R, k), (R,), and groups from 0 on without gaps."
            )
        if not np.isfinite(self.matrix).all() or not np.isfinite(self.offset).all():
            raise ProofError("rows of a region: a coefficient or an offset is not finite.")

    def values(self, outputs: Array) -> Array:
        """How far the rows hold at outputs ``(N, k)``, ``(N,)``: the worst group, of each its best row."""
        rows = np.asarray(outputs, dtype=np.float64) @ self.matrix.T - self.offset
        return np.min([rows[:, self.group == g].max(1) for g in range(self.group.max() + 1)], axis=0)

    def are_violated(self, output: Array) -> bool:
        """Whether the rows fail at one output ``(k,)``, in rational arithmetic."""
        exact = [Fraction(float(value)) for value in output]
        signs = [
            sum((Fraction(c) * y for c, y in zip(row, exact, strict=True) if c), Fraction(0)) > Fraction(offset)
            for row, offset in zip(self.matrix.tolist(), self.offset.tolist(), strict=True)
        ]
        groups = self.group.tolist()
        return any(not any(s for s, g in zip(signs, groups, strict=True) if g == group) for group in set(groups))


@public
@dataclass(frozen=True, eq=False)
class RegionProof:
    """Boxes, the rows that are to hold on each, and the leaves that tile the boxes.

    Attributes:
        lower: Smallest inputs of each box, ``(K, d)``; where ``vertices`` are given, smallest parameters ``(K, p)``.
        upper: Largest ones.
        rows: Of each box.
        leaf_lower: ``(L, d)``.
        leaf_upper: ``(L, d)``.
        leaf_box: Number of the box that a leaf belongs to, ``(L,)``.
        fingerprint: SHA-256 of the deployed parameters that the proof is of.
        execution: What it speaks of: ``"float32"`` or ``"float64"`` for the network as it is run in this precision, for
            every order of its sums, with inputs rounded to it; ``"exact"`` for real numbers.
        shape: Of one input of the network, whose numbers in row-major order are the ``d`` inputs; ``(d,)`` by default.
        vertices: Where regions are not boxes of inputs, ``(K, p, d)``: the inputs are ``parameters @ vertices``, and
            boxes and leaves are of parameters. None else. Such inputs may be rounded in runs of any precision.
        hull: Of which regions only the parameters count whose sum is 1, ``(K,)``: the convex hulls of their vertices.
        leaf_slopes: Lower slopes of all rectifiers that the check tries on a leaf beside its own, in steps of 1/255
            from 0 to 255, ``(L, n)``; whatever they are, they cannot make it wrong. None for none.

    Raises:
        ProofError: Shapes do not fit, or numbers are not finite.
    """

    lower: Array
    upper: Array
    rows: tuple[OutputRows, ...]
    leaf_lower: Array
    leaf_upper: Array
    leaf_box: Any
    fingerprint: str = ""
    execution: str = "float32"
    shape: tuple[int, ...] = ()
    vertices: Any = None
    hull: Any = None
    leaf_slopes: Any = None

    def __post_init__(self) -> None:
        for name in ("lower", "upper", "leaf_lower", "leaf_upper"):
            value = _as_array(name, getattr(self, name), np.float64)
            object.__setattr__(self, name, value)
            if value.ndim != 2 or not np.isfinite(value).all():
                raise ProofError(f"proof of a region: {name} has shape {value.shape}, or numbers that are not finite.")
        object.__setattr__(self, "leaf_box", _as_array("leaf_box", self.leaf_box, np.int64))
        object.__setattr__(self, "rows", tuple(self.rows))
        boxes, leaves = self.lower.shape, self.leaf_lower.shape
        fits = self.upper.shape == boxes and self.leaf_upper.shape == leaves and self.leaf_box.shape == leaves[:1]
        outputs = {rows.matrix.shape[1] for rows in self.rows}
        if not fits or leaves[1] != boxes[1] or not boxes[0] or len(self.rows) != boxes[0] or len(outputs) != 1:
            raise ProofError(
                f"proof of a region: boxes {boxes} and {self.upper.shape}, leaves {leaves} and "
                f"{self.leaf_upper.shape}, of boxes {self.leaf_box.shape}, {len(self.rows)} sets of rows on "
                f"{sorted(outputs)} outputs do not fit."
            )
        self._check_vertices(boxes)
        if self.leaf_slopes is not None:
            slopes = np.asarray(self.leaf_slopes)
            if slopes.dtype != np.uint8 or slopes.ndim != 2 or len(slopes) != leaves[0]:
                raise ProofError(f"proof of a region: slopes {slopes.shape} of {slopes.dtype} do not fit its leaves.")
        object.__setattr__(self, "shape", tuple(self.shape) or (self.inputs,))
        if int(np.prod(self.shape)) != self.inputs:
            raise ProofError(f"proof of a region: inputs of shape {self.shape} do not have {self.inputs} numbers.")
        inside = ((self.leaf_box >= 0) & (self.leaf_box < boxes[0])).all()
        ordered = (self.lower <= self.upper).all() and (self.leaf_lower <= self.leaf_upper).all()
        if not inside or not ordered or self.execution not in UNITS:
            raise ProofError(
                f"proof of a region: expected lower sides below upper ones, leaves of the boxes 0 to {boxes[0] - 1}, "
                f"and execution as one of {', '.join(UNITS)}, got '{self.execution}'."
            )

    def _check_vertices(self, boxes: tuple[int, ...]) -> None:
        if self.vertices is None and self.hull is None:
            return
        vertices, hull = np.asarray(self.vertices, dtype=np.float64), np.asarray(self.hull, dtype=bool)
        if vertices.ndim != 3 or vertices.shape[:2] != boxes or hull.shape != boxes[:1]:
            raise ProofError(
                f"proof of a region: vertices {vertices.shape} and hull {hull.shape} do not fit boxes {boxes}."
            )
        if not np.isfinite(vertices).all() or (self.lower[hull] < 0).any() or (self.upper[hull] > 1).any():
            raise ProofError("proof of a region: vertices are not finite, or weights of a hull not within 0 to 1.")
        object.__setattr__(self, "vertices", vertices)
        object.__setattr__(self, "hull", hull)

    @property
    def inputs(self) -> int:
        """Numbers of one input."""
        return int(self.lower.shape[1] if self.vertices is None else self.vertices.shape[2])

    def hulls(self, lower: Array, upper: Array, box: Any) -> Hulls | None:
        """What boxes ``(B, p)`` of regions ``(B,)`` stand for; None where they are the inputs themselves."""
        return None if self.vertices is None else Hulls(lower, upper, self.vertices[box], self.hull[box])

    @classmethod
    def of_boxes(cls, lower: Any, upper: Any, rows: Sequence[OutputRows], **options: Any) -> RegionProof:
        """A proof whose leaves are the boxes themselves: the check splits them as far as it may."""
        return cls(lower, upper, tuple(rows), lower, upper, np.arange(len(lower)), **options)


@dataclass(frozen=True, eq=False)
class ProofVerdict:
    """What the check found.

    Attributes:
        status: PROVED, REFUTED or UNDECIDED.
        share: Share of the volume on which the property was proved, the mean over the boxes; 1 only for PROVED; of the
            weights of hulls it is estimated by points.
        open_lower: Boxes on which it was not, ``(Q, d)``; some may be left out after a violation was found.
        open_upper: ``(Q, d)``.
        point: For REFUTED, an input ``(d,)`` whose output violates the rows of its box.
        outputs: Its output ``(k,)``.
        least: Smallest bound of a proved leaf; how far the property holds at least, for PROVED.
        leaves: Leaves of the proof.
        splits: Further splits that the check made.
        samples: Points at which the network was run.
        sampled_least: Least value of the rows at them.
        execution: As in the proof.
        seconds: Processor time.
        open_box: The box of the proof that each open one is in, ``(Q,)``.
        point_box: The one that the point is in; -1 without a point.
    """

    status: ProofStatus
    share: float
    open_lower: Array
    open_upper: Array
    point: Array | None
    outputs: Array | None
    least: float
    leaves: int
    splits: int
    samples: int
    sampled_least: float
    execution: str
    seconds: float
    open_box: Any = ()
    point_box: int = -1
