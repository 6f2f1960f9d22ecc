"""The program of one step: quadratic model, linearized rows, bounds, slacks."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from repairopt.errors import ProgramError
from repairopt.program import Array, Hessian, LowRankHessian, Matrix, Program, Rows, padded, stack_rows

from .quadratic import Surrogate


def build_program(
    surrogate: Surrogate,
    rows: Rows,
    *,
    box: tuple[Array, Array],
    change: Rows | None = None,
    linear: bool = False,
    proximal: float = 0.0,
) -> Program:
    """The program of one step: minimize the convex surrogate subject to the rows, the box and rows on the change.

    Each soft row gets a slack variable behind the ``n_delta`` weight changes, at the row's price for each unit of
    violation. ``linear`` drops the quadratic term and the proximal one (AutoRIC's LP variant); ``proximal`` is the
    weight of ``1/2 |u|^2``, ``u`` the step in scaled coordinates, which makes the smallest step preferred.
    """
    n = len(surrogate.gradient)
    both = rows if change is None or not len(change) else stack_rows(rows, change)
    soft = np.flatnonzero(np.isfinite(both.price))
    hessian = None if linear else _with_proximal(surrogate, proximal)
    lower, upper = box
    matrix = both.matrix
    gradient = surrogate.gradient
    if len(soft):
        matrix = _with_slacks(both, soft)
        gradient = np.concatenate([gradient, both.price[soft]])
        lower = np.concatenate([lower, np.zeros(len(soft))])
        upper = np.concatenate([upper, np.full(len(soft), np.inf)])
        hessian = padded(hessian, len(soft))
    return Program(
        gradient=gradient,
        hessian=hessian,
        constant=surrogate.constant,
        matrix=matrix,
        lower=both.lower,
        upper=both.upper,
        delta_lower=lower,
        delta_upper=upper,
        sources=both.sources,
        n_delta=n,
    )


def _with_proximal(surrogate: Surrogate, proximal: float) -> Hessian | None:
    if proximal == 0:
        return surrogate.hessian
    extra = proximal / surrogate.scale**2
    if surrogate.hessian is None:
        return np.diag(extra)
    if isinstance(surrogate.hessian, LowRankHessian):
        return LowRankHessian(surrogate.hessian.diagonal + extra, surrogate.hessian.factor)
    return surrogate.hessian + np.diag(extra)


def _with_slacks(rows: Rows, soft: npt.NDArray[np.int64]) -> Matrix:
    """One more column for each soft row: added to its lower side, so only lower sides may be soft."""
    if np.any(np.isfinite(rows.upper[soft])):
        raise ProgramError("program: a soft row has a finite upper side; write it as two rows with lower sides.")
    count = len(soft)
    if hasattr(rows.matrix, "tocsr") or count > 2000:
        from scipy import sparse

        slack = sparse.csr_matrix((np.ones(count), (soft, np.arange(count))), shape=(len(rows), count))
        return sparse.hstack([sparse.csr_matrix(rows.matrix), slack], format="csr")
    dense = np.zeros((len(rows), count))
    dense[soft, np.arange(count)] = 1.0
    return np.hstack([rows.matrix, dense])
