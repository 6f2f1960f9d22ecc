"""The answer of a back end, and what a back end is."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from fractions import Fraction
from typing import ClassVar, Protocol, runtime_checkable

import numpy as np

from .program import Array, Kind, Program
from .rows import Source


@dataclass(frozen=True, eq=False)
class FarkasCertificate:
    """A checked proof that no point satisfies rows and bounds; integrality is not needed for it.

    Attributes:
        ray: Multipliers of the rows ``(m,)``, the largest of size 1, positive for upper sides, negative for lower.
        margin: How far the least value over the box is above what the rows allow; positive, rounding subtracted.
        reach: Points with entries up to this are excluded; infinite unless variables lack bounds that the proof needs
            and the program is too large for rational arithmetic.
        rational: The multipliers that were checked in rational arithmetic, by row; None where float64 was enough.
    """

    ray: Array
    margin: float
    reach: float = float("inf")
    rational: Mapping[int, Fraction] | None = None


@dataclass(frozen=True, eq=False)
class RecessionRay:
    """A checked proof that a program is unbounded: from ``point`` on, the objective falls along ``ray`` for ever.

    Both ``(n,)``; the largest entry of the ray is of size 1. On integer variables the ray has rational multiples that
    are whole.
    """

    point: Array
    ray: Array


class Status(StrEnum):
    """How a solve ended. ``.meaning`` says what happened, likely causes and what to try."""

    OPTIMAL = "optimal"
    FEASIBLE = "feasible"
    INFEASIBLE = "infeasible"
    UNBOUNDED = "unbounded"
    NO_POINT = "no point"
    FAILED = "failed"

    @property
    def meaning(self) -> str:
        """One or two sentences: what happened, why, what to try."""
        return _MEANING[self]


_MEANING = {
    Status.OPTIMAL: "Solved: no better point exists within the tolerances, rechecked by repairopt.",
    Status.FEASIBLE: (
        "A feasible point that is not known to be optimal: a limit was hit, or the multipliers do not prove what the "
        "back end claims; see the message. Raise time_limit, try another solver, or accept the point."
    ),
    Status.INFEASIBLE: (
        "No weight change satisfies all rows. Likely: constraints in conflict, too small a box, too few weights. "
        "Give constraints a weight (soft rows), widen the trust radius, or choose more weights."
    ),
    Status.UNBOUNDED: "The objective falls without limit. A linear program needs bounds: set a trust radius.",
    Status.NO_POINT: "A limit was hit before any feasible point was found. Raise time_limit or simplify the program.",
    Status.FAILED: (
        "The back end failed, or its answer did not pass the recheck; see the message. Likely numerical trouble: "
        "try another solver."
    ),
}


@dataclass(frozen=True)
class Attempt:
    """One try at a program: back end, status after the recheck, whether rows and variables were scaled first.

    ``message`` is the native status text, and what the recheck found; ``seconds`` is wall time.
    """

    solver: str
    status: Status
    scaled: bool = False
    message: str = ""
    seconds: float = 0.0

    def __str__(self) -> str:
        return f"'{self.solver}'{' scaled' if self.scaled else ''} {self.status} ({self.message})"


@dataclass(frozen=True)
class NamedDual:
    """The multiplier of one side of one row, in the user's words.

    ``value``, above 0, is the shadow price: decrease of the objective per unit by which that side is relaxed.
    """

    source: Source
    side: str
    value: float


@dataclass(frozen=True, eq=False)
class Solution:
    """Answer of a back end, with what the core found on recheck.

    What a back end says and what the core found are separate fields. A back end sets those up to ``interrupted``.

    Attributes:
        status: How the solve ended.
        delta: The point, ``(n,)``, or None where there is none.
        objective: Objective there, constant included; NaN where there is no point.
        bound: Proven lower bound on the objective, or NaN.
        seconds: Wall time of the back end; set by the core.
        message: Native status text, kept as it came.
        row_duals: Multipliers of the rows, ``(m,)``, in the sign convention of ``program.py``, or None.
        bound_duals: Multipliers of the bounds, ``(n,)``, or None.
        ray: Farkas multipliers of the rows, ``(m,)``, that prove infeasibility, or None.
        iterations: Iterations of the back end, or 0.
        retry: Whether another try can help, on a scaled program or by another back end; False for a missing licence,
            and where the back end had constraints that are not in the program.
        interrupted: Whether Ctrl-C ended the solve.
        violation: Largest violation of row, bound or integrality; set by the core.
        stationarity: Largest entry of ``H d + g + A'y + z``; set by the core where duals came, else NaN.
        complementarity: Largest product of a multiplier and the room of its side; set by the core, else NaN.
        gap: Duality gap: products of all multipliers with the room of their sides, over the size of the objective's
            terms; the objective is at most that far from the optimum while ``stationarity`` is negligible. For
            mixed-integer programs the distance to ``bound``. Set by the core, else NaN.
        solver: Name of the back end; set by the core.
        attempts: All tries, in order, the last one is this answer; set by the core.
        proof: For INFEASIBLE the checked Farkas certificate, or None where none was found or asked for; for UNBOUNDED
            the checked ray.
        claimed: What the back end claimed, where the core took it back; else None.
        log: What the native library printed, where ``verbose`` was set.
    """

    status: Status
    delta: Array | None = None
    objective: float = float("nan")
    bound: float = float("nan")
    seconds: float = 0.0
    message: str = ""
    row_duals: Array | None = None
    bound_duals: Array | None = None
    ray: Array | None = None
    iterations: int = 0
    retry: bool = True
    interrupted: bool = False
    violation: float = float("nan")
    stationarity: float = float("nan")
    complementarity: float = float("nan")
    gap: float = float("nan")
    solver: str = ""
    attempts: tuple[Attempt, ...] = ()
    proof: FarkasCertificate | RecessionRay | None = None
    claimed: Status | None = None
    log: str = ""

    @property
    def found(self) -> bool:
        """Whether there is a point that satisfies the program."""
        return self.delta is not None and self.status in (Status.OPTIMAL, Status.FEASIBLE)

    def named_duals(self, program: Program, *, smallest: float = 1e-9) -> list[NamedDual]:
        """What each row costs, by constraint and sample, the dearest first; empty without multipliers.

        Multipliers up to ``smallest``, relative to the largest, are left out.
        """
        if self.row_duals is None or not len(self.row_duals):
            return []
        size = np.abs(self.row_duals)
        order = np.argsort(-size, kind="stable")
        order = order[size[order] > smallest * float(size.max())]
        return [
            NamedDual(
                program.sources[i] if program.sources else Source(f"row {i}"),
                "upper" if self.row_duals[i] > 0 else "lower",
                float(size[i]),
            )
            for i in order
        ]


@runtime_checkable
class Solver(Protocol):
    """A back end. Its fields are its options; see ``solvers/README.md`` for how to write one.

    Only these four are needed. A class may also have, and the core then uses:

    * ``preference(program) -> float``: rank among the back ends that are chosen without being asked for;
    * ``memory(program) -> float``: bytes that a solve takes, beyond the program itself;
    * ``session() -> Solver``: a twin that remembers its last program and point, and updates rather than rebuilds where
      the next program shares rows with it (told by their sources);
    * ``nonconvex = True``: indefinite Hessians are solved to proven optimality;
    * fields ``time_limit``, ``verbose``, ``start``, ``gap_tol``, ``feasibility_tol``: set for a single solve.

    Attributes:
        name: Name by which users choose it.
        kinds: The kinds of program that it takes.
        requires: Import names of the libraries that it needs.
    """

    name: ClassVar[str]
    kinds: ClassVar[frozenset[Kind]]
    requires: ClassVar[tuple[str, ...]]

    def solve(self, program: Program) -> Solution:
        """Translate, run, map the native status. Must not modify ``program``."""
        ...
