"""Certify a solution from the program's data alone, in float64 and on request in rational arithmetic.

Nothing that a back end says is believed: the point is put into rows and bounds, the multipliers into the optimality
conditions and into the bound of :mod:`repairopt.program.certificates.dual_bound`, rays into the check of
:mod:`repairopt.program.certificates.farkas`.

Tolerances are relative, with scales that do not change when a row or the objective is multiplied by a number:

* a row's violation over ``max(|side|, |a_i| max(1, |d|))``, with the Euclidean norm of the row and the largest entry of
  the point; a bound's over ``max(1, |side|)``;
* the gap over the size of the terms of the objective, ``1/2 d'Hd + sum |g_j d_j|``, but at least
  ``min(1, max|g| + max|H_jj|)``: 1 for objectives of usual size, less for tiny ones;
* dual residuals over the largest entry of ``g``, ``H d``, ``A'y`` and ``z``.

The default tolerance goes by the dtype of the point: 1e-7 for float64, where back ends work to 1e-9 and their errors
add up over rows and variables, 1e-3 for float32.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from enum import StrEnum
from fractions import Fraction
from typing import Any

import numpy as np

from repairopt.program.program import Array, Program
from repairopt.program.rechecking import objective_scale, residuals, tolerance, violations
from repairopt.program.solution import FarkasCertificate, Solution, Status

from .duality import DualBound, curvature_deficit, dual_bound
from .exact_check import exact_bound, exact_objective, exact_violation
from .farkas import farkas_certificate
from .multipliers import recover_duals
from .rational import round_down, round_up

TOL = 1e-7  # in double precision


class CertificateVerdict(StrEnum):
    """What was proven about a solution. ``.meaning`` says it in words."""

    OPTIMAL = "certified optimal"
    FEASIBLE = "feasible"
    INFEASIBLE = "certified infeasible"
    NOT_CERTIFIED = "not certified"

    @property
    def meaning(self) -> str:
        """One or two sentences: what was proven, and what to try where it is not enough."""
        return _MEANING[self]


_MEANING = {
    CertificateVerdict.OPTIMAL: "The point holds all rows and bounds, and no point is better, both within tolerance.",
    CertificateVerdict.FEASIBLE: (
        "The point holds all rows and bounds within tolerance; that it is optimal was not proven, see the reasons. "
        "Tighten the back end's tolerances or try another solver; drop wrong duals to have them recovered."
    ),
    CertificateVerdict.INFEASIBLE: "Multipliers of rows, checked here, prove that no point holds all rows and bounds.",
    CertificateVerdict.NOT_CERTIFIED: "Nothing was proven, see the reasons. Do not rely on this solution.",
}


@dataclass(frozen=True, eq=False)
class Certificate:
    """What was found when a solution was put to the test; relative figures have the scales of this module.

    Attributes:
        verdict: What was proven; ``reasons`` why not more was. exact: Whether violation, objective and bound come from
        rational arithmetic, rounded so that they stay true. violation: Largest violation of row, bound or integrality.
        bound: Lower bound on the optimum. For mixed-integer programs the larger of the relaxation's bound and the one
        that
            the back end claims.
        gap: ``objective - bound``. Negative where the point is better than allowed by violating rows.
        dual_residual: Largest entry of ``H d + g + A'y + z``; NaN without multipliers.
        sign_violation: Largest entry of the gradient that infinite sides hold, over the size of its terms.
        complementarity: Largest product of a multiplier and the slack of its side.
        duals: Where the multipliers come from: "back end", "recovered" or "none".
        bound_from: Where the bound comes from: "certificate", "back end" (its word, not checked) or "none".
        reach: Points with entries further than this from the point were not compared; infinite unless a variable
            without bounds leaves no better proof in float64.
        interval: Exact lower bound and exact objective; None unless exact.
        row_duals: The multipliers that give the bound.
        farkas: The proof of infeasibility, if there is one.
    """

    verdict: CertificateVerdict
    reasons: tuple[str, ...] = ()
    tol: float = float("nan")
    exact: bool = False
    violation: float = float("nan")
    relative_violation: float = float("nan")
    objective: float = float("nan")
    bound: float = float("-inf")
    gap: float = float("inf")
    relative_gap: float = float("inf")
    dual_residual: float = float("nan")
    relative_dual_residual: float = float("nan")
    sign_violation: float = float("nan")
    complementarity: float = float("nan")
    duals: str = "none"
    bound_from: str = "none"
    reach: float = float("inf")
    interval: tuple[Fraction, Fraction] | None = None
    row_duals: Array | None = None
    farkas: FarkasCertificate | None = None

    def __str__(self) -> str:
        how = "in rational arithmetic" if self.exact else "in float64"
        if self.farkas is not None:
            how = "in rational arithmetic" if self.farkas.rational else how
            rows = int(np.count_nonzero(self.farkas.ray))
            return f"{self.verdict} {how}: {rows} rows contradict each other by {self.farkas.margin:.3g}."
        text = f"{self.verdict} {how}: violation {self.violation:.3g}, gap {self.gap:.3g} ({self.relative_gap:.3g})"
        if np.isfinite(self.reach):
            text += f", among points within {self.reach:.3g}"
        return text + "." + "".join(f"\n  {reason}" for reason in self.reasons)


def certify(program: Program, solution: Solution, *, exact: bool = False, tol: float | None = None) -> Certificate:
    """Prove what a solution claims, or say what is missing.

    Where the back end gave multipliers, they are put to the test too: wrong ones are not certified even if the point is
    optimal. Where it gave none, they are recovered from the rows and bounds that hold the point. Optimality of a
    mixed-integer program rests on the search of its back end and is not certified; its bound is compared.

    Args:
        program: What was solved.
        solution: What came back, from any source.
        exact: Verify violation, objective and lower bound in rational arithmetic, or the proof of infeasibility. A
            singular Hessian rounded to a dense matrix is seldom convex exactly: its variables need bounds then.
        tol: Relative tolerance; by default 1e-7, or 1e-3 for a point in single or half precision.

    Raises:
        ProgramError: ``exact=True`` and what takes part has more than 2,000,000 entries.
    """
    point = solution.delta
    if tol is None:
        tol = tolerance(point, TOL)
    if solution.status is Status.INFEASIBLE:
        proof = farkas_certificate(program, ray=solution.ray, exact=exact)
        if proof is not None:
            return Certificate(CertificateVerdict.INFEASIBLE, tol=tol, exact=exact, reach=proof.reach, farkas=proof)
        return Certificate(CertificateVerdict.NOT_CERTIFIED, ("no multipliers prove infeasibility",), tol, exact)
    if point is None or np.shape(point) != (program.n,) or not np.all(np.isfinite(point)):
        return Certificate(CertificateVerdict.NOT_CERTIFIED, ("there is no finite point to check",), tol, exact)
    delta = np.asarray(point, dtype=np.float64)
    violation, relative = violations(program, delta, np.asarray(program.matrix @ delta), floor=0.0)
    known: Any = {"violation": violation, "relative_violation": relative, "objective": program.objective(delta)}
    found = Certificate(CertificateVerdict.NOT_CERTIFIED, tol=tol, exact=exact, **known)
    found, known = _dual(program, solution, delta, found)
    found = _exactly(program, delta, found, known) if exact else found
    found = _claimed_bound(program, solution, delta, found)
    return _judged(program, found)


def _dual(
    program: Program, solution: Solution, delta: Array, found: Certificate
) -> tuple[Certificate, DualBound | None]:
    """Test the multipliers and turn them into a lower bound."""
    deficit = curvature_deficit(program)
    duals, origin = solution.row_duals, "back end"
    for what, values, size in (("rows", duals, program.m), ("bounds", solution.bound_duals, program.n)):
        if values is not None and (np.shape(values) != (size,) or not np.all(np.isfinite(values))):
            return replace(found, reasons=(f"the multipliers of the {what} are not {size} finite numbers",)), None
    if np.isinf(deficit):
        found = replace(found, reasons=("the Hessian is not symmetric, or too large to test that it is convex",))
    if duals is None:
        duals, origin = recover_duals(program, delta, found.tol, deficit), "recovered"
        if duals is None:
            text = "no multipliers were given, and none could be recovered"
            return replace(found, reasons=(*found.reasons, text)), None
    duals = np.asarray(duals, dtype=np.float64)
    known = dual_bound(program, delta, duals, deficit=deficit)
    seen = residuals(program, delta, duals, solution.bound_duals if origin == "back end" else None)
    found = replace(
        found,
        gap=known.gap,
        bound=found.objective - known.gap,
        reach=known.reach,
        duals=origin,
        bound_from="certificate" if np.isfinite(known.gap) else "none",
        row_duals=known.row_duals,
        dual_residual=seen.stationarity,
        relative_dual_residual=seen.relative_stationarity,
        sign_violation=seen.sign_violation,
        complementarity=seen.complementarity,
    )
    return found, known


def _exactly(program: Program, delta: Array, found: Certificate, known: DualBound | None) -> Certificate:
    """The same violation, objective and bound, without rounding."""
    violation, objective = exact_violation(program, delta), exact_objective(program, delta)
    found = replace(
        found, violation=round_up(violation), objective=round_up(objective), reach=float("inf"), bound_from="none"
    )
    bound = None if known is None else exact_bound(program, known)
    if bound is None:
        return replace(found, bound=float("-inf"), gap=float("inf"))
    return replace(
        found,
        bound=round_down(bound),
        gap=round_up(objective - bound),
        bound_from="certificate",
        interval=(bound, objective),
    )


def _claimed_bound(program: Program, solution: Solution, delta: Array, found: Certificate) -> Certificate:
    """For mixed-integer programs the back end's bound counts where it is better and not refuted; then the scale."""
    scale = objective_scale(program, delta)
    claimed = float(solution.bound)
    if program.integer is not None and np.isfinite(claimed) and claimed > found.bound:
        if claimed - found.objective > found.tol * scale and found.relative_violation <= found.tol:
            text = f"the back end claims a lower bound of {claimed:.9g}, above the objective of its own point"
            found = replace(found, reasons=(*found.reasons, text))
        else:
            found = replace(found, bound=claimed, gap=found.objective - claimed, bound_from="back end", interval=None)
    return replace(found, relative_gap=abs(found.gap) / scale)


def _judged(program: Program, found: Certificate) -> Certificate:
    """The verdict, and the reasons why it is not a better one."""
    reasons, tol = list(found.reasons), found.tol
    if not found.relative_violation <= tol:
        text = f"violation {found.violation:.3g} ({found.relative_violation:.3g} relative) is above {tol:.3g}"
        return replace(found, reasons=(text, *reasons))
    mixed = program.integer is not None
    for name, value in (
        ("gap", found.relative_gap),
        ("dual residual", found.relative_dual_residual),
        ("multipliers of infinite sides", found.sign_violation),
    ):
        if not value <= tol and (name == "gap" or not (mixed or found.duals == "none")):
            reasons.append(f"{name}: {value:.3g} relative is above {tol:.3g}")
    if mixed:
        reasons.append("the bound of a mixed-integer program rests on its back end's search")
    verdict = CertificateVerdict.FEASIBLE if reasons else CertificateVerdict.OPTIMAL
    return replace(found, verdict=verdict, reasons=tuple(reasons))
