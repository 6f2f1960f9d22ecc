"""Look at a patch, and write the report of a run anew."""

from __future__ import annotations

import hashlib
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from repairopt.errors import ResultError
from repairopt.patches import AuditLog, Patch, load_patch

from .results import PatchResult, ReportResult
from .run_folder import AUDIT, EVIDENCE, PATCH, PROOF, REPORT, RESULT, read_result

WRITER, PICTURES = (
    "repairopt.report.repair",
    "repairopt.report.pictures.evidence",
)  # loaded late, so that verify runs without


def write_report(source: Any, path: Path, claims: Any = (), evidence: Any = None) -> str:
    """Write ``report.html`` of a repair or of the folder of a run; returns what is missing in it, or nothing.

    ``claims`` and ``evidence`` are those of a repair, as the spec speaks of them.
    """
    if evidence is not None:
        import_module(PICTURES).save_evidence(evidence, path.parent)
    import_module(WRITER).write_html(source, path, claims=claims, evidence=evidence)
    if find_spec("matplotlib") is None:
        return "report.html has no pictures: they need matplotlib. Install with: pip install repairopt[report]"
    return ""


def file_hashes(folder: Path) -> dict[str, str]:
    """SHA-256 of patch, proof of regions, report and its pictures in the folder of a run, of those that are there."""
    found = {}
    for path in (folder / name for name in (PATCH, PROOF, REPORT, EVIDENCE)):
        if path.is_file():
            with path.open("rb") as file:
                found[path.name] = hashlib.file_digest(file, "sha256").hexdigest()
    return found


def show_patch(path: str | Path) -> PatchResult:
    """What a patch says: its changes, hashes and origin."""
    patch = load_patch(path)
    changes: list[dict[str, Any]] = []
    if isinstance(patch, Patch):
        for change in patch.changes:
            kind, figures = change.difference.kind, {"count": change.count, "largest": change.largest}
            form = {"names": list(change.names), "form": change.difference.form, "shape": list(kind.shape)}
            changes.append({**form, **figures})
    else:
        for name, tensor in patch.tensors.items():
            added = {"names": [name], "form": f"added by {patch.kind}"}
            changes.append({**added, "shape": list(tensor.shape), "count": tensor.numel()})
    return PatchResult(
        exit_code=0,
        patch=str(path),
        content_hash=patch.content_hash,
        base=patch.base.total,
        repaired=patch.repaired.total,
        changes=changes,
        info=patch.info.to_dict(),
    )


def report_folder(folder: str | Path, out: str | Path | None = None) -> ReportResult:
    """Write the report of a finished run; ``report.html`` in its folder by default."""
    path = Path(folder)
    if not path.is_dir():
        raise ResultError(f"'{path}': there is no such folder. `repairopt solve SPEC --out DIR` makes one.")
    read_result(path / RESULT)
    target = path / REPORT if out is None else Path(out)
    problem = write_report(path, target)
    if problem:
        raise ResultError(problem)
    if target == path / REPORT and (path / AUDIT).is_file():
        AuditLog(path / AUDIT).append("report written", hashes={REPORT: file_hashes(path)[REPORT]})
    return ReportResult(exit_code=0, out=str(target))
