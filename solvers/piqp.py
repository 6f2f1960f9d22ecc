"""PIQP: proximal interior point for dense and sparse linear and quadratic programs.

Licence BSD-2-Clause, https://predict-epfl.github.io/piqp. Kinds LP and QP; no wrong answer in 19 measured programs of
up to 222 variables and 500,000 rows.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from repairopt.program import Kind, Program, Solution, Status

from .back_end import BackEnd, native_options, statuses
from .matrices import dense_bytes, dense_rows, sparse_bytes, sparse_hessian, sparse_rows

# Every piqp.Status.
STATUS = statuses(
    OPTIMAL="PIQP_SOLVED",
    INFEASIBLE="PIQP_PRIMAL_INFEASIBLE",
    UNBOUNDED="PIQP_DUAL_INFEASIBLE",
    NO_POINT="PIQP_MAX_ITER_REACHED",
    FAILED="PIQP_NUMERICS PIQP_UNSOLVED PIQP_INVALID_SETTINGS",
)
SPARSE_BELOW = 0.2  # share of stored entries; the sparse variant is 1.1 times faster at 0.17, 7 times at 0.05


@dataclass(frozen=True)
class PIQP(BackEnd):
    """LP and QP of any size up to some 5,000 variables; the default where DAQP is too slow.

    PIQP knows no time limit; ``native={"max_iter": 50}`` bounds the work instead.

    Attributes:
        feasibility_tol: Largest residual of the rows and of the optimality conditions, absolute and relative.
        gap_tol: Largest duality gap, absolute and relative.
        threads: Threads, or None for PIQP's own choice.
        sparse: Use the sparse variant; None does so where ``A`` is a sparse matrix with few entries.
        native: PIQP settings by their own names, for example ``{"max_iter": 500}``.
    """

    gap_tol: float = 1e-9
    threads: int | None = None
    sparse: bool | None = None

    name = "piqp"
    kinds = frozenset({Kind.LP, Kind.QP})
    requires = ("piqp",)

    @staticmethod
    def memory(program: Program) -> float:
        """The Hessian and the rows four times in the dense variant, where most entries are stored."""
        return 3.0 * sparse_bytes(program) if _is_sparse(program) else 4.0 * dense_bytes(program)

    def solve(self, program: Program) -> Solution:
        """Translate, run, map the native status."""
        import piqp

        sparse = _is_sparse(program) if self.sparse is None else self.sparse
        backend = piqp.SparseSolver() if sparse else piqp.DenseSolver()
        for option, value in self._settings().items():
            setattr(backend.settings, option, value)
        equal = program.lower == program.upper
        other = ~equal & (np.isfinite(program.lower) | np.isfinite(program.upper))  # PIQP warns of rows without sides
        rows = sparse_rows(program) if sparse else dense_rows(program)
        hessian = sparse_hessian(program) if sparse else program.dense_hessian()
        store = (lambda part: part.tocsc()) if sparse else np.asfortranarray
        equalities = (store(rows[equal]), program.lower[equal])
        inequalities = (store(rows[other]), program.lower[other], program.upper[other])
        backend.setup(store(hessian), program.gradient, *equalities, *inequalities, *program.bounds())
        native = backend.solve().name
        status, result = STATUS.get(native, Status.FAILED), backend.result
        if status is not Status.OPTIMAL:
            return Solution(status, message=native, iterations=int(result.info.iter))
        duals = np.zeros(program.m)
        duals[equal] = result.y
        duals[other] = np.asarray(result.z_u) - np.asarray(result.z_l)
        return Solution(
            status,
            delta=np.array(result.x),
            message=native,
            row_duals=duals,
            bound_duals=np.asarray(result.z_bu) - np.asarray(result.z_bl),
            iterations=int(result.info.iter),
        )

    def _settings(self) -> dict[str, Any]:
        return native_options(
            self.native,
            verbose=self.verbose,
            eps_abs=self.feasibility_tol,
            eps_rel=self.feasibility_tol,
            check_duality_gap=True,
            eps_duality_gap_abs=self.gap_tol,
            eps_duality_gap_rel=self.gap_tol,
            num_threads=self.threads,
        )


def _is_sparse(program: Program) -> bool:
    matrix = program.matrix
    return hasattr(matrix, "tocsr") and matrix.nnz < SPARSE_BELOW * program.m * program.n
