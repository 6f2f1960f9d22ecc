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

import reprlib
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

import numpy as np
import numpy.typing as npt

from repairopt.errors import ProgramError

from .hessian import Array, Hessian, LowRankHessian, numbers
from .rows import Matrix, Source

LARGEST_DENSE = 4 * 2**30  # bytes of a Hessian that is made dense


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
            A sparse one is made dense.
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
        ProgramError: Sizes disagree, a number is NaN or none, or a lower side is above its upper side. Lists and whole
            numbers are converted.
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
        put = lambda name, value: object.__setattr__(self, name, value)  # noqa: E731
        put("gradient", numbers("program: gradient", self.gradient, 1))
        n = len(self.gradient)
        put("gradient", _vector("gradient", self.gradient, n))
        put("matrix", np.zeros((0, n)) if self.matrix is None else _matrix("matrix", self.matrix))
        if self.hessian is not None and not isinstance(self.hessian, LowRankHessian):
            put("hessian", _dense(_matrix("hessian", self.hessian)))
        m = self.matrix.shape[0]
        for name, size, default in (("lower", m, -np.inf), ("upper", m, np.inf)):
            put(name, _vector(name, getattr(self, name), size, default))
        for name, default in (("delta_lower", -np.inf), ("delta_upper", np.inf)):
            value = getattr(self, name)
            put(name, np.full(n, default) if value is None else _vector(name, value, n, default))
        put("n_delta", n if self.n_delta is None else self.n_delta)
        put("sources", _sources(self.sources))
        put("constant", float(numbers("program: constant", self.constant, 0)))
        if self.integer is not None:
            put("integer", _mask(self.integer, n))
        self._check(m, n)

    def _check(self, m: int, n: int) -> None:
        if self.matrix.shape != (m, n):
            raise ProgramError(f"program: matrix has shape {self.matrix.shape}, expected (m, {n}) for {n} variables.")
        if self.hessian is not None and self.hessian.shape != (n, n):
            raise ProgramError(f"program: hessian has shape {self.hessian.shape}, expected ({n}, {n}).")
        if not (isinstance(self.n_delta, int | np.integer) and 0 <= self.n_delta <= n):
            raise ProgramError(f"program: n_delta is {self.n_delta!r}, expected a whole number from 0 to {n}.")
        if len(self.sources) not in (0, m):
            raise ProgramError(f"program: {len(self.sources)} sources for {m} rows; pass one for each row, or none.")
        for what, values in (("gradient", self.gradient), ("constant", self.constant)):
            if not np.all(np.isfinite(values)):
                raise ProgramError(f"program: {what} holds infinite numbers; look for a surrogate that overflowed.")
        hessian = self.hessian
        parts = (hessian.diagonal, hessian.factor) if isinstance(hessian, LowRankHessian) else (hessian,)
        if not all(part is None or np.all(np.isfinite(part)) for part in parts):
            raise ProgramError("program: hessian holds NaN or infinite numbers; look for a surrogate that overflowed.")
        entries = self.matrix.data if hasattr(self.matrix, "tocsr") else self.matrix
        if not np.all(np.isfinite(entries)):
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

    def dense_hessian(self, memory_limit: float = LARGEST_DENSE) -> Array:
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


def _sources(given: Any) -> tuple[Source, ...]:
    found = tuple(given) if isinstance(given, list | tuple) else None
    if found is None or not all(isinstance(one, Source) for one in found):
        odd = given if found is None else next(one for one in found if not isinstance(one, Source))
        raise ProgramError(f"program: sources hold {reprlib.repr(odd)}; expected a list of Source(constraint, sample).")
    return found


def _vector(name: str, value: Any, size: int, default: float | None = None) -> Array:
    array = numbers(f"program: {name}", value, None)
    if array.shape == (0,) and size and default is not None:
        array = np.full(size, default)
    if array.shape != (size,):
        raise ProgramError(f"program: {name} has shape {array.shape}, expected ({size},).")
    if np.any(np.isnan(array)):
        raise ProgramError(f"program: {name} holds NaN; look for NaN in the data it was made from.")
    return array


def _matrix(name: str, value: Any) -> Matrix:
    """A dense float64 array, or ``scipy.sparse`` CSR of any sparse format."""
    if not hasattr(value, "tocsr"):
        return numbers(f"program: {name}", value, 2)
    if value.dtype.kind not in "biuf":
        raise ProgramError(f"program: {name} holds entries of type {value.dtype}; expected real numbers.")
    rows = value if getattr(value, "format", "") in ("csr", "csc") else value.tocsr()
    return rows if rows.dtype == np.float64 else rows.astype(np.float64)


def _dense(hessian: Matrix) -> Array:
    if not hasattr(hessian, "toarray"):
        return hessian
    if 8.0 * hessian.shape[0] * hessian.shape[1] > LARGEST_DENSE:
        raise ProgramError(
            f"program: a sparse hessian of shape {hessian.shape} needs {LARGEST_DENSE / 2**30:.0f} GiB or more as a "
            f"dense array. Pass LowRankHessian(diagonal, factor)."
        )
    return np.asarray(hessian.toarray())


def _mask(value: Any, n: int) -> npt.NDArray[np.bool_]:
    """The mask of the integer variables, or None where there are none."""
    try:
        mask = np.asarray(value)
    except ValueError as error:
        raise ProgramError(f"program: integer is ragged; expected a mask of {n} booleans, got {value!r}.") from error
    if mask.shape != (n,):
        raise ProgramError(f"program: integer mask has shape {mask.shape}, expected ({n},).")
    if mask.dtype != np.bool_ and not np.all((mask == 0) | (mask == 1)):
        raise ProgramError(f"program: integer is a mask of {n} booleans, not a list of indices; got {value!r}.")
    return mask.astype(np.bool_) if np.any(mask) else None  # type: ignore[return-value]
