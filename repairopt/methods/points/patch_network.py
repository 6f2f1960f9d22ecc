"""PatchNetwork: a network with affine patches, each added on one linear region of it and on a thin shell around."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

PARTS = ("normals", "sides", "slope", "shift", "bound")


class PatchNetwork(nn.Module):
    """The original network plus gated affine functions.

    Patch ``r`` adds ``slope x + shift`` where ``normals x <= sides``, and nothing where some half-space is left by more
    than ``1 / gamma``: ``relu(p + K g - K) - relu(-p + K g - K)`` with
    ``g = relu(sum_i clamp(gamma (sides_i - normals_i x) + 1, 0, 1) - m + 1)``, where ``K = bound`` is at least ``|p|``
    on the box of inputs. The clamp is the difference of two ReLUs, without the cancellation.

    Attributes:
        network: The original.
        gamma: Inverse width of the shells, in units of the inputs.

    References:
        Fu and Li, Sound and Complete Neural Network Repair with Minimality and Locality Guarantees, ICLR 2022.
    """

    normals: Tensor
    sides: Tensor
    slope: Tensor
    shift: Tensor
    bound: Tensor

    def __init__(self, network: nn.Module, tensors: Mapping[str, Tensor], gamma: float) -> None:
        super().__init__()
        if not gamma > 0:
            raise ValueError(f"gamma={gamma!r}; expected a number above 0")
        like = next(value for value in network.state_dict().values() if value.is_floating_point())
        for name in PARTS:
            self.register_buffer(name, tensors[name].to(like))
        patches, _, inputs = self.normals.shape
        outputs = self.slope.shape[1]
        shapes = {"sides": self.normals.shape[:2], "slope": (patches, outputs, inputs)}
        shapes |= dict.fromkeys(("shift", "bound"), (patches, outputs))
        for name, shape in shapes.items():
            if getattr(self, name).shape != shape:
                raise ValueError(f"'{name}' has shape {tuple(getattr(self, name).shape)}, expected {tuple(shape)}")
        self.network, self.gamma, self.training = network, float(gamma), network.training

    def forward(self, inputs: Tensor) -> Tensor:
        """Outputs ``(N, k)``."""
        flat = inputs.flatten(1)
        outputs: Tensor = self.network(inputs.clone())
        for normals, sides, slope, shift, bound in zip(*(getattr(self, name) for name in PARTS), strict=True):
            room = (self.gamma * (sides - flat @ normals.T) + 1).clamp(0, 1)
            gate = bound * (room.sum(1) - (len(sides) - 1)).clamp(min=0)[:, None] - bound
            patch = flat @ slope.T + shift
            outputs = outputs + torch.relu(patch + gate) - torch.relu(gate - patch)
        return outputs

    @classmethod
    def from_parts(cls, network: nn.Module, settings: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> PatchNetwork:
        """The module of a wrapped patch, see :func:`repairopt.patches.wrap`."""
        return cls(network, tensors, float(settings["gamma"]))
