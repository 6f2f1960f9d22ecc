"""DeepRepair: the style of failing images is transferred to training images inside of AugMix."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from repairopt.methods.settings import Expected
from repairopt.methods.task import Task

from .augment import AugMix, Consistent, Recipe, value_range
from .fit import Pair
from .image_operations import OPERATIONS, Operation, mix_chains
from .style import cluster_chances, wavelet_transfer
from .trainee import Trainee


@dataclass(frozen=True, kw_only=True)
class DeepRepair(AugMix):
    """Training as AugMix does it, where chains may begin with the style of a failing image.

    Failing images are divided into clusters; each is an operation that gives an image the style of a member, which is
    drawn with a chance that falls with its distance from the center. The first operation of a chain may be one of
    these, later ones are those of AugMix. Failing images are references of style alone.

    Attributes:
        clusters: How many; 0 for none, which draws references uniformly.
        weight: ``"printed"``, the normalized formula of the paper, or ``"softmax"`` of distances.
        transfer: From images and references ``(N, C, H, W)``, both from 0 to 1, to images with the references' style;
            None for whitening and coloring of wavelet bands. A network with trained weights, such as WCT2, goes here.

    References:
        Yu et al., DeepRepair: Style-Guided Repairing for Deep Neural Networks in the Real-World Operational
        Environment, IEEE Transactions on Reliability 2022. The printed probabilities sum to more than 1 and are
        normalized here; the price of the divergence and magnitudes, which the paper leaves open, are those of AugMix.
    """

    systems: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "DeepRepair (DR, clustered)": {},
        "DeepRepair no-cluster": {"clusters": 0},
    }

    include_failures: bool = False
    clusters: int = 5
    weight: str = "printed"
    transfer: Callable[[Tensor, Tensor], Tensor] | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        self.chosen("weight", ("printed", "softmax"))

    def expected(self) -> dict[str, Expected]:
        """What the settings may be."""
        return {**super().expected(), "clusters": Expected(whole=True)}

    def recipe(self, task: Task, net: Trainee, learned: Pair, failing: Pair, draw: torch.Generator) -> Recipe:
        """Mixtures whose chains may begin with a style."""
        span = value_range(torch.cat([learned[0], failing[0]]))
        images = ((failing[0] - span[0]) / (span[1] - span[0])).clamp(0, 1)
        found = cluster_chances(images, self.clusters, task.seed, self.weight)
        first = (*OPERATIONS, *(self.style(images[own.to(images.device)], chance) for own, chance in found))
        numbers = np.random.default_rng(task.seed)

        def mixed(plain: Tensor) -> Tensor:
            weights = torch.from_numpy(numbers.dirichlet([self.alpha] * self.width, len(plain)))
            keep = torch.from_numpy(numbers.beta(self.alpha, self.alpha, len(plain)))
            return mix_chains(plain, weights, keep, self.severity, draw, first)

        return Consistent(net, draw, span, mixed, self.consistency)

    def style(self, references: Tensor, chance: Tensor) -> Operation:
        """The operation that transfers the style of references drawn with these chances."""
        transfer = self.transfer or wavelet_transfer

        def operation(images: Tensor, level: Tensor, draw: torch.Generator) -> Tensor:
            drawn = torch.multinomial(chance, len(images), replacement=True, generator=draw)
            return transfer(images, references[drawn.to(references.device)])

        return operation
