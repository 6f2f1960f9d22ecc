"""Check a spec: every goal and bound on the given network; nothing is changed or written."""

from __future__ import annotations

from pathlib import Path

from torch import nn

from repairopt.interfaces.specfile.claim_rows import all_met
from repairopt.interfaces.specfile.measure import measure_claims
from repairopt.interfaces.specfile.opened import open_spec
from repairopt.patches import Patch, fingerprint

from .results import CheckResult


def check_spec_file(
    source: str | Path, *, patch: str | Path | None = None, strict: bool = False, model: nn.Module | None = None
) -> CheckResult:
    """Measure goal and bounds of a spec on its network, with a patch applied, or on ``model``; nothing is changed."""
    spec = open_spec(source)
    judged = spec.model if model is None else model
    if patch is not None:
        judged = Patch.load(patch).apply(judged)
    claims = measure_claims(spec, judged)
    met = all_met(claims, strict)
    return CheckResult(
        exit_code=0 if met else 1,
        spec=str(spec.file.path),
        spec_hash=spec.file.hash,
        met=met,
        claims=claims,
        rows={name: len(rows) for name, rows in spec.data.sets.items()},
        weights=fingerprint(judged).total,
    )
