"""The proof in the folder of a run, checked, so that what a spec says of regions is measured by it."""

from __future__ import annotations

from pathlib import Path

from torch import nn

from repairopt.errors import ProofError, UnsupportedError
from repairopt.interfaces.specfile.opened import OpenSpec
from repairopt.program import ProofStatus
from repairopt.specify import KeepRegions, UnprovedRegions, measured
from repairopt.verify import check_deployed, load_proof

from .run_folder import PROOF

SAMPLES = 10_000


def take_proof(spec: OpenSpec, model: nn.Module, folder: Path) -> tuple[bool, str] | None:
    """Check the proof of regions in a folder on the network of a patch, and let the statements of the spec know of it.

    Args:
        spec: Its statements.
        model: The network that the patch leads to.
        folder: Of the run.

    Returns:
        Whether it proves its regions, and a line; None where there is none, or the spec speaks of no regions.
    """
    statements = (spec.goal, *spec.bounds, *spec.held_out, *spec.watch)
    items = [measured(one.item) for one in statements if one is not None]
    items = [one for one in items if isinstance(one, UnprovedRegions | KeepRegions)]
    if not items or not (folder / PROOF).is_file():
        return None
    try:
        proof = load_proof(folder / PROOF)
        found = check_deployed(model, proof, samples=SAMPLES)
    except (ProofError, UnsupportedError) as error:
        return False, str(error)
    for item in items:
        item.learn(model, proof, found)
    text = f"{found.leaves} boxes, {found.splits} split further, {found.execution}: {found.status}"
    return found.status is ProofStatus.PROVED, text
