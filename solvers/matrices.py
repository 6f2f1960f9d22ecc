"""The rows and the Hessian of a program in the storage that a native library wants."""

from __future__ import annotations

from typing import Any

import numpy as np

from repairopt.program import Array, Program


def dense_rows(program: Program) -> Array:
    """``A`` as a dense, C-contiguous float64 array ``(m, n)``; not a copy where it is one already."""
    matrix: Any = program.matrix
    return np.ascontiguousarray(matrix.toarray() if hasattr(matrix, "tocsr") else matrix, dtype=np.float64)


def sparse_rows(program: Program, index: Any = None) -> Any:
    """``A``, or some of its rows, as a ``scipy.sparse`` CSR matrix without stored zeros; shares no memory with it."""
    from scipy import sparse

    chosen = program.matrix if index is None else program.matrix[index]
    rows = sparse.csr_matrix(chosen, dtype=np.float64, copy=True)
    rows.sum_duplicates()
    rows.eliminate_zeros()
    return rows


def sparse_hessian(program: Program) -> Any:
    """The upper triangle of ``H`` as a ``scipy.sparse`` CSC matrix ``(n, n)``; empty for a linear program."""
    from scipy import sparse

    if program.hessian is None:
        return sparse.csc_matrix((program.n, program.n))
    return sparse.csc_matrix(np.triu(program.dense_hessian()))


def one_sided(lower: Array, upper: Array) -> tuple[Any, Array, Array, int]:
    """Two-sided lines as ``sign * line <= side``, one for each finite side; equalities once, and first.

    Which line each comes from, its sign, its side, and the number of equalities.
    """
    equal = np.flatnonzero(lower == upper)
    above = np.flatnonzero((lower != upper) & np.isfinite(upper))
    below = np.flatnonzero((lower != upper) & np.isfinite(lower))
    signs = np.repeat([1.0, -1.0], [len(equal) + len(above), len(below)])
    sides = np.concatenate([upper[equal], upper[above], -lower[below]])
    return np.concatenate([equal, above, below]), signs, sides, len(equal)


def one_sided_lines(program: Program, *, bounds: bool = False) -> tuple[Any, Any, Array, Array, int]:
    """The rows, and on request the bounds behind them, as signed ``scipy.sparse`` lines, and what one_sided gives."""
    from scipy import sparse

    lines, (low, high) = sparse_rows(program), program.bounds()
    lower, upper = program.lower, program.upper
    if bounds:
        lines = sparse.vstack([lines, sparse.identity(program.n, format="csr")], format="csr")
        lower, upper = np.concatenate([lower, low]), np.concatenate([upper, high])
    owners, signs, sides, equal = one_sided(lower, upper)
    return sparse.csr_matrix(sparse.diags(signs) @ lines[owners]), owners, signs, sides, equal


def by_owner(values: Any, owners: Any, size: int) -> Array:
    """The sum of the values of each owner, ``(size,)``."""
    return np.bincount(owners, np.asarray(values, dtype=np.float64), size).astype(np.float64, copy=False)


def integer_mask(program: Program) -> Any:
    """Which variables are integer, ``(n,)``."""
    return np.zeros(program.n, dtype=bool) if program.integer is None else program.integer


def half_hessian(program: Program) -> Any:
    """An upper triangular ``scipy.sparse`` matrix ``U`` with ``d' U d = 1/2 d' H d``."""
    from scipy import sparse

    upper = sparse_hessian(program)
    return upper - 0.5 * sparse.diags(upper.diagonal())


def finite_side(value: float) -> float | None:
    """A side as libraries want it that know None for no side."""
    return float(value) if np.isfinite(value) else None


def sparse_bytes(program: Program) -> float:
    """Bytes of ``A`` and ``H`` in sparse storage, at 12 an entry."""
    matrix, hessian = program.matrix, program.hessian
    entries = matrix.nnz if hasattr(matrix, "tocsr") else program.m * program.n
    return 12.0 * (entries + (0 if hessian is None else program.n**2 // 2))


def dense_bytes(program: Program) -> float:
    """Bytes of ``A`` and of ``H`` in dense storage, one after the other."""
    return 8.0 * (program.m * program.n + program.n**2)
