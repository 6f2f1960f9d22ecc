"""Modules that decide between the original network and a repaired one: by confidence, uncertainty or calibration."""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from repairopt.patches import AsLogits

from .soft_vote import other_network

OWN = "vote."  # begins the names of tensors that are not the other network's


class HardVote(nn.Module):
    """The label of the majority of two networks; where they differ, that of the more confident one.

    The outputs are the logarithms of the probabilities of the network that decides.
    """

    def __init__(self, network: nn.Module, other: nn.Module) -> None:
        super().__init__()
        self.network, self.other, self.training = network, other, network.training

    def forward(self, inputs: Tensor) -> Tensor:
        """Logarithms of probabilities ``(N, k)``."""
        first, second = (torch.log_softmax(net(inputs.clone()), 1) for net in (self.network, self.other))
        return torch.where(second.amax(1, keepdim=True) > first.amax(1, keepdim=True), second, first)

    @classmethod
    def from_parts(cls, network: nn.Module, settings: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> HardVote:
        """The module of a wrapped patch, see :func:`repairopt.patches.wrap`."""
        return cls(network, other_network(network, settings, tensors))


class TemperatureVote(nn.Module):
    """Two networks, each calibrated by a temperature: the mean of their probabilities, or the more confident.

    Attributes:
        network: The original.
        other: The repaired one.
        temperatures: Of both.
        combine: ``"mean"`` or ``"confident"``.
    """

    def __init__(
        self, network: nn.Module, other: nn.Module, temperatures: tuple[float, float], combine: str = "mean"
    ) -> None:
        super().__init__()
        if len(temperatures) != 2 or not all(math.isfinite(one) and one > 0 for one in temperatures):
            raise ValueError(f"temperatures={temperatures!r}; expected two numbers above 0")
        self.network, self.other, self.training = network, other, network.training
        self.temperatures, self.combine = temperatures, combine

    def forward(self, inputs: Tensor) -> Tensor:
        """Logarithms of probabilities ``(N, k)``."""
        first = torch.log_softmax(self.network(inputs.clone()) / self.temperatures[0], 1)
        second = torch.log_softmax(self.other(inputs.clone()) / self.temperatures[1], 1)
        if self.combine == "mean":
            return torch.logsumexp(torch.stack([first, second]), 0) - math.log(2)
        return torch.where(second.amax(1, keepdim=True) > first.amax(1, keepdim=True), second, first)

    @classmethod
    def from_parts(
        cls, network: nn.Module, settings: Mapping[str, Any], tensors: Mapping[str, Tensor]
    ) -> TemperatureVote:
        """The module of a wrapped patch, see :func:`repairopt.patches.wrap`."""
        first, second = settings["temperatures"]
        return cls(network, other_network(network, settings, tensors), (first, second), settings["combine"])


class PerturbationVote(nn.Module):
    """The label of the network that is less uncertain under noise: of two, the mean prediction with less entropy.

    The noise is the same for every row, so that an answer does not depend on the other rows of a batch.

    Attributes:
        network: The original.
        other: The repaired one.
        noise: ``(T, ...)``, of the shape of an input each.
        soft: Whether both predictions are mixed with weights ``1 / (entropy + 1e-6)``.
    """

    noise: Tensor

    def __init__(self, network: nn.Module, other: nn.Module, noise: Tensor, soft: bool = False) -> None:
        super().__init__()
        self.network, self.other, self.soft, self.training = network, other, soft, network.training
        self.register_buffer("noise", noise)

    def forward(self, inputs: Tensor) -> Tensor:
        """Logarithms of probabilities ``(N, k)``."""
        parts = []
        for net in (self.network, self.other):
            noisy = [torch.softmax(net(inputs + one.to(inputs.dtype)), 1) for one in self.noise]
            parts.append((torch.log_softmax(net(inputs.clone()), 1), entropy(torch.stack(noisy).mean(0))))
        return less_uncertain(parts, self.soft)

    @classmethod
    def from_parts(
        cls, network: nn.Module, settings: Mapping[str, Any], tensors: Mapping[str, Tensor]
    ) -> PerturbationVote:
        """The module of a wrapped patch, see :func:`repairopt.patches.wrap`."""
        own, others = divided(tensors)
        return cls(network, other_network(network, settings, others), own["noise"], bool(settings["soft"]))


class DropoutVote(nn.Module):
    """The label of the network that is less uncertain under dropout: the mean prediction with less entropy.

    The masks of each place are drawn once and are the same for every row, so that answers can be repeated and do not
    depend on the other rows of a batch. A place is a dropout layer of the network, or, where it has none, the input of
    each linear, convolutional or recurrent layer but the first.

    Attributes:
        network: The original.
        other: The repaired one.
        places: Names of the modules.
        soft: Whether both predictions are mixed with weights ``1 / (entropy + 1e-6)``.
    """

    def __init__(self, network: nn.Module, other: nn.Module, masks: Mapping[str, Tensor], soft: bool = False) -> None:
        super().__init__()
        self.network, self.other, self.soft, self.training = network, other, soft, network.training
        self.places = tuple(masks)
        self.masked = nn.ModuleList([with_masks(net, masks) for net in (network, other)])

    def forward(self, inputs: Tensor) -> Tensor:
        """Logarithms of probabilities ``(N, k)``."""
        parts = []
        for net, masked in zip((self.network, self.other), self.masked, strict=True):
            gates = [one for one in masked.modules() if isinstance(one, Masked)]
            noisy = []
            for k in range(len(gates[0].masks)):
                for gate in gates:
                    gate.current = k
                noisy.append(torch.softmax(masked(inputs.clone()), 1))
            parts.append((torch.log_softmax(net(inputs.clone()), 1), entropy(torch.stack(noisy).mean(0))))
        return less_uncertain(parts, self.soft)

    @classmethod
    def from_parts(cls, network: nn.Module, settings: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> DropoutVote:
        """The module of a wrapped patch, see :func:`repairopt.patches.wrap`."""
        own, others = divided(tensors)
        masks = {name: own[f"mask.{name}"] for name in settings["places"]}
        return cls(network, other_network(network, settings, others), masks, bool(settings["soft"]))


class Masked(nn.Module):
    """A layer whose input is multiplied by one of some masks; a dropout layer is that product alone.

    Attributes:
        inner: The layer.
        masks: ``(T, ...)``, of the shape of the input of one row each.
        current: The mask in use.
    """

    masks: Tensor

    def __init__(self, inner: nn.Module, masks: Tensor) -> None:
        super().__init__()
        self.inner, self.current = inner, 0
        self.register_buffer("masks", masks)

    def forward(self, inputs: Tensor, *rest: Any) -> Any:
        """The layer's outputs for masked inputs."""
        masked = inputs * self.masks[self.current].to(inputs.dtype)
        return masked if is_dropout(self.inner) else self.inner(masked, *rest)


def is_dropout(module: nn.Module) -> bool:
    """Whether a module is a dropout layer."""
    return isinstance(module, nn.Dropout | nn.Dropout1d | nn.Dropout2d | nn.Dropout3d | nn.AlphaDropout)


def with_masks(network: nn.Module, masks: Mapping[str, Tensor]) -> nn.Module:
    """A copy of a network, with the same tensors, whose layers at some places have masked inputs."""
    known: dict[int, Any] = {id(one): one for one in (*network.parameters(), *network.buffers())}
    made = copy.deepcopy(network, known)
    plain: nn.Module = made.network if isinstance(made, AsLogits) else made
    for name, mask in masks.items():
        inside = dict(plain.named_modules())
        if name not in inside:
            raise ValueError(f"the network has no module '{name}'")
        parent, _, leaf = name.rpartition(".")
        setattr(inside[parent], leaf, Masked(inside[name], mask))
    return made


def divided(tensors: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """What a vote adds of its own, and the other network's tensors."""
    own = {name.removeprefix(OWN): one for name, one in tensors.items() if name.startswith(OWN)}
    return own, {name: one for name, one in tensors.items() if not name.startswith(OWN)}


def entropy(chance: Tensor) -> Tensor:
    """Entropy of probabilities ``(N, k)`` in nats, ``(N, 1)``."""
    return -(chance * chance.clamp(min=1e-30).log()).sum(1, keepdim=True)


def less_uncertain(parts: list[tuple[Tensor, Tensor]], soft: bool) -> Tensor:
    """The prediction of the less uncertain network; the original's where both are as uncertain."""
    (first, doubt), (second, other_doubt) = parts
    if not soft:
        return torch.where(other_doubt < doubt, second, first)
    weights = torch.log_softmax(-torch.log(torch.cat([doubt, other_doubt], 1) + 1e-6), 1)
    return torch.logsumexp(torch.stack([first + weights[:, :1], second + weights[:, 1:]]), 0)
