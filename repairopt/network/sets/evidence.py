"""What is known of regions under a network: attacked from above, bounded from below with some splits."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from repairopt.errors import UnsupportedError
from repairopt.network.tracing import network_name

from .frames import Frame
from .leaves import LastLayer, Leaves, own_last_layer
from .network_steps import NetworkSteps
from .region_attack import RegionSearch, attack_regions
from .row_groups import RowGroups


@dataclass(frozen=True, eq=False)
class Evidence:
    """What is known of each of ``Q`` regions.

    Attributes:
        least: Smallest value that an attack found, ``(Q,)``: the worst group's best row; at most 0 is a counterexample.
        bound: Lower bound of that value on the whole region, ``(Q,)``.
        volume: Share of each region's volume that is proved, ``(Q,)``.
        leaves: The boxes that the regions are divided into, ``lower`` and ``upper`` of each region, ``(L, 2, d)``; of
            weights where a region is a hull (:class:`.frames.Frame`).
        slopes: Lower slopes of all activations on the boxes of each region, ``(L, n)`` from 0 to 255; empty where the
            usual ones prove it.
    """

    least: Tensor
    bound: Tensor
    volume: Tensor
    leaves: tuple[Tensor, ...]
    slopes: tuple[Tensor, ...] = ()

    @property
    def proved(self) -> Tensor:
        """Which regions are proved, ``(Q,)``."""
        return self.bound > 0

    @classmethod
    def joined(cls, parts: Sequence[Evidence]) -> Evidence:
        """What is known of the regions of several parts."""
        least, bound, volume = (
            torch.cat([getattr(part, name) for part in parts]) for name in ("least", "bound", "volume")
        )
        slopes = tuple(slope for part in parts for slope in part.slopes) if all(part.slopes for part in parts) else ()
        return cls(least, bound, volume, tuple(leaves for part in parts for leaves in part.leaves), slopes)

    def part(self, regions: slice) -> Evidence:
        """What is known of some of the regions."""
        own = (self.least[regions], self.bound[regions], self.volume[regions], self.leaves[regions])
        return Evidence(*own, self.slopes[regions])


def examine_regions(
    network: NetworkSteps,
    lower: Tensor,
    upper: Tensor,
    rows: RowGroups,
    search: RegionSearch,
    splits: int,
    frame: Frame | None = None,
) -> Evidence:
    """Attack the regions, then divide those without a counterexample until they are proved or splits are used up.

    Args:
        network: The network.
        lower: Boxes, ``(Q, d)``.
        upper: ``(Q, d)``.
        rows: What must hold of the outputs on each.
        search: How hard the attack looks.
        splits: Splits of leaves at most.
        frame: What the boxes stand for, where they are not the inputs themselves.
    """
    last, matrix, offset = own_last_layer(network)
    _, _, least = attack_regions(network, lower, upper, rows, search, frame=frame)
    inner = rows.through(matrix, offset)
    leaves = Leaves.of(network, lower, upper, inner, torch.arange(len(lower)), frame)
    return evidence_of(divided(leaves, last, least > 0, splits), last, least)


def divided(leaves: Leaves, last: LastLayer, wanted: Tensor, splits: int) -> Leaves:
    """Leaves of the wanted regions ``(Q,)`` split, the worst first, until all are proved or splits are used up."""
    bound = leaves.least(last)
    while splits > 0:
        open_ = torch.nonzero((bound <= 0) & wanted[leaves.region])[:, 0]
        if not len(open_):
            break
        open_ = open_[bound[open_].argsort()[: min(splits, 512)]]
        own = leaves[open_]
        halves = own.halved(last)
        kept = torch.ones(len(leaves), dtype=torch.bool)
        kept[open_] = False
        leaves, bound = leaves[kept].join(halves), torch.cat([bound[kept], halves.least(last)])
        splits -= len(open_)
    return leaves


def evidence_of(leaves: Leaves, last: LastLayer, least: Tensor) -> Evidence:
    """What leaves prove with a last layer."""
    found, count = leaves.least(last), len(least)
    bound = torch.full((count,), torch.inf, dtype=torch.float64).scatter_reduce(0, leaves.region, found, "amin")
    volume = torch.ones(count, dtype=torch.float64)
    if bool((bound <= 0).any()):
        share = torch.zeros(count, dtype=torch.float64).index_add(0, leaves.region, leaves.volume() * (found > 0))
        volume = torch.where(bound > 0, volume, share)
    both = torch.stack([leaves.boxes.lower, leaves.boxes.upper], 1)
    own: tuple[Tensor, ...] = tuple(both[leaves.region == q] for q in range(count))
    if leaves.boxes.shares is None:
        return Evidence(least, bound, volume, own)
    slopes = (torch.cat(list(leaves.boxes.shares.values()), 1) * 255).round().to(torch.uint8)
    return Evidence(least, bound, volume, own, tuple(slopes[leaves.region == q] for q in range(count)))


def digest_of(network: nn.Module, parameters: Mapping[str, Tensor] | None = None) -> str:
    """SHA-256 of all parameters and buffers, in their order, some replaced by name."""
    digest = hashlib.sha256()
    given = parameters or {}
    for name, value in (*network.named_parameters(), *network.named_buffers()):
        tensor = given.get(name, value).detach().cpu().contiguous()
        digest.update(str((tensor.dtype, tuple(tensor.shape))).encode())
        digest.update(tensor.numpy().tobytes())
    return digest.hexdigest()


def input_shape(network: nn.Module, shape: tuple[int, ...] | None, size: int) -> tuple[int, ...]:
    """The shape of one input of ``size`` numbers: what is stated, else flat, else one that the network runs on.

    Raises:
        UnsupportedError: The network runs on none of the usual ones.
    """
    side = round(size**0.5)
    colored = round((size / 3) ** 0.5)
    usual: list[tuple[int, ...]] = [(size,), (1, 1, size), (1, size), (size, 1, 1)]
    usual += [(1, side, side)] if side * side == size else []
    usual += [(3, colored, colored)] if 3 * colored * colored == size else []
    first = next(network.parameters(), torch.zeros(0))
    for one in (shape,) if shape is not None else usual:
        try:
            with torch.no_grad():
                found = network(torch.zeros(3, *one, dtype=first.dtype, device=first.device))
        except (RuntimeError, TypeError, ValueError, IndexError):
            continue
        if isinstance(found, Tensor) and found.ndim == 2 and len(found) == 3:
            return one
        if not isinstance(found, Tensor):
            raise UnsupportedError(
                f"network {network_name(network)}: returns a {type(found).__name__}; what is said of regions is said "
                f"of one tensor of outputs (N, k). Give a module whose forward returns that alone."
            )
    tried = ", ".join(map(str, dict.fromkeys(usual if shape is None else [shape])))
    raise UnsupportedError(
        f"network {network_name(network)}: runs on no inputs of {size} numbers in the "
        f"shapes {tried}. Regions need as many numbers as an input has; where it has another shape, pass shape= of one."
    )
