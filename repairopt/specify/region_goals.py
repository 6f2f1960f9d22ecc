"""Regions as a goal and as a bound: which share is not proved, and the certified value of each."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor, nn

from repairopt.errors import SpecificationError
from repairopt.network import (
    Evidence,
    Frame,
    NetworkSteps,
    Predict,
    RegionSearch,
    RowGroups,
    digest_of,
    examine_regions,
    input_shape,
)
from repairopt.program import ProofStatus, ProofVerdict, RegionProof

from .contracts import Unstated
from .measures import DOWN, Argument, Given, Measure
from .regions import Region, as_regions
from .robustness import network_of

SPLITS = 200  # of leaves, where a network is examined that no method has a proof for
REMEMBERED = 16  # networks whose evidence is kept


def _make_goal(kind: Any, given: Given) -> Any:
    rows = given.rows_of(given.arguments["keep"])
    return kind(given.regions(), target=given.limit(), keep=rows.inputs, name=given.name)


@dataclass(frozen=True, eq=False)
class _Regions:
    """Regions, and what is known of them under the networks that were examined."""

    regions: Any

    def evidence(self, predict: Predict) -> Evidence:
        """What is known of each region: a proof that a method left, or what an attack and some splits find."""
        own: Any = self
        network, parameters = network_of(predict, own.name)
        key = digest_of(network, parameters)
        if key not in own.known:
            steps = self.steps(network, parameters)
            lower, upper = self.boxes
            with torch.no_grad():
                found = examine_regions(steps, lower, upper, self.rows, own.search, own.splits, self.frame)
            self.remember(key, found)
        known: Evidence = own.known[key]
        return known

    def remember(self, key: str, evidence: Evidence) -> None:
        """Keep what is known of a network with a digest (:func:`repairopt.network.digest_of`)."""
        known: dict[str, Evidence] = vars(self)["known"]
        known[key] = evidence
        while len(known) > REMEMBERED:
            known.pop(next(iter(known)))

    def learn(self, network: nn.Module, proof: RegionProof, verdict: ProofVerdict) -> None:
        """Keep what the check of a proof found for a network, if it is a proof of these regions."""
        places = [place_in(proof, one) for one in self.regions]
        if any(place is None for place in places):
            return
        count = len(places)
        proved = verdict.status is ProofStatus.PROVED
        both = np.stack([proof.leaf_lower, proof.leaf_upper], 1)
        found = Evidence(
            torch.full((count,), verdict.sampled_least, dtype=torch.float64),
            torch.full((count,), verdict.least if proved else 0.0, dtype=torch.float64),
            torch.full((count,), verdict.share, dtype=torch.float64),
            tuple(torch.from_numpy(both[proof.leaf_box == place]) for place in places),
        )
        self.remember(digest_of(network), found)

    def steps(self, network: nn.Module, parameters: Mapping[str, Tensor] | None = None) -> NetworkSteps:
        """The network as steps, on inputs of the shape of the regions."""
        first = self.regions[0]
        steps = NetworkSteps(network, input_shape(network, first.shape, first.lower.numel()))
        if parameters:
            steps.refresh({name: value.double().cpu() for name, value in parameters.items()})
        if steps.size(steps.output) != first.matrix.shape[1]:
            raise SpecificationError(
                f"region '{first.name}': rows speak of {first.matrix.shape[1]} outputs; the network has "
                f"{steps.size(steps.output)}."
            )
        return steps

    @property
    def boxes(self) -> tuple[Tensor, Tensor]:
        """Lower and upper inputs of the regions, or parameters where some are polytopes, ``(Q, d)`` each."""
        if self.frame is None:
            return torch.stack([one.lower for one in self.regions]), torch.stack([one.upper for one in self.regions])
        size = max(one.parameters for one in self.regions)
        both = [one.framed(size)[:2] for one in self.regions]
        return torch.stack([low for low, _ in both]), torch.stack([high for _, high in both])

    @property
    def around(self) -> tuple[Tensor, Tensor]:
        """The boxes of inputs around the regions, ``(Q, d)`` each."""
        return torch.stack([one.lower for one in self.regions]), torch.stack([one.upper for one in self.regions])

    @property
    def frame(self) -> Frame | None:
        """What :attr:`boxes` stand for where some region is a polytope; else None."""
        hull = torch.tensor([one.vertices is not None for one in self.regions])
        if not bool(hull.any()):
            return None
        size = max(one.parameters for one in self.regions)
        return Frame(torch.stack([one.framed(size)[2] for one in self.regions]), hull, torch.arange(len(hull)))

    @property
    def rows(self) -> RowGroups:
        """What must hold on each."""
        return RowGroups.of([one.rows for one in self.regions])

    def details(self, predict: Predict) -> dict[str, float]:
        """Certified and attacked values, and the share of the volume that is proved."""
        found = self.evidence(predict)
        return {
            "proved regions": float(found.proved.sum()),
            "regions with a counterexample": float((found.least <= 0).sum()),
            "least attacked value (upper bound)": float(found.least.min()),
            "least certified value (lower bound)": float(found.bound.min()),
            "share of the volume proved": float(found.volume.mean()),
        }


def place_in(proof: RegionProof, region: Region) -> int | None:
    """The number of the box of a proof that is a region, with the same rows; None where there is none."""
    size, framed = proof.lower.shape[1], proof.vertices is not None
    if region.parameters > size or (not framed and region.vertices is not None):
        return None
    sides: list[Any] = [part.numpy() for part in region.framed(size)]
    own = [*sides[: 3 if framed else 2], *(part.numpy() for part in region.rows)]
    for place, rows in enumerate(proof.rows):
        other = [proof.lower[place], proof.upper[place], rows.matrix, rows.offset, rows.group]
        if framed:
            other.insert(2, proof.vertices[place])
        same_kind = not framed or bool(proof.hull[place]) == (region.vertices is not None)
        if same_kind and all(np.array_equal(a, b) for a, b in zip(own, other, strict=True)):
            return place
    return None


def is_of_regions(goal: Any) -> bool:
    """Whether a goal is that regions are proved."""
    return isinstance(goal, UnprovedRegions)


@dataclass(frozen=True, eq=False)
class UnprovedRegions(_Regions):
    """Share of regions that are not proved to hold for every input in them.

    A region counts as proved where lower bounds on boxes that it is divided into are all above 0. The attack's value is
    an upper bound, see :meth:`details`. Repaired by the method ``regions`` unless another one is named.

    Attributes:
        regions: A :class:`Region`, or a list of them.
        target: Share that may stay unproved.
        keep: Inputs ``(N, ...)`` on which a repair keeps the outputs, beside those of data and constraints.
        search: How hard an attack looks for counterexamples.
        splits: Splits of boxes, at most, where a network is examined for which no method has left a proof.
        name: What the report calls it.
    """

    method: ClassVar[str] = "regions"  # the method that repairs it, where none is named
    measures = (
        Measure(
            "regions_proved",
            "Share of the regions of the spec that are proved for every input, by bounds on boxes that they are "
            "divided into.",
            "regions_proved() >= 1",
            relations=DOWN,
            arguments=(Argument("keep", "data", "rows on which the repair keeps the outputs", "repair"),),
            make=_make_goal,
            way="1 - ",
        ),
    )

    target: float = Unstated(0.0)
    keep: Any = None
    search: RegionSearch = RegionSearch()
    splits: int = SPLITS
    name: str = "regions not proved"
    known: dict[str, Evidence] = field(default_factory=dict, init=False, repr=False)
    is_share: ClassVar[bool] = True

    def __post_init__(self) -> None:
        object.__setattr__(self, "regions", as_regions(f"'{self.name}'", self.regions))

    def value(self, predict: Predict) -> Tensor:
        """Share of the regions that are not proved."""
        return 1 - self.evidence(predict).proved.double().mean()


@dataclass(frozen=True, eq=False)
class KeepRegions(_Regions):
    """Regions that must be proved, as a bound: the margin of each is its certified value.

    The attributes are those of :class:`UnprovedRegions`, without a target.
    """

    search: RegionSearch = RegionSearch()
    splits: int = SPLITS
    name: str = "regions"
    known: dict[str, Evidence] = field(default_factory=dict, init=False, repr=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "regions", as_regions(f"constraint '{self.name}'", self.regions))

    def margins(self, predict: Predict) -> Tensor:
        """Certified value of each region, ``(Q,)``; below 0 where it is 0."""
        bound = self.evidence(predict).bound
        return torch.where(bound > 0, bound, bound.clamp(max=-torch.finfo(bound.dtype).tiny))


def as_region_goal(goal: Any) -> Any:
    """Regions, or a list of them, as a property; anything else as it is."""
    several = isinstance(goal, list | tuple) and len(goal) and all(isinstance(one, Region) for one in goal)
    return UnprovedRegions(goal) if isinstance(goal, Region) or several else goal
