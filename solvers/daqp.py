"""DAQP: dual active set for small dense linear and quadratic programs.

Licence MIT, https://darnstrom.github.io/daqp. Kinds LP and QP, singular Hessians included. Its branch and bound is
left out on purpose: it returned points that were not optimal as optimal.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from repairopt.program import Array, Kind, Program, Solution, Status, recession_ray

from .back_end import TimedBackEnd, native_options, seconds
from .matrices import dense_bytes, dense_rows

# Every exit flag, with the name that DAQP's documentation gives it.
STATUS = {
    2: (Status.FAILED, "soft optimal"),  # no row is declared soft here
    1: (Status.OPTIMAL, "optimal"),
    -1: (Status.INFEASIBLE, "infeasible"),
    -2: (Status.FAILED, "cycling detected"),
    -3: (Status.UNBOUNDED, "unbounded"),
    -4: (Status.NO_POINT, "iteration limit"),
    -5: (Status.FAILED, "nonconvex"),
    -6: (Status.FAILED, "initial working set overdetermined"),
    -7: (Status.NO_POINT, "time limit"),
    -8: (Status.FAILED, "unsupported"),
}
OVERDETERMINED = -6
ITERATIONS = -4
INFINITE = 1e30
EQUALITY = 5  # active (1) and immutable (4)


@dataclass(frozen=True)
class DAQP(TimedBackEnd):
    """LP and QP; the fastest for up to some 60 variables, and for linear programs up to some 300.

    Attributes:
        time_limit: Seconds, or None. Looked at every 32 iterations, so that small programs run to their end.
        feasibility_tol: Largest violation of a row, scaled to unit length, that DAQP accepts.
        native: DAQP settings by their own names, for example ``{"pivot_tol": 1e-6}``.
    """

    name = "daqp"
    kinds = frozenset({Kind.LP, Kind.QP})
    requires = ("daqp",)

    @staticmethod
    def memory(program: Program) -> float:
        """The Hessian and the rows three times: both copied, both again in DAQP's own workspace."""
        return 3.0 * dense_bytes(program)

    def solve(self, program: Program) -> Solution:
        """Translate, run, map the native status."""
        import daqp

        rows = dense_rows(program)
        low, high = program.bounds()
        lower = np.clip(np.concatenate([low, program.lower]), -INFINITE, INFINITE)
        upper = np.clip(np.concatenate([high, program.upper]), -INFINITE, INFINITE)
        sense = np.where(lower == upper, EQUALITY, 0).astype(np.int32)
        hessian = np.array(program.dense_hessian(), order="C")
        data = (hessian, program.gradient.copy(), rows)
        delta, _, flag, info = daqp.solve(*data, upper, lower, sense, **self._settings(program))
        if flag == OVERDETERMINED:
            flag = _contradiction(rows, lower, upper)
        status, native = STATUS.get(flag, (Status.FAILED, f"exit flag {flag}"))
        if flag == ITERATIONS and recession_ray(program, time_limit=self.time_limit) is not None:
            status = Status.UNBOUNDED  # it steps along such a ray until it is stopped
        if status is not Status.OPTIMAL:
            return Solution(status, message=native, iterations=int(info["iterations"]))
        duals = np.array(info["lam"])  # bounds first
        return Solution(
            status,
            delta=np.array(delta),
            message=native,
            row_duals=duals[program.n :],
            bound_duals=duals[: program.n],
            iterations=int(info["iterations"]),
        )

    def _settings(self, program: Program) -> dict[str, Any]:
        return native_options(
            self.native,
            primal_tol=self.feasibility_tol,
            # Steps of the active set take up to about 3 for each variable and row (270 in 8,000 of small repairs);
            # proximal ones end soon or go round to any limit, and then the next back end is faster.
            iter_limit=max(1_000, 20 * (program.n + program.m)),
            eps_prox=-1.0,  # proximal steps where the Hessian is singular ...
            eta_prox=1e-9,  # ... to this accuracy
            time_limit=seconds(self.time_limit),
        )


def _contradiction(rows: Array, lower: Array, upper: Array) -> int:
    """Tell contradicting equality rows, which DAQP calls overdetermined, from merely dependent ones."""
    n = rows.shape[1]
    equal = lower == upper
    system = np.vstack([np.eye(n)[equal[:n]], rows[equal[n:]]])
    sides = upper[equal]
    nearest = np.linalg.lstsq(system, sides, rcond=None)[0]
    contradict = np.abs(system @ nearest - sides).max(initial=0.0) > 1e-7 * (1.0 + np.abs(sides).max(initial=0.0))
    return -1 if contradict else OVERDETERMINED
