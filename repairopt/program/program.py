"""Programs: what a solver gets. NumPy only.

The one convention of the library, nowhere contradicted::

    minimize    1/2 d' H d  +  g' d  +  c        over d in R^n
    subject to  lower       <=  A d  <=  upper         (m rows)
                delta_lower <=    d  <=  delta_upper   (n bounds)
                d_j integer where integer[j]

``d`` (``delta``) is the new minus the old weights, never absolute weights. ``H`` is full and symmetric. Infinite
bounds are ``+-numpy.inf``. Duals (see :class:`repairopt.program.solve_program.Solution`) follow one sign: at an optimum
``H d + g + A' row_duals + bound_duals = 0``, a dual is positive where the upper side holds it and negative where the
lower side does.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

import numpy as np
import numpy.typing as npt

from repairopt.errors import ProgramError

from .hessian import Array, Hessian
from .rows import Matrix, Source


class Kind(StrEnum):
    """Class of a program, which decides the back ends that can take it."""

    LP = "LP"
    QP = "QP"
    MILP = "MILP"
    MIQP = "MIQP"

    def __str__(self) -> str:
        return self.value


@dataclass(frozen=True, eq=False)
class Program:
    """A linear or quadratic program, possibly mixed-integer, in the convention of this module.

    Attributes:
        gradient: ``g``, shape ``(n,)``.
        hessian: ``H``, shape ``(n, n)``, full and symmetric, or a :class:`LowRankHessian`; None for a linear program.
        constant: ``c``.
        matrix: ``A``, shape ``(m, n)``, dense or ``scipy.sparse``; ``m`` may be 0.
        lower: Lower sides of the rows, shape ``(m,)``, ``-inf`` allowed.
        upper: Upper sides of the rows, shape ``(m,)``, ``+inf`` allowed.
        delta_lower: Lower bounds of the variables, shape ``(n,)``.
        delta_upper: Upper bounds of the variables, shape ``(n,)``.
        integer: Boolean mask ``(n,)`` of the integer variables, or None.
        sources: For each row where it comes from; empty or of length ``m``.
        n_delta: How many of the leading variables are weight changes; what follows them are auxiliary variables
            (slacks of soft rows). None means all.

    Raises:
        ProgramError: Sizes disagree, a number is NaN, or a lower side is above its upper side.
    """

    gradient: Array
    hessian: Hessian | None = None
    constant: float = 0.0
    matrix: Matrix = None
    lower: Array = field(default_factory=lambda: np.zeros(0))
    upper: Array = field(default_factory=lambda: np.zeros(0))
    delta_lower: Array | None = None
    delta_upper: Array | None = None
    integer: npt.NDArray[np.bool_] | None = None
    sources: tuple[Source, ...] = ()
    n_delta: int | None = None

    def __post_init__(self) -> None:
        n = len(self.gradient)
        put = lambda name, value: object.__setattr__(self, name, value)  # noqa: E731
        put("gradient", _vector("gradient", self.gradient, n))
        put("matrix", np.zeros((0, n)) if self.matrix is None else self.matrix)
        m = self.matrix.shape[0]
        for name, size, default in (("lower", m, -np.inf), ("upper", m, np.inf)):
            put(name, _vector(name, getattr(self, name), size, default))
        for name, default in (("delta_lower", -np.inf), ("delta_upper", np.inf)):
            value = getattr(self, name)
            put(name, np.full(n, default) if value is None else _vector(name, value, n, default))
        put("n_delta", n if self.n_delta is None else self.n_delta)
        if self.integer is not None and not np.any(self.integer):
            put("integer", None)
        self._check(m, n)

    def _check(self, m: int, n: int) -> None:
        if self.matrix.shape != (m, n):
            raise ProgramError(f"program: matrix has shape {self.matrix.shape}, expected (m, {n}) for {n} variables.")
        if self.hessian is not None and self.hessian.shape != (n, n):
            raise ProgramError(f"program: hessian has shape {self.hessian.shape}, expected ({n}, {n}).")
        if self.integer is not None and np.shape(self.integer) != (n,):
            raise ProgramError(f"program: integer mask has shape {np.shape(self.integer)}, expected ({n},).")
        if len(self.sources) not in (0, m):
            raise ProgramError(f"program: {len(self.sources)} sources for {m} rows; pass one for each row, or none.")
        if not np.all(np.isfinite(self.gradient)):
            raise ProgramError("program: gradient holds infinite numbers; look for a surrogate that overflowed.")
        if isinstance(self.hessian, np.ndarray) and not np.all(np.isfinite(self.hessian)):
            raise ProgramError("program: hessian holds NaN or infinite numbers; look for a surrogate that overflowed.")
        values = self.matrix.data if hasattr(self.matrix, "tocsr") else self.matrix
        if not np.all(np.isfinite(values)):
            raise ProgramError("program: matrix holds NaN or infinite numbers; look for NaN in the data of the rows.")
        for what, (low, high) in (("row", (self.lower, self.upper)), ("bound", self.bounds())):
            bad = np.flatnonzero((low > high) | (low == np.inf) | (high == -np.inf))
            if len(bad):
                i = int(bad[0])
                name = f" ({self.sources[i]})" if what == "row" and self.sources else ""
                raise ProgramError(
                    f"program: {what} {i}{name} has lower {low[i]:.6g} above upper {high[i]:.6g}; "
                    f"no point can satisfy it. Loosen one of the two."
                )

    @property
    def n(self) -> int:
        """Number of variables."""
        return len(self.gradient)

    @property
    def m(self) -> int:
        """Number of rows."""
        return int(self.matrix.shape[0])

    @property
    def kind(self) -> Kind:
        """LP, QP, MILP or MIQP."""
        if self.hessian is None:
            return Kind.LP if self.integer is None else Kind.MILP
        return Kind.QP if self.integer is None else Kind.MIQP

    def bounds(self) -> tuple[Array, Array]:
        """``(delta_lower, delta_upper)``, both ``(n,)``."""
        assert self.delta_lower is not None
        assert self.delta_upper is not None
        return self.delta_lower, self.delta_upper

    def dense_hessian(self, memory_limit: float = 4 * 2**30) -> Array:
        """``H`` as a dense ``(n, n)`` array, zeros for a linear program; not a copy where it is dense already.

        A ProgramError where that would need more than ``memory_limit`` bytes.
        """
        if isinstance(self.hessian, np.ndarray):
            return self.hessian
        need = 8.0 * self.n**2
        if need > memory_limit:
            raise ProgramError(
                f"The Hessian of {self.n:,} weights needs {need / 2**30:.1f} GiB. "
                f"Pass a smaller Location, or a solver that takes low-rank Hessians."
            )
        return np.zeros((self.n, self.n)) if self.hessian is None else self.hessian.dense()

    def objective(self, delta: Array) -> float:
        """Value of the objective at ``delta``, constant included."""
        quadratic = 0.0 if self.hessian is None else 0.5 * float(delta @ (self.hessian @ delta))
        return quadratic + float(self.gradient @ delta) + self.constant

    def violation(self, delta: Array) -> float:
        """Largest violation of any row, bound or integrality at ``delta``; 0 where all hold."""
        low, high = self.bounds()
        parts = [low - delta, delta - high]
        if self.m:
            rows = self.matrix @ delta
            parts += [self.lower - rows, rows - self.upper]
        if self.integer is not None:
            chosen = delta[self.integer]
            parts.append(np.abs(chosen - np.round(chosen)))
        return max(0.0, max(float(np.max(part, initial=0.0)) for part in parts))


def _vector(name: str, value: Any, size: int, default: float | None = None) -> Array:
    array = np.asarray(value, dtype=np.float64)
    if array.shape == (0,) and size and default is not None:
        array = np.full(size, default)
    if array.shape != (size,):
        raise ProgramError(f"program: {name} has shape {array.shape}, expected ({size},).")
    if np.any(np.isnan(array)):
        raise ProgramError(f"program: {name} holds NaN; look for NaN in the data it was made from.")
    return array
