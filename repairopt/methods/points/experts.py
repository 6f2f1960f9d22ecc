"""Experts: one changed copy of a network for each of some classes, and the rule by which they are merged."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from repairopt.patches import parameters_inside

EXPERT = "expert_"  # in front of buffers: expert_3__4__weight


class Experts(nn.Module):
    """The outputs of the expert that claims its class with the highest confidence, else those of the original.

    An expert for class ``c`` claims an input where it answers ``c``; its confidence is the probability that it gives
    to ``c``.

    Attributes:
        network: The original.
        classes: Of the experts.

    References:
        Usman, Gopinath, Sun, Noller, Pasareanu, NNrepair: Constraint-Based Repair of Neural Network Classifiers,
        CAV 2021.
    """

    def __init__(self, network: nn.Module, weights: Mapping[str, Tensor]) -> None:
        super().__init__()
        self.network, self.training = network, network.training
        own = parameters_inside(network)
        names: dict[int, dict[str, str]] = {}
        for key, value in weights.items():
            number, _, name = key.partition(":")
            if name not in own or own[name][1].shape != value.shape or not number.isdigit():
                raise ValueError(f"'{key}' of shape {tuple(value.shape)} is no class with a parameter of the network")
            buffer = f"{EXPERT}{number}__{name.replace('.', '__')}"
            self.register_buffer(buffer, value.to(own[name][1]))
            names.setdefault(int(number), {})[own[name][0]] = buffer
        self._names = dict(sorted(names.items()))

    @property
    def classes(self) -> tuple[int, ...]:
        """Classes that have an expert."""
        return tuple(self._names)

    def expert(self, number: int, inputs: Tensor) -> Tensor:
        """Outputs ``(N, k)`` of the expert for a class."""
        weights = {name: getattr(self, buffer) for name, buffer in self._names[number].items()}
        found: Tensor = functional_call(self.network, weights, (inputs.clone(),))
        return found

    def forward(self, inputs: Tensor) -> Tensor:
        """Outputs ``(N, k)``."""
        outputs: Tensor = self.network(inputs.clone())
        best = torch.zeros(len(outputs), dtype=outputs.dtype, device=outputs.device)
        for number in self.classes:
            own = self.expert(number, inputs)
            confidence = torch.softmax(own, 1)[:, number]
            chosen = (own.argmax(1) == number) & (confidence > best)
            best = torch.where(chosen, confidence, best)
            outputs = torch.where(chosen[:, None], own, outputs)
        return outputs

    @classmethod
    def from_parts(cls, network: nn.Module, settings: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> Experts:
        """The module of a wrapped patch: tensors are named ``class:parameter``."""
        return cls(network, tensors)
