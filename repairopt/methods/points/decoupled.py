"""Decoupled: a network whose activations are decided by the original weights and whose values by changed ones."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn
from torch.func import functional_call, jvp

from repairopt.network import ONE_AT_A_TIME
from repairopt.patches import parameters_inside

CHANGE = "change_of_"  # in front of buffers


class Decoupled(nn.Module):
    """The original network plus the derivative of its outputs in the direction of a change of one layer.

    With the change in one layer this is the decoupled network: its activation channel runs the original weights and
    decides every branch (ReLU, maximum), its value channel runs the changed ones. Activations that are not piecewise
    linear act in the value channel by their tangents. Outputs are affine in the change. It runs by forward-mode
    differentiation, which ONNX files do not have.

    Attributes:
        network: The original.

    References:
        Sotoudeh and Thakur, Provable Repair of Deep Neural Networks, PLDI 2021, definitions 4.1 to 4.4.
    """

    def __init__(self, network: nn.Module, change: Mapping[str, Tensor]) -> None:
        super().__init__()
        self.network, self.training = network, network.training
        own = parameters_inside(network)
        for name, value in change.items():
            if name not in own or own[name][1].shape != value.shape:
                raise ValueError(f"'{name}' of shape {tuple(value.shape)} is no parameter of the network")
            self.register_buffer(CHANGE + name.replace(".", "__"), value.to(own[name][1]))
        self._names = tuple(change)

    def forward(self, inputs: Tensor) -> Tensor:
        """Outputs ``(N, k)``."""
        own = parameters_inside(self.network)
        called = {name: own[name][0] for name in self._names}
        points = {called[name]: own[name][1].detach() for name in self._names}
        change = {called[name]: getattr(self, CHANGE + name.replace(".", "__")) for name in self._names}
        with ONE_AT_A_TIME, warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the first use imports what torch itself has deprecated
            found: Any = jvp(lambda given: functional_call(self.network, given, (inputs,)), (points,), (change,))
        outputs, moved = found
        return outputs + moved

    @classmethod
    def from_parts(cls, network: nn.Module, settings: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> Decoupled:
        """The module of a wrapped patch, see :func:`repairopt.patches.wrap`: tensors are changes by parameter."""
        return cls(network, tensors)
