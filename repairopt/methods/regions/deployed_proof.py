"""The proof of a repaired network: its leaves, checked by NumPy alone on the weights as they are deployed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import nn

from repairopt.errors import ProofError, UnsupportedError
from repairopt.network import Evidence
from repairopt.patches import fingerprint
from repairopt.program import OutputRows, ProofStatus, ProofVerdict, RectifierLayer, RegionProof
from repairopt.specify import Region, UnprovedRegions
from repairopt.verify import check_deployed, execution_of, layered_copy

PROVED = 1e-12  # bound of regions that the check alone proves: above 0
SAMPLES = 100_000  # points at which the network is run


@dataclass(frozen=True, eq=False)
class CheckedProof:
    """A proof and what its check found; ``reason`` says why there is none.

    Attributes:
        proof: Boxes, rows and leaves.
        verdict: What the check found.
        reason: Why it was not checked, or empty.
    """

    proof: RegionProof | None
    verdict: ProofVerdict | None
    reason: str = ""

    @property
    def proved(self) -> bool:
        """Whether the check proved all regions."""
        return self.verdict is not None and self.verdict.status is ProofStatus.PROVED

    def describe(self) -> str:
        """What is known, in a line."""
        if self.verdict is None:
            return f"not checked: {self.reason}"
        found = self.verdict
        text = f"{found.leaves} boxes, {found.splits} split further, {found.execution}: {found.status}"
        return text if self.proved else f"{text}; {100 * found.share:.6f} % of the volume is proved"


def check_repaired(
    model: nn.Module,
    regions: Sequence[Region],
    evidence: Evidence,
    shape: tuple[int, ...],
    *,
    time_limit: float | None = None,
    seed: int = 0,
) -> CheckedProof:
    """Make the proof of a repaired model from the leaves of the search, and check it.

    Args:
        model: The model as deployed.
        regions: What is proved of it.
        evidence: The leaves of each region.
        shape: Of one input.
        time_limit: Seconds of processor time for its bounds.
        seed: Of the points at which the model is run.
    """
    leaves = torch.cat(evidence.leaves).numpy()
    region = np.repeat(np.arange(len(regions)), [len(own) for own in evidence.leaves])
    whole = UnprovedRegions(regions)
    lower, upper = (side.numpy() for side in whole.boxes)
    try:
        proof = RegionProof(
            lower,
            upper,
            tuple(OutputRows(*(part.numpy() for part in one.rows)) for one in regions),
            leaves[:, 0],
            leaves[:, 1],
            region,
            fingerprint(model).total,
            execution_of(model),
            shape,
            *vertices_of(whole),
            _slopes(model, evidence, shape),
        )
        found = check_deployed(model, proof, samples=SAMPLES, time_limit=time_limit, seed=seed)
    except (ProofError, UnsupportedError) as error:
        return CheckedProof(None, None, str(error))
    return CheckedProof(proof, found)


def can_check(model: nn.Module, shape: tuple[int, ...]) -> bool:
    """Whether a proof of a model can be checked: its layers are among those that the check knows."""
    try:
        layered_copy(model, shape)
    except (ProofError, UnsupportedError):
        return False
    return True


def _slopes(model: nn.Module, evidence: Evidence, shape: tuple[int, ...]) -> Any:
    """Lower slopes of activations where these are the rectifiers that the check sees; else None."""
    if not evidence.slopes:
        return None
    found = torch.cat(evidence.slopes).numpy()
    layers = layered_copy(model, shape).layers
    return found if sum(one.size for one in layers if isinstance(one, RectifierLayer)) == found.shape[1] else None


def vertices_of(regions: UnprovedRegions) -> tuple[Any, Any]:
    """Vertices and hulls of a proof of regions; None where all are boxes of inputs."""
    frame = regions.frame
    return (None, None) if frame is None else (frame.vertices.numpy(), frame.hull.numpy())


def as_checked(evidence: Evidence, checked: CheckedProof, regions: Sequence[Region]) -> Evidence:
    """What is known after the check: what it proved is proved, and regions in which it left boxes open are not."""
    if checked.verdict is None:
        return evidence
    if checked.proved:  # it splits boxes that the search left open
        volume = torch.ones_like(evidence.volume)
        return replace(evidence, bound=evidence.bound.clamp(min=PROVED), volume=volume)
    found = checked.verdict
    mask = torch.zeros(len(regions), dtype=torch.bool)
    mask[torch.as_tensor(found.open_box)] = True
    if found.point is not None:
        mask[found.point_box] = True
    bound = torch.where(mask, evidence.bound.clamp(max=0.0), evidence.bound)
    volume = torch.where(mask, torch.full_like(evidence.volume, found.share).minimum(evidence.volume), evidence.volume)
    return replace(evidence, bound=bound, volume=volume)
