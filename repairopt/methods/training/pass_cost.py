"""What a pass through a network costs, told by its layers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

RECURRENT_STEP = 1e6  # operations that take as long as one position of one recurrent layer, whatever its size


def operations(network: nn.Module, inputs: Tensor, run: Callable[[Tensor], Any] | None = None) -> float:
    """Floating-point operations of a pass over ``inputs``, of layers with weights, about.

    Every weight is multiplied once at every position. Positions of recurrent layers come one after the other, each at a
    cost of its own. ``run`` runs the network, where that is not by a call of it.
    """
    total = [0.0]

    def count(module: nn.Module, _: Any, output: Any) -> None:
        found = output[0] if isinstance(output, tuple) else output
        weights = sum(parameter.numel() for parameter in module.parameters(recurse=False))
        if not isinstance(found, Tensor) or not found.ndim or not weights:
            return
        channels = found.shape[1] if isinstance(module, nn.modules.conv._ConvNd) else found.shape[-1]
        positions = found.numel() / max(1, channels)
        if isinstance(module, nn.RNNBase):
            total[0] += RECURRENT_STEP * module.num_layers * found.shape[1 if module.batch_first else 0]
        total[0] += 2.0 * weights * positions

    hooks = [module.register_forward_hook(count) for module in network.modules() if not [*module.children()]]
    try:
        with torch.no_grad():
            (run or network)(inputs)
    finally:
        for hook in hooks:
            hook.remove()
    return total[0]
