"""SoftVote: two networks whose probabilities are mixed."""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from repairopt.patches import AsLogits, wrap


class SoftVote(nn.Module):
    """Logarithms of the weighted mean of the probabilities of two networks.

    Attributes:
        network: The original.
        other: The repaired one.
        weight: Weight of the repaired one, between 0 and 1.

    References:
        Kittler, Hatef, Duin and Matas, On Combining Classifiers, 1998 (the sum rule).
    """

    def __init__(self, network: nn.Module, other: nn.Module, weight: float) -> None:
        super().__init__()
        if not 0 < weight < 1:
            raise ValueError(f"weight={weight!r}; expected a number between 0 and 1")
        self.network, self.other, self.weight, self.training = network, other, float(weight), network.training

    def forward(self, inputs: Tensor) -> Tensor:
        """Logarithms of probabilities ``(N, k)``."""
        first = torch.log_softmax(self.network(inputs.clone()), 1) + math.log(1 - self.weight)
        second = torch.log_softmax(self.other(inputs), 1) + math.log(self.weight)
        return torch.logsumexp(torch.stack([first, second]), 0)

    @classmethod
    def from_parts(cls, network: nn.Module, settings: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> SoftVote:
        """The module of a wrapped patch, see :func:`repairopt.patches.wrap`.

        Args:
            network: The original; the other network is a copy of it.
            settings: ``weight``; where the other network is wrapped itself, its ``kind`` and ``settings``.
            tensors: Weights of the other network that differ, by name, or what its wrapper adds.

        Raises:
            ValueError: A tensor does not fit.
        """
        return cls(network, other_network(network, settings, tensors), settings["weight"])


def other_network(network: nn.Module, settings: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> nn.Module:
    """The repaired network of a vote: a copy of the original with other tensors, or in a wrapper of its own.

    Args:
        network: The original.
        settings: Where the other network is wrapped, its ``kind`` and ``settings``.
        tensors: Its weights that differ, by name, or what its wrapper adds.

    Raises:
        ValueError: A tensor does not fit.
    """
    other = copy.deepcopy(network)
    plain: nn.Module = other.network if isinstance(other, AsLogits) else other
    if settings.get("kind"):
        made = wrap(settings["kind"], plain, settings["settings"], tensors)
        return AsLogits(made, other.form) if isinstance(other, AsLogits) else made
    own = plain.state_dict()
    for name, tensor in tensors.items():
        if own[name].shape != tensor.shape:
            raise ValueError(f"'{name}' has shape {tuple(tensor.shape)}, the network's {tuple(own[name].shape)}")
        with torch.no_grad():
            own[name].copy_(tensor)
    return other
