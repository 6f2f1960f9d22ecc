"""A report as what a patch says of itself, and as lines of an audit log."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from repairopt.patches import AuditLog, LogEnd, digest_tensor, fingerprint, library_versions
from repairopt.specify import beyond

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
    """Claims that a report supports, one for each measure, constraint and labelled set; counted, not proved."""
    claims: list[dict[str, Any]] = []
    for measure in report.verification.measures:
        met = None if measure.target is None else not beyond(measure.after, measure.target)
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
    if report.proof_verdict is not None:
        found = report.proof_verdict
        figures = {"value": found.share, "before": None, "bound": 1.0, "met": found.status == "proved"}
        basis = f"proof with {found.leaves} boxes, checked for {found.execution}: {found.status}"
        claims.append({"name": "volume of the regions proved", **figures, "data": "every input", "basis": basis})
    return [{key: _finite(value) for key, value in claim.items()} for claim in claims]


def record_repair(
    log: AuditLog, report: Any, *, model: nn.Module | None = None, inputs: Mapping[str, Tensor] | None = None
) -> LogEnd:
    """Log a finished repair from its report: one line for the start, one for each solve, one for the outcome.

    The SHA-256 of the weights of ``model``, which was repaired, and of each of the ``inputs`` by name is logged. To
    have each round on the disk as soon as it is done, log it from ``solve_repair(..., progress=...)``.
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
