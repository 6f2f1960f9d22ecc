"""Ready-made constraints on the weight change."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from repairopt.errors import PatchError, SpecificationError
from repairopt.patches import read_arrays

from .contracts import Array
from .expected import Expected, as_numbers, keep_plain
from .measures import Argument, Given, Measure


def _make_linear_rows(kind: Any, given: Given) -> Any:
    path = given.folder / str(given.arguments["file"])
    try:
        file = read_arrays(path)
        parts = {key: file[key] for key in ("matrix", "lower", "upper")}
    except (PatchError, OSError, ValueError, KeyError) as error:
        reason = f"'{path}' cannot be read ({error}); expected an npz file with matrix, lower and upper"
        raise given.fail("file", reason) from error
    return kind(**parts, name=given.name)


def _on_change(name: str, meaning: str, unit: str, example: float, side: str = "relative") -> Measure:
    return Measure(
        name,
        meaning,
        f"{name} <= {example}",
        unit,
        arguments=(),
        make=lambda kind, given: kind(**{side: given.limit()}, name=given.name),
        goal=False,
        read=lambda item, initial, delta: item.reached(initial, delta),
    )


@dataclass(frozen=True)
class ChangeLimit:
    """No weight changes by more than a limit: absolute, or relative to its own size.

    Attributes:
        absolute: Largest change of any weight.
        relative: Largest change as a share of ``|weight|``.
        name: What the report calls it.
    """

    absolute: float | None = None
    relative: float | None = None
    name: str = "change limit"

    measures = (
        _on_change("max_change", "Largest change of any weight.", "units of the weights", 0.1, "absolute"),
        _on_change("relative_change", "Largest change of any weight over its size.", "share of the weight", 0.2),
    )

    def __post_init__(self) -> None:
        if self.absolute is None and self.relative is None:
            raise SpecificationError(f"constraint '{self.name}': give absolute, relative, or both.")
        for what in ("absolute", "relative"):
            value = getattr(self, what)
            if not (Expected(none=True).fits(value) or (isinstance(value, float) and value == np.inf)):
                raise SpecificationError(
                    f"constraint '{self.name}': {what} {value!r} must not be negative; expected a number, or None."
                )
        keep_plain(self, "absolute", "relative")

    def rows(self, initial: Array) -> tuple[Any, Array, Array]:
        """The limits as rows over a sparse identity."""
        from scipy import sparse

        limit = np.full(len(initial), np.inf if self.absolute is None else self.absolute)
        if self.relative is not None:
            limit = np.minimum(limit, self.relative * np.abs(initial))
        return sparse.identity(len(initial), format="csr"), -limit, limit

    def box(self, initial: Array) -> tuple[Array, Array]:
        """The same as bounds ``(lower, upper)``, which solvers take without rows."""
        _, lower, upper = self.rows(initial)
        return lower, upper

    def reached(self, initial: Array, delta: Array) -> float:
        """Largest change, absolute where such a limit is given, else relative; infinite where a weight of 0 changed."""
        size = np.abs(delta)
        if self.absolute is None:
            size = np.divide(size, np.abs(initial), out=np.where(size > 0, np.inf, 0.0), where=initial != 0)
        return float(size.max(initial=0.0))


@dataclass(frozen=True, eq=False)
class LinearRows:
    """The user's own rows on the weight change: ``lower <= matrix @ delta <= upper``.

    Attributes:
        matrix: ``(m, n)``, dense or ``scipy.sparse``; columns in the order of the location's weights.
        lower: ``(m,)``.
        upper: ``(m,)``.
        name: What the report calls it.
    """

    matrix: Any
    lower: Any
    upper: Any
    name: str = "linear rows"

    measures = (
        Measure(
            "linear_rows",
            "Your own rows on the change of the chosen weights, lower <= matrix @ change <= upper, arrays of an npz "
            "file.",
            'linear_rows("rows.npz")',
            "none",
            (),
            (Argument("file", "file", "npz with matrix, lower and upper"),),
            _make_linear_rows,
            goal=False,
            read=lambda item, initial, delta: item.missed(initial, delta),
        ),
    )

    def rows(self, initial: Array) -> tuple[Any, Array, Array]:
        """The rows, checked against the number of weights."""
        owner = f"constraint '{self.name}'"
        is_sparse = hasattr(self.matrix, "tocsr")
        matrix = self.matrix if is_sparse else np.atleast_2d(as_numbers(owner, "matrix", self.matrix))
        if matrix.ndim != 2 or (is_sparse and matrix.dtype.kind not in "biuf"):
            raise SpecificationError(f"{owner}: matrix {matrix.shape} of {matrix.dtype}; expected (m, n), real.")
        m = matrix.shape[0]
        sides = [as_numbers(owner, what, getattr(self, what)) for what in ("lower", "upper")]
        if any(side.shape not in ((), (1,), (m,)) for side in sides):
            raise SpecificationError(
                f"constraint '{self.name}': lower {sides[0].shape} and upper {sides[1].shape} do not fit {m} rows; "
                f"expected one number, or ({m},)."
            )
        entries = matrix.tocsr().data if hasattr(matrix, "tocsr") else matrix
        if any(np.isnan(values).any() for values in (entries, *sides)):
            raise SpecificationError(f"constraint '{self.name}': holds NaN; expected numbers. Look at its data.")
        lower, upper = (np.broadcast_to(side, (m,)) for side in sides)
        if matrix.shape[1] != len(initial):
            raise SpecificationError(
                f"constraint '{self.name}': matrix has {matrix.shape[1]} columns, expected {len(initial)}, one for "
                f"each weight of the location."
            )
        return matrix, lower, upper

    def missed(self, initial: Array, delta: Array) -> float:
        """By how much the worst row is missed."""
        matrix, lower, upper = self.rows(initial)
        moved = matrix @ delta
        return float(np.maximum(np.maximum(lower - moved, moved - upper), 0.0).max(initial=0.0))
