"""A report as what a patch says of itself, and as lines of an audit log."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from repairopt.patches import AuditLog, LogEnd, digest_tensor, fingerprint, library_versions

LOGGED = ("verdict", "status", "stopped", "measures", "checks", "trust", "gave_way", "seconds", "cpu_seconds", "notes")
SPLITS = {False: "repair", True: "held-out"}


def patch_info(report: Any) -> dict[str, Any]:
    """Fields of :class:`repairopt.patches.PatchInfo` that a report of a repair knows: all but ``spec_hash``."""
    return {
        "solver": ", ".join(dict.fromkeys(entry.solver for entry in report.rounds if entry.solver)),
        "seed": report.seed,
        "claims": claims_from_report(report),
        "notes": " ".join([f"Verdict {report.verdict}. Method {report.method}.", *report.notes]),
        "versions": library_versions() | report.versions,
    }


def claims_from_report(report: Any) -> list[dict[str, Any]]:
    """Claims that a report of a repair supports.

    One for each measure, each constraint and each set of labelled data, those on held-out data included, met or not.
    Every figure was counted on the true network; none is a proof, and none has an interval.
    """
    claims: list[dict[str, Any]] = []
    for measure in report.verification.measures:
        met = None if measure.target is None else measure.after <= measure.target
        figures = {"value": measure.after, "before": measure.before, "bound": measure.target, "met": met}
        basis = "counted on the true network"
        claims.append({"name": measure.name, **figures, "data": SPLITS[measure.held_out], "basis": basis})
    for check in report.verification.checks:
        figures = {"value": check.failed, "before": int((check.before < 0).sum()), "bound": check.allowed}
        basis = f"{check.unit} that fail, of {check.applied}; " + ("a wish" if check.soft else "a hard constraint")
        known = {"met": check.holds, "data": SPLITS[check.held_out], "basis": basis}
        claims.append({"name": check.constraint, **figures, **known})
    for counts in report.verification.labels:
        figures = {"value": counts.accuracy[1], "before": counts.accuracy[0], "bound": None, "met": None}
        name, basis = f"accuracy on the inputs of '{counts.name}'", f"{counts.count} labelled inputs"
        claims.append({"name": name, **figures, "data": SPLITS[counts.held_out], "basis": basis})
    return [{key: _finite(value) for key, value in claim.items()} for claim in claims]


def record_repair(
    log: AuditLog, report: Any, *, model: nn.Module | None = None, inputs: Mapping[str, Tensor] | None = None
) -> LogEnd:
    """Log a finished repair from its report: where it started from, each round, the verdict.

    To have each round on the disk as soon as it is done, log it from ``solve_repair(..., progress=...)`` instead:
    ``progress=lambda entry: log.append("round", **vars(entry))``.

    Args:
        log: To append to.
        report: Of :func:`repairopt.solve_repair`.
        model: The model that was repaired; the SHA-256 of its weights is logged.
        inputs: Data of the repair by name; the SHA-256 of each is logged.

    Returns:
        The end of the chain: one line for the start, one for each solve with its decision, one for the outcome, in
        which every constraint stands with its failing samples and its smallest margin.
    """
    whole = report.to_dict()
    log.append(
        "repair started",
        model=None if model is None else fingerprint(model).total,
        inputs={name: digest_tensor(tensor) for name, tensor in (inputs or {}).items()},
        seed=report.seed,
        versions=report.versions,
        method=report.method,
        weights=report.location.describe(),
    )
    for number, entry in enumerate(whole["rounds"]):
        log.append("round", round=number, **entry)
    return log.append("repair ended", **{key: whole[key] for key in LOGGED})


def _finite(value: Any) -> Any:
    return None if isinstance(value, float) and not math.isfinite(value) else value
