"""The rows and the Hessian of a program in the storage that a native library wants."""

from __future__ import annotations

from typing import Any

import numpy as np

from repairopt.program import Array, Program


def dense_rows(program: Program) -> Array:
    """``A`` as a dense, C-contiguous float64 array ``(m, n)``; not a copy where it is one already."""
    matrix: Any = program.matrix
    return np.ascontiguousarray(matrix.toarray() if hasattr(matrix, "tocsr") else matrix, dtype=np.float64)


def sparse_rows(program: Program) -> Any:
    """``A`` as a ``scipy.sparse`` CSR matrix ``(m, n)`` without stored zeros; never shares memory with the program."""
    from scipy import sparse

    rows = sparse.csr_matrix(program.matrix, dtype=np.float64, copy=True)
    rows.sum_duplicates()
    rows.eliminate_zeros()
    return rows


def sparse_hessian(program: Program) -> Any:
    """The upper triangle of ``H`` as a ``scipy.sparse`` CSC matrix ``(n, n)``; empty for a linear program."""
    from scipy import sparse

    if program.hessian is None:
        return sparse.csc_matrix((program.n, program.n))
    return sparse.csc_matrix(np.triu(program.dense_hessian()))
